"""The coordinator answers those who wait at a barrier once, and tells states to observers alone."""

from __future__ import annotations

import asyncio

import pytest

from arendezvous.coordinator.coordinator import Coordinator
from arendezvous.coordinator.meeting import MAX_WAITS, Outcome
from arendezvous.coordinator.run import Attachment
from arendezvous.errors import RendezvousStateError, RoundOverError
from arendezvous.law.barriers import Met
from arendezvous.law.events import BarrierPassed, LawEvent, NodeUpdated
from arendezvous.law.operations import Arrive, Join, Leave, Progress, Update, Withdraw
from arendezvous.law.state import Cause, NodeDesc, NodeView, RunSettings

pytestmark = pytest.mark.virtual


class Run:
    """A round of so many members, and what each was told besides the answers to its own requests."""

    def __init__(self, count: int) -> None:
        self.coordinator = Coordinator(asyncio.get_running_loop())
        self.told: list[NodeView] = []
        self.answers: dict[str, list[Outcome]] = {}
        settings = RunSettings(count, count)
        self.members: list[Attachment] = []
        for i in range(count):
            member = self.coordinator.attach("job", f"n{i}", b"%d" % i, self.told.append)
            self.coordinator.propose(member, Join(NodeDesc(f"n{i}"), settings))
            self.members.append(member)

    def arrive(self, number: int, name: str = "x", member: Attachment | None = None) -> Met | None:
        node = f"n{number}"
        answers = self.answers.setdefault(node, [])
        operation = Arrive(node, 1, 0, name)
        return self.coordinator.meetings.arrive(member or self.members[number], operation, answers.append)


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.fixture
async def run() -> Run:
    one = Run(3)
    await settle()
    one.told.clear()
    return one


async def test_all_who_wait_are_answered_once_and_nobody_is_told_a_view(run: Run) -> None:
    assert [run.arrive(0), run.arrive(1)] == [None, None]
    assert run.arrive(2) == Met(passed=True)
    await settle()
    assert run.answers == {"n0": [Met(passed=True)], "n1": [Met(passed=True)], "n2": []}
    assert run.told == []
    assert BarrierPassed not in {type(event) for _, event in run.coordinator.runs["job"].history}


async def test_who_withdraws_has_its_waiting_requests_answered(run: Run) -> None:
    run.arrive(0)
    run.arrive(0)
    met = run.coordinator.meetings.withdraw(run.members[0], Withdraw("n0", 1, 0, "x"))
    await settle()
    assert met == Met(passed=False, missing=("n1", "n2"), withdrawn=1)
    assert run.answers["n0"] == [met, met]


async def test_who_waits_is_answered_when_a_member_is_gone(run: Run) -> None:
    run.arrive(0)
    run.arrive(1, "y")
    run.coordinator.propose(run.members[2], Leave("n2", "boom", Cause.FAILED))
    await settle()
    for node in ("n0", "n1"):
        [error] = run.answers[node]
        assert isinstance(error, RoundOverError)
        assert error.departures == {"n2": "boom"}


async def test_whoever_comes_back_on_another_connection_is_answered_there(run: Run) -> None:
    run.arrive(0)
    first = run.answers.pop("n0")
    again = run.coordinator.attach("job", "n0", b"0", run.told.append)
    assert run.arrive(0, member=again) is None
    run.arrive(1)
    run.arrive(2)
    await settle()
    assert (first, run.answers["n0"]) == ([], [Met(passed=True)])


async def test_another_process_under_a_members_name_does_not_come_to_its_barrier(run: Run) -> None:
    stranger = run.coordinator.attach("job", "n0", b"stranger", run.told.append)
    with pytest.raises(RoundOverError):
        run.arrive(0, member=stranger)


async def test_a_member_waits_only_so_often_at_one_barrier(run: Run) -> None:
    for _ in range(MAX_WAITS):
        run.arrive(0)
    with pytest.raises(RendezvousStateError, match="64 times already"):
        run.arrive(0)


async def test_a_thousand_are_answered_some_at_a_time() -> None:
    run = Run(1000)
    for number in range(999):
        run.arrive(number)
    run.arrive(999)
    await asyncio.sleep(0)
    answered = sum(map(len, run.answers.values()))
    assert 0 < answered < 999
    await settle()
    assert sum(map(len, run.answers.values())) == 999


async def test_states_are_told_to_observers_alone_the_latest_of_each_turn(run: Run) -> None:
    seen: list[LawEvent] = []
    everything: list[LawEvent] = []
    run.coordinator.observe(lambda *event: seen.append(event[2]), NodeUpdated)
    run.coordinator.observe(lambda *event: everything.append(event[2]))
    happened = run.coordinator.runs["job"].happened
    for number in range(1000):
        run.coordinator.propose(run.members[0], Update("n0", b"%d" % number))
    run.coordinator.propose(run.members[1], Update("n1", b'"fine"'))
    run.coordinator.propose(run.members[1], Progress("n1", 3))
    await settle()
    assert seen == [NodeUpdated("n0", b"999"), NodeUpdated("n1", b'"fine"')]
    assert (everything, run.told) == ([], [])
    assert run.coordinator.runs["job"].happened == happened
    status = run.coordinator.status("job")
    assert [(node.state, node.step) for node in status.nodes] == [(b"999", None), (b'"fine"', 3), (b"", None)]

"""What a coordinator keeps has limits, over all of its runs."""

from __future__ import annotations

import asyncio
import math
from itertools import pairwise

import pytest

from arendezvous.coordinator.budget import MAX_CLAIMS, NODE, CoordinatorLimits
from arendezvous.coordinator.coordinator import Coordinator
from arendezvous.coordinator.run import Attachment
from arendezvous.coordinator.telling import AT_ONCE
from arendezvous.errors import RendezvousSettingsError, RendezvousStateError
from arendezvous.law.operations import Close, Drain, Join, KeepAlive, Leave, Operation, Reopen, Resume
from arendezvous.law.rounds import EXPIRED_AT_ONCE
from arendezvous.law.rules import Brought
from arendezvous.law.state import NodeDesc, NodeView, Phase, RunSettings

pytestmark = pytest.mark.virtual

ALONE = RunSettings(1, 1, 0.0)
MANY = RunSettings(1, 10_000, 0.0)
ADDRESSES = tuple(f"10.0.0.{number}" for number in range(16))


def coordinator(**limits: float) -> Coordinator:
    return Coordinator(asyncio.get_running_loop(), limits=CoordinatorLimits(**limits))  # type: ignore[arg-type]


def propose(at: Coordinator, operation: Operation, run: str = "job", node: str = "") -> NodeView | None:
    name = node or operation.node  # type: ignore[union-attr]  # of those that are used here
    return at.propose(at.attach(run, name, b"secret", lambda view: None), operation)


def join(at: Coordinator, name: str, run: str = "job", addresses: tuple[str, ...] = ()) -> None:
    propose(at, Join(NodeDesc(name, addresses=addresses), MANY), run)


def resume(world: int, run: str) -> Resume:
    return Resume(NodeDesc("a"), MANY, 1, 3, 0, world, "digest")


# Nodes


async def test_what_nodes_bring_is_counted_and_taken_off_when_they_bring_it_no_more() -> None:
    at = coordinator()
    for name, brings in (("a", Brought(data=b'"' + b"x" * 4000 + b'"')), ("b", None)):
        propose(at, Join(NodeDesc(name, brings=brings), MANY))
    run = at.runs["job"]
    assert run.large.keys() == {"a"}
    assert run.large["a"] > 8000
    propose(at, Join(NodeDesc("a"), MANY, (1, 0)))
    assert run.large["a"] == 0
    propose(at, Join(NodeDesc("c", brings=Brought(slots=2)), MANY))
    assert 0 < run.large["c"] < 2000
    propose(at, Leave("c"))
    assert run.large.keys() == {"a"}


@pytest.mark.parametrize("addresses", [(), ADDRESSES], ids=["few", "many"])
async def test_nodes_of_all_runs_are_counted_together_and_no_more_when_they_are_gone(
    addresses: tuple[str, ...],
) -> None:
    at = coordinator(max_node_bytes=100_000)

    def fill() -> list[tuple[str, str]]:
        inside: list[tuple[str, str]] = []
        refused = ""
        while not refused:
            run, name = f"run{len(inside) % 3}", f"n{len(inside)}"
            try:
                join(at, name, run, addresses)
                inside.append((run, name))
            except RendezvousStateError as error:
                refused = error.message
        assert "use another server, or raise it" in refused
        return inside

    first = fill()
    assert len(first) == (19 if not addresses else 5)
    for run, name in first:
        join(at, name, run, addresses)  # those who are in may go on
    for run, name in first:
        propose(at, Leave(name), run)
    assert len(fill()) == len(first)


async def test_nodes_that_are_lost_or_whose_run_is_opened_anew_make_room(
    caplog: pytest.LogCaptureFixture,
) -> None:
    at = coordinator(max_node_bytes=50_000)
    for number in range(9):
        join(at, f"n{number}")
    with pytest.raises(RendezvousStateError, match="nodes of all runs take"):
        join(at, "one more")
    at.steer("job", Close("me"))
    at.steer("job", Reopen(1, "me"))
    for number in range(9):
        join(at, f"m{number}")
    await asyncio.sleep(MANY.expiry + 1)
    join(at, "one more")


async def test_those_who_wait_for_a_name_are_few_and_count_as_nodes_do_until_they_wait_no_more() -> None:
    at = coordinator(max_node_bytes=2_000_000)
    told: list[NodeView] = []

    def rival(number: int) -> Attachment:
        attachment = at.attach("job", "a", b"secret%d" % number, told.append)
        at.propose(attachment, Join(NodeDesc("a", addresses=ADDRESSES), MANY))
        return attachment

    for _ in range(3):
        join(at, "a")
        rivals = [rival(number) for number in range(MAX_CLAIMS)]
        assert {each.phase for each in rivals} == {Phase.CLAIMING}
        with pytest.raises(RendezvousStateError, match="64 nodes wait for what 'a' has in run 'job'"):
            rival(MAX_CLAIMS)
        at.detach(rivals[0])
        rivals.append(rival(MAX_CLAIMS))
        propose(at, KeepAlive("a"))  # so it is alive, and they are refused
        assert {each.phase for each in rivals} == {Phase.GONE}
        propose(at, Leave("a"))
    for number in range(2_000_000 // NODE):
        join(at, f"n{number}")


# Restored rounds


async def test_places_for_the_members_of_restored_rounds_are_limited_and_come_back_with_time() -> None:
    at = coordinator()
    for number in range(6):
        propose(at, resume(10_000, f"run{number}"), f"run{number}")
    with pytest.raises(RendezvousStateError, match="keeps no places for 10000 more members; join again"):
        propose(at, resume(10_000, "run7"), "run7")
    await asyncio.sleep(2)
    propose(at, resume(10_000, "run7"), "run7")


async def test_members_of_a_round_that_is_restored_already_come_back_whatever_the_limit() -> None:
    at = coordinator()
    for number in range(6):
        propose(at, resume(10_000, f"run{number}"), f"run{number}")
    for rank in range(1, 20):
        again = Resume(NodeDesc(f"n{rank}"), MANY, 1, 3, rank, 10_000, "digest")
        view = propose(at, again, "run0")
        assert view is not None
        assert (view.phase, view.rank) == (Phase.MEMBER, rank)


async def test_places_that_nobody_claims_are_given_up_some_at_a_time_and_all_in_the_end() -> None:
    at = coordinator()
    propose(at, resume(2000, "job"))
    left: set[int] = set()
    at.observe(lambda *_: left.add(len(at.runs["job"].state.nodes)))
    await asyncio.sleep(60)
    assert not at.runs["job"].state.nodes
    sizes = sorted(left)
    assert max(later - earlier for earlier, later in pairwise(sizes)) <= EXPIRED_AT_ONCE


# Times


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (RunSettings(1, 2, last_call=1e6), "last_call"),
        (RunSettings(1, 2, keep_alive_interval=1e5, keep_alive_max_attempt=10), "expiry"),
        (RunSettings(1, 2, disconnect_grace=1e6), "disconnect_grace"),
        (RunSettings(1, 2, last_call=1e300), "last_call"),
    ],
)
async def test_times_that_would_keep_a_run_for_ever_are_refused(settings: RunSettings, name: str) -> None:
    at = coordinator()
    with pytest.raises(RendezvousSettingsError, match=f"{name} is .*at most 604800 seconds on this server"):
        propose(at, Join(NodeDesc("a"), settings))
    assert not at.runs
    join(at, "a")
    propose(at, Leave("a"))
    with pytest.raises(RendezvousSettingsError):
        propose(at, Join(NodeDesc("b"), settings))


async def test_a_drain_of_more_than_a_week_is_refused() -> None:
    at = coordinator()
    join(at, "a")
    with pytest.raises(RendezvousSettingsError, match=r"drain deadline is 1000000\.0, but must be at most"):
        at.steer("job", Drain("a", 1e6))
    at.steer("job", Drain("a", 1e5))


# What is remembered


async def test_what_is_remembered_is_limited_and_shortened_first_where_it_is_much() -> None:
    at = coordinator(max_history_bytes=200_000, run_retention=math.inf)
    propose(at, Join(NodeDesc("a"), ALONE), "quiet")
    propose(at, Leave("a"), "quiet")
    for number in range(500):
        name = f"n{number}"
        propose(at, Join(NodeDesc(name), ALONE), "busy")
        propose(at, Leave(name, "x" * 200), "busy")
        busy = at.runs["busy"]
        assert len(busy.history) + len(busy.state.departed) <= 200
    assert "quiet" in at.runs
    assert list(busy.state.departed)[-1] == "n499"
    assert len(busy.history) >= 16


async def test_runs_that_nobody_is_in_are_forgotten_when_too_much_is_remembered_of_many() -> None:
    at = coordinator(max_history_bytes=50_000, run_retention=math.inf)
    join(at, "stays", "used")
    for number in range(100):
        propose(at, Join(NodeDesc("a"), ALONE), f"run{number}")
        propose(at, Leave("a"), f"run{number}")
    assert "used" in at.runs
    assert "run99" in at.runs
    assert "run0" not in at.runs
    assert 5 < len(at.runs) < 30


# Telling many


async def test_a_crowd_is_told_some_at_a_time_and_everybody_the_latest() -> None:
    at = coordinator()
    told: dict[str, list[NodeView]] = {}
    size = 3 * AT_ONCE
    settings = RunSettings(size, size)
    for number in range(size):
        name = f"n{number}"
        attachment = at.attach("job", name, b"secret", told.setdefault(name, []).append)
        at.propose(attachment, Join(NodeDesc(name), settings))
    await asyncio.sleep(0)
    assert 0 < sum(bool(views) for views in told.values()) <= AT_ONCE
    at.steer("job", Close("me"))
    await asyncio.sleep(1)
    for name, views in told.items():
        latest = at.view("job", name)
        assert latest is not None
        assert (views[-1].phase, views[-1].closed) == (latest.phase, latest.closed)
        assert latest.closed is not None

"""What a coordinator with a journal remembers over its end, and does while nothing can be recorded."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from arendezvous.coordinator import records
from arendezvous.coordinator.budget import CoordinatorLimits
from arendezvous.coordinator.commits import Commits
from arendezvous.coordinator.coordinator import Coordinator
from arendezvous.coordinator.history import PAST
from arendezvous.coordinator.journal import MAX_VALUE
from arendezvous.coordinator.records import GARBAGE
from arendezvous.coordinator.recovery import META, Meta, recover
from arendezvous.coordinator.rosters import remaining_members
from arendezvous.coordinator.run import Attachment, Outcome, proof
from arendezvous.errors import RendezvousClosedError, RendezvousStateError
from arendezvous.keyspace.host import KeyspaceHost
from arendezvous.law.checks import MAX_NAME
from arendezvous.law.image import PROOF, Roster, RunHead
from arendezvous.law.operations import Close, Drain, Join, KeepAlive, Leave, Operation, Reopen, Resume
from arendezvous.law.state import MAX_ADDRESSES, Cause, NodeDesc, NodeView, Phase, RunSettings
from arendezvous.testing.journal_checks import MemoryJournal

PAIR = RunSettings(2, 2, 0.0)
TRIO = RunSettings(2, 3, 5.0)
FULL = RendezvousStateError("disk full")

pytestmark = pytest.mark.virtual


@pytest.fixture(autouse=True, params=[records.FEW, 0], ids=["few", "many"])
def most_in_the_head(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the members of a round in the head, or in rows of their own."""
    monkeypatch.setattr(records, "FEW", request.param)


class Life:
    """One coordinator over a journal, until it is killed."""

    def __init__(self, journal: MemoryJournal, coordinator: Coordinator, commits: Commits) -> None:
        self.journal = journal
        self.coordinator = coordinator
        self.commits = commits
        self.views: dict[str, list[NodeView]] = {}
        self.attachments: dict[str, Attachment] = {}

    def attach(self, node: str, secret: bytes = b"") -> Attachment:
        views = self.views.setdefault(node, [])
        attached = self.coordinator.attach("job", node, secret or node.encode(), views.append)
        self.attachments[node] = attached
        return attached

    def propose(self, operation: Operation, node: str, secret: bytes = b"") -> NodeView:
        attached = self.attachments.get(node) or self.attach(node, secret)
        self.coordinator.propose(attached, operation)
        view = self.coordinator.view_of(attached)
        self.views[node].append(view)
        return view

    def join(self, nodes: str, settings: RunSettings = PAIR, after: tuple[int, int] = (0, -1)) -> None:
        for node in nodes:
            self.propose(Join(NodeDesc(node), settings, after), node)

    def resume(
        self, node: str, view: NodeView, settings: RunSettings = PAIR, secret: bytes = b""
    ) -> NodeView:
        held = (view.incarnation, view.round, view.rank, view.world_size, view.digest)
        return self.propose(Resume(NodeDesc(node), settings, *held), node, secret)

    async def steer(self, operation: Close | Reopen | Drain) -> list[Outcome]:
        answers: list[Outcome] = []
        assert self.coordinator.records is not None
        self.coordinator.records.steer("job", operation, answers.append)
        await asyncio.sleep(3)
        return answers

    def latest(self, node: str) -> NodeView:
        return self.views[node][-1]


@asynccontextmanager
async def life(journal: MemoryJournal, **limits: float) -> AsyncIterator[Life]:
    loop = asyncio.get_running_loop()
    async with journal:
        coordinator = Coordinator(loop, limits=CoordinatorLimits(**limits))  # type: ignore[arg-type]
        commits = await recover(journal, coordinator, KeyspaceHost())
        try:
            yield Life(journal, coordinator, commits)
        finally:
            commits.close()
            coordinator.close()


async def met(journal: MemoryJournal, nodes: str = "ab", settings: RunSettings = PAIR) -> dict[str, NodeView]:
    async with life(journal) as one:
        one.join(nodes, settings)
        await asyncio.sleep(settings.last_call + 0.1)
        return {node: one.latest(node) for node in nodes}


async def test_nobody_is_told_a_rank_before_it_is_recorded() -> None:
    journal = MemoryJournal()
    async with life(journal) as one:
        one.join("ab")
        assert [one.latest(node).phase for node in "ab"] == [Phase.GATHERING] * 2
        before = journal.commits
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert journal.commits == before + 1
        assert sorted(one.latest(node).rank for node in "ab") == [0, 1]


async def told_of_meeting_again(journal: MemoryJournal | None) -> int:
    """How many views eight nodes are told that meet, and meet again, in one turn of the loop each."""
    told: list[NodeView] = []
    coordinator = Coordinator(asyncio.get_running_loop())
    if journal is not None:
        await recover(journal, coordinator, KeyspaceHost())
    settings = RunSettings(8, 8, 0.0)
    attached = {node: coordinator.attach("job", node, node.encode(), told.append) for node in "abcdefgh"}
    for after in ((0, -1), (1, 0), (1, 1)):
        for node, attachment in attached.items():
            coordinator.enact(attachment, Join(NodeDesc(node), settings, after))
        await asyncio.sleep(0.5)
        assert coordinator.status("job").round == after[1] + 1
    coordinator.close()
    return len(told)


async def test_with_a_journal_nodes_are_told_of_a_round_as_often_as_without_but_for_the_last_to_come() -> (
    None
):
    without, recorded = await told_of_meeting_again(None), await told_of_meeting_again(MemoryJournal())
    assert without <= recorded <= without + 3  # who completes a round is not answered at once


async def test_members_come_back_to_their_ranks_and_hear_of_nothing() -> None:
    journal = MemoryJournal()
    held = await met(journal)
    async with life(journal) as two:
        await asyncio.sleep(0.5)
        again = {node: two.resume(node, held[node]) for node in "ab"}
        for node in "ab":
            assert (again[node].generation, again[node].rank) == (held[node].generation, held[node].rank)
            assert (again[node].digest, again[node].notices) == (held[node].digest, ())
        await asyncio.sleep(5)
        assert two.coordinator.status("job").departed == ()


async def test_who_does_not_come_back_is_lost_to_the_others() -> None:
    journal = MemoryJournal()
    held = await met(journal)
    async with life(journal) as two:
        two.resume("a", held["a"])
        await asyncio.sleep(1.5)
        assert [(one.node, one.cause) for one in two.latest("a").notices] == [("b", Cause.CONNECTION_LOST)]


async def test_who_has_finished_is_not_lost_after_a_restart() -> None:
    journal = MemoryJournal()
    async with life(journal) as one:
        one.join("ab")
        await asyncio.sleep(0.1)
        held = one.latest("a")
        one.propose(Leave("b", "done", Cause.FINISHED), "b")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        told = one.latest("a").notices
    async with life(journal) as two:
        two.resume("a", held)
        await asyncio.sleep(5)
        two.propose(KeepAlive("a"), "a")
        assert two.latest("a").notices == told
        assert [(gone.node, gone.cause) for gone in two.coordinator.status("job").departed] == [
            ("b", Cause.FINISHED)
        ]
        two.propose(Leave("a", "done", Cause.FINISHED), "a")
        await asyncio.sleep(0.1)
        assert two.coordinator.status("job").ended
    async with life(journal) as three:
        assert three.coordinator.status("job").ended


async def test_a_round_goes_on_where_some_have_joined_the_next_one_already() -> None:
    journal = MemoryJournal()
    async with life(journal) as one:
        one.join("ab")
        await asyncio.sleep(0.1)
        held = one.latest("b")
        one.join("a", after=(1, 0))
    async with life(journal) as two:
        two.join("a", after=(1, 0))
        two.resume("b", held)
        assert (two.latest("a").phase, two.latest("b").phase) == (Phase.WAITING, Phase.MEMBER)
        two.join("b", after=(1, 0))
        await asyncio.sleep(0.1)
        assert [(two.latest(node).round, two.latest(node).phase) for node in "ab"] == [(1, Phase.MEMBER)] * 2


async def test_a_late_node_of_a_closed_run_is_refused_after_a_restart() -> None:
    journal = MemoryJournal()
    held = await met(journal)
    async with life(journal) as two:
        two.resume("a", held["a"])
        [answer] = await two.steer(Close("admin", "enough"))
        assert isinstance(answer, NodeView)
        assert answer.closed is not None
    async with life(journal) as three:
        with pytest.raises(RendezvousClosedError, match=r"closed by admin .*enough"):
            three.join("c")
        assert three.resume("a", held["a"]).phase is Phase.MEMBER


async def test_a_run_that_nobody_has_joined_stays_closed_too() -> None:
    journal = MemoryJournal()
    async with life(journal) as one:
        await one.steer(Close("admin"))
    async with life(journal) as two:
        with pytest.raises(RendezvousClosedError):
            two.join("a")


async def test_what_was_reopened_counts_on_from_there() -> None:
    journal = MemoryJournal()
    await met(journal)
    async with life(journal) as two:
        await two.steer(Close("admin"))
        [answer] = await two.steer(Reopen(1, "admin"))
        assert isinstance(answer, NodeView)
    async with life(journal) as three:
        three.join("ab")
        await asyncio.sleep(0.1)
        assert three.latest("a").generation == (2, 1)


async def test_decisions_of_one_turn_are_made_in_order() -> None:
    journal = MemoryJournal()
    async with life(journal) as one:
        answers: list[Outcome] = []
        assert one.coordinator.records is not None
        for operation in (Close("x"), Reopen(1, "x"), Close("y"), Close("z"), Reopen(7)):
            one.coordinator.records.steer("job", operation, answers.append)
        assert answers == []
        await asyncio.sleep(0.1)
        closed = [a.closed.by if isinstance(a, NodeView) and a.closed else None for a in answers]
        assert closed == ["x", None, "y", "y", None]
        assert isinstance(answers[-1], RendezvousStateError)
    async with life(journal) as two:
        status = two.coordinator.status("job")
        assert status.closed is not None
        assert (status.incarnation, status.closed.by) == (2, "y")


async def test_a_drain_goes_on_to_its_deadline() -> None:
    journal = MemoryJournal()
    held = await met(journal, "abc", TRIO)
    async with life(journal) as two:
        for node in "abc":
            two.resume(node, held[node], TRIO)
        [answer] = await two.steer(Drain("c", 60.0, "preempted"))
        assert isinstance(answer, NodeView)
    async with life(journal) as three:
        views = {node: three.resume(node, held[node], TRIO) for node in "abc"}
        assert [(n.node, n.cause, n.seconds) for n in views["a"].notices] == [("c", None, 60.0)]
        for _ in range(30):
            await asyncio.sleep(2)
            for node in "abc":
                three.propose(KeepAlive(node), node)
        await asyncio.sleep(1)
        assert (three.latest("c").phase, three.latest("a").phase) == (Phase.GONE, Phase.MEMBER)
        assert [gone.cause for gone in three.coordinator.status("job").departed] == [Cause.DRAINED]


async def test_another_process_does_not_become_a_member_that_has_not_come_back_yet() -> None:
    journal = MemoryJournal()
    held = await met(journal)
    async with life(journal) as two:
        stranger = two.coordinator.attach("job", "a", b"another", lambda _: None)
        two.coordinator.propose(stranger, Resume(NodeDesc("a"), PAIR, 1, 0, 0, 2, held["a"].digest))
        assert two.coordinator.view_of(stranger).phase is Phase.GONE
        assert two.resume("a", held["a"]).phase is Phase.MEMBER


async def test_a_record_in_which_proofs_are_missing_is_damaged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "FEW", 0)
    journal = MemoryJournal()
    await met(journal)
    [key] = [key for key in journal.rows if b"/proofs/" in key]
    journal.rows[key] = journal.rows[key][:-PROOF]
    with pytest.raises(RendezvousStateError, match=r"damaged \(1 proofs of 2 members\)"):
        async with life(journal):
            pass


async def test_the_rows_of_release_0_2_tell_members_from_strangers() -> None:
    """There each row of a roster had all of the proofs of its members."""
    journal = MemoryJournal()
    held = await met(journal)
    for key, row in journal.rows.items():
        if key.endswith(b"/head"):
            head = msgspec.msgpack.decode(row, type=RunHead)
            journal.rows[key] = msgspec.msgpack.encode(msgspec.structs.replace(head, members=None))
    members = tuple(NodeDesc(node) for node in sorted(held, key=lambda node: held[node].rank))
    proofs = tuple(proof(member.name.encode()) for member in members)
    page = b"run/job/%s/roster/000000" % head.roster.encode()
    journal.rows = {key: row for key, row in journal.rows.items() if b"/proofs/" not in key}
    journal.rows[page] = msgspec.msgpack.encode(Roster(members, proofs))
    async with life(journal) as two:
        stranger = two.coordinator.attach("job", "a", b"another", lambda _: None)
        two.coordinator.propose(stranger, Resume(NodeDesc("a"), PAIR, 1, 0, 0, 2, held["a"].digest))
        assert two.coordinator.view_of(stranger).phase is Phase.GONE
        assert two.resume("a", held["a"], secret=b"a").phase is Phase.MEMBER


async def test_a_node_that_was_started_anew_waits_until_its_former_self_had_time_to_come_back() -> None:
    journal = MemoryJournal()
    held = await met(journal)
    async with life(journal) as two:
        two.resume("b", held["b"])
        two.join("a")
        stranger = two.coordinator.attach("job", "a", b"another", lambda _: None)
        two.coordinator.propose(stranger, Join(NodeDesc("a"), PAIR))
    async with life(journal) as three:
        three.resume("b", held["b"])
        stranger = three.coordinator.attach("job", "a", b"another", lambda _: None)
        three.coordinator.propose(stranger, Join(NodeDesc("a"), PAIR))
        phases = [stranger.phase]
        await asyncio.sleep(1.5)
        phases.append(stranger.phase)
        assert phases == [Phase.CLAIMING, Phase.WAITING]


async def test_a_journal_that_fails_keeps_rounds_from_completing_and_nothing_else() -> None:
    journal = MemoryJournal()
    async with life(journal) as one:
        one.join("ab", TRIO)
        await asyncio.sleep(5.1)
        journal.failure = FULL
        assert one.latest("a").phase is Phase.MEMBER
        one.join("c", TRIO)
        one.join("ab", TRIO, after=(1, 0))
        await asyncio.sleep(2)
        status = one.coordinator.status("job")
        assert (status.complete, status.obstacle) == (False, "disk full")
        assert "the server cannot record the round: disk full" in str(status)
        one.propose(Leave("c"), "c")
        assert one.latest("c").phase is Phase.GONE
        journal.failure = None
        await asyncio.sleep(10)
        assert [(one.latest(node).round, one.latest(node).world_size) for node in "ab"] == [(1, 2)] * 2
        assert one.coordinator.status("job").obstacle == ""


async def test_a_death_is_told_while_nothing_can_be_recorded() -> None:
    journal = MemoryJournal()
    async with life(journal) as one:
        one.join("ab")
        await asyncio.sleep(0.1)
        journal.failure = FULL
        one.coordinator.detach(one.attachments["b"])
        await asyncio.sleep(1.5)
        assert [notice.node for notice in one.latest("a").notices] == ["b"]
        journal.failure = None
        await asyncio.sleep(3)
        assert any(key.endswith(b"departed/b") for key in journal.rows)


@pytest.mark.parametrize("operation", [Close("admin"), Reopen(1, "admin")], ids=["close", "reopen"])
async def test_a_decision_that_cannot_be_recorded_is_not_made_and_says_why(operation: Close | Reopen) -> None:
    journal = MemoryJournal()
    async with life(journal) as one:
        one.join("ab")
        await asyncio.sleep(0.1)
        if isinstance(operation, Reopen):
            await one.steer(Close("x"))
        journal.failure = FULL
        before = one.coordinator.status("job").closed is None
        [answer] = await one.steer(operation)
        assert isinstance(answer, RendezvousStateError)
        assert "cannot record it: disk full; ask again once that is mended" in str(answer)
        assert (one.coordinator.status("job").closed is None) is before
        journal.failure = None
        await asyncio.sleep(3)
    async with life(journal) as two:
        assert (two.coordinator.status("job").closed is None) is before
        assert two.coordinator.status("job").complete


async def test_a_drain_that_cannot_be_recorded_is_announced_and_its_answer_says_so() -> None:
    journal = MemoryJournal()
    async with life(journal) as one:
        one.join("ab")
        await asyncio.sleep(0.1)
        journal.failure = FULL
        [answer] = await one.steer(Drain("b", 60.0))
        assert isinstance(answer, RendezvousStateError)
        assert "b drains, but the server cannot record it" in str(answer)
        assert [notice.node for notice in one.latest("a").notices] == ["b"]


async def test_a_run_that_is_forgotten_leaves_no_rows() -> None:
    journal = MemoryJournal()
    async with life(journal, run_retention=10.0) as one:
        one.join("ab")
        await asyncio.sleep(0.1)
        for node in "ab":
            one.propose(Leave(node), node)
        await asyncio.sleep(20)
        assert "job" not in one.coordinator.runs
        await asyncio.sleep(1)
        assert list(journal.rows) == [META]


async def test_a_run_that_ended_long_ago_is_forgotten_however_few_servers_there_were_since(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    journal = MemoryJournal()
    async with life(journal) as one:
        one.join("ab")
        await asyncio.sleep(0.1)
        for node in "ab":
            one.propose(Leave(node), node)
        await asyncio.sleep(0.1)
    now = time.time()
    for passed, is_known in ((3000.0, True), (3601.0, False)):
        monkeypatch.setattr(time, "time", lambda: now + passed)  # noqa: B023 - it is called in this turn
        async with life(journal) as later:
            await asyncio.sleep(1)
            assert ("job" in later.coordinator.runs) is is_known
            await asyncio.sleep(1)
    assert list(journal.rows) == [META]


def agreed(journal: MemoryJournal) -> list[bytes]:
    """The keys of all rows but those of histories."""
    return [key for key in journal.rows if not key.startswith(PAST)]


async def test_the_rows_of_one_round_take_the_place_of_those_of_the_one_before() -> None:
    journal = MemoryJournal()
    async with life(journal) as one:
        one.join("ab")
        await asyncio.sleep(0.1)
        for round_ in range(100):
            one.propose(Leave("b"), "b")
            one.join("ba", after=(1, round_))
            await asyncio.sleep(0.1)
            assert one.latest("a").round == round_ + 1
            # meta, the head, a roster; and those before, each with a departure
            assert len(agreed(journal)) <= 3 + 2 * (GARBAGE // 2 + 1)
        one.propose(Leave("b"), "b")
        await asyncio.sleep(0.1)
        assert len(agreed(journal)) <= 6  # nothing waits for a row of its own


async def test_rows_of_the_largest_nodes_fit_into_every_journal() -> None:
    addresses = tuple(f"{number:02}".ljust(MAX_NAME, "\u9f98") for number in range(MAX_ADDRESSES))
    settings, journal = RunSettings(60, 60), MemoryJournal()
    names = [f"node{number:02}" for number in range(60)]
    async with life(journal) as one:
        for name in names:
            one.propose(Join(NodeDesc(name, addresses=addresses), settings), name)
        await asyncio.sleep(0.1)
        assert sorted(one.latest(name).rank for name in names) == list(range(60))
    assert sum(map(len, journal.rows.values())) > MAX_VALUE > max(map(len, journal.rows.values()))
    async with life(journal) as two:
        assert [desc.name for desc in remaining_members(two.coordinator, "job", (1, 0))] == names


async def test_rows_whose_head_never_came_are_removed() -> None:
    journal = MemoryJournal()
    journal.rows[b"run/job/9.9/roster/000000"] = b"?"
    await met(journal)
    journal.rows[b"run/job/9.8/roster/000000"] = b"?"
    async with life(journal) as two:
        await asyncio.sleep(0.1)
        assert set(two.coordinator.runs) == {"job"}
    assert [key for key in journal.rows if b"/9." in key] == []


_DEEP = b"\x91" * 100_000


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        (META, msgspec.msgpack.encode(Meta(9)), "has rows of version 9, .* use the release that wrote"),
        (META, b"?", "is damaged: .* move it away"),
        (META, _DEEP, "is damaged: .* move it away"),
        (b"run/job/head", b"?", "record of run 'job' is damaged .* move it away"),
        (b"run/job/head", _DEEP, "record of run 'job' is damaged .* move it away"),
        (b"run/job/\xff/roster/000000", b"", "record of run 'job' is damaged"),
        (b"run/\xff/head", b"", "record of run '\ufffd' is damaged"),
        (
            b"run/job/head",
            msgspec.msgpack.encode([7, "news"]),
            "run 'job' is of version 7, .*use the release",
        ),
        (b"run/job/1.1/roster/000000", b"", "record of run 'job' is damaged"),
    ],
)
async def test_what_is_damaged_or_of_a_later_version_is_refused(key: bytes, value: bytes, said: str) -> None:
    journal = MemoryJournal()
    await met(journal)
    journal.rows[key] = value
    with pytest.raises(RendezvousStateError, match=said):
        await met(journal)


async def test_names_may_have_any_characters() -> None:
    journal = MemoryJournal()
    async with life(journal) as one:
        for node in ("a/b", "é %2F"):
            attached = one.coordinator.attach("x/y é", node, node.encode(), lambda _: None)
            one.coordinator.propose(attached, Join(NodeDesc(node), PAIR))
        await asyncio.sleep(0.1)
        gone = one.coordinator.attach("x/y é", "a/b", b"a/b", lambda _: None)
        one.coordinator.propose(gone, Leave("a/b"))
        await asyncio.sleep(0.1)
    async with life(journal) as two:
        status = two.coordinator.status("x/y é")
        assert [node.desc.name for node in status.nodes] == ["é %2F"]
        assert [node.node for node in status.departed] == ["a/b"]

"""What has happened to runs, as the server that follows knows it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from arendezvous.coordinator.coordinator import Coordinator
from arendezvous.coordinator.history import LATER, MOST, ROWS
from arendezvous.coordinator.journal import MAX_VALUE, Batch, Done
from arendezvous.coordinator.recovery import recover
from arendezvous.errors import RendezvousStateError
from arendezvous.keyspace.host import KeyspaceHost
from arendezvous.law.checks import MAX_NAME
from arendezvous.law.operations import Close, Join, Leave
from arendezvous.law.state import Cause, NodeDesc, RunSettings
from arendezvous.law.words import event_text
from arendezvous.server.http.resources.rounds import RoundLog
from arendezvous.testing.journal_checks import MemoryJournal

pytestmark = pytest.mark.virtual

PAIR = RunSettings(2, 2, 0.0, keep_alive_interval=3600.0, disconnect_grace=3600.0)


@asynccontextmanager
async def life(journal: MemoryJournal) -> AsyncIterator[Coordinator]:
    """A coordinator that is killed in the end: what is not recorded by then is lost."""
    async with journal:
        coordinator = Coordinator(asyncio.get_running_loop())
        commits = await recover(journal, coordinator, KeyspaceHost())
        try:
            yield coordinator
        finally:
            commits.close()
            coordinator.close()


def join(coordinator: Coordinator, *nodes: str, after: tuple[int, int] = (0, -1), run: str = "job") -> None:
    for node in nodes:
        attachment = coordinator.attach(run, node, node.encode(), lambda _: None)
        coordinator.propose(attachment, Join(NodeDesc(node), PAIR, after))


def texts(coordinator: Coordinator, run: str = "job") -> list[str]:
    return [event_text(event) for _, event in coordinator.runs[run].history]


async def test_who_follows_knows_what_happened_and_when() -> None:
    journal = MemoryJournal()
    async with life(journal) as one:
        join(one, "a", "b")
        await asyncio.sleep(10)
        one.propose(one.runs["job"].attachments["b"], Leave("b", "out of memory", Cause.FAILED))
        await asyncio.sleep(2 * LATER)
        before, happened = texts(one), one.runs["job"].happened
    async with life(journal) as two:
        assert texts(two) == before
        assert two.runs["job"].happened == happened
        # recorded `LATER` after it happened; and no time has passed since then by the wall clock
        assert two.runs["job"].history[-1][0] == pytest.approx(two.clock() - LATER, abs=0.1)


async def test_nobody_waits_for_it_and_the_latest_moment_is_lost() -> None:
    journal = MemoryJournal()
    async with life(journal) as one:
        before = journal.commits
        join(one, "a", "b")
        await asyncio.sleep(LATER / 2)
        assert journal.commits == before + 1  # the round
        await asyncio.sleep(LATER)
        assert journal.commits == before + 2
        one.propose(one.runs["job"].attachments["b"], Leave("b", "", Cause.FAILED))
        await asyncio.sleep(LATER / 2)
        known, now = texts(one)[:3], texts(one)
    assert len(now) > len(known)
    async with life(journal) as two:
        assert texts(two) == known


async def test_what_is_not_recorded_at_first_is_later(caplog: pytest.LogCaptureFixture) -> None:
    journal = MemoryJournal()
    async with life(journal) as one:
        join(one, "a", "b")
        await asyncio.sleep(LATER / 2)
        journal.failure = RendezvousStateError("disk full")
        await asyncio.sleep(5 * LATER)
        journal.failure = None
        await asyncio.sleep(5 * LATER)
        before = texts(one)
    assert [said.levelname for said in caplog.records] == ["ERROR", "WARNING"]  # it failed, and was made
    async with life(journal) as two:
        assert texts(two) == before != []


async def test_a_server_that_ends_records_what_has_happened_to_all_runs_however_many() -> None:
    journal, nodes = MemoryJournal(), [name + "\U00020000" * (MAX_NAME - 1) for name in "ab"]
    async with life(journal) as one:
        for number in range(150):
            join(one, *nodes, run=str(number))
        await asyncio.sleep(LATER / 2)
        assert one.records is not None
        one.records.history.hurry()
        await one.records.commits.finish()
        assert sum(len(row) for key, row in journal.rows.items() if b"past/" in key) > MOST
    async with life(journal) as two:
        assert all(run.history for run in two.runs.values())


class LyingJournal(MemoryJournal):
    """Makes each commit, and says that it has failed, as long as there is a reason."""

    def commit(self, batch: Batch, done: Done) -> None:
        failure, self.failure = self.failure, None
        super().commit(batch, (lambda _: done(failure)) if failure else done)
        self.failure = failure


async def test_what_was_recorded_though_the_answer_was_lost_is_told_once_and_is_forgotten() -> None:
    journal = LyingJournal()
    async with life(journal) as one:
        join(one, "a", "b")
        await asyncio.sleep(LATER / 2)
        for count, failure in ((150, RendezvousStateError("no answer")), (40, None)):
            for _ in range(count):  # some of the first are not known any more when it is recorded anew
                join(one, "c")
                one.propose(one.runs["job"].attachments["c"], Leave("c", "", Cause.FAILED))
            journal.failure = failure
            await asyncio.sleep(LATER)
        await asyncio.sleep(3 * LATER)
        known = list(one.runs["job"].history)
    async with life(journal) as two:
        assert [event for _, event in two.runs["job"].history] == [event for _, event in known]
        join(two, "a", "b", run="other")
        await asyncio.sleep(LATER / 2)
        journal.failure = RendezvousStateError("no answer")
        await asyncio.sleep(LATER)
        for node in "ab":
            two.propose(two.runs["other"].attachments[node], Leave(node, "", Cause.FINISHED))
        two.retention.forget("other")
        journal.failure = None
        await asyncio.sleep(3 * LATER)
        assert not [key for key in journal.rows if b"/other/" in key]


async def test_a_run_of_which_nothing_is_recorded_has_no_history_and_one_that_is_forgotten_neither() -> None:
    journal = MemoryJournal()
    async with life(journal) as one:
        join(one, "a", run="gathers")
        one.steer("closed", Close("an operator", "enough"))
        join(one, "a", "b", run="met")
        await asyncio.sleep(2 * LATER)
        assert {key.rpartition(b"/")[0] for key in journal.rows if b"past/" in key} == {b"past/met"}
        for node in "ab":
            one.propose(one.runs["met"].attachments[node], Leave(node, "", Cause.FINISHED))
        await asyncio.sleep(one.limits.run_retention + 60)
        assert [key for key in journal.rows if key.startswith((b"past/", b"run/met"))] == []


class LateJournal(MemoryJournal):
    """Takes a second for each commit."""

    def commit(self, batch: Batch, done: Done) -> None:
        asyncio.get_running_loop().call_later(1.0, super().commit, batch, done)


async def test_a_run_that_is_made_anew_while_its_former_history_is_recorded_begins_without_it() -> None:
    journal = LateJournal()
    async with life(journal) as one:
        join(one, "a", "b")
        await asyncio.sleep(1.5)  # the round is recorded, and there is something to tell of it
        for node in "ab":
            one.propose(one.runs["job"].attachments[node], Leave(node, "", Cause.FINISHED))
        while not one.records or not one.records.history._sent[0]:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.1)
        one.retention.forget("job")
        join(one, "x", "y")
        await asyncio.sleep(20)
        known = texts(one)
        assert not any("a" in text.split() for text in known)
    async with life(journal) as two:
        assert texts(two) == known


async def test_the_longest_history_fits_into_every_journal() -> None:
    journal, filling = MemoryJournal(), "\U00020000" * (MAX_NAME - 3)
    nodes = [f"{number:03}{filling}" for number in range(256)]
    async with life(journal) as one:
        for node in nodes:
            attachment = one.attach("job", node, node.encode(), lambda _: None)
            one.propose(attachment, Join(NodeDesc(node), RunSettings(256, 256)))
        await asyncio.sleep(0.01)
        for node in nodes[1:]:
            one.propose(one.runs["job"].attachments[node], Leave(node, filling, Cause.FAILED))
        await asyncio.sleep(3 * LATER)
        latest = texts(one)[-100:]
    assert MAX_VALUE // 4 < max(map(len, journal.rows.values())) <= MAX_VALUE
    async with life(journal) as two:
        assert texts(two)[-100:] == latest


async def test_only_what_is_new_is_written_and_the_rows_stay_few() -> None:
    journal = MemoryJournal()
    async with life(journal) as one:
        join(one, "a", "b")
        for round_ in range(100):
            await asyncio.sleep(2 * LATER)
            before = {key: row for key, row in journal.rows.items() if b"past/" in key}
            one.propose(one.runs["job"].attachments["b"], Leave("b", "", Cause.FAILED))
            join(one, "b", "a", after=(1, round_))
            await asyncio.sleep(2 * LATER)
            after = {key: row for key, row in journal.rows.items() if b"past/" in key}
            assert len(after) <= ROWS + 1
            new = sum(len(row) for key, row in after.items() if before.get(key) != row)
            assert new < 1000 or len(after) < len(before)
        history, happened = list(one.runs["job"].history), one.runs["job"].happened
    async with life(journal) as two:
        restored = two.runs["job"]
        assert [event for _, event in restored.history] == [event for _, event in history]
        assert restored.happened == happened
        join(two, "c")
        await asyncio.sleep(2 * LATER)
        latest = texts(two)
    async with life(journal) as three:
        assert texts(three) == latest


@pytest.mark.parametrize("key", [b"past/job/0000000000000001", b"past/job/x", b"past/job", b"past/\xff/1"])
async def test_a_history_that_cannot_be_read_is_left_out_and_the_run_goes_on(key: bytes) -> None:
    journal = MemoryJournal()
    async with life(journal) as one:
        join(one, "a", "b")
        await asyncio.sleep(2 * LATER)
        known = texts(one)
    spoilt = key in journal.rows
    journal.rows[key] = b"\xc1"
    async with life(journal) as two:
        assert two.status("job").world_size == 2
        assert texts(two) == ([] if spoilt else known)


async def test_the_rounds_of_earlier_servers_are_listed_and_those_that_are_over_have_ended() -> None:
    journal = MemoryJournal()
    async with life(journal) as one:
        log = RoundLog(one)
        join(one, "a")
        await asyncio.sleep(3)
        join(one, "b")
        await asyncio.sleep(10)
        one.propose(one.runs["job"].attachments["b"], Leave("b", "out of memory", Cause.FAILED))
        join(one, "a", after=(1, 0))
        await asyncio.sleep(4)
        join(one, "b")
        await asyncio.sleep(2)
        before = log.of("job")
    async with life(journal) as two:  # it serves no HTTP, and hands on what it does not need
        join(two, "a", "b", after=(1, 1))
        await asyncio.sleep(LATER / 2)
    async with life(journal) as three:
        first, second = RoundLog(three).of("job")
    assert (first.round, first.world_size, first.late, first.why) == (
        before[0].round, 2, before[0].late, "b failed: out of memory"
    )  # fmt: skip
    assert (before[1].ended, second.round) == (None, 1)
    assert second.ended == 0.0  # as another round is complete

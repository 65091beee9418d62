"""Records the runs of a coordinator, and has it start from what is recorded.

The rows of a run, see `law.image`, are kept under these keys::

    run/ID/head                     its head
    run/ID/ROSTER/roster/PAGE       the members of the complete round, some in each, unless the head has them
    run/ID/ROSTER/proofs/           what their secrets are known by, likewise
    run/ID/ROSTER/departed/NODE     one row for each member that has departed since
    run/ID/ROSTER/drain/NODE        one row for each that drains

ROSTER is a name that is never used again, and the head says which one counts. So a head is changed with all
that belongs to it even by a journal that makes a large batch in several steps, in order.

A round, and what an operator decides, are recorded before the law is told, so before anybody is. A departure
or a drain is told at once, as a death has to be told with a full disk, too, and recorded in the same turn; so
is what the law decides by itself, and that a node begins a run anew that is over.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache, partial
from operator import itemgetter
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote

import msgspec

from arendezvous.coordinator.budget import is_large
from arendezvous.coordinator.commits import Commits
from arendezvous.coordinator.history import RunHistories
from arendezvous.coordinator.journal import MAX_VALUE, Batch
from arendezvous.coordinator.run import (
    UNPROVEN,
    Answer,
    Decision,
    Outcome,
    Run,
    RunRows,
    SentRows,
    note_member,
)
from arendezvous.errors import RendezvousError, RendezvousStateError
from arendezvous.law import image
from arendezvous.law.events import (
    LawEvent,
    MemberDraining,
    NodeDeparted,
    NodeQuarantined,
    RunClosed,
    RunReleased,
    RunReopened,
)
from arendezvous.law.operations import Decided, Drain, Record
from arendezvous.law.state import NodeDesc, NodeView, Phase, RendezvousState
from arendezvous.wire.foreign import decode_foreign

if TYPE_CHECKING:
    from arendezvous.coordinator.coordinator import Coordinator

logger = logging.getLogger(__name__)

RUNS: Final = b"run/"
GARBAGE: Final = 64  # rows of earlier rosters, about, that are removed together: a few nodes meet often
FEW: Final = 16  # members that a head has: one row less takes sqlite 10 microseconds less, of some 30
ROW: Final = MAX_VALUE // 2  # bytes above which a row of several members is cut in two
ANSWERED: Final = 1.0  # seconds that the answer to a leave, or a drain, waits for its record at most

_BY_ITSELF: Final = (RunClosed, RunReopened, NodeQuarantined)  # what the law may bring about

_encode: Final = msgspec.msgpack.Encoder().encode


class RunRecords:
    """Records the runs of one coordinator; see `commits.Recorder`.

    Attributes:
        commits: Where to.
        history: Records what has happened to the runs.

    Its other fields:
        _life: Counts the servers that have used the journal: part of the names of rosters.
        _runs: The rows of each run.
        _dirty: Runs that have something to record.
        _forgotten: Prefixes of the rows of runs that are forgotten.
        _sent: The runs, and the prefixes, that are in the batch under way.
        _rosters: How many rosters this server has named.
        _deciding: Whether what happens now has been recorded.
    """

    def __init__(self, coordinator: Coordinator, commits: Commits, life: int) -> None:
        self._coordinator = coordinator
        self.commits = commits
        self.history = RunHistories(coordinator, commits, asyncio.get_running_loop())
        self._life = life
        self._runs: dict[str, RunRows] = {}
        self._dirty: dict[str, Run] = {}
        self._forgotten: list[bytes] = []
        self._sent: tuple[list[RunRows], list[bytes]] = ([], [])
        self._rosters = 0
        self._deciding = False

    @property
    def is_first(self) -> bool:
        """Whether no server has used the journal before."""
        return self._life == 1

    # What the coordinator tells

    def look_at(self, run: Run, events: Iterable[LawEvent]) -> None:
        """Has recorded what has become of a run: a round that is ready, and what the law has told."""
        rows = self._runs.get(run.run_id)
        if run.state.ready and (rows is None or rows.sent is None or rows.sent.record is None):
            rows = self._rows(run)
            self._note(run)
        if rows is None:
            return
        if run.state.decisions.vain < rows.vain and not rows.is_stale:  # there is progress
            self._note_head(rows, run)
        for event in events:
            if self._is_unrecorded(event, run.state):
                self._note_head(rows, run)
            if not isinstance(event, NodeDeparted | MemberDraining):
                continue
            if isinstance(event, NodeDeparted):
                run.proofs.pop(event.node, None)
            if rows.keeps(event.node):
                note_member(rows, run.state, event, self._coordinator.clocks())
                self._note(run)

    def _is_unrecorded(self, event: LawEvent, state: RendezvousState) -> bool:
        """Whether an event changes what is decided or counted, and has not been recorded beforehand."""
        if isinstance(event, RunReleased) and not event.by:
            return True
        if isinstance(event, NodeDeparted):  # it may have got a strike
            return event.phase is Phase.MEMBER and state.settings.agreed.strikes > 0
        return isinstance(event, _BY_ITSELF) and not self._deciding

    def put_off(self, touched: dict[str, Run]) -> dict[str, Run]:
        """Takes those runs out of `touched` of which more is to be told in a moment, and returns them.

        A round that is ready is told once it is complete: else each node would be told twice.
        """
        if self.commits.obstacle:
            return {}
        ready = {run_id: run for run_id, run in touched.items() if run.state.ready}
        for run_id in ready:
            del touched[run_id]
        return ready

    def keeps(self, run_id: str) -> bool:
        """Whether a run has rows, or is about to."""
        return run_id in self._runs

    def forget(self, run_id: str) -> None:
        """Removes all rows of a run."""
        self._dirty.pop(run_id, None)
        rows = self._runs.pop(run_id, None)
        if rows is not None:
            self._forgotten.append(_prefix(run_id))
            self.commits.note()
            self._refuse(rows.decisions, "the run has been forgotten meanwhile")

    def steer(self, run_id: str, operation: Decided | Drain, answer: Answer) -> None:
        """Does what `Coordinator.steer` does, and calls `answer` with what came of it, unless this raises.

        What is decided is recorded before it is applied; if it cannot be, the answer is an error, and nothing
        has changed. A drain is applied at once, and its answer waits for the record.
        """
        if isinstance(operation, Drain):
            view = self._coordinator.steer(run_id, operation)
            self.commits.settle(
                lambda recorded: answer(view if recorded else self._unrecorded(operation)), ANSWERED
            )
            return
        run = self._coordinator.found(run_id, operation)
        rows = self._rows(run)
        before = self._head(run.state, rows)
        under_way = rows.sent.decisions if rows.sent is not None else []
        for decision in (*under_way, *rows.decisions):
            before = image.decided(before, decision.operation, self._coordinator.clocks())
        after = image.decided(before, operation, self._coordinator.clocks())
        if after == before and not (under_way or rows.decisions):
            answer(self._coordinator.steer(run_id, operation))
            return
        rows.decisions.append(Decision(operation, answer))
        self._note(run)

    # What the commits ask for

    def collect(self, batch: Batch) -> None:
        """See `Recorder`."""
        dirty, self._dirty = self._dirty, {}
        forgotten, self._forgotten = self._forgotten, []
        for prefix in forgotten:
            batch.delete_all(prefix)
        sent = []
        for run_id, run in dirty.items():
            rows = self._runs[run_id]
            self._collect(batch, run, rows)
            sent.append(rows)
        self._sent = (sent, forgotten)

    def recorded(self) -> None:
        """See `Recorder`; applies what had to be recorded first."""
        (sent, _), self._sent = self._sent, ([], [])
        finished = [(rows, rows.sent) for rows in sent if rows.sent is not None]
        for rows, done in finished:
            rows.sent = None
            if done.head is not None:
                self._take_head(rows, done)
        for _, done in finished:
            if self._coordinator.runs.get(done.run.run_id) is done.run:
                self._apply(done)
            else:
                self._refuse(done.decisions, "the run has been forgotten meanwhile")
        self._coordinator.telling.flush()

    def failed(self, why: str) -> None:
        """See `Recorder`; whoever waits for a decision is told."""
        (sent, forgotten), self._sent = self._sent, ([], [])
        self._forgotten = forgotten + self._forgotten
        for rows in sent:
            done, rows.sent = rows.sent, None
            if done is None:
                continue
            self._refuse(done.decisions, why)
            if self._runs.get(done.run.run_id) is not rows:  # it has been forgotten meanwhile
                continue
            rows.departed = done.departed | rows.departed
            rows.drains = done.drains | rows.drains
            rows.garbage += done.garbage
            rows.is_stale |= done.head is not None
            if done.record is not None and done.head is not None:
                rows.garbage.append(_prefix(done.run.run_id, done.head.roster))
            self._dirty[done.run.run_id] = done.run
        self._coordinator.telling.flush()

    # From the journal

    def load(self, found: Mapping[bytes, bytes]) -> None:
        """Has the coordinator go on with the runs of which there are rows.

        Raises `RendezvousStateError` if they are damaged, or of a later version.
        """
        runs: dict[bytes, dict[bytes, bytes]] = {}
        for key, value in found.items():
            quoted, _, rest = key[len(RUNS) :].partition(b"/")
            runs.setdefault(quoted, {})[rest] = value
        recorded: list[tuple[float, Run]] = []
        for each in runs.items():
            name = unquote(each[0])  # of what is no UTF-8 something that can be shown
            recorded += decode_foreign(self._load, each, partial(_damaged, name))
        for idle, run in sorted(recorded, key=itemgetter(0), reverse=True):
            self._coordinator.adopt(run, idle)
            if self._runs[run.run_id].garbage:
                self._note(run)

    def _load(self, row: tuple[bytes, dict[bytes, bytes]]) -> list[tuple[float, Run]]:
        """Makes a run of its quoted name and its rows, if a batch was not cut off before its head.

        It comes after the seconds for which nobody has been in it, by the wall clock: good enough to forget
        it by, and for no more.
        """
        run_id, found = unquote(row[0].decode()), row[1]
        rows = self._runs[run_id] = RunRows()
        data = found.pop(b"head", None)
        if data is None:  # and nobody has been told
            self.forget(run_id)
            return []
        [version, *_] = msgspec.msgpack.decode(data, type=list[msgspec.Raw])
        image.check_version(run_id, msgspec.msgpack.decode(version, type=int))
        head = msgspec.msgpack.decode(data, type=image.RunHead)
        departed: dict[str, image.DepartureRow] = {}
        drains: dict[str, image.DrainRow] = {}
        members, proofs = list[NodeDesc](), dict[int, bytes]()  # by rank
        if head.members is not None:
            members, proofs = [*head.members.members], head.members.known(head.world_size)
        for key, value in sorted(found.items()):
            roster, kind, name = (part.decode() for part in key.split(b"/"))
            if roster != head.roster:
                rows.garbage.append(_prefix(run_id, roster))
                continue
            rows.has_rows = True
            if kind == "roster":
                page = msgspec.msgpack.decode(value, type=image.Roster)
                some = page.known(len(page.members)) if page.proofs else {}  # else they have a row
                proofs |= {len(members) + place: proof for place, proof in some.items()}
                members += page.members
            elif kind == "proofs":
                proofs |= image.Roster((), value).known(head.world_size)
            elif kind == "departed":
                departed[unquote(name)] = msgspec.msgpack.decode(value, type=image.DepartureRow)
            else:
                drains[unquote(name)] = msgspec.msgpack.decode(value, type=image.DrainRow)
        rows.garbage = list(dict.fromkeys(rows.garbage))
        if len(members) != head.world_size:
            raise ValueError(f"{len(members)} members of {head.world_size}")
        rows.vain = 0 if head.decisions is None else head.decisions.vain
        if head.complete:
            rows.generation, rows.roster = head.generation, head.roster
            rows.names, rows.members = frozenset(desc.name for desc in members), head.members
        state = image.restore(head, members, departed, drains, self._coordinator.clocks())
        proven = ((desc.name, proofs.get(rank)) for rank, desc in enumerate(members))
        known = {node: proof for node, proof in proven if proof and node in state.nodes}
        walls = [gone.wall for gone in departed.values()]
        walls += [] if head.closed is None else [head.closed.at]
        idle = 0.0 if state.nodes or not walls else max(0.0, time.time() - max(walls))
        return [(idle, Run(run_id, state, secrets=dict.fromkeys(known, UNPROVEN), proofs=known))]

    # The parts

    def _rows(self, run: Run) -> RunRows:
        return self._runs.setdefault(run.run_id, RunRows())

    def _note(self, run: Run) -> None:
        self._dirty[run.run_id] = run
        self.commits.note()

    def _note_head(self, rows: RunRows, run: Run) -> None:
        rows.is_stale = True
        self._note(run)

    def _head(self, state: RendezvousState, rows: RunRows) -> image.RunHead:
        """The head as it is to be recorded now, if nothing is decided."""
        head = image.head_of(state, self._coordinator.clocks())
        if not head.complete:
            return head
        if head.generation != rows.generation:  # a member has told of the round, and of no others
            return image.without_round(head)
        return msgspec.structs.replace(head, roster=rows.roster, members=rows.members)

    def _collect(self, batch: Batch, run: Run, rows: RunRows) -> None:
        """Adds what is to be recorded of one run."""
        head, record = self._next_head(run, rows)
        decisions, rows.decisions = rows.decisions, []
        names: frozenset[str] = frozenset()
        garbage: list[bytes] = []
        if record is None or len(rows.garbage) * len(rows.names) >= GARBAGE:
            garbage, rows.garbage = rows.garbage, []
        if record is not None and head is not None:
            names = frozenset(record.order)
            head = self._put_roster(batch, run, head, record)
        if rows.roster and (head is None or head.roster == rows.roster):
            prefix = _prefix(run.run_id, rows.roster)
            rows.has_rows |= bool(rows.departed or rows.drains)
            for node, gone in rows.departed.items():
                batch.put(b"%sdeparted/%s" % (prefix, _quoted(node)), _encode(gone))
            for node, drain in rows.drains.items():
                batch.put(b"%sdrain/%s" % (prefix, _quoted(node)), _encode(drain))
        if head is not None:
            rows.is_stale = False
            batch.put(_prefix(run.run_id) + b"head", _encode(head))
        for old in garbage:
            batch.delete_all(old)
        rows.sent = SentRows(run, rows.departed, rows.drains, garbage, head, decisions, record, names)
        rows.departed, rows.drains = {}, {}

    def _next_head(self, run: Run, rows: RunRows) -> tuple[image.RunHead | None, Record | None]:
        """The head that is to be recorded, and what is to be applied to complete its round, if anything."""
        state = run.state
        if rows.decisions:
            head = self._head(state, rows)
            for decision in rows.decisions:
                head = image.decided(head, decision.operation, self._coordinator.clocks())
            return head, None
        if state.ready:
            self._rosters += 1
            roster = f"{self._life}.{self._rosters}"
            record, head = image.proposal_of(state, self._coordinator.clocks(), roster)
            return head, record
        return (self._head(state, rows) if rows.is_stale else None), None

    def _put_roster(self, batch: Batch, run: Run, head: image.RunHead, record: Record) -> image.RunHead:
        """Adds the members of a round that is to be recorded; returns its head, which may have them."""
        prefix, order, nodes = _prefix(run.run_id, head.roster), record.order, run.state.nodes
        members = tuple([nodes[node].desc for node in order])
        proofs = image.joined_proofs(map(run.proof_of, order))
        if len(order) <= FEW and not any(is_large(desc) for desc in members):
            return msgspec.structs.replace(head, members=image.Roster(members, proofs))
        for page, row in enumerate(_roster_rows(members)):
            batch.put(b"%sroster/%06d" % (prefix, page), row)
        batch.put(prefix + b"proofs/", proofs)
        return head

    def _take_head(self, rows: RunRows, done: SentRows) -> None:
        head = done.head
        assert head is not None  # noqa: S101 - it was sent
        rows.vain = 0 if head.decisions is None else head.decisions.vain
        if head.roster == rows.roster:
            return
        if rows.has_rows:  # not before: a commit that has failed may have been made all the same
            rows.garbage.append(_prefix(done.run.run_id, rows.roster))
        rows.roster, rows.names, rows.members = head.roster, done.names, head.members
        rows.has_rows = bool(done.names) and head.members is None
        rows.generation = head.generation if head.complete else None
        rows.departed = {node: row for node, row in rows.departed.items() if node in rows.names}
        rows.drains = {node: row for node, row in rows.drains.items() if node in rows.names}

    def _apply(self, done: SentRows) -> None:
        coordinator, run = self._coordinator, done.run
        if done.record is not None:
            coordinator.record(run, done.record)
        self._deciding = True
        for decision in done.decisions:
            try:
                decision.answer(coordinator.steer(run.run_id, decision.operation))
            except RendezvousError as error:
                decision.answer(error)
        self._deciding = False
        if run.state.ready:  # somebody has come or gone meanwhile
            self._note(run)

    def _refuse(self, decisions: list[Decision], why: str) -> None:
        for decision in decisions:
            what = type(decision.operation).__name__.lower()
            decision.answer(
                RendezvousStateError(
                    f"the server has not done this ({what}), as it cannot record it: {why}; ask again once"
                    " that is mended"
                )
            )

    def _unrecorded(self, operation: Drain) -> RendezvousStateError:
        why = self.commits.obstacle or f"that has taken {ANSWERED:g} s"
        return RendezvousStateError(
            f"{operation.node} drains, but the server cannot record it, and would forget it if it ended now:"
            f" {why}"
        )


async def steered(coordinator: Coordinator, run_id: str, operation: Decided | Drain) -> NodeView:
    """Does what `Coordinator.steer` does, and returns once it is recorded, if it has to be.

    Raises:
        RendezvousStateError: There is no such run, its state does not allow the operation, or it cannot be
            recorded.

    Cancellation: the operation may be carried out all the same.
    """
    if coordinator.records is None:
        return coordinator.steer(run_id, operation)
    future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    coordinator.records.steer(
        run_id, operation, lambda outcome: None if future.done() else future.set_result(outcome)
    )
    outcome = await future
    if isinstance(outcome, RendezvousError):
        raise outcome
    return outcome


async def settled(coordinator: Coordinator) -> None:
    """Returns once what has happened is recorded, or in a moment if it cannot be. Cancellation: safe."""
    if coordinator.records is not None:
        event = asyncio.Event()
        coordinator.records.commits.settle(lambda _: event.set(), ANSWERED)
        await event.wait()


def _roster_rows(members: tuple[NodeDesc, ...]) -> Iterator[bytes]:
    """Encodes members, as many in each row as take no more than `ROW` bytes, about."""
    row = _encode(image.Roster(members))
    if len(row) <= ROW or len(members) == 1:
        yield row
    else:
        middle = len(members) // 2
        yield from _roster_rows(members[:middle])
        yield from _roster_rows(members[middle:])


def _prefix(run_id: str, roster: str = "") -> bytes:
    prefix = b"%s%s/" % (RUNS, _quoted(run_id))
    return b"%s%s/" % (prefix, roster.encode()) if roster else prefix


@lru_cache(1024)  # a round of two needs that of its run four times
def _quoted(name: str) -> bytes:
    return quote(name, safe="").encode()


def _damaged(run_id: str, why: str) -> RendezvousStateError:
    return RendezvousStateError(
        f"the record of run {run_id!r} is damaged ({why}); put a copy of the journal in its place, or move it"
        " away to begin anew"
    )

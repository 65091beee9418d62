"""Records what has happened to runs, so that a server that follows can tell of it.

It is for people, so nobody waits for it: what happened is recorded a second later, of runs that are recorded,
and what a server did not come to record before it was killed is not in it. Each time a run gets a row with
what is new, and after some times one with all that is known in place of these: etcd keeps what was
overwritten, too, until it is compacted.
"""

from __future__ import annotations

import logging
import math
import time
from asyncio import AbstractEventLoop, TimerHandle
from collections.abc import Iterable, Mapping
from itertools import islice
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol
from urllib.parse import quote, unquote

import msgspec

from arendezvous.coordinator.commits import Commits
from arendezvous.coordinator.journal import Batch
from arendezvous.coordinator.run import Run
from arendezvous.law.events import LawEvent

if TYPE_CHECKING:
    from arendezvous.coordinator.coordinator import Coordinator

logger = logging.getLogger(__name__)

PAST: Final = b"past/"
LATER: Final = 1.0  # seconds after something has happened
MOST: Final = 256 * 1024  # bytes of rows in one batch, about; others come a second later
ROWS: Final = 16  # of one run, before one takes the place of all
EVENTS: Final = 128  # in one row: with the longest names and reasons half of what every journal takes


class PastRound(msgspec.Struct, frozen=True, array_like=True):
    """A round that was complete; all times are by the coordinator's clock."""

    incarnation: int
    round: int
    world_size: int  # how many members it had
    began: float  # when its first node came
    completed: float | None  # when it was complete; None: it gathers, after all
    late: tuple[tuple[str, float], ...]  # who came last, and how many seconds after the first
    ended: float | None = None  # when it was over; None: it is not
    why: str = ""  # what ended it, or will; empty: nothing has

    @property
    def generation(self) -> tuple[int, int]:
        """Incarnation and round."""
        return (self.incarnation, self.round)

    def shifted(self, seconds: float) -> PastRound:
        """The same by a clock that is ahead by so many seconds."""
        times = (self.completed, self.ended)
        completed, ended = (None if time is None else time + seconds for time in times)
        return msgspec.structs.replace(self, began=self.began + seconds, completed=completed, ended=ended)


class PastRounds(Protocol):
    """Knows the latest rounds of runs."""

    def rounds_of(self, run_id: str) -> Iterable[PastRound]:
        """Lists those of a run that were complete, the oldest first."""

    def restore(self, run_id: str, rounds: Iterable[PastRound]) -> None:
        """Takes over what another server knew of a run."""


class Past(msgspec.Struct, frozen=True, array_like=True):
    """Holds a part of what has happened to a run; all times are by the clock of the one who wrote it."""

    wall: float  # when it was written, by the wall clock
    clock: float  # the same by the coordinator's
    events: tuple[tuple[float, LawEvent], ...]  # each with its time; the key has the number of the first
    rounds: tuple[PastRound, ...]  # rounds that are new, or of which something is


class Written(NamedTuple):
    """Notes what is recorded of a run."""

    number: int = 0  # the number of the latest event
    rows: tuple[int, ...] = ()  # the numbers in the keys of its rows
    rounds: Mapping[tuple[int, int], tuple[float | None, str]] = MappingProxyType({})
    """Incarnation and number of its rounds, to when each ended, and why."""


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(Past).decode


class RunHistories:
    """Records the histories of the runs of one coordinator; see `commits.Recorder`.

    Its fields:
        _rounds: Who knows the latest rounds; None: nobody does.
        _kept: The rounds of runs that were loaded, for whoever wants to know them.
        _changed: Runs to which something has happened that is not recorded; the longest ago first.
        _written: What is recorded of each run.
        _forgotten: Runs with rows that are forgotten.
        _is_due: Whether what has happened is to be in the next batch.
        _most: Bytes of rows in one batch, about.
        _timer: Makes it due; None: nothing has happened.
        _sent: What will be recorded once the batch under way is, and which runs it forgets.
    """

    def __init__(self, coordinator: Coordinator, commits: Commits, loop: AbstractEventLoop) -> None:
        self._coordinator = coordinator
        self._commits = commits
        self._loop = loop
        self._rounds: PastRounds | None = None
        self._kept: dict[str, dict[tuple[int, int], PastRound]] = {}
        self._changed: dict[str, None] = {}
        self._written: dict[str, Written] = {}
        self._forgotten: list[str] = []
        self._is_due = False
        self._most: float = MOST
        self._timer: TimerHandle | None = None
        self._sent: tuple[list[tuple[Run, Written]], list[str]] = ([], [])
        coordinator.observe(self._on_event)
        coordinator.retention.observe(self._forget)

    def load(self, rows: Mapping[bytes, bytes]) -> None:
        """Has the runs that are there go on with their histories; what cannot be read is left out."""
        now, wall = self._coordinator.clock(), time.time()
        for key, row in sorted(rows.items()):
            quoted, _, number = key[len(PAST) :].decode(errors="replace").partition("/")
            run_id, run = unquote(quoted), self._coordinator.runs.get(unquote(quoted))
            known = self._written.setdefault(run_id, Written())
            if run is None:
                continue
            try:
                first, past = int(number), _decode(row)
            except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                logger.warning(
                    "run %s: a part of its history is left out, it cannot be read: %s", run_id, error
                )
                continue
            seconds = now - max(0.0, wall - past.wall) - past.clock
            told = max(0, run.happened + 1 - first)  # by a commit that was made, and seemed not to be
            events = ((at + seconds, event) for at, event in past.events[told:])
            self._coordinator.remember(run, events, first + len(past.events) - 1)
            rounds = {one.generation: one.shifted(seconds) for one in past.rounds}
            self._kept[run_id] = {**self._kept.get(run_id, {}), **rounds}
            ends = {key: (one.ended, one.why) for key, one in self._kept[run_id].items()}
            self._written[run_id] = Written(run.happened, (*known.rows, first), ends)
        for run_id in self._written.keys() - self._coordinator.runs.keys():
            self._forget(run_id)

    def follow(self, rounds: PastRounds) -> None:
        """Has `rounds` go on with what was loaded, and records what they know from now on."""
        self._rounds = rounds
        for run_id, kept in self._kept.items():
            rounds.restore(run_id, kept.values())
        self._kept.clear()

    def hurry(self) -> None:
        """Has all that has happened recorded now: the server ends."""
        self._most = math.inf
        if self._changed:
            self._on_due()

    def close(self) -> None:
        """Records nothing more."""
        self._changed.clear()
        if self._timer is not None:
            self._timer.cancel()

    def collect(self, batch: Batch) -> None:
        """See `Recorder`."""
        forgotten, self._forgotten = self._forgotten, []
        for run_id in forgotten:
            batch.delete_all(_prefix(run_id))
        sent: list[tuple[Run, Written]] = []
        before = batch.size
        while self._is_due and self._changed and batch.size < before + self._most:
            run_id = next(iter(self._changed))
            del self._changed[run_id]
            run, records = self._coordinator.runs.get(run_id), self._coordinator.records
            if run is not None and records is not None and records.keeps(run_id):
                sent.append((run, self._add(batch, run)))
        self._is_due = False
        self._sent = (sent, forgotten)

    def recorded(self) -> None:
        """See `Recorder`."""
        (sent, _), self._sent = self._sent, ([], [])
        self._written.update(self._still_there(sent))
        self._arm()

    def failed(self, why: str) -> None:
        """See `Recorder`."""
        (sent, forgotten), self._sent = self._sent, ([], [])
        self._forgotten = forgotten + self._forgotten
        there = self._still_there(sent)
        self._changed = {**dict.fromkeys(there), **self._changed}
        self._written = dict.fromkeys(there, Written()) | self._written  # it may be recorded
        self._is_due |= bool(there)  # the next commit has to try it: one of nothing would succeed
        self._arm()

    def _still_there(self, sent: list[tuple[Run, Written]]) -> dict[str, Written]:
        """Leaves out runs that were forgotten meanwhile, and have perhaps been made anew."""
        runs = self._coordinator.runs
        there = {run.run_id: written for run, written in sent if runs.get(run.run_id) is run}
        self._forgotten += [run.run_id for run, _ in sent if run.run_id not in there]
        return there

    def _on_event(self, run_id: str, _: float, __: LawEvent) -> None:
        self._changed[run_id] = None
        if self._timer is None:
            self._arm()

    def _forget(self, run_id: str) -> None:
        self._changed.pop(run_id, None)
        self._kept.pop(run_id, None)
        if self._written.pop(run_id, None) is not None:
            self._forgotten.append(run_id)
            self._commits.note()

    def _arm(self) -> None:
        if self._changed and self._timer is None:
            self._timer = self._loop.call_later(LATER, self._on_due)

    def _on_due(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._is_due = True
        self._commits.note()

    def _add(self, batch: Batch, run: Run) -> Written:
        """Adds what is new in a run; returns what is recorded of it then."""
        known, prefix = self._written.get(run.run_id, Written()), _prefix(run.run_id)
        if len(known.rows) >= ROWS:
            batch.delete_all(prefix)
            known = Written()
        new = min(run.happened - known.number, len(run.history))
        events = tuple(islice(run.history, len(run.history) - new, None))
        if self._rounds is None:
            rounds = tuple(self._kept.get(run.run_id, {}).values())
        else:
            rounds = tuple(self._rounds.rounds_of(run.run_id))
        ends = {one.generation: (one.ended, one.why) for one in rounds}
        rounds = tuple(
            one for one, key in zip(rounds, ends, strict=True) if known.rounds.get(key) != ends[key]
        )
        wall, clock, rows = time.time(), self._coordinator.clock(), list(known.rows)
        for start in range(0, new, EVENTS):
            rows.append(run.happened - new + start + 1)
            row = Past(wall, clock, events[start : start + EVENTS], () if start else rounds)
            batch.put(b"%s%016d" % (prefix, rows[-1]), _encode(row))
        return Written(run.happened, tuple(rows), ends) if new else known


def _prefix(run_id: str) -> bytes:
    return b"%s%s/" % (PAST, quote(run_id, safe="").encode())

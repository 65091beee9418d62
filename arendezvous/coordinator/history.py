"""Records what has happened to runs, so that a server that follows can tell of it.

It is for people, so nobody waits for it: what happened is recorded a second later, in one row for each run
that is recorded, and what a server did not come to record before it was killed is not in it.
"""

from __future__ import annotations

import logging
import time
from asyncio import AbstractEventLoop, TimerHandle
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import quote, unquote

import msgspec

from arendezvous.coordinator.commits import Commits
from arendezvous.coordinator.journal import MAX_VALUE, Batch
from arendezvous.coordinator.run import Run
from arendezvous.law.events import LawEvent

if TYPE_CHECKING:
    from arendezvous.coordinator.coordinator import Coordinator

logger = logging.getLogger(__name__)

PAST: Final = b"past/"
LATER: Final = 1.0  # seconds after something has happened
MOST: Final = 256 * 1024  # bytes of rows in one batch, about; others come a second later


class PastRound(msgspec.Struct, array_like=True):
    """A round that was complete; all times are by the coordinator's clock.

    Attributes:
        incarnation: Its incarnation.
        number: Its number.
        world_size: How many members it had.
        began: When its first node came.
        completed: When it was complete.
        late: Who came last, and how many seconds after the first.
        ended: When it was over; None: it is not.
        why: What ended it, or will; empty: nothing has.
    """

    incarnation: int
    number: int
    world_size: int
    began: float
    completed: float
    late: tuple[tuple[str, float], ...]
    ended: float | None = None
    why: str = ""

    def shifted(self, seconds: float) -> PastRound:
        """The same by a clock that is ahead by so many seconds."""
        ended = None if self.ended is None else self.ended + seconds
        return msgspec.structs.replace(
            self, began=self.began + seconds, completed=self.completed + seconds, ended=ended
        )


class PastRounds(Protocol):
    """Knows the latest rounds of runs."""

    def rounds_of(self, run_id: str) -> Iterable[PastRound]:
        """Lists those of a run that were complete, the oldest first."""

    def restore(self, run_id: str, rounds: Iterable[PastRound]) -> None:
        """Takes over what another server knew of a run."""


class Past(msgspec.Struct, frozen=True, array_like=True):
    """Holds what has happened to a run; all times are by the clock of the coordinator that wrote it.

    Attributes:
        wall: When it was written, by the wall clock.
        clock: The same by the coordinator's.
        happened: The number of the latest event.
        events: The latest events, each with its time.
        rounds: The latest rounds.
    """

    wall: float
    clock: float
    happened: int
    events: tuple[tuple[float, LawEvent], ...]
    rounds: tuple[PastRound, ...]


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(Past).decode


class RunHistories:
    """Records the histories of the runs of one coordinator; see `commits.Recorder`.

    Args:
        coordinator: Whose runs they are.
        commits: Where to.
        loop: Whose timers it uses.

    Its fields:
        _rounds: Who knows the latest rounds; None: nobody does.
        _kept: The rounds of runs that were loaded, for whoever wants to know them.
        _changed: Runs to which something has happened that is not recorded; the longest ago first.
        _recorded: Runs that may have a row.
        _forgotten: Those of them that are forgotten.
        _is_due: Whether what has happened is to be in the next batch.
        _timer: Makes it due; None: nothing has happened.
        _sent: What is in the batch under way, and which runs it forgets.
    """

    def __init__(self, coordinator: Coordinator, commits: Commits, loop: AbstractEventLoop) -> None:
        self._coordinator = coordinator
        self._commits = commits
        self._loop = loop
        self._rounds: PastRounds | None = None
        self._kept: dict[str, tuple[PastRound, ...]] = {}
        self._changed: dict[str, None] = {}
        self._recorded: set[str] = set()
        self._forgotten: list[str] = []
        self._is_due = False
        self._timer: TimerHandle | None = None
        self._sent: tuple[list[str], list[str]] = ([], [])
        coordinator.observe(self._on_event)
        coordinator.retention.observe(self._forget)

    def load(self, rows: Mapping[bytes, bytes]) -> None:
        """Has the runs that are there go on with their histories; one that cannot be read is left out."""
        now, wall = self._coordinator.clock(), time.time()
        for key, row in rows.items():
            run_id = unquote(key[len(PAST) :])
            self._recorded.add(run_id)
            run = self._coordinator.runs.get(run_id)
            try:
                past = _decode(row)
            except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                logger.warning("run %s: its history cannot be read, and is left out: %s", run_id, error)
                continue
            if run is None:
                self._forget(run_id)
                continue
            seconds = now - max(0.0, wall - past.wall) - past.clock
            run.history.extend((at + seconds, event) for at, event in past.events)
            run.happened = past.happened
            self._kept[run_id] = tuple(one.shifted(seconds) for one in past.rounds)
            self._coordinator.retention.look_at(run, now)

    def follow(self, rounds: PastRounds) -> None:
        """Has `rounds` go on with what was loaded, and records what they know from now on."""
        self._rounds = rounds
        for run_id, kept in self._kept.items():
            rounds.restore(run_id, kept)
        self._kept.clear()

    def hurry(self) -> None:
        """Has all that has happened recorded now: the server ends."""
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
            batch.delete(_key(run_id))
        sent: list[str] = []
        before = batch.size
        while self._is_due and self._changed and batch.size < before + MOST:
            run_id = next(iter(self._changed))
            del self._changed[run_id]
            run, records = self._coordinator.runs.get(run_id), self._coordinator.records
            if run is not None and records is not None and records.keeps(run_id):
                batch.put(_key(run_id), self._row(run))
                self._recorded.add(run_id)
                sent.append(run_id)
        self._is_due = False
        self._sent = (sent, forgotten)

    def recorded(self) -> None:
        """See `Recorder`."""
        self._sent = ([], [])
        self._arm()

    def failed(self, why: str) -> None:
        """See `Recorder`."""
        sent, forgotten = self._sent
        self._changed = {**dict.fromkeys(sent), **self._changed}
        self._forgotten = forgotten + self._forgotten
        self.recorded()

    def _on_event(self, run_id: str, _: float, __: LawEvent) -> None:
        self._changed[run_id] = None
        if self._timer is None:
            self._arm()

    def _forget(self, run_id: str) -> None:
        self._changed.pop(run_id, None)
        self._kept.pop(run_id, None)
        if run_id in self._recorded:
            self._recorded.discard(run_id)
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

    def _row(self, run: Run) -> bytes:
        rounds = self._kept.get(run.run_id, ())
        if self._rounds is not None:
            rounds = tuple(self._rounds.rounds_of(run.run_id))
        events = tuple(run.history)
        while True:
            row = _encode(Past(time.time(), self._coordinator.clock(), run.happened, events, rounds))
            if len(row) <= MAX_VALUE:
                return row
            events, rounds = events[len(events) // 2 + 1 :], rounds[len(rounds) // 2 + 1 :]


def _key(run_id: str) -> bytes:
    return PAST + quote(run_id, safe="").encode()

"""Tells sessions that watch runs what happens to them: in batches, each encoded once for all."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, Protocol

from arendezvous.coordinator.coordinator import Coordinator
from arendezvous.keyspace.grants import Grant
from arendezvous.law.events import LawEvent, NodeUpdated
from arendezvous.server.tcp.answers import run_summary
from arendezvous.server.tcp.sharing import SHARE, UNITS, Turns
from arendezvous.wire.native.messages import VERSION, Happened, RunsChanged, encode
from arendezvous.wire.native.versions import events_for_1

BACKLOG: Final = 4096  # events of a run kept for slow readers; they are told how many they missed beyond
INTERVAL: Final = 0.1  # seconds between two batches of runs that have changed, however much happens
BATCH: Final = 256  # runs in one of them; it is encoded once for all who may look at the same runs


class Watcher(Protocol):
    """Somebody who watches a run, by a version of the protocol."""

    version: int

    def tell(self, frame: bytes) -> None:
        """Is told what has happened: an encoded `Happened`."""


@dataclass(slots=True)
class Watched:
    """One run that is watched, and what has happened to it that somebody has not been told.

    All who watch take turns: with each event all of them are behind, and are told one after the other.

    Fields:
        ready: Those who are told, who is next first; each with the number of the first event that it is to be
            told.
        paused: Those who do not read; likewise.
        events: The latest events, as far as somebody has not been told them.
        end: The number of the next event.
        at: When the latest happened.
        behind: How many of `ready` are not told everything, from the first on.
        frame: The last batch that was encoded: its first event, the next one, the version, the bytes.
    """

    ready: OrderedDict[Watcher, int] = field(default_factory=OrderedDict)
    paused: dict[Watcher, int] = field(default_factory=dict)
    events: deque[LawEvent] = field(default_factory=lambda: deque(maxlen=BACKLOG))
    end: int = 0
    at: float = 0.0
    behind: int = 0
    frame: tuple[int, int, int, bytes] = (0, 0, VERSION, b"")

    def add(self, now: float, event: LawEvent) -> None:
        """Takes in an event."""
        self.events.append(event)
        self.end += 1
        self.at = now
        self.behind = len(self.ready)

    def tell_next(self) -> None:
        """Tells the next of those who are behind."""
        watcher, first = self.ready.popitem(last=False)
        self.behind -= 1
        self.ready[watcher] = self.end
        if first < self.end:
            watcher.tell(self._batch(first, watcher.version))
        if not self.behind and not self.paused:
            self.events.clear()

    def _batch(self, first: int, version: int) -> bytes:
        if self.frame[:3] != (first, self.end, version):
            missed = max(0, self.end - len(self.events) - first)
            events = tuple(islice(self.events, len(self.events) - (self.end - first - missed), None))
            if version < VERSION:
                events = events_for_1(events)
            self.frame = (first, self.end, version, encode(Happened(0, self.at, events, missed)))
        return self.frame[3]


class Watching:
    """All runs that are watched at one server.

    Fields:
        _runs: The runs, by their ids.
        _queued: Those of them that wait for a turn to tell who is behind.
        _stop: Ends the observation of the coordinator.
    """

    def __init__(self, coordinator: Coordinator, turns: Turns) -> None:
        self._coordinator = coordinator
        self._turns = turns
        self._runs: dict[str, Watched] = {}
        self._queued: OrderedDict[str, None] = OrderedDict()
        self._stop = ExitStack()

    def watch(self, run_id: str, watcher: Watcher) -> None:
        """Has `watcher` told what happens to a run from now on."""
        if not self._runs:
            self._stop.callback(self._coordinator.observe(self._observe))
            self._stop.callback(self._coordinator.observe(self._observe, NodeUpdated))
        watched = self._runs.setdefault(run_id, Watched())
        watched.ready[watcher] = watched.end

    def pause(self, run_id: str, watcher: Watcher) -> None:
        """Keeps back what happens, up to a limit; what is over it is counted and lost."""
        watched = self._runs[run_id]
        if watcher in watched.ready:
            watched.paused[watcher] = self._take_out(watched, watcher)

    def resume(self, run_id: str, watcher: Watcher) -> None:
        """Hands on what was kept back."""
        watched = self._runs[run_id]
        if watcher in watched.paused:
            first = watched.ready[watcher] = watched.paused.pop(watcher)
            if first < watched.end:
                watched.ready.move_to_end(watcher, last=False)
                watched.behind += 1
                self._queue(run_id)

    def leave(self, run_id: str, watcher: Watcher) -> None:
        """Ends the watch."""
        watched = self._runs[run_id]
        if watched.paused.pop(watcher, None) is None:
            self._take_out(watched, watcher)
        if not watched.ready and not watched.paused:
            del self._runs[run_id]
        if not self._runs:
            self._stop.close()

    def work(self) -> int:
        """Tells some of those who are behind."""
        units = 0
        while self._queued and units < SHARE:
            run_id, _ = self._queued.popitem(last=False)
            watched = self._runs.get(run_id)
            if watched is None or not watched.behind:
                continue
            watched.tell_next()
            units += UNITS
            if watched.behind:
                self._queued[run_id] = None
        if self._queued:
            self._turns.queue(self.work)
        return units

    @staticmethod
    def _take_out(watched: Watched, watcher: Watcher) -> int:
        """Takes one out of those who are told; returns the number of the first event that it was not told."""
        first = watched.ready.pop(watcher)
        if first < watched.end:
            watched.behind -= 1
        return first

    def _queue(self, run_id: str) -> None:
        if not self._queued:
            self._turns.queue(self.work)
        self._queued[run_id] = None

    def _observe(self, run_id: str, now: float, event: LawEvent) -> None:
        watched = self._runs.get(run_id)
        if watched is not None:
            watched.add(now, event)
            self._queue(run_id)


class RunsWatcher(Protocol):
    """Somebody who watches all runs that the grant is good for."""

    grant: Grant

    def tell(self, frame: bytes) -> None:
        """Is told which runs have changed: an encoded `RunsChanged`."""

    def list_again(self) -> None:
        """Is to list all runs anew, as it has missed some."""


class RunsWatching:
    """All who watch the runs of one server.

    Fields:
        _watchers: They, each with the runs that have changed while its list is made; None: it has one.
        _paused: Those who do not read, each with whether it has missed something.
        _changed: Runs that have changed since the last batch.
        _due: Who is still to be told of which runs.
        _frame: What was encoded last: the runs of the batch, the one that may be seen or None, the message.
        _timer: Begins the next batch; None: there is nothing to tell, or the last is still being told.
        _stop: Ends the observation of the coordinator.
    """

    def __init__(self, coordinator: Coordinator, turns: Turns) -> None:
        self._coordinator = coordinator
        self._turns = turns
        self._loop = asyncio.get_running_loop()
        self._watchers: dict[RunsWatcher, dict[str, None] | None] = {}
        self._paused: dict[RunsWatcher, bool] = {}
        self._changed: dict[str, None] = {}
        self._due: deque[tuple[RunsWatcher, dict[str, None]]] = deque()
        self._frame: tuple[dict[str, None], str | None, bytes] = ({}, None, b"")
        self._timer: asyncio.TimerHandle | None = None
        self._stop = ExitStack()

    def watch(self, watcher: RunsWatcher) -> None:
        """Begins to note what changes for `watcher`, whose list of runs is made now; see `listed`."""
        if not self._watchers:
            self._stop.callback(self._coordinator.observe(self._observe))
            self._stop.callback(self._coordinator.retention.observe(self._note))
        self._watchers[watcher] = {}

    def listed(self, watcher: RunsWatcher) -> None:
        """Tells `watcher` from the next turn on what changes, and what has since its list was begun."""
        changed, self._watchers[watcher] = self._watchers[watcher], None
        if changed:
            self._tell([(watcher, changed)])

    def pause(self, watcher: RunsWatcher) -> None:
        """Tells `watcher` nothing for now."""
        self._paused.setdefault(watcher, False)

    def resume(self, watcher: RunsWatcher) -> None:
        """Has `watcher` list all runs anew if it has missed something meanwhile."""
        if self._paused.pop(watcher, False):
            watcher.list_again()

    def leave(self, watcher: RunsWatcher) -> None:
        """Ends the watch."""
        self._watchers.pop(watcher, None)
        self._paused.pop(watcher, None)
        if not self._watchers:
            self._stop.close()
            if self._timer is not None:
                self._timer.cancel()
            self._timer = None
            self._changed.clear()
            self._due.clear()

    def work(self) -> int:
        """Tells some of those who are to be told."""
        units = 0
        while self._due and units < SHARE:
            watcher, names = self._due.popleft()
            units += UNITS
            if watcher not in self._watchers:
                continue
            listing = self._watchers[watcher]
            if listing is not None:
                listing |= names
            elif watcher in self._paused:
                self._paused[watcher] = True
            elif frame := self._encoded(names, watcher.grant.run_id):
                watcher.tell(frame)
        if self._due:
            self._turns.queue(self.work)
        elif self._changed:
            self._arm()
        return units

    def _encoded(self, names: dict[str, None], alone: str | None) -> bytes:
        """Encodes what has become of some runs, or of the one that may be seen; empty if it is not there."""
        if self._frame[0] is not names or self._frame[1] != alone:
            found, runs = self._coordinator.runs, [one for one in names if alone in (None, one)]
            now = self._coordinator.clock()
            changed = tuple(run_summary(found[one], now) for one in runs if one in found)
            forgotten = tuple(one for one in runs if one not in found)
            self._frame = (names, alone, encode(RunsChanged(0, changed, forgotten)) if runs else b"")
        return self._frame[2]

    def _observe(self, run_id: str, _: float, event: LawEvent) -> None:
        self._note(run_id)

    def _note(self, run_id: str) -> None:
        self._changed[run_id] = None
        if self._timer is None and not self._due:
            self._arm()

    def _arm(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(INTERVAL, self._begin)

    def _begin(self) -> None:
        """Begins the next batch."""
        self._timer = None
        names = dict.fromkeys(islice(self._changed, BATCH))
        for name in names:
            del self._changed[name]
        self._tell([(watcher, names) for watcher in self._watchers])

    def _tell(self, due: list[tuple[RunsWatcher, dict[str, None]]]) -> None:
        if not self._due:
            self._turns.queue(self.work)
        self._due.extend(due)

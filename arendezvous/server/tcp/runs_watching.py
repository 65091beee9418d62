"""Tells sessions that watch all runs which have changed, or are forgotten: of each the latest, in batches."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Final, Protocol

from arendezvous.coordinator.coordinator import Coordinator
from arendezvous.keyspace.grants import Grant
from arendezvous.law.events import LawEvent
from arendezvous.server.tcp.answers import run_summary
from arendezvous.server.tcp.sharing import SHARE, UNITS, Turns
from arendezvous.wire.native.messages import RunsChanged, encode

INTERVAL: Final = 0.1  # seconds between two batches, however much happens
BATCH: Final = 256  # runs in one of them; it is encoded once for all who may look at the same runs


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
        _stop: Ends the observation of the coordinator; empty while nobody watches.
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
        self._stop: tuple[Callable[[], None], ...] = ()

    def watch(self, watcher: RunsWatcher) -> None:
        """Begins to note what changes for `watcher`, whose list of runs is made now; see `listed`."""
        if not self._stop:
            coordinator = self._coordinator
            self._stop = (coordinator.observe(self._observe), coordinator.observe_forgotten(self._note))
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
            for stop in self._stop:
                stop()
            if self._timer is not None:
                self._timer.cancel()
            self._stop, self._timer = (), None
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

"""What happens to a run, in batches, for a session that watches it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from arendezvous.coordinator.coordinator import Coordinator
from arendezvous.law.operations import LawEvent
from arendezvous.wire.native.messages import Happened

BACKLOG: Final = 4096  # events kept for a session that reads too slowly; it is told how many it missed beyond


class Watcher:
    """Collects a run's events and hands them on once for each turn of the event loop.

    Args:
        coordinator: Where the run is, or will be.
        run_id: The run.
        send: Called with each batch.
    """

    def __init__(self, coordinator: Coordinator, run_id: str, send: Callable[[Happened], None]) -> None:
        self._run_id = run_id
        self._send = send
        self._events: list[LawEvent] = []
        self._at = 0.0
        self._missed = 0
        self._paused = False
        self._flush: asyncio.Handle | None = None
        self._loop = asyncio.get_running_loop()
        self._stop = coordinator.observe(self._observe)

    def pause(self) -> None:
        """Keeps what happens back, up to a limit; what is over it is counted and lost."""
        self._paused = True

    def resume(self) -> None:
        """Hands on what was kept back."""
        self._paused = False
        self._schedule()

    def close(self) -> None:
        """Ends the watch."""
        self._stop()
        if self._flush is not None:
            self._flush.cancel()

    def _observe(self, run_id: str, now: float, event: LawEvent) -> None:
        if run_id != self._run_id:
            return
        self._at = now
        if len(self._events) < BACKLOG:
            self._events.append(event)
        else:
            self._missed += 1
        if not self._paused:
            self._schedule()

    def _schedule(self) -> None:
        if self._flush is None and (self._events or self._missed):
            self._flush = self._loop.call_soon(self._hand_on)

    def _hand_on(self) -> None:
        self._flush = None
        if self._paused:
            return
        events, missed = tuple(self._events), self._missed
        self._events.clear()
        self._missed = 0
        self._send(Happened(0, self._at, events, missed))

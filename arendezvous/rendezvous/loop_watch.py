"""Notices that an event loop was blocked."""

from __future__ import annotations

import math

import anyio

from arendezvous.law.words import duration


class LoopWatch:
    """Notices that the event loop was blocked: a sleep ends later than it should.

    Args:
        expiry: Seconds of silence after which the node is dead; blocks of more than a third count.

    Its fields:
        _due: When the present sleep is to end, by the loop's clock; infinite while there is none.
        _latest: Seconds that the latest block lasted; 0.0: there was none.
    """

    def __init__(self, expiry: float) -> None:
        self._least = expiry / 3
        self._due = math.inf
        self._latest = 0.0

    def forget(self) -> None:
        """Forgets what was: the node joins anew."""
        self._latest = 0.0

    async def sleep(self, seconds: float) -> bool:
        """Sleeps; returns whether the loop was blocked meanwhile. Cancellation: safe."""
        self._due = anyio.current_time() + seconds
        try:
            await anyio.sleep(seconds)
            return self._look()
        finally:
            self._due = math.inf

    def text(self) -> str:
        """Says for how long the loop was blocked, which may have ended just now; empty if it was not."""
        self._look()
        return f"its event loop was blocked for {duration(self._latest)}" if self._latest else ""

    def _look(self) -> bool:
        late = anyio.current_time() - self._due
        if late > self._least:
            self._latest = late
        return late > self._least

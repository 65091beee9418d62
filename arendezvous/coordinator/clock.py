"""A clock that does not count the time during which this process itself stood still."""

from __future__ import annotations

from asyncio import AbstractEventLoop, TimerHandle
from typing import Final

TICK: Final = 0.5
STALL: Final = 2.0


class StallProofClock:
    """Seconds of the event loop's clock, less its own pauses.

    A server that was stopped, swapped out or starved must not conclude from its own silence that all its
    nodes are dead. The clock looks at the time at least every half second; if it finds that more than two
    seconds have passed between two looks, nobody was listening meanwhile, and it leaves them out.
    """

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self._seen = loop.time()
        self._pauses = 0.0
        self._timer: TimerHandle | None = None
        self._tick()

    def __call__(self) -> float:
        """Returns the seconds; they never fall."""
        now = self._loop.time()
        if now - self._seen > STALL:
            self._pauses += now - self._seen
        self._seen = now
        return now - self._pauses

    def stop(self) -> None:
        """Stops looking at the time."""
        if self._timer is not None:
            self._timer.cancel()

    def _tick(self) -> None:
        self()
        self._timer = self._loop.call_later(TICK, self._tick)

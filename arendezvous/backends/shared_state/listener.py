"""Waiting for news of a shared state: what the store pushes, or else the time for another look."""

from __future__ import annotations

import logging

import anyio

from arendezvous.backends.shared_state.fenced_value import FencedValue
from arendezvous.errors import RendezvousError

logger = logging.getLogger(__name__)


class Listener:
    """Listens to a fenced value for the end of one topic at a time.

    Args:
        fenced: The value.
    """

    def __init__(self, fenced: FencedValue) -> None:
        self._fenced = fenced
        self._news = anyio.Event()
        self._topic = ""
        self._turned = anyio.Event()
        self._waiting: anyio.CancelScope | None = None

    async def run(self) -> None:
        """Listens until it is cancelled. Where nothing can be pushed, looking from time to time goes on."""
        while True:
            self._turned = anyio.Event()
            with anyio.CancelScope() as scope:
                self._waiting = scope
                try:
                    await self._fenced.wait(self._topic)
                    self.nudge()
                except RendezvousError as error:
                    logger.debug("nothing is pushed for %s: %s", self._topic, error)
                await self._turned.wait()

    def turn_to(self, topic: str) -> None:
        """Listens to `topic` from now on."""
        if topic != self._topic:
            self._topic = topic
            self._turned.set()
            if self._waiting is not None:
                self._waiting.cancel()

    def nudge(self) -> None:
        """Says that there may be news."""
        self._news.set()

    async def heard(self, seconds: float) -> bool:
        """Returns when there may be news, or after so many seconds; and which it was. Cancellation: safe."""
        with anyio.move_on_after(seconds):
            await self._news.wait()
        heard, self._news = self._news.is_set(), anyio.Event()
        return heard

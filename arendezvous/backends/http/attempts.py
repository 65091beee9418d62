"""Trying a request over HTTP again: how long to pause, and when to give up."""

from __future__ import annotations

import asyncio
import random
from typing import Final
from urllib.parse import quote

import anyio

from arendezvous.backends.http.link import UnansweredError
from arendezvous.backends.troubles import unreachable, untrusted

FIRST_BACKOFF: Final = 0.01
LAST_BACKOFF: Final = 0.5  # less than the default grace for coming back


class Backoff:
    """Pauses that become longer.

    Attributes:
        seconds: The next one, at most.
    """

    def __init__(self) -> None:
        self.seconds = FIRST_BACKOFF

    async def pause(self) -> None:
        """Pauses. Cancellation: safe."""
        seconds, self.seconds = self.seconds, min(LAST_BACKOFF, self.seconds * 2)
        await anyio.sleep(seconds * random.uniform(0.5, 1.0))  # noqa: S311 - spreads, hides nothing


class Attempts:
    """The attempts at one request: how long to pause between them, and when to give up.

    Args:
        endpoint: Where the server is, for the error.
        patience: Seconds that all attempts may take.
    """

    def __init__(self, endpoint: str, patience: float) -> None:
        self._endpoint = endpoint
        self._patience = patience
        self._loop = asyncio.get_running_loop()
        self._end = self._loop.time() + patience
        self._backoff = Backoff()

    async def failed(self, error: UnansweredError) -> None:
        """Pauses before the next attempt.

        Args:
            error: Why the last one failed.

        Raises:
            RendezvousConnectionError: There is to be none.
        """
        if error.distrusted:
            raise untrusted(self._endpoint, str(error)) from error
        if self._loop.time() + self._backoff.seconds >= self._end:
            raise unreachable(self._endpoint, self._patience, str(error)) from error
        await self._backoff.pause()


def run_path(run_id: str) -> str:
    """The path of a run."""
    return f"/v1/runs/{quote(run_id, safe='')}"

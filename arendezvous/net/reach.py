"""Whether a place is within reach, for those who should not wait for one that is not."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import anyio

from arendezvous.errors import RendezvousConnectionError

GOODBYE_TIMEOUT: Final = 2.0  # seconds that a goodbye takes at most once its place is out of reach


class Reach:
    """Whether the other side can be reached, as far as the owner of the connections knows.

    Its fields:
        _is_lost: Whether there is no connection now.
        _bounds: The blocks under way, and how many seconds each goes on without a connection.
    """

    def __init__(self) -> None:
        self._is_lost = False
        self._bounds: dict[anyio.CancelScope, float] = {}

    def lose(self) -> None:
        """Says that there is no connection any more, or that an attempt to make one has failed."""
        if not self._is_lost:
            self._is_lost = True
            for scope, seconds in self._bounds.items():
                scope.deadline = asyncio.get_running_loop().time() + seconds

    def find(self) -> None:
        """Says that there is a connection."""
        self._is_lost = False
        for scope in self._bounds:
            scope.deadline = math.inf

    @contextmanager
    def bounded(
        self, endpoint: str, seconds: float = GOODBYE_TIMEOUT, longest: float = math.inf
    ) -> Iterator[None]:
        """Gives the block up once `endpoint` has been out of reach for `seconds` of it, or after `longest`.

        Raises:
            RendezvousConnectionError: The block was given up, which cancels it.
        """
        with anyio.move_on_after(longest) as whole, anyio.CancelScope() as scope:
            self._bounds[scope] = seconds
            if self._is_lost:
                scope.deadline = asyncio.get_running_loop().time() + seconds
            try:
                yield
            finally:
                del self._bounds[scope]
        if scope.cancelled_caught or whole.cancelled_caught:
            said = f"has not answered for {longest:g} s" if whole.cancelled_caught else "is out of reach"
            raise RendezvousConnectionError(f"{endpoint} {said}", endpoint=endpoint, doing="saying goodbye")

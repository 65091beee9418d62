"""The operations of a store that are under way, and what becomes of them when it is closed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import anyio

from arendezvous.errors import StoreError
from arendezvous.net.forks import Origin

CLOSE_TIMEOUT: Final = 1.0


class Operations:
    """Keeps track of what is under way in one store.

    Its fields:
        _running: The scopes of the operations.
        _closed: Whether the store has been closed, and not opened again since.
        _idle: Is set once nothing is under way in a store that is closed.
    """

    def __init__(self) -> None:
        self._running: set[anyio.CancelScope] = set()
        self._closed = False
        self._origin = Origin("this store")
        self._idle = anyio.Event()

    @contextmanager
    def one(self) -> Iterator[None]:
        """Ends the block with `StoreError` when the store is closed, or has been."""
        self.require_open()
        with anyio.CancelScope() as scope:
            self._running.add(scope)
            try:
                yield
            finally:
                self._running.discard(scope)
                if self._closed and not self._running:
                    self._idle.set()
        if scope.cancelled_caught:
            self.require_open()

    def require_open(self) -> None:
        """Raises `StoreError` if the store has been closed, `RuntimeError` in a child that was forked."""
        self._origin.check()
        if self._closed:
            raise StoreError("the store has been closed: open another one")

    def begin(self) -> None:
        """Lets operations begin, though the store may have been closed before."""
        if self._closed:
            self._closed, self._idle = False, anyio.Event()

    async def end(self) -> None:
        """Ends them all, and lets no others begin; waits for them, but not long. May be called again."""
        self._closed = True
        for scope in self._running:
            scope.cancel()
        with anyio.move_on_after(CLOSE_TIMEOUT, shield=True):
            if self._running:
                await self._idle.wait()

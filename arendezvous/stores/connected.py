"""Connects stores that ask a server, and ends what is under way in them when they are closed."""

from __future__ import annotations

import abc
import math
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Final, Self

import anyio

from arendezvous.errors import RendezvousSettingsError, StoreError
from arendezvous.net.background import require_asyncio
from arendezvous.net.forks import Origin
from arendezvous.stores.port import Store

CLOSE_TIMEOUT: Final = 1.0  # seconds that what is under way has to end


class ConnectedStore(Store):
    """A store at a server; see `Store` for the time-outs.

    Its fields:
        _running: The scopes of the operations under way.
        _closed: Whether the store has been closed, and not opened again since.
        _idle: Is set once nothing is under way in a store that is closed.

    Raises:
        RendezvousSettingsError: A number is not what it has to be.
    """

    def __init__(
        self, *, timeout: float | timedelta | None, read_timeout: float, connect_timeout: float | None
    ) -> None:
        super().__init__(timeout=timeout)
        if not read_timeout > 0:
            raise RendezvousSettingsError.of("read_timeout", read_timeout, "a number of seconds > 0")
        self._connect_timeout = connect_timeout
        self._running: set[anyio.CancelScope] = set()
        self._closed = False
        self._origin = Origin("this store")
        self._idle = anyio.Event()

    @abc.abstractmethod
    async def _connect(self, seconds: float) -> None:
        """Asks for something, for so many seconds; infinity: for ever."""

    @abc.abstractmethod
    async def _disconnect(self) -> None:
        """Closes the connections."""

    async def __aenter__(self) -> Self:
        """Connects.

        Raises:
            RendezvousConnectionError: That took longer than the `connect_timeout`.
            RendezvousError: The server does not let this client in.
        """
        require_asyncio("a store")
        if self._closed:
            self._closed, self._idle = False, anyio.Event()
        seconds = self.timeout if self._connect_timeout is None else self._connect_timeout
        try:
            with self._operation():
                await self._connect(math.inf if seconds is None else seconds)
        except BaseException:
            await self.close()
            raise
        return self

    async def close(self) -> None:
        self._closed = True
        for scope in self._running:
            scope.cancel()
        with anyio.move_on_after(CLOSE_TIMEOUT, shield=True):
            if self._running:
                await self._idle.wait()
        await self._disconnect()

    @contextmanager
    def _operation(self) -> Iterator[None]:
        """Ends the block with `StoreError` when the store is closed, or has been."""
        self._require_open()
        with anyio.CancelScope() as scope:
            self._running.add(scope)
            try:
                yield
            finally:
                self._running.discard(scope)
                if self._closed and not self._running:
                    self._idle.set()
        if scope.cancelled_caught:
            self._require_open()

    def _require_open(self) -> None:
        self._origin.check()
        if self._closed:
            raise StoreError("the store has been closed: open another one")

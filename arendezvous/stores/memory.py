"""A store in this process: for tests, and for nodes that are tasks of one event loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Self

import anyio
import anyio.lowlevel

from arendezvous.errors import StoreError, StoreQueueEmptyError
from arendezvous.keyspace.host import Caller, KeyspaceHost
from arendezvous.keyspace.messages import Barrier, Check, MultiGet, QueuePop, StoreRequest, Wait, WaitQueue
from arendezvous.net.forks import Origin
from arendezvous.net.typed import typed
from arendezvous.stores.arguments import checked_keys, checked_number
from arendezvous.stores.messages import MessageStore
from arendezvous.stores.port import DEFAULT_TIMEOUT, STORE_TIMEOUT, Timeout
from arendezvous.stores.timeouts import barrier_timed_out, deadline


class MemoryStore(MessageStore):
    """A store whose data live in this process, and are gone when nobody holds them any more.

    Args:
        host: The data; stores that are given the same host see the same keys. None makes new ones.
        timeout: How long waiting operations wait, in seconds; None waits for ever.
    """

    @typed
    def __init__(
        self, host: KeyspaceHost | None = None, *, timeout: float | timedelta | None = DEFAULT_TIMEOUT
    ) -> None:
        super().__init__(timeout=timeout)
        self.host = KeyspaceHost() if host is None else host
        self._callers: set[Caller] = set()
        self._closed = False
        self._origin = Origin("this store")

    def __repr__(self) -> str:
        return f"MemoryStore({len(self.host.keyspace)} keys)"

    async def get(self, key: str, *, timeout: Timeout = STORE_TIMEOUT) -> bytes:
        return (await self._get([key], "get", timeout))[0]

    async def wait(self, keys: Sequence[str], timeout: Timeout = STORE_TIMEOUT) -> None:
        await anyio.lowlevel.checkpoint()
        with self._caller() as caller:
            async with deadline(self, self._seconds(timeout), "wait", checked_keys(keys)):
                await self._wait(caller, Wait(self._all(keys)))

    async def multi_get(self, keys: Sequence[str], *, timeout: Timeout = STORE_TIMEOUT) -> list[bytes]:
        return await self._get(keys, "multi_get", timeout)

    async def queue_pop(self, key: str, block: bool = True, *, timeout: Timeout = STORE_TIMEOUT) -> bytes:
        await anyio.lowlevel.checkpoint()
        queue = self._key(key)
        with self._caller() as caller:
            async with deadline(self, self._seconds(timeout), "queue_pop", [key]):
                while (value := caller.ask(QueuePop(queue)).value) is None:
                    if not block:
                        raise StoreQueueEmptyError(f"queue {key!r} is empty", key=key)
                    await self._wait(caller, WaitQueue(queue))
                return bytes(value)

    async def barrier(self, key: str, world_size: int, timeout: Timeout = STORE_TIMEOUT) -> None:
        await anyio.lowlevel.checkpoint()
        request = Barrier(self._key(key), checked_number("world_size", world_size))
        seconds = self._seconds(timeout)
        with self._caller() as caller, anyio.move_on_after(seconds) as scope:
            await self._wait(caller, request)
        if scope.cancelled_caught:
            raise await barrier_timed_out(self, seconds, key, world_size)

    async def __aenter__(self) -> Self:
        self._closed = False
        return await super().__aenter__()

    async def close(self) -> None:
        self._closed = True
        for caller in self._callers:
            caller.wake()

    async def _ask(self, request: StoreRequest) -> Any:
        await anyio.lowlevel.checkpoint()
        with self._caller() as caller:
            return caller.ask(request)

    async def _get(self, keys: Sequence[str], doing: str, timeout: Timeout) -> list[bytes]:
        await anyio.lowlevel.checkpoint()
        wanted = self._all(keys)
        with self._caller() as caller:
            async with deadline(self, self._seconds(timeout), doing, keys):
                while not caller.ask(Check(wanted)).ready:
                    await self._wait(caller, Wait(wanted))
                return [value or b"" for value in caller.ask(MultiGet(wanted)).values]

    async def _wait(self, caller: Caller, request: Wait | WaitQueue | Barrier) -> None:
        if caller.ask(request) is None:
            await caller.delivered()
            self._require_open()

    @contextmanager
    def _caller(self) -> Iterator[Caller]:
        self._require_open()
        caller = Caller(self.host)
        self._callers.add(caller)
        try:
            yield caller
        finally:
            self._callers.discard(caller)
            self.host.detach(caller.number)

    def _require_open(self) -> None:
        self._origin.check()
        if self._closed:
            raise StoreError("the store has been closed: open another one")

"""A store on a server of the c10d protocol: torch's TCPStore server, or ours."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Self, cast

import anyio

from arendezvous.errors import StoreError, StoreQueueEmptyError
from arendezvous.keyspace import messages
from arendezvous.net.background import require_asyncio
from arendezvous.net.credentials import NO_CREDENTIALS, Credentials
from arendezvous.net.servers import Locator, Servers
from arendezvous.net.typed import typed
from arendezvous.stores.arguments import checked_number
from arendezvous.stores.messages import MessageStore
from arendezvous.stores.port import DEFAULT_TIMEOUT, STORE_TIMEOUT, Timeout
from arendezvous.stores.tcp.pool import ConnectionPool
from arendezvous.stores.timeouts import answered, barrier_timed_out, deadline

_WORKERS = b"init/"  # torch's TCPStore puts no slash before this one, under which it counts its workers


class TcpStore(MessageStore):
    """A client of a store server, for one event loop.

    It speaks the protocol of ``torch.distributed.TCPStore`` and sees the same keys as torch's clients of that
    server. Operations that answer at once share one connection, with any number of them in flight; each wait
    has a connection to itself while it lasts, except that all who `get` one key share one. A broken
    connection is opened again, with growing pauses. What only reads is then asked again; what changes
    something and was in flight raises `RendezvousConnectionError`, because it may have been carried out.

    `set`, `append`, `multi_set` and `queue_push` return once the server has them, which costs a round trip;
    torch's client does not wait for that.

    Use it as an asynchronous context manager: entering connects. Without that the first operation connects.

    Args:
        host: The server's name or address.
        port: The server's port.
        timeout: How long waiting operations wait, in seconds; None waits for ever.
        read_timeout: Seconds without an answer, or a connection, until an operation raises
            `RendezvousConnectionError`.
        connect_timeout: Seconds that entering tries to connect: servers may start later than clients. None
            stands for `timeout`.
        credentials: The token to show, which only an arendezvous server takes, and the TLS settings. With a
            token that is good for less, what goes beyond it raises `RendezvousPermissionError`.
        servers: All servers that stand in for each other, `host` among them; None: there is just that one.
    """

    _before = b"/"  # torch's TCPStore puts it before each key of its users

    @typed
    def __init__(
        self,
        host: str,
        port: int,
        *,
        timeout: float | timedelta | None = DEFAULT_TIMEOUT,
        read_timeout: float = 10.0,
        connect_timeout: float | None = None,
        credentials: Credentials = NO_CREDENTIALS,
        servers: Locator | None = None,
    ) -> None:
        super().__init__(timeout=timeout)
        self.host = host
        self.port = port
        self._connect_timeout = connect_timeout
        self._read_timeout = read_timeout
        self._links = ConnectionPool(servers or Servers([(host, port)]), read_timeout, credentials)
        self._ask = self._links.ask
        self.reach = self._links.reach

    def __repr__(self) -> str:
        return f"TcpStore({self.host!r}, {self.port})"

    async def __aenter__(self) -> Self:
        """Connects.

        Raises:
            RendezvousConnectionError: That took longer than the `connect_timeout`.
        """
        require_asyncio("a store")
        seconds = self.timeout if self._connect_timeout is None else self._connect_timeout
        await self._links.connect(seconds)
        return self

    async def close(self) -> None:
        await self._links.close()

    async def get(self, key: str, *, timeout: Timeout = STORE_TIMEOUT) -> bytes:
        read, seconds = messages.Get(self._key(key)), self._seconds(timeout)
        since = asyncio.get_running_loop().time()
        # Asking ends by itself: where that is sooner, a value that is there needs no timer; 23 us, not 33.
        if (not seconds or seconds >= 2 * self._read_timeout) and (value := (await self._ask(read)).value):
            return cast(bytes, value)
        with answered(seconds, "get", [key], since):
            ready, reply = await self._links.look(read)
            if not ready:
                async with deadline(self, seconds, "get", [key]):
                    while not ready:
                        await self._links.wait_shared(read.key)
                        ready, reply = await self._links.look(read)
            return reply.value or b""

    async def multi_get(self, keys: Sequence[str], *, timeout: Timeout = STORE_TIMEOUT) -> list[bytes]:
        read, seconds = messages.MultiGet(self._all(keys)), self._seconds(timeout)
        if not read.keys:
            return []
        with answered(seconds, "multi_get", keys):
            ready, reply = await self._links.look(read)
            if not ready:
                async with deadline(self, seconds, "multi_get", keys):
                    while not ready:
                        await self._links.wait(messages.Wait(read.keys))
                        ready, reply = await self._links.look(read)
            return [value or b"" for value in reply.values]

    async def wait(self, keys: Sequence[str], timeout: Timeout = STORE_TIMEOUT) -> None:
        request, seconds = messages.Wait(self._all(keys)), self._seconds(timeout)
        with answered(seconds, "wait", keys):
            ready: messages.Ready = await self._links.ask(messages.Check(request.keys), for_=request)
            if not ready.ready:
                async with deadline(self, seconds, "wait", keys):
                    await self._links.wait(request)

    async def queue_pop(self, key: str, block: bool = True, *, timeout: Timeout = STORE_TIMEOUT) -> bytes:
        queue, seconds = self._key(key), self._seconds(timeout)
        with answered(seconds if block else None, "queue_pop", [key]):
            reply: messages.Popped = await self._links.pop(messages.QueuePop(queue))
            if reply.value is not None:
                return reply.value
            if not block:
                raise StoreQueueEmptyError(f"queue {key!r} is empty", key=key)
            async with deadline(self, seconds, "queue_pop", [key]):
                return await self._links.wait_and_pop(queue)

    async def barrier(self, key: str, world_size: int, timeout: Timeout = STORE_TIMEOUT) -> None:
        request = messages.Barrier(self._key(key), checked_number("world_size", world_size))
        seconds = self._seconds(timeout)
        with answered(seconds, "barrier", [key]):
            if not await self._links.barrier(request, seconds):
                raise await barrier_timed_out(self, seconds, key, world_size)

    async def wait_for_workers(self, world_size: int, *, timeout: Timeout = STORE_TIMEOUT) -> None:
        """Counts this store as one worker, and returns once `world_size` have been counted.

        Torch's clients count themselves in the same place when they are given a world size. They send no sign
        beyond that, so this asks again, with pauses that grow from 10 ms to a second.

        Raises:
            StoreTimeoutError: Too few came within `timeout` seconds; this one stays counted.
        """
        count: messages.Number = await self._ask(messages.Add(_WORKERS, 1))
        arrived, pause, seconds = count.number, 0.01, self._seconds(timeout)
        async with deadline(self, seconds, f"waiting for {world_size} workers", [_WORKERS.decode()]):
            while arrived < world_size:
                await anyio.sleep(pause)
                pause = min(2 * pause, 1.0)
                value: bytes = (await self._ask(messages.Get(_WORKERS))).value or b""
                try:
                    arrived = int(value)
                except ValueError as error:
                    said = f"holds {value[:40]!r}, but should hold the number of workers"
                    raise StoreError(f"key 'init/' {said}") from error

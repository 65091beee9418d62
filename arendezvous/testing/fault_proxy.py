"""A TCP proxy on loopback with named faults, to be put between a client and a server in tests."""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Self

import anyio

from arendezvous.net.background import Background, finish, require_asyncio
from arendezvous.net.endpoint import join_host_port
from arendezvous.server.binding import listen, stop_listening


@dataclass
class Faults:
    """Says what happens to the bytes that go in one direction; may be changed at any time.

    Attributes:
        delay: Seconds that each piece is held up.
        cut_after: The connection on which so many bytes have passed is cut; used up by the first that it
            hits. None: never.
        corrupt_at: The byte at this offset of a connection is inverted; used up by the first that it hits.
            None: none.
        single_bytes: Whether each byte is sent by itself.
    """

    delay: float = 0.0
    cut_after: int | None = None
    corrupt_at: int | None = None
    single_bytes: bool = False


@dataclass(eq=False)
class _Link:
    """One connection through the proxy."""

    ends: list[asyncio.StreamWriter]
    scope: anyio.CancelScope
    cut: bool = False


@dataclass(eq=False)
class FaultProxy:
    """Passes TCP connections on to `host` and `port`, and breaks them as it is told.

    An asynchronous context manager::

        async with FaultProxy("127.0.0.1", 29400) as proxy:
            ...  # clients connect to proxy.port
            proxy.cut()

    Attributes:
        host: Where the server is.
        port_of_server: Its port.
        port: Where the proxy listens, on 127.0.0.1; set once it is entered.
        to_server: Faults of what the clients send.
        to_client: Faults of what the server sends.
        refusing: Whether new connections are closed at once.
        passed: Connections that were passed on so far.
    """

    host: str
    port_of_server: int
    port: int = 0
    to_server: Faults = field(default_factory=Faults)
    to_client: Faults = field(default_factory=Faults)
    refusing: bool = False
    passed: int = 0
    _links: set[_Link] = field(default_factory=set, repr=False)
    _thawed: anyio.Event | None = field(default=None, repr=False)
    _background: Background | None = field(default=None, repr=False)
    _listener: asyncio.Server | None = field(default=None, repr=False)

    async def __aenter__(self) -> Self:
        """Listens."""
        require_asyncio("a proxy")
        self._listener = await listen(self._connection, "127.0.0.1", 0)
        self.port = self._listener.sockets[0].getsockname()[1]
        self._background = Background(f"the proxy at {self.address}", lambda _: None)  # `__aexit__` raises it
        return self

    async def __aexit__(self, *_: object) -> None:
        """Cuts all connections and stops listening.

        Raises:
            RendezvousError: The proxy itself has failed meanwhile.
        """
        await finish(self._close)

    async def _close(self) -> None:
        assert self._background is not None
        assert self._listener is not None
        await stop_listening(self._listener)
        await self._background.close()
        if self._background.error is not None:
            raise self._background.error

    @property
    def address(self) -> str:
        """``host:port`` of the proxy."""
        return join_host_port("127.0.0.1", self.port)

    @property
    def open_links(self) -> int:
        """How many connections are open through the proxy."""
        return len(self._links)

    def cut(self) -> None:
        """Resets all connections, at both ends."""
        for link in self._links:
            link.cut = True
            link.scope.cancel()

    def freeze(self) -> None:
        """Passes nothing on any more, in either direction, until `thaw`; connections stay open."""
        if self._thawed is None:
            self._thawed = anyio.Event()

    def thaw(self) -> None:
        """Passes on what was held since `freeze`."""
        thawed, self._thawed = self._thawed, None
        if thawed is not None:
            thawed.set()

    def _connection(self) -> asyncio.StreamReaderProtocol:
        return asyncio.StreamReaderProtocol(asyncio.StreamReader(), self._welcome)

    def _welcome(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        if self._background is not None and self._listener is not None and self._listener.is_serving():
            self._background.start(self._serve, reader, client)
        else:
            client.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        link = _Link([client], anyio.CancelScope(), cut=self.refusing)
        try:
            with link.scope:
                if not link.cut:
                    self._links.add(link)
                    await self._pass_on(link, reader, client)
        except OSError:
            link.cut = True  # the server is not there
        finally:
            self._links.discard(link)
            with anyio.CancelScope(shield=True):
                await _end(link)

    async def _pass_on(self, link: _Link, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        answers, server = await asyncio.open_connection(self.host, self.port_of_server)
        link.ends.append(server)
        self.passed += 1
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._pump, link, reader, server, self.to_server)
            tasks.start_soon(self._pump, link, answers, client, self.to_client)

    async def _pump(
        self, link: _Link, source: asyncio.StreamReader, target: asyncio.StreamWriter, faults: Faults
    ) -> None:
        target.transport.set_write_buffer_limits(0)
        passed = 0
        try:
            while not link.cut and (piece := await source.read(65536)):
                if faults.delay:
                    await anyio.sleep(faults.delay)
                while self._thawed is not None:
                    await self._thawed.wait()
                data = bytearray(piece)
                if faults.corrupt_at is not None and passed <= faults.corrupt_at < passed + len(data):
                    data[faults.corrupt_at - passed] ^= 0xFF
                    faults.corrupt_at = None
                if faults.cut_after is not None and passed + len(data) >= faults.cut_after:
                    del data[faults.cut_after - passed :]
                    faults.cut_after = None
                    link.cut = True
                size = 1 if faults.single_bytes else len(data) or 1
                for at in range(0, len(data), size):
                    target.write(data[at : at + size])
                    await target.drain()
                passed += len(data)
        except OSError:
            link.cut = True
        link.scope.cancel()


async def _end(link: _Link) -> None:
    """Closes both ends: of a link that was cut by a reset, which drops what was not sent."""
    for end in link.ends:
        if link.cut:
            with suppress(OSError):  # it may be closed already
                linger = struct.pack("ii", 1, 0)
                end.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        end.transport.abort()
        with suppress(OSError):
            await end.wait_closed()

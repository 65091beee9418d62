"""A TCP proxy on loopback with named faults, to be put between a client and a server in tests."""

from __future__ import annotations

import socket
import struct
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Self

import anyio
import anyio.abc

from arendezvous.net.background import Background, finish, require_asyncio
from arendezvous.net.endpoint import join_host_port

END: Final = 5.0  # seconds that the end may take


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

    client: anyio.abc.SocketStream
    scope: anyio.CancelScope
    server: anyio.abc.SocketStream | None = None
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
    _listener: anyio.abc.SocketListener | None = field(default=None, repr=False)
    _closing: bool = field(default=False, repr=False)
    _deaf: anyio.Event | None = field(default=None, repr=False)

    async def __aenter__(self) -> Self:
        """Listens."""
        require_asyncio("a proxy")
        (listener,) = (await anyio.create_tcp_listener(local_host="127.0.0.1")).listeners
        assert isinstance(listener, anyio.abc.SocketListener)
        self.port = listener.extra(anyio.abc.SocketAttribute.local_port)  # noqa: S610 - this is no Django
        self._listener, self._closing, self._deaf = listener, False, anyio.Event()
        self._background = Background(f"the proxy at {self.address}", lambda _: None)  # `__aexit__` raises it
        self._background.start(self._accept, listener, self._background, self._deaf)
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
        try:
            with anyio.move_on_after(END):
                await self._stop_accepting()
        finally:
            await self._background.close()
            await self._listener.aclose()
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

    async def _accept(
        self, listener: anyio.abc.SocketListener, background: Background, deaf: anyio.Event
    ) -> None:
        """Takes connections. It is not cancelled to end it: one that comes at that moment would stay open."""
        try:
            while True:
                client = await listener.accept()
                if self._closing:
                    await client.aclose()
                    return
                background.start(self._serve, client)
        finally:
            deaf.set()

    async def _stop_accepting(self) -> None:
        """Connects, so that `_accept` notices that it is to end, and waits for that."""
        self._closing = True
        if self._deaf is not None and not self._deaf.is_set():
            last = await anyio.connect_tcp("127.0.0.1", self.port)
            await last.aclose()
            await self._deaf.wait()

    async def _serve(self, client: anyio.abc.SocketStream) -> None:
        if self.refusing:
            _reset(client)
            await client.aclose()
            return
        with anyio.CancelScope() as scope:
            link = _Link(client, scope)
            self._links.add(link)
            try:
                link.server = await anyio.connect_tcp(self.host, self.port_of_server)
                self.passed += 1
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._pump, link, client, link.server, self.to_server)
                    tasks.start_soon(self._pump, link, link.server, client, self.to_client)
            except OSError:
                link.cut = True  # the server is not there
            finally:
                self._links.discard(link)
                with anyio.CancelScope(shield=True):
                    await _end(link)

    async def _pump(
        self,
        link: _Link,
        source: anyio.abc.SocketStream,
        target: anyio.abc.SocketStream,
        faults: Faults,
    ) -> None:
        passed = 0
        try:
            async for piece in source:
                await self._hold(faults)
                data = bytearray(piece)
                if faults.corrupt_at is not None and passed <= faults.corrupt_at < passed + len(data):
                    data[faults.corrupt_at - passed] ^= 0xFF
                    faults.corrupt_at = None
                if faults.cut_after is not None and passed + len(data) >= faults.cut_after:
                    del data[faults.cut_after - passed :]
                    faults.cut_after = None
                    link.cut = True
                await _send(target, bytes(data), single=faults.single_bytes)
                passed += len(data)
                if link.cut:
                    break
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            link.cut = True
        link.scope.cancel()

    async def _hold(self, faults: Faults) -> None:
        if faults.delay:
            await anyio.sleep(faults.delay)
        while self._thawed is not None:
            await self._thawed.wait()


async def _send(target: anyio.abc.SocketStream, data: bytes, *, single: bool) -> None:
    pieces = [data[at : at + 1] for at in range(len(data))] if single else [data]
    for piece in pieces:
        if piece:
            await target.send(piece)


async def _end(link: _Link) -> None:
    for stream in (link.client, link.server):
        if stream is not None:
            if link.cut:
                _reset(stream)
            await stream.aclose()


def _reset(stream: anyio.abc.SocketStream) -> None:
    """Has the kernel send a reset when `stream` is closed, and drop what was not sent."""
    sock = stream.extra(anyio.abc.SocketAttribute.raw_socket)  # noqa: S610 - this is no Django
    with suppress(OSError):  # it may be closed already
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

"""The TCP listener of a server that does not lead: it tells native clients who does, and passes others on.

What is passed on goes byte by byte: the protocol of torch's TCPStore, our own store's login, and all of TLS,
which only the leader's end of it can read.
"""

from __future__ import annotations

import asyncio
from typing import cast

from arendezvous.errors import RendezvousError
from arendezvous.net.background import Background
from arendezvous.net.endpoint import parse_host_port
from arendezvous.server.access.admission import Admission
from arendezvous.server.access.limits import ServerLimits
from arendezvous.server.binding import listen, stop_listening
from arendezvous.server.leadership import Leadership
from arendezvous.server.tcp.listener import peer_name, set_no_delay
from arendezvous.wire.native.messages import PREFACE, encode, moved

CONNECT_TIMEOUT = 5.0  # seconds that a connection to the leader may take


class RelayListener:
    """Passes connections on to the leader.

    Args:
        leadership: Says who leads.
        is_http: Whether it stands before the leader's HTTP port.
        knows_clients: Whether it can tell native clients apart, to tell them who leads.
        limits: What it takes on.
        admission: Counts connections together with other listeners.

    Its fields:
        _background: Connects to the leader.
        _ends: Both ends of all connections.
        _server: What listens; None before `start`.
    """

    def __init__(
        self,
        leadership: Leadership,
        limits: ServerLimits,
        admission: Admission,
        *,
        is_http: bool = False,
        knows_clients: bool = False,
    ) -> None:
        self.leadership = leadership
        self.limits = limits
        self.admission = admission
        self.is_http = is_http
        self.knows_clients = knows_clients
        self.ends: set[_End] = set()
        self.background = Background("passing on to the leader", self._failed)
        self._server: asyncio.Server | None = None

    @property
    def place(self) -> tuple[str, int] | None:
        """Tells where the leader is; None while there is none, or none there."""
        leader = self.leadership.leader
        url = "" if leader is None else leader.http if self.is_http else leader.tcp
        return parse_host_port(url.partition("://")[2], name="leader") if url else None

    async def start(self, host: str, port: int) -> tuple[str, int]:
        """Listens on `host` and `port` (0 picks one) and returns the address.

        Raises:
            RendezvousConnectionError: The address cannot be bound; its cause tells why.
        """
        self._server = await listen(lambda: _ClientEnd(self), host, port)
        self.admission.listeners["http" if self.is_http else "tcp"] = self._server.is_serving
        bound = self._server.sockets[0].getsockname()
        return bound[0], bound[1]

    async def stop(self) -> None:
        """Stops accepting, and breaks off all connections."""
        try:
            if self._server is not None:
                await stop_listening(self._server)
        finally:
            await self.background.close()
            self.drop()
        await asyncio.sleep(0)  # lets the transports tell their protocols

    def drop(self) -> None:
        """Breaks off all connections."""
        for end in list(self.ends):
            end.abort()

    def _failed(self, _: RendezvousError) -> None:
        """Has the clients come again; the log tells why."""
        self.drop()


class _End(asyncio.Protocol):
    """One end of a connection that is passed on: what comes there is written to the other one.

    Its fields:
        other: The other end; None before it is there.
        _transport: The way to the peer; None after it is lost.
    """

    def __init__(self, listener: RelayListener) -> None:
        self.listener = listener
        self.other: _End | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.listener.ends.add(self)
        set_no_delay(transport)

    def data_received(self, data: bytes) -> None:
        if self.other is not None:
            self.other.write(data)

    def eof_received(self) -> bool:
        if self.other is None:
            return False
        self.other.write_eof()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.listener.ends.discard(self)
        self._transport = None
        if self.other is not None:
            self.other.close()

    def pause_writing(self) -> None:
        if self.other is not None:
            self.other.read(going_on=False)

    def resume_writing(self) -> None:
        if self.other is not None:
            self.other.read(going_on=True)

    def read(self, *, going_on: bool) -> None:
        """Reads on, or not for now."""
        if self._transport is not None and not self._transport.is_closing():
            (self._transport.resume_reading if going_on else self._transport.pause_reading)()

    def write(self, data: bytes) -> None:
        """Sends what has come at the other end."""
        if self._transport is not None:
            self._transport.write(data)

    def write_eof(self) -> None:
        """Says that nothing more will come."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write_eof()

    def close(self) -> None:
        """Closes the connection, once all is sent."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Closes the connection at once."""
        if self._transport is not None:
            self._transport.abort()


class _ClientEnd(_End):
    """The client's end, which decides at the first byte what becomes of the connection.

    Its fields:
        _admitted: Whether it was counted.
        _told: Whether the client was told who leads: then it is to go.
        _deadline: The time that the client has to say something, or to go; None once it is passed on.
        _first: What has come before the other end is there.
    """

    def __init__(self, listener: RelayListener) -> None:
        super().__init__(listener)
        self._admitted = False
        self._told = False
        self._deadline: asyncio.TimerHandle | None = None
        self._first = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._admitted = self.listener.admission.enter(peer_name(transport))
        if not self._admitted:
            self.abort()
            return
        timeout = self.listener.limits.handshake_timeout
        self._deadline = asyncio.get_running_loop().call_later(timeout, self.abort)

    def data_received(self, data: bytes) -> None:
        if self.other is not None:
            super().data_received(data)
        elif not self._told:
            self._begin(data)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._admitted:
            self.listener.admission.leave()
        if self._deadline is not None:
            self._deadline.cancel()

    def _begin(self, data: bytes) -> None:
        leader = self.listener.leadership.leader
        if leader is None or self.listener.place is None:
            self.abort()  # who comes again finds another server, or a leader
        elif data[0] == PREFACE[0] and self.listener.knows_clients:
            self._told = True  # what it still sends is left aside: an end at once might overtake the answer
            self.write(encode(moved(leader.tcp)))
        else:
            self._first = data
            self.read(going_on=False)
            self.listener.background.start(self._connect)

    async def _connect(self) -> None:
        place = self.listener.place
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                assert place is not None  # noqa: S101 - it was there a moment ago, and nothing has happened since
                _, other = await loop.create_connection(lambda: _End(self.listener), *place)
        except (OSError, TimeoutError):
            self.abort()
            return
        if self._transport is None:  # the client has gone meanwhile
            other.abort()
            return
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self.other, other.other = other, self
        other.write(self._first)
        self._first = b""
        self.read(going_on=True)

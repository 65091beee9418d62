"""The TCP listener of a server that does not lead: it tells native clients who does, and passes others on.

What is passed on goes byte by byte: the protocol of torch's TCPStore, our own store's login, and all of TLS,
which only the leader's end of it can read. While nobody leads, or the leader cannot be reached, clients are
kept waiting for the next one, so that none has to ask again and again.
"""

from __future__ import annotations

import asyncio
from typing import cast

import anyio

from arendezvous.directory.port import Leader
from arendezvous.errors import RendezvousError
from arendezvous.net.background import Background
from arendezvous.net.backoff import DEFAULT_BACKOFF
from arendezvous.net.endpoint import parse_host_port
from arendezvous.server.binding import peer_name, set_no_delay
from arendezvous.server.context import ServerContext
from arendezvous.server.leadership import Leadership
from arendezvous.server.listening import ServerListener
from arendezvous.wire.native import messages

CONNECT_TIMEOUT = 5.0  # seconds that a connection to the leader may take


class RelayListener(ServerListener):
    """Passes connections on to the leader.

    Fields:
        knows_clients: Whether it can tell native clients apart, to tell them who leads.
        background: Waits for a leader, and connects to it.
        ends: Both ends of all connections.
    """

    def __init__(self, context: ServerContext, name: str, *, knows_clients: bool = False) -> None:
        super().__init__(context, name)
        self.knows_clients = knows_clients
        self.ends: set[_End] = set()
        self.background = Background("passing on to the leader", self._failed)

    def drop(self) -> None:
        """Breaks off all connections but for those that still wait for a leader."""
        for end in list(self.ends):
            end.drop()

    @property
    def leadership(self) -> Leadership:
        """Tells who leads."""
        assert self.context.leadership is not None  # noqa: S101 - it is one of a fleet
        return self.context.leadership

    async def leader(self) -> tuple[Leader, tuple[str, int]]:
        """Waits until somebody leads, and returns where. Cancellation: safe."""
        leader = await self.leadership.other_than("")
        while not (where := leader.http if self._name == "http" else leader.tcp):
            leader = await self.leadership.other_than(leader.tcp)
        return leader, parse_host_port(where.partition("://")[2], name="leader")

    def _connection(self, *, counted: bool = False) -> asyncio.BaseProtocol:
        return _ClientEnd(self)

    async def _end(self) -> None:
        await self.background.close()
        for end in list(self.ends):
            end.stop()

    def _failed(self, _: RendezvousError) -> None:
        """Has the clients come again; the log tells why."""
        for end in list(self.ends):
            end.transport.abort()


class _End(asyncio.Protocol):
    """One end of a connection that is passed on: what comes there is written to the other one.

    Its fields:
        other: The other end; None before it is there.
        transport: The way to the peer.
    """

    transport: asyncio.Transport

    def __init__(self, listener: RelayListener) -> None:
        self.listener = listener
        self.other: _End | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.listener.ends.add(self)
        set_no_delay(transport)

    def data_received(self, data: bytes) -> None:
        if self.other is not None:
            self.other.transport.write(data)

    def eof_received(self) -> bool:
        if self.other is not None and not self.other.transport.is_closing():
            self.other.transport.write_eof()
        return self.other is not None

    def connection_lost(self, exc: Exception | None) -> None:
        self.listener.ends.discard(self)
        if self.other is not None:
            self.other.transport.close()

    def pause_writing(self) -> None:
        if self.other is not None:
            self.other.read(going_on=False)

    def resume_writing(self) -> None:
        if self.other is not None:
            self.other.read(going_on=True)

    def read(self, *, going_on: bool) -> None:
        if not self.transport.is_closing():
            (self.transport.resume_reading if going_on else self.transport.pause_reading)()

    def drop(self) -> None:
        """Closes the connection as somebody else leads now."""
        self.transport.abort()

    def stop(self) -> None:
        """Closes the connection as the listener stops."""
        self.transport.abort()


class _ClientEnd(_End):
    """The client's end, which decides by what comes first what becomes of the connection.

    Its fields:
        _admitted: Whether it was counted.
        _peer: Where it is.
        _told: Whether the client is told who leads, once that is known: then it is to go.
        _begun: Whether it is known what the client wants.
        _deadline: The time that the client has to say something, to be passed on, or to go.
        _first: What has come before the other end is there.
    """

    def __init__(self, listener: RelayListener) -> None:
        super().__init__(listener)
        self._admitted = False
        self._peer = ""
        self._told = False
        self._begun = False
        self._deadline: asyncio.TimerHandle | None = None
        self._first = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        context = self.listener.context
        self._peer = peer_name(transport)
        self._admitted = context.admission.enter(self._peer)
        if not self._admitted:
            self.transport.abort()
            return
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(context.limits.handshake_timeout, self.transport.abort)

    def data_received(self, data: bytes) -> None:
        if self.other is not None:
            super().data_received(data)
        elif not self._told:  # what it still sends is left aside: an end at once might overtake the answer
            if not self.listener.context.shared.greetings.add(self._peer, len(data)):
                self.transport.abort()
                return
            self._first += data
            if not self._begun:
                self._begin()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._let_go()
        if self._admitted:
            self.listener.context.admission.leave()
        if self._deadline is not None:
            self._deadline.cancel()

    def drop(self) -> None:
        """See `_End.drop`; who is told who leads goes by itself, and who waits for that goes on waiting."""
        if self.other is not None:
            self.transport.abort()

    def stop(self) -> None:
        """See `_End.stop`; what it is told is sent."""
        (self.transport.close if self._told else self.transport.abort)()

    def _begin(self) -> None:
        background = self.listener.background
        if self._first[0] != messages.PREFACE[0] or not self.listener.knows_clients:
            self._begun = True
            background.start(self._pass_on)
        elif (hello := self._hello()) is not None:
            self._begun = self._told = True
            self._let_go()
            background.start(self._tell, hello)
        if self._begun:
            self.read(going_on=False)

    def _hello(self) -> messages.Hello | None:
        """Returns what a native client says first, once that is there."""
        parser = messages.FrameParser(messages.MAX_REQUEST, first=messages.MAX_HELLO)
        try:
            frames = parser.feed(self._first[len(messages.PREFACE) :])
            hello = messages.decode_client(frames[0]) if frames else None
        except messages.FrameError:
            self.transport.abort()
            return None
        if hello is None or isinstance(hello, messages.Hello):
            return hello
        self.transport.abort()
        return None

    async def _tell(self, hello: messages.Hello) -> None:
        """Tells the client who leads, once that is not the server any more that it could not reach."""
        leader = await self.listener.leadership.successor_of(hello.lost, hello.without)
        if not self.transport.is_closing():  # uvloop refuses to write to a client that has gone
            self.transport.write(messages.encode(messages.moved(leader.tcp)))
        self.read(going_on=True)  # so that its end is heard

    async def _pass_on(self) -> None:
        """Passes the connection on to the leader, or to the next one where it cannot be reached."""
        loop, pauses = asyncio.get_running_loop(), DEFAULT_BACKOFF.start()
        while not self.transport.is_closing():
            leader, place = await self.listener.leader()
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT):
                    _, other = await loop.create_connection(lambda: _End(self.listener), *place)
            except (OSError, TimeoutError):
                with anyio.move_on_after(pauses.next()):
                    await self.listener.leadership.other_than(leader.tcp)
            else:
                self._join(other)
                return

    def _join(self, other: _End) -> None:
        if self.transport.is_closing():  # the client has gone meanwhile
            other.transport.abort()
            return
        if self._deadline is not None:
            self._deadline.cancel()
        self.other, other.other = other, self
        other.transport.write(self._first)
        self._let_go()
        self.read(going_on=True)

    def _let_go(self) -> None:
        """Keeps nothing of what has come any more."""
        self.listener.context.shared.greetings.add(self._peer, -len(self._first))
        self._first = b""

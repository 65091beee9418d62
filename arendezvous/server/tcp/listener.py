"""The TCP listener: accepts connections and tells the protocols apart by their first byte."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, TypeAlias, cast

from arendezvous.errors import RendezvousError, RendezvousPermissionError
from arendezvous.keyspace.grants import EVERYTHING, Grant
from arendezvous.net.forks import let_go_in_children
from arendezvous.net.shared_buffer import SharedBufferProtocol
from arendezvous.server.access.admission import ProtocolCounts
from arendezvous.server.binding import peer_name, set_no_delay
from arendezvous.server.context import ServerContext
from arendezvous.server.listening import ServerListener
from arendezvous.server.misdirected import own_address, refuse
from arendezvous.server.tcp.c10d import C10dConnection, C10dSettings
from arendezvous.server.tcp.session import NativeSession, SessionContext
from arendezvous.wire.native import login
from arendezvous.wire.native.login import LoggedIn, LoginParser
from arendezvous.wire.native.messages import PREFACE, VERSION, FrameError, Welcome, encode, failure

VALIDATE: Final = 0  # the opcode with which every client of the TCPStore protocol begins
_TOKENLESS: Final = (
    "it is a client of a TCPStore that shows no token, as stock torch cannot; use arendezvous' own store"
    " with the token, or let such clients use all keys by plain_stores (--allow-plain-stores)"
)


class StoreLogin(SharedBufferProtocol):
    """A connection until its token has been looked at; then `become` makes it one of the c10d protocol.

    Attributes:
        grant: What the peer may do: all that it can do here is to show its token.
        traffic: Where the bytes that are sent are counted.
    """

    def __init__(self, context: ServerContext, become: Callable[[C10dConnection, bytes], None]) -> None:
        self.grant: Grant = EVERYTHING
        self.traffic = ProtocolCounts()
        self._context = context
        self._peer = "?"
        self._become = become
        self._parser = LoginParser()
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begins to wait for the token."""
        self._transport = cast(asyncio.Transport, transport)
        self._peer = peer_name(transport)
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(self._context.shared.limits.handshake_timeout, self._too_late)

    def data_received(self, data: bytes) -> None:
        """Looks at the token once it is complete."""
        transport = self._transport
        if transport is None:
            return
        try:
            found = self._parser.feed(data)
            if found is None:
                return
            shown, rest = found
            grant = self._context.access.authority.admit(shown.token)
        except (FrameError, RendezvousPermissionError) as error:
            self._refuse(error)
            return
        self.connection_lost(None)
        answer = encode(LoggedIn(min(login.VERSION, shown.version), grant))
        self.traffic.sent += len(answer)
        transport.write(answer)
        self._become(store_connection(self._context, grant), rest)

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the wait."""
        self._transport = None
        if self._deadline is not None:
            self._deadline.cancel()

    def _refuse(self, error: RendezvousError) -> None:
        self._context.shared.throttle.failed(self._peer, error.message)
        transport = self._transport
        self.connection_lost(None)
        if transport is not None:
            transport.write(encode(failure(0, error)))
            transport.close()

    def _too_late(self) -> None:
        seconds = self._context.limits.handshake_timeout
        self._refuse(FrameError(f"its login was not complete after {seconds:g} s"))


def store_connection(context: ServerContext, grant: Grant = EVERYTHING) -> C10dConnection:
    """Makes the connection of a client of the store, which may do what `grant` says."""
    settings = C10dSettings(handshake_timeout=context.limits.handshake_timeout)
    return C10dConnection(context.keys, context.shared, settings, grant)


class TcpListener(ServerListener):
    """Hands each connection to the protocol that it speaks."""

    def __init__(self, context: ServerContext, *, embedded: bool = False) -> None:
        super().__init__(context, "tcp")
        self.connections: set[TcpConnection] = set()
        self.sessions = SessionContext(context, Welcome(VERSION, context.server_id, embedded))

    def dismiss(self) -> None:
        """Breaks off the connections of those whose tokens have been withdrawn."""
        for connection in list(self.connections):
            connection.dismiss()

    def _connection(self, *, counted: bool = False) -> TcpConnection:
        return TcpConnection(self, counted=counted)

    async def _end(self) -> None:
        self.sessions.late.close()
        self.context.shared.close()
        for connection in list(self.connections):
            connection.abort()


ServerProtocol: TypeAlias = NativeSession | C10dConnection | StoreLogin


class TcpConnection(SharedBufferProtocol):
    """A connection until its first byte has come, and the record of it afterwards."""

    def __init__(self, listener: TcpListener, *, counted: bool = False) -> None:
        self._listener = listener
        self._context = listener.context
        self._counted = counted
        self._transport: asyncio.Transport | None = None
        self._protocol: ServerProtocol | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._peer = "?"
        self._traffic: ProtocolCounts | None = None
        self._refused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Counts the connection, or refuses it."""
        self._transport = cast(asyncio.Transport, transport)
        self._peer = peer_name(transport)
        let_go_in_children(transport)
        if not (self._counted or self._context.admission.enter(self._peer)):
            self._transport.abort()
            return
        self._listener.connections.add(self)
        set_no_delay(transport)
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(self._context.shared.limits.handshake_timeout, self._too_late)

    def data_received(self, data: bytes) -> None:
        """Picks the protocol at the first byte; then passes on all that comes."""
        admission = self._context.admission
        if admission.office is not None and admission.is_deposed:
            self.abort()
            return
        if self._refused:
            return
        if self._protocol is None:
            self._cancel_deadline()
            protocol = self._choose(data[0])
            if protocol is None:
                return
            self._traffic = admission.traffic["native" if data[0] == PREFACE[0] else "c10d"]
            self._traffic.opened += 1
            self._take_up(protocol)
        if self._traffic is not None:
            self._traffic.received += len(data)
        if self._protocol is not None:
            self._protocol.data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets the connection."""
        if self in self._listener.connections:
            self._listener.connections.remove(self)
            self._context.admission.leave()
        if self._traffic is not None:
            self._traffic.closed += 1
        self._cancel_deadline()
        if self._protocol is not None:
            self._protocol.connection_lost(exc)
        self._transport = None

    def pause_writing(self) -> None:
        """Passes on back-pressure."""
        if self._protocol is not None:
            self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """Passes on the end of back-pressure."""
        if self._protocol is not None:
            self._protocol.resume_writing()

    def abort(self) -> None:
        """Closes the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    def dismiss(self) -> None:
        """Closes the connection if what the peer was granted is granted no more."""
        if self._protocol is not None and not self._context.access.authority.still_grants(
            self._protocol.grant
        ):
            self._context.shared.throttle.dropped(self._peer, "its token has been withdrawn")
            self.abort()

    def _take_up(self, protocol: ServerProtocol, data: bytes = b"") -> None:
        """Hands the connection over to `protocol`, and `data` with it."""
        assert self._transport is not None  # noqa: S101 - data has come
        self._protocol = protocol
        if self._traffic is not None:
            protocol.traffic = self._traffic
        protocol.connection_made(self._transport)
        if data:
            protocol.data_received(data)

    def _choose(self, first: int) -> ServerProtocol | None:
        context = self._context
        if first == PREFACE[0]:
            return NativeSession(self._listener.sessions)
        if first == login.PREFACE[0]:
            return StoreLogin(context, self._take_up)
        if first == VALIDATE and (context.access.plain_stores or not context.access.authority.asks):
            return store_connection(context)
        self._refuse(first)
        return None

    def _refuse(self, first: int) -> None:
        assert self._transport is not None  # noqa: S101 - data has come
        self._refused = True
        refusal = self._context.listeners.refusal_at_tcp(first, own_address(self._transport))
        if refusal is not None:
            why = refusal.why
            self._deadline = refuse(self._transport, refusal.answer)
        else:
            why = f"it began with the byte 0x{first:02x}, which no protocol here does"
            self._transport.close()
        self._context.shared.throttle.failed(self._peer, _TOKENLESS if first == VALIDATE else why)

    def _too_late(self) -> None:
        seconds = self._context.limits.handshake_timeout
        self._context.shared.throttle.dropped(self._peer, f"it said nothing for {seconds:g} s")
        self.abort()

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

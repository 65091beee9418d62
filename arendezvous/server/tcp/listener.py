"""The TCP listener: accepts connections and tells the protocols apart by their first byte."""

from __future__ import annotations

import asyncio
from typing import Final, cast

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


class TcpConnection(SharedBufferProtocol):
    """A connection until it is known who speaks, and the record of it afterwards.

    Its fields:
        _counted: Whether it has been counted already.
        _transport: None before the connection is made, and once it is over.
        _login: Waits for the token of a client of our own store; None: this is none, or it has been let in.
        _protocol: Speaks with the peer; None before it is known who that is.
        _deadline: The time that the peer has to say so, or to go where it belongs.
        _traffic: Where the bytes are counted; None before the first.
        _refused: Whether what still comes is let pass.
    """

    def __init__(self, listener: TcpListener, *, counted: bool = False) -> None:
        self._listener = listener
        self._context = listener.context
        self._counted = counted
        self._transport: asyncio.Transport | None = None
        self._login: LoginParser | None = None
        self._protocol: NativeSession | C10dConnection | None = None
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
        loop, seconds = asyncio.get_running_loop(), self._context.shared.limits.handshake_timeout
        self._deadline = loop.call_later(seconds, self._too_late)

    def data_received(self, data: bytes) -> None:
        """Picks the protocol at the first byte; then passes on all that comes."""
        admission = self._context.admission
        if admission.office is not None and admission.is_deposed:
            self.abort()
            return
        if self._refused:
            return
        if self._traffic is None and not self._choose(data[0]):
            return
        assert self._traffic is not None  # noqa: S101 - it is known
        self._traffic.received += len(data)
        if self._login is not None:
            self._log_in(self._login, data)
        elif self._protocol is not None:
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

    def _choose(self, first: int) -> bool:
        """Picks the protocol; False: the peer belongs elsewhere, and has been told so."""
        self._cancel_deadline()
        access, traffic = self._context.access, self._context.admission.traffic
        if first == PREFACE[0]:
            self._traffic = traffic["native"]
            self._take_up(NativeSession(self._listener.sessions))
        elif first == login.PREFACE[0]:
            self._traffic, self._login = traffic["c10d"], LoginParser()
            loop, seconds = asyncio.get_running_loop(), self._context.shared.limits.handshake_timeout
            self._deadline = loop.call_later(seconds, self._too_late)
        elif first == VALIDATE and (access.plain_stores or not access.authority.asks):
            self._traffic = traffic["c10d"]
            self._take_up(self._store_connection(EVERYTHING))
        else:
            self._refuse(first)
            return False
        self._traffic.opened += 1
        return True

    def _take_up(self, protocol: NativeSession | C10dConnection) -> None:
        assert self._transport is not None and self._traffic is not None  # noqa: S101, PT018 - data has come
        self._protocol = protocol
        protocol.traffic = self._traffic
        protocol.connection_made(self._transport)

    def _store_connection(self, grant: Grant) -> C10dConnection:
        settings = C10dSettings(handshake_timeout=self._context.shared.limits.handshake_timeout)
        return C10dConnection(self._context.keys, self._context.shared, settings, grant)

    def _log_in(self, parser: LoginParser, data: bytes) -> None:
        """Looks at the token once it is complete."""
        try:
            found = parser.feed(data)
            if found is None:
                return
            shown, rest = found
            grant = self._context.access.authority.admit(shown.token)
        except (FrameError, RendezvousPermissionError) as error:
            self._refuse_login(error)
            return
        self._cancel_deadline()
        self._login = None
        self._send(encode(LoggedIn(min(login.VERSION, shown.version), grant)))
        self._take_up(self._store_connection(grant))
        if rest and self._protocol is not None:
            self._protocol.data_received(rest)

    def _refuse_login(self, error: RendezvousError) -> None:
        self._context.shared.throttle.failed(self._peer, error.message)
        self._refused = True
        self._cancel_deadline()
        if self._transport is not None:
            self._send(encode(failure(0, error)))
            self._transport.close()

    def _send(self, frame: bytes) -> None:
        if self._transport is not None and self._traffic is not None:
            self._traffic.sent += len(frame)
            self._transport.write(frame)

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
        seconds = self._context.shared.limits.handshake_timeout
        if self._login is not None:
            self._refuse_login(FrameError(f"its login was not complete after {seconds:g} s"))
        else:
            self._context.shared.throttle.dropped(self._peer, f"it said nothing for {seconds:g} s")
            self.abort()

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

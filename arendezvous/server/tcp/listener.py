"""The TCP listener: accepts connections and tells the protocols apart by their first byte."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Callable
from typing import Final, TypeAlias, cast

from arendezvous.coordinator.coordinator import Coordinator
from arendezvous.coordinator.late_answers import LateAnswers
from arendezvous.errors import RendezvousError, RendezvousPermissionError
from arendezvous.keyspace.grants import EVERYTHING, Grant
from arendezvous.keyspace.host import KeyspaceHost
from arendezvous.net.endpoint import join_host_port
from arendezvous.net.forks import let_go_in_children
from arendezvous.net.shared_buffer import SharedBufferProtocol
from arendezvous.server.access.admission import Admission, ProtocolCounts
from arendezvous.server.access.authority import Access, Authority
from arendezvous.server.access.limits import ServerLimits
from arendezvous.server.binding import listen, stop_listening
from arendezvous.server.misdirected import Listeners, own_address, refuse
from arendezvous.server.tcp.answers import Answers
from arendezvous.server.tcp.c10d import C10dConnection, C10dSettings
from arendezvous.server.tcp.runs_watching import RunsWatching
from arendezvous.server.tcp.session import NativeSession, SessionContext
from arendezvous.server.tcp.sharing import Shared
from arendezvous.server.tcp.watching import Watching
from arendezvous.server.tls import ServerTls, TlsListener
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

    Args:
        host: The keys.
        peer: The other end, for the log.
        settings: What is taken from one client; its handshake time-out is that of the login, too.
        access: Who may come in.
        shared: What it will share with other connections.
        become: Takes over the connection, and the bytes that have come after the login.

    Attributes:
        grant: What the peer may do: all that it can do here is to show its token.
        traffic: Where the bytes that are sent are counted.
    """

    def __init__(
        self,
        host: KeyspaceHost,
        peer: str,
        settings: C10dSettings,
        access: Access,
        shared: Shared,
        become: Callable[[C10dConnection, bytes], None],
    ) -> None:
        self.grant: Grant = EVERYTHING
        self.traffic = ProtocolCounts()
        self._host = host
        self._peer = peer
        self._settings = settings
        self._access = access
        self._shared = shared
        self._become = become
        self._parser = LoginParser()
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begins to wait for the token."""
        self._transport = cast(asyncio.Transport, transport)
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(self._settings.handshake_timeout, self._too_late)

    def data_received(self, data: bytes) -> None:
        """Looks at the token once it is complete."""
        if self._transport is None:
            return
        try:
            found = self._parser.feed(data)
            if found is None:
                return
            shown, rest = found
            grant = self._access.authority.admit(shown.token)
        except (FrameError, RendezvousPermissionError) as error:
            self._refuse(error)
            return
        transport = self._transport
        self._forget()
        answer = encode(LoggedIn(min(login.VERSION, shown.version), grant))
        self.traffic.sent += len(answer)
        transport.write(answer)
        self._become(C10dConnection(self._host, self._shared, self._peer, self._settings, grant), rest)

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the wait."""
        self._forget()

    def _refuse(self, error: RendezvousError) -> None:
        self._access.throttle.failed(self._peer, error.message)
        transport = self._transport
        self._forget()
        if transport is not None:
            transport.write(encode(failure(0, error)))
            transport.close()

    def _too_late(self) -> None:
        self._refuse(FrameError(f"its login was not complete after {self._settings.handshake_timeout:g} s"))

    def _forget(self) -> None:
        self._transport = None
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class TcpServer:
    """Accepts connections on one address and hands each to the protocol that it speaks.

    Args:
        coordinator: Where the runs are.
        keys: The key-value store.
        limits: What it takes on.
        admission: Counts connections together with the other listeners.
        embedded: Whether a node hosts it.
        access: Who may come in.
        tls: The settings of TLS; None serves without.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        keys: KeyspaceHost,
        limits: ServerLimits,
        admission: Admission,
        *,
        embedded: bool = False,
        access: Access | None = None,
        tls: ServerTls | None = None,
    ) -> None:
        self.coordinator = coordinator
        self.keys = keys
        self.limits = limits
        self.admission = admission
        self.c10d = C10dSettings(handshake_timeout=limits.handshake_timeout)
        self.welcome = Welcome(VERSION, secrets.token_hex(8), embedded)
        self.listeners = Listeners(self.welcome.server, secure=tls is not None)
        self.connections: set[TcpConnection] = set()
        self.access = access or Access()
        self.shared = Shared(limits, self.access.throttle)
        self.sessions = SessionContext(
            coordinator,
            self.welcome,
            self.access,
            self.shared,
            LateAnswers(coordinator, asyncio.get_running_loop()),
            Answers.in_messages(coordinator),
            Watching(coordinator, self.shared.turns),
            RunsWatching(coordinator, self.shared.turns),
        )
        self._tls = tls
        self._server: asyncio.Server | TlsListener | None = None

    async def start(self, host: str, port: int) -> tuple[str, int]:
        """Listens on `host` and `port` (0 picks one) and returns the address.

        Raises:
            RendezvousConnectionError: The address cannot be bound; its cause tells why.
        """
        if self._tls is None:
            self._server = await listen(lambda: TcpConnection(self), host, port)
        else:
            throttle = self.access.throttle
            self._server = TlsListener(
                self._tls,
                self.admission,
                self.limits,
                self._make_admitted,
                self.listeners.plain_answer,
                throttle,
            )
            await self._server.open(host, port)
        self.admission.listeners["tcp"] = self._server.is_serving
        bound = self._server.sockets[0].getsockname()
        self.listeners.ports["tcp"] = bound[1]
        return bound[0], bound[1]

    async def stop(self) -> None:
        """Stops accepting, and closes all connections; what a peer has not read by then is lost."""
        try:
            if isinstance(self._server, TlsListener):
                await self._server.close()
            elif self._server is not None:
                await stop_listening(self._server)
        finally:
            self.sessions.late.close()
            self.shared.close()
            for connection in list(self.connections):
                connection.abort()
        await asyncio.sleep(0)  # lets the transports tell their protocols

    def _make_admitted(self) -> TcpConnection:
        return TcpConnection(self, admitted=True)

    def dismiss(self) -> None:
        """Breaks off the connections of those whose tokens have been withdrawn."""
        for connection in list(self.connections):
            connection.dismiss(self.access.authority)


ServerProtocol: TypeAlias = NativeSession | C10dConnection | StoreLogin


class TcpConnection(SharedBufferProtocol):
    """A connection until its first byte has come, and the record of it afterwards.

    Args:
        server: Where it has arrived.
        admitted: Whether it has been counted already.
    """

    def __init__(self, server: TcpServer, *, admitted: bool = False) -> None:
        self._server = server
        self._admitted = admitted
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
        if not (self._admitted or self._server.admission.enter(self._peer)):
            self._transport.abort()
            return
        self._server.connections.add(self)
        set_no_delay(transport)
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(self._server.limits.handshake_timeout, self._too_late)

    def data_received(self, data: bytes) -> None:
        """Picks the protocol at the first byte; then passes on all that comes."""
        if self._server.admission.office is not None and self._server.admission.is_deposed:
            self.abort()
            return
        if self._refused:
            return
        if self._protocol is None:
            self._cancel_deadline()
            self._protocol = self._choose(data[0])
            if self._protocol is None:
                return
            assert self._transport is not None  # noqa: S101 - data comes after connection_made
            self._count(data[0])
            self._protocol.connection_made(self._transport)
        if self._traffic is not None:
            self._traffic.received += len(data)
        self._protocol.data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets the connection."""
        if self in self._server.connections:
            self._server.connections.remove(self)
            self._server.admission.leave()
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

    def dismiss(self, authority: Authority) -> None:
        """Closes the connection if what the peer was granted is granted no more."""
        if self._protocol is not None and not authority.still_grants(self._protocol.grant):
            self._server.access.throttle.dropped(self._peer, "its token has been withdrawn")
            self.abort()

    def become(self, protocol: C10dConnection, data: bytes) -> None:
        """Hands the connection over to `protocol`, and `data` with it."""
        assert self._transport is not None  # noqa: S101 - data has come
        self._protocol = protocol
        if self._traffic is not None:
            protocol.traffic = self._traffic
        protocol.connection_made(self._transport)
        if data:
            protocol.data_received(data)

    def _choose(self, first: int) -> ServerProtocol | None:
        server = self._server
        if first == PREFACE[0]:
            return NativeSession(server.sessions, self._peer)
        if first == login.PREFACE[0]:
            return StoreLogin(server.keys, self._peer, server.c10d, server.access, server.shared, self.become)
        if first == VALIDATE and (server.access.plain_stores or not server.access.authority.asks):
            return C10dConnection(server.keys, server.shared, self._peer, server.c10d)
        self._refuse(first)
        return None

    def _refuse(self, first: int) -> None:
        assert self._transport is not None  # noqa: S101 - data has come
        self._refused = True
        refusal = self._server.listeners.refusal_at_tcp(first, own_address(self._transport))
        if refusal is not None:
            why = refusal.why
            self._deadline = refuse(self._transport, refusal.answer)
        else:
            why = f"it began with the byte 0x{first:02x}, which no protocol here does"
            self._transport.close()
        self._server.access.throttle.failed(self._peer, _TOKENLESS if first == VALIDATE else why)

    def _count(self, first: int) -> None:
        traffic = self._server.admission.traffic
        self._traffic = traffic.native if first == PREFACE[0] else traffic.c10d
        self._traffic.opened += 1
        if self._protocol is not None:
            self._protocol.traffic = self._traffic

    def _too_late(self) -> None:
        seconds = self._server.limits.handshake_timeout
        self._server.access.throttle.dropped(self._peer, f"it said nothing for {seconds:g} s")
        self.abort()

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def peer_name(transport: asyncio.BaseTransport) -> str:
    """The other end's address as text; never asks DNS."""
    peer = transport.get_extra_info("peername")
    return join_host_port(peer[0], peer[1]) if isinstance(peer, tuple) and len(peer) >= 2 else "a peer"


def set_no_delay(transport: asyncio.BaseTransport) -> None:
    """Has small messages sent at once, and peers looked after that are silent for hours."""
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # a peer may vanish without a word

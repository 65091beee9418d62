"""The TCP door: accepts connections and tells the protocols apart by their first byte."""

from __future__ import annotations

import asyncio
import errno
import logging
import secrets
import socket
from typing import Final, cast

from arendezvous.coordinator import Coordinator
from arendezvous.endpoint import join_host_port
from arendezvous.errors import RendezvousConnectionError
from arendezvous.keyspace_host import KeyspaceHost
from arendezvous.server.c10d import C10dConnection, C10dSettings
from arendezvous.server.limits import ServerLimits
from arendezvous.server.session import NativeSession
from arendezvous.shared_buffer import SharedBufferProtocol
from arendezvous.wire.native import PREFACE, VERSION, Welcome

logger = logging.getLogger(__name__)

BACKLOG: Final = 4096  # connections that wait to be accepted
VALIDATE: Final = 0  # the opcode with which every client of the TCPStore protocol begins


class TcpServer:
    """Accepts connections on one address and hands each to the protocol that it speaks.

    Args:
        coordinator: Where the runs are.
        keys: The key-value store.
        limits: What it takes on.
        embedded: Whether a node hosts it.
    """

    def __init__(
        self, coordinator: Coordinator, keys: KeyspaceHost, limits: ServerLimits, *, embedded: bool = False
    ) -> None:
        self.coordinator = coordinator
        self.keys = keys
        self.limits = limits
        self.c10d = C10dSettings(
            write_high_water=limits.write_high_water,
            write_limit=limits.write_limit,
            handshake_timeout=limits.handshake_timeout,
        )
        self.welcome = Welcome(VERSION, secrets.token_hex(8), embedded)
        self.connections: set[Connection] = set()
        self._server: asyncio.Server | None = None
        self._stopped = False
        self._refused = 0

    async def start(self, host: str, port: int) -> tuple[str, int]:
        """Listens on `host` and `port` (0 picks one) and returns the address.

        Raises:
            RendezvousConnectionError: The address cannot be bound; its cause tells why.
        """
        loop = asyncio.get_running_loop()
        try:
            if host == "::":  # asyncio would keep IPv4 out of it
                sock = socket.create_server((host, port), family=socket.AF_INET6, dualstack_ipv6=True)
                self._server = await loop.create_server(lambda: Connection(self), sock=sock, backlog=BACKLOG)
            else:
                self._server = await loop.create_server(lambda: Connection(self), host, port, backlog=BACKLOG)
        except OSError as error:
            why = "it is in use" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
            message = (
                f"cannot listen on {join_host_port(host, port)}: {why}; choose another address or port 0"
            )
            raise RendezvousConnectionError(
                message, endpoint=join_host_port(host, port), doing="listening"
            ) from error
        bound = self._server.sockets[0].getsockname()
        return bound[0], bound[1]

    async def stop(self) -> None:
        """Stops accepting, and closes all connections; what a peer has not read by then is lost.

        Cancellation: safe; the rest happens all the same.
        """
        self._stopped = True
        if self._server is not None:
            self._server.close()
        for connection in list(self.connections):
            connection.abort()
        await asyncio.sleep(0)  # lets the transports tell their protocols

    def admits(self, peer: str) -> bool:
        """Whether one more connection is welcome; logs the first that is not, then each doubling."""
        if self._stopped:
            return False  # it was accepted just before the server was stopped
        if len(self.connections) < self.limits.max_connections:
            return True
        self._refused += 1
        if self._refused & (self._refused - 1) == 0:
            limit = self.limits.max_connections
            logger.warning(
                "%s: refused: %d connections are open; refused so far: %d", peer, limit, self._refused
            )
        return False


class Connection(SharedBufferProtocol):
    """A connection until its first byte has come, and the record of it afterwards."""

    def __init__(self, server: TcpServer) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._protocol: SharedBufferProtocol | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._peer = "?"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Counts the connection, or refuses it."""
        self._transport = cast(asyncio.Transport, transport)
        self._peer = peer_name(transport)
        if not self._server.admits(self._peer):
            self._transport.abort()
            return
        self._server.connections.add(self)
        set_no_delay(transport)
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(self._server.limits.handshake_timeout, self._too_late)

    def data_received(self, data: bytes) -> None:
        """Picks the protocol at the first byte; then passes on all that comes."""
        if self._protocol is None:
            self._cancel_deadline()
            self._protocol = self._choose(data[0])
            if self._protocol is None:
                return
            assert self._transport is not None  # noqa: S101 - data comes after connection_made
            self._protocol.connection_made(self._transport)
        self._protocol.data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets the connection."""
        self._server.connections.discard(self)
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

    def _choose(self, first: int) -> SharedBufferProtocol | None:
        server = self._server
        if first == PREFACE[0]:
            return NativeSession(server.coordinator, server.welcome, server.limits, self._peer)
        if first == VALIDATE:
            return C10dConnection(server.keys, self._peer, server.c10d)
        logger.warning(
            "%s: dropped: it began with the byte 0x%02x, which no protocol here does", self._peer, first
        )
        if self._transport is not None:
            self._transport.close()
        return None

    def _too_late(self) -> None:
        logger.info(
            "%s: dropped: it said nothing for %g s", self._peer, self._server.limits.handshake_timeout
        )
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

"""The server's side of a login: a client of the store shows its token before it speaks the c10d protocol."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from arendezvous.errors import RendezvousError, RendezvousPermissionError
from arendezvous.keyspace.grants import EVERYTHING, Grant
from arendezvous.keyspace.host import KeyspaceHost
from arendezvous.net.shared_buffer import SharedBufferProtocol
from arendezvous.server.access.authority import Access
from arendezvous.server.counts import ProtocolCounts
from arendezvous.server.tcp.c10d import C10dConnection, C10dSettings
from arendezvous.server.tcp.sharing import Shared
from arendezvous.wire.native.login import VERSION, LoggedIn, LoginParser, encode_answer
from arendezvous.wire.native.messages import FrameError, failure


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
            login, rest = found
            grant = self._access.authority.admit(login.token)
        except (FrameError, RendezvousPermissionError) as error:
            self._refuse(error)
            return
        transport = self._transport
        self._forget()
        answer = encode_answer(LoggedIn(min(VERSION, login.version), grant))
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
            transport.write(encode_answer(failure(0, error)))
            transport.close()

    def _too_late(self) -> None:
        self._refuse(FrameError(f"its login was not complete after {self._settings.handshake_timeout:g} s"))

    def _forget(self) -> None:
        self._transport = None
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

"""Opening a connection to a store server: TLS, the token, the greeting; whatever the server asks for."""

from __future__ import annotations

import asyncio
import secrets
import ssl

from arendezvous.errors import RendezvousConnectionError
from arendezvous.keyspace.grants import Grant
from arendezvous.keyspace.messages import Ping
from arendezvous.net.credentials import Credentials
from arendezvous.net.endpoint import join_host_port
from arendezvous.net.servers import Locator, Place
from arendezvous.net.shared_buffer import SharedBufferProtocol
from arendezvous.net.tls import ALERT, TlsNames, explain, speaks_no_tls
from arendezvous.stores.tcp.connection import ConnectionGone, StoreConnection
from arendezvous.wire.http.names import HTTP, SPEAKS_HTTP
from arendezvous.wire.native.login import AnswerParser, LoggedIn, encode_login
from arendezvous.wire.native.messages import FrameError, error_of


class Dialer:
    """Opens connections to one server.

    Args:
        servers: Where the server is, or those that stand in for each other.
        read_timeout: Seconds that the server may take to answer.
        credentials: The token, if it is to be shown, and the TLS settings.

    Raises:
        RendezvousSettingsError: A file of the TLS settings cannot be read, or holds something else.
    """

    def __init__(self, servers: Locator, read_timeout: float, credentials: Credentials) -> None:
        self._servers = servers
        self._read_timeout = read_timeout
        self._credentials = credentials
        self._tls = credentials.fresh_context()

    async def open(self) -> StoreConnection:
        """Connects, greets, and waits for the echo of a ping.

        Raises:
            OSError: There is no connection to be had.
            ConnectionGone: Whoever is there broke off, or does not speak the protocol.
            RendezvousPermissionError: The server does not know the token.
            RendezvousConnectionError: The server's certificate is not to be trusted.

        Cancelling is safe: the connection is closed.
        """
        place = await self._servers.locate()
        try:
            return await self._open(place)
        except (OSError, ConnectionGone, TimeoutError):
            self._servers.failed(place)
            raise

    async def _open(self, place: Place) -> StoreConnection:
        try:
            link = await self._connect(place)
        except ssl.SSLCertVerificationError as error:
            where = join_host_port(*place)
            message = f"{where} cannot be trusted: {explain(error, self._credentials.names)}"
            raise RendezvousConnectionError(message, endpoint=where, doing="connecting") from error
        except ssl.SSLError as error:
            said = explain(error, self._credentials.names)
            raise ConnectionGone(said, final=speaks_no_tls(error)) from error
        nonce = secrets.randbits(32)
        try:
            pong = await link.ask(Ping(nonce))
        except BaseException:
            link.close()
            raise
        if pong.nonce != nonce:
            link.close()
            if pong.nonce == int.from_bytes(HTTP, "little"):
                raise ConnectionGone(f"what is there {SPEAKS_HTTP}", final=True)
            if pong.nonce.to_bytes(4, "little")[0] == ALERT:
                raise ConnectionGone(f"it answers with TLS: give {self._credentials.names.ca}", final=True)
            raise ConnectionGone(
                f"the answer to a ping was {pong.nonce:#x} instead of {nonce:#x}: not a TCPStore?"
            )
        return link

    async def _connect(self, place: Place) -> StoreConnection:
        loop = asyncio.get_running_loop()
        tls = self._credentials.connecting(self._tls, self._read_timeout)
        if not self._credentials.token:
            _, link = await loop.create_connection(lambda: StoreConnection(self._read_timeout), *place, **tls)
            return link
        transport, login = await loop.create_connection(
            lambda: _LoginProtocol(self._credentials.names), *place, **tls
        )
        try:
            transport.write(encode_login(self._credentials.token))
            async with asyncio.timeout(self._read_timeout):
                grant = await login.answer
        except BaseException:
            transport.abort()
            raise
        link = StoreConnection(self._read_timeout)
        if not grant.is_everything:
            link.grant = grant
        transport.set_protocol(link)
        link.connection_made(transport)
        return link


class _LoginProtocol(SharedBufferProtocol):
    """Waits for the answer to a login."""

    def __init__(self, names: TlsNames) -> None:
        self._names = names
        self.answer: asyncio.Future[Grant] = asyncio.get_running_loop().create_future()
        self._parser = AnswerParser()

    def data_received(self, data: bytes) -> None:
        if self.answer.done():
            return
        try:
            answer = self._parser.feed(data)
        except FrameError as error:
            said = f"the answer to the token was none of an arendezvous server: {error}"
            if is_tls := data[0] == ALERT:
                said = f"it answers with TLS: give {self._names.ca}"
            self._fail(ConnectionGone(said, final=is_tls or data.startswith(HTTP)))
            return
        if isinstance(answer, LoggedIn):
            self.answer.set_result(answer.grant)
        elif answer is not None:
            self._fail(error_of(answer))

    def connection_lost(self, exc: Exception | None) -> None:
        why = explain(exc, self._names) or str(exc) if exc else "the server closed the connection"
        hint = "only an arendezvous server takes a token: leave it out for a plain TCPStore"
        self._fail(ConnectionGone(f"{why} when it was shown the token; {hint}"))

    def _fail(self, error: Exception) -> None:
        if self.answer.done():
            return
        self.answer.set_exception(error)
        self.answer.exception()  # looked at: no complaint if nobody waits any more

"""Requests and streams of events to one server, over connections that all backends of an event loop share."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit

import msgspec

from arendezvous import errors
from arendezvous.backends.http.connection import EventSource, HttpConnection
from arendezvous.backends.http.pool import HttpPool, Origin, close_pool, open_pool
from arendezvous.backends.http.reply import Reply
from arendezvous.errors import RendezvousError, RendezvousPermissionError
from arendezvous.net.credentials import Credentials
from arendezvous.net.tls import explain
from arendezvous.stores.http.client import checked_url, proxy_of
from arendezvous.wire.http.http1 import encode_request
from arendezvous.wire.http.names import SERVER_HEADER
from arendezvous.wire.native.messages import Failed, FrameError, error_of

Headers: TypeAlias = dict[str, str]

_SERVER: Final = SERVER_HEADER.lower()
_STREAM: Final = {"Accept": "text/event-stream"}
_JSON: Final = {"Content-Type": "application/json"}
_PASSING: Final = frozenset({408, 425, 429, 500, 502, 503, 504})  # statuses that trying again may help with


class UnansweredError(Exception):
    """A request got no answer of an arendezvous server, at least this time.

    Attributes:
        distrusted: The server's certificate is not trusted: trying again is of no use.
    """

    def __init__(self, reason: str, *, distrusted: bool = False) -> None:
        super().__init__(reason)
        self.distrusted = distrusted


class Answer(msgspec.Struct, frozen=True):
    """An answer.

    Attributes:
        status: Its status.
        server: Which start of the server gave it.
        body: Its body.
    """

    status: int
    server: str
    body: bytes

    @property
    def is_good(self) -> bool:
        """Whether the request was carried out."""
        return self.status < 300

    @property
    def problem(self) -> dict[str, Any]:
        """What the body says about a problem; empty if it is no JSON."""
        try:
            return msgspec.json.decode(self.body, type=dict[str, Any])
        except msgspec.DecodeError:
            return {}

    @property
    def kind(self) -> str:
        """The kind of the problem; empty if there is none."""
        return "" if self.is_good else str(self.problem.get("type", "")).rpartition(":")[2]

    def error(self) -> RendezvousError:
        """The error that a refusal stands for."""
        problem = self.problem
        detail = str(problem.get("detail") or f"the server answered with the status {self.status}")
        if self.status == 401 or self.kind in ("forbidden", "cross-origin"):
            return RendezvousPermissionError(detail, authenticated=self.status == 403)
        name, data = problem.get("error"), problem.get("data")
        if isinstance(name, str) and isinstance(data, dict) and hasattr(errors, name):
            return error_of(Failed(0, name, detail, data))
        return RendezvousError(detail)


class HttpLink:
    """The way to one server. Opened by whoever uses it.

    Args:
        url: The server's base URL.
        credentials: The token, and the TLS settings.

    Attributes:
        url: The server's base URL.
        address: The address of this machine on the way to the server; empty until there was an answer.

    Raises:
        RendezvousSettingsError: The URL is none, or not of TLS though the credentials ask for that; or the
            environment names a proxy that is none.
    """

    def __init__(self, url: str, credentials: Credentials) -> None:
        self.url = checked_url(url, credentials)
        self.credentials = credentials
        self.address = ""
        self._origin = Origin(self.url, proxy_of(self.url))
        parts = urlsplit(self.url)
        proxy = self._origin.proxy
        absolute = proxy is not None and not self._origin.tls
        self._base = self.url if absolute else parts.path
        self._headers = {"Host": parts.netloc, "User-Agent": "arendezvous", **credentials.headers()}
        if absolute and proxy is not None:
            self._headers |= proxy.headers
        self._pool: HttpPool | None = None
        self._busy: set[HttpConnection] = set()

    def open(self) -> None:
        """Begins to use the shared connections."""
        self._pool = open_pool(self.credentials)

    def close(self) -> None:
        """Ends the use, and breaks off what is under way; the last one closes the connections."""
        pool, self._pool = self._pool, None
        for connection in list(self._busy):
            connection.abort("the backend was closed meanwhile")
        if pool is not None:
            close_pool(self.credentials, pool)

    async def request(
        self, method: str, path: str, body: bytes = b"", headers: Headers | None = None, *, limit: float
    ) -> Answer:
        """Sends a request and returns the answer, be it good or bad.

        Args:
            method: The method.
            path: The path and the query, percent-encoded.
            body: The body.
            headers: Further headers.
            limit: Seconds that it may take.

        Raises:
            UnansweredError: There was none in time, or one that a proxy gave for want of the server's.

        Cancellation: whether the request was carried out is then unknown.
        """
        pool, request = self._encoded(method, path, body, headers)
        due = asyncio.get_running_loop().time() + limit
        try:
            await pool.begin_request(due)
            try:
                connection = await pool.take(self._origin, due)
                self._busy.add(connection)
                try:
                    return self.finish(connection, await connection.exchange(method, request, due))
                finally:
                    self._busy.discard(connection)
            finally:
                pool.end_request()
        except (OSError, FrameError) as error:
            raise _unanswered(error, limit) from error

    async def connect(self, path: str, *, limit: float) -> Answer:
        """Makes a connection, which is kept for a stream, and asks for the head of a resource.

        Args:
            path: The path and the query, percent-encoded.
            limit: Seconds that it may take.

        Raises:
            UnansweredError: See `request`.
        """
        answer = await self.stream("HEAD", path, limit=limit)
        assert isinstance(answer, Answer)  # noqa: S101 - the answer to HEAD has no body
        return answer

    async def stream(
        self, method: str, path: str, body: bytes = b"", headers: Headers | None = None, *, limit: float
    ) -> EventSource | Answer:
        """Sends a request for a stream of events; an answer is returned if there is none.

        Raises:
            UnansweredError: See `request`.

        Cancellation: the connection is broken off; whether the request was carried out is then unknown.
        """
        opening = await self.open_stream(method, path, body, headers, limit=limit)
        try:
            return await opening.opened()
        except asyncio.CancelledError:
            opening.abort()
            raise

    async def open_stream(
        self, method: str, path: str, body: bytes = b"", headers: Headers | None = None, *, limit: float
    ) -> Opening:
        """Sends a request for a stream of events; what is returned has to be seen through, or aborted.

        Args:
            method: The method.
            path: The path and the query, percent-encoded.
            body: The body.
            headers: Further headers.
            limit: Seconds until the stream begins.

        Raises:
            UnansweredError: There was no connection to be had in time.

        Cancellation: safe; the request has not been sent.
        """
        pool, request = self._encoded(method, path, body, headers, _STREAM)
        due = asyncio.get_running_loop().time() + limit
        try:
            connection = await pool.take(self._origin, due)
            reply = connection.send(method, request, due, stream=True)
        except (OSError, FrameError) as error:
            raise _unanswered(error, limit) from error
        self._busy.add(connection)
        return Opening(self, connection, reply, limit)

    def _encoded(
        self, method: str, path: str, body: bytes, headers: Headers | None, accept: Headers | None = None
    ) -> tuple[HttpPool, bytes]:
        if self._pool is None:
            raise RuntimeError("the http backend is used outside of its 'async with' block")
        fields = {**self._headers, **(accept or {}), **(headers or {}), **(_JSON if body else {})}
        return self._pool, encode_request(method, self._base + path, fields, body)

    def seen_through(self, connection: HttpConnection) -> None:
        """What was under way over a connection has an answer, or is broken off."""
        self._busy.discard(connection)

    def finish(self, connection: HttpConnection, data: bytes) -> Answer:
        """Takes the answer that has come over a connection, and gives that back.

        Raises:
            UnansweredError: It is not the server's.
        """
        status, server = connection.status, connection.headers.get(_SERVER, "")
        self.address = self.address or connection.local_address()
        if self._pool is None:
            connection.abort("the backend was closed meanwhile")
        else:
            self._pool.give_back(self._origin, connection)
        if status in _PASSING:
            raise UnansweredError(f"the answer has the status {status}")
        if not server and status not in (401, 403):
            raise UnansweredError(f"something answers (status {status}) that is no arendezvous server")
        return Answer(status, server, data)


class Opening:
    """A request for a stream of events, under way.

    Args:
        link: The way to the server.
        connection: The connection.
        reply: The stream, or the answer that there is none.
        limit: Seconds until that.
    """

    def __init__(
        self,
        link: HttpLink,
        connection: HttpConnection,
        reply: Reply[bytes | EventSource],
        limit: float,
    ) -> None:
        self._link = link
        self._connection = connection
        self._reply = reply
        self._limit = limit

    async def opened(self) -> EventSource | Answer:
        """Waits for the stream, or the answer that there is none. Cancellation: safe.

        Raises:
            UnansweredError: See `HttpLink.request`.
        """
        try:
            answer = await self._reply.wait()
        except (OSError, FrameError) as error:
            self._link.seen_through(self._connection)
            raise _unanswered(error, self._limit) from error
        self._link.seen_through(self._connection)
        return answer if isinstance(answer, EventSource) else self._link.finish(self._connection, answer)

    def abort(self) -> None:
        """Breaks the connection off."""
        self._link.seen_through(self._connection)
        self._connection.abort("nobody waits for the answer")


def _unanswered(error: Exception, limit: float) -> UnansweredError:
    reason = explain(error) or str(error) or f"no answer within {limit:g} s"
    return UnansweredError(reason, distrusted=isinstance(error, ssl.SSLCertVerificationError))

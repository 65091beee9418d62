"""The HTTP client of the package: requests and streams of events to one server, by aiohttp.

What is asked, and what comes of an answer, is for others to say. Here is how it gets there: connections and
how long they are kept, TLS that follows its files, the token, proxies, bounds on time and size, and what went
wrong in words. How aiohttp is kept from sending again, and closed, is for our client of etcd, too.
"""

from __future__ import annotations

import asyncio
import io
import socket
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import KW_ONLY, dataclass
from typing import Final, Self
from urllib.parse import urlsplit

import aiohttp
import anyio
from yarl import URL

from arendezvous.errors import RendezvousSettingsError
from arendezvous.net.credentials import NO_CREDENTIALS, Credentials
from arendezvous.net.endpoint import join_host_port
from arendezvous.net.forks import socket_for
from arendezvous.net.proxies import checked_proxy, proxy_of, without_user
from arendezvous.net.reach import Reach
from arendezvous.net.tls import explain, speaks_no_tls
from arendezvous.wire.http.answers import HttpAnswer
from arendezvous.wire.http.names import CLIENT, LISTENER_HEADER, PROTOCOL_HEADER
from arendezvous.wire.http.sse import MAX_EVENT, EventParser, ServerEvent
from arendezvous.wire.native.messages import VERSION, FrameError

CONNECT_TIMEOUT: Final = 5.0  # seconds until there is a connection, with name, proxy and TLS
MAX_IDLE: Final = 30.0  # seconds that a connection is kept: others close idle ones after a minute
MAX_ANSWER: Final = 256 * 1024 * 1024
SLOW: Final = 2.0  # seconds after which another server is asked next, though the asker gave up by itself
SILENCE: Final = 45.0  # seconds after which a stream is over: its server says something every 15
_CLOSING: Final = 1.0
_LARGE: Final = 1 << 16
_DENIED: Final = (401, 403)
_PASSING: Final = frozenset({408, 425, 429, 500, 502, 503, 504})  # statuses that trying again may help with
_PROXY_LOGIN: Final = 407
_RESENT: Final = ("PUT", "DELETE")  # methods of changes that aiohttp would send again by itself
FAULTS: Final = (aiohttp.ClientError, OSError, ValueError)  # ValueError: a header field that cannot be one
_UNSENT: Final = (
    aiohttp.ClientConnectorError,
    aiohttp.ConnectionTimeoutError,
    aiohttp.ClientHttpProxyError,
)
_TIMEOUT: Final = aiohttp.ClientTimeout(total=None, connect=CONNECT_TIMEOUT)
_STREAM_TIMEOUT: Final = aiohttp.ClientTimeout(total=None, connect=CONNECT_TIMEOUT, sock_read=SILENCE)
_WORDS: Final = (
    (aiohttp.ClientHttpProxyError, "the proxy answers CONNECT with the status {0.status}"),
    (aiohttp.ConnectionTimeoutError, f"there was no connection within {CONNECT_TIMEOUT:g} s"),
    (aiohttp.ServerDisconnectedError, "the connection was closed instead"),
    (aiohttp.ClientResponseError, "what comes is not HTTP"),
    (aiohttp.ClientPayloadError, "the answer was broken off"),
)


@dataclass(eq=False, repr=False)
class UnansweredError(Exception):
    """A request got no answer of an arendezvous server, at least this time.

    Attributes:
        reason: Why.
        sent: Whether the request may have been carried out all the same.
        distrusted: Whether the server's certificate is not trusted: trying again is of no use.
        foreign: Whether somebody answers who is no arendezvous server.
        misdirected: Whether the URL is wrong: another protocol is spoken there. Trying again is of no use.
    """

    reason: str
    _: KW_ONLY
    sent: bool
    distrusted: bool = False
    foreign: bool = False
    misdirected: bool = False

    def __str__(self) -> str:
        return self.reason


class HttpClient:
    """Asks one server, in one event loop; any number of requests and streams may be under way at once.

    It connects when it is first used. A change is never sent a second time, and redirects are not followed:
    that is up to the caller, who knows what is safe.

    Args:
        url: The server's base URL, ``http(s)://host[:port][/path]``.
        credentials: The token, and the TLS settings, which follow their files.
        proxy: The URL of the proxy; None: as the environment says; empty: none.
        others: The base URLs of servers that stand in for it: when one gives no answer, the next is asked.

    Attributes:
        url: The server's base URL, with its port; of several, the one that is asked.
        version: Of the protocol, as the server that answered last speaks it.
        reach: Whether the latest request that is over was answered by a server.

    Its fields:
        _others: The base URLs of the others, the next one first.
        _session: Has the connections; None before the first request and after `close`.
        _sockets: Those that were made last; some may be closed.
        _running: What bounds the time of each request that has no answer yet; `close` lets it run out.

    Raises:
        RendezvousSettingsError: A URL is none, or not of TLS though the credentials ask for that; or a file
            of the TLS settings cannot be used.
    """

    def __init__(
        self,
        url: str,
        credentials: Credentials = NO_CREDENTIALS,
        *,
        proxy: str | None = None,
        others: Sequence[str] = (),
    ) -> None:
        self.url = checked_url(url, credentials)
        self._others = deque(checked_url(other, credentials) for other in others)
        if proxy is None:
            self._proxy = proxy_of(self.url)
        else:
            self._proxy = proxy and checked_proxy("proxy", proxy)
        self._tls = credentials.fresh_context()
        self._server_name = credentials.server_name or None
        self._headers = {
            "User-Agent": CLIENT,
            PROTOCOL_HEADER: str(VERSION),
            "Accept-Encoding": "identity",
            **credentials.headers(),
        }
        self._session: aiohttp.ClientSession | None = None
        self._sockets: deque[socket.socket] = deque(maxlen=8)
        self._running: set[asyncio.Timeout] = set()
        self.version = VERSION
        self.reach = Reach()

    @property
    def has_others(self) -> bool:
        """Whether another server may stand in for the one that is asked."""
        return bool(self._others)

    @property
    def address(self) -> str:
        """The address of this machine on the way to the server; empty unless there is a connection."""
        for each in reversed(self._sockets):
            if each.fileno() >= 0:
                return str(each.getsockname()[0])
        return ""

    async def request(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        *,
        limit: float,
    ) -> HttpAnswer:
        """Sends a request and returns the answer, be it good or bad, within `limit` seconds.

        The path and the query are percent-encoded. Cancellation: whether it was carried out is then unknown.

        Raises:
            UnansweredError: There was none in time, or one that something on the way gave for want of the
                server's.
        """
        with self._reaching():
            answer = await self._send(method, path, body, headers, limit)
            assert isinstance(answer, HttpAnswer)  # noqa: S101 - nobody asked for a stream
            return self._judged(answer)

    async def stream(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        *,
        limit: float,
    ) -> EventReader | HttpAnswer:
        """Sends a request for a stream of events, as `request` does; returns the answer if that is none.

        The stream has to be closed. The `limit` is that for its head to come; later it is over once the
        server says nothing for `SILENCE` seconds.
        """
        fields = {"Accept": "text/event-stream", **(headers or {})}
        with self._reaching():
            answer = await self._send(method, path, body, fields, limit, streaming=True)
            return answer if isinstance(answer, EventReader) else self._judged(answer)

    async def look(self, path: str, *, limit: float, most: int) -> HttpAnswer:
        """Returns the answer to a GET, whoever gives it, within `limit` seconds. Cancellation: safe.

        After `most` bytes of the body the rest is left.

        Raises:
            UnansweredError: There was none.
        """
        answer = await self._send("GET", path, b"", None, limit, most=most)
        assert isinstance(answer, HttpAnswer)  # noqa: S101 - nobody asked for a stream
        return answer

    async def close(self) -> None:
        """Breaks off the requests under way, and closes all connections. May be called again."""
        session, self._session = self._session, None
        now = asyncio.get_running_loop().time()
        for timeout in self._running:
            if not timeout.expired():
                timeout.reschedule(now)
        await close_session(session)

    def abort(self) -> None:
        """Closes all connections where nothing can be waited for any more, as when the loop ends."""
        session, self._session = self._session, None
        if session is not None and session.connector is not None:
            closing = session.connector.close()
            session.detach()
            with suppress(StopIteration):
                closing.__await__().send(None)  # it closes them first, and then waits until they are

    def _judged(self, answer: HttpAnswer) -> HttpAnswer:
        """Returns the answer, unless a server that cannot answer now, or somebody else, has given it."""
        status = answer.status
        if self._proxy and not answer.server and status in _DENIED:
            said = f"who answers (status {status}) is no arendezvous server, and lets nobody through"
            raise UnansweredError(said, sent=False, misdirected=True)
        if answer.server:
            self.version = answer.version
        if elsewhere := answer.headers.get(LISTENER_HEADER):
            raise UnansweredError(elsewhere, sent=False, misdirected=True)
        if status in _PASSING:
            detail = f": {answer.detail}" if answer.server else ""
            raise UnansweredError(f"the answer has the status {status}{detail}", sent=True)
        if answer.server or status in _DENIED:
            return answer
        if status == _PROXY_LOGIN:
            raise UnansweredError("the proxy asks who we are", sent=False, foreign=True)
        said = f"something answers (status {status}) that is no arendezvous server"
        raise UnansweredError(said, sent=True, foreign=True)

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        """Notes whether the block gets an answer; if not, turns to the next server.

        The error names the proxy by which the server could not be reached.
        """
        asked, begun = self.url, asyncio.get_running_loop().time()
        try:
            yield
        except asyncio.CancelledError:  # a heartbeat, for one, is given up sooner than it fails
            if asyncio.get_running_loop().time() >= begun + SLOW:
                self._turn_from(asked)
            raise
        except UnansweredError as error:
            self.reach.lose()
            self._turn_from(asked)
            if self._proxy:
                error.reason += f"; the way there is by the proxy {without_user(self._proxy)}"
            raise
        self.reach.find()

    def _turn_from(self, asked: str) -> None:
        if self._others and self.url == asked:
            self._others.append(asked)
            self.url = self._others.popleft()

    async def _send(
        self,
        method: str,
        path: str,
        body: bytes,
        headers: Mapping[str, str] | None,
        limit: float,
        *,
        streaming: bool = False,
        most: int | None = None,
    ) -> EventReader | HttpAnswer:
        session = self._session or self._open_session()
        try:
            async with asyncio.timeout(limit) as running:
                self._running.add(running)
                try:
                    response = await session.request(
                        method,
                        URL(self.url + path, encoded=True),  # else yarl would write it in its own way
                        data=_payload(body) if body else None,
                        headers=headers,
                        ssl=True if self._tls is None else self._tls.get(),
                        server_hostname=self._server_name,
                        proxy=self._proxy or None,
                        allow_redirects=False,
                        timeout=_STREAM_TIMEOUT if streaming else _TIMEOUT,
                        middlewares=_ONCE if method in _RESENT else None,
                    )
                    if streaming and _is_stream(response):
                        return EventReader(response)
                    return HttpAnswer(response.status, response.headers, await _body_of(response, most))
                finally:
                    self._running.discard(running)
        except FAULTS as error:
            if isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ClientError):
                raise UnansweredError(f"nothing has come within {limit:g} s", sent=True) from error
            raise _unanswered(error) from error

    def _open_session(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            limit=0,  # whoever waits for long must not keep others from their requests
            keepalive_timeout=MAX_IDLE,
            use_dns_cache=False,  # a server that has moved is looked for where it is now
            socket_factory=self._make_socket,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            headers=self._headers,
            skip_auto_headers=("Accept", "Content-Type"),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )
        return self._session

    def _make_socket(self, address: aiohttp.AddrInfoType) -> socket.socket:
        self._sockets.append(made := socket_for(address))
        return made


class EventReader(AsyncIterator[ServerEvent]):
    """A stream of events that is open, for one task to iterate; it has to be closed.

    The iteration ends with an error alone. What nobody has taken is bounded: nothing more is read then.
    """

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self._parser = EventParser(MAX_EVENT)
        self._events: deque[ServerEvent] = deque()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ServerEvent:
        """Waits for the next event; `UnansweredError`: the stream is over. Cancelling loses nothing."""
        while not self._events:
            try:
                data = await self._response.content.readany()
                self._events.extend(self._parser.feed(data))
            except aiohttp.SocketTimeoutError as error:
                raise UnansweredError(f"the server said nothing for {SILENCE:g} s", sent=True) from error
            except (*FAULTS, FrameError) as error:
                raise _unanswered(error) from error
            if not data:
                raise UnansweredError("the server ended the stream", sent=True)
        return self._events.popleft()

    def close(self) -> None:
        """Breaks the stream off. May be called again, by any task; whoever waits for an event is told."""
        self._events.clear()
        self._response.close()


async def close_session(session: aiohttp.ClientSession | None) -> None:
    """Closes connections, if there are any, for no longer than a second, even if the caller is cancelled."""
    if session is not None:
        with anyio.move_on_after(_CLOSING, shield=True):
            await session.close()


def once(error_of: Callable[[Exception], Exception]) -> tuple[aiohttp.ClientMiddlewareType]:
    """Makes what keeps aiohttp from sending a request again: it cannot know whether that is safe.

    It turns each fault into another error, which aiohttp takes for no reason to do so.
    """

    async def send(
        request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        try:
            return await handler(request)
        except FAULTS as error:
            raise error_of(error) from error

    return (send,)


def _payload(body: bytes) -> aiohttp.Payload:
    """Makes of a body what is sent; a large one goes piece by piece, with turns of others in between."""
    return aiohttp.IOBasePayload(io.BytesIO(body)) if len(body) > _LARGE else aiohttp.BytesPayload(body)


def _is_stream(response: aiohttp.ClientResponse) -> bool:
    kind = response.headers.get("Content-Type", "")
    return response.status < 300 and kind.startswith("text/event-stream")


async def _body_of(response: aiohttp.ClientResponse, most: int | None) -> bytes:
    """Reads a body: all of it, or with `most` so many bytes and what comes together with them.

    Raises `UnansweredError` if it has more than `MAX_ANSWER` bytes.
    """
    pieces: list[bytes] = []
    size = 0
    try:
        while piece := await response.content.readany():
            pieces.append(piece)
            size += len(piece)
            if most is not None and size >= most:
                break
            if size > MAX_ANSWER:
                raise UnansweredError(f"the answer has more than {MAX_ANSWER} bytes", sent=True)
    finally:
        response.close()  # a connection whose answer is complete is kept all the same
    return b"".join(pieces)


def _unanswered(error: Exception) -> UnansweredError:
    """Says why there is no answer."""
    cause: BaseException = error
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        cause = error.certificate_error
    elif isinstance(error, aiohttp.ClientConnectorError):
        cause = error.os_error
    chain = [each for each in (cause, error.__cause__, error.__context__) if each is not None]
    words = (said.format(error) for kind, said in _WORDS if isinstance(error, kind))
    return UnansweredError(
        next(filter(None, map(explain, chain)), "") or next(words, str(cause) or type(cause).__name__),
        sent=not isinstance(error, _UNSENT),
        distrusted=any(isinstance(each, ssl.SSLCertVerificationError) for each in chain),
        misdirected=any(map(speaks_no_tls, chain)),
    )


_ONCE: Final = once(_unanswered)


def checked_url(url: str, credentials: Credentials) -> str:
    """Returns a base URL with its port, and without a slash at its end.

    Raises `RendezvousSettingsError` if it is none, or not of TLS though the credentials ask for that.
    """
    expected = "the URL of a server's HTTP listener, such as http://host:29401 or https://host/path"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise RendezvousSettingsError.of("url", url, expected) from error
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment or "@" in url:
        raise RendezvousSettingsError.of("url", url, expected)
    if credentials.uses_tls and parts.scheme == "http":
        raise RendezvousSettingsError.of("url", url, "https://..., because TLS is asked for")
    default = 443 if parts.scheme == "https" else 80
    return f"{parts.scheme}://{join_host_port(host, port or default)}{parts.path.rstrip('/')}"

"""Requests to one server's HTTP door: bounded in time and size, and sent again when that is safe.

Every request that changes something has an idempotency key, so the server carries it out once, however often
it is sent. What the key is known for ends with the server: a request that may have been carried out is sent
again with that server's name, and another one refuses it.
"""

from __future__ import annotations

import io
import math
import random
import secrets
import ssl
from typing import Any, Final
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import anyio
import msgspec

from arendezvous.errors import (
    RendezvousConnectionError,
    RendezvousPermissionError,
    RendezvousSettingsError,
    StoreError,
)
from arendezvous.net.credentials import NO_CREDENTIALS, Credentials
from arendezvous.net.endpoint import join_host_port
from arendezvous.wire.http.names import IDEMPOTENCY_HEADER, KEYS, SERVER_HEADER

POLL: Final = 25.0  # seconds that one request waits at most: proxies end those that are silent for a minute
MAX_REQUESTS: Final = 64
_MAX_REPLY: Final = 1 << 28
_LARGE: Final = 1 << 16
_FIRST_PAUSE: Final = 0.02
_LONGEST_PAUSE: Final = 1.0
_LEAST_SECONDS: Final = 0.01
_BUSY: Final = (502, 503, 504)


class Answer(msgspec.Struct, frozen=True):
    """What a server said.

    Attributes:
        status: The status of HTTP.
        body: The body.
        kind: Of the problem, if it is one; else empty.
        problem: The members of the problem.
    """

    status: int
    body: bytes
    kind: str = ""
    problem: dict[str, Any] = {}


class _Trouble(Exception):
    """There was no answer; `done` tells whether the request may have been carried out."""

    def __init__(self, said: str, *, done: bool, final: bool = False) -> None:
        super().__init__(said)
        self.done = done
        self.final = final


class HttpClient:
    """Sends requests to one server, for one event loop; any number at the same time.

    Args:
        url: The server's base URL, ``http(s)://host[:port][/path]``.
        read_timeout: After how many seconds without an answer a request is given up.
        credentials: The token and the TLS settings.
        proxy: The URL of the proxy; None: as the environment says (``HTTP_PROXY`` and so on); empty: none.

    Raises:
        RendezvousSettingsError: One of them is not what it has to be.
    """

    def __init__(
        self,
        url: str,
        *,
        read_timeout: float = 10.0,
        credentials: Credentials = NO_CREDENTIALS,
        proxy: str | None = None,
    ) -> None:
        if not read_timeout > 0:
            raise RendezvousSettingsError.of("read_timeout", read_timeout, "a number of seconds > 0")
        self.url = checked_url(url, credentials)
        self._read_timeout = read_timeout
        self._headers = credentials.headers()
        self._tls: ssl.SSLContext | bool = credentials.ssl_context() or True
        self._server_name = credentials.server_name or None
        self._proxy = proxy_of(self.url) if proxy is None else proxy or None
        self._session: aiohttp.ClientSession | None = None
        self._requests = anyio.Semaphore(MAX_REQUESTS)
        self._server = ""
        self._name = secrets.token_hex(12)
        self._count = 0

    def draw_name(self) -> str:
        """A new idempotency key."""
        self._count += 1
        return f"{self._name}-{self._count:x}"

    async def close(self) -> None:
        """Closes all connections. May be called several times."""
        session, self._session = self._session, None
        if session is not None:
            with anyio.move_on_after(1, shield=True):
                await session.close()

    async def connect(self, seconds: float | None) -> None:
        """Returns once the server answers.

        Raises:
            RendezvousConnectionError: It did not within `seconds`.
            RendezvousPermissionError: The token is missing or wrong.
        """
        answer = await self._send("GET", f"{KEYS}?limit=0", b"", {}, "connect", patience=seconds)
        _require_good(answer, "connect")

    async def look(self, path: str, doing: str, body: bytes = b"", *, wait_until: float = 0.0) -> Answer:
        """Sends a request that changes nothing: a GET, or a POST of JSON if there is a body.

        Args:
            path: The path and the query.
            doing: What is being done, for errors.
            body: The body.
            wait_until: Until when, by the event loop's clock, the server may let it wait; it may end earlier.

        Raises:
            RendezvousConnectionError: There was no answer for the `read_timeout`.
            RendezvousPermissionError: The token is missing, wrong, or not good for this.
            StoreError: The server refuses the request.
        """
        verb, headers = ("POST", {"Content-Type": "application/json"}) if body else ("GET", {})
        return await self._bounded(verb, path, body, headers, doing, wait_until)

    async def change(
        self,
        verb: str,
        path: str,
        doing: str,
        body: bytes = b"",
        *,
        name: str = "",
        kind: str = "application/octet-stream",
        wait_until: float = 0.0,
    ) -> Answer:
        """Sends a request that changes something; it is carried out once.

        Args:
            verb: The method.
            path: The path and the query.
            doing: What is being done, for errors.
            body: The body.
            name: The idempotency key; empty draws one.
            kind: The content type of the body.
            wait_until: See `look`.

        Raises:
            RendezvousConnectionError: There was no answer for the `read_timeout`, or only one from another
                server; the request may have been carried out.
            RendezvousPermissionError: The token is missing, wrong, or not good for this.
            StoreError: The server refuses the request.
        """
        if not self._server:
            await self.connect(self._read_timeout)
        headers = {"Content-Type": kind, IDEMPOTENCY_HEADER: name or self.draw_name()}
        return await self._bounded(verb, path, body, headers, doing, wait_until)

    async def _bounded(
        self, verb: str, path: str, body: bytes, headers: dict[str, str], doing: str, wait_until: float
    ) -> Answer:
        if wait_until > anyio.current_time():  # it may wait long, and must not keep others from theirs
            answer = await self._send(verb, path, body, headers, doing, wait_until=wait_until)
        else:
            async with self._requests:
                answer = await self._send(verb, path, body, headers, doing)
        _require_good(answer, doing)
        return answer

    async def _send(
        self,
        verb: str,
        path: str,
        body: bytes,
        headers: dict[str, str],
        doing: str,
        *,
        wait_until: float = 0.0,
        patience: float | None = -1.0,
    ) -> Answer:
        patience = self._read_timeout if patience is not None and patience < 0 else patience
        end = math.inf if patience is None else anyio.current_time() + patience
        server, in_doubt, pause = self._server, False, _FIRST_PAUSE
        while True:
            wait = min(max(wait_until - anyio.current_time(), 0.0), POLL)
            asked = f"{path}{'&' if '?' in path else '?'}wait={wait:.3f}" if wait else path
            limit = min(max(end - anyio.current_time(), _LEAST_SECONDS), self._read_timeout) + wait
            sent = {**headers, SERVER_HEADER: server} if in_doubt else headers
            began = anyio.current_time()
            try:
                return await self._attempt(verb, asked, body, sent, limit)
            except _Trouble as trouble:
                in_doubt = in_doubt or (trouble.done and IDEMPOTENCY_HEADER in headers)
                end += max(min(anyio.current_time() - began, wait), 0.0)  # that was waiting, not silence
                if trouble.final or anyio.current_time() + pause >= end:
                    raise self._unreachable(doing, trouble, in_doubt=in_doubt) from trouble
            await anyio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311  # spreads clients out
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _attempt(
        self, verb: str, path: str, body: bytes, headers: dict[str, str], limit: float
    ) -> Answer:
        session = self._open_session()
        try:
            with anyio.fail_after(limit):
                async with session.request(
                    verb,
                    self._url_of(path),
                    data=io.BytesIO(body) if len(body) > _LARGE else body,  # a file is sent piece by piece
                    headers=headers,
                    ssl=self._tls,
                    server_hostname=self._server_name,
                    proxy=self._proxy,
                    allow_redirects=False,
                ) as response:
                    answer = Answer(response.status, await _bounded_read(response))
                    return self._judge(answer, response)
        except aiohttp.ClientConnectorCertificateError as error:
            said = f"has a certificate that is not trusted ({error})"
            raise _Trouble(said, done=False, final=True) from error
        except (aiohttp.ClientConnectorError, aiohttp.ClientProxyConnectionError) as error:
            raise _Trouble(f"cannot be connected to ({error})", done=False) from error
        except TimeoutError as error:
            raise _Trouble(f"did not answer within {limit:.3g} s", done=True) from error
        except (aiohttp.ClientError, OSError) as error:
            raise _Trouble(f"broke off ({str(error) or type(error).__name__})", done=True) from error

    def _judge(self, answer: Answer, response: aiohttp.ClientResponse) -> Answer:
        server = response.headers.get(SERVER_HEADER)
        if server is None or answer.status in _BUSY:
            said = f"answers with status {answer.status}, which is not from an arendezvous server"
            final = answer.status not in _BUSY and answer.status < 500
            raise _Trouble(said, done=True, final=final)
        self._server = server
        if response.content_type != "application/problem+json":
            return answer
        try:
            problem = msgspec.json.decode(answer.body, type=dict[str, Any])
        except msgspec.DecodeError as error:
            raise _Trouble(f"sent a problem that is no JSON ({error})", done=True) from error
        kind = str(problem.get("type", "")).rpartition(":")[2]
        return Answer(answer.status, answer.body, kind, problem)

    def _url_of(self, path: str) -> Any:
        from yarl import URL  # aiohttp's: only this keeps a path as it is

        return URL(self.url + path, encoded=True)

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                headers={**self._headers, "Accept-Encoding": "identity"},
                timeout=aiohttp.ClientTimeout(total=None),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session

    def _unreachable(self, doing: str, trouble: _Trouble, *, in_doubt: bool) -> RendezvousConnectionError:
        doubt = "; whether it was carried out is not known" if in_doubt else ""
        return RendezvousConnectionError(
            f"{doing}: {self.url} {trouble}{doubt}. Check the address, and that the server runs",
            endpoint=self.url,
            doing=doing,
        )


def _require_good(answer: Answer, doing: str) -> None:
    """Raises the error that the answer stands for, except for what a caller expects."""
    if answer.status < 400 or answer.status in (404, 412):
        return
    detail = str(answer.problem.get("detail", ""))
    if answer.status in (401, 403):
        raise RendezvousPermissionError(f"{doing}: {detail}", authenticated=answer.status == 403)
    if answer.kind == "other-server":
        raise RendezvousConnectionError(f"{doing}: {detail}", doing=doing)
    raise StoreError(f"{doing}: {detail or f'the server answers with status {answer.status}'}")


def checked_url(url: str, credentials: Credentials) -> str:
    """Returns a base URL with its port, and without a slash at its end.

    Raises:
        RendezvousSettingsError: It is none, or not of TLS though the credentials ask for that.
    """
    expected = "the URL of a server's HTTP door, such as http://host:29401 or https://host/path"
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


def proxy_of(url: str) -> str | None:
    """The URL of the proxy that the environment names for `url`; None: none."""
    parts = urlsplit(url)
    proxy = getproxies().get(parts.scheme)
    return None if proxy is None or proxy_bypass(f"{parts.hostname}:{parts.port}") else proxy


async def _bounded_read(response: aiohttp.ClientResponse) -> bytes:
    data = bytearray()
    while chunk := await response.content.readany():
        data += chunk
        if len(data) > _MAX_REPLY:
            raise aiohttp.ClientPayloadError(f"the answer has more than {_MAX_REPLY} bytes")
    return bytes(data)

"""HTTP to the members of an etcd cluster, for both of etcd's APIs; bounded in time and in size."""

from __future__ import annotations

import io
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, NamedTuple

import aiohttp
import anyio
from yarl import URL

from arendezvous.errors import StoreError
from arendezvous.net.forks import let_go_in_children
from arendezvous.net.tls import TlsFiles, explain
from arendezvous.wire.http.names import LISTENER_HEADER, SERVER_HEADER

OK: Final = 200
BAD_REQUEST: Final = 400
NOT_FOUND: Final = 404
SERVER_ERROR: Final = 500

_MAX_REPLY: Final = 1 << 28
_MAX_ERROR: Final = 1 << 16
_LARGE: Final = 1 << 16
_CLOSE_TIMEOUT: Final = 1.0
_FAULTS: Final = (aiohttp.ClientError, OSError, ValueError)  # ValueError: a header field that cannot be one


class EtcdMember:
    """One member, as a client sees it.

    Attributes:
        url: Its base URL.
        gateway: The index of the prefix of etcd v3's gateway that it answers to, as far as is known.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.gateway = 0


class EndpointTrouble(Exception):
    """An endpoint did not do what it was asked.

    Attributes:
        done: Whether it may have done it all the same.
        final: Whether asking again later is useless.
    """

    def __init__(self, said: str, *, done: bool = False, final: bool = False) -> None:
        super().__init__(said)
        self.done = done
        self.final = final


class EtcdAnswer(NamedTuple):
    """An answer to a request.

    Attributes:
        status: The status of HTTP.
        body: The body; empty if it is still to come.
        headers: The headers.
        response: Where the body is still to come from, if it was asked for as a stream; its receiver closes
            it. None if the body is here.
    """

    status: int
    body: bytes
    headers: Mapping[str, str]
    response: aiohttp.ClientResponse | None = None

    @property
    def excerpt(self) -> str:
        """How the body begins, for an error that quotes it."""
        return self.body[:80].decode(errors="backslashreplace").strip()


class Connections:
    """The connections to all members of one cluster, for one event loop.

    Args:
        tls: The certificate files; a file that is replaced is used by all requests from then on.
        secure: Whether any member is asked by https.

    Raises:
        RendezvousSettingsError: A file cannot be read, or holds something else.

    Its fields:
        _tls: The settings for https; None without it.
        _session: Aiohttp's session; None before the first request and after `close`.
        _answered: Whether any member has answered: then a certificate that is not trusted may be one that is
            being replaced, and is no reason to give up at once.
    """

    def __init__(self, tls: TlsFiles, *, secure: bool) -> None:
        self._tls = tls.fresh_client_context() if tls or secure else None
        self._names = tls.names
        self._session: aiohttp.ClientSession | None = None
        self._answered = False
        self._closed = False

    def reopen(self) -> None:
        """Lets requests be sent, though the connections may have been closed before."""
        self._closed = False

    async def close(self) -> None:
        """Closes all connections; what is sent later raises `StoreError`. May be called several times."""
        self._closed = True
        session, self._session = self._session, None
        if session is not None:
            with anyio.move_on_after(_CLOSE_TIMEOUT, shield=True):
                await session.close()

    def require_open(self) -> None:
        """Raises `StoreError` if the connections have been closed."""
        if self._closed:
            raise StoreError("the store has been closed: open another one")

    async def fetch(
        self,
        verb: str,
        url: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        *,
        limit: float,
        stream: bool = False,
    ) -> EtcdAnswer:
        """Sends a request, and returns the answer. Cancellation: safe; the request may have been carried out.

        Args:
            verb: The method.
            url: The URL, encoded.
            body: The body.
            headers: The headers.
            limit: For how many seconds to wait for the answer.
            stream: Whether the body of a good answer is left in the `response`, to be read as it comes.

        Raises:
            EndpointTrouble: There was no answer.
            StoreError: The connections have been closed.
        """
        session = self._open_session()
        try:
            with anyio.fail_after(limit):
                response = await session.request(
                    verb,
                    URL(url, encoded=True),
                    data=io.BytesIO(body) if len(body) > _LARGE else body,  # a file is sent piece by piece
                    headers=headers,
                    timeout=aiohttp.ClientTimeout(total=None, sock_connect=0.9 * limit),
                    ssl=True if self._tls is None else self._tls.get(),
                    allow_redirects=False,
                )
                self._answered = True
                if SERVER_HEADER in response.headers:
                    response.close()
                    raise _not_etcd(response)
                if stream and response.status == OK:
                    return EtcdAnswer(OK, b"", response.headers, response)
                async with response:
                    most = _MAX_REPLY if response.status < BAD_REQUEST else _MAX_ERROR
                    return EtcdAnswer(response.status, await _bounded_read(response, most), response.headers)
        except TimeoutError as error:
            raise EndpointTrouble(f"did not answer within {limit:.3g} s", done=True) from error
        except _FAULTS as error:
            raise self._trouble_of(error) from error

    async def _send_once(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        """Sends a request; what aiohttp's errors become keeps it from sending a PUT or a DELETE again."""
        try:
            return await handler(request)
        except _FAULTS as error:
            raise self._trouble_of(error) from error

    def _trouble_of(self, error: Exception) -> EndpointTrouble:
        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            said = f"cannot be trusted: {explain(error.certificate_error, self._names)}"
            return EndpointTrouble(said, final=not self._answered)
        if isinstance(error, aiohttp.ClientConnectorError):
            said = explain(error.os_error, self._names) or str(error)
            return EndpointTrouble(f"cannot be connected to ({said})")
        if isinstance(error, aiohttp.ConnectionTimeoutError):
            return EndpointTrouble(f"cannot be connected to ({error})")
        said = explain(error.__cause__ or error, self._names) or str(error) or type(error).__name__
        return EndpointTrouble(f"broke off ({said})", done=True)

    def _open_session(self) -> aiohttp.ClientSession:
        self.require_open()
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0, socket_factory=_make_socket)
            self._session = aiohttp.ClientSession(connector=connector, middlewares=(self._send_once,))
        return self._session


class Stream:
    """Lines that an endpoint sends for as long as it likes.

    Args:
        endpoint: Who sends them.
        response: Where they come from; closed by `close`.
        patience: After how many seconds without a byte the endpoint is asked whether it lives.
        ask: Asks it; raises `EndpointTrouble` if it does not answer.

    Attributes:
        endpoint: Who sends them.

    Its fields:
        _buffer: What has come and has not been returned.
        _searched: How many bytes of it are known to hold no end of a line.
    """

    def __init__(
        self,
        endpoint: EtcdMember,
        response: aiohttp.ClientResponse,
        patience: float,
        ask: Callable[[], Awaitable[None]],
    ) -> None:
        self.endpoint = endpoint
        self._response = response
        self._patience = patience
        self._ask = ask
        self._buffer = bytearray()
        self._searched = 0

    @property
    def ready(self) -> bool:
        """Whether a whole line has come that `line` has not returned yet."""
        return self._buffer.find(b"\n") >= 0

    async def line(self) -> bytes:
        """Returns the next line. Cancellation: safe; nothing is lost.

        Raises:
            EndpointTrouble: The stream is broken, or the endpoint does not answer any more.
        """
        while (at := self._buffer.find(b"\n", self._searched)) < 0:
            self._searched = len(self._buffer)
            if self._searched > _MAX_REPLY:
                raise EndpointTrouble(f"sent a message of more than {_MAX_REPLY} bytes")
            try:
                with anyio.move_on_after(self._patience) as scope:
                    chunk = await self._response.content.readany()
            except _FAULTS as error:
                raise EndpointTrouble(f"broke off ({str(error) or type(error).__name__})") from error
            if scope.cancelled_caught:
                await self._ask()
            elif not chunk:
                raise EndpointTrouble("ended the stream")
            else:
                self._buffer += chunk
        line = bytes(self._buffer[:at])
        del self._buffer[: at + 1]
        self._searched = 0
        return line

    def close(self) -> None:
        """Ends the stream."""
        self._response.close()


def _make_socket(address: aiohttp.AddrInfoType) -> socket.socket:
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    let_go_in_children(made)
    return made


def _not_etcd(response: aiohttp.ClientResponse) -> EndpointTrouble:
    """Says that a server of ours answers, and by which URL it is one."""
    here = f"as an endpoint it is {response.url.scheme}://{response.url.authority}"
    said = response.headers.get(LISTENER_HEADER, here)
    return EndpointTrouble(f"is an arendezvous server and no etcd: {said}", final=True)


async def _bounded_read(response: aiohttp.ClientResponse, most: int) -> bytes:
    data = bytearray()
    while chunk := await response.content.readany():
        data += chunk
        if len(data) > most:
            raise aiohttp.ClientPayloadError(f"the answer has more than {most} bytes")
    return bytes(data)

"""Requests to one endpoint of etcd v3's JSON gateway and streams from it; bounded in time and size."""

from __future__ import annotations

import io
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import aiohttp
import anyio
import msgspec
from yarl import URL

from arendezvous.errors import StoreError

_OK: Final = 200
_BAD_REQUEST: Final = 400
_NOT_FOUND: Final = 404
_GATEWAYS: Final = ("/v3", "/v3beta", "/v3alpha")  # since etcd 3.4, 3.3, 3.2
_HEADERS: Final = {"Content-Type": "application/json", "Grpc-Metadata-Hasleader": "true"}
_MAX_REPLY: Final = 1 << 28
_MAX_ERROR: Final = 1 << 16
_LARGE: Final = 1 << 16


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


class Refusal(Exception):
    """An endpoint answered with an error.

    Attributes:
        status: The status of HTTP.
        body: What it said; JSON if etcd itself said it.
    """

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(status, body)
        self.status = status
        self.body = body


class Endpoint:
    """One member, as a client sees it.

    Attributes:
        url: Its base URL.
        gateway: The index in `_GATEWAYS` of the prefix that it answers to, as far as is known.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.gateway = 0


class Links:
    """The connections to all endpoints of one cluster, for one event loop.

    Args:
        tls: The TLS settings for https; None stands for the system's.
    """

    def __init__(self, tls: ssl.SSLContext | None) -> None:
        self._tls: ssl.SSLContext | bool = True if tls is None else tls
        self._session: aiohttp.ClientSession | None = None
        self._closed = False

    async def close(self) -> None:
        """Closes all connections; what is sent later raises `StoreError`. May be called several times."""
        self._closed = True
        session, self._session = self._session, None
        if session is not None:
            with anyio.move_on_after(1, shield=True):
                await session.close()

    def require_open(self) -> None:
        """Raises `StoreError` if the connections have been closed."""
        if self._closed:
            raise StoreError("the store has been closed: open another one")

    async def fetch(
        self, verb: str, url: str, body: bytes, headers: Mapping[str, str], limit: float
    ) -> tuple[int, bytes, Mapping[str, str]]:
        """Returns the status, the body and the headers of the answer.

        Raises:
            EndpointTrouble: There was none within `limit` seconds.
        """
        async with self._request(verb, url, body, headers, limit) as response, response:
            most = _MAX_REPLY if response.status < _BAD_REQUEST else _MAX_ERROR
            return response.status, await _bounded_read(response, most), response.headers

    @asynccontextmanager
    async def _request(
        self, verb: str, url: str, body: bytes, headers: Mapping[str, str], limit: float
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        session = self._open_session()
        data = io.BytesIO(body) if len(body) > _LARGE else body  # a file is sent piece by piece
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=0.9 * limit)
        try:
            with anyio.fail_after(limit):
                yield await session.request(
                    verb,
                    URL(url, encoded=True),
                    data=data,
                    headers=headers,
                    timeout=timeout,
                    ssl=self._tls,
                    allow_redirects=False,
                )
        except aiohttp.ClientConnectorCertificateError as error:
            raise EndpointTrouble(f"has a certificate that is not trusted ({error})", final=True) from error
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise EndpointTrouble(f"cannot be connected to ({error})") from error
        except TimeoutError as error:
            raise EndpointTrouble(f"did not answer within {limit:.3g} s", done=True) from error
        except (aiohttp.ClientError, OSError) as error:
            raise EndpointTrouble(f"broke off ({str(error) or type(error).__name__})", done=True) from error

    def _open_session(self) -> aiohttp.ClientSession:
        self.require_open()
        if self._session is None:
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        return self._session


class Gateway(Links):
    """The JSON gateways of all endpoints.

    Args:
        read_timeout: After how many seconds of silence a stream asks its endpoint whether it lives.
        tls: See `Links`.
    """

    def __init__(self, read_timeout: float, tls: ssl.SSLContext | None) -> None:
        super().__init__(tls)
        self.read_timeout = read_timeout

    async def ping(self, endpoint: Endpoint) -> None:
        """Returns if `endpoint` answers at all.

        Raises:
            EndpointTrouble: It does not.
        """
        with suppress(Refusal):
            await self.post(endpoint, "maintenance/status", b"{}", None, self.read_timeout)

    async def post(
        self, endpoint: Endpoint, method: str, body: bytes, token: str | None, limit: float
    ) -> bytes:
        """Returns the body of the answer.

        Raises:
            EndpointTrouble: There was none within `limit` seconds, or there is no gateway of etcd v3.
            Refusal: Its status is not 200.
        """
        answer = await self._post(endpoint, method, body, token, limit, stream=False)
        return bytes(answer)

    async def open_stream(
        self, endpoint: Endpoint, method: str, body: bytes, token: str | None, limit: float
    ) -> Stream:
        """Returns the stream of messages that the answer is, once it begins. Raises as `post` does."""
        return Stream(self, endpoint, await self._post(endpoint, method, body, token, limit, stream=True))

    async def _post(
        self, endpoint: Endpoint, method: str, body: bytes, token: str | None, limit: float, *, stream: bool
    ) -> Any:
        headers = {**_HEADERS, "Authorization": token} if token else _HEADERS
        while True:
            gateway = endpoint.gateway
            url = f"{endpoint.url}{_GATEWAYS[gateway]}/{method}"
            status, answer = await self._exchange(url, body, headers, limit, stream=stream)
            if status == _OK:
                return answer
            if status != _NOT_FOUND or answer.startswith(b"{"):
                raise Refusal(status, answer)
            if gateway + 1 == len(_GATEWAYS):
                endpoint.gateway = 0
                raise await self._no_gateway(endpoint, limit)
            endpoint.gateway = max(endpoint.gateway, gateway + 1)

    async def _no_gateway(self, endpoint: Endpoint, limit: float) -> EndpointTrouble:
        status, answer, _ = await self.fetch("GET", f"{endpoint.url}/version", b"", {}, limit)
        try:
            version = str(msgspec.json.decode(answer, type=dict[str, Any])["etcdserver"])
        except (msgspec.DecodeError, KeyError):
            return EndpointTrouble(f"is no etcd: /version answers with status {status}", final=True)
        if version.startswith("2."):
            said = f"is etcd {version}, which speaks only the v2 API: use etcd-v2://, or a newer etcd"
        else:
            said = f"is etcd {version}, but has no JSON gateway: start it with --enable-grpc-gateway"
        return EndpointTrouble(said, final=True)

    async def _exchange(
        self, url: str, body: bytes, headers: dict[str, str], limit: float, *, stream: bool
    ) -> tuple[int, Any]:
        if not stream:
            status, answer, _ = await self.fetch("POST", url, body, headers, limit)
            return status, answer
        async with self._request("POST", url, body, headers, limit) as response:
            if response.status == _OK:
                return _OK, response
            async with response:
                return response.status, await _bounded_read(response, _MAX_ERROR)


class Stream:
    """Lines that an endpoint sends for as long as it likes.

    Attributes:
        endpoint: Who sends them.
    """

    def __init__(self, gateway: Gateway, endpoint: Endpoint, response: aiohttp.ClientResponse) -> None:
        self.endpoint = endpoint
        self._gateway = gateway
        self._response = response
        self._buffer = bytearray()
        self._searched = 0

    @property
    def ready(self) -> bool:
        """Whether a whole line has come that `line` has not returned yet."""
        return self._buffer.find(b"\n") >= 0

    async def line(self) -> bytes:
        """Returns the next line. When none comes for the `read_timeout`, asks the endpoint whether it lives.

        Safe to cancel: nothing is lost.

        Raises:
            EndpointTrouble: The stream is broken.
        """
        while (at := self._buffer.find(b"\n", self._searched)) < 0:
            self._searched = len(self._buffer)
            if self._searched > _MAX_REPLY:
                raise EndpointTrouble(f"sent a message of more than {_MAX_REPLY} bytes")
            try:
                with anyio.move_on_after(self._gateway.read_timeout) as scope:
                    chunk = await self._response.content.readany()
            except (aiohttp.ClientError, OSError) as error:
                raise EndpointTrouble(f"broke off ({str(error) or type(error).__name__})") from error
            if scope.cancelled_caught:
                await self._gateway.ping(self.endpoint)
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


async def _bounded_read(response: aiohttp.ClientResponse, most: int) -> bytes:
    data = bytearray()
    while chunk := await response.content.readany():
        data += chunk
        if len(data) > most:
            raise aiohttp.ClientPayloadError(f"the answer has more than {most} bytes")
    return bytes(data)

"""An etcd cluster, seen from outside: how to reach it, and which of its members is asked next.

HTTP to them, for both of etcd's APIs, is bounded in time and in size.
"""

from __future__ import annotations

import io
import math
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Self, TypeVar

import aiohttp
import anyio
import msgspec
from yarl import URL

from arendezvous.errors import RendezvousConnectionError, RendezvousSettingsError, StoreError
from arendezvous.etcd.http import BAD_REQUEST, MAX_REPLY, OK, EndpointTrouble, EtcdAnswer, EtcdMember
from arendezvous.net.backoff import DEFAULT_BACKOFF
from arendezvous.net.endpoint import join_host_port, parse_host_port
from arendezvous.net.forks import socket_for
from arendezvous.net.http_client import FAULTS, close_session, once
from arendezvous.net.reach import Reach
from arendezvous.net.tls import NO_FILES, TlsFiles, explain
from arendezvous.net.typed import typed
from arendezvous.wire.foreign import decode_foreign, json_decoder
from arendezvous.wire.http.names import LISTENER_HEADER, SERVER_HEADER

T = TypeVar("T")

DEFAULT_PORT: Final = 2379

_MOST_REQUESTS: Final = 64  # at the same time
_LEAST_SECONDS: Final = 0.01
_MAX_ERROR: Final = 1 << 16
_LARGE: Final = 1 << 16


class EtcdCluster(msgspec.Struct, frozen=True, kw_only=True):
    """Says how to reach a cluster: its members, the credentials, TLS. The password is never shown.

    Attributes:
        urls: The members' base URLs, each once.
        user: The user's name; empty for a cluster without users.
        password: The user's password.
        tls: The certificate files for https; those of the system without any.
    """

    urls: tuple[str, ...]
    user: str = ""
    password: str = ""
    tls: TlsFiles = NO_FILES

    def __repr__(self) -> str:
        return f"EtcdCluster(urls={self.urls!r}, user={self.user!r}, tls={self.tls!r})"

    def __rich_repr__(self) -> Any:
        yield repr(self)

    @classmethod
    @typed
    def of(
        cls,
        endpoints: str | Sequence[str],
        *,
        user: str = "",
        password: str = "",
        tls: TlsFiles = NO_FILES,
    ) -> Self:
        """Takes a cluster as its users write it.

        Args:
            endpoints: The members' addresses for clients, ``host[:port]`` or ``http(s)://host[:port]``: in a
                sequence, or in text with commas; one that works is enough.
            user: See `EtcdCluster`; so are the others.
            password: See `EtcdCluster`.
            tls: See `EtcdCluster`. With any file, endpoints without a scheme are taken as https.

        Raises:
            RendezvousSettingsError: There is no endpoint, or one is something else.
        """
        texts = endpoints.split(",") if isinstance(endpoints, str) else endpoints
        urls = [_base_url(text.strip(), secure=bool(tls)) for text in texts if text.strip()]
        if not urls:
            raise RendezvousSettingsError.of(
                "endpoints", endpoints, "host:port of at least one member of etcd"
            )
        return cls(urls=tuple(dict.fromkeys(urls)), user=user, password=password, tls=tls)


def _base_url(text: str, *, secure: bool) -> str:
    scheme, found, rest = text.partition("://")
    if not found:
        scheme, rest = ("https" if secure else "http"), text
    if scheme not in ("http", "https"):
        raise RendezvousSettingsError.of("endpoints", text, "host:port, or a URL with http:// or https://")
    host, port = parse_host_port(rest.rstrip("/"), name="endpoints", default_port=DEFAULT_PORT)
    return f"{scheme}://{join_host_port(host, port)}"


class _Version(msgspec.Struct):
    etcdserver: str


_decode_version: Final = json_decoder(_Version)


class ClusterClient:
    """Chooses whom the clients of both of etcd's APIs ask, in one event loop.

    Args:
        cluster: How to reach the cluster; its endpoints are enough where nothing else is needed. A
            certificate file that is replaced is used by all requests from then on.
        read_timeout: For how many seconds an answer is awaited, from all members together.

    Attributes:
        read_timeout: May be set at any time.
        endpoints: The members.
        current: The one in use; at first one of them at random.
        reach: Whether a member has answered the latest request that is over.

    Raises:
        RendezvousSettingsError: An endpoint or a certificate file is not what it has to be.

    Its fields:
        _requests: Bounds how many requests are under way.
        _tls: The settings for https; None without it.
        _session: Aiohttp's session; None before the first request and after `close`.
        _answered: Whether any member has answered: then a certificate that is not trusted may be one that is
            being replaced, and is no reason to give up at once.
    """

    def __init__(self, cluster: EtcdCluster | str | Sequence[str], *, read_timeout: float = 10.0) -> None:
        self.cluster = cluster if isinstance(cluster, EtcdCluster) else EtcdCluster.of(cluster)
        self.read_timeout = read_timeout
        self.endpoints = [EtcdMember(url) for url in self.cluster.urls]
        self.current = random.choice(self.endpoints)  # noqa: S311  # spreads clients out, hides nothing
        self.reach = Reach()
        self._requests = anyio.Semaphore(_MOST_REQUESTS)
        files, secure = self.cluster.tls, any(url.startswith("https:") for url in self.cluster.urls)
        self._tls = files.fresh_client_context() if files or secure else None
        self._session: aiohttp.ClientSession | None = None
        self._answered = False
        self._closed = False

    def reopen(self) -> None:
        """Lets requests be sent, though the client may have been closed before."""
        self._closed = False

    async def close(self) -> None:
        """Closes all connections; what is sent later raises `StoreError`. May be called several times."""
        self._closed = True
        session, self._session = self._session, None
        await close_session(session)

    def require_open(self) -> None:
        """Raises `StoreError` if the client has been closed."""
        if self._closed:
            raise StoreError("the store has been closed: open another one")

    @property
    def name(self) -> str:
        """The base URLs of all endpoints, with commas between."""
        return ",".join(endpoint.url for endpoint in self.endpoints)

    def avoid(self, endpoint: EtcdMember) -> None:
        """Turns to the next endpoint, if `endpoint` is the one in use."""
        if self.current is endpoint:
            self.current = self.endpoints[(self.endpoints.index(endpoint) + 1) % len(self.endpoints)]

    async def try_endpoints(
        self,
        send: Callable[[EtcdMember, float], Awaitable[T]],
        doing: str,
        *,
        repeat: bool,
        seconds: float | None = None,
    ) -> T:
        """Sends to one endpoint after the other, beginning with the one that answered last.

        Args:
            send: Sends to an endpoint, for so many seconds at most; raises `EndpointTrouble` if that fails.
            doing: What errors say was being done.
            repeat: Whether it does no harm to carry it out twice.
            seconds: For how long to try; infinity: for ever; None stands for the `read_timeout`.

        Raises:
            RendezvousConnectionError: No endpoint answered in time, or one may have carried it out, without
                saying so, and `repeat` is false.
            StoreError: The client has been closed.
        """
        seconds = self.read_timeout if seconds is None else seconds
        end = anyio.current_time() + seconds
        said: dict[EtcdMember, EndpointTrouble] = {}
        pauses = DEFAULT_BACKOFF.start()
        while True:
            start = self.endpoints.index(self.current)
            order = self.endpoints[start:] + self.endpoints[:start]
            for number, endpoint in enumerate(order):
                self.require_open()
                limit = min(end - anyio.current_time(), self.read_timeout)
                if repeat:
                    limit /= len(order) - number
                try:
                    result = await send(endpoint, max(limit, _LEAST_SECONDS))
                except EndpointTrouble as trouble:
                    said[endpoint] = trouble
                    if trouble.done and not repeat:
                        self.avoid(endpoint)
                        raise self.failed(
                            doing,
                            f": {endpoint.url} {trouble}; it may have been carried out or not, so it was not"
                            " sent again: look at the key, then decide",
                        ) from trouble
                else:
                    self.current = endpoint
                    self.reach.find()
                    return result
                if anyio.current_time() >= end:
                    break
            self.reach.lose()
            if all(trouble.final for trouble in said.values()) or not await pauses.sleep(end):
                raise self._unreachable(doing, seconds, said)

    async def version_of(self, endpoint: EtcdMember, limit: float) -> str:
        """Asks which version of etcd an endpoint is, which is something else than was expected."""
        answer = await self.fetch("GET", f"{endpoint.url}/version", limit=limit)
        said = f"is no etcd: /version answers with status {answer.status}"
        found = decode_foreign(_decode_version, answer.body, lambda _: EndpointTrouble(said, final=True))
        return found.etcdserver

    def failed(self, doing: str, said: str) -> RendezvousConnectionError:
        """Builds the error whose message is what was being done, and on it what is said."""
        return RendezvousConnectionError(doing + said, endpoint=self.name, doing=doing)

    def _unreachable(
        self, doing: str, seconds: float, said: dict[EtcdMember, EndpointTrouble]
    ) -> RendezvousConnectionError:
        is_final = all(trouble.final for trouble in said.values())
        each = "; ".join(f"{endpoint.url} {trouble}" for endpoint, trouble in said.items())
        if any("no leader" in str(trouble) or "no quorum" in str(trouble) for trouble in said.values()):
            hint = "the cluster has no quorum: start more of its members"
        elif is_final:
            hint = "this will not change by waiting"
        else:
            hint = "is etcd running, and are these the addresses for its clients?"
        within = "" if is_final or math.isinf(seconds) else f" after {seconds:g} s"
        return self.failed(doing, f" failed{within}: {each}: {hint}")

    # HTTP

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
        """Sends a request, and returns the answer within `limit` seconds.

        With `stream` the body of a good one is left in the `response`, to be read as it comes. Cancellation:
        safe; the request may have been carried out.

        Raises:
            EndpointTrouble: There was no answer.
            StoreError: The client has been closed.
        """
        self.require_open()
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0, socket_factory=socket_for)
            self._session = aiohttp.ClientSession(connector=connector, middlewares=once(self._trouble_of))
        try:
            with anyio.fail_after(limit):
                response = await self._session.request(
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
                    most = MAX_REPLY if response.status < BAD_REQUEST else _MAX_ERROR
                    return EtcdAnswer(response.status, await _bounded_read(response, most), response.headers)
        except TimeoutError as error:
            raise EndpointTrouble(f"did not answer within {limit:.3g} s", done=True) from error
        except FAULTS as error:
            raise self._trouble_of(error) from error

    def _trouble_of(self, error: Exception) -> EndpointTrouble:
        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            said = f"cannot be trusted: {explain(error.certificate_error, self.cluster.tls.names)}"
            return EndpointTrouble(said, final=not self._answered)
        if isinstance(error, aiohttp.ClientConnectorError):
            said = explain(error.os_error, self.cluster.tls.names)
            said = said or error.os_error.strerror or "the connection was closed instead"
            return EndpointTrouble(f"cannot be connected to ({said})")
        if isinstance(error, aiohttp.ConnectionTimeoutError):
            return EndpointTrouble(f"cannot be connected to ({error})")
        said = explain(error.__cause__ or error, self.cluster.tls.names) or str(error) or type(error).__name__
        return EndpointTrouble(f"broke off ({said})", done=True)


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

"""An etcd cluster, seen from outside: how to reach it, and which of its members is asked next."""

from __future__ import annotations

import math
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Self, TypeVar

import anyio
import msgspec

from arendezvous.errors import RendezvousConnectionError, RendezvousSettingsError
from arendezvous.etcd.http import Connections, EndpointTrouble, EtcdMember
from arendezvous.net.backoff import DEFAULT_BACKOFF, Backoff
from arendezvous.net.endpoint import join_host_port, parse_host_port
from arendezvous.net.reach import Reach
from arendezvous.net.tls import NO_FILES, TlsFiles
from arendezvous.net.typed import typed
from arendezvous.wire.foreign import decode_foreign, json_decoder

T = TypeVar("T")

DEFAULT_PORT: Final = 2379

_MOST_REQUESTS: Final = 64  # at the same time
_LEAST_SECONDS: Final = 0.01


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
        cluster: How to reach the cluster; its endpoints are enough where nothing else is needed. One of them
            is chosen at random, then the next ones as needed.
        read_timeout: For how many seconds an answer is awaited, from all members together.
        backoff: How long to pause when none of them has answered.

    Attributes:
        cluster: How to reach the cluster.
        read_timeout: May be set at any time.
        endpoints: The members.
        current: The one in use.
        backoff: As it was given.
        connections: The connections to all of them.
        reach: Whether a member has answered the latest request that is over.

    Raises:
        RendezvousSettingsError: An endpoint or a certificate file is not what it has to be.

    Its field `_requests` bounds how many requests are under way.
    """

    def __init__(
        self,
        cluster: EtcdCluster | str | Sequence[str],
        *,
        read_timeout: float = 10.0,
        backoff: Backoff = DEFAULT_BACKOFF,
    ) -> None:
        self.cluster = cluster if isinstance(cluster, EtcdCluster) else EtcdCluster.of(cluster)
        self.read_timeout = read_timeout
        self.endpoints = [EtcdMember(url) for url in self.cluster.urls]
        self.current = random.choice(self.endpoints)  # noqa: S311  # spreads clients out, hides nothing
        self.backoff = backoff
        secure = any(url.startswith("https:") for url in self.cluster.urls)
        self.connections = Connections(self.cluster.tls, secure=secure)
        self.reach = Reach()
        self._requests = anyio.Semaphore(_MOST_REQUESTS)

    def reopen(self) -> None:
        """Lets requests be sent, though the client may have been closed before."""
        self.connections.reopen()

    async def close(self) -> None:
        """Closes all connections; what is sent later raises `StoreError`. May be called several times."""
        await self.connections.close()

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
        pauses = self.backoff.start()
        while True:
            order = self._order()
            for number, endpoint in enumerate(order):
                self.connections.require_open()
                limit = min(end - anyio.current_time(), self.read_timeout)
                if repeat:
                    limit /= len(order) - number
                try:
                    result = await send(endpoint, max(limit, _LEAST_SECONDS))
                except EndpointTrouble as trouble:
                    said[endpoint] = trouble
                    if trouble.done and not repeat:
                        self.avoid(endpoint)
                        raise self._in_doubt(doing, endpoint, trouble) from trouble
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
        """Asks which version of etcd an endpoint is, which is something else than was expected.

        Raises:
            EndpointTrouble: It is no etcd, or did not answer within `limit` seconds.
        """
        answer = await self.connections.fetch("GET", f"{endpoint.url}/version", limit=limit)
        said = f"is no etcd: /version answers with status {answer.status}"
        found = decode_foreign(_decode_version, answer.body, lambda _: EndpointTrouble(said, final=True))
        return found.etcdserver

    def _order(self) -> list[EtcdMember]:
        start = self.endpoints.index(self.current)
        return self.endpoints[start:] + self.endpoints[:start]

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
        return RendezvousConnectionError(
            f"{doing} failed{within}: {each}: {hint}", endpoint=self.name, doing=doing
        )

    def _in_doubt(
        self, doing: str, endpoint: EtcdMember, trouble: EndpointTrouble
    ) -> RendezvousConnectionError:
        return RendezvousConnectionError(
            f"{doing}: {endpoint.url} {trouble}; it may have been carried out or not, so it was not sent"
            " again: look at the key, then decide",
            endpoint=self.name,
            doing=doing,
        )

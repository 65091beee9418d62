"""`serve`: the whole server as one asynchronous context manager."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import anyio

from arendezvous.coordinator.clock import StallProofClock
from arendezvous.coordinator.coordinator import Coordinator
from arendezvous.errors import RendezvousSettingsError
from arendezvous.keyspace.host import KeyspaceHost
from arendezvous.law.operations import RoundCompleted
from arendezvous.net.addresses import is_loopback, shown_address
from arendezvous.net.background import finish, require_asyncio
from arendezvous.net.endpoint import join_host_port, parse_host_port
from arendezvous.net.typed import typed
from arendezvous.server.access.admission import Admission
from arendezvous.server.access.authority import Access, Authority
from arendezvous.server.access.limits import DEFAULT_LIMITS, ServerLimits
from arendezvous.server.access.throttle import Allowance
from arendezvous.server.binding import was_served
from arendezvous.server.recording import record_events
from arendezvous.server.tcp.listener import TcpServer
from arendezvous.server.tidy import tidy_up
from arendezvous.server.tls import ServerTls


class Server:
    """A running server.

    Attributes:
        host: The address that it listens on.
        port: The port that it listens on.
        coordinator: Where its runs are.
        authority: Who may do what at it.
        tls: Its TLS settings; None: it serves without TLS.
    """

    def __init__(
        self,
        host: str,
        port: int,
        coordinator: Coordinator,
        http: tuple[str, int] | None,
        authority: Authority,
        tls: ServerTls | None,
    ) -> None:
        self.host = host
        self.port = port
        self.coordinator = coordinator
        self.authority = authority
        self.tls = tls
        self._http = http

    @property
    def tcp_url(self) -> str:
        """What nodes pass as their endpoint; an address that others can use, if it listens on all of them."""
        return f"tcp://{join_host_port(shown_address(self.host), self.port)}"

    @property
    def http_url(self) -> str | None:
        """The base URL of the HTTP door, as `tcp_url`; None without one."""
        if self._http is None:
            return None
        host, port = self._http
        scheme = "http" if self.tls is None else "https"
        return f"{scheme}://{join_host_port(shown_address(host), port)}"

    @property
    def is_over(self) -> bool:
        """Whether every run here is closed."""
        return all(run.state.closed is not None for run in self.coordinator.runs.values())

    def reload(self) -> bool:
        """Reads the token file and the certificate again; returns whether both went well.

        What could not be read stays as it was; the log says why. Those whose tokens are gone are dropped.
        """
        return all([self.authority.reload(), self.tls is None or self.tls.reload()])

    async def deserted(self) -> None:
        """Waits until no node is in any run. Cancellation: safe."""
        gone = anyio.Event()

        def look(*_: object) -> None:
            if not any(run.state.nodes for run in self.coordinator.runs.values()):
                gone.set()

        stop = self.coordinator.observe(look)
        try:
            look()
            await gone.wait()
        finally:
            stop()

    async def settled(self, seconds: float) -> None:
        """Waits until no round that has members was completed in the last `seconds`. Cancellation: safe."""
        coordinator = self.coordinator
        while True:
            completed = [
                when
                for run in coordinator.runs.values()
                if run.state.complete and run.state.participants
                for when, event in run.history
                if isinstance(event, RoundCompleted)
            ]
            left = max(completed, default=-math.inf) + seconds - coordinator.clock()
            if left <= 0:
                return
            await anyio.sleep(left)


@typed
@asynccontextmanager
async def serve(
    address: str = "127.0.0.1:29400",
    *,
    http: str | None = None,
    insecure: bool = False,
    embedded: bool = False,
    follows: bool = False,
    limits: ServerLimits = DEFAULT_LIMITS,
    authority: Authority | None = None,
    tls: ServerTls | None = None,
    plain_stores: bool = False,
) -> AsyncIterator[Server]:
    """Serves native sessions, and the protocol of torch's TCPStore, on `address` while the block runs.

    Args:
        address: ``host:port``; port 0 picks a free one.
        http: ``host:port`` for HTTP as well; None: no HTTP.
        insecure: Allows an address that is not loopback: anybody who reaches it may join and close runs.
        embedded: Tells the nodes that one of them hosts it, so that another may when this one ends.
        follows: Another server was in this place before, whose nodes may come back, see
            `Coordinator.follow`. That is found out by itself if it ended on this machine in the last minute.
        limits: What it takes on.
        authority: Whose tokens are good here, `Authority.from_file` for one; None asks nobody for a token.
        tls: The certificate to serve TLS with, at all doors, and whether clients must show one, too; None
            serves without TLS.
        plain_stores: Lets clients of a TCPStore that show no token, as stock torch's, use all of the store
            although tokens are asked for.

    Yields:
        The server.

    Raises:
        RendezvousTypeError: An argument has another type than it takes.
        RendezvousSettingsError: The address is malformed; or it is not loopback, and there are neither
            tokens, nor client certificates, nor `insecure`.
        RendezvousConnectionError: The address cannot be bound.

    Leaving the block closes all connections; nodes try to reconnect, so a server that is started again on
    the same address gets them back.
    """
    require_asyncio("a server")
    access = Access(authority or Authority(), plain_stores=plain_stores)
    safe = insecure or access.authority.asks or (tls is not None and tls.is_mutual)
    host, port = _checked(address, "address", safe)
    http_address = None if http is None else _checked(http, "http", safe)
    clock = StallProofClock(asyncio.get_running_loop())
    coordinator = Coordinator(asyncio.get_running_loop(), clock, limits.coordinator)
    keys = KeyspaceHost(limits.store)
    tidy_up(coordinator, keys)
    rate = limits.connection_rate
    arrivals = None if rate is None else Allowance(limits.connection_burst, rate)
    admission = Admission(limits.max_connections, arrivals)
    tcp = TcpServer(coordinator, keys, limits, admission, embedded=embedded, access=access, tls=tls)
    async with AsyncExitStack() as doors:
        doors.callback(coordinator.close)
        doors.push_async_callback(finish, tcp.stop)
        doors.enter_context(access.authority.observed(tcp.dismiss))
        doors.callback(clock.stop)
        host, port = await tcp.start(host, port)
        if http_address is not None:
            http_address = await _open_http(doors, tcp, tls, http_address)
        if follows or was_served(port) or (http_address is not None and was_served(http_address[1])):
            coordinator.follow()  # before any client has been heard
        doors.callback(admission.close)
        server = Server(host, port, coordinator, http_address, access.authority, tls)
        record_events(coordinator, server.tcp_url)
        yield server


async def _open_http(
    doors: AsyncExitStack, tcp: TcpServer, tls: ServerTls | None, address: tuple[str, int]
) -> tuple[str, int]:
    from arendezvous.server.http.context import HttpContext  # here, because not everybody needs aiohttp
    from arendezvous.server.http.listener import HttpListener

    authority, throttle = tcp.access.authority, tcp.access.throttle
    context = HttpContext(
        tcp.coordinator, tcp.keys, tcp.limits, authority, tcp.welcome.server, throttle, tcp.admission,
        tcp.listeners,
    )  # fmt: skip
    door = HttpListener(context, tcp.admission)
    doors.push_async_callback(finish, door.stop)
    doors.enter_context(authority.observed(door.dismiss))
    return await door.start(*address, tls)


def _checked(address: str, name: str, safe: bool) -> tuple[str, int]:
    host, port = parse_host_port(address, name=name)
    if not safe and not is_loopback(host):
        expected = (
            "a loopback address, or come with tokens (--token-file) or client certificates (--tls-ca), or"
            " with insecure=True (--insecure) to let anybody in"
        )
        raise RendezvousSettingsError.of(name, address, expected)
    return host, port

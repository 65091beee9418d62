"""Servers that stand in for each other: one leads, the others send clients there, and one of them follows it.

A directory says who leads. Whoever is not the leader tells native clients the leader's URL, and passes all
else on to it, see `tcp.relay` and `http.resources.leader`. When the leader is gone all others campaign. A
server listens at the same ports whatever it does; for the moment in which that changes, nobody listens there.

The runs and keys are the leader's alone. Where the directory has a journal, as etcd has, it records them
there, and the next leader goes on with them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import anyio

from arendezvous.coordinator.coordinator import Coordinator
from arendezvous.directory.port import Directory, Leader, Office
from arendezvous.errors import RendezvousConnectionError, RendezvousError
from arendezvous.keyspace.host import KeyspaceHost
from arendezvous.net.background import Background, finish, require_asyncio
from arendezvous.net.backoff import DEFAULT_BACKOFF
from arendezvous.net.endpoint import join_host_port, parse_host_port
from arendezvous.server.access.admission import Admission
from arendezvous.server.access.authority import Access, Authority
from arendezvous.server.access.limits import DEFAULT_LIMITS, ServerLimits
from arendezvous.server.context import ServerContext
from arendezvous.server.leadership import Leadership
from arendezvous.server.serve import ServerSettings, serve_here
from arendezvous.server.tcp.relay import RelayListener
from arendezvous.server.tcp.sharing import Shared
from arendezvous.server.tls import ServerTls

if TYPE_CHECKING:
    from arendezvous.server.http.listener import HttpListener

logger = logging.getLogger(__name__)

EVERYWHERE: Final = ("0.0.0.0", "::")  # noqa: S104 - no address at which others find it


class FleetServer:
    """One server of a fleet.

    Attributes:
        leadership: Who leads.
        _directory: Says who leads; open.
        _settings: How it serves; with the ports, once they are known.
        _ready: Set once it listens.
        _failed: Set when it has stopped working, with `_background.error`.
        _follows: Whether there has been a leader, whose nodes may come back.
    """

    def __init__(self, directory: Directory, settings: ServerSettings) -> None:
        self.leadership = Leadership()
        self._directory = directory
        self._settings = settings
        self._ready = anyio.Event()
        self._failed = anyio.Event()
        self._follows = False
        self._background = Background(
            f"server {join_host_port(*settings.tcp)} of a fleet", lambda _: self._failed.set()
        )

    @property
    def tcp_url(self) -> str:
        """Tells what nodes pass as their endpoint, or as one of several there."""
        return f"tcp://{join_host_port(*self._settings.tcp)}"

    @property
    def http_url(self) -> str | None:
        """The base URL for HTTP; None without it."""
        http = self._settings.http
        return None if http is None else self._settings.http_url(http[0])

    def reload(self) -> bool:
        """See `Server.reload`."""
        return self._settings.reload()

    async def failed(self) -> RendezvousError:
        """Waits until it cannot go on, and returns why. Cancellation: safe."""
        await self._failed.wait()
        assert self._background.error is not None  # noqa: S101 - it is there by then
        return self._background.error

    async def start(self) -> None:
        """Listens, and begins to follow or to lead.

        Raises:
            RendezvousConnectionError: An address cannot be bound.
        """
        async with self._following():
            pass  # finds out whether the addresses can be bound, and which ports they have
        self._background.start(self._take_part)
        await self._ready.wait()

    async def stop(self) -> None:
        """Ends: if it leads, another server may do so at once."""
        await self._background.close()

    async def _take_part(self) -> None:
        pauses = DEFAULT_BACKOFF.start()
        while True:
            try:
                await self._lead(await self._follow())
                pauses.reset()
            except RendezvousConnectionError as error:  # somebody else has taken a port meanwhile
                logger.warning("%s: %s", self.tcp_url, error)
                await pauses.sleep()

    async def _follow(self) -> Office:
        """Sends everybody to the leader, whoever that is, until this server becomes it."""
        pauses = DEFAULT_BACKOFF.start()
        async with self._following() as drop:
            self._ready.set()
            while True:
                try:
                    if (office := await self._stand_by(drop)) is not None:
                        return office
                    pauses.reset()
                except RendezvousError as error:
                    logger.warning("%s: %s", self.tcp_url, error)
                    await pauses.sleep()

    async def _stand_by(self, drop: Callable[[], None]) -> Office | None:
        """Waits until the leader is another one, if there is one; else campaigns."""
        leader = await self._directory.leader()
        if leader != self.leadership.leader:
            self.leadership.leader = leader
            drop()  # those who are passed on to the one before, which may only be out of reach
        if leader is None:
            office = await self._directory.campaign(self._listen)
            if office is not None:
                self.leadership.leader = office.leader
                await asyncio.sleep(0)  # in which those who wait for a leader are told
            return office
        self._follows = True
        logger.info("%s follows %s", self.tcp_url, leader.tcp)
        await self._directory.changed(leader)
        return None

    async def _lead(self, office: Office) -> None:
        """Serves until the office is lost, from what is recorded in the journal of the office on."""
        serving = serve_here(
            self._settings,
            self._directory.journal(office),
            follows=self._follows,
            leadership=self.leadership,
            office=office,
        )
        try:
            async with serving:
                self.leadership.leader, self.leadership.is_own = office.leader, True
                logger.info("%s leads, term %d", self.tcp_url, office.leader.term)
                await office.lost()
        finally:
            self.leadership.leader, self.leadership.is_own = None, False
            self._follows = True
            await finish(office.resign)

    async def _listen(self, host: str, port: int) -> Leader:
        """Returns where this server listens already; at all addresses of this machine: by `host`."""
        http = self.http_url or ""
        return Leader(_at(self.tcp_url, host), _at(http, host) if http else "")

    @asynccontextmanager
    async def _following(self) -> AsyncIterator[Callable[[], None]]:
        """Listens as one that does not lead; yields how to drop all clients."""
        settings, coordinator = self._settings, Coordinator(asyncio.get_running_loop())
        context = ServerContext(
            coordinator,
            KeyspaceHost(settings.limits.store),
            Shared(settings.limits, settings.access.throttle),
            settings.access,
            Admission.of(settings.limits),
            leadership=self.leadership,
        )
        async with AsyncExitStack() as stack:
            stack.callback(coordinator.close)
            stack.callback(context.shared.close)
            relay = RelayListener(context, "tcp", knows_clients=settings.tls is None)
            listeners: list[RelayListener | HttpListener] = [relay]
            stack.push_async_callback(finish, relay.stop)
            self._settings = settings = replace(settings, tcp=await relay.start(*settings.tcp))
            if settings.http is not None:
                listener = self._http_listener(context)
                stack.push_async_callback(finish, listener.stop)
                self._settings = replace(settings, http=await listener.start(*settings.http))
                listeners.append(listener)
            stack.callback(context.admission.close)

            def drop() -> None:
                for each in listeners:
                    each.drop()

            yield drop

    def _http_listener(self, context: ServerContext) -> RelayListener | HttpListener:
        if self._settings.tls is not None:
            return RelayListener(context, "http")
        from arendezvous.server.http.listener import HttpListener  # here, because not everybody needs aiohttp
        from arendezvous.server.http.resources import OF_FOLLOWERS

        return HttpListener(context, OF_FOLLOWERS)


@asynccontextmanager
async def serve_fleet(
    directory: Directory,
    address: str = "127.0.0.1:29400",
    *,
    http: str | None = None,
    insecure: bool = False,
    limits: ServerLimits = DEFAULT_LIMITS,
    authority: Authority | None = None,
    tls: ServerTls | None = None,
    plain_stores: bool = False,
) -> AsyncIterator[FleetServer]:
    """Serves as one of several servers that stand in for each other, while the block runs.

    The `directory`, which is not open yet, says who leads. The other arguments are those of `serve`, the same
    for all of them: either all servers have `http`, or none. Each server must be reached by the others and
    all nodes; one that listens at all addresses (``0.0.0.0``) gives that by which it reaches the directory.
    With `tls`, native clients are not told who leads, as a follower cannot read what it passes on, and
    certificates have to name all servers.

    Leaving the block closes all connections, and resigns: another server leads at once.

    Raises:
        RendezvousSettingsError: See `serve`.
        RendezvousConnectionError: An address cannot be bound.
    """
    require_asyncio("a server")
    access = Access(authority or Authority(), plain_stores=plain_stores)
    settings = ServerSettings.of(address, http, access, limits, tls, insecure=insecure)
    async with directory:
        server = FleetServer(directory, settings)
        try:
            await server.start()
            yield server
        finally:
            await finish(server.stop)


def _at(url: str, host: str) -> str:
    """The URL of a server, with `host` if it listens at all addresses."""
    scheme, _, where = url.partition("://")
    own, port = parse_host_port(where, name="address")
    return f"{scheme}://{join_host_port(host if own in EVERYWHERE else own, port)}"

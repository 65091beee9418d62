"""`serve`: the whole server as one asynchronous context manager."""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final, Self

import anyio

from arendezvous.coordinator.clock import StallProofClock
from arendezvous.coordinator.coordinator import Coordinator
from arendezvous.coordinator.journal import Journal
from arendezvous.coordinator.recovery import recover
from arendezvous.directory.port import Office
from arendezvous.errors import RendezvousSettingsError
from arendezvous.keyspace.grants import run_prefix
from arendezvous.keyspace.host import KeyspaceHost
from arendezvous.law import events
from arendezvous.net.addresses import is_loopback, shown_address
from arendezvous.net.background import finish, require_asyncio
from arendezvous.net.endpoint import join_host_port, parse_host_port
from arendezvous.net.own_thread import in_own_thread
from arendezvous.net.typed import typed
from arendezvous.server.access.admission import Admission
from arendezvous.server.access.authority import Access, Authority
from arendezvous.server.access.limits import DEFAULT_LIMITS, ServerLimits
from arendezvous.server.binding import was_served
from arendezvous.server.context import ServerContext
from arendezvous.server.leadership import Leadership
from arendezvous.server.misdirected import Listeners
from arendezvous.server.recording import record_events
from arendezvous.server.tcp.listener import TcpListener
from arendezvous.server.tcp.sharing import Shared
from arendezvous.server.tls import ServerTls

LINGER: Final = 5.0  # seconds that an embedded server waits at most for the other nodes before it ends
SETTLE: Final = 1.0  # seconds after which the members of a round have told each other what they need to know


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Sets how a server serves, alone or in a fleet."""

    tcp: tuple[str, int]  # the address that it listens on
    http: tuple[str, int] | None  # the address that it listens on for HTTP; None: none
    access: Access  # who may come in
    limits: ServerLimits  # what it takes on
    tls: ServerTls | None  # its TLS settings; None: it serves without TLS

    @classmethod
    def of(
        cls,
        address: str,
        http: str | None,
        access: Access,
        limits: ServerLimits,
        tls: ServerTls | None,
        *,
        insecure: bool,
    ) -> Self:
        """Parses the addresses; refuses those that others can reach where nothing keeps anybody out.

        Raises:
            RendezvousSettingsError: One is refused, or malformed.
        """
        safe = insecure or access.authority.asks or (tls is not None and tls.is_mutual)
        tcp = _checked_address(address, "address", safe)
        return cls(tcp, None if http is None else _checked_address(http, "http", safe), access, limits, tls)

    def http_url(self, host: str) -> str | None:
        """The base URL for HTTP; None without it."""
        scheme = "http" if self.tls is None else "https"
        return None if self.http is None else f"{scheme}://{join_host_port(host, self.http[1])}"

    def reload(self) -> bool:
        """See `Server.reload`."""
        return all([self.access.authority.reload(), self.tls is None or self.tls.reload()])


class Server:
    """A running server.

    Attributes:
        host: The address that it listens on.
        port: The port that it listens on.
        coordinator: Where its runs are; of the loop that it serves on.
        is_serving: Whether it still serves: the block has not been left, and the loop has not ended.
        authority: Who may do what at it.
        tls: Its TLS settings; None: it serves without TLS.
    """

    def __init__(self, settings: ServerSettings, context: ServerContext) -> None:
        self.host, self.port = settings.tcp
        self.coordinator = context.coordinator
        self.is_serving = True
        self.authority = settings.access.authority
        self.tls = settings.tls
        self._settings = settings
        self._admission = context.admission
        self._patience = anyio.CancelScope()

    @property
    def tcp_url(self) -> str:
        """Tells what nodes pass as their endpoint; an address that others can use, if it listens on all."""
        return f"tcp://{join_host_port(shown_address(self.host), self.port)}"

    @property
    def http_url(self) -> str | None:
        """The base URL of the HTTP listener, as `tcp_url`; None without one."""
        http = self._settings.http
        return None if http is None else self._settings.http_url(shown_address(http[0]))

    def reload(self) -> bool:
        """Reads the token file and the certificate again; returns whether both went well.

        What could not be read stays as it was; the log says why. Those whose tokens are gone are dropped.
        """
        return self._settings.reload()

    async def linger(self) -> None:
        """Waits, for `LINGER` seconds at most, until nobody needs it; called before it ends."""
        self._patience.deadline = anyio.current_time() + LINGER
        with self._patience:
            await _spared(self.coordinator)

    def take(self, office: Office) -> None:
        """Serves from now on only while an office is held; to be called on the loop that it serves on."""
        self._admission.office = office

    def hurry(self) -> None:
        """Has it wait for nobody when it ends; to be called on the loop that it serves on."""
        self._patience.cancel()


@typed
def serve(
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
    data_dir: str | Path | None = None,
    sync_full: bool = False,
    journal: Journal | None = None,
    thread: bool = False,
) -> AbstractAsyncContextManager[Server]:
    """Serves native sessions, and the protocol of torch's TCPStore, on `address` while the block runs.

    Args:
        address: ``host:port``; port 0 picks a free one.
        http: ``host:port`` for HTTP as well; None: no HTTP.
        insecure: Allows an address that is not loopback: anybody who reaches it may join and close runs.
        embedded: Tells the nodes that one of them hosts it, so that another may when this one ends. Leaving
            the block then waits, for `LINGER` seconds at most, until nobody is in the middle of something.
        follows: Another server was in this place before, whose nodes may come back, see
            `Coordinator.follow`. That is found out by itself if it ended on this machine in the last minute.
        limits: What it takes on.
        authority: Whose tokens are good here, `Authority.from_file` for one; None asks nobody for a token.
        tls: The certificate to serve TLS with, at all listeners, and whether clients must show one, too; None
            serves without TLS.
        plain_stores: Lets clients of a TCPStore that show no token, as stock torch's, use all of the store
            although tokens are asked for.
        data_dir: A directory, made if it is not there, in which rounds, closed runs, operators' decisions,
            keys and queues outlive the server, killed at any moment; for one server at a time. None: they end
            with the server, but for the rounds, which their members bring back.
        sync_full: Has them outlive a power cut of this machine, too; a commit then takes the disk's time.
        journal: Where else they are to be kept; not together with `data_dir`.
        thread: Serves on a loop in a thread of its own, so that a program that blocks its loop keeps nobody
            waiting. The server's `coordinator` must then be left alone.

    Returns:
        What serves, and gives the `Server`, while it is entered.

    Raises:
        RendezvousTypeError: An argument has another type than it takes.
        RendezvousSettingsError: The address is malformed; or it is not loopback, and there are neither
            tokens, nor client certificates, nor `insecure`; or `data_dir` and `journal` are both given.
        RendezvousConnectionError: The address cannot be bound.
        RendezvousStateError: `data_dir` is another server's, or cannot be used; the message says what to do.
        RendezvousError: This process cannot have another thread.

    Leaving the block closes all connections; nodes try to reconnect, so a server that is started again on
    the same address gets them back.
    """
    if data_dir is not None:
        if journal is not None:
            raise RendezvousSettingsError.of("journal", journal.name, "left out with data_dir, which is one")
        from arendezvous.coordinator.journals.sqlite import SqliteJournal  # here, as not everybody needs it

        journal = SqliteJournal(data_dir, full=sync_full)
    access = Access(authority or Authority(), plain_stores=plain_stores)
    settings = ServerSettings.of(address, http, access, limits, tls, insecure=insecure)
    make = partial(serve_here, settings, journal, embedded=embedded, follows=follows)
    return in_own_thread(make, f"arendezvous server at {address}") if thread else make()


@asynccontextmanager
async def serve_here(
    settings: ServerSettings,
    journal: Journal | None,
    *,
    follows: bool,
    embedded: bool = False,
    leadership: Leadership | None = None,
    office: Office | None = None,
) -> AsyncIterator[Server]:
    """Serves on the running loop; see `serve`. With `leadership` and `office`, it leads a fleet."""
    require_asyncio("a server")
    access, limits, tls = settings.access, settings.limits, settings.tls
    loop = asyncio.get_running_loop()
    clock = StallProofClock(loop)
    coordinator = Coordinator(loop, clock, limits.coordinator)
    keys = KeyspaceHost(limits.store)
    tidy_up(coordinator, keys)
    admission = Admission.of(limits)
    admission.office = office
    listeners = Listeners(secrets.token_hex(8), secure=tls is not None)
    shared = Shared(limits, access.throttle)
    context = ServerContext(coordinator, keys, shared, access, admission, listeners, leadership)
    tcp = TcpListener(context, embedded=embedded)
    async with AsyncExitStack() as stack:
        stack.callback(coordinator.close)
        if journal is not None:
            await stack.enter_async_context(journal)
            commits = await recover(journal, coordinator, keys)
            stack.push_async_callback(finish, commits.finish)
            if coordinator.records is not None:
                stack.callback(coordinator.records.history.hurry)
        else:
            coordinator.entrust()
        stack.push_async_callback(finish, tcp.stop)
        stack.enter_context(access.authority.observed(tcp.dismiss))
        stack.enter_context(access.authority.kept_fresh())
        stack.callback(clock.stop)
        named = [port for _, port in filter(None, (settings.tcp, settings.http)) if port]
        settings = replace(settings, tcp=await tcp.start(*settings.tcp, tls))
        if settings.http is not None:
            settings = replace(settings, http=await _open_http(stack, context, tls, settings.http))
        has_record = coordinator.records is not None and not coordinator.records.is_first
        if not has_record and (follows or any(map(was_served, named))):
            coordinator.follow()  # runs may be unknown here that the one before knew; no client was heard yet
        stack.callback(admission.close)
        server = Server(settings, context)
        record_events(coordinator, server.tcp_url)
        try:
            yield server
            if embedded:
                await server.linger()
        finally:
            server.is_serving = False


async def _spared(coordinator: Coordinator) -> None:
    """Waits until nobody is in the middle of something for which they need this server. Cancellation: safe.

    If all runs are closed, their nodes are about to leave. Where a round has just been completed, its members
    tell each other through the store what they need to know; whoever takes over would not have these keys.
    """
    if not all(run.state.closed is not None for run in coordinator.runs.values()):
        await _settled(coordinator)
        return
    gone = anyio.Event()

    def look(*_: object) -> None:
        if not any(run.state.nodes for run in coordinator.runs.values()):
            gone.set()

    stop = coordinator.observe(look)
    try:
        look()
        await gone.wait()
    finally:
        stop()


async def _settled(coordinator: Coordinator) -> None:
    """Waits until no round that has members was completed in the last `SETTLE` seconds."""
    while True:
        completed = [
            when
            for run in coordinator.runs.values()
            if run.state.complete and run.state.participants
            for when, event in run.history
            if isinstance(event, events.RoundCompleted)
        ]
        left = max(completed, default=-math.inf) + SETTLE - coordinator.clock()
        if left <= 0:
            return
        await anyio.sleep(left)


async def _open_http(
    stack: AsyncExitStack, context: ServerContext, tls: ServerTls | None, address: tuple[str, int]
) -> tuple[str, int]:
    from arendezvous.server.http.listener import HttpListener  # here, because not everybody needs aiohttp

    listener = HttpListener(context)
    stack.push_async_callback(finish, listener.stop)
    stack.enter_context(context.access.authority.observed(listener.dismiss))
    return await listener.start(*address, tls)


def _checked_address(address: str, name: str, safe: bool) -> tuple[str, int]:
    """Parses the address to listen on; refuses one that others can reach, unless that is `safe`.

    Raises:
        RendezvousSettingsError: It is refused, or malformed.
    """
    host, port = parse_host_port(address, name=name)
    if not safe and not is_loopback(host):
        expected = (
            "a loopback address, or come with tokens (--token-file) or client certificates (--tls-ca), or"
            " with insecure=True (--insecure) to let anybody in"
        )
        raise RendezvousSettingsError.of(name, address, expected)
    return host, port


def tidy_up(coordinator: Coordinator, keys: KeyspaceHost) -> Callable[[], None]:
    """Keeps the rounds' keys of `coordinator`'s runs in `keys` from piling up; returns how to stop that.

    When a round opens, or the last node leaves, nobody reads the keys any more of the round before.
    """

    def observe(run_id: str, _: float, event: events.LawEvent) -> None:
        run = coordinator.runs.get(run_id)
        deserted = isinstance(event, events.NodeDeparted) and run is not None and not run.state.nodes
        if deserted or isinstance(event, events.RoundOpened):
            keys.delete_run(f"/{run_prefix(run_id)}/".encode())

    return coordinator.observe(observe, events.NodeDeparted, events.RoundOpened)

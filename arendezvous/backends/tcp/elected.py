"""``etcd://``: a rendezvous at our server, which is found in etcd, and which a node hosts if nobody serves.

The nodes' processes are the candidates. The one that is elected serves in a thread of its own, in which it
also keeps its office; when it ends, another one leads. Everybody speaks the native protocol with the leader,
so that nothing of the rendezvous itself is etcd's business.
"""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Final

import anyio
import msgspec

from arendezvous.backends.hosting import embedded_server, may_serve
from arendezvous.backends.tcp.session import SessionBackend
from arendezvous.backends.tcp.watching import W, watch_server
from arendezvous.directory.etcd import DEFAULT_PREFIX, EtcdDirectory
from arendezvous.directory.port import Leader, Office
from arendezvous.errors import RendezvousConnectionError, RendezvousError, RendezvousStateError
from arendezvous.etcd.cluster import EtcdCluster
from arendezvous.net.addresses import is_loopback, loopback_id
from arendezvous.net.background import Background, finish
from arendezvous.net.credentials import NO_CREDENTIALS, Credentials
from arendezvous.net.endpoint import join_host_port
from arendezvous.net.own_thread import in_own_thread, may_use_threads
from arendezvous.net.servers import SOON, Locator, Place, place_of
from arendezvous.server.binding import bind
from arendezvous.server.serve import Server

logger = logging.getLogger(__name__)

REQUEST_TIMEOUT = 5.0  # seconds after which etcd counts as out of reach
WATCHED: Final = 0.1  # seconds of a pause in which a node watches whether the leader changes


class ElectedServer(Locator):
    """The server that leads by a directory in etcd; hosted here if nobody leads, and this process may.

    Args:
        make: Makes the directory, not open yet.
        credentials: What a server of this process asks for, and the node shows; without a token, that of the
            directory.
        is_host: Whether this process may host it; None: if it can.

    Attributes:
        credentials: The same; with the token, once it is connected.

    Its other fields:
        _hosting: Ends the server of this process.
        _campaigning: Held while it is settled who serves, once for all who want to connect.
        _found: Who led when it was connected to etcd, until that has been used.
        _seen: Who led when that was looked up last.
        _tried: Who led when an attempt last failed.
        _known: Whether somebody has led before.
    """

    def __init__(
        self, make: Callable[[], EtcdDirectory], credentials: Credentials, *, is_host: bool | None
    ) -> None:
        super().__init__()
        self._make = make
        self.credentials = credentials
        self._may_host = is_host is not False and may_serve(credentials, is_host)
        self._directory = make()
        self._hosting = AsyncExitStack()
        self._campaigning = anyio.Lock()
        self._found: Leader | None = None
        self._seen: Leader | None = None
        self._tried: Leader | None = None
        self._known = False

    def __str__(self) -> str:
        return self._directory.name.removeprefix("etcd://")

    attempts = 1
    has_others = True

    async def connect(self, seconds: float) -> None:
        """Connects to etcd, and learns the token. Raises as `EtcdDirectory.leader` and `secret` do."""
        await self._directory.__aenter__()
        self._found = await self._directory.leader(seconds)
        if not self.credentials.token:
            token = await self._directory.secret()
            self.credentials = msgspec.structs.replace(self.credentials, token=token)

    async def locate(self) -> Place:
        """Returns where the leader is; becomes it if there is none.

        Raises:
            ConnectionError: Nobody leads, or etcd does not say; to be tried again.
            StoreError: etcd does not let this process look.
            RendezvousStateError: The leader is at an address of another machine's loopback.
        """
        try:
            async with self._campaigning:
                leader, self._found = self._found or await self._directory.leader(), None
                if leader is None and self._may_host:
                    await self._campaign()
                    leader = await self._directory.leader()
                self._seen = leader
        except RendezvousConnectionError as error:
            raise ConnectionError(error.message) from error
        if leader is None:
            raise ConnectionError(f"by {self._directory.name} nobody serves at the moment")
        host, port = place_of(leader.tcp)
        if is_loopback(host) and leader.loopback not in ("", loopback_id()):
            raise RendezvousStateError(
                f"by {self._directory.name} the server that leads is at {leader.tcp}, which only its own"
                " machine can reach, and that is another one: it reaches etcd by loopback. Give its nodes"
                " an endpoint with an address of etcd that all machines use"
            )
        self._known = True
        return host, port

    async def pause(self, seconds: float) -> bool:
        """See `Locator.pause`; when the leader goes, those who may follow it spread over what is left."""
        if self._seen not in (None, self._tried):
            self._tried = self._seen
            await anyio.sleep(min(seconds, SOON))
            return True
        if seconds < WATCHED:
            return await super().pause(seconds)
        with anyio.move_on_after(seconds) as scope:
            try:
                if await self._directory.changed(self._seen) is None:
                    left = scope.deadline - anyio.current_time()
                    scope.deadline -= left * random.random()  # noqa: S311 - spreads, hides nothing
                    await self._directory.changed(None)
            except RendezvousError:  # the next attempt tells
                await anyio.sleep_forever()
        return False

    async def close(self) -> None:
        """Ends the server of this process, if there is one, once others can do without it."""
        try:
            await self._hosting.aclose()
        finally:
            await finish(self._directory.__aexit__, None, None, None)

    async def _campaign(self) -> None:
        await self._hosting.aclose()  # that of an office that was lost
        leading = partial(lead, self._make, self.credentials, follows=self._known)
        name = f"arendezvous server found by {self._directory.name}"
        serving = in_own_thread(leading, name) if may_use_threads() else leading()
        server = await self._hosting.enter_async_context(serving)
        if server is None:
            await self._hosting.aclose()
        else:
            logger.info("serving %s in this process", server.tcp_url)


@asynccontextmanager
async def lead(
    make: Callable[[], EtcdDirectory], credentials: Credentials, *, follows: bool
) -> AsyncIterator[Server | None]:
    """Serves while the block runs, for as long as the office is held; yields None if somebody else leads.

    Until it is elected it only keeps its port, and those who come there have to wait: it serves what is
    recorded in the journal of the office, and nothing before that is loaded. It `follows` a leader, or not.
    """
    async with make() as directory, AsyncExitStack() as serving, AsyncExitStack() as kept:

        async def listen(host: str, port: int) -> Leader:
            for sock in await bind(host, port):
                kept.callback(sock.close)
                port = sock.getsockname()[1]
            return Leader(f"tcp://{join_host_port(host, port)}")

        office = await directory.campaign(listen)
        await kept.aclose()
        if office is None:
            yield None
            return
        host, port = place_of(office.leader.tcp)
        journal = directory.journal(office)
        leading = embedded_server(host, port, credentials, follows=follows, thread=False, journal=journal)
        server = await serving.enter_async_context(leading)
        server.take(office)
        background = Background(f"the office of {office.leader.tcp}", lambda _: None)
        background.start(_step_down, office, server, serving)
        try:
            yield server
            await serving.aclose()  # and the office is kept meanwhile
        finally:
            await background.close()


async def _step_down(office: Office, server: Server, serving: AsyncExitStack) -> None:
    """Sends everybody away as soon as somebody else may lead."""
    await office.lost()
    server.hurry()
    await finish(serving.aclose)


@asynccontextmanager
async def watch_elected(
    kind: type[W],
    run_id: str,
    cluster: EtcdCluster,
    prefix: str = DEFAULT_PREFIX,
    *,
    timeout: float,
    token: str = "",
) -> AsyncIterator[W]:
    """Watches a run, or all runs, at the server that leads by etcd, and never serves; see `watch_server`.

    The server is shown the `token`; if that is empty, the one that is found in etcd. Connecting may take
    `timeout` seconds.

    Raises:
        RendezvousConnectionError: Etcd, or the server, could not be reached in that time.
        StoreError: Etcd does not let this process look.
    """
    make = partial(EtcdDirectory, cluster, prefix=prefix, read_timeout=timeout)
    elected = ElectedServer(make, Credentials(token=token), is_host=False)
    try:
        await elected.connect(timeout)
        shown = elected.credentials
        async with watch_server(elected, kind, run_id, timeout=timeout, credentials=shown) as news:
            yield news
    finally:
        await elected.close()


async def find_leader(cluster: EtcdCluster, prefix: str = DEFAULT_PREFIX, *, timeout: float) -> Leader | None:
    """Looks up who serves by etcd, as a joining node does; None: nobody does. Raises as `watch_elected`."""
    async with EtcdDirectory(cluster, prefix=prefix, read_timeout=timeout) as directory:
        leader = await directory.leader(timeout)
        await directory.secret()
    return leader


class ElectedBackend(SessionBackend):
    """A run at the server that leads by etcd, which this process hosts if nobody does.

    Args:
        run_id: The run.
        cluster: How to reach etcd; see `EtcdClient`.
        prefix: What the keys in etcd begin with; all runs below one prefix have one server.
        read_timeout: See `SessionBackend`, as for `join_timeout`.
        credentials: What the server is shown, and what one of this process asks for.
        is_host: False never serves; None serves if nobody does.
        port: The port at which a server of this process listens; 0 picks a free one.

    Raises:
        RendezvousSettingsError: An endpoint or a file is not what it has to be.
    """

    name = "etcd"

    def __init__(
        self,
        run_id: str,
        cluster: EtcdCluster,
        prefix: str = DEFAULT_PREFIX,
        *,
        read_timeout: float = 60.0,
        join_timeout: float = 600.0,
        credentials: Credentials = NO_CREDENTIALS,
        is_host: bool | None = None,
        port: int = 0,
    ) -> None:
        def make() -> EtcdDirectory:
            timeout = min(read_timeout, REQUEST_TIMEOUT)
            return EtcdDirectory(cluster, prefix=prefix, read_timeout=timeout, port=port)

        self._elected = ElectedServer(make, credentials, is_host=is_host)
        timeouts = {"read_timeout": read_timeout, "join_timeout": join_timeout}
        super().__init__("", 0, run_id, **timeouts, credentials=credentials, servers=self._elected)

    @property
    def endpoint(self) -> str:
        return f"etcd://{self._elected}"

    async def _open(self) -> None:
        """Connects to the server that leads; serves if nobody does."""
        self._resources.push_async_callback(self._elected.close)
        await self._elected.connect(min(self._read_timeout, self._join_timeout))
        self.show(self._elected.credentials)
        await super()._open()

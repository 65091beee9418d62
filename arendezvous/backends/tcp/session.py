"""``tcp://``: a rendezvous at our server, in native sessions that outlive their connections."""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from itertools import count
from typing import Final, TypeVar

import anyio
import msgspec

from arendezvous.backends import troubles
from arendezvous.backends.base import BACKOFF, BackendBase
from arendezvous.backends.entrusted import EntrustedImages
from arendezvous.backends.feed import Presentations, ViewFeed
from arendezvous.backends.port import subject
from arendezvous.backends.tcp.connection import ClientConnection, GiveUp, Request, RequestTable
from arendezvous.backends.tcp.watching import RunWatch, states_in, watch_server
from arendezvous.errors import RendezvousConnectionError, RendezvousError
from arendezvous.law.barriers import Met
from arendezvous.law.operations import Arrive, Join, Leave, Operation, Progress, Resume, Update, Withdraw
from arendezvous.law.rosters import Member, MemberGone
from arendezvous.law.state import NodeView, Phase
from arendezvous.law.status import RunStatus
from arendezvous.net.background import settle
from arendezvous.net.credentials import NO_CREDENTIALS, Credentials
from arendezvous.net.reach import Reach
from arendezvous.net.servers import SOON, Locator, MovedError, Servers, silence
from arendezvous.net.tls import speaks_no_tls
from arendezvous.stores.port import Store
from arendezvous.stores.tcp.store import TcpStore
from arendezvous.wire.native import messages as wire
from arendezvous.wire.native.versions import check_peer

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT: Final = 5.0
OTHERS_TIMEOUT: Final = 1.0  # likewise, at first, where there are other servers to be asked
_PRESENTING: Final = (Join, Resume)
_SAYINGS: Final = (Update, Progress, Arrive)
R = TypeVar("R", bound=wire.ServerMessage)


class SessionBackend(BackendBase):
    """A run at our server.

    A connection that breaks is made again, with a back-off from 10 ms to 0.5 s; members then present their
    rank, and requests in flight are sent again.

    Args:
        host: Where the server is.
        port: Its port.
        run_id: The run; empty to look at the server alone.
        read_timeout: Seconds that a request, or connecting, may take before `RendezvousConnectionError`.
        join_timeout: Seconds that a node that waits for a round endures to be without a server.
        credentials: The token that it shows the server, and the TLS settings.
        servers: All servers that stand in for each other, `host` among them; None: there is just that one.
    """

    name = "tcp"

    def __init__(
        self,
        host: str,
        port: int,
        run_id: str,
        *,
        read_timeout: float = 60.0,
        join_timeout: float = 600.0,
        credentials: Credentials = NO_CREDENTIALS,
        servers: Locator | None = None,
    ) -> None:
        super().__init__()
        self._servers: Locator = servers or Servers([(host, port)])
        self._hello = wire.Hello(wire.VERSION, run_id, secrets.token_bytes(16), credentials.token)
        self._tls = credentials.fresh_context()
        self.credentials = credentials
        self._read_timeout = read_timeout
        self._join_timeout = join_timeout
        self._place = (host, port)  # which of the servers was asked last
        self._reached = False  # whether it was there
        self._connection: ClientConnection | None = None
        self._reach = Reach()
        self._welcome: asyncio.Future[None] | None = None
        self._requests = RequestTable(read_timeout, self._unreachable, self._abort_silent_connection)
        self._entrusted = EntrustedImages()
        self._presentations = Presentations()
        self._pauses = BACKOFF.start()
        self._restoring = False
        self._reason = "it did not answer"
        self._store: TcpStore | None = None
        self._embedded = False
        self._version = wire.VERSION
        self.server_id = ""

    def show(self, credentials: Credentials) -> None:
        """Shows other credentials to the server from now on; to be called before it is entered."""
        self.credentials = credentials
        self._hello = msgspec.structs.replace(self._hello, token=credentials.token)

    @property
    def endpoint(self) -> str:
        return f"tcp://{self._servers}"

    @property
    def store(self) -> Store | None:
        """The server's store; it connects when it is first used."""
        if self._store is None:
            shown, servers, seconds = self.credentials, self._servers, self._read_timeout
            self._store = TcpStore(*self._place, read_timeout=seconds, credentials=shown, servers=servers)
        return self._store

    @property
    def reach(self) -> Reach:
        return self._reach

    async def _open(self) -> None:
        """Connects; tries again until the read time-out is over, or that for joining, if it is shorter."""
        patience = min(self._read_timeout, self._join_timeout)
        self._restoring = True  # what is lost meanwhile is for this to restore, and not for the background
        try:
            if not await self._reconnect(patience):
                raise self._unreachable(patience)
        finally:
            self._restoring = False
        if self._connection is None:  # lost again already
            self._check_open().start(self._restore)

    async def _close(self) -> None:
        self._drop_connection()
        self._requests.close()
        store, self._store = self._store, None
        if store is not None:
            await store.close()

    async def propose(self, operation: Operation) -> NodeView:
        return await self._propose(operation, self._join_timeout if isinstance(operation, Join) else None)

    async def join(self, operation: Join, timeout: float) -> NodeView | None:
        try:
            return await self._propose(operation, timeout, TimeoutError)
        except RendezvousError:  # a TimeoutError, too
            raise
        except TimeoutError:
            return None

    async def _propose(
        self, operation: Operation, patience: float | None, give_up: GiveUp | None = None
    ) -> NodeView:
        if self._version < wire.VERSION:
            check_peer(operation, self._version, self.endpoint)
        node = subject(operation)
        if isinstance(operation, _PRESENTING):
            self._feeds.setdefault(node, ViewFeed())
            longest = silence(operation.settings.expiry, has_others=self._servers.has_others)
            self._requests.answer_timeout = min(self._read_timeout, longest)
        self._presentations.note(operation)
        try:
            answer = await self._ask(partial(wire.Propose, operation=operation), node, patience, give_up)
        finally:
            if isinstance(operation, Leave):
                self._presentations.left(node)
        if isinstance(answer, wire.View):
            return answer.view
        feed = self._feeds.get(node)
        if isinstance(answer, wire.Ack) and feed is not None:
            return await feed.changed(-1)  # at once, but for a heartbeat that is answered before the join
        said = f"{self.endpoint} answered {type(answer).__name__} to {type(operation).__name__}"
        raise RendezvousConnectionError(said, endpoint=self.endpoint)

    async def meet(self, operation: Arrive | Withdraw) -> Met:
        if self._version < wire.VERSION:
            check_peer(operation, self._version, self.endpoint)
        make = partial(wire.Propose, operation=operation)
        patience = math.inf if isinstance(operation, Arrive) else None
        met = (await self._expect(wire.Standing, make, patience)).met
        if met.passed and isinstance(operation, Arrive):
            self._presentations.note(operation)
        return met

    @asynccontextmanager
    async def states(self) -> AsyncIterator[AsyncIterator[tuple[str, bytes]]]:
        """See `RendezvousBackend.states`; on a connection of its own."""
        self._check_open()
        run_id = self._hello.run_id
        async with watch_server(self._servers, RunWatch, run_id, credentials=self.credentials) as news:
            yield states_in(news)

    async def status(self) -> RunStatus:
        return (await self._expect(wire.Status, wire.GetStatus)).status

    async def roster(self, incarnation: int, round_: int) -> tuple[Member, ...]:
        """See `RendezvousBackend.roster`; a server of version 1 lists those that remain."""
        if self._version < wire.VERSION:
            asked = partial(wire.GetMembers, incarnation=incarnation, round=round_)
            members = (await self._expect(wire.Members, asked)).members
            return tuple(map(Member.of, members, count()))
        found: list[Member] = []
        while True:
            first = partial(wire.GetRoster, incarnation=incarnation, round=round_, first=len(found))
            page = await self._expect(wire.RosterPage, first)
            found += page.members
            if not page.members or len(found) >= page.size:
                return tuple(found)

    async def gone(self, incarnation: int, round_: int) -> tuple[MemberGone, ...]:
        if self._version < wire.VERSION:
            return ()
        return (await self._expect(wire.Gone, lambda number: wire.GetGone(number, incarnation, round_))).gone

    async def runs(self) -> tuple[wire.RunSummary, ...]:
        """Lists the runs that the server keeps. Cancellation: safe."""
        return (await self._expect(wire.Runs, wire.GetRuns)).runs

    async def _ask(
        self,
        make: Callable[[int], wire.ClientMessage],
        node: str = "",
        patience: float | None = None,
        give_up: GiveUp | None = None,
    ) -> wire.ServerMessage:
        """Sends a request and waits for its answer, over as many connections as it takes."""
        self._check_open()
        request = self._requests.add(make, node, awaited=True, patience=patience, give_up=give_up)
        assert request.future is not None  # noqa: S101 - it is awaited
        self._send(request)
        try:
            return await request.future
        finally:
            self._requests.abandon(request)

    async def _expect(
        self, kind: type[R], make: Callable[[int], wire.ClientMessage], patience: float | None = None
    ) -> R:
        answer = await self._ask(make, patience=patience)
        if not isinstance(answer, kind):
            said = f"{self.endpoint} answered {type(answer).__name__}, expected {kind.__name__}"
            raise RendezvousConnectionError(said, endpoint=self.endpoint)
        return answer

    def _send(self, request: Request) -> None:
        if self._connection is not None:
            request.sent = asyncio.get_running_loop().time()
            self._connection.write(request.frame)

    def _abort_silent_connection(self, seconds: float) -> None:
        if self._connection is not None:
            self._connection.abort(f"no answer for {seconds:g} s")

    def _receive(self, message: wire.ServerMessage) -> None:
        if isinstance(message, wire.View):
            feed = self._feeds.get(message.view.node)
            if feed is not None:
                feed.push(message.view)
            if isinstance(message, wire.Entrusted):
                self._entrusted.keep(message.view.node, message.image, adds=message.adds)
            self._entrusted.hear(message.view)
            if message.id == 0:
                return
        elif isinstance(message, wire.Welcome):
            self._take_welcome(message)
            return
        elif isinstance(message, wire.Failed) and message.id == 0:
            if self._welcome is not None:
                settle(self._welcome, MovedError.of(message) or wire.error_of(message))
            if self._connection is not None:
                self._connection.abort(message.message)
            return
        request = self._requests.get(message.id)
        if request is not None:
            self._answer(request, message)

    def _take_welcome(self, welcome: wire.Welcome) -> None:
        is_another = self.server_id not in ("", welcome.server)
        self.server_id, self._version = welcome.server, welcome.version
        self._embedded = welcome.embedded
        self._pauses.succeeded()
        for feed in self._feeds.values():
            feed.recover()
        if self._welcome is not None:
            settle(self._welcome, None if welcome.version >= wire.VERSION else self._refusal())
        if is_another and welcome.version >= wire.KEEPING:
            self._recall()

    def _recall(self) -> None:
        """Tells a server that may have forgotten the run what an earlier one has entrusted to its nodes."""
        for node, feed in self._feeds.items():
            for image in () if feed.latest is None else self._entrusted.parts(feed.latest):
                recall = partial(wire.Recall, node=node, image=image)
                self._send(self._requests.add(recall, "", awaited=False))

    def _answer(self, request: Request, message: wire.ServerMessage) -> None:
        error = wire.error_of(message) if isinstance(message, wire.Failed) else None
        if request.future is None:  # a node was presented on a new connection; nobody waits for this
            self._requests.remove(request)
            if error is not None and request.node in self._feeds:
                self._feeds[request.node].fail(error)
        else:
            settle(request.future, message if error is None else error)

    def _on_lost(self, connection: ClientConnection, reason: str) -> None:
        if self._connection is not connection:
            return
        self._connection = None
        self._reach.lose()
        self._requests.unsend()
        self._reason = reason
        if self._welcome is not None and not self._welcome.done():
            self._welcome.set_exception(_loss_of(connection))
        elif self._background is not None and not self._restoring:
            self._background.start(self._restore)

    async def _restore(self) -> None:
        """Makes a connection again after one was lost."""
        self._restoring = True
        while self._connection is None:
            logger.info("%s: connection lost: %s", self.endpoint, self._reason)
            refusal: RendezvousError | None = None
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._lose_patience)
                try:
                    await self._pauses.sleep()  # none, if the connection held for long enough
                    await self._reconnect()
                except RendezvousError as error:
                    refusal = error
                tasks.cancel_scope.cancel()
            if refusal is not None:
                self._end_waits(refusal)
                await anyio.sleep(BACKOFF.last)
        logger.info("%s: connected again", self.endpoint)
        self._restoring = False

    async def _lose_patience(self) -> None:
        """Tells those who wait for a change that there is no server, once they have waited long enough."""
        await anyio.sleep(self._read_timeout)
        self._requests.fail(self._unreachable(self._read_timeout), least=math.inf)
        for feed in self._feeds.values():
            if feed.latest is None or feed.latest.phase is Phase.MEMBER:
                feed.fail(self._unreachable(self._read_timeout))
        await anyio.sleep(max(0.0, self._join_timeout - self._read_timeout))
        for feed in self._feeds.values():
            feed.fail(self._unreachable(self._join_timeout))

    def _refusal(self) -> RendezvousError | None:
        """Says why the nodes that are here cannot go on at a server that is older than the one before."""
        try:
            for join in self._presentations.joins.values():
                check_peer(join, self._version, self.endpoint)
        except RendezvousError as error:
            return error
        return None

    def _end_waits(self, error: RendezvousError) -> None:
        super()._end_waits(error)
        self._requests.fail(error)

    async def _reconnect(self, within: float = math.inf) -> bool:
        """Tries until there is a connection that the server has welcomed; False if there is none in time."""
        patience = CONNECT_TIMEOUT if self._servers.attempts == 1 else OTHERS_TIMEOUT
        loop = asyncio.get_running_loop()
        end = loop.time() + within
        while (remaining := end - loop.time()) > 0:
            timeout = min(self._read_timeout, patience, remaining)
            try:
                with anyio.fail_after(timeout):
                    await self._connect()
            except RendezvousError:  # an OSError, too, but one that trying again does not mend
                raise
            except (OSError, TimeoutError) as error:
                self._reason = troubles.why_not_connected(error, timeout, self.credentials)
                if isinstance(error, ssl.SSLCertVerificationError) and not self.server_id:
                    raise troubles.hopeless(self.endpoint, self._reason, distrusted=True) from error
                if isinstance(error, MovedError):
                    if self._servers.moved(error):
                        continue
                elif not self._servers.failed(self._place, reached=self._reached):
                    await anyio.sleep(SOON)
                    continue
                is_elsewhere = isinstance(error, troubles.MisdirectedError) or speaks_no_tls(error)
                if is_elsewhere and not self.server_id:
                    raise troubles.hopeless(self.endpoint, self._reason, distrusted=False) from error
                if self._embedded and troubles.is_refusal(error):
                    await self._replace_server()
                if await self._servers.pause(min(self._pauses.next(), max(0.0, end - loop.time()))):
                    self._pauses.reset()
                patience *= 2  # it may be slow because all the others connect at the same time
            else:
                return True
        return False

    async def _replace_server(self) -> None:
        """Called when the node that hosted the server is gone, for whoever can host it in its place."""

    async def _connect(self) -> None:
        """Connects, says hello, presents the nodes and repeats the requests in flight, in one write.

        Cancellation: safe; like any error, it leaves no connection behind.
        """
        loop = asyncio.get_running_loop()
        place = self._place = await self._servers.locate()
        self._reached = False
        self._welcome = loop.create_future()
        how = (self._receive, self._on_lost, self._read_timeout, self.credentials.names)
        tls = self.credentials.connecting(self._tls, CONNECT_TIMEOUT)
        _, connection = await loop.create_connection(partial(ClientConnection, *how), *place, **tls)
        self._reached = True
        if connection.lost:
            raise _loss_of(connection)
        self._connection = connection
        self._address = connection.local_address()
        try:
            lost = {"lost": self._servers.lost_url, "without": self._servers.without}
            connection.write(wire.PREFACE + wire.encode(msgspec.structs.replace(self._hello, **lost)))
            waiting = self._requests.pending()
            for operation in self._presentations.all(self._feeds):
                patience = math.inf if isinstance(operation, Arrive) else None
                make = partial(wire.Propose, operation=operation)
                node = "" if isinstance(operation, _SAYINGS) else subject(operation)
                self._send(self._requests.add(make, node, awaited=False, patience=patience))
            for request in waiting:
                self._send(request)
            await self._welcome
            self._servers.welcomed()
            self._reach.find()
        except BaseException:
            self._drop_connection()
            raise

    def _drop_connection(self) -> None:
        connection, self._connection = self._connection, None
        self._reach.lose()
        self._requests.unsend()
        if connection is not None:
            connection.close()

    def _unreachable(self, seconds: float) -> RendezvousConnectionError:
        return troubles.unreachable(self.endpoint, seconds, self._reason)


def _loss_of(connection: ClientConnection) -> ConnectionError:
    return (troubles.MisdirectedError if connection.is_misdirected else ConnectionError)(connection.lost)

"""``http://`` and ``https://``: a rendezvous at our server where only HTTP gets through."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import count

from arendezvous.backends.base import BackendBase, closed_meanwhile
from arendezvous.backends.http.member import HttpMember
from arendezvous.backends.http.retrying import persist, run_path
from arendezvous.backends.http.watching import PAGE, all_runs, watch_run
from arendezvous.backends.port import subject
from arendezvous.backends.tcp.watching import states_in
from arendezvous.errors import RendezvousError
from arendezvous.law.barriers import Met
from arendezvous.law.operations import Arrive, Operation, Withdraw
from arendezvous.law.rosters import Member, MemberGone
from arendezvous.law.state import NodeView
from arendezvous.law.status import RunStatus
from arendezvous.net.credentials import NO_CREDENTIALS, Credentials
from arendezvous.net.endpoint import join_host_port
from arendezvous.net.http_client import CONNECT_TIMEOUT, HttpClient
from arendezvous.net.reach import Reach
from arendezvous.stores.http.store import HttpStore
from arendezvous.stores.port import Store
from arendezvous.wire.http.answers import HttpAnswer
from arendezvous.wire.http.bodies import GONE_MEMBERS, MEMBERS, ROSTER, RUN, RUNS
from arendezvous.wire.native.messages import VERSION, RunSummary


class HttpBackend(BackendBase):
    """A run at our server, over HTTP.

    Each node that joins has a session, which is one request answered by a stream of its views; what it says
    later are requests of their own. A stream that breaks is opened again, with a back-off from 10 ms to
    0.5 s, and requests without an answer are sent again. Proxies are used as the environment says
    (``HTTPS_PROXY`` and so on).

    Args:
        host: Where the server is.
        port: Its port.
        run_id: The run; empty to look at the server alone.
        tls: Whether to speak TLS.
        read_timeout: Seconds that a request, or connecting, may take before `RendezvousConnectionError`.
        join_timeout: Seconds that a node that waits for a round endures to be without a server.
        credentials: The token that it shows the server, and the TLS settings.
        others: Further servers that stand in for this one.

    Its fields:
        _client: The way to the server, for the session and for the store.
        _members: The nodes for which something was proposed.
        _store: The server's store; None until somebody asks for it.

    Raises:
        RendezvousSettingsError: See `HttpClient`.
    """

    name = "http"

    def __init__(
        self,
        host: str,
        port: int,
        run_id: str,
        *,
        tls: bool = False,
        read_timeout: float = 60.0,
        join_timeout: float = 600.0,
        credentials: Credentials = NO_CREDENTIALS,
        others: Sequence[tuple[str, int]] = (),
    ) -> None:
        super().__init__()
        self._run_id = run_id
        scheme = "https" if tls else "http"
        url, *more = (f"{scheme}://{join_host_port(*place)}" for place in ((host, port), *others))
        self._client = HttpClient(url, credentials, others=more)
        self._credentials, self._others = credentials, more
        self._read_timeout = read_timeout
        self._join_timeout = join_timeout
        self._members: dict[str, HttpMember] = {}
        self._store: HttpStore | None = None
        self.server_id = ""

    @property
    def endpoint(self) -> str:
        return self._client.url

    @property
    def store(self) -> Store | None:
        """The server's store, over the same connections; it connects when it is first used."""
        if self._store is None:
            self._store = HttpStore(self.endpoint, read_timeout=self._read_timeout, client=self._client)
        return self._store

    @property
    def reach(self) -> Reach:
        return self._client.reach

    def addresses(self) -> tuple[str, ...]:
        self._address = self._client.address
        return super().addresses()

    async def _open(self) -> None:
        path = run_path(self._run_id) if self._run_id else "/v1/runs"
        answer = await self._ask("HEAD", path, min(self._read_timeout, CONNECT_TIMEOUT))
        if answer.status in (401, 403):
            raise (await self._ask("GET", f"{path}?limit=0")).error()  # which has a body that says why
        self.server_id = answer.server

    async def _close(self) -> None:
        self._members.clear()
        store, self._store = self._store, None
        try:
            if store is not None:
                await store.close()
        finally:
            await self._client.close()

    def fail(self, error: RendezvousError) -> None:
        super().fail(error)
        self._client.abort()

    def _end_waits(self, error: RendezvousError) -> None:
        for member in self._members.values():
            member.fail(error)

    async def propose(self, operation: Operation) -> NodeView:
        return await self._member(subject(operation)).propose(operation)

    async def meet(self, operation: Arrive | Withdraw) -> Met:
        return await self._member(operation.node).meet(operation)

    @asynccontextmanager
    async def states(self) -> AsyncIterator[AsyncIterator[tuple[str, bytes]]]:
        """See `RendezvousBackend.states`; over connections of its own."""
        self._check_open()
        watching = watch_run(self.endpoint, self._run_id, credentials=self._credentials, others=self._others)
        async with watching as watch:
            yield states_in(watch)

    async def changed(self, node: str, since: int) -> NodeView:
        return await self._member(node).feed.changed(since)

    async def status(self) -> RunStatus:
        answer = await self._ask("GET", run_path(self._run_id))
        if answer.kind == "no-such-run":
            return RunStatus(self._run_id)
        return answer.read(RUN.decode).status

    async def roster(self, incarnation: int, round_: int) -> tuple[Member, ...]:
        """See `RendezvousBackend.roster`; a server of version 1 lists those that remain."""
        asked = f"incarnation={incarnation}&round={round_}"
        if self._client.version < VERSION:
            answer = await self._ask("GET", f"{run_path(self._run_id)}/members?{asked}")
            return tuple(map(Member.of, answer.read(MEMBERS.decode).members, count()))
        found: list[Member] = []
        first: int | None = 0
        while first is not None:
            answer = await self._ask("GET", f"{run_path(self._run_id)}/roster?{asked}&first={first}")
            page = answer.read(ROSTER.decode)
            found += page.members
            first = page.next if page.members else None
        return tuple(found)

    async def gone(self, incarnation: int, round_: int) -> tuple[MemberGone, ...]:
        if self._client.version < VERSION:
            return ()
        path = f"{run_path(self._run_id)}/roster/gone?incarnation={incarnation}&round={round_}"
        return (await self._ask("GET", path)).read(GONE_MEMBERS.decode).gone

    async def runs(self) -> tuple[RunSummary, ...]:
        """Lists the runs that the server keeps. Cancellation: safe."""
        ask = partial(self._ask, "GET")
        page = (await ask(f"/v1/runs?limit={PAGE}&after=")).read(RUNS.decode)
        return await all_runs(ask, self.endpoint, page)

    async def _ask(self, method: str, path: str, limit: float | None = None) -> HttpAnswer:
        """Asks for something that changes nothing; one attempt may take `limit` seconds."""
        self._check_open()

        async def attempt() -> HttpAnswer:
            if self._background is None:
                raise closed_meanwhile()
            self._check_open()
            return await self._client.request(method, path, limit=limit or self._read_timeout)

        return await persist(attempt, self.endpoint, self._read_timeout)

    def _member(self, node: str) -> HttpMember:
        background = self._check_open()
        member = self._members.get(node)
        if member is None:
            timeouts = (self._read_timeout, self._join_timeout)
            member = self._members[node] = HttpMember(self._client, self._run_id, node, background, *timeouts)
        return member

"""``http://`` and ``https://``: a rendezvous at our server where only HTTP gets through."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

import msgspec

from arendezvous.backends.http.attempts import Attempts, run_path
from arendezvous.backends.http.link import Answer, HttpLink, UnansweredError
from arendezvous.backends.http.member import HttpMember
from arendezvous.backends.http.pool import CONNECT_TIMEOUT
from arendezvous.backends.port import RendezvousBackend, subject
from arendezvous.errors import (
    RendezvousConnectionError,
    RendezvousError,
    RendezvousSettingsError,
    RendezvousStateError,
)
from arendezvous.law.operations import Join, Operation
from arendezvous.law.state import NodeDesc, NodeView
from arendezvous.law.status import RunStatus
from arendezvous.net.background import Background
from arendezvous.net.credentials import NO_CREDENTIALS, Credentials
from arendezvous.net.endpoint import join_host_port
from arendezvous.stores.http.store import HttpStore
from arendezvous.stores.port import Store
from arendezvous.wire.http.bodies import MEMBERS, RUN, RUNS
from arendezvous.wire.http.named import Codec
from arendezvous.wire.native.messages import RunSummary

T = TypeVar("T", bound=msgspec.Struct)


class HttpBackend(RendezvousBackend):
    """A run at our server, over HTTP.

    Each node that joins has a session, which is one request answered by a stream of its views; what it says
    later are requests of their own. A stream that breaks is opened again, with a back-off from 10 ms to
    0.5 s, and requests without an answer are sent again. All backends of one event loop with the same
    credentials share their connections. Proxies are used as the environment says (``HTTPS_PROXY`` and so on).

    Args:
        host: Where the server is.
        port: Its port.
        run_id: The run; empty to look at the server alone.
        tls: Whether to speak TLS.
        read_timeout: Seconds that a request, or connecting, may take before `RendezvousConnectionError`.
        join_timeout: Seconds that a node that waits for a round endures to be without a server.
        credentials: The token that it shows the server, and the TLS settings.

    Raises:
        RendezvousSettingsError: The run id cannot stand in a URL, or the credentials ask for TLS and `tls` is
            false.
    """

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
    ) -> None:
        if run_id in (".", ".."):
            raise RendezvousSettingsError.of("run_id", run_id, "a name that a URL can have in its path")
        self._host = host
        self._port = port
        self._run_id = run_id
        self._url = f"{'https' if tls else 'http'}://{join_host_port(host, port)}"
        self._link = HttpLink(self._url, credentials)
        self._read_timeout = read_timeout
        self._join_timeout = join_timeout
        self._members: dict[str, HttpMember] = {}
        self._background: Background | None = None
        self._failure: RendezvousError | None = None
        self._store: HttpStore | None = None
        self.server_id = ""

    @property
    def name(self) -> str:
        """``http``, with TLS or without."""
        return "http"

    @property
    def endpoint(self) -> str:
        """The server's URL."""
        return self._url

    @property
    def store(self) -> Store | None:
        """The server's store; it connects when it is first used."""
        if self._store is None:
            self._store = HttpStore(
                self._url, read_timeout=self._read_timeout, credentials=self._link.credentials
            )
        return self._store

    def addresses(self) -> tuple[str, ...]:
        """The address from which this machine reaches the server."""
        return (self._link.address,) if self._link.address else ()

    async def __aenter__(self) -> Self:
        """Connects; tries again until the read time-out is over.

        Raises:
            RendezvousConnectionError: There was no answer of an arendezvous server in that time.
            RendezvousPermissionError: The token is missing or wrong.
        """
        self._link.open()
        self._failure = None
        try:
            await self._connect()
        except BaseException:
            self._link.close()
            raise
        self._background = Background(self._url, self.fail)
        return self

    async def _connect(self) -> None:
        path = run_path(self._run_id) if self._run_id else "/v1/runs"
        limit = min(self._read_timeout, CONNECT_TIMEOUT)
        answer = await self._tried(lambda: self._link.connect(path, limit=limit))
        if answer.status in (401, 403):
            raise (await self._ask("GET", f"{path}?limit=0")).error()  # which has a body that says why
        self.server_id = answer.server

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Breaks off the streams, and closes the connections unless another backend uses them."""
        background, self._background = self._background, None
        try:
            if background is not None:
                await background.close()
        finally:
            self._end_waits(RendezvousStateError("the backend was closed meanwhile"))
            self._members.clear()
            self._link.close()
            store, self._store = self._store, None
            if store is not None:
                await store.close()

    def fail(self, error: RendezvousError) -> None:
        """See `RendezvousBackend.fail`."""
        self._failure = error
        if self._background is not None:
            self._background.cancel()
        self._end_waits(error)

    def _end_waits(self, error: RendezvousError) -> None:
        for member in self._members.values():
            member.close(error)

    async def propose(self, operation: Operation) -> NodeView:
        """See `RendezvousBackend.propose`."""
        return await self._member(subject(operation)).propose(operation)

    async def join(self, operation: Join, timeout: float) -> NodeView | None:
        """See `RendezvousBackend.join`; needs no cancel scope if the requests' own timers end them before."""
        member = self._member(operation.node)
        if member.most(operation) < timeout:
            return await member.propose(operation)
        return await super().join(operation, timeout)

    async def changed(self, node: str, since: int) -> NodeView:
        """See `RendezvousBackend.changed`."""
        return await self._member(node).feed.changed(since)

    async def status(self) -> RunStatus:
        """See `RendezvousBackend.status`."""
        answer = await self._ask("GET", run_path(self._run_id))
        if answer.kind == "no-such-run":
            return RunStatus(self._run_id)
        return _decode(answer, RUN).status

    async def members(self, incarnation: int, round_: int) -> tuple[NodeDesc, ...]:
        """See `RendezvousBackend.members`."""
        path = f"{run_path(self._run_id)}/members?incarnation={incarnation}&round={round_}"
        return _decode(await self._ask("GET", path), MEMBERS).members

    async def runs(self) -> tuple[RunSummary, ...]:
        """Lists the runs that the server keeps. Cancellation: safe."""
        found: list[RunSummary] = []
        after: str | None = ""
        while after is not None:
            path = f"/v1/runs?limit=1000&after={quote(after, safe='')}"
            page = _decode(await self._ask("GET", path), RUNS)
            found += page.runs
            after = page.next
        return tuple(found)

    async def _ask(self, method: str, path: str) -> Answer:
        """Asks for something that changes nothing."""
        self._check_failure()
        return await self._tried(lambda: self._link.request(method, path, limit=self._read_timeout))

    async def _tried(self, attempt: Callable[[], Awaitable[Answer]]) -> Answer:
        """Tries until there is an answer, or the read time-out is over."""
        attempts = Attempts(self._url, self._read_timeout)
        while True:
            try:
                return await attempt()
            except UnansweredError as error:
                await attempts.failed(error)

    def _member(self, node: str) -> HttpMember:
        if self._background is None:
            raise RuntimeError("the http backend is used outside of its 'async with' block")
        self._check_failure()
        member = self._members.get(node)
        if member is None:
            member = self._members[node] = HttpMember(
                self._link, self._run_id, node, self._spawn, self._read_timeout, self._join_timeout
            )
        return member

    def _spawn(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        if self._background is not None:
            self._background.start(work)

    def _check_failure(self) -> None:
        if self._failure is not None:
            raise self._failure.with_traceback(None)


def _decode(answer: Answer, codec: Codec[T]) -> T:
    if not answer.is_good:
        raise answer.error()
    try:
        return codec.decode(answer.body)
    except (msgspec.MsgspecError, RendezvousSettingsError) as error:
        message = f"the server's answer is not understood: {error}; its version may be another one"
        raise RendezvousConnectionError(message, doing="reading an answer") from error

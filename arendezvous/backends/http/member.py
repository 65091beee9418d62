"""One node's session over HTTP: its operations in order, and its views from a stream that is kept open.

A session is one long request: the join, answered by a stream of views the first of which is the answer. The
operations after it are requests of their own. When the stream breaks it is opened again with the session's
secret; a server that does not know that any more was started anew, and is shown the rank that the node holds.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, TypeVar
from urllib.parse import quote, urlencode

import anyio

from arendezvous import errors
from arendezvous.backends.base import BACKOFF
from arendezvous.backends.entrusted import EntrustedImages
from arendezvous.backends.feed import Presentations, Saying, ViewFeed
from arendezvous.backends.http.retrying import persist, run_path
from arendezvous.backends.troubles import Skipped, unreachable
from arendezvous.law import image
from arendezvous.law import operations as ops
from arendezvous.law.barriers import Key, Met
from arendezvous.law.state import Closure, NodeView, Phase
from arendezvous.net.background import Background, settle
from arendezvous.net.backoff import Pauses
from arendezvous.net.http_client import EventReader, HttpClient, UnansweredError
from arendezvous.net.servers import silence
from arendezvous.wire.foreign import decode_foreign
from arendezvous.wire.http import bodies
from arendezvous.wire.http.answers import HttpAnswer
from arendezvous.wire.http.named import OperationCodec
from arendezvous.wire.http.names import IDEMPOTENCY_HEADER
from arendezvous.wire.http.sse import ServerEvent
from arendezvous.wire.native.versions import check_peer

logger = logging.getLogger(__name__)

B = TypeVar("B")

_JSON: Final = {"Content-Type": "application/json"}
_KEEPS: Final = {bodies.KEEPS_HEADER: "yes"}
_GONE: Final = 410
_SAYINGS: Final[Mapping[type, tuple[str, str, OperationCodec[Any]]]] = {
    ops.KeepAlive: ("POST", "keep-alive", bodies.KEEP_ALIVE),
    ops.Update: ("PUT", "state", bodies.UPDATE),
    ops.Progress: ("POST", "progress", bodies.PROGRESS),
}
_FORGOTTEN: Final = ("no-such-run", "no-such-member", "not-your-session")  # as the server was started anew
POLL: Final = 50.0  # seconds that one request waits at a barrier


class HttpMember:
    """Speaks for one node to the server, and follows its views.

    Args:
        background: Where its stream is read.
        read_timeout: Seconds that an operation may take over all attempts.
        join_timeout: Seconds that a node that waits for a round endures to be without a server.

    Attributes:
        feed: The node's views.

    Its fields:
        _answer_timeout: Seconds that one attempt may take: no longer than the node may be silent.
        _turn: Held by the operation that is carried out: they are in the order of the calls.
        _lock: Held during one attempt, of an operation or at opening the stream again.
        _presentations: How it joined, and what it has said of itself, to present it again.
        _entrusted: What it keeps of the run for a server that does not know it.
        _server: Which start of the server the latest session was begun at.
        _opened: What came of the request that began the session: the first view, or why there is none. Stands
            for the session, too: None once that is over.
        _session: The secret of the session; empty if there is none, or none that the server knows any more.
        _former: The secret of the latest session, by which a server that was started anew knows the node.
        _key: The ``Idempotency-Key`` of a join whose answer has not come; empty if there is none.
        _told: The server's number of the latest view.
        _waits: Of each barrier the calls that wait there, until the node withdraws.
        _source: The stream; None while there is none.
        _failure: Why nothing works any more; None as long as it does.
        _skipped: The pushed views that were not understood.
    """

    def __init__(
        self,
        client: HttpClient,
        run_id: str,
        node: str,
        background: Background,
        read_timeout: float,
        join_timeout: float,
    ) -> None:
        self.feed = ViewFeed()
        self._client = client
        self._node = node
        self._background = background
        self._read_timeout = self._answer_timeout = read_timeout
        self._join_timeout = join_timeout
        self._run = run_path(run_id)
        self._path = f"{self._run}/members/{quote(node, safe='')}"
        self._turn = asyncio.Lock()
        self._lock = asyncio.Lock()
        self._presentations = Presentations()
        self._entrusted = EntrustedImages()
        self._server = ""
        self._opened: asyncio.Future[NodeView] | None = None
        self._session = self._former = ""
        self._key = ""
        self._told = -1
        self._waits: dict[Key, set[object]] = {}
        self._source: EventReader | None = None
        self._failure: errors.RendezvousError | None = None
        self._skipped = Skipped(client.url)

    async def propose(self, operation: ops.Operation) -> NodeView:
        """See `RendezvousBackend.propose`.

        Of a join that is cancelled the answer is still to come: the next operation waits for it first.
        """
        if not isinstance(operation, ops.Join):  # that is kept once its turn has come
            self._presentations.note(operation)
        try:
            async with self._turn:
                if self._opened is not None:
                    await asyncio.wait([self._opened])
                return await persist(partial(self._attempt, operation), self._client.url, self._read_timeout)
        finally:
            if isinstance(operation, ops.Leave):
                self._presentations.left(self._node)

    def fail(self, error: errors.RendezvousError) -> None:
        """Breaks the stream off, and ends all waits with `error`."""
        self._failure = error
        if self._opened is not None:
            settle(self._opened, error)
        self._end_session()
        self.feed.fail(error)

    async def _attempt(self, operation: ops.Operation) -> NodeView:
        """Carries an operation out, or raises `UnansweredError`."""
        if self._failure is not None:
            raise self._failure.with_traceback(None)
        check_peer(operation, self._client.version, self._client.url)
        async with self._lock:
            if isinstance(operation, ops.Join | ops.Resume):
                return await self._present(operation)
            if isinstance(operation, ops.Leave):
                return await self._leave(operation)
            if isinstance(operation, ops.Drain):
                drained = await self._steer(f"{self._path}/drain", bodies.DRAIN.encode(operation))
                return self._gone() if drained.kind == "no-such-member" else self._view_in(drained)
            if isinstance(operation, ops.DECIDED):
                step, codec = bodies.DECISIONS[type(operation)]
                return await self._steer_run(step, codec.encode(operation))
            if isinstance(operation, ops.KeepAlive | ops.Update | ops.Progress):
                answer = await self._ask(*self._saying(operation))
                return self._gone() if answer is None or self._is_over(answer) else self._view_in(answer)
            raise errors.RendezvousStateError(f"{type(operation).__name__} is for the server alone to decide")

    async def _present(self, operation: ops.Join | ops.Resume) -> NodeView:
        """Joins, or resumes, in the session that there is or in a new one."""
        longest = silence(operation.settings.expiry, has_others=self._client.has_others)
        self._answer_timeout = min(self._read_timeout, longest)
        if isinstance(operation, ops.Join):
            self._presentations.note(operation)
        answer = await self._ask("PUT", self._path, bodies.REJOIN.encode(operation))
        if answer is None or self._is_over(answer):
            return await self._begin(operation)
        return self._view_in(answer)

    async def meet(self, operation: ops.Arrive | ops.Withdraw) -> Met:
        """See `RendezvousBackend.meet`; asks again and again, as proxies cut off what takes long.

        Other requests of the node do not wait for these.
        """
        check_peer(operation, self._client.version, self._client.url)
        waits, call = self._waits.setdefault(operation.key, set()), object()
        if isinstance(operation, ops.Withdraw):
            waits.clear()
        else:
            waits.add(call)
        attempt = partial(self._attempt_to_meet, operation)
        try:
            while True:
                met = await persist(attempt, self._client.url, self._read_timeout)
                if met is not None and (met.passed or call not in waits):
                    break
        finally:
            waits.discard(call)
            if not waits and self._waits.get(operation.key) is waits:
                del self._waits[operation.key]
        if met.passed:
            self._presentations.note(operation)
        return met

    async def _attempt_to_meet(self, operation: ops.Arrive | ops.Withdraw) -> Met | None:
        """Asks once how a barrier stands; None: the server does not know the node, which is shown to it."""
        if self._failure is not None:
            raise self._failure.with_traceback(None)
        limit, headers = self._answer_timeout, {bodies.SESSION_HEADER: self._session, **_JSON}
        if isinstance(operation, ops.Arrive):
            answer = await self._client.request(*self._saying(operation), headers, limit=limit + POLL)
        else:
            path = f"{self._barrier(operation)}?{urlencode(bodies.WITHDRAW.texts(operation))}"
            answer = await self._client.request("DELETE", path, b"", headers, limit=limit)
        if answer.kind in _FORGOTTEN and self._presentation() is not None:
            await self.propose(ops.KeepAlive(self._node))
            return None
        if self._is_over(answer) or answer.kind in _FORGOTTEN:
            over = "this node is in the run no more; join the next round"
            raise errors.RoundOverError(f"round {operation.round} is over: {over}", round=operation.round)
        return answer.read(bodies.MET.decode)

    def _saying(self, operation: ops.KeepAlive | Saying, wait: float = POLL) -> tuple[str, str, bytes]:
        """Makes the request by which the node says something: its method, path and body."""
        if isinstance(operation, ops.Arrive):
            return "PUT", f"{self._barrier(operation)}?wait={wait:g}", bodies.ARRIVE.encode(operation)
        method, step, codec = _SAYINGS[type(operation)]
        return method, f"{self._path}/{step}", codec.encode(operation)

    def _barrier(self, operation: ops.Arrive | ops.Withdraw) -> str:
        return f"{self._path}/barriers/{quote(operation.name, safe='')}"

    async def _leave(self, operation: ops.Leave) -> NodeView:
        path = f"{self._path}?{urlencode(bodies.LEAVE.texts(operation))}"
        answer = await self._request("DELETE", path) if self._session or self._key else None
        presentation = self._presentation() if answer is None or answer.kind in _FORGOTTEN else None
        if presentation is not None:
            await self._begin(presentation)
            answer = await self._request("DELETE", path)
        is_over = answer is None or self._is_over(answer) or answer.kind in _FORGOTTEN
        view = self._gone() if answer is None or is_over else self._view_in(answer)
        self._end_session()
        self._key = ""
        return view

    async def _steer_run(self, how: str, body: bytes) -> NodeView:
        """Decides something of the run, and returns what this node then sees, who may be no node of it."""
        answer = await self._steer(f"{self._run}/{how}", body)
        if not answer.is_good:
            raise answer.error()
        seen = await self._ask("GET", f"{self._path}/view", b"") if self._session else None
        if seen is not None:
            return self._gone() if self._is_over(seen) else self._view_in(seen)
        run = _decode(bodies.RUN.decode, answer.body)
        closed = None if run.closed is None else Closure(run.closed.by, run.closed.reason, -run.closed.age)
        return NodeView(self._node, 0, run.incarnation, run.round, Phase.GONE, closed=closed)

    async def _steer(self, path: str, body: bytes) -> HttpAnswer:
        """Asks for what anybody may who may change the run; who waits, or is a member, is shown first."""
        return await self._ask("POST", path, body) or await self._request("POST", path, body)

    async def _ask(self, method: str, path: str, body: bytes) -> HttpAnswer | None:
        """Sends a request in the session, before which a server that does not know the node is shown it.

        Returns None if the node has no session, and is not to have one.
        """
        if self._session:
            answer = await self._request(method, path, body)
            if answer.kind not in _FORGOTTEN:
                return answer
        presentation = self._presentation()
        if presentation is None:
            return None
        await self._begin(presentation)
        return await self._request(method, path, body) if self._session else None

    async def _request(
        self, method: str, path: str, body: bytes = b"", *, session: str | None = None
    ) -> HttpAnswer:
        """Sends a request in the session that there is, in another, or in none, if that is empty."""
        headers = _JSON if body else {}
        if shown := self._session if session is None else session:
            headers = {bodies.SESSION_HEADER: shown, **headers}
        if self._key and session is None:
            headers = {IDEMPOTENCY_HEADER: self._key, **headers}
        return await self._client.request(method, path, body, headers, limit=self._answer_timeout)

    def _presentation(self) -> ops.Join | ops.Resume | None:
        return self._presentations.presented(self._node, self.feed.latest)

    def _take(self, view: NodeView) -> NodeView:
        """Takes in a view of this node, unless a later one has come before it on another connection."""
        latest = self.feed.latest
        if not self._session and latest is None:
            return view
        if view.revision > self._told or latest is None:
            self._told = view.revision
            latest = self.feed.push(view)
            self._entrusted.hear(view)
            if latest.phase is Phase.GONE:
                self._end_session()
        return latest

    def _view_in(self, answer: HttpAnswer) -> NodeView:
        if not answer.is_good:
            raise answer.error()
        return self._take(_decode(bodies.VIEW.decode, answer.body))

    def _is_over(self, answer: HttpAnswer) -> bool:
        """Whether the server says that the session is over; takes in the view that says why."""
        if answer.kind != "session-over":
            return False
        self._take(_decode(bodies.VIEW.decode, answer.member("view")))
        self._end_session()
        return True

    def _gone(self) -> NodeView:
        latest = self.feed.latest
        if latest is not None and latest.phase is Phase.GONE:
            return latest
        return NodeView(self._node, 0, 0, -1, Phase.GONE)

    async def _begin(self, join: ops.Join | ops.Resume) -> NodeView:
        """Begins a session, whose stream is read in the background; returns the first view.

        Cancellation: the session may begin all the same; the next operation waits until that is known.
        """
        self._end_session()
        opened: asyncio.Future[NodeView] = asyncio.get_running_loop().create_future()
        self._opened = opened
        self._background.start(self._live, join, opened)
        await asyncio.wait([opened])
        return opened.result()

    async def _live(self, join: ops.Join | ops.Resume, opened: asyncio.Future[NodeView]) -> None:
        """Takes the views from a session's stream, and opens it again as long as it is wanted."""
        try:
            source: EventReader | None = await self._open_session(join)
        except (UnansweredError, errors.RendezvousError) as error:
            self._opened = None
            settle(opened, error)
            return
        settle(opened, self.feed.latest or self._gone())
        pauses = BACKOFF.start()
        while source is not None and self._opened is opened:
            pauses.succeeded()
            reason = await self._read(source)
            if self._opened is opened:
                logger.info("%s: the stream of node %s broke: %s", self._client.url, self._node, reason)
            source = await self._restored(opened, pauses)

    async def _open_session(self, join: ops.Join | ops.Resume) -> EventReader:
        """Asks for a session, and takes in its first view; returns the stream of the others."""
        self._key = self._key or secrets.token_urlsafe(24)
        headers = {IDEMPOTENCY_HEADER: self._key, **_KEEPS, **_JSON}
        if self._former:
            headers[bodies.FORMER_HEADER] = self._former
        path, limit = f"{self._run}/members", self._answer_timeout
        source = await self._client.stream("POST", path, bodies.JOIN.encode(join), headers, limit=limit)
        if isinstance(source, HttpAnswer):
            self._key = ""
            check_peer(join, self._client.version, self._client.url)  # which says more than the server can
            if source.status == _GONE:
                raise UnansweredError("the answer to a join came too late", sent=True)
            raise source.error()
        try:
            joined = _joined(await anext(source))
            await self._say_again(joined)
        except BaseException:
            source.close()
            raise
        self._session, self._key, self._told, self._source = joined.session, "", -1, source
        self._former, self._server = joined.session, joined.server
        self._take(joined.view)
        return source

    async def _say_again(self, joined: bodies.JoinedBody) -> None:
        """Tells a server that does not know it any more that the run is closed, and all else that is kept."""
        latest, view = self.feed.latest or self._gone(), joined.view
        is_open = view.closed is None and view.incarnation == latest.incarnation
        if is_open and latest.closed is not None and latest.phase is Phase.MEMBER:
            closing = bodies.CLOSE.encode(ops.Close.again(latest.closed, latest.incarnation))
            answer = await self._request("POST", f"{self._run}/close", closing, session="")
            if not answer.is_good:
                raise answer.error()
        if self._server in ("", joined.server):
            return
        for part in self._entrusted.parts(latest):
            body = bodies.IMAGE.encode(bodies.ImageBody(image.encode(part)))
            answer = await self._request("POST", f"{self._path}/recall", body, session=joined.session)
            if not answer.is_good:
                said = "%s did not take what node %s keeps: %s"
                logger.warning(said, self._client.url, self._node, answer.error())
                break
        for operation in self._presentations.said(self._node, view.generation):
            await self._request(*self._saying(operation, wait=0.0), session=joined.session)

    async def _read(self, source: EventReader) -> str:
        """Takes in what the server tells, or entrusts to the node, until the stream is over; says why."""
        try:
            while True:
                self._hear(await anext(source))
        except UnansweredError as error:
            return str(error)
        finally:
            source.close()

    def _hear(self, event: ServerEvent) -> None:
        if event.name == "view":
            try:
                self._take(_decode(bodies.VIEW.decode, event.data))
            except UnansweredError as error:  # a later one may be understood
                self._skipped.note(f"a view of {self._node}", str(error))
        elif event.name == "image":
            body = _decode(bodies.IMAGE.decode, event.data)
            self._entrusted.keep(self._node, body.image, adds=body.adds)
            if self.feed.latest is not None:
                self._entrusted.hear(self.feed.latest)

    async def _restored(self, opened: asyncio.Future[NodeView], pauses: Pauses) -> EventReader | None:
        """Opens the stream again, however often it has to try; returns None if it is not wanted any more."""
        began = anyio.current_time()
        while self._opened is opened:
            await pauses.sleep()
            try:
                async with self._lock:
                    source = await self._opened_again() if self._opened is opened else None
                    self.feed.recover()
                    return source
            except UnansweredError as error:
                latest = self.feed.latest
                is_member = latest is None or latest.phase is Phase.MEMBER
                patience = self._read_timeout if is_member else self._join_timeout
                if anyio.current_time() - began >= patience:  # those who wait for a change have long enough
                    self.feed.fail(unreachable(self._client.url, patience, str(error)))
            except errors.RendezvousPermissionError as error:
                self.feed.fail(error)
            except errors.RendezvousError as error:
                self.feed.fail(error)
                self._end_session()
        return None

    async def _opened_again(self) -> EventReader | None:
        """Opens the stream of the session, or of a new one at a server that does not know the node."""
        if self._session:
            headers = {bodies.SESSION_HEADER: self._session, "Last-Event-ID": str(self._told), **_KEEPS}
            path, limit = f"{self._path}/view", self._answer_timeout
            source = await self._client.stream("GET", path, headers=headers, limit=limit)
            if isinstance(source, EventReader):
                self._source = source
                return source
            if self._is_over(source):
                return None
            if source.kind not in _FORGOTTEN:
                raise source.error()
            self._session = ""
        presentation = self._presentation()
        return None if presentation is None else await self._open_session(presentation)

    def _end_session(self) -> None:
        self._session, self._opened = "", None
        source, self._source = self._source, None
        if source is not None:
            source.close()


def _decode(decode: Callable[[bytes], B], data: bytes) -> B:
    said = "the answer is not understood"
    return decode_foreign(decode, data, lambda why: UnansweredError(f"{said}: {why}", sent=True))


def _joined(event: ServerEvent) -> bodies.JoinedBody:
    if event.name != "joined":
        raise UnansweredError(f"the stream did not begin with a join: {event.name}", sent=True)
    return _decode(bodies.JOINED.decode, event.data)

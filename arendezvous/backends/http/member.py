"""One node's session over HTTP: its operations in order, and its views from a stream that is kept open.

A session is one long request: the join, answered by a stream of views the first of which is the answer. The
operations after it are requests of their own. When the stream breaks it is opened again with the session's
secret; a server that does not know that any more was started anew, and is shown the rank that the node holds.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar
from urllib.parse import quote, urlencode

import anyio

from arendezvous.backends.entrusted import EntrustedImages
from arendezvous.backends.feed import Saying, Sayings, ViewFeed
from arendezvous.backends.http.retrying import BACKOFF, persist, run_path
from arendezvous.backends.troubles import Skipped, unreachable
from arendezvous.errors import (
    RendezvousError,
    RendezvousPermissionError,
    RendezvousStateError,
    RoundOverError,
)
from arendezvous.law import image
from arendezvous.law.barriers import Key, Met
from arendezvous.law.operations import (
    DECIDED,
    Arrive,
    Close,
    Drain,
    Join,
    KeepAlive,
    Leave,
    Operation,
    Progress,
    Resume,
    Update,
    Withdraw,
)
from arendezvous.law.state import Closure, NodeView, Phase
from arendezvous.net.background import Background
from arendezvous.net.backoff import Pauses
from arendezvous.net.http_client import EventReader, HttpClient, UnansweredError
from arendezvous.wire.foreign import decode_foreign
from arendezvous.wire.http.answers import HttpAnswer
from arendezvous.wire.http.bodies import (
    ARRIVE,
    CLOSE,
    DECISIONS,
    DRAIN,
    FORMER_HEADER,
    IMAGE,
    JOIN,
    JOINED,
    KEEP_ALIVE,
    KEEPS_HEADER,
    LEAVE,
    MET,
    PROGRESS,
    REJOIN,
    RUN,
    SESSION_HEADER,
    UPDATE,
    VIEW,
    WITHDRAW,
    ImageBody,
    JoinedBody,
)
from arendezvous.wire.http.names import IDEMPOTENCY_HEADER
from arendezvous.wire.http.sse import ServerEvent
from arendezvous.wire.native.versions import check_peer

logger = logging.getLogger(__name__)

B = TypeVar("B")

_JSON: Final = {"Content-Type": "application/json"}
_GONE: Final = 410
_FORGOTTEN: Final = ("no-such-run", "no-such-member", "not-your-session")  # as the server was started anew
POLL: Final = 50.0  # seconds that one request waits at a barrier


class HttpMember:
    """Speaks for one node to the server, and follows its views.

    Args:
        client: The way to the server.
        run_id: The run.
        node: The node.
        background: Where its stream is read.
        read_timeout: Seconds that an operation may take over all attempts.
        join_timeout: Seconds that a node that waits for a round endures to be without a server.

    Attributes:
        feed: The node's views.

    Its fields:
        _answer_timeout: Seconds that one attempt may take: no longer than the node may be silent.
        _turn: Held by the operation that is carried out: they are in the order of the calls.
        _lock: Held during one attempt, of an operation or at opening the stream again.
        _join: How the node joined last, by which it can be presented again; None if it is not to be in the
            run.
        _leaving: The same while it leaves: a member is one until that is answered.
        _entrusted: What it keeps of the run for a server that does not know it.
        _sayings: What the node has said of itself.
        _server: Which start of the server the latest session was begun at.
        _opened: Set once it is known what came of the request that began the session; stands for the session,
            too: None once that is over.
        _outcome: What came of it: the first view, or why there is none.
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
        self._join: Join | None = None
        self._leaving: Join | None = None
        self._entrusted = EntrustedImages()
        self._sayings = Sayings()
        self._server = ""
        self._opened: asyncio.Event | None = None
        self._outcome: NodeView | Exception = self._gone()
        self._session = self._former = ""
        self._key = ""
        self._told = -1
        self._waits: dict[Key, set[object]] = {}
        self._source: EventReader | None = None
        self._failure: RendezvousError | None = None
        self._skipped = Skipped(client.url)

    async def propose(self, operation: Operation) -> NodeView:
        """See `RendezvousBackend.propose`.

        Of a join that is cancelled the answer is still to come: the next operation waits for it first.
        """
        leaves = isinstance(operation, Leave)
        self._sayings.note(operation)
        if leaves:  # whatever becomes of the request, the node is not presented again
            self._leaving, self._join = self._join, None
        try:
            async with self._turn:
                if self._opened is not None:
                    await self._opened.wait()
                return await persist(partial(self._attempt, operation), self._client.url, self._read_timeout)
        finally:
            if leaves:
                self._leaving = None

    def fail(self, error: RendezvousError) -> None:
        """Breaks the stream off, and ends all waits with `error`."""
        self._failure = self._outcome = error
        if self._opened is not None:
            self._opened.set()
        self._end_session()
        self.feed.fail(error)

    async def _attempt(self, operation: Operation) -> NodeView:
        """Carries an operation out, or raises `UnansweredError`."""
        if self._failure is not None:
            raise self._failure.with_traceback(None)
        check_peer(operation, self._client.version, self._client.url)
        async with self._lock:
            if isinstance(operation, Join | Resume):
                return await self._present(operation)
            if isinstance(operation, KeepAlive):
                return await self._say("POST", f"{self._path}/keep-alive", KEEP_ALIVE.encode(operation))
            if isinstance(operation, Update | Progress):
                return await self._say(*self._saying(operation))
            if isinstance(operation, Leave):
                return await self._leave(operation)
            if isinstance(operation, Drain):
                return await self._drain(operation)
            if isinstance(operation, DECIDED):
                step, codec = DECISIONS[type(operation)]
                return await self._steer_run(step, codec.encode(operation))
            raise RendezvousStateError(f"{type(operation).__name__} is for the server alone to decide")

    async def _present(self, operation: Join | Resume) -> NodeView:
        """Joins, or resumes, in the session that there is or in a new one."""
        self._answer_timeout = min(self._read_timeout, operation.settings.expiry)
        if isinstance(operation, Join):
            self._join = operation
        answer = await self._ask("PUT", self._path, REJOIN.encode(operation))
        if answer is not None and answer.is_good:
            return self._take(_decode(VIEW.decode, answer.body))
        if answer is not None and not self._is_over(answer):
            raise answer.error()
        return await self._begin(operation)

    async def _say(self, method: str, path: str, body: bytes) -> NodeView:
        answer = await self._ask(method, path, body)
        if answer is None or self._is_over(answer):
            return self._gone()
        return self._view_in(answer)

    async def meet(self, operation: Arrive | Withdraw) -> Met:
        """See `RendezvousBackend.meet`; asks again and again, as proxies cut off what takes long.

        Other requests of the node do not wait for these.
        """
        check_peer(operation, self._client.version, self._client.url)
        waits, call = self._waits.setdefault(operation.key, set()), object()
        if isinstance(operation, Withdraw):
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
            self._sayings.note(operation)
        return met

    async def _attempt_to_meet(self, operation: Arrive | Withdraw) -> Met | None:
        """Asks once how a barrier stands; None: the server does not know the node, which is shown to it."""
        if self._failure is not None:
            raise self._failure.with_traceback(None)
        limit, headers = self._answer_timeout, {SESSION_HEADER: self._session, **_JSON}
        if isinstance(operation, Arrive):
            answer = await self._client.request(*self._saying(operation), headers, limit=limit + POLL)
        else:
            path = f"{self._barrier(operation)}?{urlencode(WITHDRAW.texts(operation))}"
            answer = await self._client.request("DELETE", path, b"", headers, limit=limit)
        if answer.kind in _FORGOTTEN and self._presentation() is not None:
            await self.propose(KeepAlive(self._node))
            return None
        if self._is_over(answer) or answer.kind in _FORGOTTEN:
            over = "this node is in the run no more; join the next round"
            raise RoundOverError(f"round {operation.round} is over: {over}", round=operation.round)
        return answer.read(MET.decode)

    def _saying(self, operation: Saying, wait: float = POLL) -> tuple[str, str, bytes]:
        """Makes the request by which the node says something: its method, path and body."""
        if isinstance(operation, Update):
            return "PUT", f"{self._path}/state", UPDATE.encode(operation)
        if isinstance(operation, Progress):
            return "POST", f"{self._path}/progress", PROGRESS.encode(operation)
        return "PUT", f"{self._barrier(operation)}?wait={wait:g}", ARRIVE.encode(operation)

    def _barrier(self, operation: Arrive | Withdraw) -> str:
        return f"{self._path}/barriers/{quote(operation.name, safe='')}"

    async def _leave(self, operation: Leave) -> NodeView:
        path = f"{self._path}?{urlencode(LEAVE.texts(operation))}"
        answer = await self._request("DELETE", path) if self._session or self._key else None
        presentation = self._presentation() if answer is None or answer.kind in _FORGOTTEN else None
        if presentation is not None:
            await self._begin(presentation)
            answer = await self._request("DELETE", path)
        if answer is None:
            self._end_session()
            return self._gone()
        over = self._is_over(answer) or answer.kind in _FORGOTTEN
        view = self._gone() if over else self._view_in(answer)
        self._end_session()
        self._key = ""
        return view

    async def _drain(self, operation: Drain) -> NodeView:
        answer = await self._steer(f"{self._path}/drain", DRAIN.encode(operation))
        return self._gone() if answer.kind == "no-such-member" else self._view_in(answer)

    async def _steer_run(self, how: str, body: bytes) -> NodeView:
        """Decides something of the run, and returns what this node then sees, who may be no node of it."""
        answer = await self._steer(f"{self._run}/{how}", body)
        if not answer.is_good:
            raise answer.error()
        seen = await self._ask("GET", f"{self._path}/view", b"") if self._session else None
        if seen is not None:
            return self._gone() if self._is_over(seen) else self._view_in(seen)
        run = _decode(RUN.decode, answer.body)
        closed = None if run.closed is None else Closure(run.closed.by, run.closed.reason, -run.closed.age)
        return NodeView(self._node, 0, run.incarnation, run.round, Phase.GONE, closed=closed)

    async def _steer(self, path: str, body: bytes) -> HttpAnswer:
        """Asks for what anybody may who may change the run; who waits, or is a member, is shown first."""
        return await self._ask("POST", path, body) or await self._request("POST", path, body)

    async def _ask(self, method: str, path: str, body: bytes) -> HttpAnswer | None:
        """Sends a request in the session, before which a server that does not know the node is shown it.

        Returns:
            The answer; None if the node has no session, and is not to have one.
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

    async def _request(self, method: str, path: str, body: bytes = b"") -> HttpAnswer:
        headers = {SESSION_HEADER: self._session} if self._session else {}
        if self._key:
            headers[IDEMPOTENCY_HEADER] = self._key
        if body:
            headers |= _JSON
        return await self._client.request(method, path, body, headers, limit=self._answer_timeout)

    def _presentation(self) -> Join | Resume | None:
        """Says what the node holds, or waits for; None if it is not in the run."""
        view, join = self.feed.latest, self._join or self._leaving
        if view is None or join is None or view.phase is Phase.GONE:
            return None
        if view.phase is not Phase.MEMBER:
            return None if self._join is None else join.knowing(view.known)
        held = (view.incarnation, view.round, view.rank, view.world_size, view.digest, view.share)
        return Resume(join.desc, join.settings, *held)

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

    def _take_pushed(self, data: bytes) -> None:
        try:
            view = _decode(VIEW.decode, data)
        except UnansweredError as error:  # a later one may be understood
            self._skipped.note(f"a view of {self._node}", str(error))
        else:
            self._take(view)

    def _view_in(self, answer: HttpAnswer) -> NodeView:
        if not answer.is_good:
            raise answer.error()
        return self._take(_decode(VIEW.decode, answer.body))

    def _is_over(self, answer: HttpAnswer) -> bool:
        """Whether the server says that the session is over; takes in the view that says why."""
        if answer.kind != "session-over":
            return False
        self._take(_decode(VIEW.decode, answer.member("view")))
        self._end_session()
        return True

    def _gone(self) -> NodeView:
        latest = self.feed.latest
        if latest is not None and latest.phase is Phase.GONE:
            return latest
        return NodeView(self._node, 0, 0, -1, Phase.GONE)

    async def _begin(self, join: Join | Resume) -> NodeView:
        """Begins a session, whose stream is read in the background; returns the first view.

        Cancellation: the session may begin all the same; the next operation waits until that is known.
        """
        self._end_session()
        self._opened = opened = asyncio.Event()
        self._background.start(self._live, join, opened)
        await opened.wait()
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome

    async def _live(self, join: Join | Resume, opened: asyncio.Event) -> None:
        """Takes the views from a session's stream, and opens it again as long as it is wanted."""
        try:
            source: EventReader | None = await self._open_session(join)
        except (UnansweredError, RendezvousError) as error:
            self._outcome, self._opened = error, None
            opened.set()
            return
        self._outcome = self.feed.latest or self._gone()
        opened.set()
        pauses = BACKOFF.start()
        while source is not None and self._opened is opened:
            pauses.succeeded()
            reason = await self._read(source)
            if self._opened is opened:
                logger.info("%s: the stream of node %s broke: %s", self._client.url, self._node, reason)
            source = await self._restored(opened, pauses)

    async def _open_session(self, join: Join | Resume) -> EventReader:
        """Asks for a session, and takes in its first view; returns the stream of the others."""
        self._key = self._key or secrets.token_urlsafe(24)
        headers = {IDEMPOTENCY_HEADER: self._key, KEEPS_HEADER: "yes", **_JSON}
        if self._former:
            headers[FORMER_HEADER] = self._former
        limit = self._answer_timeout
        source = await self._client.stream(
            "POST", f"{self._run}/members", JOIN.encode(join), headers, limit=limit
        )
        if isinstance(source, HttpAnswer):
            self._key = ""
            check_peer(join, self._client.version, self._client.url)  # which says more than the server can
            if source.status == _GONE:
                raise UnansweredError("the answer to a join came too late", sent=True)
            raise source.error()
        try:
            joined = await _first(source)
            await self._close_again(joined.view)
            await self._recall(joined)
            await self._say_again(joined)
        except BaseException:
            source.close()
            raise
        self._session, self._key, self._told, self._source = joined.session, "", -1, source
        self._former, self._server = joined.session, joined.server
        self._take(joined.view)
        return source

    async def _close_again(self, view: NodeView) -> None:
        """Closes the run at a server that does not know any more that it was, as this member does."""
        latest = self.feed.latest
        if latest is None or latest.closed is None or latest.phase is not Phase.MEMBER:
            return
        if view.closed is None and view.incarnation == latest.incarnation:
            closing = CLOSE.encode(Close.again(latest.closed, latest.incarnation))
            path = f"{self._run}/close"
            answer = await self._client.request("POST", path, closing, _JSON, limit=self._answer_timeout)
            if not answer.is_good:
                raise answer.error()

    async def _recall(self, joined: JoinedBody) -> None:
        """Tells a server that may have forgotten the run what an earlier one has entrusted to the node."""
        latest = self.feed.latest
        if latest is None or self._server in ("", joined.server):
            return
        headers = {SESSION_HEADER: joined.session, **_JSON}
        for part in self._entrusted.parts(latest):
            body = IMAGE.encode(ImageBody(image.encode(part)))
            path, limit = f"{self._path}/recall", self._answer_timeout
            answer = await self._client.request("POST", path, body, headers, limit=limit)
            if not answer.is_good:
                logger.warning(
                    "%s did not take what node %s keeps: %s", self._client.url, self._node, answer.error()
                )
                return

    async def _say_again(self, joined: JoinedBody) -> None:
        """Tells a server that was started anew what the node has said of itself."""
        if self._server in ("", joined.server):
            return
        headers = {SESSION_HEADER: joined.session, **_JSON}
        for operation in self._sayings.of(self._node, joined.view.generation):
            saying = self._saying(operation, wait=0.0)
            await self._client.request(*saying, headers, limit=self._answer_timeout)

    async def _read(self, source: EventReader) -> str:
        """Takes in views until the stream is over, and says why it is."""
        try:
            while True:
                self._hear(await anext(source))
        except UnansweredError as error:
            return str(error)
        finally:
            source.close()

    def _hear(self, event: ServerEvent) -> None:
        """Takes in what the server tells of the node, or entrusts to it."""
        if event.name == "view":
            self._take_pushed(event.data)
        elif event.name == "image":
            body = _decode(IMAGE.decode, event.data)
            self._entrusted.keep(self._node, body.image, adds=body.adds)
            if self.feed.latest is not None:
                self._entrusted.hear(self.feed.latest)

    async def _restored(self, opened: asyncio.Event, pauses: Pauses) -> EventReader | None:
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
                self._lose_patience(anyio.current_time() - began, str(error))
            except RendezvousPermissionError as error:
                self.feed.fail(error)
            except RendezvousError as error:
                self.feed.fail(error)
                self._end_session()
        return None

    async def _opened_again(self) -> EventReader | None:
        """Opens the stream of the session, or of a new one at a server that does not know the node."""
        if self._session:
            headers = {SESSION_HEADER: self._session, "Last-Event-ID": str(self._told), KEEPS_HEADER: "yes"}
            limit = self._answer_timeout
            source = await self._client.stream("GET", f"{self._path}/view", b"", headers, limit=limit)
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

    def _lose_patience(self, seconds: float, reason: str) -> None:
        """Tells those who wait for a change that there is no server, once they have waited long enough."""
        latest = self.feed.latest
        is_member = latest is None or latest.phase is Phase.MEMBER
        patience = self._read_timeout if is_member else self._join_timeout
        if seconds >= patience:
            self.feed.fail(unreachable(self._client.url, patience, reason))


def _decode(decode: Callable[[bytes], B], data: bytes) -> B:
    return decode_foreign(
        decode, data, lambda said: UnansweredError(f"the answer is not understood: {said}", sent=True)
    )


async def _first(source: EventReader) -> JoinedBody:
    """Takes the first event of a stream, which must be that a node has joined.

    Raises:
        UnansweredError: It is not.
    """
    event = await anext(source)
    if event.name != "joined":
        raise UnansweredError(f"the stream did not begin with a join: {event.name}", sent=True)
    return _decode(JOINED.decode, event.data)

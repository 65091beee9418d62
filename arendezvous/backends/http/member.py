"""One node's session over HTTP: its operations in order, and its views from a stream that is kept open.

A session is one long request: the join, answered by a stream of views the first of which is the answer. The
operations after it are requests of their own. When the stream breaks it is opened again with the session's
secret; a server that does not know that any more was started anew, and is shown the rank that the node holds.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Final, TypeVar
from urllib.parse import quote, urlencode

import anyio
import msgspec

from arendezvous.backends.feed import ViewFeed
from arendezvous.backends.http.attempts import Attempts, Backoff, run_path
from arendezvous.backends.http.connection import EventSource
from arendezvous.backends.http.link import Answer, HttpLink, Opening, UnansweredError
from arendezvous.backends.troubles import unreachable
from arendezvous.errors import RendezvousError, RendezvousPermissionError, RendezvousStateError
from arendezvous.law.operations import Close, Drain, Join, KeepAlive, Leave, Operation, Reopen, Resume
from arendezvous.law.state import NodeView, Phase
from arendezvous.wire.http.bodies import (
    SESSION_HEADER,
    CloseRequest,
    DrainRequest,
    JoinedBody,
    JoinRequest,
    RejoinRequest,
    ReopenRequest,
    ViewBody,
)
from arendezvous.wire.http.conversions import (
    desc_request,
    generations_request,
    settings_request,
    view_of,
)
from arendezvous.wire.http.names import IDEMPOTENCY_HEADER
from arendezvous.wire.http.sse import ServerEvent

logger = logging.getLogger(__name__)

B = TypeVar("B")

Spawn = Callable[[Callable[[], Coroutine[Any, Any, None]]], None]

_encode: Final = msgspec.json.Encoder().encode
_view_decoder: Final = msgspec.json.Decoder(ViewBody)
_joined_decoder: Final = msgspec.json.Decoder(JoinedBody)


class HttpMember:
    """What a backend knows of one node.

    Args:
        link: The way to the server.
        run_id: The run.
        node: The node.
        spawn: Starts a task that ends with the backend.
        read_timeout: Seconds that an operation may take over all attempts.
        join_timeout: Seconds that a node that waits for a round endures to be without a server.

    Attributes:
        feed: The node's views.
    """

    def __init__(
        self, link: HttpLink, run_id: str, node: str, spawn: Spawn, read_timeout: float, join_timeout: float
    ) -> None:
        self.feed = ViewFeed()
        self._link = link
        self._node = node
        self._spawn = spawn
        self._read_timeout = read_timeout
        self._join_timeout = join_timeout
        self._answer_timeout = read_timeout
        self._run = run_path(run_id)
        self._path = f"{self._run}/members/{quote(node, safe='')}"
        self._turn = asyncio.Lock()  # operations are carried out in the order of the calls
        self._lock = asyncio.Lock()  # one attempt at a time, of the operations' or of the stream's
        self._join: Join | None = None
        self._opening: Opening | None = None
        self._closed: RendezvousError | None = None
        self._session = ""
        self._key = ""
        self._told = -1
        self._stream: EventSource | None = None

    async def propose(self, operation: Operation) -> NodeView:
        """See `RendezvousBackend.propose`; operations are carried out in the order of the calls.

        Of a join that is cancelled the answer is still to come: the next operation waits for it first.
        """
        if isinstance(operation, Leave):
            self._join = None  # whatever becomes of the request, the node is not presented again
        async with self._turn:
            if self._opening is not None:
                await self._see_through()
            return await self._carry_out(operation)

    def most(self, join: Join) -> float:
        """Seconds after which proposing `join` has ended in any case; infinite if it may wait for others."""
        if self._session or self._opening is not None or self._turn.locked() or self._lock.locked():
            return math.inf
        # the last attempt begins within the time-out; its stream is to begin, and then to say something
        return self._read_timeout + 2 * min(self._read_timeout, join.settings.expiry)

    async def _see_through(self) -> None:
        """Waits until it is known what became of a join that was cancelled."""
        async with self._lock:
            if self._opening is not None:
                with suppress(UnansweredError, RendezvousError):
                    await self._begun(self._opening)

    def close(self, error: RendezvousError) -> None:
        """Breaks the stream off, and ends all waits with `error`."""
        self._closed = error
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()
        self.feed.fail(error)

    async def _carry_out(self, operation: Operation) -> NodeView:
        """Tries until there is an answer."""
        if isinstance(operation, Join | Resume):
            self._answer_timeout = min(self._read_timeout, operation.settings.expiry)
        if isinstance(operation, Join):
            self._join = operation
        attempts = Attempts(self._link.url, self._read_timeout)
        while True:
            if self._closed is not None:
                raise self._closed
            try:
                async with self._lock:
                    return await self._attempt(operation)
            except UnansweredError as error:
                await attempts.failed(error)

    async def _attempt(self, operation: Operation) -> NodeView:
        if isinstance(operation, Join | Resume):
            return await self._present(operation)
        if isinstance(operation, KeepAlive):
            return await self._keep_alive()
        if isinstance(operation, Leave):
            return await self._leave(operation)
        if isinstance(operation, Drain):
            body = DrainRequest(seconds=operation.seconds, reason=operation.reason)
            return await self._steer(f"{self._path}/drain", body)
        if isinstance(operation, Close):
            closing = CloseRequest(
                by=operation.by, reason=operation.reason, incarnation=operation.incarnation
            )
            return await self._steer(f"{self._run}/close", closing)
        if isinstance(operation, Reopen):
            reopening = ReopenRequest(incarnation=operation.incarnation, by=operation.by)
            return await self._steer(f"{self._run}/reopen", reopening)
        raise RendezvousStateError(f"{type(operation).__name__} is for the server alone to decide")

    async def _present(self, operation: Join | Resume) -> NodeView:
        """Joins, or resumes, in the session that there is or in a new one."""
        after, held = generations_request(operation)
        settings, desc = settings_request(operation.settings), desc_request(operation.desc)
        if self._session:
            again = RejoinRequest(settings=settings, node=desc, after=after, held=held)
            answer = await self._request("PUT", self._path, again)
            if answer.is_good:
                return self._take(_decode(_view_decoder, answer.body))
            if not self._is_over(answer):
                raise answer.error()
        return await self._begin(JoinRequest(node=desc, settings=settings, after=after, held=held))

    async def _begin(self, join: JoinRequest) -> NodeView:
        """Begins a session: the answer is the stream of its views."""
        self._key = self._key or secrets.token_urlsafe(24)
        headers = {IDEMPOTENCY_HEADER: self._key}
        path = f"{self._run}/members"
        self._opening = await self._link.open_stream(
            "POST", path, _encode(join), headers, limit=self._answer_timeout
        )
        return await self._begun(self._opening)

    async def _begun(self, opening: Opening) -> NodeView:
        """Waits until a session has begun. Cancellation: safe; to be called again."""
        try:
            stream = await opening.opened()
            if isinstance(stream, Answer):
                self._key = ""
                raise _refusal(stream)
            joined = await _first(stream, self._answer_timeout)
        except (UnansweredError, RendezvousError):
            self._opening = None
            raise
        self._opening = None
        self._end_session()
        self._session, self._key, self._told = joined.session, "", -1
        view = self._take(joined.view)
        if view.phase is Phase.GONE:
            stream.close()
        else:
            self._follow(stream)
        return view

    async def _keep_alive(self) -> NodeView:
        if not self._session:
            return self._gone()
        answer = await self._request("POST", f"{self._path}/keep-alive")
        if answer.is_good:
            return self._take(_decode(_view_decoder, answer.body))
        if self._is_over(answer):
            return self._gone()
        if not _is_forgotten(answer):
            raise answer.error()
        await self._present_again()
        return self.feed.latest or self._gone()

    async def _leave(self, operation: Leave) -> NodeView:
        if not self._session and not self._key:
            return self._gone()
        query = urlencode({"reason": operation.reason, "cause": operation.cause.value})
        answer = await self._request("DELETE", f"{self._path}?{query}")
        if answer.is_good:
            view = self._take(_decode(_view_decoder, answer.body))
        elif self._is_over(answer) or _is_forgotten(answer):
            view = self._gone()
        else:
            raise answer.error()
        self._end_session()
        self._key = ""
        return view

    async def _steer(self, path: str, body: msgspec.Struct) -> NodeView:
        answer = await self._request("POST", path, body)
        if answer.is_good:
            return self._take(_decode(_view_decoder, answer.body))
        if answer.kind == "no-such-member":
            return self._gone()
        raise answer.error()

    async def _request(self, method: str, path: str, body: msgspec.Struct | None = None) -> Answer:
        headers = {SESSION_HEADER: self._session} if self._session else {}
        if self._key:
            headers[IDEMPOTENCY_HEADER] = self._key
        data = b"" if body is None else _encode(body)
        return await self._link.request(method, path, data, headers, limit=self._answer_timeout)

    def _take(self, body: ViewBody) -> NodeView:
        """Takes in a view of this node, unless a later one has come before it on another connection."""
        latest = self.feed.latest
        if not self._session and latest is None:
            return view_of(body)
        if body.revision > self._told or latest is None:
            self._told = body.revision
            latest = self.feed.push(view_of(body))
            if latest.phase is Phase.GONE:
                self._end_session()
        return latest

    def _is_over(self, answer: Answer) -> bool:
        """Whether the server says that the session is over; takes in the view that says why."""
        if answer.kind != "session-over":
            return False
        self._take(_decode(_view_decoder, _encode(answer.problem.get("view"))))
        self._end_session()
        return True

    def _end_session(self) -> None:
        self._session = ""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    def _gone(self) -> NodeView:
        latest = self.feed.latest
        if latest is not None and latest.phase is Phase.GONE:
            return latest
        return NodeView(self._node, 0, 0, -1, Phase.GONE)

    def _follow(self, stream: EventSource) -> None:
        """Takes the views from `stream`, and opens it again when it breaks, for as long as it is wanted."""

        def lost(reason: str) -> None:
            if self._stream is stream:
                logger.info("%s: the stream of node %s broke: %s", self._link.url, self._node, reason)
                self._spawn(self._restore)

        self._stream = stream
        stream.start(self._receive, lost)

    def _receive(self, event: ServerEvent) -> None:
        if event.name == "view":
            with suppress(UnansweredError):  # which says that a view is not understood; a later one may be
                self._take(_decode(_view_decoder, event.data))

    async def _restore(self) -> None:
        """Opens the stream again, unless it is not wanted any more."""
        broken, backoff, began = self._stream, Backoff(), anyio.current_time()
        while True:
            try:
                async with self._lock:
                    if self._stream is broken and self._session:
                        await self._open_stream()
                        self.feed.recover()
                    return
            except UnansweredError as error:
                self._lose_patience(anyio.current_time() - began, str(error))
            except RendezvousPermissionError as error:
                self.feed.fail(error)
            except RendezvousError as error:
                self.feed.fail(error)
                self._end_session()
                return
            await backoff.pause()

    async def _open_stream(self) -> None:
        headers = {SESSION_HEADER: self._session, "Last-Event-ID": str(self._told)}
        opened = await self._link.stream(
            "GET", f"{self._path}/view", headers=headers, limit=self._answer_timeout
        )
        if isinstance(opened, EventSource):
            self._follow(opened)
        elif _is_forgotten(opened):
            await self._present_again()
        elif not self._is_over(opened):
            raise opened.error()

    async def _present_again(self) -> None:
        """Shows a server that does not know this node what it holds, or waits for."""
        view, join = self.feed.latest, self._join
        self._end_session()
        self._key = ""
        if view is None or join is None or view.phase is Phase.GONE:
            return
        if view.phase is not Phase.MEMBER:
            await self._present(join.knowing(view.known))
            return
        held = (view.incarnation, view.round, view.rank, view.world_size, view.digest)
        await self._present(Resume(join.desc, join.settings, *held))
        if view.closed is not None:
            await self._attempt(Close(view.closed.by, view.closed.reason, view.incarnation))

    def _lose_patience(self, seconds: float, reason: str) -> None:
        """Tells those who wait for a change that there is no server, once they have waited long enough."""
        latest = self.feed.latest
        is_member = latest is None or latest.phase is Phase.MEMBER
        patience = self._read_timeout if is_member else self._join_timeout
        if seconds >= patience:
            self.feed.fail(unreachable(self._link.url, patience, reason))


def _refusal(answer: Answer) -> Exception:
    """What an answer to a join stands for that is no stream."""
    return UnansweredError("the answer to a join came too late") if answer.status == 410 else answer.error()


def _is_forgotten(answer: Answer) -> bool:
    """Whether the server does not know the session: it was started anew."""
    return answer.kind in ("no-such-run", "no-such-member", "not-your-session")


def _decode(decoder: msgspec.json.Decoder[B], data: bytes) -> B:
    try:
        return decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise UnansweredError(f"the answer is not understood: {error}") from error


async def _first(stream: EventSource, limit: float) -> JoinedBody:
    """The first event of a stream, which must be that a node has joined. Cancellation: safe.

    Raises:
        UnansweredError: It is not; the stream is broken off.
    """
    event: ServerEvent | None = None
    reason = f"nothing came within {limit:g} s"
    try:
        if stream.has_begun:
            event = await stream.first()
        else:
            with anyio.move_on_after(limit):
                event = await stream.first()
        if event is not None and event.name == "joined":
            return _decode(_joined_decoder, event.data)
    except ConnectionError as error:
        reason = str(error)
    except UnansweredError:
        stream.close()
        raise
    stream.close()
    raise UnansweredError(f"the stream did not begin with a join: {reason if event is None else event.name}")

"""One connection to a server's HTTP door: a request at a time, answered at once or by a stream of events.

Of a rendezvous of hundreds of nodes in one event loop most of the time would go into a general HTTP client:
here a request is one write, and an event of a stream is handed on as its bytes come, without a task.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Mapping
from typing import Final, cast

from arendezvous.backends.http.reply import Reply
from arendezvous.net.shared_buffer import SharedBufferProtocol
from arendezvous.wire.http.http1 import ResponseParser
from arendezvous.wire.http.sse import EventParser, ServerEvent
from arendezvous.wire.native.messages import FrameError

MAX_REPLY: Final = 256 * 1024 * 1024
SILENCE: Final = 45.0  # seconds after which a server is gone that says something at least every 15


class HttpConnection(SharedBufferProtocol):
    """A connection, from being made to being lost.

    Attributes:
        lost: Why the connection was lost; empty as long as it is there.
        idle_since: When it was used last, by the loop's clock.
    """

    def __init__(self) -> None:
        self.lost = ""
        self.idle_since = 0.0
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser: ResponseParser | None = None
        self._body: list[bytes] = []
        self._size = 0
        self._reply: Reply[bytes | EventSource] | None = None
        self._due: asyncio.TimerHandle | None = None
        self._wants_stream = False
        self._stream: EventSource | None = None

    @property
    def status(self) -> int:
        """The status of the latest response."""
        return 0 if self._parser is None else self._parser.status

    @property
    def headers(self) -> Mapping[str, str]:
        """The header fields of the latest response, their names in lower case."""
        return {} if self._parser is None else self._parser.headers

    @property
    def is_reusable(self) -> bool:
        """Whether another request may be sent."""
        return not self.lost and (self._parser is None or (self._parser.is_done() and self._parser.reusable))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Sets the socket up for small messages, and for a peer that vanishes without a word."""
        self._transport = cast(asyncio.Transport, transport)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def data_received(self, data: bytes) -> None:
        """Takes what has come of the response."""
        parser = self._parser
        if parser is None or parser.is_done():
            self.abort("the server sent what nobody asked for")
            return
        try:
            piece = parser.feed(data)
        except FrameError as error:
            self.abort(str(error))
            return
        if self._stream is None and self._is_stream(parser):
            self._stream = EventSource(self)
            self._answer(self._stream)
        if self._stream is not None:
            self._stream.feed(piece)
        else:
            self._collect(piece)
        if parser.is_done():
            self._end(parser)

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the response that is under way."""
        self._transport = None
        reason = str(exc) if exc is not None else "the server closed the connection"
        self.lost = self.lost or reason
        if self._parser is not None and not self._parser.is_done() and self._parser.end():
            self._end(self._parser)
        else:
            self._answer(ConnectionError(self.lost))
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.end(self.lost)

    def send(
        self, method: str, request: bytes, due: float, *, stream: bool = False
    ) -> Reply[bytes | EventSource]:
        """Sends a request.

        Args:
            method: The method of the request.
            request: All of it.
            due: When to give up, by the loop's clock; the connection is broken off then.
            stream: Whether the answer may be a stream of events.

        Returns:
            The body that is to come, or the stream as soon as it begins; or an `OSError` if the connection is
            lost, a `TimeoutError` if it was given up.

        Raises:
            ConnectionError: The connection is lost already.
        """
        if self._transport is None:
            raise ConnectionError(self.lost)
        self._parser = ResponseParser(method)
        self._wants_stream = stream
        self._body, self._size = [], 0
        reply = self._reply = Reply()
        self._transport.write(request)
        self._due = self._loop.call_at(due, self._give_up)  # far cheaper than a cancel scope
        return reply

    async def exchange(self, method: str, request: bytes, due: float) -> bytes:
        """Sends a request, and waits for the response; see `send`.

        Cancellation: the connection is broken off.
        """
        try:
            answer = await self.send(method, request, due).wait()
        except asyncio.CancelledError:
            self.abort("nobody waits for the answer")
            raise
        return answer if isinstance(answer, bytes) else b""

    async def start_tls(self, context: ssl.SSLContext, name: str) -> None:
        """Speaks TLS from now on, over the connection that there is.

        Raises:
            OSError: The handshake failed.
        """
        if self._transport is None:
            raise ConnectionError(self.lost)
        transport = await self._loop.start_tls(self._transport, self, context, server_hostname=name)
        if transport is None:
            raise ConnectionError(self.lost or "the connection was lost during the handshake")
        self._transport, self._parser = transport, None

    def abort(self, reason: str) -> None:
        """Breaks the connection off."""
        self.lost = self.lost or reason
        if self._transport is not None:
            self._transport.abort()

    def local_address(self) -> str:
        """This end's address; empty if there is none any more."""
        name = self._transport.get_extra_info("sockname") if self._transport is not None else None
        return str(name[0]) if isinstance(name, tuple) else ""

    def _is_stream(self, parser: ResponseParser) -> bool:
        kind = parser.headers.get("content-type", "")
        return self._wants_stream and 0 < parser.status < 300 and kind.startswith("text/event-stream")

    def _collect(self, piece: bytes) -> None:
        self._body.append(piece)
        self._size += len(piece)
        if self._size > MAX_REPLY:
            self.abort(f"the answer has more than {MAX_REPLY} bytes")

    def _end(self, parser: ResponseParser) -> None:
        self.idle_since = self._loop.time()
        if self._stream is not None:
            stream, self._stream = self._stream, None
            self.abort("the server ended the stream")
            stream.end(self.lost)
            return
        body, self._body = self._body, []
        self._answer(b"".join(body))
        if not parser.reusable:
            self.abort("the server ended the connection")

    def _give_up(self) -> None:
        self._answer(TimeoutError())
        self.abort("there was no answer in time")

    def _answer(self, answer: bytes | EventSource | OSError) -> None:
        """Answers the request, unless that has been done."""
        if self._due is not None:
            self._due.cancel()
        reply, self._reply = self._reply, None
        if reply is not None:
            reply.give(answer)


class EventSource:
    """A stream of events that is open: they are handed on as they come.

    What has come before `start` is kept until then.
    """

    def __init__(self, connection: HttpConnection) -> None:
        self._connection = connection
        self._parser = EventParser()
        self._early: list[ServerEvent] = []
        self._receive: Callable[[ServerEvent], None] | None = None
        self._lost: Callable[[str], None] | None = None
        self._first: asyncio.Future[None] | None = None
        self._over = ""
        self._loop = asyncio.get_running_loop()
        self._heard = self._loop.time()
        self._timer: asyncio.TimerHandle | None = self._loop.call_later(SILENCE, self._listen)

    @property
    def has_begun(self) -> bool:
        """Whether there is an event that nobody has taken yet, or the stream is over."""
        return bool(self._early or self._over)

    async def first(self) -> ServerEvent:
        """Waits for the first event and takes it; before `start`.

        Raises:
            ConnectionError: The stream is over.

        Cancellation: safe.
        """
        if not self.has_begun:
            self._first = self._loop.create_future()
            await self._first
        if not self._early:
            raise ConnectionError(self._over)
        return self._early.pop(0)

    def start(self, receive: Callable[[ServerEvent], None], lost: Callable[[str], None]) -> None:
        """Hands on what comes.

        Args:
            receive: Called with each event.
            lost: Called once, with the reason in words, when the stream is over and `close` was not called.
        """
        self._receive, self._lost = receive, lost
        early, self._early = self._early, []
        for event in early:
            receive(event)
        if self._over:
            self._loop.call_soon(self._tell_lost)

    def close(self) -> None:
        """Breaks the stream off; nothing is handed on any more."""
        self._receive = self._lost = None
        self._over = "the stream was closed"
        self._stop_timer()
        self._connection.abort("the stream was closed")

    def feed(self, data: bytes) -> None:
        """Takes what has come."""
        self._heard = self._loop.time()
        try:
            events = self._parser.feed(data)
        except FrameError as error:
            self._connection.abort(str(error))
            return
        for event in events:
            if self._receive is not None:
                self._receive(event)
            elif not self._over:
                self._early.append(event)
        if self._early:
            self._wake()

    def end(self, reason: str) -> None:
        """The connection is lost."""
        self._over = reason
        self._stop_timer()
        self._wake()
        self._tell_lost()

    def _tell_lost(self) -> None:
        lost, self._lost = self._lost, None
        if lost is not None:
            lost(self._over)

    def _wake(self) -> None:
        if self._first is not None and not self._first.done():
            self._first.set_result(None)

    def _listen(self) -> None:
        left = self._heard + SILENCE - self._loop.time()
        if left <= 0:
            self._connection.abort(f"the server said nothing for {SILENCE:g} s")
            return
        self._timer = self._loop.call_later(left, self._listen)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

"""One connection of the HTTP listener: what aiohttp does not bound stands in front of its protocol.

aiohttp bounds the sizes of a request's line and header fields, and closes what is idle. Bounded here are how
many connections there are, how long the head of a request may take, and for how long a peer may leave an
answer unread. How long a body may take is for who reads it, see `requests.read_body`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final, TypeAlias, cast

from aiohttp import web

from arendezvous.net.forks import let_go_in_children
from arendezvous.server.access.admission import Admission
from arendezvous.server.counts import DoorCounts
from arendezvous.server.http.context import HttpContext
from arendezvous.server.misdirected import own_address, refuse
from arendezvous.server.tcp.listener import peer_name

logger = logging.getLogger(__name__)

_CONNECTION: Final = "arendezvous.http_connection"  # what a request's transport calls its connection
_REFUSAL: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"
)

_Data: TypeAlias = bytes | bytearray | memoryview


class HttpConnection(asyncio.Protocol):
    """A connection until it ends, counted together with those of the other listeners.

    Args:
        make_protocol: Makes aiohttp's protocol of a connection.
        admission: Says whether there is room.
        context: What is behind the listener.
        known: Where it is entered for as long as it lives.
        counted: Whether it has been counted already.

    Its fields:
        _transport: The way to the peer; None before the connection is made, and after it is lost.
        _protocol: aiohttp's protocol; None before the connection is admitted, and after it is lost.
        _peer: The other end's address, for the log.
        _begun: Whether a first byte has come.
        _refused: Breaks the connection off of who is told that it belongs elsewhere; None: nobody is.
        _answering: Whether a request is being handled, from its head to the end of its answer.
        _head_due: When the head of the next request must have come; None while none is waited for.
        _head_timer: Looks whether it has; outlives requests, so that not each of them needs a timer.
        _read_timer: Breaks the connection off if the peer still reads nothing; None while nothing is unread.
    """

    def __init__(
        self,
        make_protocol: Callable[[], asyncio.Protocol],
        admission: Admission,
        context: HttpContext,
        known: set[HttpConnection],
        *,
        counted: bool = False,
    ) -> None:
        self._make_protocol = make_protocol
        self._admission = admission
        self._context = context
        self._limits = context.limits
        self._known = known
        self._counted = counted
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._protocol: asyncio.Protocol | None = None
        self._peer = "?"
        self._begun = False
        self._refused: asyncio.TimerHandle | None = None
        self._answering = False
        self._head_due: float | None = None
        self._head_timer: asyncio.TimerHandle | None = None
        self._read_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Counts the connection, or refuses it."""
        self._transport = cast(asyncio.Transport, transport)
        self._peer = peer_name(transport)
        let_go_in_children(transport)
        if not (self._counted or self._admission.enter(self._peer)):
            self._transport.write(_REFUSAL)
            self._transport.close()
            return
        self._known.add(self)
        self._admission.traffic.http.opened += 1
        self._protocol = self._make_protocol()
        self._protocol.connection_made(_Transport(self, self._transport, self._admission.traffic.http))
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """Takes what has come; from the first byte of a request its head has to be there in time."""
        if self._protocol is None or self._refused is not None:
            return
        self._admission.traffic.http.received += len(data)
        if not self._begun:
            self._begun = True
            if self._is_misdirected(data[0]):
                return
        if not self._answering:
            self._expect_head()
        self._protocol.data_received(data)

    def eof_received(self) -> bool | None:
        """The peer will send no more."""
        if self._protocol is None or self._refused is not None:
            return None
        return self._protocol.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets the connection; the request under way is cancelled."""
        for timer in (self._head_timer, self._read_timer, self._refused):
            if timer is not None:
                timer.cancel()
        protocol, self._protocol, self._transport = self._protocol, None, None
        if protocol is not None:
            self._admission.leave()
            self._admission.traffic.http.closed += 1
            self._known.discard(self)
            protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        """The peer leaves an answer unread: it may not for ever."""
        self._read_timer = self._loop.call_later(self._limits.write_timeout, self._drop_unread)
        if self._protocol is not None:
            self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """The peer reads again."""
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None
        if self._protocol is not None:
            self._protocol.resume_writing()

    def request_begins(self) -> None:
        """The head of a request has come."""
        self._answering = True
        self._head_due = None

    def request_ends(self) -> None:
        """A request has been answered."""
        self._answering = False

    def abort(self) -> None:
        """Breaks the connection off at once."""
        if self._transport is not None:
            self._transport.abort()

    def _is_misdirected(self, first: int) -> bool:
        """Refuses, by its first byte, who belongs at another port."""
        assert self._transport is not None  # noqa: S101 - data has come
        refusal = self._context.listeners.refusal_at_http(first, own_address(self._transport))
        if refusal is None:
            return False
        self._context.throttle.failed(self._peer, refusal.why)
        self._refused = refuse(self._transport, refusal.answer)
        return True

    def _expect_head(self) -> None:
        if self._head_due is None:
            self._head_due = self._loop.time() + self._limits.handshake_timeout
            if self._head_timer is None:
                self._head_timer = self._loop.call_at(self._head_due, self._look_for_head)

    def _look_for_head(self) -> None:
        self._head_timer = None
        if self._head_due is None:
            return
        if self._loop.time() < self._head_due:  # of a later request
            self._head_timer = self._loop.call_at(self._head_due, self._look_for_head)
            return
        seconds = self._limits.handshake_timeout
        logger.info("%s: dropped: the head of a request was not complete after %g s", self._peer, seconds)
        self.abort()

    def _drop_unread(self) -> None:
        seconds = self._limits.write_timeout
        logger.warning("%s: dropped: it has left an answer unread for %g s", self._peer, seconds)
        self.abort()


class _Transport(asyncio.Transport):
    """What aiohttp writes to: counts the bytes, and knows the connection; all else is the real transport's.

    aiohttp tells how long an answer was once it is over, and a stream of events is over after hours.
    """

    __slots__ = ("_connection", "_traffic", "_transport")

    def __init__(self, connection: HttpConnection, transport: asyncio.Transport, traffic: DoorCounts) -> None:
        self._connection = connection
        self._transport = transport
        self._traffic = traffic

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._connection if name == _CONNECTION else self._transport.get_extra_info(name, default)

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def close(self) -> None:
        self._transport.close()

    def abort(self) -> None:
        self._transport.abort()

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()

    def write(self, data: _Data) -> None:
        self._traffic.sent += len(data)
        self._transport.write(data)


def connection_of(request: web.Request) -> HttpConnection | None:
    """The connection of a request; None if it is lost."""
    connection: HttpConnection | None = request.get_extra_info(_CONNECTION)
    return connection

"""One connection of the HTTP listener: what aiohttp does not bound stands in front of its protocol.

aiohttp bounds the sizes of a request's line and header fields, how many requests it takes in beyond the one
that is answered, and closes what is idle. Bounded here are how many connections there are, how long the head
of a request may take, and for how long and how much of an answer a peer may leave unread. How long a body may
take is for who reads it, see `bodies.read_body`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, TypeAlias, cast

from aiohttp import web

from arendezvous.keyspace.grants import Grant
from arendezvous.net.forks import let_go_in_children
from arendezvous.server.access.admission import ProtocolCounts
from arendezvous.server.binding import peer_name
from arendezvous.server.context import ServerContext
from arendezvous.server.misdirected import own_address, refuse
from arendezvous.server.tcp.sharing import SHARE, TURN

SOON: Final = 0.1  # seconds within which a head mostly is complete
AHEAD: Final = 256 * 1024  # bytes that may have come of what is not read yet: the least that aiohttp takes in
_CONNECTION: Final = "arendezvous.http_connection"  # what a request's transport calls its connection
_REFUSAL: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"
)

_Data: TypeAlias = bytes | bytearray | memoryview


class HttpConnections:
    """The connections of a listener, whose addresses are charged for heads that are not complete.

    Nobody has shown a token by then. Most heads come whole, and cost no more than a look: what has come is
    charged if that was a while ago.

    Fields:
        context: What is behind the listener.
        open: Those that have not ended.
        _pending: The connections of which something has come since they were answered last.
        _timer: For the next look; None while there is no such connection.
    """

    def __init__(self, context: ServerContext) -> None:
        self.context = context
        self.open: set[HttpConnection] = set()
        self._pending: set[HttpConnection] = set()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, connection: HttpConnection) -> None:
        """Has a connection charged unless it is taken out soon."""
        self._pending.add(connection)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(SOON, self._look)

    def take_out(self, connection: HttpConnection) -> None:
        """Charges a connection no more; may be called again."""
        self._pending.discard(connection)
        if connection.charged:
            self.context.shared.greetings.add(connection.peer, -connection.charged)
            connection.charged = 0

    def close(self) -> None:
        """Stops the timer."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        for connection in list(self._pending):
            more = connection.ahead - connection.charged
            if self.context.shared.greetings.add(connection.peer, more):
                connection.charged += more
            else:
                connection.drop("its address has too many requests whose heads are not complete")
        self._timer = loop.call_later(SOON, self._look) if self._pending else None


class HttpConnection(asyncio.Protocol):
    """A connection until it ends, counted together with those of the other listeners.

    Attributes:
        peer: The other end's address, for the log.
        ahead: Bytes that have come and have not been read by whoever answers, heads included.
        charged: How many of them its address is charged for.
        grant: What the token of the request that is answered is good for; None: none is answered, or needed.
        _make_protocol: Makes aiohttp's protocol of a connection.
        _counted: Whether it has been counted already.
        _transport: None before the connection is made, and after it is lost.
        _protocol: aiohttp's; None before the connection is admitted, and after it is lost.
        _begun: Whether a first byte has come.
        _refused: Breaks the connection off of who is told that it belongs elsewhere; None: nobody is.
        _answering: Whether a request is being handled, from its head to the end of its answer.
        _unsent: Bytes of its answer that are kept until they are sent.
        _has_come: Whether something has come since a request was begun.
        _head_due: When the head of the next request must have come; None while none is waited for.
        _head_timer: Looks whether it has; outlives requests, so that not each of them needs a timer.
    """

    def __init__(
        self, others: HttpConnections, make_protocol: Callable[[], asyncio.Protocol], *, counted: bool = False
    ) -> None:
        context = others.context
        self._make_protocol = make_protocol
        self._admission = context.admission
        self._traffic = context.admission.traffic["http"]
        self._context = context
        self._shared = context.shared
        self._others = others
        self._counted = counted
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._protocol: asyncio.Protocol | None = None
        self.peer = "?"
        self.ahead = 0
        self.charged = 0
        self.grant: Grant | None = None
        self._begun = False
        self._refused: asyncio.TimerHandle | None = None
        self._answering = False
        self._unsent = 0
        self._has_come = False
        self._head_due: float | None = None
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Counts the connection, or refuses it."""
        self._transport = cast(asyncio.Transport, transport)
        self.peer = peer_name(transport)
        let_go_in_children(transport)
        if not (self._counted or self._admission.enter(self.peer)):
            self._transport.write(_REFUSAL)
            self._transport.close()
            return
        self._others.open.add(self)
        self._traffic.opened += 1
        self._protocol = self._make_protocol()
        self._protocol.connection_made(_Transport(self, self._transport, self._traffic))
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """Takes what has come; from the first byte of a request its head has to be there in time."""
        if self._protocol is None or self._refused is not None:
            return
        if self._admission.office is not None and self._admission.is_deposed:
            self.abort()
            return
        self._traffic.received += len(data)
        self._has_come = True
        if not self._begun:
            self._begun = True
            if self._is_misdirected(data[0]):
                return
        if not self._answering:
            self.ahead = len(data) if self._head_due is None else self.ahead + len(data)
            self._expect_head()
            self._others.add(self)
        else:
            self.ahead += len(data)
            if self.ahead > AHEAD:
                self._shared.unfinished.keep(self, self.ahead)
        self._protocol.data_received(data)

    def eof_received(self) -> bool | None:
        """The peer will send no more."""
        if self._protocol is None or self._refused is not None:
            return None
        return self._protocol.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets the connection; the request under way is cancelled."""
        for timer in (self._head_timer, self._refused):
            if timer is not None:
                timer.cancel()
        self._others.take_out(self)
        self._shared.unread.free(self)
        self._shared.unfinished.free(self)
        protocol, self._protocol, self._transport = self._protocol, None, None
        if protocol is not None:
            self._admission.leave()
            self._traffic.closed += 1
            self._others.open.discard(self)
            protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        """The peer leaves an answer unread: it may not for ever."""
        if self._transport is not None:
            self._shared.unread.keep(self, self._transport.get_write_buffer_size() + self._unsent)
        if self._protocol is not None:
            self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """The peer reads again."""
        self._shared.unread.free(self)
        if self._protocol is not None:
            self._protocol.resume_writing()

    async def request_begins(self) -> None:
        """The head of a request has come: returns when it is its turn. Cancellation: safe.

        That is at once, unless it stood behind another in what came, or others have been served in this turn.
        """
        self._answering = True
        self._head_due = None
        self._others.take_out(self)
        turns, has_come = self._shared.turns, self._has_come
        self._has_come = False
        if has_come and turns.spent < TURN:
            turns.spend(SHARE)
        else:
            await turns.wait()

    def body_read(self, size: int, *, is_over: bool) -> None:
        """So many bytes of a body have been read; unless it is over, that is all that has come."""
        self.ahead = self.ahead - size if is_over else 0
        if self.ahead <= AHEAD:
            self._shared.unfinished.free(self)

    def answer_begins(self, kept: int) -> None:
        """An answer is sent, of which so many bytes are kept until they have been."""
        self._unsent = kept

    def request_ends(self) -> None:
        """A request has been answered."""
        self._answering = False
        self._unsent = 0
        self.grant = None

    def dismiss(self) -> None:
        """Drops who is being answered, but whose token has been withdrawn: some answers never end."""
        if self.grant is not None and not self._context.access.authority.still_grants(self.grant):
            self.drop("its token has been withdrawn")

    def drop(self, why: str) -> None:
        """Breaks the connection off; the log tells why."""
        self._shared.throttle.dropped(self.peer, why)
        self.abort()

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
        self._shared.throttle.failed(self.peer, refusal.why)
        self._refused = refuse(self._transport, refusal.answer)
        return True

    def _expect_head(self) -> None:
        if self._head_due is None:
            self._head_due = self._loop.time() + self._shared.limits.handshake_timeout
            if self._head_timer is None:
                self._head_timer = self._loop.call_at(self._head_due, self._look_for_head)

    def _look_for_head(self) -> None:
        self._head_timer = None
        if self._head_due is None:
            return
        if self._loop.time() < self._head_due:  # of a later request
            self._head_timer = self._loop.call_at(self._head_due, self._look_for_head)
            return
        self.drop(f"the head of a request was not complete after {self._shared.limits.handshake_timeout:g} s")


class _Transport(asyncio.Transport):
    """Counts the bytes that aiohttp writes, and knows the connection; all else is the real transport's.

    aiohttp tells how long an answer was once it is over, and a stream of events is over after hours.
    """

    __slots__ = ("_connection", "_traffic", "_transport")

    def __init__(
        self, connection: HttpConnection, transport: asyncio.Transport, traffic: ProtocolCounts
    ) -> None:
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

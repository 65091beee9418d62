"""One connection of a client to a server of the c10d protocol: requests out, replies to whom they belong."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from typing import Any, cast

from arendezvous.errors import RendezvousPermissionError
from arendezvous.keyspace.grants import Grant
from arendezvous.keyspace.messages import (
    Barrier,
    CancelWait,
    Ping,
    Popped,
    QueuePop,
    QueuePush,
    Reply,
    StoreRequest,
    Validate,
    Wait,
    WaitCancelled,
)
from arendezvous.net.forks import Origin, let_go_in_children
from arendezvous.net.shared_buffer import SharedBufferProtocol
from arendezvous.net.tls import explain
from arendezvous.wire.c10d.protocol import MAGIC, C10dProtocolError
from arendezvous.wire.c10d.replies import ReplyParser
from arendezvous.wire.c10d.requests import encode_request

_SPECIAL = frozenset({QueuePop, Wait, Barrier})


class ConnectionGone(Exception):
    """The connection is gone: an event that the store handles, and never shows.

    Attributes:
        silent: Whether the server said nothing for the whole read time-out, rather than breaking off.
        final: Whether another protocol is spoken there, so that trying again is of no use.
    """

    def __init__(self, why: str, *, silent: bool = False, final: bool = False) -> None:
        super().__init__(why)
        self.silent = silent
        self.final = final


class _Waiter:
    """Somebody who takes a reply, or is told that there will be none."""

    def resolve(self, reply: Reply) -> None:
        raise NotImplementedError

    def fail(self, lost: ConnectionGone) -> None:
        raise NotImplementedError


class _Acknowledged(_Waiter):
    """Those whose requests have no reply: the echo of a ping sent after them tells that they have arrived."""

    def __init__(self, futures: list[asyncio.Future[Any]]) -> None:
        self._futures = futures

    def resolve(self, reply: Reply) -> None:
        for future in self._futures:
            if not future.done():
                future.set_result(None)

    def fail(self, lost: ConnectionGone) -> None:
        for future in self._futures:
            _fail(future, ConnectionGone(str(lost), silent=lost.silent))


class _Pop(_Waiter):
    """One who takes a value from a queue; if it has gone away meanwhile, the value goes back."""

    def __init__(self, link: StoreConnection, key: bytes, future: asyncio.Future[Any]) -> None:
        self._link = link
        self._key = key
        self._future = future

    def resolve(self, reply: Reply) -> None:
        if not self._future.done():
            self._future.set_result(reply)
        elif isinstance(reply, Popped) and reply.value is not None:
            self._link.put_back(self._key, reply.value)

    def fail(self, lost: ConnectionGone) -> None:
        _fail(self._future, lost)


class _Wait(_Waiter):
    """One who waits for keys; if it is given up, there may be one reply for it and for the giving up."""

    def __init__(self, link: StoreConnection, future: asyncio.Future[Any]) -> None:
        self._link = link
        self._future = future

    def resolve(self, reply: Reply) -> None:
        if isinstance(reply, WaitCancelled):
            self._link.released(reply)
        elif not self._future.done():
            self._future.set_result(reply)

    def fail(self, lost: ConnectionGone) -> None:
        _fail(self._future, lost)


class _Released(_Waiter):
    """Calls back once everything before it has been answered."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call

    def resolve(self, reply: Reply) -> None:
        self._call()

    def fail(self, lost: ConnectionGone) -> None:
        """Nobody needs the connection any more."""


class StoreConnection(SharedBufferProtocol):
    """A connection that has been greeted, with any number of requests in flight.

    Requests of one tick of the loop go out in one write. A request that stock leaves unanswered (SET and the
    like) is followed by a ping, one for all of a tick, so that everybody learns whether it has arrived.

    Args:
        read_timeout: Seconds of silence, while a reply is owed, after which the connection is given up.

    Attributes:
        lost: Whether the connection is gone.
        grant: What may be asked; None: everything.
    """

    def __init__(self, read_timeout: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._new_future = self._loop.create_future
        self._read_timeout = read_timeout
        self._transport: asyncio.Transport | None = None
        self._parser = ReplyParser()
        self._pending: deque[asyncio.Future[Any] | _Waiter] = deque()
        self._outgoing: list[bytes] = []
        self._unanswered: list[asyncio.Future[Any]] = []
        self._flushing = False
        self._patient = False
        self._idle = True
        self._heard = 0.0
        self._unsent = 0
        self._timer: asyncio.TimerHandle | None = None
        self._lost: ConnectionGone | None = None
        self._closed = self._loop.create_future()
        self.lost = False
        self.grant: Grant | None = None
        self._origin = Origin("this store")

    @property
    def busy(self) -> bool:
        """Whether a reply is still owed."""
        return bool(self._pending)

    def ask(self, request: StoreRequest) -> asyncio.Future[Any]:
        """Sends `request`; the future becomes the reply, or None if the request has none and has arrived.

        Raises:
            C10dProtocolError: The request is over the limits of the protocol; nothing was sent.
            ConnectionGone: The connection is gone, nothing was sent. The future raises it if that happens
                later.
            RendezvousPermissionError: The token is not good for this; nothing was sent.

        Cancelling the future is safe: the reply is let pass.
        """
        self._origin.check()
        if self._lost is not None:
            raise ConnectionGone(str(self._lost))
        if self.grant is not None:
            _check(self.grant, request)
        self._outgoing.append(encode_request(request))
        future: asyncio.Future[Any] = self._new_future()
        kind = type(request)
        if not self._parser.expect(request):
            self._unanswered.append(future)
        elif kind in _SPECIAL:
            self._ask_special(request, future)
        else:
            self._patient = False
            self._pending.append(future)
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)
        return future

    def put_back(self, key: bytes, value: bytes) -> None:
        """Pushes a value that was popped for nobody."""
        if self._lost is None:
            self.ask(QueuePush(key, value)).cancel()

    def release(self, call: Callable[[], None]) -> None:
        """Gives up the wait that is pending, if any, and calls back once nothing is owed any more."""
        if self._lost is not None:
            return
        self.ask(CancelWait())
        self._pending[-1] = _Released(call)

    def released(self, reply: WaitCancelled) -> None:
        """A wait was given up before it was answered: the reply is that of the giving up, which came next."""
        waiter = self._pending.popleft()
        if isinstance(waiter, _Waiter):
            waiter.resolve(reply)

    def close(self) -> None:
        """Closes the connection; whoever waits for a reply gets `ConnectionGone`."""
        self._lose("the store was closed")

    async def wait_closed(self) -> None:
        """Returns once the socket is closed."""
        await asyncio.wait([self._closed])

    # What the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Sets the socket up, to send at once and to notice a dead host within a minute, and greets."""
        self._transport = cast(asyncio.Transport, transport)
        let_go_in_children(transport)
        sock: socket.socket = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
            if hasattr(socket, option):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        self._outgoing.append(encode_request(Validate(MAGIC)))

    def data_received(self, data: bytes) -> None:
        """Hands out the replies that are now complete."""
        self._heard = self._loop.time()
        self._parser.feed(data)
        pending = self._pending
        try:
            for reply in self._parser:
                waiter = pending.popleft()
                if isinstance(waiter, _Waiter):
                    waiter.resolve(reply)
                elif not waiter.done():
                    waiter.set_result(reply)
        except C10dProtocolError as error:
            self._lose(str(error))
        self._idle = not pending

    def connection_lost(self, exc: Exception | None) -> None:
        """Tells everybody."""
        broke = f"the connection broke: {explain(exc) or exc}" if exc else "the server closed the connection"
        self._lose(broke)
        if not self._closed.done():
            self._closed.set_result(None)

    # The parts

    def _ask_special(self, request: StoreRequest, future: asyncio.Future[Any]) -> None:
        if isinstance(request, QueuePop):
            self._patient = False
            self._pending.append(_Pop(self, request.key, future))
        else:
            self._patient = True
            self._pending.append(_Wait(self, future))

    def _flush(self) -> None:
        self._flushing = False
        if self._transport is None or self._lost is not None:
            return
        if self._unanswered:
            ping = Ping(0)
            self._outgoing.append(encode_request(ping))
            self._parser.expect(ping)
            self._pending.append(_Acknowledged(self._unanswered))
            self._unanswered = []
        self._transport.write(b"".join(self._outgoing))
        self._outgoing.clear()
        if self._idle:
            self._idle = False
            self._heard = self._loop.time()
        if self._timer is None and not self._patient:
            self._timer = self._loop.call_later(self._read_timeout, self._check_silence)

    def _check_silence(self) -> None:
        self._timer = None
        if not self._pending or self._patient or self._transport is None:
            return
        now = self._loop.time()
        unsent = self._transport.get_write_buffer_size()
        if unsent != self._unsent:  # a long request is on its way
            self._unsent, self._heard = unsent, now
        left = self._heard + self._read_timeout - now
        if left <= 0:
            self._lose(f"the server said nothing for {self._read_timeout:g} s", silent=True)
        else:
            self._timer = self._loop.call_later(left, self._check_silence)

    def _lose(self, why: str, *, silent: bool = False) -> None:
        if self._lost is not None:
            return
        self.lost = True
        self._lost = ConnectionGone(why, silent=silent)
        if self._transport is not None:
            self._transport.abort()
        if self._timer is not None:
            self._timer.cancel()
        waiters = [*self._pending, _Acknowledged(self._unanswered)]
        self._pending.clear()
        for waiter in waiters:
            lost = ConnectionGone(why, silent=silent)
            if isinstance(waiter, _Waiter):
                waiter.fail(lost)
            else:
                _fail(waiter, lost)


def _check(grant: Grant, request: StoreRequest) -> None:
    if why := grant.why_not(request):
        raise RendezvousPermissionError(why, authenticated=True)


def _fail(future: asyncio.Future[Any], lost: ConnectionGone) -> None:
    if not future.done():
        future.set_exception(lost)
        future.exception()  # looked at: no complaint if its task is cancelled before it sees it

"""The client's side of a native session: its connection, and requests by id, with one timer for all."""

from __future__ import annotations

import asyncio
import itertools
import math
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias, cast

from arendezvous.net.background import settle
from arendezvous.net.forks import let_go_in_children
from arendezvous.net.shared_buffer import SharedBufferProtocol
from arendezvous.net.tls import ALERT, TlsNames, explain
from arendezvous.wire.http.names import HTTP, SPEAKS_HTTP
from arendezvous.wire.native import messages as wire

_HINTS: Final = {
    False: "; if that is a plain TCPStore, use c10d://, and if it expects TLS, give {names.ca}",
    True: "; it may ask for a certificate of this end: give {names.cert} and {names.key}",
}
GiveUp: TypeAlias = Callable[[float], Exception]


class ClientConnection(SharedBufferProtocol):
    """One connection to our server, from being made to being lost.

    Args:
        receive: Called with every message.
        lost: Called once, when the connection is lost, with the reason in words.
        send_timeout: Seconds that the kernel may try to deliver a byte before it gives up.
        names: What the user calls the options of TLS, for advice.

    Attributes:
        lost: Why the connection was lost; empty as long as it is there.
        is_misdirected: Whether the other side has shown that it speaks another protocol.
    """

    def __init__(
        self,
        receive: Callable[[wire.ServerMessage], None],
        lost: Callable[[ClientConnection, str], None],
        send_timeout: float,
        names: TlsNames,
    ) -> None:
        self._receive = receive
        self._lost = lost
        self._send_timeout = send_timeout
        self._names = names
        self._parser = wire.FrameParser(wire.MAX_REPLY)
        self._transport: asyncio.Transport | None = None
        self._failure = ""
        self._silent = True
        self._is_secure = False
        self.lost = ""
        self.is_misdirected = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Sets the socket up for a peer that vanishes without a word; TCP_NODELAY is the loop's default."""
        self._transport = cast(asyncio.Transport, transport)
        let_go_in_children(transport)
        self._is_secure = transport.get_extra_info("sslcontext") is not None
        sock = transport.get_extra_info("socket")
        if sock is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
            milliseconds = min(int(self._send_timeout * 1000), 2**31 - 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)

    def data_received(self, data: bytes) -> None:
        if self._silent and (data[0] == ALERT or data.startswith(HTTP)):
            self.is_misdirected = True
            what = f"answers with TLS: give {self._names.ca}"
            self.abort(f"it {SPEAKS_HTTP if data.startswith(HTTP) else what}")
            return
        self._silent = False
        try:
            for frame in self._parser.feed(data):
                self._receive(wire.decode_server(frame))
        except wire.FrameError as error:
            self.abort(f"it does not speak our protocol: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        words = explain(exc, self._names) if exc is not None else ""
        reason = words or (str(exc) if exc is not None else "the server closed the connection")
        if self._silent and not words:
            reason += _HINTS[self._is_secure].format(names=self._names)
        self.lost = self._failure or reason
        self._lost(self, self.lost)

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def abort(self, reason: str) -> None:
        """Gives the connection up, for `reason`."""
        self._failure = reason
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def local_address(self) -> str:
        """This end's address; empty if there is none any more."""
        name = self._transport.get_extra_info("sockname") if self._transport is not None else None
        return str(name[0]) if isinstance(name, tuple) else ""


@dataclass(eq=False, slots=True)
class Request:
    """A request in flight; it is sent again on every new connection until it is answered.

    Attributes:
        number: Its id.
        node: The node that it concerns; empty if none.
        patience: Seconds that it may take over all connections; infinite: the server answers when it can,
            and until then a silence says nothing about the connection.
        future: Whoever waits for the answer; None if nobody does.
        asked: When it was first to be sent, by the loop's clock.
        give_up: Builds the error that ends the wait when that is over, from the seconds.
        sent: When it was last sent; None while it waits for a connection.
    """

    number: int
    frame: bytes
    node: str
    future: asyncio.Future[wire.ServerMessage] | None
    asked: float
    patience: float
    give_up: GiveUp
    sent: float | None = None


class RequestTable:
    """The requests of one backend that are not answered yet, the oldest first.

    One timer watches the oldest request, instead of two for each: it is armed when there is a request and no
    timer, and when it goes off too early it is armed again.

    Args:
        patience: Seconds that a request may take over all connections, if it does not say otherwise.
        give_up: Builds the error for a request that has taken longer than the seconds given, if the request
            has no other.
        silent: Called with the seconds, when a connection has not answered a request for so long.
    """

    def __init__(self, patience: float, give_up: GiveUp, silent: Callable[[float], None]) -> None:
        self.patience = patience
        self._answer_timeout = patience
        self._give_up = give_up
        self._silent = silent
        self._numbers = itertools.count(1)
        self._requests: dict[int, Request] = {}
        self._timer: asyncio.TimerHandle | None = None

    @property
    def answer_timeout(self) -> float:
        """Seconds after which a connection that has not answered a request is silent."""
        return self._answer_timeout

    @answer_timeout.setter
    def answer_timeout(self, seconds: float) -> None:
        sooner, self._answer_timeout = seconds < self._answer_timeout, seconds
        if sooner and self._timer is not None:
            loop = asyncio.get_running_loop()
            self._watch(loop, loop.time() + min(self.patience, seconds))

    def add(
        self,
        make: Callable[[int], wire.ClientMessage],
        node: str,
        *,
        awaited: bool,
        patience: float | None = None,
        give_up: GiveUp | None = None,
    ) -> Request:
        """Makes a request; its future is there if it is `awaited`."""
        loop = asyncio.get_running_loop()
        number, now = next(self._numbers), loop.time()
        future = loop.create_future() if awaited else None
        seconds = self.patience if patience is None else patience
        frame = wire.encode(make(number))
        request = Request(number, frame, node, future, now, seconds, give_up or self._give_up)
        self._requests[number] = request
        if seconds < math.inf:
            self._watch(loop, now + min(seconds, self._answer_timeout))
        return request

    def get(self, number: int) -> Request | None:
        """Finds a request by its id; None if it was answered, or nobody waits for it any more."""
        return self._requests.get(number)

    def remove(self, request: Request) -> None:
        self._requests.pop(request.number, None)

    def abandon(self, request: Request) -> None:
        """Nobody waits for `request` any more; but if it was sent, the connection still owes the answer."""
        if request.sent is None or (request.future is not None and not request.future.cancelled()):
            self.remove(request)
        request.future, request.node = None, ""

    def pending(self) -> list[Request]:
        """Lists what must be sent on a new connection, in order."""
        return [request for request in self._requests.values() if request.future is not None]

    def unsend(self) -> None:
        """The connection is lost: what somebody waits for must be sent again, the rest is forgotten."""
        for request in list(self._requests.values()):
            request.sent = None
            if request.future is None:
                del self._requests[request.number]

    def fail(self, error: Exception, *, least: float = 0.0) -> None:
        """Ends the wait for every request that has a patience of `least` seconds or more with `error`."""
        for request in self._requests.values():
            if request.patience >= least and request.future is not None:
                settle(request.future, error)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _watch(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        """Has the timer go off no later than a request is `due`."""
        if self._timer is None or due < self._timer.when():
            self.close()
            self._timer = loop.call_at(due, self._on_timer)

    def _on_timer(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        due = now + min(self.patience, self.answer_timeout)
        for request in self._requests.values():
            future, sent = request.future, request.sent
            if request.patience == math.inf:
                continue
            if future is not None and now >= request.asked + request.patience:
                settle(future, request.give_up(request.patience))
            elif sent is not None and now >= sent + self.answer_timeout:
                self._silent(self.answer_timeout)
                break
            else:
                due = min(due, request.asked + request.patience)
                due = due if sent is None else min(due, sent + self.answer_timeout)
        self._timer = loop.call_at(max(due, now + 0.001), self._on_timer) if self._requests else None

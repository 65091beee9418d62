"""Connections of a client to a server of the c10d protocol: opening one, requests out, replies in."""

from __future__ import annotations

import asyncio
import secrets
import socket
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import Any, NamedTuple, cast

from arendezvous.errors import RendezvousConnectionError, RendezvousPermissionError
from arendezvous.keyspace import messages
from arendezvous.keyspace.grants import Grant
from arendezvous.net.background import settle
from arendezvous.net.credentials import Credentials
from arendezvous.net.endpoint import join_host_port
from arendezvous.net.forks import Origin, let_go_in_children
from arendezvous.net.servers import Locator, Place
from arendezvous.net.shared_buffer import SharedBufferProtocol
from arendezvous.net.tls import ALERT, TlsNames, explain, speaks_no_tls
from arendezvous.wire.c10d.protocol import MAGIC, C10dProtocolError
from arendezvous.wire.c10d.replies import ReplyParser
from arendezvous.wire.c10d.requests import encode_request
from arendezvous.wire.http.names import HTTP, SPEAKS_HTTP
from arendezvous.wire.native.login import AnswerParser, LoggedIn, encode_login
from arendezvous.wire.native.messages import FrameError, error_of

_SPECIAL = frozenset({messages.QueuePop, messages.Wait, messages.Barrier})


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


class _Special(NamedTuple):
    """Takes a reply in a way of its own; if there will be none, the futures are told."""

    take: Callable[[Any], None]
    futures: Sequence[asyncio.Future[Any]] = ()


class StoreConnection(SharedBufferProtocol):
    """A connection that has been greeted, with any number of requests in flight.

    Requests of one tick of the loop go out in one write. A request that stock leaves unanswered (SET and the
    like) is followed by a ping, one for all of a tick, so that everybody learns whether it has arrived.

    Args:
        read_timeout: Seconds of silence, while a reply is owed, after which the connection is given up.

    Attributes:
        lost: Why the connection is gone; None as long as it is there.
        grant: What may be asked; None: everything.
    """

    def __init__(self, read_timeout: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._new_future = self._loop.create_future
        self._read_timeout = read_timeout
        self._transport: asyncio.Transport | None = None
        self._parser = ReplyParser()
        self._pending: deque[asyncio.Future[Any] | _Special] = deque()
        self._outgoing: list[bytes] = []
        self._unanswered: list[asyncio.Future[Any]] = []
        self._flushing = False
        self._patient = False
        self._idle = True
        self._heard = 0.0
        self._unsent = 0
        self._timer: asyncio.TimerHandle | None = None
        self._closed = self._loop.create_future()
        self.lost: ConnectionGone | None = None
        self.grant: Grant | None = None
        self._origin = Origin("this store")

    @property
    def busy(self) -> bool:
        """Whether a reply is still owed."""
        return bool(self._pending)

    def ask(self, request: messages.StoreRequest) -> asyncio.Future[Any]:
        """Sends `request`; the future becomes the reply, or None if the request has none and has arrived.

        Raises:
            C10dProtocolError: The request is over the limits of the protocol; nothing was sent.
            ConnectionGone: The connection is gone, nothing was sent. The future raises it if that happens
                later.
            RendezvousPermissionError: The token is not good for this; nothing was sent.

        Cancelling the future is safe: the reply is let pass.
        """
        self._origin.check()
        if self.lost is not None:
            raise ConnectionGone(str(self.lost))
        if self.grant is not None and (why := self.grant.why_not(request)):
            raise RendezvousPermissionError(why, authenticated=True)
        self._outgoing.append(encode_request(request))
        future: asyncio.Future[Any] = self._new_future()
        if not self._parser.expect(request):
            self._unanswered.append(future)
        elif type(request) in _SPECIAL:
            take = partial(self._end_wait, future)
            if isinstance(request, messages.QueuePop):
                take = partial(self._end_pop, request.key, future)
            self._patient = not isinstance(request, messages.QueuePop)
            self._pending.append(_Special(take, [future]))
        else:
            self._patient = False
            self._pending.append(future)
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)
        return future

    def put_back(self, key: bytes, value: bytes) -> None:
        """Pushes a value that was popped for nobody."""
        if self.lost is None:
            self.ask(messages.QueuePush(key, value)).cancel()

    def release(self, call: Callable[[], None]) -> None:
        """Gives up the wait that is pending, if any, and calls back once nothing is owed any more."""
        if self.lost is None:
            self.ask(messages.CancelWait())
            self._pending[-1] = _Special(lambda _: call())

    def close(self) -> None:
        """Closes the connection; whoever waits for a reply gets `ConnectionGone`."""
        self._lose("the store was closed")

    async def wait_closed(self) -> None:
        await asyncio.wait([self._closed])

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
        self._outgoing.append(encode_request(messages.Validate(MAGIC)))

    def data_received(self, data: bytes) -> None:
        self._heard = self._loop.time()
        self._parser.feed(data)
        pending = self._pending
        try:
            for reply in self._parser:
                waiter = pending.popleft()
                if isinstance(waiter, _Special):
                    waiter.take(reply)
                elif not waiter.done():
                    waiter.set_result(reply)
        except C10dProtocolError as error:
            self._lose(str(error))
        self._idle = not pending

    def connection_lost(self, exc: Exception | None) -> None:
        broke = f"the connection broke: {explain(exc) or exc}" if exc else "the server closed the connection"
        self._lose(broke)
        if not self._closed.done():
            self._closed.set_result(None)

    def _end_pop(self, key: bytes, future: asyncio.Future[Any], reply: messages.Popped) -> None:
        """Hands over a value; if whoever was to have it has gone away meanwhile, it goes back."""
        if not future.done():
            future.set_result(reply)
        elif reply.value is not None:
            self.put_back(key, reply.value)

    def _end_wait(self, future: asyncio.Future[Any], reply: Any) -> None:
        """Ends a wait; if it was given up before it was answered, the giving up, too, by the same reply."""
        if isinstance(reply, messages.WaitCancelled):
            given_up = self._pending.popleft()
            if isinstance(given_up, _Special):
                given_up.take(reply)
        else:
            settle(future, reply)

    def _flush(self) -> None:
        self._flushing = False
        if self._transport is None or self.lost is not None:
            return
        if self._unanswered:
            ping = messages.Ping(0)
            self._outgoing.append(encode_request(ping))
            self._parser.expect(ping)
            self._pending.append(_Special(partial(_acknowledge, self._unanswered), self._unanswered))
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
        if self.lost is not None:
            return
        self.lost = ConnectionGone(why, silent=silent)
        if self._transport is not None:
            self._transport.abort()
        if self._timer is not None:
            self._timer.cancel()
        owed = [each.futures if isinstance(each, _Special) else (each,) for each in self._pending]
        self._pending.clear()
        for future in chain(*owed, self._unanswered):
            settle(future, ConnectionGone(why, silent=silent))


class Dialer:
    """Opens connections to one server, or to those that stand in for each other.

    Raises:
        RendezvousSettingsError: A file of the TLS settings cannot be read, or holds something else.
    """

    def __init__(self, servers: Locator, read_timeout: float, credentials: Credentials) -> None:
        self._servers = servers
        self._read_timeout = read_timeout
        self._credentials = credentials
        self._tls = credentials.fresh_context()

    async def open(self) -> StoreConnection:
        """Connects, greets, and waits for the echo of a ping.

        Raises:
            OSError: There is no connection to be had.
            ConnectionGone: Whoever is there broke off, or does not speak the protocol.
            RendezvousPermissionError: The server does not know the token.
            RendezvousConnectionError: The server's certificate is not to be trusted.

        Cancelling is safe: the connection is closed.
        """
        place = await self._servers.locate()
        try:
            return await self._open(place)
        except (OSError, ConnectionGone, TimeoutError):
            self._servers.failed(place)
            raise

    async def _open(self, place: Place) -> StoreConnection:
        try:
            link = await self._connect(place)
        except ssl.SSLCertVerificationError as error:
            where = join_host_port(*place)
            message = f"{where} cannot be trusted: {explain(error, self._credentials.names)}"
            raise RendezvousConnectionError(message, endpoint=where, doing="connecting") from error
        except ssl.SSLError as error:
            said = explain(error, self._credentials.names)
            raise ConnectionGone(said, final=speaks_no_tls(error)) from error
        nonce = secrets.randbits(32)
        try:
            pong = await link.ask(messages.Ping(nonce))
        except BaseException:
            link.close()
            raise
        if pong.nonce != nonce:
            link.close()
            if pong.nonce == int.from_bytes(HTTP, "little"):
                raise ConnectionGone(f"what is there {SPEAKS_HTTP}", final=True)
            if pong.nonce.to_bytes(4, "little")[0] == ALERT:
                raise ConnectionGone(f"it answers with TLS: give {self._credentials.names.ca}", final=True)
            said = f"the answer to a ping was {pong.nonce:#x} instead of {nonce:#x}"
            raise ConnectionGone(f"{said}: not a TCPStore?")
        return link

    async def _connect(self, place: Place) -> StoreConnection:
        loop = asyncio.get_running_loop()
        tls = self._credentials.connecting(self._tls, self._read_timeout)
        if not self._credentials.token:
            _, link = await loop.create_connection(lambda: StoreConnection(self._read_timeout), *place, **tls)
            return link
        login_of = partial(_LoginProtocol, self._credentials.names)
        transport, login = await loop.create_connection(login_of, *place, **tls)
        try:
            transport.write(encode_login(self._credentials.token))
            async with asyncio.timeout(self._read_timeout):
                grant = await login.answer
        except BaseException:
            transport.abort()
            raise
        link = StoreConnection(self._read_timeout)
        if not grant.is_everything:
            link.grant = grant
        transport.set_protocol(link)
        link.connection_made(transport)
        return link


class _LoginProtocol(SharedBufferProtocol):
    """Waits for the answer to a login."""

    def __init__(self, names: TlsNames) -> None:
        self._names = names
        self.answer: asyncio.Future[Grant] = asyncio.get_running_loop().create_future()
        self._parser = AnswerParser()

    def data_received(self, data: bytes) -> None:
        if self.answer.done():
            return
        try:
            answer = self._parser.feed(data)
        except FrameError as error:
            said = f"the answer to the token was none of an arendezvous server: {error}"
            if is_tls := data[0] == ALERT:
                said = f"it answers with TLS: give {self._names.ca}"
            settle(self.answer, ConnectionGone(said, final=is_tls or data.startswith(HTTP)))
            return
        if isinstance(answer, LoggedIn):
            self.answer.set_result(answer.grant)
        elif answer is not None:
            settle(self.answer, error_of(answer))

    def connection_lost(self, exc: Exception | None) -> None:
        why = explain(exc, self._names) or str(exc) if exc else "the server closed the connection"
        hint = "only an arendezvous server takes a token: leave it out for a plain TCPStore"
        settle(self.answer, ConnectionGone(f"{why} when it was shown the token; {hint}"))


def _acknowledge(futures: Sequence[asyncio.Future[Any]], _: messages.Ping) -> None:
    """Answers requests without replies: the echo of a ping sent after them tells that they have arrived."""
    for future in futures:
        settle(future, None)

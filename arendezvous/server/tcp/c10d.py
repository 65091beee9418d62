"""The server's side of one connection of the c10d protocol."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import cast

from arendezvous.errors import StoreError
from arendezvous.keyspace.grants import EVERYTHING, Grant
from arendezvous.keyspace.host import KeyspaceHost
from arendezvous.keyspace.messages import (
    Keys,
    ListKeys,
    Number,
    NumKeys,
    Ping,
    Pong,
    Reply,
    Request,
    Validate,
)
from arendezvous.net.shared_buffer import SharedBufferProtocol
from arendezvous.server.counts import DoorCounts
from arendezvous.wire.c10d.protocol import LIMITS, Limits
from arendezvous.wire.c10d.replies import encode_reply
from arendezvous.wire.c10d.requests import RequestParser

logger = logging.getLogger(__name__)

_BURST = 512  # requests handled for one client before the others get their turn


@dataclass(frozen=True, slots=True)
class C10dSettings:
    """What a server takes from one client of the c10d protocol.

    Attributes:
        limits: Of sizes and counts in requests.
        write_high_water: Bytes that a client may leave unread before no more of its requests are handled.
        write_limit: Bytes that a client may leave unread before it is dropped instead of being sent more. The
            reply that goes over it is still sent, for one reply may be longer than that.
        handshake_timeout: Seconds that a client has for its whole greeting.
    """

    limits: Limits = LIMITS
    write_high_water: int = 256 * 1024
    write_limit: int = 64 * 1024 * 1024
    handshake_timeout: float = 10.0


DEFAULT_SETTINGS = C10dSettings()


class C10dConnection(SharedBufferProtocol):
    """One client of the store: an unmodified ``torch.distributed.TCPStore``, or our own.

    For a connection whose first byte, 0, has been looked at but not taken: `connection_made` is called with
    the transport, then `data_received` with all bytes from the first.

    A client that breaks the protocol, goes over a limit, or asks for what cannot be answered (`ADD` on a
    value that is no number: the protocol has no error reply) is dropped; a line in the log says why.

    Args:
        host: The keys, and everybody who uses them.
        peer: The client's address, for the log; empty takes it from the transport. Never looked up in DNS.
        settings: What is taken from one client.
        grant: What the client may do.

    Attributes:
        traffic: Where the bytes that are sent are counted.
    """

    def __init__(
        self,
        host: KeyspaceHost,
        peer: str = "",
        settings: C10dSettings = DEFAULT_SETTINGS,
        grant: Grant = EVERYTHING,
    ) -> None:
        self.grant = grant
        self.traffic = DoorCounts()
        self._limited = not grant.is_everything
        self._host = host
        self._peer = peer
        self._settings = settings
        self._parser = RequestParser(settings.limits)
        self._transport: asyncio.Transport | None = None
        self._number = 0
        self._full = False
        self._greeting: asyncio.TimerHandle | None = None
        self._later: asyncio.Handle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Becomes a client of the keyspace."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=self._settings.write_high_water)
        self._peer = self._peer or _address(transport)
        self._number = self._host.attach(self)
        loop = asyncio.get_running_loop()
        self._greeting = loop.call_later(self._settings.handshake_timeout, self._no_greeting)

    def data_received(self, data: bytes) -> None:
        """Handles the requests that are now complete."""
        self._parser.feed(data)
        self._handle()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets the client, and what it waits for."""
        self._transport = None
        self._forget()

    def pause_writing(self) -> None:
        """The client does not read its replies: reads no more of its requests either."""
        self._full = True
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Takes up the client's requests where they were left."""
        self._full = False
        self._go_on()

    def deliver(self, reply: Reply) -> None:
        """Sends the client the end of a wait."""
        transport = self._transport
        if transport is None:
            return
        unread = transport.get_write_buffer_size()
        if unread <= self._settings.write_limit:
            encoded = encode_reply(reply)
            self.traffic.sent += len(encoded)
            transport.write(encoded)
            return
        logger.warning(
            "%s: dropped: it has left %d bytes of replies unread; the limit is %d",
            self._peer,
            unread,
            self._settings.write_limit,
        )
        transport.abort()  # and not more: the keyspace is in the middle of somebody's request
        self._transport = None

    def _handle(self) -> None:
        if self._transport is None or self._full or self._later is not None:
            return
        replies: list[bytes] = []
        try:
            self._handle_burst(replies)
        except StoreError as error:
            self._send(replies)
            self._drop(str(error))
        else:
            self._send(replies)

    def _handle_burst(self, replies: list[bytes]) -> None:
        """Handles requests until none is complete, the client has had its turn, or its replies pile up."""
        handle, clients, me = self._host.keyspace.handle, self._host.clients, self._number
        left, room = _BURST, self._settings.write_high_water
        for request in self._parser:
            if isinstance(request, (Validate, Ping)):
                replies += self._greet(request)
                continue
            if self._limited and self._is_list(request, replies):
                continue
            for to, reply in handle(me, request):
                if to == me:
                    encoded = encode_reply(reply)
                    room -= len(encoded)
                    replies.append(encoded)
                else:
                    clients[to].deliver(reply)
            left -= 1
            if left <= 0 or room <= 0:
                self._take_turns()
                return

    def _is_list(self, request: Request, replies: list[bytes]) -> bool:
        """Checks that the client may ask this; answers what concerns all keys with those of its run alone."""
        if why := self.grant.why_not(request):
            raise StoreError(why)
        if self.grant.run_id is None or not isinstance(request, (NumKeys, ListKeys)):
            return False
        ((_, keys),) = self._host.keyspace.handle(self._number, ListKeys())
        assert isinstance(keys, Keys)  # noqa: S101 - the reply to what was asked
        mine = [key for key in keys.keys if self.grant.may_read_key(key)]
        replies.append(encode_reply(Number(len(mine)) if isinstance(request, NumKeys) else Keys(mine)))
        return True

    def _greet(self, request: Validate | Ping) -> list[bytes]:
        if isinstance(request, Ping):
            return [encode_reply(Pong(request.nonce))]
        if self._greeting is not None:
            self._greeting.cancel()
        return []

    def _take_turns(self) -> None:
        if self._transport is not None:
            self._transport.pause_reading()
        self._later = asyncio.get_running_loop().call_soon(self._next_turn)

    def _next_turn(self) -> None:
        self._later = None
        self._go_on()

    def _go_on(self) -> None:
        self._handle()
        if self._transport is not None and not self._full and self._later is None:
            self._transport.resume_reading()

    def _send(self, replies: list[bytes]) -> None:
        if replies and self._transport is not None:
            encoded = replies[0] if len(replies) == 1 else b"".join(replies)
            self.traffic.sent += len(encoded)
            self._transport.write(encoded)

    def _no_greeting(self) -> None:
        self._drop(f"its greeting was not complete after {self._settings.handshake_timeout:g} s")

    def _drop(self, why: str) -> None:
        logger.warning("%s: dropped: %s", self._peer, why)
        transport, self._transport = self._transport, None
        if transport is not None:
            if self._full:
                transport.abort()
            else:
                transport.close()
        self._forget()

    def _forget(self) -> None:
        for timer in (self._greeting, self._later):
            if timer is not None:
                timer.cancel()
        self._host.detach(self._number)


def _address(transport: asyncio.BaseTransport) -> str:
    peer = transport.get_extra_info("peername")
    return f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else "a client"

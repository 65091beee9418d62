"""The server's side of one connection of the c10d protocol."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from arendezvous.errors import StoreError
from arendezvous.keyspace import messages
from arendezvous.keyspace.grants import EVERYTHING, Grant
from arendezvous.keyspace.host import KeyspaceHost
from arendezvous.keyspace.values import PIECE, Pieces
from arendezvous.server.tcp.paced import Buffer, LongAnswer, PacedConnection
from arendezvous.server.tcp.sharing import LARGE, QUANTUM, SHARE, TURN, Shared
from arendezvous.wire.c10d.protocol import LIMITS, Limits
from arendezvous.wire.c10d.replies import MANY, encode_reply, put_lists
from arendezvous.wire.c10d.requests import RequestParser

_OWN: Final = frozenset(
    {messages.Validate, messages.Ping, messages.NumKeys, messages.ListKeys}
)  # what the keyspace is not asked
_KEYS_A_UNIT: Final = 8  # keys of one request that cost about as much as the simplest request
_ROOM: Final = 256 * 1024  # bytes of replies in one turn
_LISTED: Final = 64  # bytes that a key takes in a list that is being sent
_REGIONS: Final = 64  # runs of which the keys are listed at once


@dataclass(frozen=True, slots=True)
class C10dSettings:
    """Sets what is taken from one client: sizes and counts in requests, and seconds for its greeting."""

    limits: Limits = LIMITS
    handshake_timeout: float = 10.0


DEFAULT_SETTINGS = C10dSettings()


class _Upload(enum.Enum):
    """How it stands with the large value that a client is sending."""

    NONE = 0
    WAITING = 1
    INSIDE = 2


class C10dConnection(PacedConnection):
    """One client of the store: an unmodified ``torch.distributed.TCPStore``, or our own.

    For a connection whose first byte, 0, has been looked at but not taken: `connection_made` is called with
    the transport, then `data_received` with all bytes from the first.

    A client that breaks the protocol, goes over a limit, or asks for what cannot be answered (`ADD` on a
    value that is no number: the protocol has no error reply) is dropped; a line in the log says why.

    Its fields, besides those of `PacedConnection`:
        grant: What the client may do.
        _host: The keys, and everybody who uses them.
        _parser: What the client sends.
        _number: By which the keyspace knows the client.
        _upload: Whether a large value is under way, and has been let in.
        _is_unfinished: Whether some of a request is kept.
    """

    def __init__(
        self,
        host: KeyspaceHost,
        shared: Shared,
        settings: C10dSettings = DEFAULT_SETTINGS,
        grant: Grant = EVERYTHING,
    ) -> None:
        super().__init__(shared, settings.handshake_timeout)
        self.grant = grant
        self._limited = not grant.is_everything
        self._host = host
        self._parser = RequestParser(settings.limits)
        self._number = 0
        self._upload = _Upload.NONE
        self._is_unfinished = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Becomes a client of the keyspace."""
        super().connection_made(transport)
        self._number = self._host.attach(self)

    def data_received(self, data: bytes) -> None:
        """Handles the requests that are now complete, up to a limit; the others when it is its turn."""
        self._parser.feed(data)
        if not self._is_queued:
            turns = self._shared.turns
            units = self._serve(QUANTUM if turns.spent < TURN else SHARE)
            if units > SHARE:
                turns.spend(units)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets the client, and what it waits for."""
        super().connection_lost(exc)
        self._forget()

    def on_acquired(self) -> None:
        """The client's turn has come to send a large value."""
        self._shared.unfinished.free(self)  # it has its time from now on
        self._shared.unfinished.keep(self, self._parser.kept)
        self._upload = _Upload.INSIDE
        self._read_on()

    def deliver(self, reply: messages.Reply) -> None:
        """Sends the client the end of a wait."""
        encoded = encode_reply(reply)
        if isinstance(encoded, bytes):  # as it is
            self._write(encoded)

    def _serve(self, most: int) -> int:
        outlet = self._outlet
        if not outlet.is_free:
            if outlet.held is not None:
                self._hold()  # whoever asks on and on is heard once it has been answered
            return 0
        replies: list[bytes] = []
        try:
            left = self._handle_burst(replies, most)
        except StoreError as error:
            self._send(replies)
            self._drop(_reason(error))
            return most
        if replies:
            self._wait_for_record()
        self._send(replies)
        if self._parser.kept or self._is_unfinished:
            self._note_unfinished()
        if outlet.held is not None:
            return most - left  # and `_recorded` goes on
        if left <= 0 or not outlet.is_free:
            self._queue()
        elif self._is_paused:
            self._read_on()
        return most - left

    def _handle_burst(self, replies: list[bytes], left: int) -> int:
        """Handles requests until none is complete, the client has had its turn, or its replies pile up.

        Returns how many units of work are left of those that it had.
        """
        host, parser, me, outlet = self._host, self._parser, self._number, self._outlet
        handle = host.keyspace.handle
        room = _ROOM
        for request in parser:
            if self._limited and self.grant.why_not(request):
                raise StoreError(
                    f"the token {self.grant}, and {type(request).__name__} was for something else"
                )
            if type(request) in _OWN:
                self._handle_own(request, replies)
            else:
                for to, reply in handle(me, request):
                    if to != me:
                        host.pass_on(to, reply)
                        continue
                    encoded = encode_reply(reply)
                    if isinstance(encoded, bytes):
                        room -= len(encoded)
                        replies.append(encoded)
                    else:
                        self._begin(request, reply, encoded, replies)
            left -= 1
            if parser.listed:
                left -= parser.listed // _KEYS_A_UNIT
                parser.listed = 0
            if left <= 0 or room <= 0 or not outlet.is_free:
                break
        if host.keyspace.later or host.holds:
            host.deliver(())
        return left if room > 0 else 0

    def _handle_own(self, request: messages.StoreRequest, replies: list[bytes]) -> None:
        """Answers what the keyspace is not asked, or not in so many words."""
        if isinstance(request, messages.Ping):
            replies.append(_encoded(messages.Pong(request.nonce)))
        elif isinstance(request, messages.Validate):
            self._has_greeted()
        elif isinstance(request, messages.NumKeys):
            [(_, count)] = self._host.keyspace.handle(self._number, messages.NumKeys(self.grant.key_prefix))
            replies.append(_encoded(count))
        else:
            self._wait_for_record()
            self._send(replies)
            size = _LISTED * len(self._host.keyspace)
            self._outlet.begin(LongAnswer(self._listing(), size, MANY // _KEYS_A_UNIT))

    def _listing(self) -> Iterator[Buffer]:
        """Gives the reply to `ListKeys`: collects the keys, some runs at a time, then encodes them."""
        keyspace = self._host.keyspace
        keyspace.handled[messages.ListKeys] += 1
        lists: list[list[bytes]] = []
        for keys in keyspace.listing(self.grant.key_prefix):
            lists.append(keys)
            if len(lists) % _REGIONS == 0:
                yield b""
        yield from put_lists(lists)

    def _begin(
        self,
        request: messages.StoreRequest,
        reply: messages.Reply,
        pieces: Iterator[Buffer],
        replies: list[bytes],
    ) -> None:
        """Begins a long reply; values of the store that are in it count there until they have been sent."""
        self._wait_for_record()
        self._send(replies)
        keyspace = self._host.keyspace
        stored: list[bytes | Pieces] = []
        size = 0
        for value in _values(reply):
            if isinstance(request, (messages.Get, messages.MultiGet)) and len(value) > PIECE:
                keyspace.entries.begin_reading(value)
                stored.append(value)
            else:
                size += len(value)

        def end() -> None:
            for value in stored:
                keyspace.entries.end_reading(value)

        many = isinstance(request, messages.MultiGet)
        self._outlet.begin(LongAnswer(pieces, size, MANY // _KEYS_A_UNIT if many else 0, end))

    def _send(self, replies: list[bytes]) -> None:
        if replies:
            self._outlet.write(replies[0] if len(replies) == 1 else b"".join(replies))
            replies.clear()

    def _wait_for_record(self) -> None:
        """Has all that is sent from now on wait until the changes so far are recorded, if they have to be."""
        if self._host.holds and self._outlet.held is None:
            self._outlet.hold()
            self._host.when_recorded(self._number, self._recorded)

    def _recorded(self) -> None:
        if self._transport is None:
            return
        self._outlet.release()
        if self._outlet.is_free and not self._is_queued:
            self._serve(SHARE)
        else:
            self._queue()

    def _note_unfinished(self) -> None:
        """Notes how much is kept of a request that is not complete; a large one may have to wait."""
        shared, kept = self._shared, self._parser.kept
        if not kept:
            shared.unfinished.free(self)
            shared.uploads.release(self)
            self._upload = _Upload.NONE
        elif self._upload is not _Upload.WAITING:
            shared.unfinished.keep(self, kept)
            if self._parser.lacking > LARGE and self._upload is _Upload.NONE:
                self._upload = _Upload.INSIDE if shared.uploads.acquire(self) else _Upload.WAITING
                if self._upload is _Upload.WAITING:
                    self._hold()
        self._is_unfinished = kept > 0

    def _may_read(self) -> bool:
        return self._upload is not _Upload.WAITING

    def _too_late(self) -> None:
        self._drop(f"its greeting was not complete after {self._timeout:g} s")

    def _drop(self, why: str) -> None:
        self._shared.throttle.dropped(self._peer, why)
        self._end()
        self._forget()

    def _forget(self) -> None:
        self._has_greeted()
        self._parser.close()
        self._shared.unfinished.free(self)
        self._shared.uploads.release(self)
        self._host.detach(self._number)


def _encoded(reply: messages.Reply) -> bytes:
    """The bytes of a reply that is never long."""
    encoded = encode_reply(reply)
    return encoded if isinstance(encoded, bytes) else b"".join(encoded)


def _values(reply: messages.Reply) -> list[bytes | Pieces]:
    if isinstance(reply, messages.Values):
        return [value for value in reply.values if value is not None]
    if isinstance(reply, messages.Value | messages.Popped) and reply.value is not None:
        return [reply.value]
    return []


def _reason(error: StoreError) -> str:
    """Says why a client is dropped; without keys and values, which are no business of the log's."""
    if "key" in error.data:
        return "add or barrier on a value that does not start with an integer of 64 bits"
    return error.message

"""Replies of the c10d protocol, to bytes and back."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from struct import Struct as Packer
from typing import Any, NoReturn

from arendezvous.keyspace import messages as msg
from arendezvous.keyspace.values import Pieces
from arendezvous.wire.c10d.protocol import I64, LIMITS, U8, U32, U64, C10dProtocolError, Limits, WireParser

# To bytes


Buffer = bytes | memoryview
"""What can be sent: a piece of a value is not copied for that."""

PIECE = 64 * 1024  # bytes; what is longer is given in pieces of about that size
MANY = 256  # strings that are put to bytes at once


def _put_value(reply: msg.Value) -> bytes | Iterator[Buffer]:
    value = reply.value or b""
    if len(value) > PIECE:
        return _cut(U64.pack(len(value)), value)
    return U64.pack(len(value)) + value  # type: ignore[operator]  # what is in pieces is longer


def _put_strings(strings: list[bytes]) -> bytes:
    parts: list[bytes] = []
    for string in strings:
        parts += (U64.pack(len(string)), string)
    return b"".join(parts)


def _put_values(reply: msg.Values) -> bytes | Iterator[Buffer]:
    values = [value or b"" for value in reply.values]
    short = [value for value in values if isinstance(value, bytes)]
    if len(short) == len(values) <= MANY and sum(map(len, short)) <= PIECE:
        return _put_strings(short)
    return _put_long_values(values)


def _put_long_values(values: Sequence[bytes | Pieces]) -> Iterator[Buffer]:
    ready, size = [], 0  # short ones, which are given together
    for value in values:
        if isinstance(value, bytes) and len(value) <= PIECE:
            ready.append(value)
            size += len(value)
        if size > PIECE or len(ready) >= MANY:
            yield _put_strings(ready)
            ready, size = [], 0
        elif not isinstance(value, bytes) or len(value) > PIECE:
            yield _put_strings(ready)
            yield from _cut(U64.pack(len(value)), value)
            ready, size = [], 0
    yield _put_strings(ready)


def _put_keys(reply: msg.Keys) -> bytes | Iterator[Buffer]:
    if len(reply.keys) > MANY:
        return put_lists([reply.keys])
    return U64.pack(len(reply.keys)) + _put_strings(reply.keys)


def _put_popped(reply: msg.Popped) -> bytes | Iterator[Buffer]:
    if reply.value is None:
        return I64.pack(0)
    head = I64.pack(reply.length) + U64.pack(len(reply.value))
    return _cut(head, reply.value) if len(reply.value) > PIECE else head + reply.value


def _cut(head: bytes, value: bytes | Pieces) -> Iterator[Buffer]:
    """Gives `head` and then a value in pieces, without copying it."""
    yield head
    for part in (value,) if isinstance(value, bytes) else value.parts:
        view = memoryview(part)
        for start in range(0, len(part), PIECE):
            yield view[start : start + PIECE]


def put_lists(lists: Sequence[list[bytes]]) -> Iterator[Buffer]:
    """Gives the bytes of `Keys` with all keys of some lists, in pieces."""
    yield U64.pack(sum(map(len, lists)))
    for keys in lists:
        for start in range(0, len(keys), MANY):
            yield _put_strings(keys[start : start + MANY])


_PUT: dict[type, Callable[[Any], bytes | Iterator[Buffer]]] = {
    msg.Value: _put_value,
    msg.Values: _put_values,
    msg.Number: lambda reply: I64.pack(reply.number),
    msg.Ready: lambda reply: b"\x00" if reply.ready else b"\x01",
    msg.WaitDone: lambda _: b"\x00",
    msg.WaitCancelled: lambda _: b"\x01",
    msg.Popped: _put_popped,
    msg.Keys: _put_keys,
    msg.Pong: lambda reply: U32.pack(reply.nonce),
}


def encode_reply(reply: msg.Reply) -> bytes | Iterator[Buffer]:
    """Puts one reply to bytes; of a long one it gives the pieces, each made when it is asked for.

    Absent values become empty ones, as the protocol knows no other.
    """
    return _PUT[type(reply)](reply)


# And back


_VALUE, _NUMBER = msg.Value, msg.Number


class ReplyParser(WireParser):
    """Makes replies out of bytes, however they are cut; the client's half of the protocol.

    Replies carry no number, so the parser has to be told of every request, in the order of sending::

        parser.expect(request)
        ...
        parser.feed(data)
        for reply in parser:
            ...

    A server answers a `Wait` late, and other requests on that connection meanwhile; so send nothing but
    `CancelWait` after a `Wait` or a `Barrier` that is not over. A `CancelWait` that came in time is answered
    by one `WaitCancelled` for both, one that crossed the end of the wait by `WaitDone` and `WaitCancelled`.
    """

    def __init__(self, limits: Limits = LIMITS) -> None:
        super().__init__(limits)
        self._expected: deque[tuple[type[msg.Reply], int]] = deque()
        self._replies = self._parse()

    @property
    def owed(self) -> int:
        """The number of replies that are still to come."""
        return len(self._expected)

    def expect(self, request: msg.StoreRequest) -> bool:
        """Notes that `request` has been sent; returns whether it is owed a reply at all."""
        expected = msg.ANSWERS.get(type(request))
        if expected is not None:
            self._expected.append((expected, len(request.keys) if isinstance(request, msg.MultiGet) else 0))
        return expected is not None

    def __iter__(self) -> Iterator[msg.Reply]:
        """The replies that are complete. Raises `C10dProtocolError`, after which there is no going on."""
        return iter(self._replies.__next__, None)

    def _parse(self) -> Generator[msg.Reply | None, None, NoReturn]:
        data, at, end = b"", 0, 0
        expected = self._expected
        while True:
            if at == end:
                data, self._fed = self._fed, b""
                at, end = 0, len(data)
                if not end:
                    yield None
                    continue
            if not expected:
                raise C10dProtocolError(f"the server sent {data[at : at + 20]!r}, which nobody has asked for")
            kind, count = expected[0]
            if kind is _VALUE:
                if end - at < 8:
                    data = yield from self._more(data, at, 8)
                    at, end = 0, len(data)
                size: int = U64.unpack_from(data, at)[0]
                if size > self._limits.reply_value or end - at - 8 < size:
                    value, data, at = yield from self._string(data, at, self._limits.reply_value)
                    end = len(data)
                else:
                    value = data[at + 8 : at + 8 + size]
                    at += 8 + size
                reply: msg.Reply = msg.Value(value)
            elif kind is _NUMBER:
                number, data, at = yield from self._number(data, at, I64)
                end = len(data)
                reply = msg.Number(number)
            else:
                reply, data, at = yield from self._parse_other(kind, count, data, at)
                end = len(data)
            expected.popleft()
            yield reply

    def _parse_other(
        self, kind: type[msg.Reply], count: int, data: bytes, at: int
    ) -> Generator[None, None, tuple[msg.Reply, bytes, int]]:
        if kind is msg.Values:
            strings, data, at = yield from self._strings(data, at, count, self._limits.reply_value)
            return msg.Values(strings), data, at  # type: ignore[arg-type]  # a list that nobody else holds
        if kind is msg.Keys:
            left, data, at = yield from self._number(data, at, U64)
            if left > self._limits.reply_keys:
                raise C10dProtocolError(f"{left} keys in one reply; the limit is {self._limits.reply_keys}")
            keys, data, at = yield from self._strings(data, at, left, self._limits.key)
            return msg.Keys(keys), data, at
        if kind is msg.Popped:
            length, data, at = yield from self._number(data, at, I64)
            if length <= 0:
                return msg.Popped(0, None), data, at
            value, data, at = yield from self._string(data, at, self._limits.reply_value)
            return msg.Popped(length, value), data, at
        if kind is msg.Pong:
            nonce, data, at = yield from self._number(data, at, U32)
            return msg.Pong(nonce), data, at
        code, at = data[at], at + U8.size
        return self._flag(kind, code), data, at

    def _flag(self, kind: type[msg.Reply], code: int) -> msg.Reply:
        if code > 1:
            asked = {msg.Ready: "READY", msg.WaitDone: "WAIT"}.get(kind, "CANCEL")
            raise C10dProtocolError(f"the server answered {asked} with {code}, which must be 0 or 1")
        if kind is msg.Ready:
            return msg.Ready(code == 0)
        if kind is msg.WaitDone:
            if code == 0:
                return msg.WaitDone()
            self._expected.popleft()  # the wait will not be answered; what was, is the CancelWait after it
            if not self._expected or self._expected[0][0] is not msg.WaitCancelled:
                raise C10dProtocolError("the server cancelled a wait that nobody has cancelled")
        elif code != 1:
            raise C10dProtocolError("the server ended a wait that was over")
        return msg.WaitCancelled()

    def _strings(
        self, data: bytes, at: int, count: int, limit: int
    ) -> Generator[None, None, tuple[list[bytes], bytes, int]]:
        strings = []
        for _ in range(count):
            string, data, at = yield from self._string(data, at, limit)
            strings.append(string)
        return strings, data, at

    def _string(self, data: bytes, at: int, limit: int) -> Generator[None, None, tuple[bytes, bytes, int]]:
        if len(data) - at < U64.size:
            data, at = (yield from self._more(data, at, U64.size)), 0
        size: int = U64.unpack_from(data, at)[0]
        at += U64.size
        if size > limit:
            raise C10dProtocolError(f"the server sent a length of {size} bytes; the limit is {limit}")
        if len(data) - at < size:
            data, at = (yield from self._more(data, at, size)), 0
        return data[at : at + size], data, at + size

    def _number(self, data: bytes, at: int, packer: Packer) -> Generator[None, None, tuple[int, bytes, int]]:
        if len(data) - at < packer.size:
            data, at = (yield from self._more(data, at, packer.size)), 0
        number: int = packer.unpack_from(data, at)[0]
        return number, data, at + packer.size

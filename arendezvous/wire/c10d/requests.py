"""Requests of the c10d protocol, to bytes and back."""

from __future__ import annotations

import enum
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NoReturn

from arendezvous.keyspace.messages import (
    Add,
    Append,
    Barrier,
    CancelWait,
    Check,
    CompareSet,
    ConnectionRequest,
    DeleteKey,
    Get,
    ListKeys,
    MultiGet,
    MultiSet,
    NumKeys,
    Ping,
    QueueLen,
    QueuePop,
    QueuePush,
    Request,
    Set,
    Validate,
    Wait,
)
from arendezvous.wire.c10d.protocol import (
    HEAD,
    I64,
    LIMITS,
    MAGIC,
    ONE,
    U8,
    U32,
    U64,
    C10dProtocolError,
    Limits,
    Opcode,
)

WireRequest = Request | ConnectionRequest
"""What can travel as a request."""


class _Field(enum.IntEnum):
    KEY = 0
    VALUE = 1
    NUMBER = 2
    U32 = 3
    KEYS = 4
    ITEMS = 5


_K, _V, _KEYS = _Field.KEY, _Field.VALUE, _Field.KEYS

_FORMS: dict[int, tuple[type[WireRequest], tuple[_Field, ...]]] = {
    Opcode.VALIDATE: (Validate, (_Field.U32,)),
    Opcode.SET: (Set, (_K, _V)),
    Opcode.COMPARE_SET: (CompareSet, (_K, _V, _V)),
    Opcode.GET: (Get, (_K,)),
    Opcode.ADD: (Add, (_K, _Field.NUMBER)),
    Opcode.CHECK: (Check, (_Field.KEYS,)),
    Opcode.WAIT: (Wait, (_Field.KEYS,)),
    Opcode.GETNUMKEYS: (NumKeys, ()),
    Opcode.DELETE_KEY: (DeleteKey, (_K,)),
    Opcode.APPEND: (Append, (_K, _V)),
    Opcode.MULTI_GET: (MultiGet, (_Field.KEYS,)),
    Opcode.MULTI_SET: (MultiSet, (_Field.ITEMS,)),
    Opcode.CANCEL_WAIT: (CancelWait, ()),
    Opcode.PING: (Ping, (_Field.U32,)),
    Opcode.QUEUE_PUSH: (QueuePush, (_K, _V)),
    Opcode.QUEUE_POP: (QueuePop, (_K,)),
    Opcode.QUEUE_LEN: (QueueLen, (_K,)),
    Opcode.LIST_KEYS: (ListKeys, ()),
    Opcode.BARRIER: (Barrier, (_K, _Field.NUMBER)),
}

_AFTER_GREETING = {opcode: form for opcode, form in _FORMS.items() if opcode != Opcode.VALIDATE}


# To bytes


def _put_key(key: bytes, limits: Limits) -> bytes:
    if len(key) > limits.key:
        raise C10dProtocolError(
            f"key {key[:40]!r}... has {len(key)} bytes, but a c10d store takes at most {limits.key}"
        )
    return U64.pack(len(key)) + key


def _put_value(value: bytes, limits: Limits) -> bytes:
    if len(value) > limits.value:
        raise C10dProtocolError(
            f"the value has {len(value)} bytes, but a c10d store takes at most {limits.value}:"
            " keep large data elsewhere, or split it over several keys"
        )
    return U64.pack(len(value)) + value


def _put_number(number: int, _limits: Limits) -> bytes:
    if not -(1 << 63) <= number < 1 << 63:
        raise C10dProtocolError(f"{number} does not fit into a signed integer of 64 bits")
    return I64.pack(number)


def _put_u32(number: int, _limits: Limits) -> bytes:
    return U32.pack(number)


def _put_keys(keys: Sequence[bytes], limits: Limits) -> bytes:
    _check_count(len(keys), limits)
    return U64.pack(len(keys)) + b"".join([_put_key(key, limits) for key in keys])


def _put_items(items: Sequence[tuple[bytes, bytes]], limits: Limits) -> bytes:
    _check_count(len(items), limits)
    parts = [U64.pack(len(items))]
    for key, value in items:
        parts += (_put_key(key, limits), _put_value(value, limits))
    return b"".join(parts)


def _check_count(count: int, limits: Limits) -> None:
    if count > limits.keys:
        raise C10dProtocolError(f"{count} keys in one request, but a c10d store takes at most {limits.keys}")


_PUT: dict[_Field, Callable[[Any, Limits], bytes]] = {
    _Field.KEY: _put_key,
    _Field.VALUE: _put_value,
    _Field.NUMBER: _put_number,
    _Field.U32: _put_u32,
    _Field.KEYS: _put_keys,
    _Field.ITEMS: _put_items,
}


def _key_encoder(opcode: int) -> Callable[[Any, Limits], bytes]:
    """Encodes a request of one key: the most frequent ones, so that it pays to have them in one step."""

    def encode(request: Get, limits: Limits) -> bytes:
        key = request.key
        if len(key) > limits.key:
            return _put_key(key, limits)  # raises
        return HEAD.pack(opcode, len(key)) + key

    return encode


def _encoder(
    opcode: int, kind: type[WireRequest], fields: tuple[_Field, ...]
) -> Callable[[Any, Limits], bytes]:
    if fields == (_K,):
        return _key_encoder(opcode)
    puts = list(zip(kind.__struct_fields__, map(_PUT.__getitem__, fields), strict=True))

    def encode(request: WireRequest, limits: Limits) -> bytes:
        return U8.pack(opcode) + b"".join([put(getattr(request, name), limits) for name, put in puts])

    return encode


_ENCODERS = {kind: _encoder(opcode, kind, fields) for opcode, (kind, fields) in _FORMS.items()}


def encode_request(request: WireRequest, limits: Limits = LIMITS) -> bytes:
    """Puts one request to bytes.

    Raises:
        C10dProtocolError: It is over the limits, so that a stock server would drop the connection.
    """
    return _ENCODERS[type(request)](request, limits)


# And back


class RequestParser:
    """Makes requests out of bytes, however they are cut; the server's half of the protocol.

    Iteration stops where bytes are missing, and goes on after the next `feed`::

        parser.feed(data)
        for request in parser:
            ...

    Args:
        limits: Over them, the peer is in error.
        validated: Whether the `Validate` that must come first has been read by somebody else.
    """

    def __init__(self, limits: Limits = LIMITS, *, validated: bool = False) -> None:
        self._limits = limits
        self._fed = b""
        self._requests = self._parse(validated)

    def feed(self, data: bytes) -> None:
        """Takes the next bytes of the connection."""
        self._fed = self._fed + data if self._fed else data

    def __iter__(self) -> Iterator[WireRequest]:
        """The requests that are complete.

        Raises:
            C10dProtocolError: The peer broke the protocol, after the requests given so far. There is no
                going on from there: close the connection.
        """
        return iter(self._requests.__next__, None)

    def _parse(self, validated: bool) -> Generator[WireRequest | None, None, NoReturn]:
        data, at, size = b"", 0, 0
        if not validated:
            greeting, data, at = yield from self._greeting()
            yield greeting
        end = len(data)
        limits = (self._limits.key, self._limits.value)
        while True:
            if at == end:
                data, self._fed = self._fed, b""
                at, end = 0, len(data)
                if not end:
                    yield None
                    continue
            opcode = data[at]
            at += 1
            kind, fields = _AFTER_GREETING.get(opcode) or _refuse(opcode)
            arguments: list[Any] = []
            for field in fields:
                if field is _KEYS and end - at >= 16:
                    count, size = ONE.unpack_from(data, at)
                    if count == 1 and size <= limits[_K] and end - at - 16 >= size:
                        at += 16 + size
                        arguments.append([data[at - size : at]])  # what a get of torch's client waits for
                        continue
                if field > _V:
                    argument, data, at = yield from self._parse_other(field, data, at, opcode)
                    end = len(data)
                    arguments.append(argument)
                    continue
                if end - at < 8:
                    data = yield from self._more(data, at, 8)
                    at, end = 0, len(data)
                size = U64.unpack_from(data, at)[0]
                at += 8
                if size > limits[field]:
                    raise _too_long(opcode, field, size, limits[field])
                if end - at < size:
                    data = yield from self._more(data, at, size)
                    at, end = 0, len(data)
                arguments.append(data[at : at + size])
                at += size
            yield kind(*arguments)

    def _greeting(self) -> Generator[None, None, tuple[Validate, bytes, int]]:
        data = yield from self._more(b"", 0, 1)
        if data[0] != Opcode.VALIDATE:
            raise C10dProtocolError(
                f"the connection starts with opcode {data[0]}, but a c10d client sends 0 first"
            )
        data = yield from self._more(data, 0, 1 + U32.size)
        magic: int = U32.unpack_from(data, 1)[0]
        if magic != MAGIC:
            raise C10dProtocolError(
                f"magic number {magic:#x}, but a c10d client sends {MAGIC:#x}: not a TCPStore client?"
            )
        return Validate(magic), data, 1 + U32.size

    def _more(self, data: bytes, at: int, size: int) -> Generator[None, None, bytes]:
        """Waits until `size` bytes are there from `at` on; returns them, and what else there is."""
        buffer = bytearray(data[at:])
        while True:
            buffer += self._fed
            self._fed = b""
            if len(buffer) >= size:
                return bytes(buffer)
            yield None

    def _parse_other(
        self, field: _Field, data: bytes, at: int, opcode: int
    ) -> Generator[None, None, tuple[Any, bytes, int]]:
        if field in (_Field.KEYS, _Field.ITEMS):
            return (yield from self._parse_list(field, data, at, opcode))
        packer = U32 if field == _Field.U32 else I64
        if len(data) - at < packer.size:
            data, at = (yield from self._more(data, at, packer.size)), 0
        return packer.unpack_from(data, at)[0], data, at + packer.size

    def _parse_list(
        self, field: _Field, data: bytes, at: int, opcode: int
    ) -> Generator[None, None, tuple[Any, bytes, int]]:
        if len(data) - at < U64.size:
            data, at = (yield from self._more(data, at, U64.size)), 0
        count: int = U64.unpack_from(data, at)[0]
        at += U64.size
        if count > self._limits.keys:
            raise C10dProtocolError(
                f"{Opcode(opcode).name} with {count} keys, but the most in one request is {self._limits.keys}"
            )
        parts: list[bytes] = []
        total = 0
        kinds = (_K, _V) if field == _Field.ITEMS else (_K,)
        limits = (self._limits.key, self._limits.value)
        for _ in range(count):
            for kind in kinds:
                if len(data) - at < 8:
                    data, at = (yield from self._more(data, at, 8)), 0
                size: int = U64.unpack_from(data, at)[0]
                at += 8
                total += size
                if size > limits[kind]:
                    raise _too_long(opcode, kind, size, limits[kind])
                if total > self._limits.request:
                    raise C10dProtocolError(
                        f"{Opcode(opcode).name} of more than {self._limits.request} bytes in one request"
                    )
                if len(data) - at < size:
                    data, at = (yield from self._more(data, at, size)), 0
                parts.append(data[at : at + size])
                at += size
        listed = list(zip(parts[::2], parts[1::2], strict=True)) if field == _Field.ITEMS else parts
        return listed, data, at


def _refuse(opcode: int) -> NoReturn:
    if opcode == Opcode.VALIDATE:
        raise C10dProtocolError("a second VALIDATE on one connection")
    raise C10dProtocolError(f"unknown opcode {opcode}; the c10d protocol has 0 to {max(_FORMS)}")


def _too_long(opcode: int, field: _Field, size: int, limit: int) -> C10dProtocolError:
    return C10dProtocolError(
        f"{Opcode(opcode).name} with a {field.name.lower()} of {size} bytes; the limit is {limit}"
    )

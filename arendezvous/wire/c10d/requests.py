"""Requests of the c10d protocol, to bytes and back."""

from __future__ import annotations

import enum
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NoReturn

from arendezvous.keyspace import messages as msg
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
    WireParser,
)


class _Field(enum.IntEnum):
    KEY = 0
    VALUE = 1
    NUMBER = 2
    U32 = 3
    KEYS = 4
    ITEMS = 5


_K, _V, _KEYS = _Field.KEY, _Field.VALUE, _Field.KEYS

_FORMS: dict[int, tuple[type[msg.StoreRequest], tuple[_Field, ...]]] = {
    Opcode.VALIDATE: (msg.Validate, (_Field.U32,)),
    Opcode.SET: (msg.Set, (_K, _V)),
    Opcode.COMPARE_SET: (msg.CompareSet, (_K, _V, _V)),
    Opcode.GET: (msg.Get, (_K,)),
    Opcode.ADD: (msg.Add, (_K, _Field.NUMBER)),
    Opcode.CHECK: (msg.Check, (_Field.KEYS,)),
    Opcode.WAIT: (msg.Wait, (_Field.KEYS,)),
    Opcode.GETNUMKEYS: (msg.NumKeys, ()),
    Opcode.DELETE_KEY: (msg.DeleteKey, (_K,)),
    Opcode.APPEND: (msg.Append, (_K, _V)),
    Opcode.MULTI_GET: (msg.MultiGet, (_Field.KEYS,)),
    Opcode.MULTI_SET: (msg.MultiSet, (_Field.ITEMS,)),
    Opcode.CANCEL_WAIT: (msg.CancelWait, ()),
    Opcode.PING: (msg.Ping, (_Field.U32,)),
    Opcode.QUEUE_PUSH: (msg.QueuePush, (_K, _V)),
    Opcode.QUEUE_POP: (msg.QueuePop, (_K,)),
    Opcode.QUEUE_LEN: (msg.QueueLen, (_K,)),
    Opcode.LIST_KEYS: (msg.ListKeys, ()),
    Opcode.BARRIER: (msg.Barrier, (_K, _Field.NUMBER)),
}

_WITH_MORE = (Opcode.CHECK, Opcode.WAIT)  # they are answered once, for all of their parts
_AFTER_GREETING: dict[int, tuple[Callable[..., msg.StoreRequest], tuple[_Field, ...], bool]] = {
    int(opcode): (kind, fields, fields in ((_KEYS,), (_Field.ITEMS,)))
    for opcode, (kind, fields) in _FORMS.items()
    if opcode != Opcode.VALIDATE
}


# To bytes


def _put_key(key: bytes, limits: Limits) -> bytes:
    if len(key) > limits.key:
        what = f"key {key[:40]!r}... has {len(key)} bytes"
        raise C10dProtocolError(f"{what}, but a c10d store takes at most {limits.key}")
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


def _put_keys(keys: Sequence[bytes], limits: Limits) -> bytes:
    _check_count(len(keys), limits)
    return U64.pack(len(keys)) + b"".join([_put_key(key, limits) for key in keys])


def _put_items(items: Sequence[tuple[bytes, bytes]], limits: Limits) -> bytes:
    _check_count(len(items), limits)
    pairs = [_put_key(key, limits) + _put_value(value, limits) for key, value in items]
    return U64.pack(len(items)) + b"".join(pairs)


def _check_count(count: int, limits: Limits) -> None:
    if count > limits.keys:
        raise C10dProtocolError(f"{count} keys in one request, but a c10d store takes at most {limits.keys}")


_PUT: dict[_Field, Callable[[Any, Limits], bytes]] = {
    _Field.KEY: _put_key,
    _Field.VALUE: _put_value,
    _Field.NUMBER: _put_number,
    _Field.U32: lambda number, _limits: U32.pack(number),
    _Field.KEYS: _put_keys,
    _Field.ITEMS: _put_items,
}


def _key_encoder(opcode: int) -> Callable[[Any, Limits], bytes]:
    """Encodes a request of one key: the most frequent ones, so that it pays to have them in one step."""

    def encode(request: msg.Get, limits: Limits) -> bytes:
        key = request.key
        if len(key) > limits.key:
            return _put_key(key, limits)  # raises
        return HEAD.pack(opcode, len(key)) + key

    return encode


def _encoder(
    opcode: int, kind: type[msg.StoreRequest], fields: tuple[_Field, ...]
) -> Callable[[Any, Limits], bytes]:
    if fields == (_K,):
        return _key_encoder(opcode)
    names = kind.__struct_fields__[: len(fields)]  # there may be more, that do not travel
    puts = list(zip(names, map(_PUT.__getitem__, fields), strict=True))

    def encode(request: msg.StoreRequest, limits: Limits) -> bytes:
        return U8.pack(opcode) + b"".join([put(getattr(request, name), limits) for name, put in puts])

    return encode


_ENCODERS = {kind: _encoder(opcode, kind, fields) for opcode, (kind, fields) in _FORMS.items()}


def encode_request(request: msg.StoreRequest, limits: Limits = LIMITS) -> bytes:
    """Puts one request to bytes. Raises `C10dProtocolError` if a stock server would drop us for it."""
    return _ENCODERS[type(request)](request, limits)


# And back


class RequestParser(WireParser):
    """Makes requests out of bytes, however they are cut; the server's half of the protocol.

    Iteration stops where bytes are missing, and goes on after the next `feed`::

        parser.feed(data)
        for request in parser:
            ...

    A request with more keys or bytes than `Limits.part_keys` and `Limits.part_bytes` comes in parts, each as
    soon as it is complete: as several `MultiSet` or `MultiGet`, whose replies follow each other as that of
    one would; as several `Check` or `Wait`, all but the last of which say that there are `more`.

    It is `validated` if the `Validate` that must come first has been read by somebody else.
    """

    def __init__(self, limits: Limits = LIMITS, *, validated: bool = False) -> None:
        super().__init__(limits)
        self.listed = 0  # keys in requests of many; counts on until somebody sets it to 0
        self._requests = self._parse(validated)

    def close(self) -> None:
        """Forgets what has come: without waiting for Python's collector, as it may be long."""
        self._requests.close()
        self._fed = b""

    def __iter__(self) -> Iterator[msg.StoreRequest]:
        """The requests that are complete. Raises `C10dProtocolError`, after which there is no going on."""
        return iter(self._requests.__next__, None)

    def _parse(  # noqa: C901 - one loop without calls, as every request of every client comes through it
        self, validated: bool
    ) -> Generator[msg.StoreRequest | None, None, NoReturn]:
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
            kind, fields, is_list = _AFTER_GREETING.get(opcode) or _refuse(opcode)
            if is_list:
                if end - at >= 16 and fields[0] is _KEYS:
                    count, size = ONE.unpack_from(data, at)
                    if count == 1 and size <= limits[_K] and end - at - 16 >= size:
                        at += 16 + size
                        yield kind([data[at - size : at]])  # what a get of torch's client waits for
                        continue
                data, at = yield from self._parse_list(opcode, kind, data, at)
                end = len(data)
                continue
            arguments: list[Any] = []
            for field in fields:
                if field > _V:
                    packer = U32 if field is _Field.U32 else I64
                    if end - at < packer.size:
                        data = yield from self._more(data, at, packer.size)
                        at, end = 0, len(data)
                    arguments.append(packer.unpack_from(data, at)[0])
                    at += packer.size
                    continue
                if end - at < 8:
                    data = yield from self._more(data, at, 8, arguments)
                    at, end = 0, len(data)
                size = U64.unpack_from(data, at)[0]
                at += 8
                if size > limits[field]:
                    raise _too_long(opcode, field, size, limits[field])
                if end - at < size:
                    data = yield from self._more(data, at, size, arguments)
                    at, end = 0, len(data)
                arguments.append(data[at : at + size])
                at += size
            yield kind(*arguments)

    def _greeting(self) -> Generator[None, None, tuple[msg.Validate, bytes, int]]:
        data = yield from self._more(b"", 0, 1)
        if data[0] != Opcode.VALIDATE:
            first = f"the connection starts with opcode {data[0]}"
            raise C10dProtocolError(f"{first}, but a c10d client sends 0 first")
        data = yield from self._more(data, 0, 1 + U32.size)
        magic: int = U32.unpack_from(data, 1)[0]
        if magic != MAGIC:
            expected = f"a c10d client sends {MAGIC:#x}: not a TCPStore client?"
            raise C10dProtocolError(f"magic number {magic:#x}, but {expected}")
        return msg.Validate(magic), data, 1 + U32.size

    def _parse_list(
        self, opcode: int, kind: Callable[..., msg.StoreRequest], data: bytes, at: int
    ) -> Generator[msg.StoreRequest | None, None, tuple[bytes, int]]:
        """Gives a request of many keys, in parts if need be; returns what comes after it, and where."""
        limits = self._limits
        if len(data) - at < 8:
            data, at = (yield from self._more(data, at, 8)), 0
        left = U64.unpack_from(data, at)[0]
        at += 8
        if left > limits.keys:
            name = Opcode(opcode).name
            raise C10dProtocolError(f"{name} with {left} keys, but the most in one request is {limits.keys}")
        room = limits.request
        while True:
            part, left, data, at = yield from self._part(opcode, left, room, data, at)
            room -= sum(map(len, part))
            listed = list(zip(part[::2], part[1::2], strict=True)) if opcode == Opcode.MULTI_SET else part
            yield kind(listed, True) if left and opcode in _WITH_MORE else kind(listed)
            if not left:
                return data, at

    def _part(
        self, opcode: int, left: int, room: int, data: bytes, at: int
    ) -> Generator[None, None, tuple[list[bytes], int, bytes, int]]:
        """Reads strings, of at most `room` bytes; returns them, the keys left, what follows, and where."""
        limits = self._limits
        kinds = ((_K, limits.key), (_V, limits.value)) if opcode == Opcode.MULTI_SET else ((_K, limits.key),)
        part: list[bytes] = []
        total, last = 0, left - min(left, limits.part_keys)
        while left > last and total < limits.part_bytes:
            for kind, limit in kinds:
                if len(data) - at < 8:
                    data, at = (yield from self._more(data, at, 8, part)), 0
                size: int = U64.unpack_from(data, at)[0]
                at += 8
                total += size
                if size > limit:
                    raise _too_long(opcode, kind, size, limit)
                if total > room:
                    what = f"{Opcode(opcode).name} of more than {limits.request} bytes"
                    raise C10dProtocolError(f"{what} in one request")
                if len(data) - at < size:
                    data, at = (yield from self._more(data, at, size, part)), 0
                part.append(data[at : at + size])
                at += size
            left -= 1
        self.listed += len(part)
        return part, left, data, at


def _refuse(opcode: int) -> NoReturn:
    if opcode == Opcode.VALIDATE:
        raise C10dProtocolError("a second VALIDATE on one connection")
    raise C10dProtocolError(f"unknown opcode {opcode}; the c10d protocol has 0 to {max(_FORMS)}")


def _too_long(opcode: int, field: _Field, size: int, limit: int) -> C10dProtocolError:
    what = f"{Opcode(opcode).name} with a {field.name.lower()} of {size} bytes"
    return C10dProtocolError(f"{what}; the limit is {limit}")

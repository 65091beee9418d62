"""How keys and values are kept: a mapping for very many keys, and long values in pieces, never copied."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Final, Generic, TypeVar

from arendezvous.errors import StoreError

PIECE: Final = 64 * 1024  # bytes; values up to here are plain bytes, and copied when they are appended to
LOOK: Final = 128  # bytes at the start of a value in which a number has to end

_LEADING_INTEGER: Final = re.compile(rb"[ \t\n\v\f\r]*([+-]?)0*([0-9]+)")
_MAX_DIGITS: Final = 19  # of a signed integer of 64 bits
_LEAST, _MOST = -(1 << 63), (1 << 63) - 1
V = TypeVar("V")

PARTS: Final = 64
SPLIT: Final = 8192  # keys of a table that is one dict until then
SPARSE: Final = 256  # bytes of a dict for each key in it from which on it is made anew


class Table(Generic[V]):
    """A mapping in parts: a dict of a million keys takes a tenth of a second to grow, and never shrinks."""

    __slots__ = ("mask", "parts")

    def __init__(self, *, split: bool = False) -> None:
        self.parts: list[dict[bytes, V]] = [{}]  # a key is in the one at the index ``hash(key) & mask``
        self.mask = 0  # one less than the number of parts
        if split:
            self._split()

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __iter__(self) -> Iterator[bytes]:
        return chain.from_iterable(self.parts)

    def put(self, key: bytes, value: V) -> None:
        """Stores a value."""
        part = self.parts[hash(key) & self.mask]
        part[key] = value
        if not self.mask and len(part) > SPLIT:
            self._split()

    def pop(self, key: bytes) -> V:
        """Takes a key out, which must be there."""
        at = hash(key) & self.mask
        part = self.parts[at]
        value = part.pop(key)
        if part.__sizeof__() > SPARSE * (len(part) + SPLIT // PARTS):
            self.parts[at] = dict(part)
        return value

    def pop_any(self) -> tuple[bytes, V] | None:
        """Takes out some key; None if there is none."""
        for part in self.parts:
            if part:
                return part.popitem()
        return None

    def _split(self) -> None:
        [whole] = self.parts
        self.parts, self.mask = [{} for _ in range(PARTS)], PARTS - 1
        for key, value in whole.items():
            self.parts[hash(key) & self.mask][key] = value


class LongValue:
    """A value of more than `PIECE` bytes that grows at its end, changed by the keyspace alone."""

    __slots__ = ("_pieces", "_size", "_tail")

    def __init__(self, value: bytes) -> None:
        self._pieces = [value]  # what is not changed any more
        self._tail = bytearray()  # what was appended since, shorter than `PIECE`
        self._size = len(value)  # bytes altogether

    def __len__(self) -> int:
        return self._size

    def append(self, value: bytes) -> None:
        """Lengthens the value; costs what is appended, and `PIECE` bytes at most besides."""
        self._size += len(value)
        self._tail += value
        if len(self._tail) >= PIECE:
            self._pieces.append(bytes(self._tail))
            self._tail = bytearray()

    def head(self, size: int) -> bytes:
        """The first `size` bytes, at most `PIECE`."""
        return self._pieces[0][:size]

    def pieces(self) -> Pieces:
        """The value as it is now; costs `PIECE` bytes at most."""
        parts = (*self._pieces, bytes(self._tail)) if self._tail else tuple(self._pieces)
        return Pieces(self, parts, self._size)

    def rest(self, start: int) -> bytes:
        """The bytes from `start`; costs what it returns, and the number of pieces."""
        parts = [bytes(self._tail)]
        at = self._size - len(self._tail)
        for piece in reversed(self._pieces):
            if at <= start:
                break
            at -= len(piece)
            parts.append(piece)
        return b"".join(reversed(parts))[start - at :]

    def whole(self) -> bytes:
        """The value as one; it is copied by the first who ask for that since it was appended to."""
        if self._tail or len(self._pieces) > 1:
            self._pieces = [b"".join((*self._pieces, self._tail))]
            self._tail = bytearray()
        return self._pieces[0]


@dataclass(slots=True, eq=False)
class Pieces:
    """A `LongValue` as it was at one moment."""

    source: LongValue  # the value; it may have grown since
    parts: tuple[bytes, ...]  # the bytes, in pieces
    _size: int

    def __len__(self) -> int:
        return self._size

    def whole(self) -> bytes:
        """The bytes as one; all who read the same value share one copy."""
        if len(self.source) == self._size:
            return self.source.whole()
        return b"".join(self.parts)


def leading_integer(value: bytes) -> int | None:
    """The integer that `value` starts with, after white space; None if there is none of 64 bits.

    It has to end within `LOOK` bytes: no more is looked at, however long the value is.
    """
    match = _LEADING_INTEGER.match(value[:LOOK])
    if match is None or len(match[2]) > _MAX_DIGITS or (match.end() == LOOK and len(value) > LOOK):
        return None
    number = int(match[1] + match[2])
    return number if _LEAST <= number <= _MOST else None


def wrapped(number: int) -> int:
    """`number` as a signed integer of 64 bits, which wraps around."""
    return ((number - _LEAST) & (_MOST - _LEAST)) + _LEAST


def not_a_number(key: bytes, value: bytes) -> StoreError:
    """The error of an `Add` or a `Barrier` on what is no number."""
    return StoreError(
        f"the value of key {key.decode(errors='backslashreplace')!r} is {value[:40]!r}, which does not"
        " start with an integer of 64 bits; add and barrier need a key that nothing else writes",
        key=key.decode(errors="backslashreplace"),
    )

"""A mapping for very many keys: no operation takes long, and it gives back what it does not need."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Final, Generic, TypeVar

V = TypeVar("V")

PARTS: Final = 64
SPLIT: Final = 8192  # keys of a table that is one dict until then
SPARSE: Final = 256  # bytes of a dict for each key in it from which on it is made anew


class Table(Generic[V]):
    """A mapping in parts: a dict of a million keys takes a tenth of a second to grow, and never shrinks.

    Attributes:
        parts: The dicts, one or `PARTS` of them; a key is in the one at the index ``hash(key) & mask``.
        mask: One less than the number of parts.
    """

    __slots__ = ("mask", "parts")

    def __init__(self, *, split: bool = False) -> None:
        self.parts: list[dict[bytes, V]] = [{}]
        self.mask = 0
        if split:
            self._split()

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __iter__(self) -> Iterator[bytes]:
        return chain.from_iterable(self.parts)

    def __contains__(self, key: bytes) -> bool:
        return key in self.parts[hash(key) & self.mask]

    def get(self, key: bytes) -> V | None:
        """The value of `key`; None if it is absent."""
        return self.parts[hash(key) & self.mask].get(key)

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

"""The keys of a store with their values, and what is charged for them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from msgspec import Struct

from arendezvous.errors import StoreFullError
from arendezvous.keyspace.regions import KEY, Region, Regions, run_part
from arendezvous.keyspace.table import PARTS, Table
from arendezvous.keyspace.values import PIECE, LongValue, Pieces

MASK: Final = PARTS - 1  # of the table of all keys; its parts are looked into without a call


class Entry(Struct, gc=False, eq=False):
    """A key: its value, the number of the change that wrote it, and the region to which it belongs."""

    value: bytes | LongValue
    revision: int
    region: Region


class Reading(Struct):
    """A value that is being sent.

    Attributes:
        count: By how many.
        region: What is charged for it until all have been sent it; None as long as it is stored.
        size: Its bytes, once it is not.
    """

    count: int = 0
    region: Region | None = None
    size: int = 0


class Entries:
    """All keys of one store.

    Args:
        regions: What is charged for them.

    Attributes:
        count: How many keys there are.
        table: The keys by name; also those of regions that are gone, until they are swept out.

    Its other fields:
        _max_value: Bytes in one value, at most.
        _read: The values that are being sent, by their identity.
    """

    def __init__(self, regions: Regions) -> None:
        self.count = 0
        self.table: Table[Entry] = Table(split=True)
        self._regions = regions
        self._max_value = regions.limits.max_value
        self._read: dict[int, Reading] = {}

    def get(self, key: bytes) -> Entry | None:
        """The entry of a key; None if it is absent."""
        entry = self.table.parts[hash(key) & MASK].get(key)
        return None if entry is None or entry.region.is_gone else entry

    def write(self, key: bytes, value: bytes) -> Entry:
        """Stores a value, whatever was there; its revision is left to the caller.

        Raises:
            StoreFullError: It is too long, or a limit would be passed; nothing was changed.
        """
        if len(value) > self._max_value:
            raise too_long(len(value), self._max_value)
        part = self.table.parts[hash(key) & MASK]
        entry = part.get(key)
        if entry is None or entry.region.is_gone:
            region = self._regions.charge(key, KEY + len(key) + len(value))
            if entry is not None:  # it has not been swept out yet
                entry.region.keys.pop(key)
                self._discard(entry, KEY + len(key))
            entry = part[key] = Entry(value, 0, region)
            region.keys.put(key, None)
            self.count += 1
        elif self._read or len(value) != len(entry.value):
            self._replace(entry, value)
        else:
            entry.value = value
        return entry

    def append(self, entry: Entry, more: bytes) -> None:
        """Appends to the value of an entry. Raises as `write` does."""
        value = entry.value
        length = len(value) + len(more)
        if length > self._max_value:
            raise too_long(length, self._max_value)
        if isinstance(value, LongValue):
            self._regions.grow(entry.region, len(more))
            value.append(more)
        elif length <= PIECE:
            self._replace(entry, value + more)
        else:
            longer = LongValue(value)
            longer.append(more)
            self._replace(entry, longer)

    def delete(self, key: bytes, entry: Entry) -> None:
        """Takes out a key that is there."""
        self.table.pop(key)
        entry.region.keys.pop(key)
        self.count -= 1
        self._discard(entry, KEY + len(key))

    def check_room(self, items: list[tuple[bytes, bytes]]) -> None:
        """Checks that all of the items can be stored.

        Raises:
            StoreFullError: They cannot.
        """
        longest = max([len(value) for _, value in items], default=0)
        if longest > self._max_value:
            raise too_long(longest, self._max_value)
        limits = self._regions.limits
        most = self._regions.size + sum([KEY + len(key) + len(value) for key, value in items])
        if most <= min(limits.max_bytes, limits.max_run_bytes):
            return
        more: dict[bytes, int] = {}
        for key, value in items:
            entry = self.get(key)
            size = KEY + len(key) if entry is None else -len(entry.value)
            part = run_part(key)
            more[part] = more.get(part, 0) + size + len(value)
        self._regions.require_all(more)

    def sweep(self, region: Region) -> Iterator[None]:
        """Sweeps out the keys of a region that is gone, one in each step."""
        while (some := region.keys.pop_any()) is not None:
            key, _ = some
            self._discard(self.table.pop(key), KEY + len(key))
            yield

    def begin_reading(self, value: bytes | Pieces) -> None:
        """Somebody begins to send a value that a reply has brought: it counts even if it is replaced."""
        self._read.setdefault(_identity(value), Reading()).count += 1

    def end_reading(self, value: bytes | Pieces) -> None:
        """Takes back one `begin_reading`."""
        reading = self._read[_identity(value)]
        reading.count -= 1
        if not reading.count:
            del self._read[_identity(value)]
            if reading.region is not None:
                self._regions.shrink(reading.region, reading.size)

    def _replace(self, entry: Entry, value: bytes | LongValue) -> None:
        more = len(value) - len(entry.value)
        if id(entry.value) in self._read:
            self._regions.grow(entry.region, len(value))
            self._discard(entry, 0)
        elif more > 0:
            self._regions.grow(entry.region, more)
        else:
            self._regions.shrink(entry.region, -more)
        entry.value = value

    def _discard(self, entry: Entry, besides: int) -> None:
        """Takes back what is charged for a value that is not stored any more, and `besides`."""
        size = len(entry.value)
        reading = self._read.get(id(entry.value)) if self._read else None
        if reading is not None:
            reading.region, reading.size = entry.region, size
            size = 0
        self._regions.shrink(entry.region, size + besides)


def too_long(length: int, most: int) -> StoreFullError:
    """The error of a value that is over the limit."""
    detail = f"the value would have {length} bytes; at most {most} are kept under one key"
    return StoreFullError(detail, limit=most)


def _identity(value: bytes | Pieces) -> int:
    return id(value if isinstance(value, bytes) else value.source)

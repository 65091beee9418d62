"""Keys, queues and waits by the run to which they belong: the values, and how much there may be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from msgspec import Struct, field

from arendezvous.errors import StoreFullError
from arendezvous.keyspace.values import PARTS, PIECE, LongValue, Pieces, Table

if TYPE_CHECKING:
    from arendezvous.keyspace.keyspace import Queue
    from arendezvous.keyspace.waits import Index


RUNS: Final = b"/arendezvous/"  # what the keys of all runs begin with, as the server stores them
KEY: Final = 400  # bytes that a key takes besides its own and those of its value
REGION: Final = 1200  # bytes that a run takes of which there are keys
MIB: Final = 1024 * 1024
MASK: Final = PARTS - 1  # of the table of all keys; its parts are looked into without a call


class KeyspaceLimits(Struct, frozen=True):
    """How much a keyspace keeps; what would go over a limit is refused, and changes nothing.

    Keys, values, queues and waits count, each with its own bytes and what keeping it takes.
    """

    max_bytes: int = 1024 * MIB  # bytes altogether
    # bytes of the keys of one run, under ``arendezvous/RUN_ID/``; for keys of no run only `max_bytes` counts
    max_run_bytes: int = 512 * MIB
    max_value: int = 64 * MIB  # bytes in one value, after all that was appended to it


class Region(Struct, gc=False, eq=False):
    """The keys and queues of one run; or those of no run.

    Python's collector does not look at regions, keys, queues and waits: there may be a million of them, and
    its passes would hold up everybody. So whoever ends one takes it out of all cycles.
    """

    prefix: bytes  # what all of them begin with; empty for those of no run
    size: int = 0  # bytes that they and the waits for them take
    keys: Table[None] = field(default_factory=Table)  # their names
    queues: dict[bytes, Queue] = {}  # the queues by name
    watching: Index = {}  # who watches one of the keys
    is_gone: bool = False  # whether they have been deleted all at once; what is still found of them is absent


class Regions:
    """All regions of one keyspace; each is there as long as it takes something."""

    def __init__(self, limits: KeyspaceLimits) -> None:
        self.limits = limits
        self.size = 0  # bytes that all of them take
        self.common = Region(b"")  # the region of what is no run's
        self._of_runs: dict[bytes, Region] = {}  # those of runs
        self._latest: Region | None = None  # the one found last: keys of one run mostly come together

    def charge(self, key: bytes, size: int) -> Region:
        """Adds to what the region of `key` takes, and returns the region. Raises as `grow` does."""
        limits = self.limits
        if not key.startswith(RUNS):
            region, most = self.common, limits.max_bytes
        else:
            most, region = limits.max_run_bytes, self._latest or self.common
            if not region.prefix or not key.startswith(region.prefix):
                region = self._of_run(key, size)
        if region.size + size > most or self.size + size > limits.max_bytes:
            self._check(region.prefix, region.size + size, size)
        region.size += size
        self.size += size
        return region

    def _of_run(self, key: bytes, size: int) -> Region:
        """Finds the region of a run's key; makes it, if it may take `size` bytes."""
        prefix = run_part(key)
        if not prefix:  # it begins as those of runs do, and does not say of which
            return self.common
        region = self._of_runs.get(prefix)
        if region is None:
            self._check(prefix, size, size + REGION)
            self.size += REGION
            region = self._of_runs[prefix] = Region(prefix)
        self._latest = region
        return region

    def grow(self, region: Region, size: int) -> None:
        """Adds to what a region takes. Raises `StoreFullError` if that would be too much."""
        self._check(region.prefix, region.size + size, size)
        region.size += size
        self.size += size

    def require_all(self, more: dict[bytes, int]) -> None:
        """Raises `StoreFullError` unless so much could be added to what regions take, by their prefixes."""
        total = sum(more.values()) + len(more) * REGION
        for prefix, size in more.items():
            region = self._of_runs.get(prefix)
            self._check(prefix, size if region is None else region.size + size, total)

    def _check(self, prefix: bytes, of_region: int, more: int) -> None:
        """Checks that the region `prefix` may take `of_region` bytes, and all together `more` than now."""
        limits = self.limits
        if self.size + more > limits.max_bytes:
            raise _full("all keys", limits.max_bytes, "store.max_bytes")
        if prefix and of_region > limits.max_run_bytes:
            run_id = unquote(prefix[len(RUNS) : -1].decode("utf-8", "replace"))
            raise _full(f"the keys of run {run_id!r}", limits.max_run_bytes, "store.max_run_bytes")

    def shrink(self, region: Region, size: int) -> None:
        """Takes back some of what was added."""
        region.size -= size
        self.size -= size
        if not region.size and region.prefix:
            self.size -= REGION
            if self._of_runs.get(region.prefix) is region:
                del self._of_runs[region.prefix]
                self._latest = None

    def remove(self, prefix: bytes) -> Region | None:
        """Has a region be gone, so that its keys are absent; its bytes count until it is swept out.

        Returns it, or None if nothing is under `prefix`.
        """
        region = self._of_runs.pop(prefix, None)
        if region is not None:
            region.is_gone = True
            self._latest = None
        return region

    def within(self, prefix: bytes) -> list[Region]:
        """The regions in which there may be keys that begin with `prefix`."""
        if part := run_part(prefix):
            return [self._of_runs[part]] if part in self._of_runs else []
        if not (RUNS.startswith(prefix) or prefix.startswith(RUNS)):
            return [self.common]
        return [self.common, *(region for name, region in self._of_runs.items() if name.startswith(prefix))]


def run_part(key: bytes) -> bytes:
    """Cuts out what says of which run a key is: ``/arendezvous/RUN_ID/``; empty if it is no run's."""
    if not key.startswith(RUNS):
        return b""
    return key[: key.find(b"/", len(RUNS)) + 1]


def _full(what: str, limit: int, name: str) -> StoreFullError:
    return StoreFullError(
        f"{what}, with their values, queues and waits, would take more than the {limit} bytes that this store"
        f" gives them; delete some, or raise its limit: arendezvous serve --limit {name}=...",
        limit=limit,
    )


class Entry(Struct, gc=False, eq=False):
    """A key: its value, the number of the change that wrote it, and the region to which it belongs."""

    value: bytes | LongValue
    revision: int
    region: Region


class Reading(Struct):
    """A value that is being sent."""

    count: int = 0  # by how many
    region: Region | None = None  # what is charged for it until all have it; None: it is still stored
    size: int = 0  # its bytes, once it is not


class Entries:
    """All keys of one store."""

    def __init__(self, regions: Regions) -> None:
        self.count = 0  # how many keys there are
        self.table: Table[Entry] = Table(split=True)  # also of regions that are gone, until they are swept
        self._regions = regions
        self._max_value = regions.limits.max_value  # bytes in one value, at most
        self._read: dict[int, Reading] = {}  # the values that are being sent, by their identity

    def get(self, key: bytes) -> Entry | None:
        """The entry of a key; None if it is absent."""
        entry = self.table.parts[hash(key) & MASK].get(key)
        return None if entry is None or entry.region.is_gone else entry

    def write(self, key: bytes, value: bytes) -> Entry:
        """Stores a value; the caller gives it a revision. Raises `StoreFullError`, having changed nothing."""
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
        """Raises `StoreFullError` unless all of the items can be stored."""
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

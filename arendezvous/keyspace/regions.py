"""Keys, queues and waits by the run to which they belong, and how much of them there may be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from msgspec import Struct, field

from arendezvous.errors import StoreFullError
from arendezvous.keyspace.table import Table

if TYPE_CHECKING:
    from arendezvous.keyspace.keyspace import Queue
    from arendezvous.keyspace.waits import Index

RUNS: Final = b"/arendezvous/"  # what the keys of all runs begin with, as the server stores them
KEY: Final = 400  # bytes that a key takes besides its own and those of its value
REGION: Final = 1200  # bytes that a run takes of which there are keys
MIB: Final = 1024 * 1024


class KeyspaceLimits(Struct, frozen=True):
    """How much a keyspace keeps; what would go over a limit is refused, and changes nothing.

    Keys, values, queues and waits count, each with its own bytes and what keeping it takes.

    Attributes:
        max_bytes: Bytes altogether.
        max_run_bytes: Bytes of the keys of one run, those under ``arendezvous/RUN_ID/``. Keys that are no
            run's have no other limit than `max_bytes`.
        max_value: Bytes in one value, after all that was appended to it.
    """

    max_bytes: int = 1024 * MIB
    max_run_bytes: int = 512 * MIB
    max_value: int = 64 * MIB


class Region(Struct, gc=False, eq=False):
    """The keys and queues of one run; or those of no run.

    Python's collector does not look at regions, keys, queues and waits: there may be a million of them, and
    its passes would hold up everybody. So whoever ends one takes it out of all cycles.

    Attributes:
        prefix: What all of them begin with; empty for those of no run.
        size: Bytes that they and the waits for them take.
        keys: Their names.
        queues: The queues by name.
        watching: Who watches one of the keys.
        is_gone: Whether they have been deleted all at once; what is still found of them is absent.
    """

    prefix: bytes
    size: int = 0
    keys: Table[None] = field(default_factory=Table)
    queues: dict[bytes, Queue] = {}
    watching: Index = {}
    is_gone: bool = False


class Regions:
    """All regions of one keyspace, by their prefix, and what they take.

    A region is there as long as it takes something.

    Args:
        limits: How much there may be.

    Attributes:
        size: Bytes that all of them take.
        common: The region of what is no run's.

    Its other fields:
        _of_runs: Those of runs.
        _latest: The one that was found last: keys of one run mostly come together.
    """

    def __init__(self, limits: KeyspaceLimits) -> None:
        self.limits = limits
        self.size = 0
        self.common = Region(b"")
        self._of_runs: dict[bytes, Region] = {}
        self._latest: Region | None = None

    def of(self, key: bytes) -> Region | None:
        """The region to which `key` belongs; None if nothing is in it."""
        prefix = run_part(key)
        return self._of_runs.get(prefix) if prefix else self.common

    def charge(self, key: bytes, size: int) -> Region:
        """Adds to what the region of `key` takes, and returns the region.

        Raises:
            StoreFullError: That would be too much; nothing was added.
        """
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
        """Adds to what a region takes.

        Raises:
            StoreFullError: That would be too much; nothing was added.
        """
        self._check(region.prefix, region.size + size, size)
        region.size += size
        self.size += size

    def require(self, key: bytes, size: int) -> None:
        """Checks that so much could be added to what the region of `key` takes.

        Raises:
            StoreFullError: That would be too much.
        """
        self.require_all({run_part(key): size})

    def require_all(self, more: dict[bytes, int]) -> None:
        """Checks that so much could be added to what regions take, by their prefixes, together.

        Raises:
            StoreFullError: That would be too much.
        """
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
        """Has the region `prefix` be gone: from now on its keys are absent, and others may take their place.

        Returns:
            The region, whose bytes still count; None if there is nothing in it.
        """
        region = self._of_runs.pop(prefix, None)
        if region is not None:
            region.is_gone = True
            self._latest = None
        return region

    def within(self, prefix: bytes) -> Iterator[Region]:
        """The regions in which there may be keys that begin with `prefix`."""
        if run_part(prefix):
            region = self.of(prefix)
            if region is not None:
                yield region
            return
        yield self.common
        if RUNS.startswith(prefix) or prefix.startswith(RUNS):
            yield from [region for name, region in self._of_runs.items() if name.startswith(prefix)]


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

"""Finds who waits for a key, and who watches it, by the key; never by looking at all who wait."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from msgspec import Struct

from arendezvous.errors import StoreFullError
from arendezvous.keyspace.messages import Reply, WaitDone
from arendezvous.keyspace.regions import Region, Regions

Owed = Sequence[tuple[int, Reply]]
"""Replies, each with the client to whom it is owed, in the order in which to send them."""

WAIT: Final = 1000  # bytes that a wait takes for each key, besides those of the key
STEP: Final = 128  # waits that are seen to at once; where there are more, others get their turn in between
DONE: Final = WaitDone()


@dataclass(slots=True, eq=False)
class Waiter:
    """A client that waits for something."""

    client: int
    waits: dict[OpenWait, None] = field(default_factory=dict)  # what it waits for
    is_gone: bool = False  # whether it has given that up; what is still found of its waits means nothing


class OpenWait(Struct, gc=False, eq=False):
    """One wait for some keys, in an index by those keys until it is over."""

    waiter: Waiter  # whose it is
    is_watch: bool  # for a change of its key, and in the index of a region; else for its being written
    missing: dict[bytes, Region] = {}  # keys that are not written, with the regions charged for them
    is_open: bool = False  # whether further keys are still being named


Index = dict[bytes, dict[OpenWait, None]]


class Waits:
    """All waits of one keyspace, charged to its `regions`; what is left to do for many goes into `later`."""

    def __init__(self, regions: Regions, later: deque[Iterator[Owed]]) -> None:
        self.by_key: Index = {}  # the waits by what they wait for; without watches
        self._later = later
        self._regions = regions
        self._waiters: dict[int, Waiter] = {}  # the clients that wait, by number
        self._open: dict[int, OpenWait] = {}  # the waits whose keys are still being named, by client
        self._promised: dict[int, dict[bytes, Region]] = {}  # queues that clients were woken for, unseen

    def __len__(self) -> int:
        return len(self._waiters)

    def add(self, client: int, keys: Collection[bytes], *, more: bool = False) -> bool:
        """Has a client wait for all of `keys`, and for those that it named just before with `more`.

        Returns whether nothing of them is missing, so that there is no wait; raises `StoreFullError`, so that
        there is none for these keys, if there are too many.
        """
        wait = self._open.pop(client, None)
        if wait is None:
            if not keys and not more:
                return True
            wait = self._begin(client, is_watch=False)
        wait.is_open = more
        if more:
            self._open[client] = wait
        self._link(wait, keys)
        return bool(self._ended(wait, DONE))

    def watch(self, client: int, key: bytes) -> None:
        """Has a client wait for a change of `key`. Raises as `add` does."""
        self._link(self._begin(client, is_watch=True), (key,))

    def awaited(self, client: int) -> set[bytes]:
        """The keys that a client still waits for, or watches."""
        waiter = self._waiters.get(client)
        return set() if waiter is None else {key for wait in waiter.waits for key in wait.missing}

    def wake_all(self, key: bytes) -> Owed:
        """The key has been written: ends the waits that missed nothing else."""
        return self._wake(self.by_key.pop(key, {}), key, DONE)

    def tell(self, region: Region, key: bytes, reply: Reply) -> Owed:
        """The key of `region` has changed: tells those who watch it."""
        return self._wake(region.watching.pop(key, {}), key, reply)

    def wake_one(self, key: bytes) -> Owed:
        """Something is in the queue `key`: that counts for the wait that has missed it for the longest."""
        waits = self.by_key.get(key)
        while waits:
            wait = next(iter(waits))
            region = self._unlink(wait, key)
            if wait.waiter.is_gone:
                self._regions.shrink(region, WAIT + len(key))
                continue
            self.looked(wait.waiter.client, key)
            self._promised.setdefault(wait.waiter.client, {})[key] = region
            return self._ended(wait, DONE)
        return ()

    def looked(self, client: int, key: bytes) -> None:
        """A client has looked at the queue `key`: it is not promised any more what it was woken for."""
        promised = self._promised.get(client)
        if promised is not None and key in promised:
            self._regions.shrink(promised.pop(key), WAIT + len(key))
            if not promised:
                del self._promised[client]

    def drop(self, client: int) -> Iterable[bytes]:
        """Ends all waits of a client; returns the queues for which it was woken in vain."""
        self._open.pop(client, None)
        waiter = self._waiters.pop(client, None)
        if waiter is not None:
            self._forget(waiter)
        promised = self._promised.pop(client, {})
        for key, region in promised.items():
            self._regions.shrink(region, WAIT + len(key))
        return promised

    def _begin(self, client: int, *, is_watch: bool) -> OpenWait:
        waiter = self._waiters.get(client)
        if waiter is None:
            waiter = self._waiters[client] = Waiter(client)
        wait = OpenWait(waiter, is_watch)
        waiter.waits[wait] = None
        return wait

    def _link(self, wait: OpenWait, keys: Iterable[bytes]) -> None:
        charge = self._regions.charge
        try:
            for key in keys:
                if key not in wait.missing:
                    region = wait.missing[key] = charge(key, WAIT + len(key))
                    index = region.watching if wait.is_watch else self.by_key
                    index.setdefault(key, {})[wait] = None
        except StoreFullError:
            self._open.pop(wait.waiter.client, None)
            self._end(wait)
            wait.waiter = Waiter(wait.waiter.client)
            wait.waiter.waits[wait] = None
            self._forget(wait.waiter)
            raise

    def _unlink(self, wait: OpenWait, key: bytes) -> Region:
        region = wait.missing.pop(key)
        index = region.watching if wait.is_watch else self.by_key
        waits = index.get(key)
        if waits is not None and wait in waits:
            del waits[wait]
            if not waits:
                del index[key]
        return region

    def _wake(self, waits: dict[OpenWait, None], key: bytes, reply: Reply) -> Owed:
        if len(waits) <= STEP:
            return self._woken(waits, key, reply)
        self._later.append(self._waking(waits, key, reply))
        return ()

    def _waking(self, waits: dict[OpenWait, None], key: bytes, reply: Reply) -> Iterator[Owed]:
        rest = iter(waits)
        while some := list(islice(rest, STEP)):
            yield self._woken(some, key, reply)

    def _woken(self, waits: Iterable[OpenWait], key: bytes, reply: Reply) -> Owed:
        owed: list[tuple[int, Reply]] = []
        for wait in waits:
            region = wait.missing.pop(key, None)
            if region is not None:  # else it was given up meanwhile
                self._regions.shrink(region, WAIT + len(key))
                owed += self._ended(wait, reply)
        return owed

    def _ended(self, wait: OpenWait, reply: Reply) -> Owed:
        """Ends a wait that misses nothing any more; the reply that is then owed."""
        if wait.missing or wait.is_open or wait.waiter.is_gone:
            return ()
        self._end(wait)
        return [(wait.waiter.client, reply)]

    def _end(self, wait: OpenWait) -> None:
        waits = wait.waiter.waits
        del waits[wait]
        if not waits:
            del self._waiters[wait.waiter.client]

    def _forget(self, waiter: Waiter) -> None:
        waiter.is_gone = True
        forgetting = self._forgetting(waiter)
        for _ in forgetting:  # its first step; mostly there are no more
            self._later.append(forgetting)
            break

    def _forgetting(self, waiter: Waiter) -> Iterator[Owed]:
        """Takes the waits of one who is gone out of the indices."""
        count = 0
        while waiter.waits:
            wait, _ = waiter.waits.popitem()
            while wait.missing:
                key = next(reversed(wait.missing))
                self._regions.shrink(self._unlink(wait, key), WAIT + len(key))
                count += 1
                if count % STEP == 0:
                    yield ()

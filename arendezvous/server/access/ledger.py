"""Bounds what a server keeps for its connections, all of them together: how much, and for how long."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Protocol

from arendezvous.server.access.admission import source_of


class Holder(Protocol):
    """A connection for which something is kept."""

    def drop(self, why: str) -> None:
        """Must drop the connection: what is kept for it is not kept any more."""


class Account:
    """Bytes that are kept for connections until they do something, such as reading what they asked for.

    When there are too many bytes, whoever has kept the server waiting for the longest is dropped; so somebody
    who does at once what is waited for is never hit by what others do.

    Args:
        limit: Bytes altogether.
        seconds: How long they are kept for one connection.
        what: What they are, for the log: "it has left 5 bytes of" what.

    Its fields:
        total: Bytes that are kept.
        _kept: The connections, the longest waited for first; each with since when, and bytes.
        _timer: When the first of them is due, or earlier; None while there is none.
    """

    def __init__(self, limit: int, seconds: float, what: str) -> None:
        self.total = 0
        self._limit = limit
        self._seconds = seconds
        self._what = what
        self._kept: OrderedDict[Holder, tuple[float, int]] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None

    def keep(self, holder: Holder, size: int) -> None:
        """Notes that `size` bytes are kept for `holder`, instead of what was; drops who has to go."""
        loop = asyncio.get_running_loop()
        since, before = self._kept.get(holder) or (loop.time(), 0)
        self._kept[holder] = (since, size)
        self.total += size - before
        if self._timer is None:
            self._timer = loop.call_later(self._seconds, self._on_timer)
        while self.total > self._limit:
            self._drop_first(f"; all connections together may leave {self._limit}")

    def free(self, holder: Holder) -> None:
        """Notes that nothing is kept for `holder` any more; may be called again."""
        _, size = self._kept.pop(holder, (0.0, 0))
        self.total -= size

    def close(self) -> None:
        """Stops the timer."""
        if self._timer is not None:
            self._timer.cancel()

    def _drop_first(self, limit: str) -> None:
        holder, (_, size) = next(iter(self._kept.items()))
        self.free(holder)
        holder.drop(f"it has left {size} bytes of {self._what}{limit}")

    def _on_timer(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        while self._kept:
            due = next(iter(self._kept.values()))[0] + self._seconds
            if due > loop.time():
                self._timer = loop.call_at(due, self._on_timer)
                return
            self._drop_first(f" for {self._seconds:g} s")


class Quota:
    """Bytes that are kept for the connections of each address (one /64 of IPv6), up to a limit."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used: dict[str, int] = {}

    def add(self, peer: str, size: int) -> bool:
        """Adds to what is kept for the address of `peer`, or takes back if `size` is less than 0.

        Returns whether it may be so much; if not, nothing was added.
        """
        source = source_of(peer)
        used = self._used.get(source, 0) + size
        if size > 0 and used > self._limit:
            return False
        if used:
            self._used[source] = used
        else:
            self._used.pop(source, None)
        return True


class SemaphoreWaiter(Protocol):
    """A connection that wants to do what only few may do at once."""

    def on_acquired(self) -> None:
        """Is called when its turn has come."""


class FairSemaphore:
    """Lets in a few at once, and the others in the order in which they came."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._inside: set[SemaphoreWaiter] = set()
        self._waiting: OrderedDict[SemaphoreWaiter, None] = OrderedDict()

    def acquire(self, waiter: SemaphoreWaiter) -> bool:
        """Lets `waiter` in, if there is room; else it is called when its turn has come."""
        if len(self._inside) < self._limit:
            self._inside.add(waiter)
            return True
        self._waiting[waiter] = None
        return False

    def release(self, waiter: SemaphoreWaiter) -> None:
        """Has `waiter` go, inside or waiting, and lets in the next; may be called again."""
        self._waiting.pop(waiter, None)
        if waiter not in self._inside:
            return
        self._inside.remove(waiter)
        if self._waiting:
            following, _ = self._waiting.popitem(last=False)
            self._inside.add(following)
            following.on_acquired()

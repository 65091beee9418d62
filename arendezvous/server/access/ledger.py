"""Bounds what a server keeps for its connections, all of them together: how much, and for how long."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Protocol

from arendezvous.server.access.throttle import source_of


class Debtor(Protocol):
    """A connection for which something is kept."""

    def foreclose(self, why: str) -> None:
        """Is called when it has to go: it is not kept for any more. Must drop the connection."""


class Account:
    """Bytes that are kept for connections until they do something, such as reading what they asked for.

    When there are too many bytes, whoever has kept the server waiting for the longest is dropped; so somebody
    who does at once what is waited for is never hit by what others do.

    Args:
        limit: Bytes altogether.
        seconds: How long they are kept for one connection.
        what: What they are, for the log: "it has left 5 bytes of" what.

    Attributes:
        total: Bytes that are kept.

    Its other fields:
        _kept: The connections, the longest waited for first; each with since when, and bytes.
        _timer: When the first of them is due, or earlier; None while there is none.
    """

    def __init__(self, limit: int, seconds: float, what: str) -> None:
        self.total = 0
        self._limit = limit
        self._seconds = seconds
        self._what = what
        self._kept: OrderedDict[Debtor, tuple[float, int]] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None

    def keep(self, debtor: Debtor, size: int) -> None:
        """Notes that `size` bytes are kept for `debtor`, instead of what was; drops who has to go."""
        loop = asyncio.get_running_loop()
        since, before = self._kept.get(debtor) or (loop.time(), 0)
        self._kept[debtor] = (since, size)
        self.total += size - before
        if self._timer is None:
            self._timer = loop.call_later(self._seconds, self._on_timer)
        while self.total > self._limit:
            self._foreclose(f"; all connections together may leave {self._limit}")

    def free(self, debtor: Debtor) -> None:
        """Notes that nothing is kept for `debtor` any more; may be called again."""
        _, size = self._kept.pop(debtor, (0.0, 0))
        self.total -= size

    def close(self) -> None:
        """Stops the timer."""
        if self._timer is not None:
            self._timer.cancel()

    def _foreclose(self, limit: str) -> None:
        debtor, (_, size) = next(iter(self._kept.items()))
        self.free(debtor)
        debtor.foreclose(f"it has left {size} bytes of {self._what}{limit}")

    def _on_timer(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        while self._kept:
            due = next(iter(self._kept.values()))[0] + self._seconds
            if due > loop.time():
                self._timer = loop.call_at(due, self._on_timer)
                return
            self._foreclose(f" for {self._seconds:g} s")


class Quota:
    """Bytes that are kept for the connections of each address.

    Args:
        limit: Bytes for one address (one /64 of IPv6).
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used: dict[str, int] = {}

    def add(self, peer: str, size: int) -> bool:
        """Adds to what is kept for the address of `peer`, or takes back if `size` is less than 0.

        Returns:
            Whether it may be so much; if not, nothing was added.
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


class Visitor(Protocol):
    """A connection that wants to do what only few may do at once."""

    def let_in(self) -> None:
        """Is called when its turn has come."""


class Gate:
    """Lets in a few at once, and the others in the order in which they came.

    Args:
        limit: How many.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._inside: set[Visitor] = set()
        self._waiting: OrderedDict[Visitor, None] = OrderedDict()

    def enter(self, visitor: Visitor) -> bool:
        """Lets `visitor` in, if there is room; else it is called when its turn has come."""
        if len(self._inside) < self._limit:
            self._inside.add(visitor)
            return True
        self._waiting[visitor] = None
        return False

    def leave(self, visitor: Visitor) -> None:
        """Has `visitor` go, inside or waiting, and lets in the next; may be called again."""
        self._waiting.pop(visitor, None)
        if visitor not in self._inside:
            return
        self._inside.remove(visitor)
        if self._waiting:
            following, _ = self._waiting.popitem(last=False)
            self._inside.add(following)
            following.let_in()

"""Holds what the connections of one server share: their turns, what may be kept for them, the log."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

from arendezvous.coordinator.coordinator import Coordinator
from arendezvous.coordinator.run import Attachment
from arendezvous.server.access.admission import FailureThrottle, source_of
from arendezvous.server.access.limits import ServerLimits

QUANTUM: Final = 256  # units of work that a connection does at once when something comes
SHARE: Final = 32  # units that it does when others have used up the turn, and each time it is its turn
TURN: Final = 512  # units in one turn of the event loop, beyond which connections have no more than a share
UNITS: Final = 4  # of work that a request costs at least
LARGE: Final = 64 * 1024  # bytes still to come of one key or value from which on it is large
UPLOADS: Final = 16  # large ones that come at once; others wait for their turn


class Turns:
    """Has connections that have much to do take turns, and others in between.

    What a connection is asked is answered at once, up to a limit. What is left waits here, with that of other
    connections, and is done by turns, a `SHARE` each.

    Attributes:
        spent: Units of work that were done at once in this turn of the loop, without those of connections
            that did no more than a `SHARE`.
        _queue: What is to be called, see `queue`.
        _next: The next turn; None if there is nothing to do in it.
    """

    def __init__(self) -> None:
        self.spent = 0
        self._loop = asyncio.get_running_loop()
        self._queue: deque[Callable[[], int]] = deque()
        self._next: asyncio.Handle | None = None

    async def wait(self, units: int = SHARE) -> None:
        """Waits for a turn in which the caller does about `units` of work. Cancellation: safe."""
        turn = self._loop.create_future()

        def work() -> int:
            if turn.done():
                return 0  # it has been cancelled
            turn.set_result(None)
            return units

        self.queue(work)
        await turn

    def queue(self, work: Callable[[], int]) -> None:
        """Calls `work` once, in a turn to come: it does about `SHARE` units at most, and returns how many.

        A unit is about as much as the simplest request costs, some microseconds.
        """
        self._queue.append(work)
        self.spend(0)

    def spend(self, units: int) -> None:
        """Notes work that was done at once, until the next turn of the loop."""
        self.spent += units
        if self._next is None:
            self._next = self._loop.call_soon(self._take)

    def close(self) -> None:
        """Calls nobody any more."""
        self._queue.clear()
        if self._next is not None:
            self._next.cancel()

    def _take(self) -> None:
        self.spent = 0
        left = TURN
        queue = self._queue
        while queue and left > 0:
            left -= queue.popleft()()
        self._next = self._loop.call_soon(self._take) if queue else None


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
        """Lets `waiter` in, and returns True, if there is room; else it is called when its turn has come."""
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


class Shared:
    """Holds what the connections of one server share.

    Attributes:
        limits: How much the server takes on.
        throttle: What it logs of whom.
        turns: Who does what when.
        unread: What peers have asked for and do not read.
        unfinished: What peers have begun to send and do not finish.
        greetings: The same of those who have not said who they are, by their addresses.
        uploads: Who may send a large value.
    """

    def __init__(self, limits: ServerLimits, throttle: FailureThrottle) -> None:
        self.limits = limits
        self.throttle = throttle
        self.turns = Turns()
        self.unread = Account(limits.max_unread, limits.write_timeout, "answers unread")
        self.unfinished = Account(limits.max_unfinished, limits.request_timeout, "a request without its end")
        self.greetings = Quota(limits.max_greetings)
        self.uploads = FairSemaphore(UPLOADS)

    def close(self) -> None:
        """Stops the timers."""
        self.turns.close()
        self.unread.close()
        self.unfinished.close()


def detach(coordinator: Coordinator, turns: Turns, attachments: dict[str, Attachment]) -> int:
    """Gives the nodes of a session that is gone their grace, some at a time; returns the units of work."""
    units = 0
    while attachments and units < SHARE:
        coordinator.detach(attachments.popitem()[1])
        units += UNITS
    if attachments:
        turns.queue(partial(detach, coordinator, turns, attachments))
    return units

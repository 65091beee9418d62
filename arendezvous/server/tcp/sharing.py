"""Holds what the connections of one server share: their turns, what may be kept for them, the log."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final

from arendezvous.coordinator.coordinator import Coordinator
from arendezvous.coordinator.run import Attachment
from arendezvous.server.access.admission import FailureThrottle
from arendezvous.server.access.ledger import Account, FairSemaphore, Quota
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

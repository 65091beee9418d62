"""Holds what the connections of one server share: their turns, what may be kept for them, the log."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final, Protocol

from arendezvous.coordinator.coordinator import Coordinator
from arendezvous.coordinator.run import Attachment
from arendezvous.server.access.ledger import Account, FairSemaphore, Quota
from arendezvous.server.access.limits import ServerLimits
from arendezvous.server.access.throttle import FailureThrottle

QUANTUM: Final = 256  # units of work that a connection does at once when something comes
SHARE: Final = 32  # units that it does when others have used up the turn, and each time it is its turn
TURN: Final = 512  # units in one turn of the event loop, beyond which connections have no more than a share
UNITS: Final = 4  # of work that a request costs at least
LARGE: Final = 64 * 1024  # bytes still to come of one key or value from which on it is large
UPLOADS: Final = 16  # large ones that come at once; others wait for their turn


class Worker(Protocol):
    """A connection that has more to do than fits into one turn."""

    def work(self) -> int:
        """Does some of it and returns how many units that was; about `SHARE` at most.

        A unit is about as much as the simplest request costs, some microseconds.
        """


class Turns:
    """Has connections that have much to do take turns, and others in between.

    What a connection is asked is answered at once, up to a limit. What is left waits here, with that of other
    connections, and is done by turns, a `SHARE` each.

    Attributes:
        spent: Units of work that were done at once in this turn of the loop, without those of connections
            that did no more than a `SHARE`.

    Its other fields:
        _queue: Who has more to do, once each.
        _next: The next turn; None if there is nothing to do in it.
    """

    def __init__(self) -> None:
        self.spent = 0
        self._loop = asyncio.get_running_loop()
        self._queue: deque[Worker] = deque()
        self._next: asyncio.Handle | None = None

    async def wait(self, units: int = SHARE) -> None:
        """Waits for a turn in which the caller does about `units` of work. Cancellation: safe."""
        waiting = _Waiting(self._loop.create_future(), units)
        self.queue(waiting)
        await waiting.turn

    def queue(self, worker: Worker) -> None:
        """Calls `worker` once, in a turn to come."""
        self._queue.append(worker)
        if self._next is None:
            self._next = self._loop.call_soon(self._take)

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
            left -= queue.popleft().work()
        self._next = self._loop.call_soon(self._take) if queue else None


class _Waiting:
    """A task that waits for its turn.

    Attributes:
        turn: Is done when it has come.
        units: Of work that the task then does.
    """

    __slots__ = ("turn", "units")

    def __init__(self, turn: asyncio.Future[None], units: int) -> None:
        self.turn = turn
        self.units = units

    def work(self) -> int:
        """See `Worker`."""
        if self.turn.done():
            return 0  # it has been cancelled
        self.turn.set_result(None)
        return self.units


class Shared:
    """Holds what the connections of one server share.

    Args:
        limits: How much the server takes on.
        throttle: What it logs of whom.

    Attributes:
        limits: The same.
        throttle: The same.
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


class Detaching:
    """The nodes of a session that is gone, which are given their grace some at a time.

    Args:
        coordinator: Where they are.
        turns: Who does what when.
        attachments: The nodes; taken over.
    """

    def __init__(self, coordinator: Coordinator, turns: Turns, attachments: dict[str, Attachment]) -> None:
        self._coordinator = coordinator
        self._turns = turns
        self._attachments = attachments

    def work(self) -> int:
        """Sees to some of them; returns how many units of work that was."""
        units = 0
        while self._attachments and units < SHARE:
            _, attachment = self._attachments.popitem()
            self._coordinator.detach(attachment)
            units += UNITS
        if self._attachments:
            self._turns.queue(self)
        return units

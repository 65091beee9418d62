"""The changes of one round as an asynchronous iterator, and whether the event loop was blocked meanwhile."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Final

import anyio

from arendezvous.backends.port import RendezvousBackend
from arendezvous.errors import RendezvousConnectionError, RendezvousError
from arendezvous.law.checks import decoded
from arendezvous.law.state import Cause, NodeView, Phase
from arendezvous.law.words import duration
from arendezvous.net.background import Background
from arendezvous.net.backoff import Backoff
from arendezvous.rendezvous.changes import Change, Evicted, StateChanged, at_completion, difference

PAUSES: Final = Backoff(first=0.05, last=2.0)


class LoopWatch:
    """Notices that the event loop was blocked: a sleep ends later than it should.

    Its fields:
        _least: Seconds that a block lasts to count: a third of the silence after which the node is dead.
        _due: When the present sleep is to end, by the loop's clock; infinite while there is none.
        _latest: Seconds that the latest block lasted; 0.0: there was none.
    """

    def __init__(self, expiry: float) -> None:
        self._least = expiry / 3
        self._due = math.inf
        self._latest = 0.0

    def forget(self) -> None:
        """Forgets what was: the node joins anew."""
        self._latest = 0.0

    async def sleep(self, seconds: float) -> bool:
        """Sleeps; returns whether the loop was blocked meanwhile."""
        self._due = anyio.current_time() + seconds
        try:
            await anyio.sleep(seconds)
            return self._look()
        finally:
            self._due = math.inf

    def text(self) -> str:
        """Says for how long the loop was blocked, which may have ended just now; empty if it was not."""
        self._look()
        return f"its event loop was blocked for {duration(self._latest)}" if self._latest else ""

    def _look(self) -> bool:
        late = anyio.current_time() - self._due
        if late > self._least:
            self._latest = late
        return late > self._least


class ChangeStream(AsyncIterator[Change]):
    """Tells what happens to a member, from the completion of its round to its end.

    Args:
        backend: Where the run is kept.
        begin: The member's view when the round was completed.
        is_current: Tells whether the node is still in that round, by its own doing.
        note: Called with each change, in words and as data, before it is returned.
        blocked: Says in words for how long this node's event loop was blocked; empty if it was not.
        goes_on: Whether it goes on once the run is closed.
    """

    def __init__(
        self,
        backend: RendezvousBackend,
        begin: NodeView,
        is_current: Callable[[], bool],
        note: Callable[[str, Change], None],
        blocked: Callable[[], str],
        *,
        goes_on: bool = False,
    ) -> None:
        self._backend = backend
        self._seen = begin
        self._is_current = is_current
        self._note = note
        self._blocked = blocked
        self._pending = deque(difference(at_completion(begin), begin))
        self._goes_on = goes_on
        self._over = begin.closed is not None and not goes_on

    async def __anext__(self) -> Change:
        while not self._pending:
            if self._over or not self._is_current():
                raise StopAsyncIteration
            view = await self._backend.changed(self._seen.node, self._seen.revision)
            if not self._is_current():
                raise StopAsyncIteration
            self._pending.extend(difference(self._seen, view))
            moved = view.phase is not Phase.MEMBER or view.generation != self._seen.generation
            self._over = moved or (view.closed is not None and not self._goes_on)
            self._seen = view
        change = self._pending.popleft()
        if isinstance(change, Evicted) and change.cause is Cause.NO_HEARTBEAT and (why := self._blocked()):
            change = Evicted(change.cause, f"{change.reason}; {why}")
        self._note(str(change), change)
        return change


class StatesAndChanges(AsyncIterator[Change]):
    """Tells what happens to a member, and what all nodes say of their states, until the former ends.

    Its fields:
        _changes: What happens to the member.
        _pending: What has come and has not been taken.
        _news: Set when something has come, or it is over.
        _known: The latest state of each node, as JSON.
        _reading: Ends the reading of states.
        _ending: What it ends with once nothing is pending; None as long as more may come.
    """

    def __init__(
        self, backend: RendezvousBackend, changes: AsyncIterator[Change], background: Background
    ) -> None:
        self._backend = backend
        self._changes = changes
        self._pending: deque[Change] = deque()
        self._news = anyio.Event()
        self._known: dict[str, bytes] = {}
        self._reading = anyio.CancelScope()
        self._ending: RendezvousError | StopAsyncIteration | None = None
        background.start(self._read_changes)
        background.start(self._read_states)

    async def __anext__(self) -> Change:
        while not self._pending:
            if self._ending is not None:
                raise self._ending.with_traceback(None)
            self._news = anyio.Event()
            await self._news.wait()
        return self._pending.popleft()

    async def _read_changes(self) -> None:
        try:
            async for change in self._changes:
                self._pending.append(change)
                self._news.set()
            self._end(StopAsyncIteration())
        except RendezvousError as error:
            self._end(error)
        self._reading.cancel()

    def _end(self, ending: RendezvousError | StopAsyncIteration) -> None:
        self._ending = self._ending or ending
        self._news.set()

    async def _read_states(self) -> None:
        """Takes in what nodes say, of each the latest that has not been taken."""
        pauses = PAUSES.start()
        with self._reading:
            while self._ending is None:
                try:
                    await self._take_all()
                except RendezvousConnectionError:  # and then the latest state of each node comes first
                    await pauses.sleep()
                except RendezvousError as error:  # there is no such thing here
                    self._end(error)

    async def _take_all(self) -> None:
        async with self._backend.states() as states:
            async for node, state in states:
                self._take(node, state)

    def _take(self, node: str, state: bytes) -> None:
        if self._known.get(node) == state:
            return
        self._known[node] = state
        change = StateChanged(node, decoded(state))
        for at, other in enumerate(self._pending):
            if isinstance(other, StateChanged) and other.node == node:
                self._pending[at] = change
                return
        self._pending.append(change)
        self._news.set()

"""The changes of one round as an asynchronous iterator."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable

from arendezvous.backends.port import RendezvousBackend
from arendezvous.law.state import Cause, NodeView, Phase
from arendezvous.rendezvous.changes import Change, Evicted, at_completion, difference


class ChangeStream(AsyncIterator[Change]):
    """Tells what happens to a member, from the completion of its round to its end.

    Args:
        backend: Where the run is kept.
        node: The member.
        begin: Its view when the round was completed.
        is_current: Tells whether the node is still in that round, by its own doing.
        note: Called with each change, in words and as data, before it is returned.
        blocked: Says in words for how long this node's event loop was blocked; empty if it was not.
    """

    def __init__(
        self,
        backend: RendezvousBackend,
        node: str,
        begin: NodeView,
        is_current: Callable[[], bool],
        note: Callable[[str, Change], None],
        blocked: Callable[[], str],
    ) -> None:
        self._backend = backend
        self._node = node
        self._seen = begin
        self._is_current = is_current
        self._note = note
        self._blocked = blocked
        self._pending = deque(difference(at_completion(begin), begin))
        self._over = begin.closed is not None

    async def __anext__(self) -> Change:
        """Waits for the next change. Cancellation: safe; nothing is lost."""
        while not self._pending:
            if self._over or not self._is_current():
                raise StopAsyncIteration
            view = await self._backend.changed(self._node, self._seen.revision)
            if not self._is_current():
                raise StopAsyncIteration
            self._pending.extend(difference(self._seen, view))
            moved = view.phase is not Phase.MEMBER or view.generation != self._seen.generation
            self._over = moved or view.closed is not None
            self._seen = view
        change = self._pending.popleft()
        if isinstance(change, Evicted) and change.cause is Cause.NO_HEARTBEAT and (why := self._blocked()):
            change = Evicted(change.cause, f"{change.reason}; {why}")
        self._note(str(change), change)
        return change

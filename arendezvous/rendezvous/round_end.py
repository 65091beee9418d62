"""Ends waits within a round when a member of it is lost or has failed, or the round is over.

A wait that is ended so raises `RoundOverError`. Nothing is watched before the first wait of a round begins.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Final

from arendezvous.backends.port import RendezvousBackend
from arendezvous.errors import RendezvousError, RoundOverError
from arendezvous.law.barriers import way_on
from arendezvous.law.state import Cause, NodeView, Phase
from arendezvous.law.words import listed
from arendezvous.net.background import Background
from arendezvous.net.forks import Origin
from arendezvous.rendezvous.changes import Evicted, NodeLeft, NodeLost, at_completion, difference
from arendezvous.stores.port import STORE_TIMEOUT, PrefixStore, Store, Timeout

NAMED: Final = 12  # members that an error names
IN_ORDER: Final = (Cause.FINISHED, Cause.LEFT, Cause.DRAINED)  # who goes so may have written what it had to


class RoundEnd:
    """Watches for the end of one round, from the first wait on.

    Its fields:
        _begin: The member's view when the round was completed.
        _is_current: Tells whether the node is still in that round, by its own doing.
        _background: Where it watches; None: nowhere, as the rendezvous is closed.
        _error: What every wait ends with; None as long as the round goes on.
        _waits: The tasks that wait.
        _watches: Whether it watches.
    """

    def __init__(
        self,
        backend: RendezvousBackend,
        begin: NodeView,
        is_current: Callable[[], bool],
        background: Background | None,
    ) -> None:
        self._backend = backend
        self._begin = begin
        self._is_current = is_current
        self._background = background
        self._origin = Origin("this rendezvous")
        self._error: RoundOverError | None = None
        self._waits: set[asyncio.Task[object]] = set()
        self._watches = False

    @contextmanager
    def wait(self) -> Iterator[None]:
        """Bounds what the task waits for to the round: its end cancels that, as `asyncio.timeout` does."""
        self._origin.check()
        if over := self._error:
            raise over.with_traceback(None)
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - stores are used by tasks
        if not self._watches and self._background is not None:
            self._watches = True
            self._background.start(self._watch)
        asked, cancelled = task.cancelling(), None
        self._waits.add(task)
        try:
            yield
        except asyncio.CancelledError as error:
            cancelled = error
            raise
        finally:
            self._waits.discard(task)
            if self._error is not None and task.uncancel() <= asked and cancelled is not None:
                raise self._error.with_traceback(None) from cancelled

    def end(self) -> None:
        """Takes in that the node has left the round by its own doing."""
        round_ = self._begin.round
        self._over(RoundOverError(f"this node has left round {round_}", round=round_))

    async def _watch(self) -> None:
        view = self._begin
        while self._is_current():
            error = over_error(self._begin, view)
            if error is not None:
                self._over(error)
                return
            try:
                view = await self._backend.changed(view.node, view.revision)
            except RendezvousError:  # out of reach, of which the wait itself tells
                self._watches = False
                return

    def _over(self, error: RoundOverError) -> None:
        if self._error is None:
            self._error = error
            for task in self._waits:
                task.cancel()


def over_error(begin: NodeView, latest: NodeView) -> RoundOverError | None:
    """Builds the error for who waits in a round that is over, or short of a member; None if it is neither."""
    round_, closed = begin.round, latest.closed is not None
    changes = difference(at_completion(begin), latest)
    gone = [
        change
        for change in changes
        if isinstance(change, Evicted | NodeLost)
        or (isinstance(change, NodeLeft) and change.cause not in IN_ORDER)
    ]
    if not gone:
        if latest.phase is Phase.MEMBER and latest.generation == begin.generation:
            return None
        return RoundOverError(f"round {round_} is over; {way_on(closed=closed)}", round=round_, closed=closed)
    departures = {
        begin.node if isinstance(change, Evicted) else change.node: change.reason or change.cause.value
        for change in gone
    }
    said = listed([str(change) for change in gone], NAMED)
    message = f"round {round_} is not whole any more: {said}; {way_on(closed=closed)}"
    return RoundOverError(message, round=round_, departures=departures, closed=closed)


class MembersStore(PrefixStore):
    """The store of one round: what waits in it for other members ends with the round.

    Args:
        prefix: What comes before each key.
        store: The store below.
        end: Of the round.

    Attributes:
        outlive: Whether waits go on when a member is lost or has failed, or the round is over; each of them
            may say so itself. May be set at any time.
    """

    def __init__(self, prefix: str, store: Store, end: RoundEnd) -> None:
        super().__init__(prefix, store)
        self.outlive = False
        self._end = end

    def _bounds(self, outlive: bool | None) -> AbstractContextManager[None]:
        return nullcontext() if (self.outlive if outlive is None else outlive) else self._end.wait()

    async def get(self, key: str, *, timeout: Timeout = STORE_TIMEOUT, outlive: bool | None = None) -> bytes:
        with self._bounds(outlive):
            return await super().get(key, timeout=timeout)

    async def wait(
        self, keys: Sequence[str], timeout: Timeout = STORE_TIMEOUT, *, outlive: bool | None = None
    ) -> None:
        with self._bounds(outlive):
            return await super().wait(keys, timeout)

    async def multi_get(
        self, keys: Sequence[str], *, timeout: Timeout = STORE_TIMEOUT, outlive: bool | None = None
    ) -> list[bytes]:
        with self._bounds(outlive):
            return await super().multi_get(keys, timeout=timeout)

    async def queue_pop(
        self, key: str, block: bool = True, *, timeout: Timeout = STORE_TIMEOUT, outlive: bool | None = None
    ) -> bytes:
        with self._bounds(outlive if block else True):
            return await super().queue_pop(key, block, timeout=timeout)

    async def barrier(
        self, key: str, world_size: int, timeout: Timeout = STORE_TIMEOUT, *, outlive: bool | None = None
    ) -> None:
        with self._bounds(outlive):
            return await super().barrier(key, world_size, timeout)

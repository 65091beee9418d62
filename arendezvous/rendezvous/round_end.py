"""Ends waits within a round when a member of it is lost or has failed, or the round is over.

A wait that is ended so raises `RoundOverError`. Nothing is watched before the first wait of a round begins.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, Self

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

    Args:
        backend: Where the run is kept.
        begin: The member's view when the round was completed.
        is_current: Tells whether the node is still in that round, by its own doing.
        background: Where it watches; None: nowhere, as the rendezvous is closed.

    Its fields:
        _error: What every wait ends with; None as long as the round goes on.
        _waits: The waits.
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
        self._waits: set[RoundWait] = set()
        self._watches = False

    def wait(self) -> RoundWait:
        """Makes a wait, to be entered by the task that waits."""
        return RoundWait(self)

    def end(self) -> None:
        """The node has left the round by its own doing."""
        round_ = self._begin.round
        self._over(RoundOverError(f"this node has left round {round_}", round=round_))

    def begin(self, wait: RoundWait) -> None:
        """A wait begins.

        Raises:
            RoundOverError: The round is over.
            RuntimeError: This is a child of the member's process.
        """
        self._origin.check()
        if self._error is not None:
            raise self._error.with_traceback(None)
        if not self._watches and self._background is not None:
            self._watches = True
            self._background.start(self._watch)
        self._waits.add(wait)

    def finish(self, wait: RoundWait) -> RoundOverError | None:
        """A wait is over; returns what has ended it, if it did not end by itself."""
        self._waits.discard(wait)
        return self._error

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
        self._error = self._error or error
        for wait in self._waits:
            wait.end()


class RoundWait:
    """Bounds what one task waits for to a round: a timer that the end of the round sets off.

    It cancels the task, as `asyncio.timeout` does, and turns that into the error.

    Its fields:
        _end: The end of the round.
        _task: The task.
        _asked: How often the task had been asked to cancel when it began to wait.
        _is_over: Whether the round has ended meanwhile.
    """

    __slots__ = ("_asked", "_end", "_is_over", "_task")

    def __init__(self, end: RoundEnd) -> None:
        self._end = end
        self._is_over = False

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - stores are used by tasks
        self._task, self._asked = task, task.cancelling()
        self._end.begin(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        why = self._end.finish(self)
        if not self._is_over:
            return
        if self._task.uncancel() <= self._asked and kind is asyncio.CancelledError and why is not None:
            raise why.with_traceback(None) from error

    def end(self) -> None:
        """Ends the wait."""
        if not self._is_over:
            self._is_over = True
            self._task.cancel()


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

    async def get(self, key: str, *, timeout: Timeout = STORE_TIMEOUT, outlive: bool | None = None) -> bytes:
        """See `Store.get`; ends with the round unless it is to `outlive` it, and so do all that wait."""
        if self.outlive if outlive is None else outlive:
            return await super().get(key, timeout=timeout)
        with self._end.wait():
            return await super().get(key, timeout=timeout)

    async def wait(
        self, keys: Sequence[str], timeout: Timeout = STORE_TIMEOUT, *, outlive: bool | None = None
    ) -> None:
        """See `Store.wait`, and `get`."""
        if self.outlive if outlive is None else outlive:
            return await super().wait(keys, timeout)
        with self._end.wait():
            return await super().wait(keys, timeout)

    async def multi_get(
        self, keys: Sequence[str], *, timeout: Timeout = STORE_TIMEOUT, outlive: bool | None = None
    ) -> list[bytes]:
        """See `Store.multi_get`, and `get`."""
        if self.outlive if outlive is None else outlive:
            return await super().multi_get(keys, timeout=timeout)
        with self._end.wait():
            return await super().multi_get(keys, timeout=timeout)

    async def queue_pop(
        self, key: str, block: bool = True, *, timeout: Timeout = STORE_TIMEOUT, outlive: bool | None = None
    ) -> bytes:
        """See `Store.queue_pop`, and `get`."""
        if not block or (self.outlive if outlive is None else outlive):
            return await super().queue_pop(key, block, timeout=timeout)
        with self._end.wait():
            return await super().queue_pop(key, block, timeout=timeout)

    async def barrier(
        self, key: str, world_size: int, timeout: Timeout = STORE_TIMEOUT, *, outlive: bool | None = None
    ) -> None:
        """See `Store.barrier`, and `get`."""
        if self.outlive if outlive is None else outlive:
            return await super().barrier(key, world_size, timeout)
        with self._end.wait():
            return await super().barrier(key, world_size, timeout)

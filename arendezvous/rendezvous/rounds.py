"""Rounds one after the other: the loop that everybody writes."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Any, Self, TypeAlias

import anyio

from arendezvous import errors
from arendezvous.law.state import Cause
from arendezvous.rendezvous.changes import Change, Evicted
from arendezvous.rendezvous.handler import AsyncRendezvousHandler, RendezvousInfo

Until: TypeAlias = Callable[[Change], bool]
"""Tells whether a change ends a round."""
Watch: TypeAlias = Callable[[AsyncIterator[Change]], Coroutine[Any, Any, None]]
"""Follows the changes of a round."""


class RoundScope:
    """Bounds work to a round: cancelled when that ends, and a `RoundOverError` in it ends the round.

    So it does not matter which is first, the news that the round is over, or a barrier or a wait in the store
    that ends because of it. The errors of tasks in a group count as well.

    Its fields:
        _end: Ends the round.
        _inner: Cancels the work.
        _bounds: What the block is in, once it was entered.
    """

    _bounds: AbstractContextManager[None]

    def __init__(self, end: Callable[[], None]) -> None:
        self._end = end
        self._inner = anyio.CancelScope()

    @property
    def cancel_called(self) -> bool:
        """Whether the round has ended, or `cancel` was called."""
        return self._inner.cancel_called

    @property
    def cancelled_caught(self) -> bool:
        """Whether the work was cancelled by that."""
        return self._inner.cancelled_caught

    def cancel(self) -> None:
        """Cancels the work."""
        self._inner.cancel()

    def __enter__(self) -> Self:
        self._bounds = self._bound()
        self._bounds.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        return bool(self._bounds.__exit__(kind, error, trace))

    @contextmanager
    def _bound(self) -> Iterator[None]:
        with self._inner:
            try:
                yield
            except BaseException as error:
                if not _says_over(error):
                    raise
                self._end()


def _says_over(error: BaseException) -> bool:
    """Tells whether an error says that the round is over, and nothing else."""
    if isinstance(error, BaseExceptionGroup):
        return error.split(errors.RoundOverError)[1] is None
    return isinstance(error, errors.RoundOverError)


class Round(RendezvousInfo):
    """One round, and what ends it; otherwise the information on it that `next_rendezvous` returns.

    It pickles as that information.

    Attributes:
        info: The information alone.
        scope: What is done in ``with round.scope:`` is cancelled when the round ends; and if a barrier or a
            wait in the store says so by `RoundOverError`, the block ends likewise. It can be entered once.
        changes: What has happened to the round so far; the last of them ended it, if it has ended.

    Its other fields:
        _ended: Set when a change has ended it.
    """

    info: RendezvousInfo
    scope: RoundScope
    changes: list[Change]
    _ended: anyio.Event

    def __init__(self, info: RendezvousInfo) -> None:
        own = {"info": info, "scope": RoundScope(self.end), "changes": [], "_ended": anyio.Event()}
        vars(self).update(vars(info), **own)

    def __repr__(self) -> str:
        return f"<Round {self.round}: rank {self.rank} of {self.world_size}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return (copy.copy, (self.info,))

    @property
    def has_ended(self) -> bool:
        """Whether a change has ended it."""
        return self._ended.is_set()

    async def over(self) -> tuple[Change, ...]:
        """Waits until a change has ended the round; returns all that has happened. Cancellation: safe."""
        await self._ended.wait()
        return tuple(self.changes)

    def end(self) -> None:
        """Ends it, and cancels what is done in its scope."""
        self._ended.set()
        self.scope.cancel()


class RoundLoop(AsyncIterator[Round]):
    """Joins one round after the other, and watches each while it is worked on.

    Args:
        handler: The node's.
        join: What `next_rendezvous` takes.
        watched: Has the present round watched in the background: calls a function with its changes.
        until: Tells which changes end a round.

    Its fields:
        _round: The present round; None before the first.
        _is_over: Whether there are no more.
    """

    def __init__(
        self,
        handler: AsyncRendezvousHandler,
        join: Mapping[str, Any],
        watched: Callable[[Watch], None],
        until: Until,
    ) -> None:
        self._handler = handler
        self._join = join
        self._watched = watched
        self._until = until
        self._round: Round | None = None
        self._is_over = False

    async def __anext__(self) -> Round:
        """Joins the next round; if the work in the present one ended by itself, the node leaves instead."""
        if self._is_over:
            raise StopAsyncIteration
        if self._round is not None and not self._round.has_ended:
            self._is_over = True
            await self._handler.leave("its work is done", cause=Cause.FINISHED)
            raise StopAsyncIteration
        try:
            info = await self._handler.next_rendezvous(**self._join)
        except (errors.RendezvousClosedError, errors.RendezvousGracefulExitError):
            self._is_over = True
            raise StopAsyncIteration from None
        round_ = self._round = Round(info)
        self._watched(lambda changes: self._watch(round_, changes))
        return round_

    async def _watch(self, round_: Round, changes: AsyncIterator[Change]) -> None:
        """Follows a round until it ends, or the node goes on by itself."""
        try:
            async for change in changes:
                if self._round is not round_:
                    return
                round_.changes.append(change)
                if self._until(change):
                    round_.end()
                    return
        except errors.RendezvousError as error:  # away for so long that the node may have been evicted
            round_.changes.append(Evicted(Cause.CONNECTION_LOST, error.message))
            round_.end()

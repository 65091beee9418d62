"""Background work that belongs to nobody's scope: the one place of the package that starts tasks.

A task group that an object enters when it is opened would belong to the task that opened it: objects would
have to be closed by that task, in the reverse order, under the same scopes. So an object that works in the
background has a `Background`, whose tasks are nobody's children. It may be opened and closed anywhere; an
error in its work reaches its owner, which fails those who wait for it, and never the task of its user.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar, TypeVarTuple

import anyio

from arendezvous.errors import RendezvousError
from arendezvous.net.forks import Origin

logger = logging.getLogger(__name__)

CLOSE_TIMEOUT: Final = 5.0  # seconds that cancelled work may take to clean up before it is left behind

T = TypeVar("T")
Args = TypeVarTuple("Args")


def require_asyncio(what: str) -> None:
    """Raises `RuntimeError` where no event loop of asyncio runs, such as under trio; `what` is used there."""
    try:
        asyncio.get_running_loop()
    except RuntimeError as error:
        raise RuntimeError(
            f"{what} needs a running event loop of asyncio, and there is none here; use asyncio.run(), or"
            " anyio.run() with the backend 'asyncio' (trio is not supported)"
        ) from error


def settle(future: asyncio.Future[T], outcome: T | Exception) -> None:
    """Ends the wait for `future`, with a result or an error, unless it is over already."""
    if future.done():
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
        future.exception()  # looked at: no complaint if whoever waits is cancelled before it sees it
    else:
        future.set_result(outcome)


async def finish(function: Callable[[*Args], Coroutine[Any, Any, T]], *args: *Args) -> T:
    """Calls `function` in a task of its own, and returns what that returns; for clean-up of bounded time.

    Cancellation: `function` is not cancelled, whether it is a scope or the task that is; the call raises once
    it has ended. Only the end of the event loop, which cancels all tasks, breaks it off.
    """
    task = asyncio.get_running_loop().create_task(function(*args))
    try:
        await _outlast({task}, math.inf)
    except asyncio.CancelledError:
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.warning("clean-up failed, and its caller was cancelled meanwhile", exc_info=error)
        raise
    return task.result()


async def _outlast(tasks: set[asyncio.Task[Any]], seconds: float) -> bool:
    """Waits for `tasks`, and puts off being cancelled until then; returns whether all of them have ended."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    cancelled: asyncio.CancelledError | None = None
    with anyio.CancelScope(shield=True):
        while tasks and (left := deadline - loop.time()) > 0:
            try:
                _, tasks = await asyncio.wait(tasks, timeout=None if math.isinf(left) else left)
            except asyncio.CancelledError as error:
                cancelled = error
                tasks = {task for task in tasks if not task.done()}
    if cancelled is not None:
        raise cancelled
    return not tasks


class Background:
    """The background work of one object: started at any time, ended together.

    Not safe for use from several threads. An error in any of the work ends all of it.

    Args:
        name: Whose work it is, as the log and errors call it.
        on_failure: Is called, in the loop, with `error` when that has ended the work; fails whoever waits for
            the owner. Not called any more once the work was ended on purpose.

    Attributes:
        error: What ended the work, chained to its cause; None as long as nothing went wrong.
        origin: The process that may use the owner, for those whose work is a rendezvous.

    Its fields:
        _work: The tasks that have not ended, each with the scope that cancels it; None before it has begun.
        _over: Whether the work was ended, or failed; from then on nothing is started.
    """

    def __init__(self, name: str, on_failure: Callable[[RendezvousError], None]) -> None:
        self.name = name
        self.error: RendezvousError | None = None
        self.origin = Origin("this rendezvous")
        self._on_failure = on_failure
        self._work: dict[asyncio.Task[None], anyio.CancelScope | None] = {}
        self._over = False

    def start(self, function: Callable[[*Args], Coroutine[Any, Any, object]], *args: *Args) -> None:
        """Starts `function` as a task of its own; from a task or a callback; not once all is over."""
        if not self._over:
            task = asyncio.get_running_loop().create_task(self._run(function, *args), name=self.name)
            self._work[task] = None
            task.add_done_callback(self._forget)

    async def close(self) -> None:
        """Cancels all work and waits until it has cleaned up, for `CLOSE_TIMEOUT` seconds at most.

        May be called again, from any task but those of the work (they call `cancel`). Cancellation: the
        call raises once the work has ended.
        """
        self.cancel()
        if self._work and not await _outlast(set(self._work), CLOSE_TIMEOUT):
            logger.warning("%s: work in the background has not ended within %g s", self.name, CLOSE_TIMEOUT)

    def cancel(self) -> None:
        """Cancels all work without waiting for its clean-up; nothing is started any more."""
        self._over = True
        for scope in self._work.values():
            if scope is not None:
                scope.cancel()

    async def _run(self, function: Callable[[*Args], Coroutine[Any, Any, object]], *args: *Args) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - `start` made it
        try:
            with anyio.CancelScope() as scope:  # its cancellation reaches every await, and a task's only one
                self._work[task] = scope
                if self._over:  # `function` begins all the same, so that it cleans up what it was given
                    scope.cancel()
                await function(*args)
        except Exception as error:
            logger.exception("%s: work in the background failed", self.name)
            while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
                error = error.exceptions[0]
            self._fail(error)

    def _forget(self, task: asyncio.Task[None]) -> None:
        del self._work[task]
        if not task.cancelled():
            task.exception()  # looked at, no complaint: an interrupt, which the loop itself raises
        elif not self._over:  # as when the loop ends; what it has no task for is not to start one then
            self._fail(asyncio.CancelledError("somebody else has cancelled it"))

    def _fail(self, cause: BaseException) -> None:
        if self.error is not None:
            return
        if isinstance(cause, RendezvousError):
            self.error = cause
        else:
            said = f"{self.name}: work in the background failed, and it cannot go on: {cause!r}; open it anew"
            self.error = RendezvousError(said)
            self.error.__cause__ = cause
        if not self._over:
            self.cancel()
            self._on_failure(self.error)

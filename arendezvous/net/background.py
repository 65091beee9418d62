"""Background work that belongs to nobody's scope: the one place of the package that starts tasks.

A task group that an object enters when it is opened would belong to the task that opened it: objects would have
to be closed by that task, in the reverse order, under the same scopes. So an object that works in the background
has a `Background`, whose own task hosts the task group. It may be opened and closed anywhere; an error in its
work reaches its owner, which fails those who wait for it, and never the task of its user.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, TypeVarTuple, Unpack

import anyio
import anyio.abc

logger = logging.getLogger(__name__)

CLOSE_TIMEOUT: Final = (
    5.0  # seconds that work which was cancelled may take to clean up before it is left behind
)

Args = TypeVarTuple("Args")


def require_asyncio(what: str) -> None:
    """Refuses to go on where no event loop of asyncio runs.

    Args:
        what: What is used there, as its user calls it.

    Raises:
        RuntimeError: It was called from outside of an event loop, or under another library's, such as trio's.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError as error:
        raise RuntimeError(
            f"{what} needs a running event loop of asyncio, and there is none here; run it by asyncio.run(), or by "
            "anyio.run() with the backend 'asyncio' (trio is not supported)"
        ) from error


class Background:
    """The background work of one object: started at any time, ended together.

    Not safe for use from several threads. An error in any of the work ends all of it.

    Args:
        name: Whose work it is, as the log and errors call it.
        on_failure: Is called, in the loop, with the error that ended the work; fails whoever waits for the owner.

    Attributes:
        error: What ended the work; None as long as nothing went wrong.

    Its fields:
        _host: The task that hosts the task group; written by `start`; None before any work was started.
        _group: The group; written by the host alone; None before it runs and after it ended.
        _early: What was started before the host ran for the first time.
        _closed: Whether `close` was called or the work failed; from then on nothing is started.
    """

    def __init__(self, name: str, on_failure: Callable[[BaseException], None]) -> None:
        self.name = name
        self.error: BaseException | None = None
        self._on_failure = on_failure
        self._host: asyncio.Task[None] | None = None
        self._group: anyio.abc.TaskGroup | None = None
        self._early: list[Callable[[], Awaitable[Any]]] = []
        self._closed = False

    def start(self, function: Callable[[Unpack[Args]], Awaitable[Any]], *args: Unpack[Args]) -> None:
        """Starts `function` as a task of its own, from a task or a callback of the loop; not once it is closed."""
        if self._closed:
            return
        if self._group is not None:
            self._group.start_soon(function, *args)
            return
        self._early.append(partial(function, *args))
        if self._host is None:
            self._host = asyncio.get_running_loop().create_task(
                self._hold(), name=f"background of {self.name}"
            )

    async def close(self) -> None:
        """Cancels all work and waits until it has cleaned up, for `CLOSE_TIMEOUT` seconds at most.

        May be called again, from any task but those of the work itself (they call `cancel`). Cancellation: the scope of the caller waits for the clean-up; a task
        that is cancelled otherwise goes on at once, and the work ends by itself.
        """
        self.cancel()
        host = self._host
        if host is None or host.done():
            return
        with anyio.CancelScope(shield=True):
            _, late = await asyncio.wait([host], timeout=CLOSE_TIMEOUT)
        if late:
            logger.warning("%s: work in the background has not ended within %g s", self.name, CLOSE_TIMEOUT)

    def cancel(self) -> None:
        """Cancels all work without waiting for its clean-up; nothing is started any more."""
        self._closed = True
        if self._group is not None:
            self._group.cancel_scope.cancel()

    async def _hold(self) -> None:
        try:
            async with anyio.create_task_group() as group:
                if self._closed:
                    return
                self._group = group
                for work in self._early:
                    group.start_soon(work)
                self._early.clear()
                await anyio.sleep_forever()
        except Exception as error:  # noqa: BLE001 - it is its owner's, and whoever waits for the owner is told
            self._fail(error)
        finally:
            self._closed = True
            self._group = None

    def _fail(self, error: BaseException) -> None:
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        self.error = error
        logger.error("%s: work in the background failed", self.name, exc_info=error)
        self._on_failure(error)

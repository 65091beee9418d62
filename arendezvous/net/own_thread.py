"""An asynchronous context manager that is held open on an event loop in a thread of its own.

What serves others must not depend on the loop of a program that may block it: with `time.sleep`, by waiting
for a subprocess, by computing for seconds.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Generic, TypeVar, TypeVarTuple

from arendezvous.errors import RendezvousError
from arendezvous.net.background import CLOSE_TIMEOUT, finish, require_asyncio

logger = logging.getLogger(__name__)

T = TypeVar("T")
Args = TypeVarTuple("Args")


class SoleLoop(asyncio.AbstractEventLoop):
    """Marks the event loops beside which no other can run, as their time is not that of other threads.

    What would otherwise have a thread of its own stays in such a loop.
    """


def may_use_threads() -> bool:
    """Tells whether there may be another loop, in a thread of its own, beside the running one."""
    return not isinstance(asyncio.get_running_loop(), SoleLoop)


@asynccontextmanager
async def in_own_thread(make: Callable[[], AbstractAsyncContextManager[T]], name: str) -> AsyncIterator[T]:
    """Holds a context manager open on a loop in a thread of its own, named `name`, while the block runs.

    What it yields lives on that loop: only what may be used from any thread may be used in the block. Should
    the loop be ended by an error that no task catches (a `SystemExit`, say), the context is left all the
    same, and the log says why.

    Raises, on entering, what entering the context raises, and:
        RendezvousError: This process cannot have another loop, or another thread.

    Cancellation: safe. If leaving the block is cancelled, what leaving the context waits for is, too, and the
    call raises once that has ended, or after `CLOSE_TIMEOUT` seconds. In a process that was forked meanwhile,
    which has no such thread, leaving the block does nothing.
    """
    require_asyncio(name)
    thread = _OwnThread(make, name)
    value = await thread.start()
    try:
        yield value
    finally:
        await thread.end()


class _OwnThread(Generic[T]):
    """The thread of `in_own_thread`, seen from its owner's loop.

    Its fields:
        _pid: The process whose thread it is.
        _owner: The loop of who uses it.
        _loop: The loop in the thread; made by the owner, so that it can be told to end at any moment.
        _task: What holds the context open, in the thread; None before it runs.
        _over: Set, in the thread, when the context is to be left.
        _cancelled: Whether leaving it was cancelled.
        _ready: What the context manager has yielded, or why it has not; in the owner's loop.
        _ended: Done when everything in the thread has ended; in the owner's loop.
    """

    _loop: asyncio.AbstractEventLoop

    def __init__(self, make: Callable[[], AbstractAsyncContextManager[T]], name: str) -> None:
        self._make = make
        self._name = name
        self._pid = os.getpid()
        self._owner = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None
        self._over = asyncio.Event()
        self._cancelled = False
        self._ready: asyncio.Future[T] = self._owner.create_future()
        self._ended: asyncio.Future[None] = self._owner.create_future()

    async def start(self) -> T:
        """Starts the thread, and returns what the context manager yields there."""
        try:
            self._loop = asyncio.new_event_loop()
            try:
                threading.Thread(target=self._run, name=self._name, daemon=True).start()
            except RuntimeError:
                self._loop.close()
                raise
        except (OSError, RuntimeError) as error:
            said = f"{self._name} cannot have a thread of its own: {error}; raise the limits of this process"
            raise RendezvousError(said) from error
        await self._until(self._ready)
        return self._ready.result()

    async def end(self) -> None:
        """Leaves the context, and waits until all in the thread has ended."""
        if os.getpid() == self._pid:
            _call(self._loop, self._over.set)
            await self._until(self._ended)

    async def _until(self, future: asyncio.Future[Any]) -> None:
        try:
            await asyncio.wait({future})
        except asyncio.CancelledError:
            self._cancelled = True
            _call(self._loop, self._cancel)
            await finish(self._outlast)
            raise

    async def _outlast(self) -> None:
        ended, _ = await asyncio.wait({self._ended}, timeout=CLOSE_TIMEOUT)
        if not ended:
            logger.warning("%s: its thread has not ended within %g s", self._name, CLOSE_TIMEOUT)

    def _set_ended(self, error: BaseException | None) -> None:
        self._ended.set_result(None)
        if self._ready.done():
            if error is not None and not self._cancelled:
                logger.error("%s: its thread has failed", self._name, exc_info=error)
            return
        if not isinstance(error, Exception):  # an interrupt there is none here
            cause, error = error, RendezvousError(f"{self._name}: its thread ended before it served")
            error.__cause__ = cause
        self._ready.set_exception(error)
        self._ready.exception()  # looked at, even if the start was cancelled

    # In the thread

    def _run(self) -> None:
        failure: BaseException | None = None
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._hold())
        except BaseException as error:  # noqa: BLE001 - its owner is told
            failure = error
        _call(self._owner, self._set_ended, failure)

    async def _hold(self) -> None:
        self._task = asyncio.current_task()
        if self._over.is_set():
            return
        async with self._make() as value:
            if _call(self._owner, self._ready.set_result, value):
                await self._over.wait()

    def _cancel(self) -> None:
        self._over.set()
        if self._task is not None:
            self._task.cancel()


def _call(loop: asyncio.AbstractEventLoop, function: Callable[[*Args], object], *args: *Args) -> bool:
    """Has a function called in another thread's loop; returns whether that loop has not ended."""
    try:
        loop.call_soon_threadsafe(function, *args)
    except RuntimeError:  # it is closed
        return False
    return True

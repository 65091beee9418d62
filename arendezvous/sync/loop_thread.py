"""One event loop in one background thread, for synchronous callers: the only thread of arendezvous.

It is started when it is first needed and ends with the process. After a ``fork`` the child gets its own.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from functools import partial
from typing import Final, Generic, TypeVar, TypeVarTuple, Unpack

import anyio
from anyio.from_thread import BlockingPortal

logger = logging.getLogger(__name__)

T = TypeVar("T")
Args = TypeVarTuple("Args")

UNWIND_TIMEOUT: Final = 5.0  # what an interrupted call may take to clean up


class _LoopThread:
    """The thread, its portal, and what is to be closed before it ends."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._portal: BlockingPortal | None = None
        self._thread: threading.Thread | None = None
        self._closers: dict[int, Callable[[], None]] = {}

    def portal(self) -> BlockingPortal:
        """Returns the way into the loop; starts the thread if there is none."""
        with self._lock:
            if self._portal is None:
                ready: Future[BlockingPortal] = Future()
                self._thread = threading.Thread(
                    target=_run_loop, args=(ready,), name="arendezvous", daemon=True
                )
                self._thread.start()
                self._portal = ready.result()
            return self._portal

    def forget(self) -> None:
        """In the child of a fork: the thread does not exist there, so everything starts anew."""
        self._reset()

    def at_exit(self, key: object, closer: Callable[[], None] | None) -> None:
        """Has `closer` called before the thread ends; None takes that back."""
        if closer is None:
            self._closers.pop(id(key), None)
        else:
            self._closers[id(key)] = closer

    def stop(self) -> None:
        """Closes what is open, and ends the thread."""
        while self._closers:
            _, closer = self._closers.popitem()
            try:
                closer()
            except Exception:  # the others are to be closed all the same
                logger.warning("closing a rendezvous at the end of the process failed", exc_info=True)
        portal, self._portal = self._portal, None
        if portal is not None and self._thread is not None:
            portal.call(portal.stop, True)
            self._thread.join(UNWIND_TIMEOUT)


def _run_loop(ready: Future[BlockingPortal]) -> None:
    async def serve() -> None:
        async with BlockingPortal() as portal:
            ready.set_result(portal)
            await portal.sleep_until_stopped()

    try:
        anyio.run(serve)
    except BaseException as error:
        if ready.done():
            raise
        ready.set_exception(error)  # no descriptors left for a loop, say: whoever waits for it is told


_thread: Final = _LoopThread()
atexit.register(_thread.stop)
os.register_at_fork(after_in_child=_thread.forget)


def at_exit(key: object, closer: Callable[[], None] | None) -> None:
    """Has `closer` called, under `key`, when the process ends; None takes that back."""
    _thread.at_exit(key, closer)


def start(function: Callable[[Unpack[Args]], Awaitable[T]], *args: *Args) -> Future[T]:
    """Starts `function` in the loop, and returns the future of its result; cancelling it cancels the call.

    Raises:
        RuntimeError: It was called from inside a running event loop, which must not be blocked.
    """
    _refuse_running_loop()
    return _thread.portal().start_task_soon(function, *args)


def _refuse_running_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError(
        "arendezvous.sync.handler was called from inside a running event loop, which it would block; "
        "use the asynchronous API there: 'async with arendezvous.open_rendezvous(...)'"
    )


class _Call(Generic[T]):
    """A call in the loop that its caller, in another thread, can abandon at any moment, even too early."""

    def __init__(self, function: Callable[[], Awaitable[T]]) -> None:
        self._function = function
        self._scope: anyio.CancelScope | None = None
        self._abandoned = False
        self.finished = threading.Event()

    async def run(self) -> T:
        try:
            with anyio.CancelScope() as scope:
                self._scope = scope
                if self._abandoned:
                    scope.cancel()
                return await self._function()
        finally:
            self.finished.set()
        raise InterruptedError("the caller was interrupted")  # nobody sees this

    def abandon(self) -> None:
        """Cancels the call, and waits until it has cleaned up."""
        self._abandoned = True
        if self._scope is not None:
            _thread.portal().start_task_soon(self._scope.cancel)
        self.finished.wait(UNWIND_TIMEOUT)


def run(function: Callable[[Unpack[Args]], Awaitable[T]], *args: *Args) -> T:
    """Calls `function` in the loop and waits for its result.

    An exception in the waiting thread (Ctrl-C, or whatever a signal handler raises) cancels the call, waits
    until it has cleaned up, and goes on.

    Raises:
        RuntimeError: See `start`.
    """
    _refuse_running_loop()
    call = _Call(partial(function, *args))
    try:
        return start(call.run).result()
    except BaseException:
        if not call.finished.is_set():
            call.abandon()
        raise

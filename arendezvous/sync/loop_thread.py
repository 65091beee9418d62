"""One event loop in one background thread, for synchronous callers.

It is started when it is first needed and ends with the process. After a ``fork`` the child gets its own, and
so does a process whose loop has ended by an error. What was opened in one loop cannot be used in another, so
each object of `arendezvous.sync` holds the `LoopThread` that it belongs to, and says why it is gone.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import sys
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final, Generic, TypeVar, TypeVarTuple, cast

import anyio

from arendezvous.net.background import Background

logger = logging.getLogger(__name__)

T = TypeVar("T")
Args = TypeVarTuple("Args")

UNWIND_TIMEOUT: Final = 5.0  # seconds that an interrupt waits for the call to clean up
_BROKEN: Final = "un-acquired lock"  # is said after an interrupt in the steps of a lock


class _Outcome(Generic[T]):
    """Holds what comes of something in another thread, for a thread that may be interrupted while it waits.

    A `Future` has a lock that both threads take: an interrupt between two steps of the one that waits may
    leave it taken, and the loop would wait for it for ever. Here each one that waits has a lock of its own.

    Its fields:
        _came: The value, or the error; the first one counts. Empty until it comes.
        _waiting: The locks of those who wait; each is released when it has come.
    """

    def __init__(self) -> None:
        self._came: list[tuple[T | None, BaseException | None]] = []
        self._waiting: list[threading.Lock] = []

    def done(self) -> bool:
        """Tells whether it has come."""
        return bool(self._came)

    def settle(self, value: T | None, error: BaseException | None = None) -> None:
        """Takes what has come, unless something has before."""
        self._came.append((value, error))
        for lock in tuple(self._waiting):
            with suppress(RuntimeError):  # it was released before
                lock.release()

    def wait(self, seconds: float = -1) -> None:
        """Waits until it has come, for so many seconds; -1: for ever. Raises `TimeoutError`."""
        if self._came:
            return
        lock = threading.Lock()
        lock.acquire()
        self._waiting.append(lock)
        if not self._came and not lock.acquire(timeout=seconds) and not self._came:
            raise TimeoutError

    def result(self) -> T:
        """Waits for the value, and returns it; raises the error if that is what came."""
        self.wait()
        value, error = self._came[0]
        if error is not None:
            raise error
        return cast(T, value)


class _Call(Generic[T]):
    """A call in the loop that its caller, in another thread, can abandon at any moment, even too early.

    Its fields:
        owner: The object whose call it is; its next one begins when this one has ended.
        result: What came of it; done once the function has cleaned up.
        abandoned: Whether its caller was interrupted.
        _function: What is called; None once it may not begin any more.
        _scope: Cancels the function; None before it has begun.
    """

    def __init__(self, owner: object, function: Callable[[], Awaitable[T]]) -> None:
        self.owner = owner
        self.result = _Outcome[T]()
        self.abandoned = False
        self._function: Callable[[], Awaitable[T]] | None = function
        self._scope: anyio.CancelScope | None = None

    async def run(self) -> None:
        """Calls the function; whatever it raises is its caller's, and not the loop's, which would end."""
        function, self._function = self._function, None
        if function is None:
            return
        with anyio.CancelScope() as self._scope:
            try:
                self.result.settle(await function())
            except asyncio.CancelledError:
                raise
            except BaseException as error:  # noqa: BLE001 - see above
                self.result.settle(None, error)
        self.result.settle(None, InterruptedError("the caller was interrupted"))

    def cancel(self) -> None:
        """Cancels the call, in the loop; one that has not begun never will."""
        if self._scope is not None:
            self._scope.cancel()
        elif self._function is not None:
            self._function = None
            self.result.settle(None, InterruptedError("the caller was interrupted before the call began"))


class LoopThread:
    """An event loop in a thread of its own, which starts when it is first used; to be used from all threads.

    There are no locks around what callers do: a signal handler or a finalizer may call at any point of
    another call in the same thread.

    Its fields:
        _pid: The process whose thread it is.
        _begun: The loop and what works in it, once it runs; or why it could not be made.
        _claimed: Taken by the thread that serves the loop: whoever is interrupted while starting one may
            leave two, and the second ends at once.
        _thread: That thread; None before it runs.
        _ended: Why the loop ended; None while it does not. From then on no call begins.
        _calls: The calls that have not ended.
        _closers: What is to be closed when the process ends, by the id of its owner.
    """

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._begun = _Outcome[tuple[asyncio.AbstractEventLoop, Background]]()
        self._claimed = threading.Lock()
        self._thread: threading.Thread | None = None
        self._ended: BaseException | None = None
        self._calls: set[_Call[Any]] = set()
        self._closers: dict[int, Callable[[], Awaitable[object]]] = {}

    @property
    def has_ended(self) -> bool:
        """Whether nothing can be called here any more: the loop is over, or its process another one."""
        return self._ended is not None or self._pid != os.getpid()

    @property
    def has_failed(self) -> bool:
        """Whether its loop has ended though its process goes on."""
        return self._ended is not None and self._pid == os.getpid()

    def run(self, owner: object, function: Callable[[*Args], Awaitable[T]], *args: *Args) -> T:
        """Calls `function` in the loop for `owner`, and waits for its result.

        An exception in the waiting thread (Ctrl-C, or whatever a signal handler raises) cancels the call,
        waits `UNWIND_TIMEOUT` seconds at most until it has cleaned up, and goes on. Calls of the owner that
        were interrupted end before this one begins.

        Raises:
            RuntimeError: It was called from inside a running event loop, which must not be blocked; or the
                loop has ended, or is that of the process that forked.
        """
        _refuse_running_loop()
        if _over:
            raise RuntimeError(
                "this process is ending, and arendezvous.sync has been closed: nothing can be called any more"
            )
        try:
            return self._run(owner, partial(function, *args))
        except RuntimeError as error:
            interrupt = error.__context__
            if interrupt is not None and str(error).endswith(_BROKEN):
                raise interrupt from None
            raise

    def _run(self, owner: object, function: Callable[[], Awaitable[T]]) -> T:
        for before in tuple(self._calls):
            if before.abandoned and (before.owner is owner or before.result.done()):
                before.result.wait()
                self._calls.discard(before)
        call = _Call(owner, function)
        try:
            loop, background = self._running()
            self._calls.add(call)
            self._hand_over(loop, background.start, call.run)
            if self._ended is not None:  # perhaps before it saw this call
                call.result.settle(None, self._error())
            return call.result.result()
        except BaseException:
            if not call.result.done() and call in self._calls:
                self._abandon(call)
            raise
        finally:
            if call.result.done():
                self._calls.discard(call)

    def start(self, function: Callable[[*Args], Awaitable[object]], *args: *Args) -> None:
        """Has `function` run in the loop, and waits for nothing; what it raises is logged."""
        loop, background = self._running()
        self._hand_over(loop, background.start, _logged, partial(function, *args))

    def at_exit(self, owner: object, closer: Callable[[], Awaitable[object]] | None) -> None:
        """Has `closer` awaited, in the loop, before the process ends; None takes that back."""
        if closer is None:
            self._closers.pop(id(owner), None)
        else:
            self._closers[id(owner)] = closer

    def stop(self) -> None:
        """Closes what is open, all at the same time, and ends the loop. May be called again."""
        if self.has_ended or not self._begun.done():
            return
        try:
            self._run(self, self._close_all)
        finally:
            loop, background = self._begun.result()
            self._end(RuntimeError("the process is ending"))
            self._hand_over(loop, background.cancel)
            if self._thread is not None:
                self._thread.join(UNWIND_TIMEOUT)

    async def _close_all(self) -> None:
        async with anyio.create_task_group() as tasks:
            for closer in tuple(self._closers.values()):
                tasks.start_soon(_logged, closer)

    def _running(self) -> tuple[asyncio.AbstractEventLoop, Background]:
        """Returns the loop; starts the thread if there is none."""
        if self.has_ended:
            raise self._error()
        if not self._begun.done():
            _arrange_exit()
            threading.Thread(target=self._serve, name="arendezvous", daemon=True).start()
        return self._begun.result()

    def _error(self) -> RuntimeError:
        if self._pid != os.getpid():
            return RuntimeError(
                "this rendezvous belongs to the process that forked; open one of its own here"
            )
        said = f"the event loop in which this was opened has ended: {self._ended!r}; open another one"
        error = RuntimeError(said)
        error.__cause__ = self._ended
        return error

    def _hand_over(
        self, loop: asyncio.AbstractEventLoop, function: Callable[..., object], *args: object
    ) -> None:
        try:
            loop.call_soon_threadsafe(function, *args)
        except RuntimeError as error:  # it is closed
            self._end(error)

    def _abandon(self, call: _Call[Any]) -> None:
        """Cancels the call, and waits until it has cleaned up; if that is long, the next call does."""
        call.abandoned = True
        self._hand_over(self._begun.result()[0], call.cancel)
        try:
            call.result.wait(UNWIND_TIMEOUT)
        except TimeoutError:
            logger.warning("a call that was interrupted has not ended within %g s", UNWIND_TIMEOUT)

    def _serve(self) -> None:
        if not self._claimed.acquire(blocking=False):
            return
        self._thread = threading.current_thread()
        try:
            anyio.run(self._work)
        except BaseException as error:  # noqa: BLE001 - whoever calls is told, and gets another loop
            self._end(error)
            self._begun.settle(None, error)  # if it has not begun: no descriptors left for a loop, say
        else:
            self._end(RuntimeError("it was stopped"))

    async def _work(self) -> None:
        over = asyncio.Event()
        background = Background("arendezvous.sync", lambda error: over.set())
        self._begun.settle((asyncio.get_running_loop(), background))
        background.start(_until_cancelled, over)
        await over.wait()
        await background.close()
        if background.error is not None:
            raise background.error

    def _end(self, error: BaseException) -> None:
        """Sees to it that nothing is called here from now on; whoever waits is told why."""
        if self._ended is None:
            self._ended = error
        for call in tuple(self._calls):
            call.result.settle(None, self._error())
            self._calls.discard(call)


async def _until_cancelled(over: asyncio.Event) -> None:
    try:
        await anyio.sleep_forever()
    finally:
        over.set()


async def _logged(function: Callable[[], Awaitable[object]]) -> None:
    try:
        await function()
    except Exception:  # the others go on all the same
        logger.exception("%s failed", function)


def _refuse_running_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError(
        "arendezvous.sync was called from inside a running event loop, which it would block; "
        "use the asynchronous API there: 'async with arendezvous.open_rendezvous(...)'"
    )


_current = LoopThread()
_over = False


def loop_thread() -> LoopThread:
    """Returns the loop of this process; a new one, in place of one that has ended."""
    global _current  # noqa: PLW0603 - the loop belongs to the process, and so does this
    if _current.has_ended and not _over:
        _current = LoopThread()
    return _current


def _arrange_exit() -> None:
    """Sees to it that all is closed when this process ends, the child of ``multiprocessing`` included.

    That ends without ``atexit`` before Python 3.14, but not without the finalizers of ``multiprocessing``.
    """
    atexit.unregister(_stop)
    atexit.register(_stop)
    process, util = (sys.modules.get(f"multiprocessing.{name}") for name in ("process", "util"))
    if process is not None and util is not None and process.parent_process() is not None:
        util.Finalize(None, _stop, exitpriority=0)


def _stop() -> None:
    global _over  # noqa: PLW0603 - see above
    _over = True  # before anything is closed: a thread that goes on must not open it again
    _current.stop()

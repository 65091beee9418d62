"""Virtual time: an event loop whose clock jumps to the next timer when nothing else is ready.

Time-outs of ten minutes pass in milliseconds, in the same order every time. The time-outs and sleeps of
`asyncio` and `anyio` follow it, since they ask the loop for the time; `time.monotonic` and `time.time` do
not.

From plain asyncio::

    info = run_virtual(main)

From pytest-asyncio (1.3 or later), in ``conftest.py``; tests that are marked ``virtual`` then run so::

    def pytest_asyncio_loop_factories(config, item):
        virtual = item.get_closest_marker("virtual")
        return {"virtual": VirtualTimeLoop} if virtual else {"real": asyncio.new_event_loop}

It suits code without sockets and threads, above all ``memory://``. The clock knows nothing of bytes that are
under way or of a thread that works; `patience` makes it wait a little of real time for them before each jump.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from arendezvous.net.own_thread import SoleLoop

R = TypeVar("R")

START: Final = 1000.0
LIMIT: Final = 100_000.0
STUCK: Final = 5.0


class VirtualTimeError(RuntimeError):
    """Virtual time cannot go on: everybody waits for ever, or has waited for longer than the limit."""


class VirtualTimeLoop(asyncio.SelectorEventLoop, SoleLoop):
    """An asyncio event loop with virtual time.

    Args:
        limit: Virtual seconds after which it raises `VirtualTimeError`: something waits in a circle.
        patience: Real seconds that it waits for sockets and threads before each jump of the clock.
        stuck: Real seconds that it waits when nothing is ready and no timer is set, before it raises
            `VirtualTimeError`.
    """

    def __init__(self, *, limit: float = LIMIT, patience: float = 0.0, stuck: float = STUCK) -> None:
        self._virtual_now = START
        self._virtual_end = START + limit
        self._patience = patience
        self._stuck = stuck
        super().__init__(_JumpingSelector(self._wait))

    def time(self) -> float:
        """Returns the virtual time, in seconds; it begins at 1000."""
        return self._virtual_now

    def _wait(self, select: Callable[[float | None], list[Ready]], timeout: float | None) -> list[Ready]:
        """Looks for what is ready; if that is nothing, moves the clock on by `timeout` instead of waiting."""
        if timeout is None:
            events = select(self._stuck)
            if not events:
                raise VirtualTimeError("everybody waits, and no timer is set: nothing can ever happen")
            return events
        events = select(self._patience if timeout > 0 else 0)
        if not events and timeout > 0:
            self._virtual_now += timeout
            if self._virtual_now > self._virtual_end:
                seconds = self._virtual_end - START
                raise VirtualTimeError(f"{seconds:g} virtual seconds have passed, which is the limit")
        return events


def run_virtual(
    main: Callable[[], Coroutine[Any, Any, R]], *, limit: float = LIMIT, patience: float = 0.0
) -> R:
    """Runs ``await main()`` in virtual time, and returns its result.

    Args:
        main: What to run.
        limit: See `VirtualTimeLoop`.
        patience: See `VirtualTimeLoop`.

    Raises:
        VirtualTimeError: `limit` has passed, or everybody waits for ever.
    """

    def loop() -> VirtualTimeLoop:
        return VirtualTimeLoop(limit=limit, patience=patience)

    with asyncio.Runner(loop_factory=loop) as runner:
        return runner.run(main())


Ready = tuple[selectors.SelectorKey, int]


class _JumpingSelector(selectors.DefaultSelector):
    """Leaves it to `wait` how to spend the time."""

    def __init__(
        self, wait: Callable[[Callable[[float | None], list[Ready]], float | None], list[Ready]]
    ) -> None:
        super().__init__()
        self._wait = wait

    def select(self, timeout: float | None = None) -> list[Ready]:
        return self._wait(super().select, timeout)

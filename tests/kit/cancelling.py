"""Cancelling a call at any of its awaits, and a check that nothing is left over afterwards."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio

PATIENCE = 30.0  # seconds
WAYS = ("scope", "task", "task late")
"""How to cancel: by a scope of anyio; by `Task.cancel`; by that, just when what was awaited is there."""


class Stepped(Awaitable[None]):
    """Awaits a call, and strikes at its step-th suspension, counted from 0.

    Attributes:
        struck: Whether the call got that far.
        cut: Whether the call has ended otherwise than by returning.
        strike: What to do then; to be set before it is awaited.
    """

    def __init__(self, call: Awaitable[object], step: int, *, late: bool) -> None:
        self.struck = False
        self.cut = True
        self.strike: Callable[[], object]
        self._call = call
        self._left = step
        self._late = late

    def __await__(self) -> Generator[Any, Any, None]:
        inner = self._call.__await__()
        go_on: Callable[[], Any] = partial(next, inner)
        while True:
            try:
                awaited = go_on()
            except StopIteration:
                self.cut = False
                return
            if self._left == 0:
                self._arm(awaited)
            self._left -= 1
            try:
                yield awaited
            except BaseException as error:  # noqa: BLE001 - it is passed on
                go_on = partial(inner.throw, error)
            else:
                go_on = partial(next, inner)

    def _arm(self, awaited: Any) -> None:
        self.struck = True
        if self._late and isinstance(awaited, asyncio.Future):
            awaited.add_done_callback(lambda _: self.strike())
        else:
            asyncio.get_running_loop().call_soon(self.strike)


async def cancelled_at(step: int, way: str, call: Awaitable[object]) -> Stepped:
    """Awaits `call` in a task of its own, and cancels it at its step-th suspension.

    Raises:
        AssertionError: It ended as if it had not been cancelled, though its task was.
    """
    stepped = Stepped(call, step, late=way == "task late")
    swallowed = False

    async def main() -> None:
        nonlocal swallowed
        if way == "scope":
            with anyio.CancelScope() as scope:
                stepped.strike = scope.cancel
                await stepped
            return
        task = asyncio.current_task()
        assert task is not None
        stepped.strike = task.cancel
        await stepped
        swallowed = task.cancelling() > 0

    task = asyncio.create_task(main())
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()
    assert not swallowed, "the cancellation was swallowed"
    return stepped


@asynccontextmanager
async def nothing_left() -> AsyncIterator[None]:
    """Checks that after the block there are no more tasks and sockets than before.

    Raises:
        AssertionError: There still were after half a minute.
    """
    tasks, sockets = asyncio.all_tasks(), open_sockets()

    def left() -> list[object]:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        return [*(others - tasks), *(open_sockets() - sockets)]

    yield
    with anyio.move_on_after(PATIENCE):
        while left():  # noqa: ASYNC110 - nothing tells of the end of a socket
            await asyncio.sleep(0.001)
    remains = left()
    assert not remains, f"left behind: {remains}"


def open_sockets() -> set[str]:
    """The sockets of this process, by the kernel's names."""
    found: set[str] = set()
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            name = os.readlink(f"/proc/self/fd/{descriptor}")
        except FileNotFoundError:
            continue  # it was that of the directory
        if name.startswith("socket:"):
            found.add(name)
    return found

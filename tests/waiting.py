"""Waiting in real time for what no event tells of: the state of a proxy, or of a server seen from outside."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

T = TypeVar("T")

PATIENCE = 30.0


async def until(condition: Callable[[], object]) -> None:
    """Returns once `condition()` is true.

    Raises:
        TimeoutError: It was not within half a minute.
    """
    with anyio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110 - the one place that polls
            await asyncio.sleep(0.002)


async def until_seen(look: Callable[[], Awaitable[T]], condition: Callable[[T], object]) -> T:
    """Looks until `condition` holds for what is seen, and returns that.

    Raises:
        TimeoutError: It did not within half a minute.
    """
    with anyio.fail_after(PATIENCE):
        while True:
            seen = await look()
            if condition(seen):
                return seen
            await asyncio.sleep(0.002)

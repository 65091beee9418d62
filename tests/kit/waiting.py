"""Waiting in real time for what no event tells of: the state of a proxy, or of a server seen from outside."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio
import pytest

from arendezvous.errors import RendezvousConnectionError

T = TypeVar("T")

PATIENCE = 60.0


async def until(condition: Callable[[], object]) -> None:
    """Returns once `condition()` is true.

    Raises:
        TimeoutError: It was not within a minute.
    """
    with anyio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110 - the one place that polls
            await asyncio.sleep(0.002)


async def until_seen(look: Callable[[], Awaitable[T]], condition: Callable[[T], object]) -> T:
    """Looks until `condition` holds for what is seen, and returns that.

    Raises:
        TimeoutError: It did not within a minute.
    """
    with anyio.fail_after(PATIENCE):
        while True:
            seen = await look()
            if condition(seen):
                return seen
            await asyncio.sleep(0.002)


async def until_said(attempt: Callable[[float], Awaitable[object]], said: str) -> str:
    """Tries what must fail, with longer and longer time-outs, until the error says `said`; returns that.

    Within a short time-out, a busy machine may not get as far as the cause that is to be told.

    Args:
        attempt: Tries it, with a time-out in seconds.
        said: A regular expression.

    Raises:
        AssertionError: It does not say that, even if it takes half a minute.
    """
    for seconds in (0.2, 3.0, 30.0):
        with pytest.raises(RendezvousConnectionError) as caught, anyio.fail_after(PATIENCE):
            await attempt(seconds)
        if re.search(said, str(caught.value)):
            break
    else:
        raise AssertionError(f"it says {str(caught.value)!r}, and not {said!r}")
    return str(caught.value)

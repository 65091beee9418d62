"""Asking a server over HTTP again, until it answers or patience is over."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar
from urllib.parse import quote

from arendezvous.backends.base import BACKOFF
from arendezvous.backends.troubles import hopeless, unreachable
from arendezvous.net.http_client import UnansweredError

T = TypeVar("T")


async def persist(attempt: Callable[[], Awaitable[T]], url: str, patience: float) -> T:
    """Calls `attempt`, which may raise `UnansweredError`, until it returns, and returns that.

    Raises:
        RendezvousConnectionError: It did not in `patience` seconds, or the server, called `url`, is not to be
            trusted, or is no listener for HTTP.

    Cancellation: as safe as `attempt`.
    """
    end = asyncio.get_running_loop().time() + patience
    pauses = BACKOFF.start()
    while True:
        try:
            return await attempt()
        except UnansweredError as error:
            if error.distrusted or error.misdirected:
                raise hopeless(url, str(error), distrusted=error.distrusted) from error
            if not await pauses.sleep(until=end):
                raise unreachable(url, patience, str(error)) from error


def run_path(run_id: str) -> str:
    """Returns the path of a run."""
    return f"/v1/runs/{quote(run_id, safe='')}"

"""Goodbyes: what a node does at its end, and does in vain where its run is out of reach."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import anyio

from arendezvous.errors import RendezvousConnectionError

GOODBYE_TIMEOUT: Final = 2.0  # seconds that a goodbye takes at most once the run is out of reach

T = TypeVar("T")


async def while_in_reach(
    lost: Callable[[], Awaitable[None]],
    endpoint: str,
    function: Callable[[], Awaitable[T]],
    seconds: float = GOODBYE_TIMEOUT,
) -> T:
    """Calls `function`, which is given up once the run has been out of reach for so many seconds.

    Args:
        lost: Returns when the run is out of reach; see `RendezvousBackend.lost`.
        endpoint: Where the run is kept, for the error.
        function: The call, which is cancelled then.
        seconds: How long it may go on without the run.

    Raises:
        RendezvousConnectionError: It was given up.

    Cancellation: as safe as that of `function`.
    """

    async def give_up() -> None:
        await lost()
        await anyio.sleep(seconds)
        scope.cancel()

    failure: Exception | None = None
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(give_up)
            try:
                return await function()
            except Exception as error:  # noqa: BLE001 - goes on below, out of the group that would wrap it
                failure = error
            finally:
                tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
    raise RendezvousConnectionError(f"{endpoint} is out of reach", endpoint=endpoint, doing="saying goodbye")

"""Time-outs of stores, and errors that say what was being done and which keys are missing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final

import anyio

from arendezvous.errors import RendezvousConnectionError, RendezvousError, StoreTimeoutError
from arendezvous.stores.arguments import checked_keys
from arendezvous.stores.port import ANSWER_TIME, Store

LOOK_TIMEOUT: Final = 1.0  # seconds to find out, after a time-out, which keys were missing
LOOKS: Final = 32  # keys that are looked for at once
MOST_LOOKS: Final = 4096  # keys that are looked for at all


class answered:
    """Bounds a whole operation that waits for `seconds`; the store has a moment besides to answer.

    Each store whose operations ask somebody else puts this around each that takes a time-out, and `deadline`
    around the waiting alone. None does not bound it, and neither does 0, which does not wait. It began at
    `since`, on the loop's clock; None: now.

    It is a timer that cancels the task, as `asyncio.timeout` is; a scope of anyio around a `get` that is
    answered at once takes as long as the rest of it.

    Raises:
        RendezvousConnectionError: The store has not answered in time.
    """

    __slots__ = ("_asked", "_bound", "_doing", "_is_over", "_keys", "_since", "_task", "_timer")

    def __init__(
        self, seconds: float | None, doing: str, keys: Sequence[str], since: float | None = None
    ) -> None:
        self._bound = seconds + ANSWER_TIME if seconds else None
        self._doing = doing
        self._keys = keys
        self._since = since
        self._is_over = False
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> None:
        if self._bound is not None:
            task = asyncio.current_task()
            assert task is not None  # noqa: S101 - stores are used by tasks
            self._task, self._asked = task, task.cancelling()
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at((self._since or loop.time()) + self._bound, self._end)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if self._timer is None:
            return
        self._timer.cancel()
        if not self._is_over:
            return
        if self._task.uncancel() <= self._asked and kind is asyncio.CancelledError:
            what = describe(self._doing, self._keys)
            raise RendezvousConnectionError(
                f"{what} has not been answered within {self._bound:g} s, {ANSWER_TIME:g} s more than its"
                " time-out: is the store out of reach?",
                doing=what,
            ) from error

    def _end(self) -> None:
        self._is_over = True
        self._task.cancel()


def describe(operation: str, keys: Sequence[str]) -> str:
    """Says what an operation does, in the words of its caller: ``get of 'leader'``."""
    shown = ", ".join(map(repr, checked_keys(keys)[:4]))
    return f"{operation} of {shown}{', ...' if len(keys) > 4 else ''}" if shown else operation


@asynccontextmanager
async def deadline(
    store: Store, seconds: float | None, operation: str, keys: Sequence[str]
) -> AsyncIterator[None]:
    """Bounds the block, an operation on `keys`, to `seconds`; None does not bound it.

    Raises:
        StoreTimeoutError: The time is over; see `timed_out`.
    """
    with anyio.move_on_after(seconds) as scope:
        yield
    if scope.cancelled_caught:
        raise await timed_out(store, seconds, operation, keys)


async def timed_out(
    store: Store, seconds: float | None, operation: str, keys: Sequence[str]
) -> StoreTimeoutError:
    """Builds the error that names those of `keys` that are missing; looks for them for a second at most.

    Cancellation: safe.
    """
    missing, complete = await _missing(store, keys)
    which = ", ".join(map(repr, missing[:8])) + (", ..." if len(missing) > 8 else "")
    if len(keys) > 1:
        missed = f"{len(missing)} of {len(keys)} keys" if complete else f"some of {len(keys)} keys, maybe"
        which = f"{missed}: {which}"
    return StoreTimeoutError(
        f"{operation} timed out after {seconds or 0:g} s, waiting for {which}: has the node that writes it"
        " started? Raise the timeout if it only needs longer",
        keys=missing,
        timeout=seconds,
    )


async def barrier_timed_out(
    store: Store, seconds: float | None, key: str, world_size: int
) -> StoreTimeoutError:
    """Builds the error that says how many have come to a barrier; looks for a second at most.

    Cancellation: safe.
    """
    arrived = b""
    with anyio.move_on_after(LOOK_TIMEOUT), suppress(RendezvousError):
        arrived = await store.get(key, timeout=0)
    come = f"{arrived.decode()} of {world_size}" if arrived.isdigit() else f"fewer than {world_size}"
    return StoreTimeoutError(
        f"barrier of {key!r} timed out after {seconds or 0:g} s: {come} have come; have the others started?"
        " Raise the timeout if they only need longer",
        keys=[key],
        timeout=seconds,
    )


async def _missing(store: Store, keys: Sequence[str]) -> tuple[list[str], bool]:
    """Returns those of `keys` that do not exist, and whether all were looked for."""
    if len(keys) == 1:
        return list(keys), True
    unknown = dict.fromkeys(keys)
    missing: list[str] = []

    async def look(batch: Sequence[str]) -> None:
        for key in batch:
            if not await store.check([key]):
                missing.append(key)
            del unknown[key]

    first = list(unknown)[:MOST_LOOKS]
    with anyio.move_on_after(LOOK_TIMEOUT), suppress(RendezvousError, ExceptionGroup):
        async with anyio.create_task_group() as tasks:
            for at in range(LOOKS):
                tasks.start_soon(look, first[at::LOOKS])
    complete = not unknown
    if not missing:
        missing = list(unknown or dict.fromkeys(keys))
    order = {key: at for at, key in enumerate(keys)}
    return sorted(missing, key=order.__getitem__), complete

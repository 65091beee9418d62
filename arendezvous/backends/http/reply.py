"""What comes of a request over HTTP: one may wait for it, give up waiting, and wait again."""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

T = TypeVar("T")


class Reply(Generic[T]):
    """An answer that is to come, or an error instead.

    It is no future, as that is cancelled with whoever waits for it, and `asyncio.shield` around it costs a
    further turn of the loop.
    """

    def __init__(self) -> None:
        self._answer: T | None = None
        self._error: OSError | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def is_there(self) -> bool:
        """Whether it has come."""
        return self._answer is not None or self._error is not None

    def give(self, answer: T | OSError) -> None:
        """Takes the answer, or the error; only the first counts."""
        if self.is_there:
            return
        if isinstance(answer, OSError):
            self._error = answer
        else:
            self._answer = answer
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self) -> T:
        """Waits for the answer; one at a time may. Cancellation: safe; to be called again.

        Raises:
            OSError: There will be none.
        """
        if not self.is_there:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self._error is not None:
            raise self._error
        assert self._answer is not None  # noqa: S101 - it is there, and no error
        return self._answer

"""Opens and closes our backends, with all that works or waits in them, and fails those who wait."""

from __future__ import annotations

import abc
from contextlib import AsyncExitStack
from typing import Final, Self

from arendezvous.backends.feed import ViewFeed
from arendezvous.backends.port import RendezvousBackend
from arendezvous.errors import RendezvousError, RendezvousStateError
from arendezvous.law.state import NodeView
from arendezvous.net.background import Background
from arendezvous.net.backoff import Backoff

BACKOFF: Final = Backoff(first=0.01, last=0.5)  # less than the default grace for coming back


class BackendBase(RendezvousBackend):
    """A backend with a feed of views for each node, and work in the background.

    Its fields:
        _feeds: The views of each node.
        _background: The work; None outside of the block.
        _failure: Why nothing works any more; None as long as it does.
        _address: The address from which this machine reaches the other side; empty: not known.
        _resources: What is closed last.
    """

    def __init__(self) -> None:
        self._feeds: dict[str, ViewFeed] = {}
        self._background: Background | None = None
        self._failure: RendezvousError | None = None
        self._address = ""
        self._resources = AsyncExitStack()

    @abc.abstractmethod
    async def _open(self) -> None:
        """Connects; what it has begun is closed, too, if it fails."""

    async def _close(self) -> None:
        """Gives back what `_open` has taken, and `_resources` does not."""

    async def __aenter__(self) -> Self:
        self._failure, self._background = None, Background(self.endpoint, self.fail)
        try:
            await self._open()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        background, self._background = self._background, None
        if background is None:
            return
        async with self._resources:
            try:
                await background.close()
            finally:
                self._end_waits(closed_meanwhile())
                await self._close()

    def addresses(self) -> tuple[str, ...]:
        return (self._address,) if self._address else ()

    def fail(self, error: RendezvousError) -> None:
        self._failure = error
        if self._background is not None:
            self._background.cancel()
        self._end_waits(error)

    async def changed(self, node: str, since: int) -> NodeView:
        self._check_open()
        return await self._feeds.setdefault(node, ViewFeed()).changed(since)

    def _end_waits(self, error: RendezvousError) -> None:
        """Ends every wait: the server does not want us, or we are leaving, or cannot go on."""
        for feed in self._feeds.values():
            feed.fail(error)

    def _check_open(self) -> Background:
        if self._background is None:
            raise RuntimeError(f"the {self.name} backend is used outside of its 'async with' block")
        self._background.origin.check()
        if self._failure is not None:
            raise self._failure.with_traceback(None)
        return self._background


def closed_meanwhile() -> RendezvousStateError:
    """The error of whoever waits when a backend is closed."""
    return RendezvousStateError("the backend was closed meanwhile")

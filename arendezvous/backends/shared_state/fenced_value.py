"""Names what compare-and-set needs of a store: a value under a fence, and no more.

`FencedValue` is the port; `FencedKey` makes one of any `Store`, with the keys of stock's ``c10d`` backend. A
`Listener` waits for news of either: what the store pushes, or else the time for another look.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import TypeAlias

import anyio

from arendezvous.errors import RendezvousConnectionError, RendezvousError, StoreTimeoutError
from arendezvous.stores.port import Store
from arendezvous.wire.torch_state.state import SENTINEL

Fence: TypeAlias = bytes | int
logger = logging.getLogger(__name__)


class FencedValue(ABC):
    """One value, and a fence that changes whenever the value does.

    All methods raise `RendezvousConnectionError` if the store cannot be reached within its read time-out; it
    says where the store is and what was being done. Each may be cancelled; a cancelled `set` may have been
    carried out, or may be yet, if the fence is still the one that it was given.
    """

    #: Whether `wait` sees every change, whoever made it; else changes by stock nodes have to be polled for.
    sees_everything = False

    @abstractmethod
    async def get(self) -> tuple[bytes, Fence]:
        """Returns the value and its fence; while there is no value, an empty one or stock's sentinel."""

    @abstractmethod
    async def set(self, value: bytes, fence: Fence) -> tuple[bool, bytes, Fence]:
        """Stores `value` if the fence is still `fence`.

        Returns:
            Whether it was stored, and the value and fence that are there now.
        """

    @abstractmethod
    def topic(self, fence: Fence, pulse: str) -> str:
        """Names what to wait for, to hear of a change of the value with this fence and this pulse."""

    @abstractmethod
    async def wait(self, topic: str) -> None:
        """Returns when there may have been a change since; may never do so if somebody else made it."""

    async def announce(self, pulse: str) -> None:
        """Tells those who wait that what had this pulse has been replaced."""
        return

    async def close(self) -> None:
        """Removes what is left of announcements."""
        return


class FencedKey(FencedValue):
    """The value is under one key; the value itself is the fence, because every state differs from all others.

    A plain TCPStore can push one thing: that a key which did not exist does now. So whoever replaces a state
    that had some pulse creates a key named after it, for which the others have been waiting. Heartbeats keep
    the pulse, and so do the writes of stock nodes: what those do has to be polled for. The key is deleted
    with the next announcement; whoever comes too late for it finds out by polling as well.

    The store is neither opened nor closed here.
    """

    def __init__(self, store: Store, run_id: str) -> None:
        self._store = store
        self._key = f"torch.rendezvous.{run_id}"
        self._pulses = f"arendezvous.pulse.{run_id}."
        self._announced: str | None = None

    async def get(self) -> tuple[bytes, Fence]:
        """Gives a store that does not have the key the sentinel, as stock does."""
        try:
            value = await self._store.get(self._key, timeout=0)
        except StoreTimeoutError:
            value = await self._store.compare_set(self._key, b"", SENTINEL)
        return value, value

    async def set(self, value: bytes, fence: Fence) -> tuple[bool, bytes, Fence]:
        """See `FencedValue.set`. If the connection breaks meanwhile, the key tells what became of it."""
        assert isinstance(fence, bytes)  # noqa: S101 - it was given out here
        held = fence
        with suppress(RendezvousConnectionError):
            held = await self._store.compare_set(self._key, fence, value)
        if held == fence and held != value:  # so it is, too, where a store says that the key is not there
            held, _ = await self.get()
        return held == value, held, held

    def topic(self, fence: Fence, pulse: str) -> str:
        return pulse

    async def wait(self, topic: str) -> None:
        """Waits for the key that announces the end of the pulse."""
        await self._store.wait([self._pulses + topic], timeout=None)

    async def announce(self, pulse: str) -> None:
        """Creates the key that the others wait for, and deletes the one before."""
        await self._store.set(self._pulses + pulse, b"1")
        before, self._announced = self._announced, pulse
        if before is not None and before != pulse:
            await self._store.delete_key(self._pulses + before)

    async def close(self) -> None:
        """Deletes the last announcement."""
        before, self._announced = self._announced, None
        if before is not None:
            await self._store.delete_key(self._pulses + before)


class Listener:
    """Listens to a fenced value for the end of one topic at a time."""

    def __init__(self, fenced: FencedValue) -> None:
        self._fenced = fenced
        self._news = anyio.Event()
        self._topic = ""
        self._waiting: anyio.CancelScope | None = None

    async def run(self) -> None:
        """Listens until it is cancelled. Where nothing can be pushed, looking from time to time goes on."""
        while True:
            with anyio.CancelScope() as self._waiting:
                try:
                    await self._fenced.wait(self._topic)
                    self.nudge()
                except RendezvousError as error:
                    logger.debug("nothing is pushed for %s: %s", self._topic, error)
                await anyio.sleep_forever()

    def turn_to(self, topic: str) -> None:
        if topic != self._topic:
            self._topic = topic
            if self._waiting is not None:
                self._waiting.cancel()

    def nudge(self) -> None:
        """Says that there may be news."""
        self._news.set()

    async def heard(self, seconds: float) -> bool:
        """Returns when there may be news, or after so many seconds; and which it was. Cancellation: safe."""
        with anyio.move_on_after(seconds):
            await self._news.wait()
        heard, self._news = self._news.is_set(), anyio.Event()
        return heard

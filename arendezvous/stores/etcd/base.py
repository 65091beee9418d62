"""Does what the stores in etcd have in common, whichever of its APIs carries their operations out."""

from __future__ import annotations

import abc
import asyncio
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Final, Generic, NamedTuple, TypeVar
from weakref import WeakValueDictionary

import anyio
import anyio.lowlevel

from arendezvous.errors import StoreQueueEmptyError, StoreTimeoutError
from arendezvous.etcd.cluster import ClusterClient
from arendezvous.keyspace.keyspace import leading_integer, not_a_number
from arendezvous.net.background import finish
from arendezvous.net.backoff import Backoff
from arendezvous.stores.arguments import (
    checked_keys,
    checked_number,
    key_from_bytes,
    key_to_bytes,
    value_to_bytes,
)
from arendezvous.stores.connected import ConnectedStore
from arendezvous.stores.port import STORE_TIMEOUT, Timeout
from arendezvous.stores.timeouts import answered, barrier_timed_out, deadline, describe

ClientT = TypeVar("ClientT", bound=ClusterClient)

RIVALS: Final = Backoff(first=0.001, last=0.25, jitter=1.0)
"""How long whoever lost a race for a key pauses: a round trip to etcd takes a millisecond, or a few."""

_SIGN_BIT: Final = 1 << 63


class Held(NamedTuple):
    """Tells what a key holds, or None, and when that was written by etcd's revision or index, or 0."""

    value: bytes | None
    at: int


class Item(NamedTuple):
    """A value in a queue: where it lies in etcd, when it was written, and whether it is the only one."""

    key: str
    value: bytes
    at: int
    is_last: bool


class EtcdStoreBase(ConnectedStore, Generic[ClientT]):
    """A store in etcd, but for how etcd is asked.

    Its fields:
        _revising: The locks of the keys that are being revised here, one caller after the other: they would
            only disturb each other.
        _waiting: The same of the queues that somebody here waits for, or takes from after a wait.
    """

    def __init__(
        self,
        client: ClientT,
        *,
        prefix: str,
        timeout: float | timedelta | None,
        connect_timeout: float | None,
    ) -> None:
        read_timeout = client.read_timeout
        super().__init__(timeout=timeout, read_timeout=read_timeout, connect_timeout=connect_timeout)
        self.prefix = prefix
        self.client = client
        self._revising: WeakValueDictionary[bytes, anyio.Lock] = WeakValueDictionary()
        self._waiting: WeakValueDictionary[bytes, anyio.Lock] = WeakValueDictionary()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.client.name!r}, prefix={self.prefix!r})"

    async def _connect(self, seconds: float) -> None:
        self.client.reopen()
        await self._greet(seconds)

    async def _disconnect(self) -> None:
        await self.client.close()

    async def add(self, key: str, delta: int) -> int:
        with self._doing("add", [key]) as doing:
            return (await self._add(key, checked_number("delta", delta), doing))[0]

    async def append(self, key: str, value: bytes | str) -> None:
        more = value_to_bytes(value)
        with self._doing("append", [key]) as doing:
            await self._revise(key, lambda held: (held or b"") + more, doing)

    async def queue_push(self, key: str, value: bytes | str) -> None:
        with self._doing("queue_push", [key]) as doing:
            await self._push(key_to_bytes(key), value_to_bytes(value), doing)

    async def queue_len(self, key: str) -> int:
        with self._doing("queue_len", [key]) as doing:
            return await self._length(key_to_bytes(key), doing)

    async def get(self, key: str, *, timeout: Timeout = STORE_TIMEOUT) -> bytes:
        with answered(self._seconds(timeout), "get", [key]):
            return (await self._get([key], "get", timeout))[0]

    async def multi_get(self, keys: Sequence[str], *, timeout: Timeout = STORE_TIMEOUT) -> list[bytes]:
        with answered(self._seconds(timeout), "multi_get", checked_keys(keys)):
            return await self._get(keys, "multi_get", timeout)

    async def queue_pop(self, key: str, block: bool = True, *, timeout: Timeout = STORE_TIMEOUT) -> bytes:
        queue, seconds = key_to_bytes(key), self._seconds(timeout)
        bound = seconds if block else None
        with answered(bound, "queue_pop", [key]), self._doing("queue_pop", [key]) as doing:
            if not block or queue not in self._waiting:
                value, _ = await self._take(queue, doing)
                if value is not None:
                    return value
            if not block:
                raise StoreQueueEmptyError(f"queue {key!r} is empty", key=key)
            async with deadline(self, seconds, "queue_pop", [key]):
                return await self._wait_and_take(queue, doing)

    async def barrier(self, key: str, world_size: int, timeout: Timeout = STORE_TIMEOUT) -> None:
        world_size, seconds = checked_number("world_size", world_size), self._seconds(timeout)
        with answered(seconds, "barrier", [key]), self._doing("barrier", [key]) as doing:
            arrived, at = await self._add(key, 1, doing)
            if arrived < world_size:
                with anyio.move_on_after(seconds) as scope:
                    await self._filled(key, world_size, at, doing)
                if scope.cancelled_caught:
                    raise await barrier_timed_out(self, seconds, key, world_size)

    # What each API does in its own way; `doing` is what errors say was being done

    @abc.abstractmethod
    async def _greet(self, seconds: float) -> None:
        """Asks for something, for so many seconds; infinity: for ever."""

    @abc.abstractmethod
    async def _get(self, keys: Sequence[str], operation: str, timeout: Timeout) -> list[bytes]:
        """Returns the values of `keys`, once each of them has one."""

    @abc.abstractmethod
    async def _read(self, key: str, doing: str) -> Held:
        """Returns what a key holds."""

    @abc.abstractmethod
    async def _swap(self, key: str, value: bytes, held: Held, doing: str) -> tuple[int, Held | None]:
        """Sets a key if it still holds `held`.

        Returns:
            When that was, and None; or 0, and what a rival has put there, if etcd has told.
        """

    @abc.abstractmethod
    async def _filled(self, key: str, world_size: int, at: int, doing: str) -> None:
        """Returns once the number under a barrier's key has been `world_size` or more since `at`."""

    @abc.abstractmethod
    async def _push(self, queue: bytes, value: bytes, doing: str) -> None:
        """Appends a value to a queue."""

    @abc.abstractmethod
    async def _length(self, queue: bytes, doing: str) -> int:
        """Returns the number of values in a queue."""

    @abc.abstractmethod
    async def _oldest(self, queue: bytes, doing: str) -> tuple[Item | None, int]:
        """Returns the oldest value of a queue, None if it is empty, and when that was so."""

    @abc.abstractmethod
    async def _remove(self, queue: bytes, item: Item, doing: str) -> bool:
        """Removes a value from a queue; False if another has been quicker."""

    @abc.abstractmethod
    async def _pushed(self, queue: bytes, at: int, doing: str) -> None:
        """Returns when a value may have been pushed since `at`."""

    @contextmanager
    def _doing(self, operation: str, keys: Sequence[str]) -> Iterator[str]:
        """Carries out an operation during the block; yields what errors say was being done."""
        with self._operation():
            yield describe(operation, keys)

    async def _add(self, key: str, delta: int, doing: str) -> tuple[int, int]:
        """Returns the sum, and when that was."""
        total = 0

        def added(held: bytes | None) -> bytes:
            nonlocal total
            number = 0 if held is None else leading_integer(held)
            if number is None:
                raise not_a_number(key_to_bytes(key), held or b"")
            total = ((number + delta + _SIGN_BIT) & (2 * _SIGN_BIT - 1)) - _SIGN_BIT
            return b"%d" % total

        at = await self._revise(key, added, doing)
        return total, at

    async def _revise(self, key: str, change: Callable[[bytes | None], bytes], doing: str) -> int:
        """Replaces the value of `key` by what `change` makes of it (None if absent); returns when that was.

        It is tried until no other has changed the key in between; of all who try one succeeds each time.
        Whoever is told what a rival has put tries once more at once; then there are many, and it pauses.

        Raises:
            StoreTimeoutError: Others have been quicker for too long; nothing has changed.
        """
        pauses, at_once, until = RIVALS.start(), True, self._patience()
        async with self._revising.setdefault(key_to_bytes(key), anyio.Lock()):
            held = await self._read(key, doing)
            while True:
                at, newer = await self._swap(key, change(held.value), held, doing)
                if at:
                    return at
                if newer is None or not at_once:
                    if not await pauses.sleep(until):
                        raise self._outrun(doing, key)
                    newer = await self._read(key, doing)
                held, at_once = newer, False

    async def _take(self, queue: bytes, doing: str) -> tuple[bytes | None, int]:
        """Takes the oldest value; gives None if there is none, and when that was so.

        A value that is being taken when the caller is cancelled goes back to the end of the queue.

        Raises:
            StoreTimeoutError: Others have been quicker for too long; this caller has taken nothing.
        """
        until = self._patience()
        while asyncio.get_running_loop().time() < until:
            item, at = await self._oldest(queue, doing)
            if item is None:
                return None, at
            if await self._claim(queue, item, doing):
                return item.value, at
        raise self._outrun(doing, key_from_bytes(queue))

    def _patience(self) -> float:
        """Until when a change that others get ahead of is tried again, on the loop's clock."""
        if self.timeout is None:
            return math.inf
        return asyncio.get_running_loop().time() + max(self.timeout, self.client.read_timeout)

    def _outrun(self, doing: str, key: str) -> StoreTimeoutError:
        seconds = max(self.timeout or 0.0, self.client.read_timeout)
        return StoreTimeoutError(
            f"{doing} at {self.client.name} was given up after {seconds:g} s: each time, etcd said that"
            " another had been quicker; if few clients change this key, is etcd in order?",
            keys=[key],
            timeout=seconds,
        )

    async def _wait_and_take(self, queue: bytes, doing: str) -> bytes:
        """Takes the oldest value, and waits for one; of the callers here, the first is served first."""
        async with self._waiting.setdefault(queue, anyio.Lock()):
            value, at = await self._take(queue, doing)
            while value is None:
                await self._pushed(queue, at, doing)
                value, at = await self._take(queue, doing)
            return value

    async def _claim(self, queue: bytes, item: Item, doing: str) -> bool:
        """Removes `item`; False if another has been quicker. Cancelled, it puts back what it has removed."""
        claimed = False

        async def claim() -> None:
            nonlocal claimed
            claimed = await self._remove(queue, item, doing)

        try:
            await finish(claim)
            await anyio.lowlevel.checkpoint_if_cancelled()  # by a scope, which `finish` does not tell
        except anyio.get_cancelled_exc_class():
            if claimed:
                await finish(self._push, queue, item.value, doing)
            raise
        return claimed

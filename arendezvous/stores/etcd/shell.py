"""What the stores in etcd have in common, whichever of its APIs carries their operations out."""

# ruff: noqa: D102  # the operations are documented in Store, whose contract this is

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import Final, Generic, Protocol, Self, TypeVar

from arendezvous.errors import StoreQueueEmptyError
from arendezvous.etcd.failover import Failover
from arendezvous.keyspace.keyspace import leading_integer, not_a_number
from arendezvous.stores.etcd.queues import Turns
from arendezvous.stores.pending import Operations
from arendezvous.stores.port import (
    STORE_TIMEOUT,
    Store,
    Timeout,
    checked_keys,
    deadline,
    describe,
    key_to_bytes,
    value_to_bytes,
)

_SIGN_BIT: Final = 1 << 63


class Queues(Protocol):
    """The queues of one store; see `etcd_queues`. ``doing`` is what errors say was being done."""

    async def push(self, queue: bytes, value: bytes, doing: str) -> None: ...

    async def length(self, queue: bytes, doing: str) -> int: ...

    def busy(self, queue: bytes) -> bool: ...

    async def take(self, queue: bytes, doing: str) -> tuple[bytes | None, int]: ...

    async def wait_and_take(self, queue: bytes, doing: str) -> bytes: ...


ClientT = TypeVar("ClientT", bound=Failover)
QueuesT = TypeVar("QueuesT", bound=Queues)


class EtcdShell(Store, Generic[ClientT, QueuesT]):
    """A store in etcd, but for how etcd is asked.

    Args:
        client: Who asks it; closed with the store.
        queues: The store's queues.
        prefix: What all that it stores begins with, in etcd.
        timeout: How long waiting operations wait, in seconds; None waits for ever.
        connect_timeout: For how many seconds entering the context tries to connect; None stands for
            `timeout`.
    """

    def __init__(
        self,
        client: ClientT,
        queues: QueuesT,
        *,
        prefix: str,
        timeout: float | None,
        connect_timeout: float | None,
    ) -> None:
        super().__init__(timeout=timeout)
        self.prefix = prefix
        self.client = client
        self._queues = queues
        self._connect_timeout = connect_timeout
        self._operations = Operations()
        self._turns = Turns()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.client.name!r}, prefix={self.prefix!r})"

    async def __aenter__(self) -> Self:
        """Connects.

        Raises:
            RendezvousConnectionError: That took longer than the `connect_timeout`, or the user is not let in.
            StoreError: The user may not read the keys of this store.
        """
        seconds = self.timeout if self._connect_timeout is None else self._connect_timeout
        try:
            with self._operations.one():
                await self._connect(seconds)
        except BaseException:
            await self.close()
            raise
        return self

    async def close(self) -> None:
        await self._operations.end()
        await self.client.close()

    # Operations that answer at once

    async def add(self, key: str, delta: int) -> int:
        with self._operations.one():
            return (await self._add(key, delta, describe("add", [key])))[0]

    async def append(self, key: str, value: bytes | str) -> None:
        more = value_to_bytes(value)
        with self._operations.one():
            await self._revise(key, lambda held: (held or b"") + more, describe("append", [key]))

    async def queue_push(self, key: str, value: bytes | str) -> None:
        with self._operations.one():
            await self._queues.push(key_to_bytes(key), value_to_bytes(value), describe("queue_push", [key]))

    async def queue_len(self, key: str) -> int:
        with self._operations.one():
            return await self._queues.length(key_to_bytes(key), describe("queue_len", [key]))

    # Operations that may wait

    async def get(self, key: str, *, timeout: Timeout = STORE_TIMEOUT) -> bytes:
        return (await self._get([key], "get", timeout))[0]

    async def multi_get(self, keys: Sequence[str], *, timeout: Timeout = STORE_TIMEOUT) -> list[bytes]:
        return await self._get(checked_keys(keys), "multi_get", timeout)

    async def queue_pop(self, key: str, block: bool = True, *, timeout: Timeout = STORE_TIMEOUT) -> bytes:
        queue, doing = key_to_bytes(key), describe("queue_pop", [key])
        with self._operations.one():
            if not block or not self._queues.busy(queue):
                value, _ = await self._queues.take(queue, doing)
                if value is not None:
                    return value
            if not block:
                raise StoreQueueEmptyError(f"queue {key!r} is empty", key=key)
            with deadline(self._seconds(timeout), "queue_pop", [key]):
                return await self._queues.wait_and_take(queue, doing)

    async def barrier(self, key: str, world_size: int, timeout: Timeout = STORE_TIMEOUT) -> None:
        doing = describe("barrier", [key])
        with self._operations.one():
            arrived, at = await self._add(key, 1, doing)
            if arrived < world_size:
                with deadline(self._seconds(timeout), "barrier", [key]):
                    await self._filled(key, world_size, at, doing)

    # What each of them does in its own way

    @abc.abstractmethod
    async def _connect(self, seconds: float | None) -> None:
        """Asks for something, for so many seconds; None: for ever."""

    @abc.abstractmethod
    async def _get(self, keys: Sequence[str], doing: str, timeout: Timeout) -> list[bytes]:
        """The values of `keys`, once each of them has one."""

    @abc.abstractmethod
    async def _revise(self, key: str, change: Callable[[bytes | None], bytes], doing: str) -> int:
        """Replaces the value of `key` by what `change` makes of it (None if absent); returns when that was.

        It is tried until no other has changed the key in between; of all who try one succeeds each time.
        """

    @abc.abstractmethod
    async def _filled(self, key: str, world_size: int, at: int, doing: str) -> None:
        """Returns once the number under a barrier's key has been `world_size` or more since `at`."""

    async def _add(self, key: str, delta: int, doing: str) -> tuple[int, int]:
        """Returns the sum, and when that was: etcd's revision, or its index."""
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

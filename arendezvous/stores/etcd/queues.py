"""Queues in etcd: each value is a key of its own, and the oldest is the one that was created first."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import TypeVar
from urllib.parse import quote_from_bytes

import anyio

from arendezvous.etcd.fence import FencedClient
from arendezvous.etcd.follow import CompactedError
from arendezvous.etcd.watch import EtcdWatches
from arendezvous.etcd.wire import (
    KeyValue,
    RangeReply,
    after,
    delete_op,
    put_op,
    txn,
    unchanged,
)
from arendezvous.stores.port import key_from_bytes

T = TypeVar("T")


class EtcdQueues:
    """The queues below one prefix.

    Args:
        client: Where they are.
        watches: The watches of the store.
        start: What the keys of all queues begin with.
    """

    def __init__(self, client: FencedClient, watches: EtcdWatches, start: bytes) -> None:
        self._client = client
        self._watches = watches
        self._start = start
        self._turns = Turns()

    def range_of(self, queue: bytes) -> tuple[bytes, bytes]:
        """The range of the keys that hold the values of `queue`."""
        begin = self._start + quote_from_bytes(queue, safe="").encode() + b"/"
        return begin, after(begin)

    async def push(self, queue: bytes, value: bytes, doing: str) -> None:
        """Appends a value."""
        key = self.range_of(queue)[0] + secrets.token_hex(12).encode()
        await self._client.change(txn([], [put_op(key, value)]), doing)

    async def length(self, queue: bytes, doing: str) -> int:
        """The number of values."""
        begin, end = self.range_of(queue)
        request = {"key": begin, "range_end": end, "count_only": True}
        return (await self._client.call("kv/range", request, RangeReply, doing=doing, repeat=True)).count

    def busy(self, queue: bytes) -> bool:
        """Whether somebody waits for a value, or takes one."""
        return queue in self._turns

    async def take(self, queue: bytes, doing: str) -> tuple[bytes | None, int]:
        """Takes the oldest value; gives None if there is none, and the revision at which that was so.

        A value that is being taken when the caller is cancelled goes back to the end of the queue.
        """
        begin, end = self.range_of(queue)
        oldest = {
            "key": begin,
            "range_end": end,
            "limit": "1",
            "sort_order": "ASCEND",
            "sort_target": "CREATE",
        }
        while True:
            reply = await self._client.call("kv/range", oldest, RangeReply, doing=doing, repeat=True)
            if not reply.kvs:
                return None, reply.header.revision
            [item] = reply.kvs
            if await self._claim(queue, item, doing):
                return item.value, reply.header.revision

    async def wait_and_take(self, queue: bytes, doing: str) -> bytes:
        """Takes the oldest value, and waits for one; of the callers here, the first is served first."""
        async with self._turns.of(queue):
            value, revision = await self.take(queue, doing)
            while value is None:
                with suppress(CompactedError):
                    await self._watches.until(lambda _: True, (self.range_of(queue),), revision, doing)
                value, revision = await self.take(queue, doing)
            return value

    async def _claim(self, queue: bytes, item: KeyValue, doing: str) -> bool:
        """Removes `item`; False if another has been quicker."""
        claimed = False

        async def claim() -> None:
            nonlocal claimed
            request = txn([unchanged(item.key, item.mod_revision)], [delete_op(item.key)])
            claimed = (await self._client.change(request, doing)).succeeded

        async def put_back() -> None:
            await self.push(queue, item.value, f"putting back a value of queue {key_from_bytes(queue)!r}")

        try:
            await uncut(claim)
        except anyio.get_cancelled_exc_class():
            if claimed:
                await uncut(put_back)
            raise
        return claimed


class Turns:
    """Lets the callers of one store that want the same thing have it in turn.

    They would only disturb each other. Those of other processes are not waited for.
    """

    def __init__(self) -> None:
        self._locks: dict[bytes, tuple[anyio.Lock, list[None]]] = {}

    def __contains__(self, name: bytes) -> bool:
        return name in self._locks

    @asynccontextmanager
    async def of(self, name: bytes) -> AsyncIterator[None]:
        """Waits for its turn, and has it during the block."""
        lock, users = self._locks.setdefault(name, (anyio.Lock(), []))
        users.append(None)
        try:
            async with lock:
                yield
        finally:
            users.pop()
            if not users:
                del self._locks[name]


async def uncut(work: Callable[[], Awaitable[None]]) -> None:
    """Does `work` to its end, which has to come by itself, although the caller may be cancelled meanwhile.

    A task of its own in a shielded scope also withstands a cancellation by asyncio, which knows no shield.
    """

    async def shielded() -> None:
        with anyio.CancelScope(shield=True):
            await work()

    failures: list[Exception] = []

    async def run() -> None:
        try:
            await shielded()
        except Exception as error:  # noqa: BLE001  # raised below, without the group around it
            failures.append(error)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
    if failures:
        raise failures[0]

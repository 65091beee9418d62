"""A store in an etcd cluster, version 3.3 or later, through its JSON gateway."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, Final
from urllib.parse import quote_from_bytes

from arendezvous.errors import RendezvousSettingsError
from arendezvous.etcd import wire
from arendezvous.etcd.client import FencedClient
from arendezvous.etcd.cluster import EtcdCluster
from arendezvous.etcd.watch import CompactedError, EtcdWatches
from arendezvous.keyspace.keyspace import leading_integer
from arendezvous.net.typed import typed
from arendezvous.stores.arguments import (
    checked_items,
    checked_keys,
    key_from_bytes,
    key_to_bytes,
    value_to_bytes,
)
from arendezvous.stores.etcd.base import EtcdStoreBase, Held, Item
from arendezvous.stores.port import DEFAULT_TIMEOUT, STORE_TIMEOUT, Timeout
from arendezvous.stores.timeouts import answered, deadline

Names = set[bytes]  # in the class, `set` is an operation

DEFAULT_PREFIX: Final = "/arendezvous/store/"


class EtcdStore(EtcdStoreBase[FencedClient]):
    """A client of an etcd cluster, for one event loop.

    Every operation is a transaction of etcd, and waiting is a watch from the revision at which the key was
    absent: nothing is polled, and a compaction of etcd's history loses nothing that is still there. Those who
    wait for the same keys share one connection. If a member does not answer, the next one is asked. What only
    reads is then asked again; what changes something and was in flight raises `RendezvousConnectionError`,
    because it may have been carried out. Whatever this store does next finds that, or it never will be.

    A key ``k`` is etcd's key ``<prefix>k/k``, with the value as it is; the values of a queue ``q`` are keys
    below ``<prefix>q/q/``. None of them expires, and nothing else is stored, but that a change that was
    cancelled, or is in doubt, leaves a mark below ``<prefix>f/`` for a minute. Of those who wait for a queue
    in one store the first is served first; among several stores, the quickest. Etcd refuses requests of more
    than 1.5 MiB, unless it was told otherwise.

    Use it as an asynchronous context manager: entering connects. Without that the first operation connects.

    Args:
        cluster: How to reach the cluster. Its members' addresses are enough where nothing else is needed:
            ``host[:port]`` or ``http(s)://host[:port]``, in a sequence, or in text with commas.
        timeout: How long waiting operations wait, in seconds; None waits for ever. For as long, and for
            `read_timeout` at least, a change is tried again that others get ahead of; then it raises
            `StoreTimeoutError`, and nothing has changed.
        read_timeout: Seconds without an answer from any member until an operation raises
            `RendezvousConnectionError`.
        connect_timeout: Seconds that entering tries to connect: etcd may start later than its clients. None
            stands for `timeout`.
        prefix: What all that it stores begins with, in etcd.

    Raises:
        RendezvousSettingsError: An endpoint, a file, the prefix or a number is not what it has to be.

    Its fields:
        _watches: The streams that tell of changes, shared by all who wait.
        _keys: What etcd's keys of this store's keys begin with.
        _queues: What etcd's keys of the values of all queues begin with. Each value is a key of its own, and
            the oldest is the one that was created first.
    """

    @typed
    def __init__(
        self,
        cluster: EtcdCluster | str | Sequence[str],
        *,
        timeout: float | timedelta | None = DEFAULT_TIMEOUT,
        read_timeout: float = 10.0,
        connect_timeout: float | None = None,
        prefix: str = DEFAULT_PREFIX,
    ) -> None:
        if not prefix:
            raise RendezvousSettingsError.of("prefix", prefix, "text that sets the keys of this store apart")
        start = key_to_bytes(prefix)
        client = FencedClient(cluster, marks=start + b"f/", read_timeout=read_timeout)
        super().__init__(client, prefix=prefix, timeout=timeout, connect_timeout=connect_timeout)
        self._watches = EtcdWatches(client)
        self._keys = start + b"k/"
        self._queues = start + b"q/"
        self._whole = {"key": self._keys, "range_end": wire.after(self._keys)}

    async def set(self, key: str, value: bytes | str) -> None:
        await self._change(wire.txn([], [wire.put_op(self._key(key), value_to_bytes(value))]), "set", [key])

    async def compare_set(self, key: str, expected: bytes | str, desired: bytes | str) -> bytes:
        name, wanted = self._key(key), value_to_bytes(expected, "expected")
        new = value_to_bytes(desired, "desired")
        put, look = wire.put_op(name, new), wire.range_op(name)
        same = [wire.holds(name, wanted)]
        request = wire.txn(same, [put], [look])
        if not wanted:
            request = wire.txn([wire.unchanged(name, 0)], [put], [wire.txn_op(same, [put], [look])])
        reply = await self._change(request, "compare_set", [key])
        if not reply.ranges:
            return new
        kvs = reply.ranges[0].kvs
        return kvs[0].value if kvs else wanted

    async def check(self, keys: Sequence[str]) -> bool:
        with self._doing("check", keys) as doing:
            wanted = {key_to_bytes(key) for key in checked_keys(keys)}
            return (await self._present(wanted, doing))[0] >= wanted

    async def delete_key(self, key: str) -> bool:
        reply = await self._change(wire.txn([], [wire.delete_op(self._key(key))]), "delete_key", [key])
        deleted = reply.responses[0].response_delete_range
        return deleted is not None and deleted.deleted > 0

    async def num_keys(self) -> int:
        with self._doing("num_keys", []) as doing:
            return (await self._range({**self._whole, "count_only": True}, doing)).count

    async def multi_set(self, keys: Sequence[str], values: Sequence[bytes | str]) -> None:
        items = dict(checked_items(keys, values))  # etcd takes each key once; the last value stays
        ops = [wire.put_op(self._keys + key, value) for key, value in items.items()]
        await self._change(wire.txn([], ops), "multi_set", keys)

    async def list_keys(self) -> list[str]:
        with self._doing("list_keys", []) as doing:
            reply = await self._range({**self._whole, "keys_only": True}, doing)
        return [key_from_bytes(item.key.removeprefix(self._keys)) for item in reply.kvs]

    async def wait(self, keys: Sequence[str], timeout: Timeout = STORE_TIMEOUT) -> None:
        seconds = self._seconds(timeout)
        with answered(seconds, "wait", keys), self._doing("wait", keys) as doing:
            missing = {key_to_bytes(key) for key in checked_keys(keys)}
            present, revision = await self._present(missing, doing)
            missing -= present
            if missing:
                async with deadline(self, seconds, "wait", keys):
                    await self._appear(missing, revision, doing, queues=True)

    async def _greet(self, seconds: float) -> None:
        await self._range({**self._whole, "count_only": True}, "connect", seconds)

    def _key(self, key: str) -> bytes:
        return self._keys + key_to_bytes(key)

    async def _change(self, request: dict[str, Any], operation: str, keys: Sequence[str]) -> wire.TxnReply:
        with self._doing(operation, keys) as doing:
            return await self.client.change(request, doing)

    async def _range(
        self, request: dict[str, Any], doing: str, seconds: float | None = None
    ) -> wire.RangeReply:
        return await self.client.call(
            "kv/range", request, wire.RangeReply, doing=doing, repeat=True, seconds=seconds
        )

    async def _read_all(self, ops: Sequence[wire.Op], doing: str) -> tuple[list[wire.RangeReply], int]:
        """Reads all of `ops` at one moment; returns the replies, and the revision of that moment."""
        reply = await self.client.call("kv/txn", wire.txn([], ops), wire.TxnReply, doing=doing, repeat=True)
        return reply.ranges, reply.header.revision

    async def _present(self, keys: Names, doing: str) -> tuple[Names, int]:
        """Returns those of `keys` that exist, as a key or as a queue, and the revision of that moment."""
        names = list(keys)
        ops: list[wire.Op] = []
        for name in names:
            ops.append(wire.range_op(self._keys + name, count_only=True))
            ops.append(wire.range_op(*self._queue_range(name), limit="1", keys_only=True))
        replies, revision = await self._read_all(ops, doing)
        found = [reply.count > 0 for reply in replies]
        return {name for at, name in enumerate(names) if found[2 * at] or found[2 * at + 1]}, revision

    async def _get(self, keys: Sequence[str], operation: str, timeout: Timeout) -> list[bytes]:
        names = [self._key(key) for key in keys]
        with self._doing(operation, keys) as doing:
            values, missing, revision = await self._values(names, doing)
            if missing:
                async with deadline(self, self._seconds(timeout), operation, keys):
                    while missing:
                        await self._appear(missing, revision, doing, queues=False)
                        values, missing, revision = await self._values(names, doing)
            return values

    async def _values(self, names: Sequence[bytes], doing: str) -> tuple[list[bytes], Names, int]:
        """Returns the values, the keys that have none (without the prefix), and the revision of all that."""
        replies, revision = await self._read_all([wire.range_op(name) for name in names], doing)
        absent = [name for name, reply in zip(names, replies, strict=True) if not reply.kvs]
        missing = {name.removeprefix(self._keys) for name in absent}
        return [reply.kvs[0].value for reply in replies if reply.kvs], missing, revision

    async def _appear(self, missing: Names, revision: int, doing: str, *, queues: bool) -> None:
        """Returns once each of `missing` has been put since `revision`, or after a compaction exists."""
        missing = missing.copy()
        ranges = {(self._keys + name, b""): name for name in sorted(missing)}
        if queues:
            ranges |= {self._queue_range(name): name for name in sorted(missing)}
        name_at = {start: name for (start, _), name in ranges.items()}

        def seen_all(change: wire.KeyValue) -> bool:
            is_key = change.key.startswith(self._keys)
            start = change.key if is_key else change.key[: change.key.rfind(b"/") + 1]
            if start in name_at:
                missing.discard(name_at[start])
            return not missing

        while missing:
            wanted = tuple(each for each, name in ranges.items() if name in missing)
            try:
                await self._watches.until(seen_all, wanted, revision, doing)
            except CompactedError:
                present, revision = await self._present(missing, doing)
                if not queues:
                    return
                missing -= present

    async def _filled(self, key: str, world_size: int, at: int, doing: str) -> None:
        name, revision = self._key(key), at

        def full(held: wire.KeyValue) -> bool:
            return (leading_integer(held.value) or 0) >= world_size

        while True:
            try:
                return await self._watches.until(full, ((name, b""),), revision, doing)
            except CompactedError:
                [reply], revision = await self._read_all([wire.range_op(name)], doing)
                if reply.kvs and full(reply.kvs[0]):
                    return None

    async def _read(self, key: str, doing: str) -> Held:
        [held], _ = await self._read_all([wire.range_op(self._key(key))], doing)
        return _held(held)

    async def _swap(self, key: str, value: bytes, held: Held, doing: str) -> tuple[int, Held | None]:
        name = self._key(key)
        request = wire.txn([wire.unchanged(name, held.at)], [wire.put_op(name, value)], [wire.range_op(name)])
        reply = await self.client.change(request, doing)
        return (reply.header.revision, None) if reply.succeeded else (0, _held(reply.ranges[0]))

    def _queue_range(self, queue: bytes) -> tuple[bytes, bytes]:
        """The range of the keys that hold the values of `queue`."""
        begin = self._queues + quote_from_bytes(queue, safe="").encode() + b"/"
        return begin, wire.after(begin)

    async def _push(self, queue: bytes, value: bytes, doing: str) -> None:
        key = self._queue_range(queue)[0] + secrets.token_hex(12).encode()
        await self.client.change(wire.txn([], [wire.put_op(key, value)]), doing)

    async def _length(self, queue: bytes, doing: str) -> int:
        begin, end = self._queue_range(queue)
        return (await self._range({"key": begin, "range_end": end, "count_only": True}, doing)).count

    async def _oldest(self, queue: bytes, doing: str) -> tuple[Item | None, int]:
        begin, end = self._queue_range(queue)
        order = {"limit": "1", "sort_order": "ASCEND", "sort_target": "CREATE"}
        reply = await self._range({"key": begin, "range_end": end, **order}, doing)
        if not reply.kvs:
            return None, reply.header.revision
        kv = reply.kvs[0]
        item = Item(key_from_bytes(kv.key), kv.value, kv.mod_revision, is_last=reply.count == 1)
        return item, reply.header.revision

    async def _remove(self, queue: bytes, item: Item, doing: str) -> bool:
        key = key_to_bytes(item.key)
        request = wire.txn([wire.unchanged(key, item.at)], [wire.delete_op(key)])
        return (await self.client.change(request, doing)).succeeded

    async def _pushed(self, queue: bytes, at: int, doing: str) -> None:
        with suppress(CompactedError):  # then it looks again
            await self._watches.until(lambda _: True, (self._queue_range(queue),), at, doing)


def _held(reply: wire.RangeReply) -> Held:
    return Held(reply.kvs[0].value, reply.kvs[0].mod_revision) if reply.kvs else Held(None, 0)

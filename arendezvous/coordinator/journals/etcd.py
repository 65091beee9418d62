"""A journal in etcd: for servers that stand in for each other.

Every write carries the fence of the leader: it holds only while the key by which the leader was elected is
there, created at the same revision. So a server that was deposed, and does not know it yet, changes nothing.
A write whose answer was lost is carried out before what comes next, or never, see `etcd.client`.

A batch is one transaction, if etcd takes that many changes and bytes at once; else several, in order, so that
a reader may see the first of them alone. Its makers put last what the rest counts by.

Long values are compressed, unless they are random: each KiB of a transaction costs etcd's gateway, which
reads JSON, some 50 microseconds, and compressing it 6. The roster of 1,024 nodes takes 2 KiB of 15 then.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator
from typing import Final, Self

import anyio

from arendezvous.coordinator.journal import MAX_VALUE, Batch, Change, Done, Journal, Row, end_of
from arendezvous.errors import (
    RendezvousConnectionError,
    RendezvousError,
    RendezvousStateError,
    StoreError,
)
from arendezvous.etcd.client import FencedClient
from arendezvous.etcd.cluster import EtcdCluster
from arendezvous.etcd.wire import (
    Op,
    RangeReply,
    TxnReply,
    after,
    created,
    delete_op,
    put_op,
    range_op,
    txn,
)
from arendezvous.net.background import Background, finish

CHANGES: Final = 120  # in one transaction; etcd takes 128, unless its operator says otherwise
BYTES: Final = 1024 * 1024  # of keys and values in one; etcd takes 1.5 MiB in one request
PAGE: Final = 128  # rows that are loaded at once
LONG: Final = 512  # bytes of a value that is compressed
SQUEEZED: Final = 256 * 1024  # bytes that are compressed for one transaction: 4 ms in which nobody is served
SAMPLE: Final = 256  # bytes by which that is judged; it takes 10 microseconds
COMPRESSED: Final = b"\xc1x\x01"  # begins a compressed value: a byte not in MessagePack, and zlib's two
PATIENCE: Final = 5.0  # seconds that one transaction, or one page, may take

Fence = tuple[bytes, int]
"""The key by which the leader was elected, and the revision that created it."""

_TOO_MANY: Final = "too many operations in txn request"
_TOO_LARGE: Final = ("request is too large", "received message larger than max")


class EtcdJournal(Journal):
    """Keeps rows under a prefix of etcd.

    Args:
        cluster: How to reach etcd.
        prefix: What the keys of its rows begin with; ends with a slash.
        fence: What every write carries.

    Its fields:
        _client: The way to etcd; None outside of the block.
        _background: Where commits are made.
        _most: Changes in one transaction: as many as etcd has been found to take.
        _size: Bytes in one, likewise.
    """

    def __init__(self, cluster: EtcdCluster, prefix: bytes, fence: Fence) -> None:
        self._cluster = cluster
        self._rows = prefix + b"rows/"
        self._marks = prefix + b"marks/"
        self._fence = fence
        self._client: FencedClient | None = None
        self._background = Background(self.name, lambda _: None)
        self._most = CHANGES
        self._size = BYTES

    @property
    def name(self) -> str:
        return f"the journal in etcd ({', '.join(self._cluster.urls)})"

    async def __aenter__(self) -> Self:
        """See `Journal`; the fence must hold."""
        self._client = FencedClient(self._cluster, marks=self._marks, read_timeout=PATIENCE)
        try:
            await self._write([], "opening the journal")
        except BaseException:
            await finish(self._close)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await finish(self._close)

    async def _close(self) -> None:
        client, self._client = self._client, None
        try:
            await self._background.close()
        finally:
            if client is not None:
                await client.close()

    async def load(self) -> AsyncIterator[list[Row]]:
        """See `Journal.load`; nobody else writes meanwhile, as the fence holds."""
        start, end = self._rows, after(self._rows)
        while True:
            asked = range_op(start, end, limit=str(PAGE))["request_range"]
            reply = await self._open_client.call(
                "kv/range", asked, RangeReply, doing="loading the journal", repeat=True
            )
            if not reply.kvs:
                return
            yield [(one.key[len(self._rows) :], self._plain(one.value)) for one in reply.kvs]
            start = reply.kvs[-1].key + b"\0"

    def commit(self, batch: Batch, done: Done) -> None:
        self._background.start(self._commit, batch, done)

    async def _commit(self, batch: Batch, done: Done) -> None:
        try:
            await self._write_all(batch)
        except RendezvousError as error:
            done(error)
        else:
            done(None)

    async def _write_all(self, batch: Batch) -> None:
        """Makes the changes of a batch, in as few transactions as etcd takes."""
        left = batch.changes
        while left:
            some = self._first_of(left)
            try:
                await self._write(self._ops(some), "writing the journal")
            except StoreError as error:
                if not self._takes_less(error, some):
                    raise
            else:
                left = left[len(some) :]

    def _takes_less(self, error: StoreError, changes: list[tuple[Change, bytes, bytes]]) -> bool:
        """Whether etcd refuses so many changes at once, and may take fewer; does with fewer from now on."""
        if len(changes) < 2:
            return False
        if _TOO_MANY in error.message:
            self._most = len(changes) // 2
        elif any(said in error.message for said in _TOO_LARGE):
            self._size = sum(len(key) + len(value) for _, key, value in changes) // 2
        else:
            return False
        return True

    def _first_of(self, changes: list[tuple[Change, bytes, bytes]]) -> list[tuple[Change, bytes, bytes]]:
        """Takes as many changes as go into one transaction: each key in it has one change at most."""
        seen: set[bytes] = set()
        prefixes: list[bytes] = []
        size = 0
        for count, (change, key, value) in enumerate(changes):
            size += len(key) + len(value)
            is_full = count >= self._most or (count and size > self._size)
            if is_full or key in seen or any(key.startswith(prefix) for prefix in prefixes):
                return changes[:count]
            if change is Change.DELETE_ALL:
                if any(known.startswith(key) for known in (*seen, *prefixes)):
                    return changes[:count]
                prefixes.append(key)
            else:
                seen.add(key)
        return changes

    def _ops(self, changes: list[tuple[Change, bytes, bytes]]) -> list[Op]:
        ops, left = [], SQUEEZED
        for change, key, value in changes:
            name = self._rows + key
            if change is Change.PUT:
                squeezes = LONG <= len(value) <= left and _is_regular(value)
                left -= len(value) if squeezes else 0
                squeezes |= value.startswith(COMPRESSED)  # else it would be taken for a compressed one
                ops.append(put_op(name, COMPRESSED[:1] + zlib.compress(value, 1) if squeezes else value))
            else:
                ops.append(delete_op(name, end_of(name) if change is Change.DELETE_ALL else b""))
        return ops

    def _plain(self, value: bytes) -> bytes:
        """Returns the value of a row as it was committed."""
        if not value.startswith(COMPRESSED):
            return value
        reader = zlib.decompressobj()
        try:
            plain = reader.decompress(value[1:], MAX_VALUE + 1)
        except zlib.error as error:
            raise self._damaged(str(error)) from error
        if len(plain) > MAX_VALUE or not reader.eof:
            raise self._damaged(f"a row of more than {MAX_VALUE} bytes, or cut off")
        return plain

    def _damaged(self, why: str) -> RendezvousStateError:
        return RendezvousStateError(
            f"{self.name} is damaged: {why}; restore a snapshot of etcd, or name another prefix to begin anew"
        )

    async def _write(self, ops: list[Op], doing: str) -> None:
        try:
            with anyio.fail_after(2 * PATIENCE):
                reply: TxnReply = await self._open_client.change(txn([created(*self._fence)], ops), doing)
        except TimeoutError as error:
            message = f"{doing}: etcd has not answered for {2 * PATIENCE:g} s"
            raise RendezvousConnectionError(message, endpoint=self.name, doing=doing) from error
        if not reply.succeeded:
            raise RendezvousStateError(
                f"{doing}: another server leads; this one has been deposed, and changes nothing any more"
            )

    @property
    def _open_client(self) -> FencedClient:
        if self._client is None:
            raise RuntimeError(f"{self.name} is used outside of its 'async with' block")
        return self._client


def _is_regular(value: bytes) -> bool:
    """Whether the beginning of a value can be compressed; that of digests cannot."""
    return len(zlib.compress(value[:SAMPLE], 1)) < SAMPLE

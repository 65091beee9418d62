"""A run as etcd has it, read by whoever wants to know: from the latest snapshot and the log behind it."""

from __future__ import annotations

import anyio

from arendezvous.backends.etcd.fold import Fold
from arendezvous.backends.etcd.records import Batch, Keys, Ledger, decode
from arendezvous.errors import RendezvousStateError
from arendezvous.etcd.client import EtcdClient
from arendezvous.etcd.wire import KeyValue, RangeReply, TxnReply, after, range_op, txn


class Replica:
    """What becomes of the log, up to where it was read.

    Attributes:
        fold: The run.
        ledger: How far its log goes; None if there is no such run.
        ledger_revision: When the ledger was changed last, in etcd's numbers; 0 if there is none.
        inputs: How many have been applied since the latest snapshot.
    """

    def __init__(self, client: EtcdClient, keys: Keys) -> None:
        self._client = client
        self._keys = keys
        self._turn = anyio.Lock()
        self._born = 0
        self.fold = Fold()
        self.ledger: Ledger | None = None
        self.ledger_revision = 0
        self.inputs = 0

    async def refresh(self) -> None:
        """Reads what is new. Cancellation: safe.

        Raises:
            RendezvousConnectionError: No member answered within the client's read time-out.
            RendezvousStateError: What is in etcd is damaged.
            StoreError: The user may not read it.
        """
        keys = self._keys
        async with self._turn:
            known = 0 if self.ledger is None else self.ledger.index
            tail = range_op(keys.log_at(known + 1), after(keys.log))
            ledger, log = await self._read([range_op(keys.ledger), tail])
            held = ledger.kvs[0] if ledger.kvs else None
            same = held is not None and held.create_revision == self._born
            if held is None:
                self._forget()
            elif same and self._is_complete(held, log.kvs, known):
                self._replay(held, log.kvs)
            else:
                await self._read_all()

    async def look(self) -> Fold:
        """Returns the run as it is now. Raises as `refresh` does."""
        await self.refresh()
        self.fold.touched.clear()  # nobody is going to be told by this process
        return self.fold

    async def _read_all(self) -> None:
        keys = self._keys
        everything = [range_op(prefix, after(prefix)) for prefix in (keys.snapshots, keys.log)]
        ledger, snapshots, log = await self._read([range_op(keys.ledger), *everything])
        self._forget()
        if not ledger.kvs:
            return
        found = decode(keys.ledger, ledger.kvs[0].value, Ledger)
        if found.snapshot:
            start = keys.snapshot_at(found.snapshot)
            pieces = [item.value for item in snapshots.kvs if item.key.startswith(start)][: found.pieces]
            if len(pieces) != found.pieces:
                raise _damaged(f"{found.pieces} pieces of snapshot {found.snapshot}", len(pieces))
            self.fold = Fold.from_bytes(b"".join(pieces))
        first = keys.log_at(found.snapshot + 1)
        entries = [item for item in log.kvs if item.key >= first]
        if not self._is_complete(ledger.kvs[0], entries, found.snapshot):
            raise _damaged(f"entries {found.snapshot + 1} to {found.index} of the log", len(entries))
        self._replay(ledger.kvs[0], entries)

    def _is_complete(self, ledger: KeyValue, entries: list[KeyValue], known: int) -> bool:
        index = decode(self._keys.ledger, ledger.value, Ledger).index
        return len(entries) == index - known

    def _replay(self, ledger: KeyValue, entries: list[KeyValue]) -> None:
        batches = [decode(item.key, item.value, Batch) for item in entries]  # all of them, or none
        for batch in batches:
            self.inputs += len(batch.inputs) + 1
            self.fold.apply(batch)
        self.ledger = decode(self._keys.ledger, ledger.value, Ledger)
        self.ledger_revision, self._born = ledger.mod_revision, ledger.create_revision

    def _forget(self) -> None:
        self.fold, self.ledger, self.ledger_revision = Fold(), None, 0
        self._born = self.inputs = 0

    async def _read(self, ops: list[dict[str, object]]) -> list[RangeReply]:
        reply = await self._client.call(
            "kv/txn", txn([], ops), TxnReply, doing="look at the run's log", repeat=True
        )
        return reply.ranges


def _damaged(expected: str, found: int) -> RendezvousStateError:
    return RendezvousStateError(
        f"the run in etcd is damaged: {expected} should be there, but {found} of them are; if nobody uses"
        " the run, delete its keys"
    )

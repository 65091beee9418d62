"""Writing the intents of one process: those that change together go in one transaction.

At most one transaction is under way, and each is good only if the one before it was the last: so one that is
late, because an endpoint kept it for long, cannot undo a newer one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import anyio

from arendezvous.backends.etcd_leases import Leases
from arendezvous.backends.etcd_records import Keys, encode
from arendezvous.backends.etcd_speaker import Speaker
from arendezvous.errors import RendezvousConnectionError, RendezvousError, StoreError
from arendezvous.store import key_to_bytes
from arendezvous.stores.etcd_client import EtcdClient
from arendezvous.stores.etcd_lease import Lease
from arendezvous.stores.etcd_wire import Op, TxnReply, delete_op, put_op, range_op, txn, unchanged

MOST: Final = 120  # intents in one transaction; etcd takes 128 operations, unless it is told otherwise
_PAUSE: Final = 0.1


class Outbox:
    """The intents of a process that are to be written.

    Args:
        client: Whom to write to.
        keys: The run's keys.
        link: The process's name in the run.
        leases: Its leases.
        trouble: Called with each error, and with None after each success.
    """

    def __init__(
        self,
        client: EtcdClient,
        keys: Keys,
        link: str,
        leases: Leases,
        trouble: Callable[[RendezvousError | None], None],
    ) -> None:
        self._client = client
        self._keys = keys
        self._fence = keys.fences + key_to_bytes(link)
        self._leases = leases
        self._trouble = trouble
        self._changed: dict[Speaker, None] = {}
        self._sent: list[Speaker] = []
        self._written: dict[Speaker, Lease] = {}
        self._count = 0
        self._revision = 0
        self._bell = anyio.Event()
        self._empty = anyio.Event()
        self._filled = anyio.Event()

    def holds(self) -> bool:
        """Whether something of this process is written, or is to be."""
        return bool(self._written or self._changed or self._sent)

    async def some(self) -> None:
        """Returns once something of this process is written, or is to be."""
        while not self.holds():
            self._filled = anyio.Event()
            await self._filled.wait()

    def change(self, speaker: Speaker) -> None:
        """The intent of `speaker` is to be written anew."""
        if speaker.intent is not None or speaker in self._written:
            self._changed[speaker] = None
            self._bell.set()
            self._filled.set()

    async def drained(self) -> None:
        """Returns once everything is written."""
        while self._changed or self._sent:
            self._empty = anyio.Event()
            await self._empty.wait()

    async def run(self) -> None:
        """Writes what changes."""
        while True:
            if not self._changed:
                self._empty.set()
                self._bell = anyio.Event()
                await self._bell.wait()
            batch = list(self._changed)[:MOST]
            self._sent = batch
            for speaker in batch:
                del self._changed[speaker]
            done = False
            try:
                done = await self._write(batch)
                if done:
                    self._trouble(None)
                    await self._leases.revoke_stale()
            except RendezvousConnectionError as error:
                self._trouble(error)
                await anyio.sleep(_PAUSE)
            except StoreError as error:  # nothing of the batch will ever be written
                self._trouble(error)
                done = True
                for speaker in batch:
                    speaker.fail(error)
            finally:
                self._sent = []
                if not done:
                    self._changed = dict.fromkeys([*batch, *self._changed])

    async def _write(self, batch: list[Speaker]) -> bool:
        """Writes the intents of `batch` as they are now; returns whether that was done."""
        ops: list[Op] = []
        said = {speaker: speaker.intent for speaker in batch}
        said = {
            speaker: intent
            for speaker, intent in said.items()
            if intent is not None or speaker in self._written
        }
        if not said:
            return True
        for speaker, intent in said.items():
            key = self._keys.intent_of(speaker.path)
            if intent is None:
                ops.append(delete_op(key))
            else:
                speaker.lease = await self._leases.of(speaker.ttl)
                ops.append(put_op(key, encode(intent), speaker.lease.id))
        leases = {speaker: speaker.lease for speaker, intent in said.items() if intent is not None}
        under = next(lease for lease in [*leases.values(), *self._written.values()] if lease is not None)
        number = self._count + 1
        ops.append(put_op(self._fence, b"%d" % number, under.id))
        request = txn([unchanged(self._fence, self._revision)], ops, [range_op(self._fence)])
        try:
            reply = await self._client.call(
                "kv/txn", request, TxnReply, doing=f"write of what {_named(batch)} wants", repeat=True
            )
        except StoreError as error:
            if "lease not found" not in str(error):
                raise
            for ended in {lease for lease in [*leases.values(), under] if lease is not None}:
                self._leases.drop(ended)
            return False
        if reply.succeeded:
            self._revision = reply.header.revision
        else:
            held = reply.ranges[0].kvs
            self._revision = held[0].mod_revision if held else 0
            if not held or held[0].value != b"%d" % number:
                return False  # the fence went with its lease: once more
        self._count = number
        for speaker in said:
            self._written.pop(speaker, None)
        self._written |= {speaker: lease for speaker, lease in leases.items() if lease is not None}
        return True


def _named(batch: list[Speaker]) -> str:
    """The nodes of a batch in words."""
    names = [repr(speaker.name) for speaker in batch if speaker.name]
    shown = ", ".join(names[:4]) or "somebody who steers the run"
    return f"{shown}, ..." if len(names) > 4 else shown

"""Writing the intents of one process: those that change together go in one transaction.

At most one transaction is under way, and each is good only if the fence is as the one before it left it. So
one that was given up, and is carried out late, because an endpoint kept it for long, cannot undo a newer one.
Each has a number of its own, or one that was given up would be taken for another that says something else.
And what may have been written counts as written: it is removed, and that overtakes it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from itertools import chain, islice
from typing import Final

import anyio

from arendezvous.backends.etcd.leases import Leases
from arendezvous.backends.etcd.records import Keys, encode
from arendezvous.backends.etcd.speaker import Speaker
from arendezvous.errors import RendezvousConnectionError, RendezvousError, StoreError
from arendezvous.etcd.client import EtcdClient
from arendezvous.etcd.lease import Lease
from arendezvous.etcd.wire import Op, TxnReply, delete_op, put_op, range_op, txn, unchanged
from arendezvous.stores.arguments import key_to_bytes

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
        self._sent: frozenset[Speaker] = frozenset()
        self._written: dict[Speaker, Lease] = {}
        self._count = 0
        self._revision = 0
        self._bell = anyio.Event()
        self._passed = anyio.Event()  # set, and replaced, with each batch
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

    async def drained(self, speakers: Collection[Speaker]) -> None:
        """Returns once what these want is written; any number of tasks may wait for that."""
        while any(speaker in self._changed or speaker in self._sent for speaker in speakers):
            await self._passed.wait()

    async def run(self) -> None:
        """Writes what changes."""
        while True:
            if not self._changed:
                self._bell = anyio.Event()
                await self._bell.wait()
            batch = list(islice(self._changed, MOST))
            self._sent = frozenset(batch)
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
                await anyio.sleep(_PAUSE)  # what was written before is to be removed: refused as well
            finally:
                self._sent = frozenset()
                if not done:
                    self._changed = dict.fromkeys([*batch, *self._changed])
                passed, self._passed = self._passed, anyio.Event()
                passed.set()

    async def _write(self, batch: list[Speaker]) -> bool:
        """Writes the intents of `batch` as they are now; returns whether that was done.

        Cancellation: whether they were written is then unknown; `run` writes them anew.
        """
        granted = {each: await self._leases.of(each.ttl) for each in batch if each.intent is not None}
        ops: list[Op] = []
        leases: dict[Speaker, Lease] = {}
        removed: list[Speaker] = []
        for speaker in batch:  # from here to where it is sent nothing is waited for: this is what they want
            key, intent = self._keys.intent_of(speaker.path), speaker.intent
            if intent is None and speaker in self._written:
                removed.append(speaker)
                ops.append(delete_op(key))
            elif intent is not None and speaker in granted:
                leases[speaker] = speaker.lease = granted[speaker]
                ops.append(put_op(key, encode(intent), granted[speaker].id))
        if not ops:
            return True
        under = next(chain(leases.values(), self._written.values()))
        new = leases.keys() - self._written.keys()
        self._written |= leases  # from now on it may be
        try:
            done = await self._send(ops, under, f"write of what {_named(batch)} wants")
        except StoreError as error:
            for speaker in new:
                del self._written[speaker]
            if "lease not found" not in str(error):
                raise
            ended = {*leases.values(), under}
            for lease in ended:
                self._leases.drop(lease)
            self._written = {each: held for each, held in self._written.items() if held not in ended}
            return False
        if done:
            for speaker in removed:
                self._written.pop(speaker, None)
        return done

    async def _send(self, ops: list[Op], under: Lease, doing: str) -> bool:
        """Sends a transaction, with the fence under a lease; returns whether it was carried out."""
        self._count += 1
        number = b"%d" % self._count
        fence = put_op(self._fence, number, under.id)
        request = txn([unchanged(self._fence, self._revision)], [*ops, fence], [range_op(self._fence)])
        reply = await self._client.call("kv/txn", request, TxnReply, doing=doing, repeat=True)
        if reply.succeeded:
            self._revision = reply.header.revision
            return True
        held = reply.ranges[0].kvs  # none if the fence went with its lease
        self._revision = held[0].mod_revision if held else 0
        return bool(held) and held[0].value == number


def _named(batch: list[Speaker]) -> str:
    """The nodes of a batch in words."""
    names = [repr(speaker.name) for speaker in batch if speaker.name]
    shown = ", ".join(names[:4]) or "somebody who steers the run"
    return f"{shown}, ..." if len(names) > 4 else shown

"""Leading a run: one process applies what everybody wants, in one order, and tells everybody.

A leader writes first what it applied (the log), then what came of it (letters, and the head at the end). The
log alone counts: whoever takes over reads it, comes to the same state, and tells what the one before had not
told yet. Each write holds only if the leader's key is still the one that it put, and if the ledger is as this
leader left it. So a leader that was deposed while it did not look can change nothing any more, nor can a
request of its own that was on the way for too long.
"""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import Callable
from typing import Final

import anyio
import msgspec

from arendezvous.backends.etcd.fold import Fold
from arendezvous.backends.etcd.records import (
    Batch,
    Intent,
    Keys,
    Ledger,
    Spoke,
    Vanished,
    check_speaker,
    decode,
    encode,
)
from arendezvous.backends.etcd.replica import Replica
from arendezvous.errors import RendezvousConnectionError, RendezvousStateError
from arendezvous.etcd.client import EtcdClient
from arendezvous.etcd.http import EndpointTrouble
from arendezvous.etcd.lease import Lease, LeaseEndedError
from arendezvous.etcd.watch import CompactedError, Follower
from arendezvous.etcd.wire import (
    KeyValue,
    Op,
    RangeReply,
    TxnReply,
    after,
    created,
    delete_op,
    put_op,
    range_op,
    txn,
    unchanged,
)
from arendezvous.stores.arguments import key_from_bytes

logger = logging.getLogger(__name__)

LEADER_TTL: Final = 3.0
MOST_INPUTS: Final = 512
MOST_OPS: Final = 500  # in one transaction, nested by `txn`; etcd allows 128 from its root to a leaf
MOST_BYTES: Final = 500_000
PIECE: Final = 500_000
LEAST_REPLAY: Final = 256
STEP_SECONDS: Final = 2.0


class Deposed(Exception):
    """This leader leads no more: its lease is over, or somebody else leads, or there is nobody to be led."""


class Leader:
    """One process's time as the leader.

    Args:
        client: Whom to ask.
        keys: The run's keys.
        term: The revision at which the leader's key was put.
        lease: The lease that it is under.
        takes_part: Tells whether a node of this process takes part, or is about to.
        shared: Ranges of keys that members keep, to be removed when a round is over.
    """

    def __init__(
        self,
        client: EtcdClient,
        keys: Keys,
        term: int,
        lease: Lease,
        takes_part: Callable[[], bool],
        shared: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        self.lease = lease
        self._client = client
        self._keys = keys
        self._term = term
        self._takes_part = takes_part
        self._shared = shared
        self._writer = secrets.token_hex(8)
        self._fold = Fold()
        self._ledger: Ledger | None = None
        self._revision = 0
        self._inputs = 0
        self._offset = 0.0
        self._run_lease: Lease | None = None
        self._follower: Follower | None = None

    async def lead(self) -> None:
        """Leads until somebody else may. Never returns.

        Raises:
            Deposed: The lease is over, or somebody else leads, or nobody takes part any more.
            RendezvousError: etcd does not answer, or what is there is damaged; to be tried over.
        """
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._hold, self.lease)
                await self._take_over()
                assert self._run_lease is not None  # noqa: S101 - it has been taken over
                tasks.start_soon(self._hold, self._run_lease)
                while self._fold.speakers or self._takes_part():
                    await self._step()
                raise Deposed  # nobody is left who could want something
        except BaseExceptionGroup as group:
            self.close()
            error: BaseException = group
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            raise error from group

    def close(self) -> None:
        """Ends the watch."""
        if self._follower is not None:
            self._follower.close()
            self._follower = None

    async def _hold(self, lease: Lease) -> None:
        await lease.keep()
        raise Deposed

    # Taking over

    async def _take_over(self) -> None:
        """Comes to the state that the log leads to, and tells what came of it since the last snapshot.

        When a snapshot was taken everybody had been told everything. What came after it is told again: the
        leader before may not have come to it.
        """
        self.close()
        keys, self._writer = self._keys, secrets.token_hex(8)
        replica = Replica(self._client, keys)
        await replica.refresh()
        self._fold, self._ledger, self._inputs = replica.fold, replica.ledger, replica.inputs
        self._revision = replica.ledger_revision
        self._offset = self._fold.now - anyio.current_time()
        self._fold.round_over = False  # the keys of the present round are somebody's
        intents = {"key": keys.intents, "range_end": after(keys.intents)}
        reply = await self._client.call(
            "kv/range", intents, RangeReply, doing="look at who takes part", repeat=True
        )
        self._follower = await Follower.open(
            self._client, [(keys.intents, after(keys.intents))], reply.header.revision + 1, "watch of the run"
        )
        await self._adopt_lease()
        inputs = self._heard([(item, "PUT") for item in reply.kvs])
        present = {self._speaker(item) for item in reply.kvs}
        inputs += [Vanished(name) for name in self._fold.speakers if name not in present]
        await self._advance(inputs)

    async def _adopt_lease(self) -> None:
        """Keeps the run's lease alive from now on; a new run gets one with its first entry."""
        if self._ledger is not None:
            number = int(self._ledger.lease, 16)
            lease = Lease(self._client, number, LEADER_TTL, anyio.current_time())
            try:
                await lease.renew()
            except LeaseEndedError as error:
                raise Deposed from error  # the run is over, and its keys are about to go
            self._run_lease = lease

    # One step

    async def _step(self) -> None:
        """Waits for something to do, and does it."""
        assert self._follower is not None  # noqa: S101 - it has been taken over
        due = self._fold.due()
        changes: list[tuple[KeyValue, str]] = []
        with anyio.CancelScope(deadline=math.inf if due is None else due - self._offset):
            try:
                changes = [(each.kv, each.type) for each in await self._follower.next()]
            except (EndpointTrouble, CompactedError) as error:
                raise RendezvousConnectionError(
                    f"the watch of the run broke: {error}", endpoint=self._client.name, doing="watch"
                ) from error
        inputs = self._heard(changes)
        if inputs or (due is not None and due - self._offset <= anyio.current_time()):
            with anyio.move_on_after(STEP_SECONDS) as scope:
                await self._advance(inputs)
            if scope.cancelled_caught:
                raise RendezvousConnectionError(
                    f"{self._client.name} did not take what was written within {STEP_SECONDS:g} s",
                    endpoint=self._client.name,
                    doing="folding",
                )

    def _heard(self, changes: list[tuple[KeyValue, str]]) -> list[Spoke | Vanished]:
        """What there is to apply in changes of intents; what is no intent is left aside."""
        inputs: list[Spoke | Vanished] = []
        said: dict[str, int] = {}
        for item, kind in changes:
            speaker = self._speaker(item)
            known = self._fold.speakers.get(speaker)
            if kind != "PUT":
                if known is not None or speaker in said:
                    inputs.append(Vanished(speaker))
                    said[speaker] = 0
                continue
            try:
                intent = decode(item.key, item.value, Intent)
                check_speaker(speaker)
            except RendezvousStateError as error:
                logger.warning("%s", error)
                continue
            answered = said.get(speaker, 0 if known is None else known.answered)
            news = tuple(each for each in intent.said if each.number > answered)
            if news:
                said[speaker] = news[-1].number
                inputs.append(Spoke(speaker, news))
        return inputs

    def _speaker(self, item: KeyValue) -> str:
        return key_from_bytes(item.key.removeprefix(self._keys.intents))

    async def _advance(self, inputs: list[Spoke | Vanished]) -> None:
        """Applies inputs, and tells what came of it; without any, lets time pass."""
        for start in range(0, len(inputs) or 1, MOST_INPUTS):
            batch = Batch(anyio.current_time() + self._offset, tuple(inputs[start : start + MOST_INPUTS]))
            self._fold.apply(batch)
            self._inputs += len(batch.inputs) + 1
            await self._publish(batch)
        if self._inputs > max(LEAST_REPLAY, 2 * len(self._fold.speakers)):
            await self._snapshot()

    # Writing

    async def _publish(self, batch: Batch) -> None:
        """Writes an entry of the log, then all that follows from it; in one transaction if it is not much."""
        fold = self._fold
        if self._run_lease is None:
            expiry = 0.0 if fold.state is None else fold.state.settings.expiry
            self._run_lease = await Lease.grant(self._client, expiry + 2 * LEADER_TTL)
        lease = self._run_lease.id
        index = 1 if self._ledger is None else self._ledger.index + 1
        ledger = (
            Ledger(index, self._writer, f"{lease:x}")
            if self._ledger is None
            else msgspec.structs.replace(self._ledger, index=index, writer=self._writer)
        )
        entry = [put_op(self._keys.log_at(index), encode(batch), lease)]
        if fold.round_over:  # with the entry, which is written once: the keys of the next round are safe
            entry += [delete_op(*keys) for keys in self._shared]
        news = self._news(lease)
        chunks = _chunks(news)
        if len(chunks) <= 1 and len(news) + len(entry) < MOST_OPS:
            await self._commit(ledger, [*entry, *news])
            return
        await self._commit(ledger, entry)
        for chunk in chunks:
            await self._write(chunk)

    def _news(self, lease: int) -> list[Op]:
        """The letters that have changed and, behind them, the head if it has."""
        fold, ops = self._fold, []
        for speaker in fold.touched:
            letter, key = fold.letter(speaker), self._keys.mail_of(speaker)
            ops.append(delete_op(key) if letter is None else put_op(key, encode(letter), lease))
        if fold.head_touched:
            ops.append(put_op(self._keys.head, encode(fold.head()), lease))
        fold.touched, fold.head_touched, fold.round_over = {}, False, False
        return ops

    async def _snapshot(self) -> None:
        """Writes the whole state, so that the log up to here is needed no more; in proportion to the log."""
        assert self._ledger is not None  # noqa: S101 - there is a log
        keys, index, lease = self._keys, self._ledger.index, int(self._ledger.lease, 16)
        image = self._fold.to_bytes()
        pieces = [image[at : at + PIECE] for at in range(0, len(image), PIECE)]
        for number, piece in enumerate(pieces):
            await self._write([put_op(keys.snapshot_at(index) + b"%08d" % number, piece, lease)])
        ledger = msgspec.structs.replace(
            self._ledger, writer=self._writer, snapshot=index, pieces=len(pieces)
        )
        old_log = delete_op(keys.log_at(0), keys.log_at(index + 1))
        old_snapshots = delete_op(keys.snapshots, keys.snapshot_at(index))
        await self._commit(ledger, [old_log, old_snapshots])
        self._inputs = 0

    async def _commit(self, ledger: Ledger, ops: list[Op]) -> None:
        """Writes `ops` together with the new ledger."""
        lease = int(ledger.lease, 16)
        self._revision = await self._fenced([*ops, put_op(self._keys.ledger, encode(ledger), lease)], ledger)
        self._ledger = ledger

    async def _write(self, ops: list[Op]) -> None:
        await self._fenced(ops, None)

    async def _fenced(self, ops: list[Op], ledger: Ledger | None) -> int:
        """Writes `ops` if this leader still leads, and nobody has written since; returns the revision.

        With `ledger` among them, a request that was carried out though its reply was lost is recognised.
        """
        keys = self._keys
        conditions = [created(keys.leader, self._term), unchanged(keys.ledger, self._revision)]
        request = txn(conditions, ops, [range_op(keys.leader), range_op(keys.ledger)])
        reply = await self._client.call(
            "kv/txn", request, TxnReply, doing="write of the run's state", repeat=True
        )
        if reply.succeeded:
            return reply.header.revision
        leader, found = (each.kvs[0] if each.kvs else KeyValue() for each in reply.ranges)
        if leader.create_revision == self._term and ledger is not None and found.value == encode(ledger):
            return found.mod_revision
        raise Deposed


def _chunks(ops: list[Op]) -> list[list[Op]]:
    """Cuts operations into pieces that fit into one transaction each."""
    chunks: list[list[Op]] = []
    size = MOST_BYTES
    for op in ops:
        weight = len(op.get("request_put", {}).get("value", b"")) + 100
        if size + weight > MOST_BYTES or len(chunks[-1]) >= MOST_OPS:
            chunks.append([])
            size = 0
        chunks[-1].append(op)
        size += weight
    return chunks

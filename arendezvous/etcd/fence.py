"""Changes in etcd that are carried out in the order in which they were asked for, or not at all.

Each request may take a connection of its own, to a member of its own. So one that was cancelled, or whose
answer was lost, may be carried out behind what its sender asks for later. Here every change holds only as
long as a mark is absent, and whoever has given one up puts that mark before asking for anything else. What
it asks for from then on goes by another mark.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any, Final, TypeVar

import anyio

from arendezvous.errors import RendezvousConnectionError, StoreError
from arendezvous.etcd.client import EtcdClient
from arendezvous.etcd.cluster import EtcdCluster
from arendezvous.etcd.wire import LeaseReply, TxnReply, created, put_op, txn, txn_op

T = TypeVar("T")

MARK_TTL: Final = 60  # seconds; etcd itself gives a request up after some 7 s


class FencedClient(EtcdClient):
    """A client whose changes come in order.

    Args:
        cluster: See `EtcdClient`.
        marks: What the keys of its marks begin with. There is one for each time that something was given up,
            for `MARK_TTL` seconds.
        read_timeout: See `EtcdClient`.

    Its fields:
        _marks: What the keys of the marks of this client begin with.
        _marked: How many of them it has put; the changes of this moment hold while the next one is absent.
        _gave_up: Whether a change was given up since, and may be carried out yet.
        _marking: Held while a mark is put, which is done once for all who wait for it.
    """

    def __init__(
        self, cluster: EtcdCluster | str | Sequence[str], *, marks: bytes, read_timeout: float = 10.0
    ) -> None:
        super().__init__(cluster, read_timeout=read_timeout)
        self._marks = marks + secrets.token_hex(8).encode() + b"/"
        self._marked = 0
        self._gave_up = False
        self._marking = anyio.Lock()

    async def call(
        self,
        method: str,
        request: Any,
        kind: type[T],
        *,
        doing: str,
        repeat: bool,
        seconds: float | None = None,
    ) -> T:
        """See `EtcdClient.call`. What was given up before is seen now, or never will be."""
        await self._settle(doing)
        return await super().call(method, request, kind, doing=doing, repeat=repeat, seconds=seconds)

    async def change(self, request: dict[str, Any], doing: str) -> TxnReply:
        """Carries out a transaction, once. Cancellation: it is carried out before what comes next, or never.

        Args:
            request: What `txn` returns.
            doing: What errors say was being done.

        Raises:
            RendezvousConnectionError: No endpoint answered in time, or one may have carried it out without
                saying so; or may yet, but not behind what comes next.
            StoreError: etcd refuses it, or the client is closed; nothing has changed.
        """
        while True:
            await self._settle(doing)
            number = self._marked
            fence = created(self._mark(number), 0)
            if request["compare"]:
                fenced = txn([fence], [txn_op(**request)])
            else:
                fenced = {**request, "compare": [fence]}  # one transaction is less work than two
            try:
                reply = await super().call("kv/txn", fenced, TxnReply, doing=doing, repeat=False)
            except StoreError:
                raise
            except BaseException:
                self._gave_up |= number == self._marked
                raise
            if reply.succeeded:  # else it was overtaken by the mark for another that was given up
                return _inner(reply) if request["compare"] else reply
            if number == self._marked and not self._gave_up:
                said = f"{doing} at {self.name}: etcd says that a mark is there which nobody has put"
                raise RendezvousConnectionError(said, endpoint=self.name, doing=doing)

    def _mark(self, number: int) -> bytes:
        return self._marks + b"%d" % number

    async def _settle(self, doing: str) -> None:
        """Sees to it that nothing that was given up can be carried out any more."""
        if not self._gave_up:
            return
        number = self._marked
        async with self._marking:
            if number != self._marked:  # another caller has seen to it
                return
            ttl = {"TTL": str(MARK_TTL)}
            lease = await super().call("lease/grant", ttl, LeaseReply, doing=doing, repeat=True)
            mark = txn([], [put_op(self._mark(number), b"", lease.ID)])
            await super().call("kv/txn", mark, TxnReply, doing=doing, repeat=True)
            self._marked += 1
            self._gave_up = False


def _inner(reply: TxnReply) -> TxnReply:
    """The reply to a transaction inside another, with the header, which etcd leaves out there."""
    inner = reply.responses[0].response_txn or TxnReply()
    inner.header = reply.header
    return inner

"""The store that members of a run in etcd share: its keys live as long as the run does."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from arendezvous.errors import StoreError
from arendezvous.etcd.cluster import EtcdCluster
from arendezvous.etcd.fence import FencedClient
from arendezvous.etcd.wire import TxnReply
from arendezvous.stores.etcd.v3 import EtcdStore

FindLease = Callable[[bool], Awaitable[int]]


class RunStore(EtcdStore):
    """An `EtcdStore` all of whose keys are under the lease of a run; without a run nothing can be stored.

    Args:
        cluster: See `EtcdStore`.
        find_lease: Returns the number of the run's lease; 0 if there is no such run. With True, it asks etcd
            though it knows one.
        options: The other arguments of `EtcdStore`.
    """

    def __init__(self, cluster: EtcdCluster, find_lease: FindLease, **options: Any) -> None:
        self._find_lease = find_lease
        super().__init__(cluster, **options)

    def _make_client(
        self, cluster: EtcdCluster | str | Sequence[str], marks: bytes, read_timeout: float
    ) -> FencedClient:
        return _LeasedClient(self._find_lease, cluster, marks=marks, read_timeout=read_timeout)


class _LeasedClient(FencedClient):
    """Puts everything under a lease."""

    def __init__(
        self, find_lease: FindLease, cluster: EtcdCluster | str | Sequence[str], **options: Any
    ) -> None:
        super().__init__(cluster, **options)
        self._find_lease = find_lease

    async def change(self, request: dict[str, Any], doing: str) -> TxnReply:
        if _under(request, 1) == request:  # it puts nothing
            return await super().change(request, doing)
        for fresh in (False, True):
            lease = await self._find_lease(fresh)
            if not lease:
                break
            try:
                return await super().change(_under(request, lease), doing)
            except StoreError as error:
                if "lease not found" not in str(error):
                    raise
        raise StoreError(
            f"{doing}: what members share lasts as long as their run, and that is over, or to come"
        )


def _under(request: dict[str, Any], lease: int) -> dict[str, Any]:
    """A put or a transaction whose puts are all under `lease`; any other request as it is."""
    if "value" in request:
        return {**request, "lease": str(lease)}
    branches: dict[str, Any] = {
        name: [_op_under(op, lease) for op in request[name]]
        for name in ("success", "failure")
        if name in request
    }
    return {**request, **branches}


def _op_under(op: dict[str, Any], lease: int) -> dict[str, Any]:
    for name in ("request_put", "request_txn"):
        if name in op:
            return {name: _under(op[name], lease)}
    return op

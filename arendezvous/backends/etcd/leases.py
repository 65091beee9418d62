"""The leases of one process in one run: kept alive together, whoever needs them."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import anyio.abc

from arendezvous.errors import RendezvousConnectionError
from arendezvous.etcd.client import EtcdClient
from arendezvous.etcd.lease import Lease


class Leases:
    """One lease for every length that is asked for.

    Args:
        client: Whom to ask.
        ended: Called with a lease that has ended, or may have.
    """

    def __init__(self, client: EtcdClient, ended: Callable[[Lease], None]) -> None:
        self._client = client
        self._ended = ended
        self._leases: dict[float, Lease] = {}
        self._stale: list[Lease] = []
        self._granting = anyio.Lock()
        self._new = anyio.Event()

    async def of(self, seconds: float) -> Lease:
        """Returns the lease of so many seconds; asks for one if there is none.

        Raises:
            RendezvousConnectionError: No member answered within the client's read time-out.
            StoreError: etcd refuses it.
        """
        async with self._granting:
            lease = self._leases.get(seconds)
            if lease is None:
                lease = self._leases[seconds] = await Lease.grant(self._client, seconds)
                self._new.set()
            return lease

    def check(self) -> None:
        """Drops the leases that may have ended by now, without waiting for anybody to find out."""
        for lease in [lease for lease in self._leases.values() if lease.over]:
            self.drop(lease)

    def drop(self, lease: Lease) -> None:
        """The lease has ended, or may have: nobody gets it any more."""
        for seconds, held in list(self._leases.items()):
            if held is lease:
                del self._leases[seconds]
                self._stale.append(lease)
                self._ended(lease)

    async def run(self) -> None:
        """Keeps them alive."""
        kept: set[Lease] = set()
        async with anyio.create_task_group() as tasks:
            while True:
                for lease in self._leases.values():
                    if lease not in kept:
                        kept.add(lease)
                        tasks.start_soon(self._keep, lease)
                self._new = anyio.Event()
                await self._new.wait()

    async def _keep(self, lease: Lease) -> None:
        await lease.keep()
        self.drop(lease)

    async def revoke_stale(self) -> None:
        """Ends those that were dropped, should they be alive after all."""
        stale, self._stale = self._stale, []
        for lease in stale:
            try:
                await lease.revoke()
            except RendezvousConnectionError:
                continue  # it ends by itself

    async def revoke_all(self) -> None:
        """Ends all of them, and with them all that is kept under them."""
        leases = [*self._leases.values(), *self._stale]
        self._leases.clear()
        self._stale.clear()
        async with anyio.create_task_group() as tasks:
            for lease in leases:
                tasks.start_soon(_revoke, lease)


async def _revoke(lease: Lease) -> None:
    try:
        await lease.revoke()
    except RendezvousConnectionError:
        return  # it ends by itself

"""Leases of etcd v3: what their keys live by; see etcd's documentation under "Lease API"."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Self

import anyio

from arendezvous.errors import RendezvousConnectionError, StoreError
from arendezvous.etcd.client import EtcdClient
from arendezvous.etcd.wire import LeaseReply, Line
from arendezvous.net.backoff import Backoff

_LEAST: Final = 0.05
_RENEWAL: Final = "renewal of a lease"


class LeaseEndedError(Exception):
    """The lease has ended, and with it all of its keys."""


@dataclass(eq=False)
class Lease:
    """One lease, and for how long it surely lasts.

    etcd counts its time from when it receives a keep-alive; we count from before the keep-alive was sent, so
    that `deadline` is never later than the end of the lease, whatever the two clocks show.

    Attributes:
        client: Renews it.
        id: Its number in etcd.
        ttl: For how many seconds it lasts without being renewed.
        renewed: When the last keep-alive that has been answered was sent, on this loop's clock.
        trouble: Why the last attempt to renew it failed; None if it did not.
    """

    client: EtcdClient
    id: int
    ttl: float
    renewed: float
    trouble: RendezvousConnectionError | StoreError | None = None

    @classmethod
    async def grant(cls, client: EtcdClient, seconds: float) -> Self:
        """Asks for a lease of at least `seconds`; etcd has whole seconds, and a least number of them.

        Raises as `EtcdClient.call` does.
        """
        sent = anyio.current_time()
        request = {"TTL": str(max(1, math.ceil(seconds)))}
        reply = await client.call("lease/grant", request, LeaseReply, doing="grant of a lease", repeat=True)
        return cls(client, reply.ID, float(reply.TTL), sent)

    @property
    def deadline(self) -> float:
        """Until when it surely lasts, on this loop's clock."""
        return self.renewed + self.ttl

    @property
    def over(self) -> bool:
        """Whether it may have ended."""
        return anyio.current_time() >= self.deadline

    async def renew(self) -> None:
        """Renews it once; raises as `EtcdClient.call` does, and `LeaseEndedError` if it has ended.

        It tries for a third of its time. Cancellation: whether it was renewed is then unknown.
        """
        sent = anyio.current_time()
        seconds = max(_LEAST, min(self.ttl / 3, self.deadline - sent))
        try:
            request = {"ID": str(self.id)}
            line: Line[LeaseReply] = await self.client.call(
                "lease/keepalive", request, Line[LeaseReply], doing=_RENEWAL, repeat=True, seconds=seconds
            )
        except (RendezvousConnectionError, StoreError) as error:
            self.trouble = error
            raise
        if line.result is None:
            said = "nothing" if line.error is None else line.error.message
            self.trouble = self.client.failed(_RENEWAL, f" at {self.client.name}: etcd says {said!r}")
            raise self.trouble
        if line.result.TTL <= 0:
            raise LeaseEndedError
        self.renewed, self.ttl, self.trouble = sent, float(line.result.TTL), None

    async def keep(self) -> None:
        """Renews it again and again, each time when a third of its time is over; an error is tried over.

        Returns:
            When it has ended, or may have.
        """
        pauses = Backoff(last=self.ttl / 20).start()
        while not self.over:
            await anyio.sleep_until(min(self.deadline, self.renewed + self.ttl / 3))
            with anyio.move_on_after(max(0.0, self.deadline - anyio.current_time())):
                try:
                    await self.renew()
                    pauses.reset()
                except LeaseEndedError:
                    return
                except (RendezvousConnectionError, StoreError):
                    await pauses.sleep()

    async def revoke(self) -> None:
        """Ends it now; its keys go in one moment. Raises `RendezvousConnectionError` if nobody answers.

        It is not kept any more, whatever comes of this.
        """
        self.renewed = -math.inf
        request, doing = {"ID": str(self.id)}, "revocation of a lease"
        with suppress(StoreError):  # it had ended already
            await self.client.call("lease/revoke", request, LeaseReply, doing=doing, repeat=True)

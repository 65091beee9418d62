"""How long ago the processes of a run renewed their leases, as etcd counts it."""

from __future__ import annotations

from typing import Final

import anyio

from arendezvous.backends.etcd.records import Keys
from arendezvous.errors import StoreError
from arendezvous.etcd.client import EtcdClient
from arendezvous.etcd.wire import LeaseTime, RangeReply, after
from arendezvous.stores.arguments import key_from_bytes

MOST_LEASES: Final = 64  # each is a request of its own


async def lease_ages(client: EtcdClient, keys: Keys) -> dict[str, float]:
    """The whole seconds since each speaker's lease was renewed; empty if there are too many leases.

    Raises:
        RendezvousConnectionError: No member answered within the client's read time-out.
        StoreError: The user may not read the intents.
    """
    request = {"key": keys.intents, "range_end": after(keys.intents), "keys_only": True}
    reply = await client.call("kv/range", request, RangeReply, doing="look at who takes part", repeat=True)
    speakers = {key_from_bytes(item.key.removeprefix(keys.intents)): item.lease for item in reply.kvs}
    leases = set(speakers.values())
    if len(leases) > MOST_LEASES:
        return {}
    ages: dict[int, float] = {}

    async def ask(lease: int) -> None:
        try:
            time = await client.call(
                "lease/timetolive", {"ID": str(lease)}, LeaseTime, doing="look at a lease", repeat=True
            )
        except StoreError:
            return  # it has just ended, or this etcd does not tell
        ages[lease] = max(0.0, float(time.grantedTTL - time.TTL))

    async with anyio.create_task_group() as tasks:
        for lease in leases:
            tasks.start_soon(ask, lease)
    return {speaker: ages[lease] for speaker, lease in speakers.items() if lease in ages}

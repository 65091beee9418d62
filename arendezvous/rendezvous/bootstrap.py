"""The store that the workers of a round start from: rank 0 hosts it, the others are told where it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from typing import ClassVar

from arendezvous.errors import RendezvousSettingsError, RendezvousStateError
from arendezvous.stores.port import HostedStore, Store
from arendezvous.wire.foreign import decode_foreign


@dataclass(frozen=True)
class RendezvousStoreInfo:
    """Tells the workers of a round where they find their store.

    Attributes:
        master_addr: The address of rank 0's node.
        master_port: The port that its store server listens on.
    """

    MASTER_ADDR_KEY: ClassVar[str] = "MASTER_ADDR"
    MASTER_PORT_KEY: ClassVar[str] = "MASTER_PORT"

    master_addr: str
    master_port: int

    @staticmethod
    async def build(
        rank: int, store: Store, local_addr: str | None, server_port: int | None = None
    ) -> RendezvousStoreInfo:
        """Publishes rank 0's address and port in `store`, and reads them at every rank.

        Args:
            rank: The rank of this node.
            store: A store that belongs to one round alone; a stale address would hang its workers.
            local_addr: Rank 0's address; the other ranks may pass None.
            server_port: The port that rank 0 listens on already, so that nobody else can take it between
                publishing and use; the other ranks pass None.

        Raises:
            RendezvousSettingsError: Rank 0 gave no address or no port.
            RendezvousStateError: What was published is no port.
            StoreTimeoutError: Rank 0 published nothing within the store's time-out.
            RendezvousConnectionError: The store cannot be reached.

        Cancellation: safe; rank 0 may have published or not.
        """
        keys = (RendezvousStoreInfo.MASTER_ADDR_KEY, RendezvousStoreInfo.MASTER_PORT_KEY)
        if rank == 0:
            if not local_addr:
                raise RendezvousSettingsError.of("local_addr", local_addr, "rank 0's address")
            if not server_port:
                raise RendezvousSettingsError.of("server_port", server_port, "a port that rank 0 listens on")
            await store.multi_set(keys, (local_addr, str(server_port)))
            return RendezvousStoreInfo(local_addr, server_port)
        return decode_foreign(_published, await store.multi_get(keys), RendezvousStateError)


def _published(values: Sequence[bytes]) -> RendezvousStoreInfo:
    address, port = values
    if not port.isdigit() or not 0 < len(port) <= len("65535") or not address:
        shown = f"address {address[:80]!r}, port {port[:80]!r}"
        raise ValueError(f"rank 0 published {shown}; expected a host and a number")
    return RendezvousStoreInfo(address.decode(), int(port))


class RoundBootstrap:
    """Rank 0's part: it serves a fresh store from the first time that it is asked to the end of the round.

    Its fields:
        _server: The store of this round; None as long as nobody has asked for it.
        _resources: Ends it.
    """

    def __init__(self, host_store: Callable[[str], AbstractAsyncContextManager[HostedStore]]) -> None:
        self._host_store = host_store
        self._resources = AsyncExitStack()
        self._server: HostedStore | None = None

    async def publish(self, store: Store, address: str) -> RendezvousStoreInfo:
        """Serves the workers' store at `address`, if it is not served yet, and publishes where it is."""
        if self._server is None:
            self._server = await self._resources.enter_async_context(self._host_store(address))
        return await RendezvousStoreInfo.build(0, store, address, self._server.port)

    async def end(self) -> None:
        """Ends the service; the next round gets a store of its own."""
        self._server = None
        await self._resources.aclose()

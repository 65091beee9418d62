"""A store alone, with the protocol of torch's TCPStore: what rank 0 hosts for the workers of a round."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from arendezvous.keyspace.host import KeyspaceHost
from arendezvous.net.background import finish, require_asyncio
from arendezvous.net.forks import let_go_in_children
from arendezvous.server.access.admission import FailureThrottle
from arendezvous.server.access.limits import DEFAULT_LIMITS, ServerLimits
from arendezvous.server.binding import accepting, set_no_delay, stop_listening
from arendezvous.server.tcp.c10d import DEFAULT_SETTINGS, C10dConnection, C10dSettings
from arendezvous.server.tcp.sharing import Shared


@dataclass
class StoreServer:
    """A running store server, with the address and port that it listens on, and what it serves."""

    host: str
    port: int
    keys: KeyspaceHost


@asynccontextmanager
async def serve_store(
    host: str = "127.0.0.1",
    port: int = 0,
    settings: C10dSettings = DEFAULT_SETTINGS,
    limits: ServerLimits = DEFAULT_LIMITS,
) -> AsyncIterator[StoreServer]:
    """Serves a store, with the protocol of ``torch.distributed.TCPStore``, while the block runs.

    Port 0 picks a free one; `settings` are for one client, `limits` for all of them together, and the store.
    On leaving the block every connection is broken off, as if the process had been killed.

    Raises:
        OSError: The address cannot be bound.
    """
    require_asyncio("a server")
    keys = KeyspaceHost(limits.store)
    shared = Shared(limits, FailureThrottle())
    connections: dict[C10dConnection, asyncio.BaseTransport] = {}

    class Connection(C10dConnection):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            set_no_delay(transport)
            let_go_in_children(transport)
            connections[self] = transport
            super().connection_made(transport)

        def connection_lost(self, exc: Exception | None) -> None:
            del connections[self]
            super().connection_lost(exc)

    server = await accepting(lambda: Connection(keys, shared, settings), host, port)
    try:
        yield StoreServer(host, server.sockets[0].getsockname()[1], keys)
    finally:
        await finish(_stop, server, shared, connections)


async def _stop(
    server: asyncio.Server, shared: Shared, connections: dict[C10dConnection, asyncio.BaseTransport]
) -> None:
    await stop_listening(server)
    shared.close()
    for transport in connections.values():
        if isinstance(transport, asyncio.Transport):
            transport.abort()
    await asyncio.sleep(0)  # lets the transports tell their protocols

"""`serve`: the whole server as one asynchronous context manager."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from arendezvous.coordinator import Coordinator
from arendezvous.endpoint import join_host_port, parse_host_port
from arendezvous.errors import RendezvousSettingsError
from arendezvous.keyspace_host import KeyspaceHost
from arendezvous.server.clock import StallProofClock
from arendezvous.server.limits import DEFAULT_LIMITS, ServerLimits
from arendezvous.server.recording import record_events
from arendezvous.server.tcp import TcpServer
from arendezvous.server.tidy import tidy_up


class Server:
    """A running server.

    Attributes:
        host: The address that it listens on.
        port: The port that it listens on.
        coordinator: Where its runs are.
    """

    def __init__(self, host: str, port: int, coordinator: Coordinator) -> None:
        self.host = host
        self.port = port
        self.coordinator = coordinator

    @property
    def tcp_url(self) -> str:
        """What nodes on this machine pass as their endpoint."""
        return f"tcp://{join_host_port(self.host, self.port)}"

    @property
    def is_over(self) -> bool:
        """Whether every run here is closed."""
        return all(run.state.closed is not None for run in self.coordinator.runs.values())

    async def deserted(self) -> None:
        """Waits until no node is in any run. Cancellation: safe."""
        gone = anyio.Event()

        def look(*_: object) -> None:
            if not any(run.state.nodes for run in self.coordinator.runs.values()):
                gone.set()

        stop = self.coordinator.observe(look)
        try:
            look()
            await gone.wait()
        finally:
            stop()


@asynccontextmanager
async def serve(
    address: str = "127.0.0.1:29400",
    *,
    insecure: bool = False,
    embedded: bool = False,
    limits: ServerLimits = DEFAULT_LIMITS,
) -> AsyncIterator[Server]:
    """Serves native sessions, and the protocol of torch's TCPStore, on `address` while the block runs.

    Args:
        address: ``host:port``; port 0 picks a free one.
        insecure: Allows an address that is not loopback: anybody who reaches it may join and close runs.
        embedded: Tells the nodes that one of them hosts it, so that another may when this one ends.
        limits: What it takes on.

    Yields:
        The server.

    Raises:
        RendezvousSettingsError: The address is malformed, or not loopback without `insecure`.
        RendezvousConnectionError: The address cannot be bound.

    Leaving the block closes all connections; nodes try to reconnect, so a server that is started again on
    the same address gets them back.
    """
    host, port = parse_host_port(address, name="address")
    if not insecure and not is_loopback(host):
        expected = "a loopback address, or insecure=True (--insecure) to let anybody in"
        raise RendezvousSettingsError.of("address", address, expected)
    clock = StallProofClock(asyncio.get_running_loop())
    coordinator = Coordinator(asyncio.get_running_loop(), clock, limits.coordinator)
    keys = KeyspaceHost()
    tidy_up(coordinator, keys.keyspace)
    tcp = TcpServer(coordinator, keys, limits, embedded=embedded)
    try:
        host, port = await tcp.start(host, port)
        server = Server(host, port, coordinator)
        record_events(coordinator, server.tcp_url)
        yield server
    finally:
        clock.stop()
        try:
            await tcp.stop()
        finally:
            coordinator.close()


def is_loopback(host: str) -> bool:
    """Tells whether only this machine can reach `host`; never asks DNS."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

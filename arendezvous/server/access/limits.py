"""What a server takes on before it says no."""

from __future__ import annotations

from typing import Final

import msgspec

from arendezvous.coordinator.coordinator import CoordinatorLimits


class ServerLimits(msgspec.Struct, frozen=True):
    """How much one server takes on; whoever is over a limit is told so and dropped, and nobody else notices.

    Attributes:
        max_connections: Connections at once, over all doors.
        connection_rate: New connections in each second from one address (one /64 of IPv6), over all doors,
            once there were `connection_burst`; None: any number. Those beyond are refused until there were
            fewer for a while. A proxy is one address.
        connection_burst: New connections that one address may make at once: the nodes behind a NAT start
            together, each with a few connections, and come back together.
        handshake_timeout: Seconds that a new connection has to say what it wants.
        write_high_water: Bytes waiting to be read by a peer above which its requests are not read any more.
        write_limit: Bytes waiting to be read by a peer above which its connection is dropped.
        max_body: Bytes in the body of one HTTP request.
        max_bodies: Bytes in the bodies of all HTTP requests that are under way.
        idle_timeout: Seconds that an HTTP connection may be idle between two requests.
        write_timeout: Seconds that an HTTP client may leave an answer unread.
        coordinator: Limits on runs and nodes.
    """

    max_connections: int = 65_536
    connection_rate: float | None = None
    connection_burst: int = 16_384
    handshake_timeout: float = 10.0
    write_high_water: int = 256 * 1024
    write_limit: int = 64 * 1024 * 1024
    max_body: int = 64 * 1024 * 1024
    max_bodies: int = 256 * 1024 * 1024
    idle_timeout: float = 75.0
    write_timeout: float = 60.0
    coordinator: CoordinatorLimits = CoordinatorLimits()


DEFAULT_LIMITS: Final = ServerLimits()

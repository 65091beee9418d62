"""What a server takes on before it says no."""

from __future__ import annotations

from typing import Final

import msgspec

from arendezvous.coordinator import CoordinatorLimits


class ServerLimits(msgspec.Struct, frozen=True):
    """How much one server takes on; whoever is over a limit is told so and dropped, and nobody else notices.

    Attributes:
        max_connections: Connections at once, over all doors.
        handshake_timeout: Seconds that a new connection has to say what it wants.
        write_high_water: Bytes waiting to be read by a peer above which its requests are not read any more.
        write_limit: Bytes waiting to be read by a peer above which its connection is dropped.
        coordinator: Limits on runs and nodes.
    """

    max_connections: int = 65_536
    handshake_timeout: float = 10.0
    write_high_water: int = 256 * 1024
    write_limit: int = 64 * 1024 * 1024
    coordinator: CoordinatorLimits = CoordinatorLimits()


DEFAULT_LIMITS: Final = ServerLimits()

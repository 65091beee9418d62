"""What a server takes on before it says no."""

from __future__ import annotations

from typing import Final

import msgspec

from arendezvous.coordinator.budget import CoordinatorLimits
from arendezvous.keyspace.regions import KeyspaceLimits

MIB: Final = 1024 * 1024


class ServerLimits(msgspec.Struct, frozen=True):
    """How much one server takes on; whoever is over a limit is told so and dropped, and nobody else notices.

    The defaults fit a machine of 4 GB: docs/limits.md adds them up, and says what happens over each.

    Attributes:
        max_connections: Connections at once, over all listeners.
        connection_rate: New connections in each second from one address (one /64 of IPv6), over all
            listeners, once there were `connection_burst`; None: any number. Those beyond are refused until
            there were fewer for a while. A proxy is one address.
        connection_burst: New connections that one address may make at once: the nodes behind a NAT start
            together, each with a few connections, and come back together.
        handshake_timeout: Seconds that a new connection has to say what it wants.
        max_greetings: Bytes of first messages that are not complete, of one address; nobody has shown a token
            by then.
        max_unread: Bytes of answers that peers do not read, over all connections but those of HTTP.
        write_timeout: Seconds that a peer may leave what it was sent unread.
        max_unfinished: Bytes of requests that are not complete, over all connections but those of HTTP.
        request_timeout: Seconds that such a request may take.
        max_body: Bytes in the body of one HTTP request.
        max_bodies: Bytes in the bodies of all HTTP requests that are under way.
        idle_timeout: Seconds that an HTTP connection may be idle between two requests.
        coordinator: Limits on runs and nodes.
        store: Limits on keys and values.
    """

    max_connections: int = 65_536
    connection_rate: float | None = None
    connection_burst: int = 16_384
    handshake_timeout: float = 10.0
    max_greetings: int = 4 * MIB
    max_unread: int = 256 * MIB
    write_timeout: float = 60.0
    max_unfinished: int = 256 * MIB
    request_timeout: float = 60.0
    max_body: int = 64 * MIB
    max_bodies: int = 256 * MIB
    idle_timeout: float = 75.0
    coordinator: CoordinatorLimits = CoordinatorLimits()
    store: KeyspaceLimits = KeyspaceLimits()


DEFAULT_LIMITS: Final = ServerLimits()

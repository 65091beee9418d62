"""Sets what a server takes on before it says no."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Final, cast

import msgspec

from arendezvous.coordinator.budget import CoordinatorLimits
from arendezvous.errors import RendezvousSettingsError
from arendezvous.keyspace.regions import KeyspaceLimits
from arendezvous.net.typed import check_fields

MIB: Final = 1024 * 1024


class ServerLimits(msgspec.Struct, frozen=True):
    """How much one server takes on; whoever is over a limit is told so and dropped, and nobody else notices.

    The defaults fit a machine of 4 GB: docs/reference/limits.md adds them up and says what happens over each.

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
        max_unread: Bytes of answers that peers do not read, over all connections.
        write_timeout: Seconds that a peer may leave what it was sent unread.
        max_unfinished: Bytes of requests that are not complete, over all connections but those of HTTP.
        request_timeout: Seconds that such a request may take.
        max_body: Bytes in the body of one HTTP request.
        max_bodies: Bytes in the bodies of all HTTP requests that are under way.
        max_client_bodies: The same of one client: the bearer of one token at one address.
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
    max_client_bodies: int = 128 * MIB
    idle_timeout: float = 75.0
    coordinator: CoordinatorLimits = CoordinatorLimits()
    store: KeyspaceLimits = KeyspaceLimits()

    def __post_init__(self) -> None:
        for limits in (self, self.coordinator, self.store):
            check_fields(limits)


DEFAULT_LIMITS: Final = ServerLimits()

_UNITS: Final = {"": 1, "KiB": 1024, "MiB": MIB, "GiB": 1024 * MIB}
_NUMBER: Final = re.compile(r"(\d+(?:\.\d+)?) ?(KiB|MiB|GiB|)")


def with_limits(limits: ServerLimits, changes: Iterable[str]) -> ServerLimits:
    """Changes limits by what people write, such as ``store.max_bytes=2GiB`` and ``request_timeout=5``.

    Raises:
        RendezvousSettingsError: There is no such limit, or the value is not a number greater than 0.
    """
    for change in changes:
        name, _, text = change.partition("=")
        part, dot, field = name.rpartition(".")
        of: msgspec.Struct = getattr(limits, part, limits) if dot else limits
        present = getattr(of, field, None)
        if f"{part}{dot}{field}" not in limit_names() or isinstance(present, msgspec.Struct):
            raise RendezvousSettingsError.of("limit", name, f"one of: {', '.join(limit_names())}")
        changed = msgspec.structs.replace(of, **{field: _value(name, text, whole=isinstance(present, int))})
        limits = msgspec.structs.replace(limits, **{part: changed}) if dot else cast(ServerLimits, changed)
    return limits


def limit_names() -> list[str]:
    """The names of all limits, as people write them."""
    parts = {field: getattr(DEFAULT_LIMITS, field) for field in ServerLimits.__struct_fields__}
    inner = {field: part for field, part in parts.items() if isinstance(part, msgspec.Struct)}
    names = [f"{field}.{name}" for field, part in inner.items() for name in part.__struct_fields__]
    return [*(field for field in parts if field not in inner), *names]


def _value(name: str, text: str, *, whole: bool) -> float:
    match = _NUMBER.fullmatch(text)
    value = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if not 0 < value < math.inf or (whole and value != int(value)):
        expected = "a number greater than 0; bytes may have KiB, MiB or GiB"
        raise RendezvousSettingsError.of(name, text, expected)
    return int(value) if whole else value

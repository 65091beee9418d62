"""What every handler of the HTTP listener works with."""

from __future__ import annotations

from typing import Final

import msgspec
from aiohttp import web

from arendezvous.coordinator.coordinator import Coordinator
from arendezvous.keyspace.host import KeyspaceHost
from arendezvous.server.access.admission import Admission
from arendezvous.server.access.authority import Authority
from arendezvous.server.access.limits import ServerLimits
from arendezvous.server.access.throttle import FailureThrottle
from arendezvous.server.misdirected import Listeners


class HttpContext(msgspec.Struct, frozen=True, eq=False):
    """The objects behind the HTTP listener; they are the TCP listener's as well.

    Attributes:
        coordinator: Where the runs are.
        keys: The key-value store.
        limits: What the server takes on.
        authority: Who may do what.
        server_id: Names this start of the server.
        throttle: Counts those who fail to show a good token, at all listeners.
        admission: Knows the listeners, and counts what goes through them.
        listeners: The ports of all listeners, for who comes to the wrong one.
    """

    coordinator: Coordinator
    keys: KeyspaceHost
    limits: ServerLimits
    authority: Authority
    server_id: str
    throttle: FailureThrottle = msgspec.field(default_factory=FailureThrottle)
    admission: Admission = msgspec.field(default_factory=Admission)
    listeners: Listeners = msgspec.field(default_factory=lambda: Listeners("", secure=False))


CONTEXT: Final = web.AppKey("context", HttpContext)

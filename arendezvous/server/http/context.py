"""Holds what every handler of the HTTP listener works with."""

from __future__ import annotations

from typing import Final

import msgspec
from aiohttp import web

from arendezvous.coordinator.coordinator import Coordinator
from arendezvous.keyspace.host import KeyspaceHost
from arendezvous.server.access.admission import Admission
from arendezvous.server.access.authority import Authority
from arendezvous.server.access.limits import ServerLimits
from arendezvous.server.leadership import Leadership
from arendezvous.server.misdirected import Listeners
from arendezvous.server.tcp.answers import Answers
from arendezvous.server.tcp.sharing import Shared


class HttpContext(msgspec.Struct, frozen=True, eq=False):
    """The objects behind the HTTP listener; they are the TCP listener's as well.

    Attributes:
        coordinator: Where the runs are.
        keys: The key-value store.
        shared: What the connections of all listeners share: their turns, their limits, and the log.
        authority: Who may do what.
        server_id: Names this start of the server.
        admission: Knows the listeners, and counts what goes through them.
        leadership: Who leads the fleet that the server belongs to; None: it stands alone.
        listeners: The ports of all listeners, for who comes to the wrong one.
    """

    coordinator: Coordinator
    keys: KeyspaceHost
    shared: Shared
    authority: Authority
    server_id: str
    admission: Admission = msgspec.field(default_factory=Admission)
    leadership: Leadership | None = None
    listeners: Listeners = msgspec.field(default_factory=lambda: Listeners("", secure=False))

    @property
    def limits(self) -> ServerLimits:
        """Returns what the server takes on."""
        return self.shared.limits


CONTEXT: Final = web.AppKey("context", HttpContext)
ANSWERS: Final = web.AppKey("answers", Answers)

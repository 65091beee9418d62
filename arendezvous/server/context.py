"""Holds what is behind all listeners of one server."""

from __future__ import annotations

import dataclasses

from arendezvous.coordinator.coordinator import Coordinator
from arendezvous.keyspace.host import KeyspaceHost
from arendezvous.server.access.admission import Admission
from arendezvous.server.access.authority import Access
from arendezvous.server.access.limits import ServerLimits
from arendezvous.server.leadership import Leadership
from arendezvous.server.misdirected import Listeners
from arendezvous.server.tcp.sharing import Shared


@dataclasses.dataclass(frozen=True, eq=False)
class ServerContext:
    """The objects behind the listeners of a server.

    Attributes:
        coordinator: Where the runs are.
        keys: The key-value store.
        shared: What the connections of all listeners share: their turns, their limits, and the log.
        access: Who may come in.
        admission: Knows the listeners, and counts what goes through them.
        listeners: The ports of all listeners, for who comes to the wrong one.
        leadership: Who leads the fleet that the server belongs to; None: it stands alone.
    """

    coordinator: Coordinator
    keys: KeyspaceHost
    shared: Shared
    access: Access = dataclasses.field(default_factory=Access)
    admission: Admission = dataclasses.field(default_factory=Admission)
    listeners: Listeners = dataclasses.field(default_factory=Listeners)
    leadership: Leadership | None = None

    @property
    def limits(self) -> ServerLimits:
        """Returns what the server takes on."""
        return self.shared.limits

    @property
    def server_id(self) -> str:
        """Names this start of the server."""
        return self.listeners.server_id

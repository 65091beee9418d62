"""Servers that stand in for each other: which of them a client asks next, and which it knows to lead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self, TypeAlias

from arendezvous.errors import RendezvousSettingsError
from arendezvous.net.endpoint import join_host_port, parse_host_port
from arendezvous.wire.native.messages import ServerMessage, leader_of

Place: TypeAlias = tuple[str, int]
"""A host and a port."""


class MovedError(ConnectionError):
    """The server that was asked does not lead, and says who does.

    Attributes:
        place: Where the leader is.
    """

    def __init__(self, place: Place) -> None:
        super().__init__(f"it does not lead, and says that {join_host_port(*place)} does")
        self.place = place

    @classmethod
    def of(cls, message: ServerMessage) -> Self | None:
        """Builds the error if a server says so; None if it says something else."""
        url = leader_of(message) or ""
        try:
            return cls(parse_host_port(url.removeprefix("tcp://"), name="leader")) if url else None
        except RendezvousSettingsError:
            return None


class Servers:
    """The servers of one endpoint, for all that connect there in one event loop.

    One that cannot be reached makes place for the next. Where the leader is known, it alone is asked, until
    it fails.

    Args:
        hosts: The servers, at least one.

    Its fields:
        _hosts: Those of the endpoint.
        _next: The index of the one to ask.
        _leader: The one that another has named; None: none has, or it has failed since.
    """

    def __init__(self, hosts: Sequence[Place]) -> None:
        self._hosts = list(hosts)
        self._next = 0
        self._leader: Place | None = None

    def __str__(self) -> str:
        return ",".join(join_host_port(*host) for host in self._hosts)

    @property
    def attempts(self) -> int:
        """How many attempts find the leader, if there is one and all that can be reached know it."""
        return 1 if len(self._hosts) == 1 else 2 * len(self._hosts)

    async def locate(self) -> Place:
        """Returns the one to connect to now."""
        return self._leader or self._hosts[self._next]

    def settle(self, place: Place) -> None:
        """Takes note that the one and only server listens elsewhere than was written."""
        self._hosts = [place]

    def failed(self, place: Place) -> None:
        """Takes note that there is no connection to one of them, or not any more."""
        if place == self._leader:
            self._leader = None
        elif place == self._hosts[self._next]:
            self._next = (self._next + 1) % len(self._hosts)

    def moved(self, error: MovedError) -> None:
        """Takes note of who leads."""
        self._leader = error.place

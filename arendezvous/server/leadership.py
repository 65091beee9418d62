"""Knows who leads a fleet of servers, for ``/readyz`` and ``/metrics`` of one of them."""

from __future__ import annotations

from arendezvous.directory.port import Leader


class Leadership:
    """Tells who leads a fleet.

    Attributes:
        leader: Who leads; None as long as nobody does. Written by the fleet.
        is_own: Whether that is this server.
    """

    def __init__(self) -> None:
        self.leader: Leader | None = None
        self.is_own = False

    @property
    def words(self) -> str:
        """Says what this server does, in words."""
        if self.leader is None:
            return "nobody leads"
        return "leads" if self.is_own else f"passes on to {self.leader.tcp}, which leads"

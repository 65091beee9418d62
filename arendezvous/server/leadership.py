"""Knows who leads a fleet of servers, for all who ask one of them, or wait for a leader."""

from __future__ import annotations

import anyio

from arendezvous.directory.port import Leader


class Leadership:
    """Tells who leads a fleet, and whether that `is_own`, this server."""

    def __init__(self) -> None:
        self.is_own = False
        self._leader: Leader | None = None
        self._changed = anyio.Event()

    @property
    def leader(self) -> Leader | None:
        """Tells who leads; None as long as nobody does. Written by the fleet."""
        return self._leader

    @leader.setter
    def leader(self, leader: Leader | None) -> None:
        self._leader = leader
        self._changed.set()
        self._changed = anyio.Event()

    async def other_than(self, url: str) -> Leader:
        """Waits until another server leads than the one at `url`; empty: any. Cancellation: safe."""
        while self._leader is None or self._leader.tcp == url:
            await self._changed.wait()
        return self._leader

    @property
    def words(self) -> str:
        """Says what this server does, in words."""
        if self.leader is None:
            return "nobody leads"
        return "leads" if self.is_own else f"passes on to {self.leader.tcp}, which leads"

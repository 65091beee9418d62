"""Knows who leads a fleet of servers, for all who ask one of them, or wait for a leader."""

from __future__ import annotations

import asyncio
import math
from typing import Final

import anyio

from arendezvous.directory.port import Leader

REPLACED: Final = 4.0  # seconds in which a leader that died is followed by another: its lease, and one more
BEGINNING: Final = 1.0  # seconds that a leader has to begin to listen


class Leadership:
    """Tells who leads a fleet, and by `is_own` whether that is this server.

    Its fields:
        _elected: When the leader was elected, on the loop's clock; minus infinity if that was before this
            server looked, and None if none has been known yet.
    """

    def __init__(self) -> None:
        self.is_own = False
        self._leader: Leader | None = None
        self._elected: float | None = None
        self._changed = anyio.Event()

    @property
    def leader(self) -> Leader | None:
        """Tells who leads; None as long as nobody does. Written by the fleet."""
        return self._leader

    @leader.setter
    def leader(self, leader: Leader | None) -> None:
        if leader is not None and leader != self._leader:
            self._elected = -math.inf if self._elected is None else asyncio.get_running_loop().time()
        self._leader = leader
        self._changed.set()
        self._changed = anyio.Event()

    async def other_than(self, url: str) -> Leader:
        """Waits until another server leads than the one at `url`; empty: any. Cancellation: safe."""
        while self._leader is None or self._leader.tcp == url:
            await self._changed.wait()
        return self._leader

    async def successor_of(self, url: str, without: float = 0.0) -> Leader:
        """Waits until one leads who may be asked by a client that could not reach a leader at `url`.

        That is another, or one who was elected while the client was `without` a server, for so many seconds,
        or only just: the same server once more, or one that did not listen yet. One who had been elected
        before, and still leads after `REPLACED` seconds, is alive, too. Cancellation: safe.
        """
        since = asyncio.get_running_loop().time() - max(without, BEGINNING)
        with anyio.move_on_after(REPLACED):
            while self._leader is None or (self._leader.tcp == url and not self._is_newer(since)):
                await self._changed.wait()
        return await self.other_than("")

    def _is_newer(self, since: float) -> bool:
        return self._elected is not None and self._elected > since

    @property
    def words(self) -> str:
        """Says what this server does, in words."""
        if self.leader is None:
            return "nobody leads"
        return "leads" if self.is_own else f"passes on to {self.leader.tcp}, which leads"

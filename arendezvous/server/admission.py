"""How many connections a server holds at once, over all its doors."""

from __future__ import annotations

import logging
from collections.abc import Callable

from arendezvous.server.counts import Counts

logger = logging.getLogger(__name__)


class Admission:
    """Counts the connections of all doors, and says when there are too many.

    Args:
        limit: Connections at once; None: any number.

    Attributes:
        count: How many there are.
        refused: How many were one too many, so far.
        traffic: What goes through each door.
        doors: The doors by name, each with a function that tells whether it is open.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.count = 0
        self.refused = 0
        self.traffic = Counts()
        self.doors: dict[str, Callable[[], bool]] = {}
        self._closed = False

    @property
    def is_closed(self) -> bool:
        """Whether the server is being stopped."""
        return self._closed

    def enter(self, peer: str) -> bool:
        """Counts one more connection, or returns False; logs the first refusal, then each doubling."""
        if self._closed:
            return False  # it was accepted just before the server was stopped
        if self.limit is None or self.count < self.limit:
            self.count += 1
            return True
        self.refused += 1
        if self.refused & (self.refused - 1) == 0:
            logger.warning(
                "%s: refused: %d connections are open; refused so far: %d", peer, self.limit, self.refused
            )
        return False

    def leave(self) -> None:
        """Takes back one that was counted."""
        self.count -= 1

    def close(self) -> None:
        """Admits nobody any more."""
        self._closed = True

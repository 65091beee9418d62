"""How many connections a server holds and takes on, over all its listeners, and what goes through them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from arendezvous.directory.port import Office
from arendezvous.server.access.limits import ServerLimits
from arendezvous.server.access.throttle import Allowance

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class ProtocolCounts:
    """The traffic of one protocol since the server was started.

    Attributes:
        opened: Connections that began.
        closed: Connections that ended.
        received: Bytes that came in, before decoding and after decryption.
        sent: Bytes that were handed to the transport.
    """

    opened: int = 0
    closed: int = 0
    received: int = 0
    sent: int = 0


class Admission:
    """Counts the connections of all listeners, and says when there are too many.

    Attributes:
        limit: Connections at once; None: any number.
        arrivals: How many new ones each address may make; None: any number.
        count: How many there are.
        refused: How many were one too many, so far.
        traffic: What goes through each listener, by protocol.
        listeners: The listeners by name, each with a function that tells whether it is open.
        office: The office by which the server leads others; None: it stands alone.
        is_closed: Whether the server is being stopped.
    """

    def __init__(self, limit: int | None = None, arrivals: Allowance | None = None) -> None:
        self.limit = limit
        self.arrivals = arrivals
        self.count = 0
        self.refused = 0
        self.traffic = {name: ProtocolCounts() for name in ("native", "c10d", "http")}
        self.listeners: dict[str, Callable[[], bool]] = {}
        self.office: Office | None = None
        self.is_closed = False

    @classmethod
    def of(cls, limits: ServerLimits) -> Self:
        """Makes what admits as many as the limits say."""
        rate = limits.connection_rate
        return cls(limits.max_connections, None if rate is None else Allowance(limits.connection_burst, rate))

    @property
    def is_deposed(self) -> bool:
        """Whether somebody else may lead by now, though this server has not come to notice: it was frozen."""
        return self.office is not None and not self.office.is_held

    def enter(self, peer: str) -> bool:
        """Counts one more connection, or returns False; logs the first refusal, then each doubling."""
        if self.is_closed:
            return False  # it was accepted just before the server was stopped
        if self.limit is not None and self.count >= self.limit:
            return self._refuse(peer, f"{self.limit} connections are open")
        if self.arrivals is not None and not self.arrivals.take(peer):
            return self._refuse(peer, "its address has made too many connections of late")
        self.count += 1
        return True

    def leave(self) -> None:
        """Takes back one that was counted."""
        self.count -= 1

    def close(self) -> None:
        """Admits nobody any more."""
        self.is_closed = True

    def _refuse(self, peer: str, why: str) -> bool:
        self.refused += 1
        if self.refused & (self.refused - 1) == 0:
            logger.warning("%s: refused: %s; refused so far: %d", peer, why, self.refused)
        return False

"""How many connections a server holds and takes on, over all its listeners, and what goes through them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Self

from arendezvous.directory.port import Office
from arendezvous.server.access.limits import ServerLimits
from arendezvous.server.access.throttle import Allowance

logger = logging.getLogger(__name__)


class ProtocolCounts:
    """The traffic of one protocol since the server was started.

    Attributes:
        opened: Connections that began.
        closed: Connections that ended.
        received: Bytes that came in, before decoding and after decryption.
        sent: Bytes that were handed to the transport.
    """

    __slots__ = ("closed", "opened", "received", "sent")

    def __init__(self) -> None:
        self.opened = 0
        self.closed = 0
        self.received = 0
        self.sent = 0


class Counts:
    """The traffic of all protocols.

    Attributes:
        native: Native sessions.
        c10d: Clients of the store that speak the protocol of torch's TCPStore.
        http: HTTP.
    """

    __slots__ = ("c10d", "http", "native")

    def __init__(self) -> None:
        self.native = ProtocolCounts()
        self.c10d = ProtocolCounts()
        self.http = ProtocolCounts()


class Admission:
    """Counts the connections of all listeners, and says when there are too many.

    Args:
        limit: Connections at once; None: any number.
        arrivals: How many new ones each address may make; None: any number.

    Attributes:
        count: How many there are.
        refused: How many were one too many, so far.
        traffic: What goes through each listener.
        listeners: The listeners by name, each with a function that tells whether it is open.
        office: The office by which the server leads others; None: it stands alone.
    """

    def __init__(self, limit: int | None = None, arrivals: Allowance | None = None) -> None:
        self.limit = limit
        self._arrivals = arrivals
        self.count = 0
        self.refused = 0
        self.traffic = Counts()
        self.listeners: dict[str, Callable[[], bool]] = {}
        self.office: Office | None = None
        self._closed = False

    @classmethod
    def of(cls, limits: ServerLimits) -> Self:
        """Makes what admits as many as the limits say."""
        rate = limits.connection_rate
        return cls(limits.max_connections, None if rate is None else Allowance(limits.connection_burst, rate))

    @property
    def is_deposed(self) -> bool:
        """Whether somebody else may lead by now, though this server has not come to notice: it was frozen."""
        return self.office is not None and not self.office.is_held

    @property
    def is_closed(self) -> bool:
        """Whether the server is being stopped."""
        return self._closed

    def enter(self, peer: str) -> bool:
        """Counts one more connection, or returns False; logs the first refusal, then each doubling."""
        if self._closed:
            return False  # it was accepted just before the server was stopped
        if self.limit is not None and self.count >= self.limit:
            return self._refuse(peer, f"{self.limit} connections are open")
        if self._arrivals is not None and not self._arrivals.take(peer):
            return self._refuse(peer, "its address has made too many connections of late")
        self.count += 1
        return True

    def leave(self) -> None:
        """Takes back one that was counted."""
        self.count -= 1

    def close(self) -> None:
        """Admits nobody any more."""
        self._closed = True

    def _refuse(self, peer: str, why: str) -> bool:
        self.refused += 1
        if self.refused & (self.refused - 1) == 0:
            logger.warning("%s: refused: %s; refused so far: %d", peer, why, self.refused)
        return False

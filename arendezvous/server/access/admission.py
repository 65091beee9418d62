"""Counts connections, traffic and failures over all listeners of a server, and says when it is too much."""

from __future__ import annotations

import ipaddress
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Self

from arendezvous.directory.port import Office
from arendezvous.server.access.limits import ServerLimits

logger = logging.getLogger(__name__)

BURST: Final = 20  # failures at once
RATE: Final = 1.0  # failures a second
MAX_PEERS: Final = 4096  # addresses that are remembered
LONGEST: Final = 300  # characters of a reason


class Allowance:
    """How much each address may still do: a token bucket for each of those that did something of late.

    Args:
        burst: How much one address may do at once.
        rate: How much more each second brings.
        max_peers: Of how many addresses it is kept; the one that was idle longest is forgotten.
        clock: Seconds, monotonic.
    """

    def __init__(
        self, burst: int, rate: float, max_peers: int = MAX_PEERS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._burst = float(burst)
        self._rate = rate
        self._max_peers = max_peers
        self._clock = clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._left)

    def take(self, peer: str) -> bool:
        """Takes one from what the address of `peer` may do; returns whether there was one left."""
        source = source_of(peer)
        now = self._clock()
        left, then = self._left.pop(source, (self._burst, now))
        left = min(self._burst, left + (now - then) * self._rate)
        may = left >= 1.0
        self._left[source] = (left - 1.0 if may else left, now)
        if len(self._left) > self._max_peers:
            self._left.popitem(last=False)
        return may


class FailureThrottle:
    """Logs whom the server has refused or dropped, and tells when that was too often of late.

    It limits what failing costs the server, its log above all. It locks nobody out: tokens are too long to be
    guessed, and somebody with a good one may share an address with somebody who guesses.
    """

    def __init__(self, allowance: Allowance | None = None) -> None:
        self._allowance = Allowance(BURST, RATE) if allowance is None else allowance
        self._silenced = 0

    def failed(self, peer: str, why: str) -> bool:
        """Takes in that `peer` was not let in and logs it; returns whether that was one too many.

        Those too many are not logged, but for their count at each doubling.
        """
        return self._log(peer, "refused", why)

    def dropped(self, peer: str, why: str) -> bool:
        """Takes in that the connection of `peer` was ended; as `failed`."""
        return self._log(peer, "dropped", why)

    def _log(self, peer: str, what: str, why: str) -> bool:
        if self._allowance.take(peer):
            logger.warning("%s: %s: %s", peer, what, _shown(why))
            return False
        self._silenced += 1
        if self._silenced & (self._silenced - 1) == 0:
            logger.warning("%s: %s again; not logged so far: %d refusals", peer, what, self._silenced)
        return True


def _shown(text: str) -> str:
    """A text that may quote what a peer has sent, for the log: short, and in one line."""
    short = text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
    return short if short.isprintable() else short.encode("unicode_escape").decode("ascii")


def source_of(peer: str) -> str:
    """Returns the address of a peer without its port; of IPv6 the network, which one machine may have."""
    host = peer
    if peer.startswith("["):
        host = peer[1:].partition("]")[0]
    elif peer.count(":") == 1:
        host = peer.partition(":")[0]
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host[:64]
    if isinstance(address, ipaddress.IPv6Address):
        mapped = address.ipv4_mapped
        return str(mapped) if mapped else str(ipaddress.ip_network((int(address) >> 64 << 64, 64)))
    return str(address)


@dataclass(slots=True)
class ProtocolCounts:
    """The traffic of one protocol since the server was started."""

    opened: int = 0  # connections that began
    closed: int = 0  # connections that ended
    received: int = 0  # bytes that came in, before decoding and after decryption
    sent: int = 0  # bytes that were handed to the transport


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

"""Servers that stand in for each other: which of them a client asks next, and which it knows to lead."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from typing import Final, Self, TypeAlias

import anyio

from arendezvous.errors import RendezvousSettingsError
from arendezvous.net.endpoint import join_host_port, parse_host_port
from arendezvous.wire.native.messages import ServerMessage, leader_of

SOON: Final = 0.01  # seconds between two attempts at a server that begins to lead
BEGINNING: Final = 0.2  # seconds that a server that was named the leader has to begin to listen

Place: TypeAlias = tuple[str, int]
"""A host and a port."""


def place_of(url: str) -> Place:
    """Reads where a leader is from its URL, ``tcp://host:port``; raises `RendezvousSettingsError`."""
    return parse_host_port(url.removeprefix("tcp://"), name="leader")


def silence(expiry: float, *, has_others: bool) -> float:
    """Returns after how many seconds without an answer a server counts as gone, for a node that has `expiry`.

    Where others stand in for it, the next one counts the expiry from when it began to lead: by half of that,
    and one interval between two heartbeats, the node has left a leader whose machine died without a word.
    """
    return expiry / 2 if has_others else expiry


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
            return cls(place_of(url)) if url else None
        except RendezvousSettingsError:
            return None


class Locator(ABC):
    """Finds the servers of one endpoint, for all that connect there in one event loop.

    Where the leader is known, it alone is asked, until it fails.

    Attributes:
        leader: The one that another has named; None: none has, or it has failed since.
        lost: The one that failed last; None: none has since a client was welcomed.

    Its fields:
        _named: The one that was named last; None: none has since a client was welcomed.
        _since: When that was news, on the monotonic clock.
        _lost_at: When the first of them failed since a client was welcomed, likewise.
    """

    def __init__(self) -> None:
        self.leader: Place | None = None
        self.lost: Place | None = None
        self._named: Place | None = None
        self._since = -math.inf
        self._lost_at = math.inf

    @property
    @abstractmethod
    def attempts(self) -> int:
        """How many attempts find the leader, if there is one and all that can be reached know it."""

    @abstractmethod
    async def locate(self) -> Place:
        """Returns the one to connect to now. Cancellation: safe.

        Raises:
            ConnectionError: That is not known at the moment.
            RendezvousError: It will not be known.
        """

    @property
    @abstractmethod
    def has_others(self) -> bool:
        """Whether another server may stand in for the one that is asked."""

    async def pause(self, seconds: float) -> bool:
        """Waits for so long before the next attempt, less where another may lead by then; cancellation: safe.

        Returns whether that was the first pause since another leads, who may not listen yet.
        """
        await anyio.sleep(seconds)
        return False

    @property
    def lost_url(self) -> str:
        """The URL of the one that failed last; empty if none has."""
        return "" if self.lost is None else f"tcp://{join_host_port(*self.lost)}"

    @property
    def without(self) -> float:
        """For how many seconds there has been no server, as far as is known."""
        return max(0.0, time.monotonic() - self._lost_at)

    def welcomed(self) -> None:
        """Takes note that one of them has welcomed a client."""
        self.lost = self._named = None
        self._lost_at = math.inf

    def failed(self, place: Place, *, reached: bool = False) -> bool:
        """Takes note that there is no connection to one of them, or not any more.

        One that was `reached`, and was not named the leader, may only have waited for one. Returns whether
        another is to be asked; else this one begins to lead, and will soon be there.
        """
        if place == self.leader and time.monotonic() < self._since + BEGINNING:
            return False
        self._lost_at = min(self._lost_at, time.monotonic())
        if place == self.leader or not reached:
            self.lost = place
        if place == self.leader:
            self.leader = None
        return True

    def moved(self, error: MovedError) -> bool:
        """Takes note of who leads; returns whether that is news, so that it is asked at once."""
        self.leader = error.place
        if error.place == self._named:
            return False
        self._named, self._since = error.place, time.monotonic()
        return True


class Servers(Locator):
    """Servers that the endpoint names: one that cannot be reached makes place for the next.

    Args:
        hosts: The servers, at least one.

    Its fields:
        _hosts: The servers, the one to ask first.
    """

    def __init__(self, hosts: Sequence[Place]) -> None:
        super().__init__()
        self._hosts = deque(hosts)

    def __str__(self) -> str:
        return ",".join(join_host_port(*host) for host in self._hosts)

    @property
    def attempts(self) -> int:
        """See `Locator.attempts`."""
        return 1 if len(self._hosts) == 1 else 2 * len(self._hosts)

    @property
    def has_others(self) -> bool:
        """See `Locator.has_others`."""
        return len(self._hosts) > 1

    async def locate(self) -> Place:
        """See `Locator.locate`."""
        return self.leader or self._hosts[0]

    def failed(self, place: Place, *, reached: bool = False) -> bool:
        """See `Locator.failed`."""
        is_over = super().failed(place, reached=reached)
        if is_over and place == self._hosts[0]:
            self._hosts.rotate(-1)
        return is_over

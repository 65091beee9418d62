"""The port: how those who want a server find the one that leads, and how servers become it.

`Directory` is a contract between servers, the nodes that host one, and whatever knows who serves. The
conformance suite `arendezvous.testing.check_directory` holds any implementation to it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import NamedTuple, Self, TypeAlias

import msgspec

from arendezvous.coordinator.journal import Journal


class Leader(msgspec.Struct, frozen=True, omit_defaults=True):
    """Says where the server is that leads.

    Attributes:
        tcp: Its URL for native sessions, ``tcp://host:port``.
        http: Its URL for HTTP; empty without.
        since: When it became the leader, in seconds of its wall clock: for people alone.
        loopback: Whose loopback it is, if the URLs have such an address, see `loopback_id`; empty: not known.
        term: Rises with each leader of a directory that counts them; 0 where nobody does.
    """

    tcp: str
    http: str = ""
    since: float = 0.0
    term: int = 0
    loopback: str = ""


class Fence(NamedTuple):
    """Tells a leader's writes from those of one that was deposed.

    Attributes:
        key: The key in etcd that is the leader's as long as it leads.
        revision: The revision that created it. A write that holds only while that is so is the leader's.
    """

    key: bytes
    revision: int


Listen: TypeAlias = Callable[[str, int], Awaitable[Leader]]
"""Begins to listen at a host and a port, and returns what the directory is to say; see `campaign`."""


class Office(ABC):
    """Stands for the lead that a server has.

    Attributes:
        leader: What the directory says of it.
        fence: What its writes have to carry; None where nobody could check it.
    """

    def __init__(self, leader: Leader, fence: Fence | None = None) -> None:
        self.leader = leader
        self.fence = fence

    @property
    @abstractmethod
    def is_held(self) -> bool:
        """Whether it surely is held, by this process's own monotonic clock; asks nobody."""

    @abstractmethod
    async def lost(self) -> None:
        """Waits until it may be somebody else's, by this process's own clock. Cancellation: safe."""

    @abstractmethod
    async def resign(self) -> None:
        """Gives it up, so that another may lead at once; in bounded time. May be called again, and if lost.

        Cancellation: whether it was given up is then unknown; it ends by itself where it has an end.
        """


class Directory(ABC):
    """Says who serves, and lets servers become the one.

    An asynchronous context manager; nothing may be called outside of the block, and leaving it resigns.

    Errors, besides those that each method names:
        RendezvousConnectionError: The directory could not be reached in time.
        StoreError: It does not let this process do that.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """Says where it is, for messages to people; a URL without secrets."""

    @abstractmethod
    async def leader(self) -> Leader | None:
        """Looks up who leads; None if nobody does. Cancellation: safe."""

    @abstractmethod
    async def changed(self, known: Leader | None) -> Leader | None:
        """Waits until another than `known` leads, or nobody, and returns that; at once if it is so already.

        It goes on while the directory cannot be reached. Cancellation: safe.

        Raises:
            StoreError: The directory does not tell this process.
        """

    @abstractmethod
    async def campaign(self, listen: Listen) -> Office | None:
        """Becomes the leader if there is none.

        Args:
            listen: Called, at most once for each address that can be tried, when there seems to be no leader:
                with the host and the port at which the leader should listen; 0 picks any. If it cannot, it
                raises a `RendezvousConnectionError` that an `OSError` has caused.

        Returns:
            The office; None if somebody else leads: what listens then is to be closed.

        Cancellation: safe; this process does not lead.
        """

    def journal(self, office: Office) -> Journal | None:
        """Makes the journal of who holds an office, not open yet; None: this directory has none."""
        return None

    async def __aenter__(self) -> Self:
        """Opens what is needed to ask. Cancellation: safe; nothing is left open."""
        return self

    async def __aexit__(self, *_: object) -> None:  # noqa: B027 - there may be nothing to close
        """Resigns, in bounded time, and closes what was opened. Cancellation: safe; nothing is left open."""

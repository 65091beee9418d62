"""The port of journals: where what was agreed outlives the server.

A journal keeps rows, a value under each key, and takes changes of them in batches. What the rows mean is none
of its business; see `law.image` and `keyspace.rows`. One server uses a journal at a time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from enum import Enum
from types import TracebackType
from typing import Final, Self, TypeAlias

MAX_VALUE: Final = 512 * 1024  # bytes that every journal takes in one row

Row: TypeAlias = tuple[bytes, bytes]
Done: TypeAlias = Callable[[Exception | None], None]


class Change(Enum):
    """Says what a change of a batch does."""

    PUT = "put"  #: writes the value of a key
    DELETE = "delete"  #: removes a key; nothing happens if it is not there
    DELETE_ALL = "delete all"  #: removes all keys with a prefix


class Batch:
    """Holds changes that are made in order, and that a reader sees all of or none of.

    A journal that cannot make so many at once makes them in several steps, in order: what the others count by
    comes last.

    Attributes:
        changes: Each with its key, or prefix, and the value to write, which is empty for the others.
        size: Bytes of all keys and values.
    """

    __slots__ = ("changes", "size")

    def __init__(self) -> None:
        self.changes: list[tuple[Change, bytes, bytes]] = []
        self.size = 0

    def put(self, key: bytes, value: bytes) -> None:
        """Writes the value of `key`, of `MAX_VALUE` bytes at most."""
        self.changes.append((Change.PUT, key, value))
        self.size += len(key) + len(value)

    def delete(self, key: bytes) -> None:
        """Removes `key`, if it is there."""
        self.changes.append((Change.DELETE, key, b""))
        self.size += len(key)

    def delete_all(self, prefix: bytes) -> None:
        """Removes all keys that begin with `prefix`, which must not be empty."""
        self.changes.append((Change.DELETE_ALL, prefix, b""))
        self.size += len(prefix)


def end_of(prefix: bytes) -> bytes:
    """The first key that comes after all those that begin with `prefix`, which has a byte below 255."""
    kept = prefix.rstrip(b"\xff")
    return kept[:-1] + bytes([kept[-1] + 1])


class Journal(ABC):
    """Keeps rows; an asynchronous context manager, which may be used inside of its block alone.

    Entering it raises `RendezvousStateError` if it cannot be used, because another server has it, it is
    damaged, or of a later version; the message says what to do.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """Names it, as messages call it."""

    @abstractmethod
    async def __aenter__(self) -> Self:
        """Opens it, for this server alone."""

    @abstractmethod
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes it; bounded in time. A commit that is under way may still be made."""

    @abstractmethod
    def load(self) -> AsyncIterator[list[Row]]:
        """Yields all rows, some at a time, in the order of their keys; before the first commit."""

    @abstractmethod
    def commit(self, batch: Batch, done: Done) -> None:
        """Makes all changes of a batch outlive the server; no other commit may be under way.

        Args:
            batch: Not changed any more by its maker. One that has failed may be made again, in whole or in
                part, and in other company.
            done: Is called once, in the event loop, perhaps before this returns: with None once the changes
                are down, or with the error if they are not, or may not be. In bounded time: a commit that
                takes longer has failed.
        """

"""A journal in memory: outlives the server, not the process; for tests of what a restart remembers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import TracebackType
from typing import Final, Self

from arendezvous.coordinator.journal import Batch, Change, Done, Journal, Row
from arendezvous.errors import RendezvousStateError

PAGE: Final = 256  # rows that are loaded at once


class MemoryJournal(Journal):
    """Keeps rows in this object, which the servers that follow each other share.

    Attributes:
        rows: The rows.
        commits: How many commits have been made.
        failure: Why every commit fails; None: none does.

    Its other fields:
        _is_open: Whether a server has it.
    """

    def __init__(self) -> None:
        self.rows: dict[bytes, bytes] = {}
        self.commits = 0
        self.failure: Exception | None = None
        self._is_open = False

    @property
    def name(self) -> str:
        return "the journal in memory"

    async def __aenter__(self) -> Self:
        if self._is_open:
            raise RendezvousStateError("another server uses this journal; give each server its own")
        self._is_open = True
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_open = False

    async def load(self) -> AsyncIterator[list[Row]]:
        rows = sorted(self.rows.items())
        for start in range(0, len(rows), PAGE):
            yield rows[start : start + PAGE]

    def commit(self, batch: Batch, done: Done) -> None:
        if self.failure is not None:
            done(self.failure)
            return
        for change, key, value in batch.changes:
            if change is Change.PUT:
                self.rows[key] = value
            elif change is Change.DELETE:
                self.rows.pop(key, None)
            else:
                for name in [name for name in self.rows if name.startswith(key)]:
                    del self.rows[name]
        self.commits += 1
        done(None)

"""Every journal keeps the contract, and the checks of the contract can fail."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from arendezvous.coordinator.journal import Batch, Change, Done, Journal
from arendezvous.coordinator.journals.sqlite import SqliteJournal
from arendezvous.testing import JOURNAL_CHECKS, check_journal
from arendezvous.testing.journal_checks import JournalCheck, MemoryJournal

KINDS: dict[str, Callable[[Path], Callable[[], Journal]]] = {
    "memory": lambda _: (lambda journal: lambda: journal)(MemoryJournal()),
    "sqlite": lambda path: partial(SqliteJournal, path / "data"),
    "sqlite, full": lambda path: partial(SqliteJournal, path, full=True),
}


@pytest.mark.parametrize("check", JOURNAL_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("kind", KINDS)
async def test_a_journal_keeps_the_contract(kind: str, check: JournalCheck, tmp_path: Path) -> None:
    await check(KINDS[kind](tmp_path))


class Spoiled(MemoryJournal):
    """Breaks the contract in one way."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self._fault = fault

    def commit(self, batch: Batch, done: Done) -> None:
        spoiled = Batch()
        changes = batch.changes
        if self._fault == "out of order":
            changes = sorted(changes, key=lambda change: change[0] is Change.PUT)
        for change, key, value in changes:
            if self._fault == "prefixes are keys" and change is Change.DELETE_ALL:
                spoiled.changes.append((Change.DELETE, key, value))
            elif self._fault == "short" and change is Change.PUT:
                spoiled.put(key, value[:100_000])
            elif not (self._fault == "deletes nothing" and change is Change.DELETE):
                spoiled.changes.append((change, key, value))
        super().commit(spoiled, done)
        if self._fault == "tells twice":
            done(None)
        if self._fault == "forgets" and self.commits == 2:
            self.rows.clear()

    async def __aenter__(self) -> Spoiled:
        if self._fault == "shared":
            self._is_open = False
        await super().__aenter__()
        return self


@pytest.mark.parametrize(
    "fault",
    ["out of order", "prefixes are keys", "short", "deletes nothing", "tells twice", "forgets", "shared"],
)
async def test_a_journal_that_breaks_the_contract_is_found(fault: str) -> None:
    def make_maker() -> Callable[[], Journal]:
        journal = Spoiled(fault)
        return lambda: journal

    with pytest.raises(AssertionError, match=r"^check_\w+: "):
        await check_journal(make_maker)

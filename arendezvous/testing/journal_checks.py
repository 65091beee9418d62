"""The contract of every `Journal`, as checks that anybody can run on theirs.

All of them::

    async def test_my_journal():
        await check_journal(lambda: partial(MyJournal, a_new_place()))

or one by one, with the name of each in the report::

    @pytest.mark.parametrize("check", JOURNAL_CHECKS, ids=lambda check: check.__name__)
    async def test_my_journal(check):
        await check(partial(MyJournal, a_new_place()))

A check opens the same journal several times, one after the other, as servers do that follow each other; each
check needs one of its own, which is empty. A check that fails raises `AssertionError`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, Self

from arendezvous.coordinator.journal import MAX_VALUE, Batch, Change, Done, Journal, Row
from arendezvous.errors import RendezvousError, RendezvousStateError
from arendezvous.testing.check_tools import checks_of, named, refused

JournalCheck = Callable[[Callable[[], Journal]], Awaitable[None]]
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

    async def __aexit__(self, *_: object) -> None:
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


async def committed(journal: Journal, batch: Batch) -> None:
    """Commits a batch; raises what it fails with."""
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def done(error: Exception | None) -> None:
        assert not future.done(), "done() is called once for a commit"
        future.set_exception(error) if error else future.set_result(None)

    journal.commit(batch, done)
    await future


async def rows_of(journal: Journal) -> dict[bytes, bytes]:
    """Loads all rows."""
    rows: dict[bytes, bytes] = {}
    async for page in journal.load():
        assert page, "no page that is loaded is empty"
        for key, value in page:
            assert not rows or key > next(reversed(rows)), f"{key!r} comes in the order of the keys, and once"
            rows[key] = value
    return rows


def batch_of(**values: bytes) -> Batch:
    """Makes a batch that writes some rows."""
    batch = Batch()
    for key, value in values.items():
        batch.put(key.encode(), value)
    return batch


async def check_outlives(make: Callable[[], Journal]) -> None:
    """Rows that were committed are there when the journal is opened again."""
    async with make() as journal:
        assert await rows_of(journal) == {}, "a new journal is empty"
        await committed(journal, batch_of(a=b"1", b=b"2"))
        await committed(journal, batch_of(b=b"3"))
    async with make() as journal:
        assert await rows_of(journal) == {b"a": b"1", b"b": b"3"}, "rows are as they were committed last"
        await committed(journal, batch_of(c=b"4"))
    async with make() as journal:
        rows = await rows_of(journal)
        assert rows == {b"a": b"1", b"b": b"3", b"c": b"4"}, "a journal that was opened again goes on"


async def check_order(make: Callable[[], Journal]) -> None:
    """The changes of a batch are made in order."""
    batch = batch_of(a=b"1", ab=b"2", b=b"3", c=b"6")
    batch.delete_all(b"a")
    batch.put(b"ab", b"4")
    batch.delete(b"b")
    batch.put(b"b", b"5")
    batch.delete(b"c")
    batch.delete(b"absent")
    async with make() as journal:
        await committed(journal, batch)
    async with make() as journal:
        assert await rows_of(journal) == {b"ab": b"4", b"b": b"5"}, "changes are made one after the other"


async def check_prefixes(make: Callable[[], Journal]) -> None:
    """All keys with a prefix are removed, and no others; whatever bytes they are of."""
    prefix = b"a\x00\xff\xff"
    inside = (prefix, prefix + b"\x00", prefix + b"\xff" * 9, prefix + b"z")
    outside = (b"a\x00\xff", b"a\x01", b"a\x00\xfe\xff", b"A\x00\xff\xff")
    batch = Batch()
    for key in (*inside, *outside):
        batch.put(key, key)
    async with make() as journal:
        await committed(journal, batch)
        last = Batch()
        last.delete_all(prefix)
        await committed(journal, last)
    async with make() as journal:
        assert set(await rows_of(journal)) == set(outside), "a prefix takes the keys that begin with it along"


async def check_sizes(make: Callable[[], Journal]) -> None:
    """Empty values, all bytes, and batches of many rows or long values come back as they were."""
    odd = bytes(range(256))
    many = batch_of(**{f"many/{number:04}": odd for number in range(2000)})
    batches = [batch_of(empty=b"", odd=odd), many, batch_of(long=odd * (MAX_VALUE // len(odd)))]
    expected = {key: value for batch in batches for _, key, value in batch.changes}
    async with make() as journal:
        for batch in batches:
            await committed(journal, batch)
    async with make() as journal:
        assert await rows_of(journal) == expected, "rows come back as they were"


async def check_one_server(make: Callable[[], Journal]) -> None:
    """A journal that a server has is refused to another, in words, and can be had once that has closed it."""
    async with make() as journal:
        error = await refused(RendezvousError, make().__aenter__())
        assert "another server" in str(error), f"the refusal says why: {error}"
        await committed(journal, batch_of(a=b"1"))
    async with make() as journal:
        assert await rows_of(journal) == {b"a": b"1"}, "who was refused has changed nothing"


JOURNAL_CHECKS: tuple[JournalCheck, ...] = checks_of(globals())
"""The checks, in the order of `check_journal`."""


async def check_journal(make_maker: Callable[[], Callable[[], Journal]]) -> None:
    """Runs all of `JOURNAL_CHECKS`, each on a journal of its own.

    Args:
        make_maker: Called for each check; returns what opens one and the same journal each time.

    Raises:
        AssertionError: A check failed; the message begins with its name.
    """
    for check in JOURNAL_CHECKS:
        with named(check):
            await check(make_maker())

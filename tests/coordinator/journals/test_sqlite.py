"""The journal in a directory: what it refuses, and what it remembers over faults of the file and kills."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from arendezvous.coordinator.journal import Batch
from arendezvous.coordinator.journals import sqlite
from arendezvous.coordinator.journals.sqlite import SqliteJournal
from arendezvous.errors import RendezvousStateError
from arendezvous.testing.journal_checks import batch_of, committed, rows_of
from tests.kit import ROOT


async def loaded(path: Path) -> dict[bytes, bytes]:
    async with SqliteJournal(path) as journal:
        return await rows_of(journal)


async def test_who_comes_second_is_told_who_has_the_directory(tmp_path: Path) -> None:
    async with SqliteJournal(tmp_path):
        with pytest.raises(
            RendezvousStateError, match=r"another server has .*\"since\": \"20.* stop that"
        ) as e:
            async with SqliteJournal(tmp_path):
                pass
    assert f'"pid": {os.getpid()}' in str(e.value)


async def test_what_is_no_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RendezvousStateError, match="is not a directory; name one"):
        await loaded(tmp_path / "file")
    with pytest.raises(RendezvousStateError, match="is not a directory; name one"):
        await loaded(tmp_path / "file" / "below")


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A directory that nobody may write, on a file system that nobody may write if this user may anything."""
    if os.getuid():
        tmp_path.chmod(0o500)
        yield tmp_path
        return
    command = ["mount", "-t", "tmpfs", "-o", "ro", "none", str(tmp_path)]
    if subprocess.run(command, check=False).returncode:
        pytest.skip("there are no mounts here")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


async def test_a_directory_that_is_read_only_is_refused(read_only: Path) -> None:
    with pytest.raises(RendezvousStateError, match=r"cannot be used: (Perm|Read-only).*; this user must"):
        await loaded(read_only)


@pytest.mark.parametrize("damage", ["overwritten", "torn"])
async def test_a_damaged_file_is_refused_and_left_as_it_is(tmp_path: Path, damage: str) -> None:
    async with SqliteJournal(tmp_path) as journal:
        await committed(journal, batch_of(**{f"k{i}": b"x" * 1000 for i in range(100)}))
    file = tmp_path / "journal.sqlite3"
    data = bytearray(file.read_bytes())
    if damage == "overwritten":
        data[:] = b"no database" * (len(data) // 11)
    else:
        data[4096:12288] = b"\xff" * 8192
    file.write_bytes(data)
    with pytest.raises(RendezvousStateError, match=r"is damaged: .*move it away"):
        await loaded(tmp_path)
    assert file.read_bytes() == data


async def test_a_file_of_a_later_version_or_of_another_program_is_refused(tmp_path: Path) -> None:
    await loaded(tmp_path)
    connection = sqlite3.connect(tmp_path / "journal.sqlite3")
    connection.execute("PRAGMA user_version=9")
    with pytest.raises(RendezvousStateError, match=r"is of version 9, .* use the release that wrote it"):
        await loaded(tmp_path)
    connection.execute("PRAGMA application_id=7")
    with pytest.raises(RendezvousStateError, match="is another program's; use another directory"):
        await loaded(tmp_path)
    connection.close()


async def test_only_its_user_may_read_it(tmp_path: Path) -> None:
    async with SqliteJournal(tmp_path / "data") as journal:
        await committed(journal, batch_of(a=b"1"))
        paths = [tmp_path / "data", *(tmp_path / "data").iterdir()]
        assert {path.name: path.stat().st_mode & 0o077 for path in paths} == {path.name: 0 for path in paths}


async def test_a_disk_that_is_full_fails_the_commit_and_nothing_else_and_all_is_well_once_it_is_not(
    tmp_path: Path,
) -> None:
    opened: list[sqlite3.Connection] = []

    def connect(path: Path) -> sqlite3.Connection:
        opened.append(sqlite.connect(path))
        return opened[-1]

    async with SqliteJournal(tmp_path, connect=connect) as journal:
        await committed(journal, batch_of(a=b"1"))
        opened[0].execute("PRAGMA max_page_count=4")
        for large in (batch_of(b=b"2" * 60_000), batch_of(b=b"2" * 600_000)):  # in the loop, in the thread
            with pytest.raises(RendezvousStateError, match="cannot be written: database or disk is full"):
                await committed(journal, large)
        await committed(journal, batch_of(a=b"3"))
        opened[0].execute("PRAGMA max_page_count=4000")
        await committed(journal, batch_of(b=b"4" * 600_000))
    assert await loaded(tmp_path) == {b"a": b"3", b"b": b"4" * 600_000}


class Faulty(sqlite3.Connection):
    """Fails, or ends the process, at one statement of the journal's."""

    left = -1
    exits = False

    def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
        if not sql.startswith(("PRAGMA", "SELECT", "CREATE")):
            Faulty.left -= 1
            if Faulty.left == 0 and Faulty.exits:
                os._exit(7)
            if Faulty.left == 0:
                raise sqlite3.OperationalError("disk I/O error")
        return super().execute(sql, *args)


def faulty(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None, check_same_thread=False, factory=Faulty)


@pytest.mark.parametrize("size", [1, 100_000], ids=["in the loop", "in the thread"])
async def test_a_fault_at_any_statement_of_a_commit_leaves_all_of_it_undone(
    tmp_path: Path, size: int
) -> None:
    async with SqliteJournal(tmp_path, connect=faulty) as journal:
        expected: dict[bytes, bytes] = {}
        failed = 0
        for fault in range(1, 60):
            names, statements = ("abcde", 7) if fault % 8 else ("abcd", 1)  # with BEGIN and COMMIT, or alone
            Faulty.left = 1 + fault % statements
            batch = batch_of(**{f"{name}{fault % 7}": b"%d" % fault * size for name in names})
            with pytest.raises(RendezvousStateError, match="disk I/O error"):
                await committed(journal, batch)
            failed += 1
            await committed(journal, batch_of(kept=b"%d" % fault))
            expected = {b"kept": b"%d" % fault}
        Faulty.left = -1
        assert await rows_of(journal) == expected
    assert failed == 59
    assert await loaded(tmp_path) == expected


COUNTS = """
import asyncio, os, sys
from pathlib import Path
from arendezvous.coordinator.journals.sqlite import SqliteJournal
from arendezvous.testing.journal_checks import batch_of, committed
from tests.coordinator.journals import test_sqlite as kit

async def count(directory, at, size):
    async with SqliteJournal(directory, connect=kit.faulty) as journal:
        kit.Faulty.exits, kit.Faulty.left = True, at
        for number in range(1, 1000):
            values = {name: b"%d " % number * size for name in sys.argv[4]}
            await committed(journal, batch_of(**values))
            os.write(1, b"%d\\n" % number)

asyncio.run(count(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
"""


@pytest.mark.parametrize("size", [1, 30_000], ids=["in the loop", "in the thread"])
@pytest.mark.parametrize(("names", "statements"), [("abc", 1), ("abcde", 7)], ids=["few rows", "more rows"])
async def test_a_process_that_ends_in_the_middle_of_a_commit_has_lost_that_one_at_most(
    tmp_path: Path, size: int, names: str, statements: int
) -> None:
    for at in range(2 * statements + 1, 3 * statements + 1):  # after two commits
        directory = tmp_path / str(at)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", COUNTS, directory, str(at), str(size), names, stdout=-1, cwd=ROOT
        )
        told, _ = await process.communicate()
        assert process.returncode == 7
        assert told.split() == [b"1", b"2"]
        assert await loaded(directory) == dict.fromkeys(map(str.encode, names), b"2 " * size)


async def test_a_log_that_is_torn_anywhere_gives_whole_batches_and_the_first_ones(tmp_path: Path) -> None:
    """So it is after a power cut, which a commit outlives only with FULL."""
    random.seed(7)
    live, torn = tmp_path / "live", tmp_path / "torn"
    async with SqliteJournal(live) as journal:
        for number in range(1, 41):
            await committed(journal, batch_of(**dict.fromkeys("abc", b"%d" % number * 100)))
        wal = (live / "journal.sqlite3-wal").read_bytes()
        for _ in range(50):
            shutil.rmtree(torn, ignore_errors=True)
            torn.mkdir()
            shutil.copy(live / "journal.sqlite3", torn)
            cut = random.randrange(len(wal))
            (torn / "journal.sqlite3-wal").write_bytes(wal[:cut] + os.urandom(random.randrange(64)))
            rows = await loaded(torn)
            assert len(set(rows.values())) <= 1, "a batch is whole"
            assert len(rows) in (0, 3)


async def test_the_log_is_copied_into_the_table_by_another_thread_and_does_not_grow_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "CHECKPOINT", 100_000)
    threads = set()
    original = SqliteJournal._checkpoint

    def checkpoint(self: SqliteJournal, mode: str) -> None:
        threads.add(threading.current_thread())
        original(self, mode)

    monkeypatch.setattr(SqliteJournal, "_checkpoint", checkpoint)
    async with SqliteJournal(tmp_path) as journal:
        for _ in range(200):
            await committed(journal, batch_of(a=os.urandom(20_000)))
            await journal._in_thread(lambda: None)  # the checkpoint, if there is one, is over
        assert (tmp_path / "journal.sqlite3-wal").stat().st_size < 500_000
    assert threads
    assert threading.main_thread() not in threads
    assert not (tmp_path / "journal.sqlite3-wal").exists()


async def test_an_error_of_the_thread_is_told_in_the_loop(tmp_path: Path) -> None:
    async with SqliteJournal(tmp_path, full=True, connect=faulty) as journal:
        Faulty.left = 1
        told: list[threading.Thread] = []
        ended = asyncio.Event()

        def done(error: Exception | None) -> None:
            assert error is not None
            told.append(threading.current_thread())
            ended.set()

        batch = Batch()
        batch.put(b"a", b"1")
        journal.commit(batch, done)
        assert told == []
        await ended.wait()
        assert told == [threading.current_thread()]
    Faulty.left = -1


async def test_a_journal_whose_opening_is_cancelled_leaves_the_directory_free(tmp_path: Path) -> None:
    opening = asyncio.ensure_future(SqliteJournal(tmp_path).__aenter__())
    await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert await loaded(tmp_path) == {}

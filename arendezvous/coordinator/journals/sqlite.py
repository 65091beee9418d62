"""A journal in a directory: one table of sqlite, with a write-ahead log.

Small batches are committed in the event loop: that takes some 11 microseconds, less than handing them to a
thread would. Large ones, and all of them if each commit is to reach the disk, are committed by a thread,
which also copies the write-ahead log into the table from time to time. As no two commits are under way at
once, their order is that of the calls.

With ``synchronous=NORMAL`` a commit outlives the process, killed at any moment; with FULL the power cut, too.
See https://sqlite.org/wal.html and https://sqlite.org/pragma.html#pragma_synchronous.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final, Self, TypeAlias

from arendezvous.coordinator.journal import Batch, Change, Done, Journal, Row, end_of
from arendezvous.errors import RendezvousStateError
from arendezvous.net.background import finish

VERSION: Final = 1  # of the table; the rows have versions of their own
APPLICATION: Final = 0x41525A4A  # "ARZJ", by which sqlite's header tells whose file it is
SMALL: Final = 64 * 1024  # bytes of a batch that is committed in the event loop
FEW: Final = 256  # changes of such a batch
CHECKPOINT: Final = 4 * 1024 * 1024  # bytes of batches after which the log is copied into the table
PAGE: Final = 256  # rows that are loaded at once
PATIENCE: Final = 0.25  # seconds that a commit waits for another program that reads or writes the file

Connect: TypeAlias = Callable[[Path], sqlite3.Connection]

_SQL: Final = {
    Change.PUT: "INSERT INTO rows VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
    Change.DELETE: "DELETE FROM rows WHERE key = ?",
    Change.DELETE_ALL: "DELETE FROM rows WHERE key >= ? AND key < ?",
}
_PUTS: Final = [
    f"INSERT INTO rows VALUES {', '.join(['(?, ?)'] * count)}"  # noqa: S608 - nothing of it comes from outside
    " ON CONFLICT (key) DO UPDATE SET value = excluded.value"
    for count in range(1, 5)
]


def connect(path: Path) -> sqlite3.Connection:
    """Opens the file, for the event loop and the thread, one of which uses it at a time."""
    return sqlite3.connect(path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)


class SqliteJournal(Journal):
    """Keeps rows in ``DIR/journal.sqlite3``, and says in ``DIR/lock`` which server has them.

    Args:
        directory: DIR; made if it is not there.
        full: Has every commit reach the disk, so that it outlives a power cut.
        connect: Opens the file; tests have it fail.

    Its fields:
        _lock: The open lock file; None outside of the block.
        _rows: The connection by which commits are made.
        _thread: Where large commits and checkpoints are made.
        _log: Bytes that have been committed since the last checkpoint.
    """

    def __init__(self, directory: str | Path, *, full: bool = False, connect: Connect = connect) -> None:
        self._directory = Path(directory).absolute()
        self._full = full
        self._connect = connect
        self._lock: int | None = None
        self._rows: sqlite3.Connection
        self._thread: ThreadPoolExecutor
        self._log = 0

    @property
    def name(self) -> str:
        return f"the journal in {self._directory}"

    @property
    def file(self) -> Path:
        """The file with the rows."""
        return self._directory / "journal.sqlite3"

    async def __aenter__(self) -> Self:
        self._thread = ThreadPoolExecutor(1, "arendezvous-journal")
        try:
            await self._in_thread(self._open)
        except BaseException:
            await finish(self._close)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await finish(self._close)

    async def load(self) -> AsyncIterator[list[Row]]:
        after = b""
        while rows := await self._in_thread(partial(self._page, after)):
            yield rows
            after = rows[-1][0]

    def commit(self, batch: Batch, done: Done) -> None:
        """See `Journal.commit`; a small batch is down when this returns."""
        if not self._full and batch.size <= SMALL and len(batch.changes) <= FEW:
            try:
                self._write(batch)
            except sqlite3.Error as error:
                done(self._failed(error))
                return
            self._note(batch)
            done(None)
            return
        loop = asyncio.get_running_loop()

        def tell(future: Future[None]) -> None:
            with suppress(RuntimeError):  # the loop has ended meanwhile: nobody waits any more
                loop.call_soon_threadsafe(written, future.exception())

        def written(error: BaseException | None) -> None:
            if error is None:
                self._note(batch)
                done(None)
            else:
                done(self._failed(error))

        self._thread.submit(self._write, batch).add_done_callback(tell)

    def _write(self, batch: Batch) -> None:
        execute, changes = self._rows.execute, batch.changes
        if len(changes) <= len(_PUTS) and all(change is Change.PUT for change, _, _ in changes):
            # one statement is a transaction by itself: it takes half as long as one within BEGIN and COMMIT
            execute(_PUTS[len(changes) - 1], [part for _, *row in changes for part in row])
            return
        execute("BEGIN IMMEDIATE")
        try:
            for change, key, value in changes:
                if change is Change.DELETE:
                    execute(_SQL[change], (key,))
                else:
                    execute(_SQL[change], (key, value if change is Change.PUT else end_of(key)))
            execute("COMMIT")
        except BaseException:
            if self._rows.in_transaction:
                self._rows.rollback()
            raise

    def _note(self, batch: Batch) -> None:
        """Has the log copied into the table if it has grown long; others need not wait for that."""
        self._log += batch.size
        if self._log > CHECKPOINT:
            self._log = 0
            self._thread.submit(self._checkpoint, "PASSIVE")

    def _checkpoint(self, mode: str) -> None:
        """Copies the log into the table, by a connection of its own; it may fail, and be made later."""
        connection = self._connect(self.file)
        try:
            connection.execute(f"PRAGMA wal_checkpoint({mode})")
        finally:
            connection.close()

    async def _in_thread(self, function: Callable[[], list[Row] | None]) -> list[Row]:
        """Calls `function` in the thread; cancelled, it is waited for all the same."""
        try:
            return await finish(self._awaited, function) or []
        except (sqlite3.Error, OSError) as error:
            raise self._unusable(error) from error

    async def _awaited(self, function: Callable[[], list[Row] | None]) -> list[Row] | None:
        return await asyncio.wrap_future(self._thread.submit(function))

    def _open(self) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._take_lock()
        created = not self.file.exists()
        rows = self._rows = self._connect(self.file)
        if created:
            self.file.chmod(0o600)
        [[application]] = rows.execute("PRAGMA application_id").fetchall()
        [[version]] = rows.execute("PRAGMA user_version").fetchall()
        [[tables]] = rows.execute("SELECT count(*) FROM sqlite_schema").fetchall()
        if application != APPLICATION and tables:
            raise RendezvousStateError(f"{self.file} is another program's; use another directory")
        if version > VERSION:
            raise RendezvousStateError(
                f"{self.file} is of version {version}, and this release of arendezvous reads versions up to"
                f" {VERSION}; use the release that wrote it, or a later one"
            )
        [[found]] = rows.execute("PRAGMA quick_check(1)").fetchall()
        if found != "ok":
            raise sqlite3.DatabaseError(" ".join(found.split()))
        if not tables:
            rows.execute("PRAGMA page_size=1024")  # each commit writes whole pages: 32 microseconds, not 37
        rows.execute("PRAGMA journal_mode=WAL")
        rows.execute(f"PRAGMA synchronous={'FULL' if self._full else 'NORMAL'}")
        rows.execute("PRAGMA wal_autocheckpoint=0")
        if not tables:
            self._make(rows)

    def _make(self, rows: sqlite3.Connection) -> None:
        rows.execute("BEGIN IMMEDIATE")
        rows.execute(f"PRAGMA application_id={APPLICATION}")
        rows.execute(f"PRAGMA user_version={VERSION}")
        rows.execute("CREATE TABLE rows (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID")
        rows.execute("COMMIT")

    def _take_lock(self) -> None:
        lock = self._lock = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            said = os.read(lock, 1024).decode(errors="replace").strip() or "a server that is just starting"
            raise RendezvousStateError(
                f"another server has {self._directory}: {said}; stop that one, or use another directory"
            ) from error
        owner = {"pid": os.getpid(), "host": os.uname().nodename, "since": time.strftime("%FT%T%z")}
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{json.dumps(owner)}\n".encode(), 0)

    def _page(self, after: bytes) -> list[Row]:
        query = "SELECT key, value FROM rows WHERE key > ? ORDER BY key LIMIT ?"
        return self._rows.execute(query, (after, PAGE)).fetchall()

    async def _close(self) -> None:
        try:
            await self._awaited(self._release)
        finally:
            self._thread.shutdown(wait=False)

    def _release(self) -> None:
        rows, lock = getattr(self, "_rows", None), self._lock
        try:
            if rows is not None:
                rows.close()  # as the last connection, it copies the log into the table
        finally:
            self._lock = None
            if lock is not None:
                os.close(lock)

    def _failed(self, error: BaseException) -> RendezvousStateError:
        failure = RendezvousStateError(f"{self.name} cannot be written: {_reason(error)}")
        failure.__cause__ = error
        return failure

    def _unusable(self, error: Exception) -> RendezvousStateError:
        if isinstance(error, FileExistsError | NotADirectoryError):
            return RendezvousStateError(f"{self._directory} is not a directory; name one, or let it be made")
        if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
            return RendezvousStateError(
                f"{self.file} is damaged: {error}; put a copy of the directory in its place, or move it away"
                " to begin anew: nodes that are in a round bring that with them, and the rest is lost"
            )
        return RendezvousStateError(
            f"{self._directory} cannot be used: {_reason(error)}; this user must be able to write there, and"
            " the disk must have room"
        )


def _reason(error: BaseException) -> str:
    """Says what is wrong in words that an operator knows."""
    return getattr(error, "strerror", None) or str(error) or repr(error)

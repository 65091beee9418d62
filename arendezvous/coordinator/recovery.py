"""How a server starts from its journal: what earlier ones have recorded, and what it records itself."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

import msgspec

from arendezvous.coordinator.commits import Commits
from arendezvous.coordinator.coordinator import Coordinator
from arendezvous.coordinator.history import PAST
from arendezvous.coordinator.journal import Batch, Journal
from arendezvous.coordinator.records import RUNS, RunRecords
from arendezvous.errors import RendezvousStateError
from arendezvous.keyspace.host import KeyspaceHost
from arendezvous.wire.foreign import decode_foreign

logger = logging.getLogger(__name__)

META: Final = b"meta"
VERSION: Final = 2  # 1 knows no histories, and nothing that is compressed


class Meta(msgspec.Struct, frozen=True, array_like=True):
    """Says of which version the rows of a journal are, and how many servers have used it."""

    version: int = VERSION
    lives: int = 0


_decode_meta: Final = msgspec.msgpack.Decoder(Meta).decode


async def recover(journal: Journal, coordinator: Coordinator, keys: KeyspaceHost) -> Commits:
    """Has a coordinator and a store go on with what is recorded, and record what happens from now on.

    The journal is open; there are no runs and keys yet. Returns the commits, to be closed before the journal.

    Raises:
        RendezvousStateError: What is recorded is damaged, or of a later version, or cannot be added to.
        StoreFullError: The limits have no room for the keys that are recorded.

    Cancellation: safe; none of the objects is to be used then.
    """
    rows: dict[bytes, bytes] = {}
    async for page in journal.load():
        rows.update(page)
    meta = _meta_of(journal, rows.pop(META, None))
    life = meta.lives + 1
    commits = Commits(journal, asyncio.get_running_loop())
    runs, past = ({key: rows.pop(key) for key in list(rows) if key.startswith(kind)} for kind in (RUNS, PAST))
    await _begin(journal, Meta(lives=life))
    records = RunRecords(coordinator, commits, life)
    coordinator.records = records
    commits.add(records)
    keys.record(commits.note, life, rows)
    commits.add(keys)
    records.load(runs)
    commits.add(records.history)
    records.history.load(past)
    logger.info(
        "%s: goes on with %d runs and %d keys", journal.name, len(coordinator.runs), len(keys.keyspace)
    )
    return commits


def _meta_of(journal: Journal, row: bytes | None) -> Meta:
    def damaged(why: str) -> RendezvousStateError:
        return RendezvousStateError(
            f"{journal.name} is damaged: {why}; put a copy in its place, or move it away to begin anew"
        )

    meta = Meta() if row is None else decode_foreign(_decode_meta, row, damaged)
    if meta.version > VERSION:
        raise RendezvousStateError(
            f"{journal.name} has rows of version {meta.version}, and this release of arendezvous reads those"
            f" up to {VERSION}; use the release that wrote them, or a later one"
        )
    return meta


async def _begin(journal: Journal, meta: Meta) -> None:
    """Records that another server has begun, before it tells anybody a number that counts from that."""
    batch = Batch()
    batch.put(META, msgspec.msgpack.encode(meta))
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def done(error: Exception | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)

    journal.commit(batch, done)
    await future

"""The keys and queues of a store as rows, and back: what outlives a server that keeps a journal.

A long value is kept in parts, so that one that is appended to is not written anew as a whole, and each value
of a queue by itself::

    key/KEY                       a value, or the edition of its parts, their number, and its length
    part/KEY + EDITION + PART     a part of a value; EDITION, in 8 bytes, is a number that is used once
    queue/KEY + NUMBER            a value of a queue; NUMBER, in 8 bytes, rises from the oldest

A value that is replaced has its parts written beside the former ones. So what counts changes with one row,
even where a journal makes a large batch in several steps.

What has changed is marked, not copied: the rows are made of the keyspace as it is when they are collected. So
what is marked takes as much room as the names of keys, however long nothing can be recorded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from arendezvous.errors import StoreError
from arendezvous.keyspace.values import LongValue

if TYPE_CHECKING:
    from arendezvous.keyspace.keyspace import Keyspace

KEYS: Final = b"key/"
PARTS: Final = b"part/"
QUEUES: Final = b"queue/"
PART: Final = 64 * 1024  # bytes of a value in one row
LIFE: Final = 40  # bits of an edition, or a revision, that count those of one life of the server

_SHORT: Final = b"\0"  # begins the row of a value that is in it
_LONG: Final = b"\1"  # begins that of a value in parts


class Edition(NamedTuple):
    """Names the rows of the parts of one value: its number, and how many parts there may be."""

    number: int
    parts: int


class RowBatch(Protocol):
    """Takes changes of rows, in order."""

    def put(self, key: bytes, value: bytes) -> None:
        """Writes a row."""

    def delete(self, key: bytes) -> None:
        """Removes a row, if it is there."""

    def delete_all(self, prefix: bytes) -> None:
        """Removes all rows whose keys begin with `prefix`."""


@dataclass(slots=True)
class Marks:
    """Says what has changed in a keyspace."""

    keys: dict[bytes, int] = field(default_factory=dict)  # those changed, with the first part that has
    items: dict[tuple[bytes, int], None] = field(default_factory=dict)  # values, by queue and number
    runs: dict[bytes, None] = field(default_factory=dict)  # prefixes deleted as a whole, before all else
    garbage: list[bytes] = field(default_factory=list)  # rows of parts that count no more

    def __bool__(self) -> bool:
        return bool(self.keys or self.items or self.runs)


class KeyspaceRows:
    """Marks what changes in a keyspace, and makes rows of it; `life` counts the servers that had them."""

    def __init__(self, life: int) -> None:
        self.marks = Marks()  # what has changed since it was collected last
        self._edition = life << LIFE  # the number of the latest edition
        self._long: dict[bytes, Edition] = {}  # the editions of the keys whose values are in parts

    def changed(self, key: bytes, at: int = 0) -> None:
        """Notes that the value of a key has changed, at its byte `at` and after; or that it is gone."""
        part, keys = at // PART, self.marks.keys
        known = keys.get(key)
        if known is None or part < known:
            keys[key] = part

    def item_changed(self, queue: bytes, number: int) -> None:
        """Notes that a value was pushed, or popped."""
        self.marks.items[queue, number] = None

    def run_deleted(self, prefix: bytes) -> None:
        """Notes that all keys and queues under a prefix are gone."""
        self.marks.runs[prefix] = None
        for key in [key for key in self._long if key.startswith(prefix)]:
            del self._long[key]

    def collect(self, keyspace: Keyspace, batch: RowBatch) -> Marks:
        """Adds the rows of all that is marked, and takes the marks off; returns them."""
        marks, self.marks = self.marks, Marks()
        for prefix in marks.runs:
            for kind in (KEYS, PARTS, QUEUES):
                batch.delete_all(kind + prefix)
        for key, part in marks.keys.items():
            before = self._long.pop(key, None)
            value = keyspace.value_of(key)
            if value is None:
                batch.delete(KEYS + key)
            elif len(value) <= PART:
                whole = value if isinstance(value, bytes) else value.whole()
                batch.put(KEYS + key, _SHORT + whole)
            else:
                self._collect_long(batch, key, value, before, part)
            if before is not None:
                after = self._long.get(key)
                is_same = after is not None and after.number == before.number
                marks.garbage += _part_rows(key, before)[after.parts if is_same and after else 0 :]
        for queue, number in marks.items:
            row, item = QUEUES + queue + number.to_bytes(8), keyspace.item_of(queue, number)
            if item is None:
                batch.delete(row)
            else:
                batch.put(row, item)
        for row in marks.garbage:
            batch.delete(row)
        return marks

    def put_back(self, marks: Marks) -> None:
        """Has what was collected be collected again, as it may not have been recorded."""
        for key, part in marks.keys.items():
            self.changed(key, part * PART)
        self.marks.items.update(marks.items)
        self.marks.runs.update(marks.runs)
        self.marks.garbage += marks.garbage

    def _collect_long(
        self, batch: RowBatch, key: bytes, value: bytes | LongValue, before: Edition | None, first: int
    ) -> None:
        """Adds the parts of a value from the `first` that has changed; all of them, if they are new."""
        if before is None or not 0 < first <= before.parts:
            self._edition += 1
            before, first = Edition(self._edition, 0), 0
        count = -(-len(value) // PART)
        edition = self._long[key] = Edition(before.number, count)
        start = first * PART
        changed = value[start:] if isinstance(value, bytes) else value.rest(start)
        for part, row in enumerate(_part_rows(key, edition)[first:]):
            batch.put(row, changed[part * PART : (part + 1) * PART])
        head = (edition.number, count, len(value))
        batch.put(KEYS + key, _LONG + b"".join(number.to_bytes(8) for number in head))

    def load(self, keyspace: Keyspace, rows: Mapping[bytes, bytes]) -> None:
        """Fills an empty keyspace from all its rows. Raises `StoreError` if they are damaged, or too many."""
        parts = {row: value for row, value in rows.items() if row.startswith(PARTS)}
        items: dict[bytes, dict[int, bytes]] = {}
        for row, value in rows.items():
            if row.startswith(KEYS):
                key = row[len(KEYS) :]
                short = value.startswith(_SHORT)
                keyspace.restore_key(key, value[1:] if short else self._joined(key, value, parts))
            elif row.startswith(QUEUES):
                name, number = row[len(QUEUES) : -8], int.from_bytes(row[-8:])
                items.setdefault(name, {})[number] = value
        for queue, numbered in items.items():
            first = min(numbered)
            if numbered.keys() != set(range(first, first + len(numbered))):
                raise StoreError(f"the record of queue {queue!r} is damaged: it has {sorted(numbered)}")
            keyspace.restore_queue(queue, first, [numbered[number] for number in sorted(numbered)])
        self.marks = Marks()
        self.marks.garbage = list(parts)

    def _joined(self, key: bytes, head: bytes, parts: dict[bytes, bytes]) -> bytes:
        """Joins the parts that the row of a key counts, and takes them out of `parts`."""
        number, count, length = (int.from_bytes(head[at : at + 8]) for at in (1, 9, 17))
        edition = self._long[key] = Edition(number, count)
        try:
            value = b"".join([parts.pop(row) for row in _part_rows(key, edition)])
        except KeyError as error:
            raise StoreError(f"the record of key {key!r} is damaged: it lacks {error}") from error
        if len(value) < length:
            raise StoreError(f"the record of key {key!r} is damaged: {len(value)} bytes of {length}")
        return value[:length]


def _part_rows(key: bytes, edition: Edition) -> list[bytes]:
    stem = PARTS + key + edition.number.to_bytes(8)
    return [stem + part.to_bytes(4) for part in range(edition.parts)]

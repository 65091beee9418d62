"""The keys and queues of a store as rows, and back: what outlives a server that keeps a journal.

A value is kept in parts, so that one that is appended to is not written anew as a whole, and each value of a
queue by itself::

    key/KEY + PART          a part of the value of a key; PART is its number, in 4 bytes
    queue/KEY + NUMBER      a value of a queue; NUMBER, in 8 bytes, rises from the oldest

What has changed is marked, not copied: the rows are made of the keyspace as it is when they are collected. So
what is marked takes as much room as the names of keys, however long nothing can be recorded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, Protocol

from arendezvous.errors import StoreError
from arendezvous.keyspace.values import LongValue

if TYPE_CHECKING:
    from arendezvous.keyspace.keyspace import Keyspace

KEYS: Final = b"key/"
QUEUES: Final = b"queue/"
PART: Final = 64 * 1024  # bytes of a value in one row
_PART_NUMBER: Final = 4
_ITEM_NUMBER: Final = 8


class RowBatch(Protocol):
    """Takes changes of rows, in order."""

    def put(self, key: bytes, value: bytes) -> None:
        """Writes a row."""

    def delete(self, key: bytes) -> None:
        """Removes a row, if it is there."""

    def delete_all(self, prefix: bytes) -> None:
        """Removes all rows whose keys begin with `prefix`."""


class Marks:
    """Says what has changed in a keyspace.

    Attributes:
        keys: Keys that have, each with the first part of its value that has.
        items: Values of queues, by queue and number.
        parts: Once they are collected: of keys that had several rows before, how many.
        runs: Prefixes all keys and queues under which were deleted at once, before all else.
    """

    __slots__ = ("items", "keys", "parts", "runs")

    def __init__(self) -> None:
        self.keys: dict[bytes, int] = {}
        self.items: dict[tuple[bytes, int], None] = {}
        self.parts: dict[bytes, int] = {}
        self.runs: dict[bytes, None] = {}

    def __bool__(self) -> bool:
        return bool(self.keys or self.items or self.runs)


class KeyspaceRows:
    """Marks what changes in a keyspace, and makes rows of it.

    Attributes:
        marks: What has changed since it was collected last.

    Its other fields:
        _parts: Of keys with several parts, how many rows there may be.
    """

    def __init__(self) -> None:
        self.marks = Marks()
        self._parts: dict[bytes, int] = {}

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
        for key in [key for key in self._parts if key.startswith(prefix)]:
            del self._parts[key]

    def collect(self, keyspace: Keyspace, batch: RowBatch) -> Marks:
        """Adds the rows of all that is marked, and takes the marks off; returns them."""
        marks, self.marks = self.marks, Marks()
        for prefix in marks.runs:
            batch.delete_all(KEYS + prefix)
            batch.delete_all(QUEUES + prefix)
        for key, part in marks.keys.items():
            before = self._parts.pop(key, 1)
            if before > 1:
                marks.parts[key] = before
            self._collect_key(batch, key, part, before, keyspace.value_of(key))
        for queue, number in marks.items:
            value = keyspace.item_of(queue, number)
            if value is None:
                batch.delete(_item_row(queue, number))
            else:
                batch.put(_item_row(queue, number), value)
        return marks

    def put_back(self, marks: Marks) -> None:
        """Has what was collected be collected again, as it may not have been recorded."""
        for key, part in marks.keys.items():
            self.changed(key, part * PART)
        self.marks.items.update(marks.items)
        self.marks.runs.update(marks.runs)
        for key, count in marks.parts.items():
            self._parts[key] = max(count, self._parts.get(key, 1))

    def _collect_key(
        self, batch: RowBatch, key: bytes, first: int, before: int, value: bytes | LongValue | None
    ) -> None:
        count = 0 if value is None else max(1, -(-len(value) // PART))
        if value is not None:
            start = first * PART
            changed = value[start:] if isinstance(value, bytes) else value.rest(start)
            for part in range(first, count):
                at = part * PART - start
                batch.put(_part_row(key, part), changed[at : at + PART])
        for part in range(count, before):
            batch.delete(_part_row(key, part))
        if count > 1:
            self._parts[key] = count

    def load(self, keyspace: Keyspace, keys: Mapping[bytes, bytes], queues: Mapping[bytes, bytes]) -> None:
        """Fills an empty keyspace from its rows.

        Args:
            keyspace: Where to.
            keys: The rows under `KEYS`, in order.
            queues: The rows under `QUEUES`, in order.

        Raises:
            StoreError: A row is missing, or there is no room for all of them.
        """
        values: dict[bytes, dict[int, bytes]] = {}
        for row, value in keys.items():
            name, part = row[len(KEYS) : -_PART_NUMBER], row[-_PART_NUMBER:]
            values.setdefault(name, {})[int.from_bytes(part)] = value
        for key, parts in values.items():
            if parts.keys() != set(range(len(parts))):
                raise StoreError(f"the record of key {key!r} is damaged: its parts are {sorted(parts)}")
            keyspace.restore_key(key, b"".join(parts[part] for part in range(len(parts))))
            if len(parts) > 1:
                self._parts[key] = len(parts)
        items: dict[bytes, dict[int, bytes]] = {}
        for row, value in queues.items():
            name, number = row[len(QUEUES) : -_ITEM_NUMBER], row[-_ITEM_NUMBER:]
            items.setdefault(name, {})[int.from_bytes(number)] = value
        for queue, numbered in items.items():
            first = min(numbered)
            if numbered.keys() != set(range(first, first + len(numbered))):
                raise StoreError(f"the record of queue {queue!r} is damaged: it has {sorted(numbered)}")
            keyspace.restore_queue(queue, first, [numbered[number] for number in sorted(numbered)])
        self.marks = Marks()


def _part_row(key: bytes, part: int) -> bytes:
    return KEYS + key + part.to_bytes(_PART_NUMBER)


def _item_row(queue: bytes, number: int) -> bytes:
    return QUEUES + queue + number.to_bytes(_ITEM_NUMBER)

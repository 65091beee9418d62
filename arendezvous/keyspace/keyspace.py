"""What a store means: keys, queues, barriers, and who is woken by what. Pure: no clock, no I/O.

A listener (a connection of the c10d protocol, an HTTP handler, a store in this process) gives each of its
clients a number, passes each request to `Keyspace.handle`, and delivers the replies that are then owed, to
whom they are owed: the asker, and whoever waited for what the request has changed::

    keyspace.handle(1, Wait([b"leader"]))         -> []
    keyspace.handle(2, Set(b"leader", b"node7"))  -> [(1, WaitDone())]

Time-outs are the listener's business too: it sends `CancelWait`, or drops the client.

The meaning is that of ``torch.distributed.TCPStore``, whose server was observed for it; where this differs
is told in docs/store-differences.md.

Cost: a request costs what its own keys cost. Waiters are found by key; keys are counted, listed and deleted
by run (`regions`); a value that is appended to or read is not copied (`values`). What many are owed, or
many keys that are deleted at once leave behind, is not done in one go: `work` takes a step of it, and has to
be called as long as there is something in `later`. All that shows of it is that waits end one by one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final

from msgspec import Struct

from arendezvous.errors import StoreError
from arendezvous.keyspace.messages import (
    Add,
    Append,
    Barrier,
    CancelWait,
    Changed,
    Check,
    CompareSet,
    DeleteKey,
    Get,
    InPieces,
    Keys,
    ListKeys,
    ManyInPieces,
    MultiGet,
    MultiSet,
    Number,
    NumKeys,
    Popped,
    QueueLen,
    QueuePop,
    QueuePush,
    Ready,
    Reply,
    Request,
    Set,
    Value,
    Values,
    Wait,
    WaitCancelled,
    WaitQueue,
    Watch,
)
from arendezvous.keyspace.regions import KEY, KeyspaceLimits, Region, Regions, run_part
from arendezvous.keyspace.rows import KeyspaceRows
from arendezvous.keyspace.values import LOOK, PIECE, LongValue, Pieces, wrapped
from arendezvous.keyspace.values import leading_integer as leading_integer
from arendezvous.keyspace.values import not_a_number as not_a_number
from arendezvous.keyspace.waits import DONE, STEP, WAIT, Owed, Waits

ITEM: Final = 64  # bytes that a value in a queue takes besides its own
QUEUE: Final = 1200  # bytes that a queue takes besides its name

DIGITS: Final = 20  # bytes of a number, at most

_CANCELLED: Final = WaitCancelled()


class Entry(Struct, gc=False):
    """A key: its value, the number of the change that wrote it, and the region to which it belongs."""

    value: bytes | LongValue
    revision: int
    region: Region


class Queue(Struct):
    """The values of a queue, the oldest first, the region to which it belongs, and the oldest's number."""

    values: deque[bytes]
    region: Region
    first: int = 0


class Reading(Struct):
    """A value that is being sent.

    Attributes:
        count: By how many.
        region: What is charged for it until all have been sent it; None as long as it is stored.
        size: Its bytes, once it is not.
    """

    count: int = 0
    region: Region | None = None
    size: int = 0


class Keyspace:
    """All keys and queues of one store, and those who wait for them.

    Not safe for use from several threads; a request is handled whole, so every operation is atomic.

    Args:
        limits: How much there may be.

    Attributes:
        revision: The number of changes to keys so far; each change gives its key the new number.
        handled: The number of requests so far, by their type.
        later: What is left to do, in steps; `work` takes one.
        rows: Where changes are marked that have to be recorded; None: none have.

    Its other fields:
        _count: How many keys there are.
        _entries: The keys by name; also those of regions that are gone, until they are swept out.
        _queues: The queues by name, likewise.
        _regions: Keys and queues by run, and what they take.
        _waits: Who waits for what.
        _waiting: The same by key, at hand because every write looks at it.
        _unready: Clients that are asking whether many keys are there, of which one is missing.
        _read: The long values that are being sent, by their identity.
        _max_value: Bytes in one value, at most.
    """

    def __init__(self, limits: KeyspaceLimits | None = None) -> None:
        self.revision = 0
        self._count = 0
        self._entries: dict[bytes, Entry] = {}
        self._queues: dict[bytes, Queue] = {}
        self.rows: KeyspaceRows | None = None
        self._regions = Regions(limits or KeyspaceLimits())
        self.later: deque[Iterator[Owed]] = deque()
        self._waits = Waits(self._regions, self.later)
        self._waiting = self._waits.by_key
        self._unready: set[int] = set()
        self._read: dict[int, Reading] = {}
        self._max_value = self._regions.limits.max_value
        self._handlers: dict[type, Callable[[int, Any], Owed]] = {
            Set: self._set,
            CompareSet: self._compare_set,
            Get: self._get,
            Add: self._add,
            Check: self._check,
            Wait: self._wait,
            WaitQueue: self._wait_queue,
            NumKeys: self._num_keys,
            DeleteKey: self._delete_key,
            Append: self._append,
            MultiGet: self._multi_get,
            MultiSet: self._multi_set,
            CancelWait: self._cancel_wait,
            QueuePush: self._queue_push,
            QueuePop: self._queue_pop,
            QueueLen: self._queue_len,
            ListKeys: self._list_keys,
            Barrier: self._barrier,
            Watch: self._watch,
        }
        self.handled: dict[type, int] = dict.fromkeys(self._handlers, 0)

    def __len__(self) -> int:
        return self._count

    @property
    def size(self) -> int:
        """Bytes that keys, values, queues and waits take, as the limits count them."""
        return self._regions.size

    @property
    def waits(self) -> int:
        """The number of clients that wait for something."""
        return len(self._waits)

    def handle(self, client: int, request: Request) -> Owed:
        """Carries out `request` of `client`, and returns the replies that are now owed.

        Raises:
            StoreError: `Add` or `Barrier` on a value that does not start with an integer of 64 bits; nothing
                was changed, and nothing is owed.
            StoreFullError: A limit would be passed; likewise.
        """
        kind = type(request)
        self.handled[kind] += 1
        return self._handlers[kind](client, request)

    def drop(self, client: int) -> Owed:
        """Forgets a client that has gone away; what it was woken for and did not take goes to the next."""
        self._unready.discard(client)
        woken: list[tuple[int, Reply]] = []
        for key in self._waits.drop(client):
            if self._queue(key) is not None:
                woken += self._waits.wake_one(key)
        return woken

    def work(self) -> Owed:
        """Takes a step of what is left to do, and returns the replies that are now owed."""
        if not self.later:
            return ()
        owed = next(self.later[0], None)
        if owed is None:
            self.later.popleft()
            return ()
        self.later.rotate(-1)
        return owed

    def revision_of(self, key: bytes) -> int:
        """The revision of the last change of `key`; 0 if it is absent."""
        entry = self._entry(key)
        return 0 if entry is None else entry.revision

    def size_of(self, key: bytes) -> int | None:
        """The bytes in the value of `key`; None if it is absent. Copies nothing, however long it is."""
        entry = self._entry(key)
        return None if entry is None else len(entry.value)

    def value_of(self, key: bytes) -> bytes | LongValue | None:
        """The value of `key` as it is kept; None if it is absent."""
        entry = self._entry(key)
        return None if entry is None else entry.value

    def item_of(self, key: bytes, number: int) -> bytes | None:
        """The value of the queue `key` with this number; None if it has been popped."""
        queue = self._queue(key)
        at = -1 if queue is None else number - queue.first
        return None if queue is None or not 0 <= at < len(queue.values) else queue.values[at]

    def restore_key(self, key: bytes, value: bytes) -> None:
        """Stores a key that was recorded, before anybody waits for it.

        Raises:
            StoreFullError: There is no room.
        """
        self._write(key, value)

    def restore_queue(self, key: bytes, first: int, values: list[bytes]) -> None:
        """Likewise a queue, whose oldest value has the number `first`."""
        for value in values:
            self._queue_push(0, QueuePush(key, value))
        self._queues[key].first = first

    def awaited(self, client: int) -> set[bytes]:
        """The keys that `client` still waits for, or watches."""
        return self._waits.awaited(client)

    def listing(self, prefix: bytes = b"") -> Iterator[list[bytes]]:
        """The keys that begin with `prefix`, run by run; those of each as they are when it is looked at."""
        for region in self._regions.within(prefix):
            if region.prefix.startswith(prefix):
                yield list(region.keys)
            else:
                yield [key for key in region.keys if key.startswith(prefix)]

    def delete_run(self, prefix: bytes) -> Owed:
        """Deletes all keys and queues of the run whose keys begin with `prefix`, at once.

        Returns:
            What those who watch one of them are owed; if they are many, `work` gives the rest.
        """
        region = self._regions.remove(prefix)
        if region is None:
            return ()
        self._count -= len(region.keys)
        self.revision += 1
        if self.rows is not None:
            self.rows.run_deleted(prefix)
        sweeping = self._sweeping(region)
        owed = next(sweeping, ())
        for _ in sweeping:  # its next step; mostly there are no more
            self.later.append(sweeping)
            break
        return owed

    def begin_reading(self, value: bytes | Pieces) -> None:
        """Somebody begins to send a value that a reply has brought: it counts even if it is replaced."""
        reading = self._read.setdefault(_identity(value), Reading())
        reading.count += 1

    def end_reading(self, value: bytes | Pieces) -> None:
        """Takes back one `begin_reading`."""
        reading = self._read[_identity(value)]
        reading.count -= 1
        if not reading.count:
            del self._read[_identity(value)]
            if reading.region is not None:
                self._regions.shrink(reading.region, reading.size)

    # Keys

    def _set(self, _client: int, request: Set) -> Owed:
        owed = self._write(request.key, request.value)
        if request.key in self._waiting:
            return [*owed, *self._waits.wake_all(request.key)]
        return owed

    def _compare_set(self, client: int, request: CompareSet) -> Owed:
        entry = self._entry(request.key)
        if entry is None and request.expected:
            # Callers count on being told what they expected, although nothing is there.
            return [(client, Value(request.expected))]
        if entry is not None and not _is_same(entry.value, request.expected):
            return [(client, _value(entry.value))]
        return [(client, Value(request.desired)), *self._put(request.key, request.desired)]

    def _get(self, client: int, request: Get) -> Owed:
        entry = self._entries.get(request.key)
        if entry is None or entry.region.is_gone:
            return [(client, Value(None))]
        value = entry.value
        return [(client, Value(value) if type(value) is bytes else _value(value))]

    def _add(self, client: int, request: Add) -> Owed:
        total = wrapped(self._number(request.key) + request.delta)
        owed = self._put(request.key, b"%d" % total)
        return [(client, Number(total)), *owed]

    def _num_keys(self, client: int, request: NumKeys) -> Owed:
        if not request.prefix:
            return [(client, Number(self._count))]
        return [(client, Number(sum(map(len, self.listing(request.prefix)))))]

    def _list_keys(self, client: int, request: ListKeys) -> Owed:
        return [(client, Keys([key for keys in self.listing(request.prefix) for key in keys]))]

    def _delete_key(self, client: int, request: DeleteKey) -> Owed:
        entry = self._entry(request.key)
        if entry is None:
            return [(client, Number(0))]
        region = entry.region
        del self._entries[request.key], region.keys[request.key]
        self._count -= 1
        self.revision += 1
        if self.rows is not None:
            self.rows.changed(request.key)
        owed = self._tell(region, request.key)
        self._discard(entry, KEY + len(request.key))
        return [(client, Number(1)), *owed]

    def _append(self, _client: int, request: Append) -> Owed:
        key, more = request.key, request.value
        entry = self._entry(key)
        if entry is None:
            return self._put(key, more)
        value = entry.value
        if isinstance(value, bytes) and len(value) + len(more) <= PIECE:
            return self._put(key, value + more)
        length = len(value)
        if length + len(more) > self._max_value:
            raise _too_long(length + len(more), self._max_value)
        if isinstance(value, bytes):
            longer = LongValue(value)
            longer.append(more)
            self._replace(entry, longer)
        else:
            self._regions.grow(entry.region, len(more))
            value.append(more)
        self.revision = entry.revision = self.revision + 1
        if self.rows is not None:
            self.rows.changed(key, length)
        owed = self._tell(entry.region, key)
        return [*owed, *self._waits.wake_all(key)] if key in self._waiting else owed

    def _multi_get(self, client: int, request: MultiGet) -> Owed:
        found = [None if entry is None else entry.value for entry in map(self._entry, request.keys)]
        plain = [value for value in found if not isinstance(value, LongValue)]
        if len(plain) == len(found):
            return [(client, Values(plain))]
        pieces = [value.pieces() if isinstance(value, LongValue) else value for value in found]
        return [(client, ManyInPieces(pieces))]

    def _multi_set(self, _client: int, request: MultiSet) -> Owed:
        self._check_room(request.items)
        owed: list[tuple[int, Reply]] = []
        for key, value in request.items:
            owed += self._put(key, value)
        return owed

    # Queues

    def _queue_push(self, _client: int, request: QueuePush) -> Owed:
        key, size = request.key, ITEM + len(request.value)
        if len(request.value) > self._max_value:
            raise _too_long(len(request.value), self._max_value)
        queue = self._queue(key)
        if queue is None:
            region = self._regions.charge(key, size + QUEUE + len(key))
            queue = self._queues[key] = region.queues[key] = Queue(deque(), region)
        else:
            self._regions.grow(queue.region, size)
        queue.values.append(request.value)
        if self.rows is not None:
            self.rows.item_changed(key, queue.first + len(queue.values) - 1)
        return self._waits.wake_one(key)

    def _queue_pop(self, client: int, request: QueuePop) -> Owed:
        key = request.key
        self._waits.looked(client, key)
        queue = self._queue(key)
        if queue is None:
            return [(client, Popped(0, None))]
        length, region = len(queue.values), queue.region
        value = queue.values.popleft()
        if self.rows is not None:
            self.rows.item_changed(key, queue.first)
        queue.first += 1
        size = ITEM + len(value)
        if length == 1:
            del self._queues[key], region.queues[key]
            size += QUEUE + len(key)
        self._regions.shrink(region, size)
        return [(client, Popped(length, value))]

    def _queue_len(self, client: int, request: QueueLen) -> Owed:
        queue = self._queue(request.key)
        return [(client, Number(0 if queue is None else len(queue.values)))]

    # Waiting

    def _missing(self, keys: list[bytes]) -> list[bytes]:
        return [key for key in keys if self._entry(key) is None and self._queue(key) is None]

    def _check(self, client: int, request: Check) -> Owed:
        if self._missing(request.keys):
            self._unready.add(client)
        if request.more:
            return ()
        ready = client not in self._unready
        self._unready.discard(client)
        return [(client, Ready(ready))]

    def _wait(self, client: int, request: Wait) -> Owed:
        missing = self._missing(request.keys)
        return [(client, DONE)] if self._waits.add(client, missing, more=request.more) else ()

    def _wait_queue(self, client: int, request: WaitQueue) -> Owed:
        missing = [request.key] if self._queue(request.key) is None else []
        return [(client, DONE)] if self._waits.add(client, missing) else ()

    def _barrier(self, client: int, request: Barrier) -> Owed:
        key = request.key
        arrived = self._number(key) + 1
        self._regions.require(key, KEY + WAIT + 2 * len(key) + DIGITS)
        owed = self._write(key, b"%d" % arrived)
        if arrived < request.world_size:
            self._waits.add(client, (key,))
            return owed
        return [(client, DONE), *owed, *self._waits.wake_all(key)]

    def _watch(self, client: int, request: Watch) -> Owed:
        entry = self._entry(request.key)
        revision = 0 if entry is None else entry.revision
        if revision != request.revision:
            return [(client, Changed(None if entry is None else _bytes(entry.value), revision))]
        self._waits.watch(client, request.key)
        return ()

    def _cancel_wait(self, client: int, _request: CancelWait) -> Owed:
        return [(client, _CANCELLED), *self.drop(client)]

    # The parts

    def _entry(self, key: bytes) -> Entry | None:
        entry = self._entries.get(key)
        return None if entry is None or entry.region.is_gone else entry

    def _queue(self, key: bytes) -> Queue | None:
        queue = self._queues.get(key)
        return None if queue is None or queue.region.is_gone else queue

    def _number(self, key: bytes) -> int:
        entry = self._entry(key)
        if entry is None:
            return 0
        value = entry.value
        head = value[: LOOK + 1] if isinstance(value, bytes) else value.head(LOOK + 1)
        number = leading_integer(head)
        if number is None:
            raise not_a_number(key, head)
        return number

    def _put(self, key: bytes, value: bytes) -> Owed:
        owed = self._write(key, value)
        return [*owed, *self._waits.wake_all(key)] if key in self._waiting else owed

    def _write(self, key: bytes, value: bytes) -> Owed:
        if len(value) > self._max_value:
            raise _too_long(len(value), self._max_value)
        entry = self._entries.get(key)
        if entry is None or entry.region.is_gone:
            region = self._regions.charge(key, KEY + len(key) + len(value))
            if entry is not None:  # it has not been swept out yet
                del entry.region.keys[key]
                self._discard(entry, KEY + len(key))
            entry = self._entries[key] = Entry(value, 0, region)
            region.keys[key] = None
            self._count += 1
        elif self._read or len(value) != len(entry.value):
            self._replace(entry, value)
        else:
            entry.value = value
        self.revision = entry.revision = self.revision + 1
        if self.rows is not None:
            self.rows.changed(key)
        return self._tell(entry.region, key) if entry.region.watching else ()

    def _replace(self, entry: Entry, value: bytes | LongValue) -> None:
        more = len(value) - len(entry.value)
        if id(entry.value) in self._read:
            self._regions.grow(entry.region, len(value))
            self._discard(entry, 0)
        elif more > 0:
            self._regions.grow(entry.region, more)
        else:
            self._regions.shrink(entry.region, -more)
        entry.value = value

    def _tell(self, region: Region, key: bytes) -> Owed:
        """What those who watch a key of `region` are owed, which has changed."""
        if key not in region.watching:
            return ()
        entry = self._entry(key)
        if entry is None:
            return self._waits.tell(region, key, Changed(None, 0))
        return self._waits.tell(region, key, Changed(_bytes(entry.value), entry.revision))

    def _discard(self, entry: Entry, besides: int) -> None:
        """Takes back what is charged for a value that is not stored any more, and `besides`."""
        size = len(entry.value)
        reading = self._read.get(id(entry.value)) if self._read else None
        if reading is not None:
            reading.region, reading.size = entry.region, size
            size = 0
        self._regions.shrink(entry.region, size + besides)

    def _check_room(self, items: list[tuple[bytes, bytes]]) -> None:
        """Checks that all of the items can be stored.

        Raises:
            StoreError: They cannot.
        """
        longest = max([len(value) for _, value in items], default=0)
        if longest > self._max_value:
            raise _too_long(longest, self._max_value)
        limits = self._regions.limits
        most = self._regions.size + sum([KEY + len(key) + len(value) for key, value in items])
        if most <= min(limits.max_bytes, limits.max_run_bytes):
            return
        more: dict[bytes, int] = {}
        for key, value in items:
            entry = self._entry(key)
            size = KEY + len(key) if entry is None else -len(entry.value)
            part = run_part(key)
            more[part] = more.get(part, 0) + size + len(value)
        self._regions.require_all(more)

    def _sweeping(self, region: Region) -> Iterator[Owed]:
        """Tells who watches a key of a region that is gone, and then sweeps out what it had."""
        owed: list[tuple[int, Reply]] = []
        count = 0
        while region.watching:
            owed += self._waits.tell(region, next(iter(region.watching)), Changed(None, 0))
            count += 1
            if count % STEP == 0:
                yield owed
                owed = []
        yield owed
        while region.keys:
            key, _ = region.keys.popitem()
            self._discard(self._entries.pop(key), KEY + len(key))
            count += 1
            if count % STEP == 0:
                yield ()
        while region.queues:
            key, queue = region.queues.popitem()
            if self._queues[key] is queue:
                del self._queues[key]
            while queue.values:
                self._regions.shrink(region, ITEM + len(queue.values.popleft()))
                count += 1
                if count % STEP == 0:
                    yield ()
            self._regions.shrink(region, QUEUE + len(key))


def _value(value: bytes | LongValue) -> Value | InPieces:
    return Value(value) if isinstance(value, bytes) else InPieces(value.pieces())


def _bytes(value: bytes | LongValue) -> bytes:
    return value if isinstance(value, bytes) else value.whole()


def _is_same(value: bytes | LongValue, expected: bytes) -> bool:
    if isinstance(value, bytes):
        return value == expected
    return len(value) == len(expected) and value.whole() == expected


def _identity(value: bytes | Pieces) -> int:
    return id(value if isinstance(value, bytes) else value.source)


def _too_long(length: int, most: int) -> StoreError:
    return StoreError(f"the value would have {length} bytes; at most {most} are kept under one key")

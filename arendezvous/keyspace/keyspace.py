"""Carries out what a store means: keys, queues, barriers, and who is woken. Pure: no clock, no I/O.

A listener (a connection of the c10d protocol, an HTTP handler, a store in this process) gives each of its
clients a number, passes each request to `Keyspace.handle`, and delivers the replies that are then owed, to
whom they are owed: the asker, and whoever waited for what the request has changed::

    keyspace.handle(1, Wait([b"leader"]))         -> []
    keyspace.handle(2, Set(b"leader", b"node7"))  -> [(1, WaitDone())]

Time-outs are the listener's business too: it sends `CancelWait`, or drops the client.

The meaning is that of ``torch.distributed.TCPStore``, whose server was observed for it; where this differs
is told in docs/explanation/store-differences.md.

Cost: a request costs what its own keys cost. Waiters are found by key; keys are counted, listed and deleted
by run (`regions`); a value that is appended to or read is not copied (`values`). What many are owed, or
many keys that are deleted at once leave behind, is not done in one go: `work` takes a step of it, and has to
be called as long as there is something in `later`. All that shows of it is that waits end one by one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Final

from msgspec import Struct

from arendezvous.keyspace import messages as msg
from arendezvous.keyspace.regions import (
    KEY,
    MASK,
    Entries,
    KeyspaceLimits,
    Region,
    Regions,
    run_part,
    too_long,
)
from arendezvous.keyspace.rows import KeyspaceRows
from arendezvous.keyspace.values import LOOK, LongValue, Pieces, wrapped
from arendezvous.keyspace.values import leading_integer as leading_integer
from arendezvous.keyspace.values import not_a_number as not_a_number
from arendezvous.keyspace.waits import DONE, STEP, WAIT, Owed, Waits

ITEM: Final = 64  # bytes that a value in a queue takes besides its own
QUEUE: Final = 1200  # bytes that a queue takes besides its name

DIGITS: Final = 20  # bytes of a number, at most

_CANCELLED: Final = msg.WaitCancelled()


class Queue(Struct, gc=False, eq=False):
    """Holds the values of a queue, the oldest first, its region, and the number of the oldest."""

    values: deque[bytes]
    region: Region
    first: int = 0


class Keyspace:
    """All keys and queues of one store, and those who wait for them.

    Not safe for use from several threads; a request is handled whole, so every operation is atomic.
    """

    def __init__(self, limits: KeyspaceLimits | None = None) -> None:
        self.revision = 0  # the number of changes to keys so far; each change gives its key the new number
        self.rows: KeyspaceRows | None = None  # marks changes that are to be recorded; None: none are
        self.later: deque[Iterator[Owed]] = deque()  # what is left to do, in steps; `work` takes one
        self._regions = Regions(limits or KeyspaceLimits())  # keys and queues by run, and what they take
        self.entries = Entries(self._regions)  # the keys
        self._queues: dict[bytes, Queue] = {}  # also of regions that are gone, until they are swept out
        self._waits = Waits(self._regions, self.later)  # who waits for what
        self._waiting = self._waits.by_key  # the same by key, at hand because every write looks at it
        self._unready: set[int] = set()  # clients that ask for many keys, of which one is missing
        self._handlers: dict[type, Callable[[int, Any], Owed]] = {
            msg.Set: self._set,
            msg.CompareSet: self._compare_set,
            msg.Get: self._get,
            msg.Add: self._add,
            msg.Check: self._check,
            msg.Wait: self._wait,
            msg.WaitQueue: self._wait_queue,
            msg.NumKeys: self._num_keys,
            msg.DeleteKey: self._delete_key,
            msg.Append: self._append,
            msg.MultiGet: self._multi_get,
            msg.MultiSet: self._multi_set,
            msg.CancelWait: self._cancel_wait,
            msg.QueuePush: self._queue_push,
            msg.QueuePop: self._queue_pop,
            msg.QueueLen: self._queue_len,
            msg.ListKeys: self._list_keys,
            msg.Barrier: self._barrier,
            msg.Watch: self._watch,
        }
        self.handled: dict[type, int] = dict.fromkeys(self._handlers, 0)  # requests so far, by their type

    def __len__(self) -> int:
        return self.entries.count

    @property
    def size(self) -> int:
        """Bytes that keys, values, queues and waits take, as the limits count them."""
        return self._regions.size

    @property
    def waits(self) -> int:
        """The number of clients that wait for something."""
        return len(self._waits)

    def handle(self, client: int, request: msg.StoreRequest) -> Owed:
        """Carries out `request` of `client`, and returns the replies that are now owed.

        Raises:
            StoreError: `Add` or `Barrier` on a value that does not start with an integer of 64 bits; or, as a
                `StoreFullError`, a limit would be passed. Nothing was changed, and nothing is owed.
        """
        kind = type(request)
        self.handled[kind] += 1
        return self._handlers[kind](client, request)

    def drop(self, client: int) -> Owed:
        """Forgets a client that has gone away; what it was woken for and did not take goes to the next."""
        self._unready.discard(client)
        woken: list[tuple[int, msg.Reply]] = []
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
        entry = self.entries.get(key)
        return 0 if entry is None else entry.revision

    def value_of(self, key: bytes) -> bytes | LongValue | None:
        """The value of `key` as it is kept; None if it is absent."""
        entry = self.entries.get(key)
        return None if entry is None else entry.value

    def item_of(self, key: bytes, number: int) -> bytes | None:
        """The value of the queue `key` with this number; None if it has been popped."""
        queue = self._queue(key)
        at = -1 if queue is None else number - queue.first
        return None if queue is None or not 0 <= at < len(queue.values) else queue.values[at]

    def restore_key(self, key: bytes, value: bytes) -> None:
        """Stores a key that was recorded. Raises `StoreFullError` if there is no room."""
        self._write(key, value)

    def restore_queue(self, key: bytes, first: int, values: list[bytes]) -> None:
        """Likewise a queue, whose oldest value has the number `first`."""
        for value in values:
            self._queue_push(0, msg.QueuePush(key, value))
        self._queues[key].first = first

    def awaited(self, client: int) -> set[bytes]:
        """The keys that `client` still waits for, or watches."""
        return self._waits.awaited(client)

    def listing(self, prefix: bytes = b"") -> Iterator[list[bytes]]:
        """The keys that begin with `prefix`, run by run; those of each as they are when it is looked at."""
        for region in self._regions.within(prefix):
            if region.is_gone:
                continue
            if region.prefix.startswith(prefix):
                yield list(region.keys)
            else:
                yield [key for key in region.keys if key.startswith(prefix)]

    def delete_run(self, prefix: bytes) -> Owed:
        """Deletes all that is under the prefix of a run, at once.

        Returns what those who watch one of the keys are owed; if they are many, `work` gives the rest.
        """
        region = self._regions.remove(prefix)
        if region is None:
            return ()
        self.entries.count -= len(region.keys)
        self.revision += 1
        if self.rows is not None:
            self.rows.run_deleted(prefix)
        sweeping = self._sweeping(region)
        owed = list(next(sweeping, ()))
        for more in sweeping:  # its next step; mostly there are no more
            owed += more
            self.later.append(sweeping)
            break
        return owed

    # Keys

    def _set(self, _client: int, request: msg.Set) -> Owed:
        owed = self._write(request.key, request.value)
        if request.key in self._waiting:
            return [*owed, *self._waits.wake_all(request.key)]
        return owed

    def _compare_set(self, client: int, request: msg.CompareSet) -> Owed:
        entry = self.entries.get(request.key)
        if entry is None and request.expected:
            # Callers count on being told what they expected, although nothing is there.
            return [(client, msg.Value(request.expected))]
        if entry is not None and not _is_same(entry.value, request.expected):
            return [(client, msg.Value(_plain(entry.value)))]
        return [(client, msg.Value(request.desired)), *self._put(request.key, request.desired)]

    def _get(self, client: int, request: msg.Get) -> Owed:
        key = request.key
        entry = self.entries.table.parts[hash(key) & MASK].get(key)
        if entry is None or entry.region.is_gone:
            return [(client, msg.Value(None))]
        value = entry.value
        return [(client, msg.Value(value if type(value) is bytes else _plain(value)))]

    def _add(self, client: int, request: msg.Add) -> Owed:
        total = wrapped(self._number(request.key) + request.delta)
        owed = self._put(request.key, b"%d" % total)
        return [(client, msg.Number(total)), *owed]

    def _num_keys(self, client: int, request: msg.NumKeys) -> Owed:
        if not request.prefix:
            return [(client, msg.Number(self.entries.count))]
        count, prefix = 0, request.prefix
        for region in self._regions.within(prefix):
            if region.prefix.startswith(prefix):
                count += len(region.keys)
            else:
                count += sum([key.startswith(prefix) for key in region.keys])
        return [(client, msg.Number(count))]

    def _list_keys(self, client: int, request: msg.ListKeys) -> Owed:
        return [(client, msg.Keys([key for keys in self.listing(request.prefix) for key in keys]))]

    def _delete_key(self, client: int, request: msg.DeleteKey) -> Owed:
        entry = self.entries.get(request.key)
        if entry is None:
            return [(client, msg.Number(0))]
        self.entries.delete(request.key, entry)
        self.revision += 1
        if self.rows is not None:
            self.rows.changed(request.key)
        owed = self._tell(entry.region, request.key)
        return [(client, msg.Number(1)), *owed]

    def _append(self, _client: int, request: msg.Append) -> Owed:
        key, more = request.key, request.value
        entry = self.entries.get(key)
        if entry is None:
            return self._put(key, more)
        length = len(entry.value)
        self.entries.append(entry, more)
        self.revision = entry.revision = self.revision + 1
        if self.rows is not None:
            self.rows.changed(key, length)
        owed = self._tell(entry.region, key)
        return [*owed, *self._waits.wake_all(key)] if key in self._waiting else owed

    def _multi_get(self, client: int, request: msg.MultiGet) -> Owed:
        entries = map(self.entries.get, request.keys)
        return [(client, msg.Values([None if entry is None else _plain(entry.value) for entry in entries]))]

    def _multi_set(self, _client: int, request: msg.MultiSet) -> Owed:
        self.entries.check_room(request.items)
        owed: list[tuple[int, msg.Reply]] = []
        write, waiting = self._write, self._waiting
        for key, value in request.items:
            told = write(key, value)
            if told:
                owed += told
            if key in waiting:
                owed += self._waits.wake_all(key)
        return owed

    # Queues

    def _queue_push(self, _client: int, request: msg.QueuePush) -> Owed:
        key, size = request.key, ITEM + len(request.value)
        if len(request.value) > self._regions.limits.max_value:
            raise too_long(len(request.value), self._regions.limits.max_value)
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

    def _queue_pop(self, client: int, request: msg.QueuePop) -> Owed:
        key = request.key
        self._waits.looked(client, key)
        queue = self._queue(key)
        if queue is None:
            return [(client, msg.Popped(0, None))]
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
        return [(client, msg.Popped(length, value))]

    def _queue_len(self, client: int, request: msg.QueueLen) -> Owed:
        queue = self._queue(request.key)
        return [(client, msg.Number(0 if queue is None else len(queue.values)))]

    # Waiting

    def _missing(self, keys: list[bytes]) -> list[bytes]:
        return [key for key in keys if self.entries.get(key) is None and self._queue(key) is None]

    def _check(self, client: int, request: msg.Check) -> Owed:
        if self._missing(request.keys):
            self._unready.add(client)
        if request.more:
            return ()
        ready = client not in self._unready
        self._unready.discard(client)
        return [(client, msg.Ready(ready))]

    def _wait(self, client: int, request: msg.Wait) -> Owed:
        missing = self._missing(request.keys)
        return [(client, DONE)] if self._waits.add(client, missing, more=request.more) else ()

    def _wait_queue(self, client: int, request: msg.WaitQueue) -> Owed:
        missing = [request.key] if self._queue(request.key) is None else []
        return [(client, DONE)] if self._waits.add(client, missing) else ()

    def _barrier(self, client: int, request: msg.Barrier) -> Owed:
        key = request.key
        arrived = self._number(key) + 1
        self._regions.require_all({run_part(key): KEY + WAIT + 2 * len(key) + DIGITS})
        owed = self._write(key, b"%d" % arrived)
        if arrived < request.world_size:
            self._waits.add(client, (key,))
            return owed
        return [(client, DONE), *owed, *self._waits.wake_all(key)]

    def _watch(self, client: int, request: msg.Watch) -> Owed:
        entry = self.entries.get(request.key)
        revision = 0 if entry is None else entry.revision
        if revision != request.revision:
            return [(client, msg.Changed(None if entry is None else _plain(entry.value), revision))]
        self._waits.watch(client, request.key)
        return ()

    def _cancel_wait(self, client: int, _request: msg.CancelWait) -> Owed:
        return [(client, _CANCELLED), *self.drop(client)]

    # The parts

    def _queue(self, key: bytes) -> Queue | None:
        queue = self._queues.get(key)
        return None if queue is None or queue.region.is_gone else queue

    def _number(self, key: bytes) -> int:
        entry = self.entries.get(key)
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
        entry = self.entries.write(key, value)
        self.revision = entry.revision = self.revision + 1
        if self.rows is not None:
            self.rows.changed(key)
        return self._tell(entry.region, key) if entry.region.watching else ()

    def _tell(self, region: Region, key: bytes) -> Owed:
        """Tells what those who watch a key of `region` are owed, which has changed."""
        if key not in region.watching:
            return ()
        entry = self.entries.get(key)
        if entry is None:
            return self._waits.tell(region, key, msg.Changed(None, 0))
        return self._waits.tell(region, key, msg.Changed(_plain(entry.value), entry.revision))

    def _sweeping(self, region: Region) -> Iterator[Owed]:
        """Tells who watches a key of a region that is gone, and then sweeps out what it had."""
        owed: list[tuple[int, msg.Reply]] = []
        count = 0
        # in slices: to find the first of a dict that is emptied from its front takes longer each time
        while some := list(islice(region.watching, STEP)):
            for key in some:
                owed += self._waits.tell(region, key, msg.Changed(None, 0))
            yield owed
            owed = []
        for _ in self.entries.sweep(region):
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


def _plain(value: bytes | LongValue) -> bytes | Pieces:
    return value if isinstance(value, bytes) else value.pieces()


def _is_same(value: bytes | LongValue, expected: bytes) -> bool:
    if isinstance(value, bytes):
        return value == expected
    return len(value) == len(expected) and value.whole() == expected

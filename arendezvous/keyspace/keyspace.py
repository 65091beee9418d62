"""What a store means: keys, queues, barriers, and who is woken by what. Pure: no clock, no I/O.

A door (a connection of the c10d protocol, an HTTP handler, a store in this process) gives each of its
clients a number, passes each request to `Keyspace.handle`, and delivers the replies that are then owed, to
whom they are owed: the asker, and whoever waited for what the request has changed::

    keyspace.handle(1, Wait([b"leader"]))         -> []
    keyspace.handle(2, Set(b"leader", b"node7"))  -> [(1, WaitDone())]

Time-outs are the door's business too: it sends `CancelWait`, or drops the client.

The meaning is that of ``torch.distributed.TCPStore``, whose server was observed for it; where this differs
is told in docs/store-differences.md. Every operation costs what its own keys cost: waiters are found by
key, never by looking at all keys or all waiters, and a client that goes away costs only its own waits.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

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
    Keys,
    ListKeys,
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
    WaitDone,
    WaitQueue,
    Watch,
)

Owed = Sequence[tuple[int, Reply]]
"""Replies, each with the client to whom it is owed, in the order in which to send them."""

_DONE = WaitDone()
_CANCELLED = WaitCancelled()
_LEADING_INTEGER = re.compile(rb"[ \t\n\v\f\r]*([+-]?)0*([0-9]+)")
_MAX_DIGITS = 19  # of a signed integer of 64 bits
_SIGN_BIT = 1 << 63


class _PendingWait:
    """One client's wait for some keys, in the index of those keys until it is over."""

    __slots__ = ("client", "index", "missing")

    def __init__(self, client: int, missing: set[bytes], index: _Index) -> None:
        self.client = client
        self.missing = missing
        self.index = index


_Index = dict[bytes, dict[_PendingWait, None]]


class Keyspace:
    """All keys and queues of one store, and those who wait for them.

    Not safe for use from several threads; a request is handled whole, so every operation is atomic.

    Attributes:
        revision: The number of changes to keys so far; each change gives its key the new number.
        handled: The number of requests so far, by their type.
    """

    def __init__(self) -> None:
        self.revision = 0
        self._values: dict[bytes, bytes | bytearray] = {}  # a bytearray while it is being appended to
        self._revisions: dict[bytes, int] = {}
        self._queues: dict[bytes, deque[bytes]] = {}
        self._waiting: _Index = {}
        self._watching: _Index = {}
        self._waits_of: dict[int, dict[_PendingWait, None]] = {}
        self._promised: dict[int, set[bytes]] = {}
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
        return len(self._values)

    def handle(self, client: int, request: Request) -> Owed:
        """Carries out `request` of `client`, and returns the replies that are now owed.

        Raises:
            StoreError: `Add` or `Barrier` on a value that does not start with an integer of 64 bits; nothing
                was changed, and nothing is owed.
        """
        kind = type(request)
        self.handled[kind] += 1
        return self._handlers[kind](client, request)

    def drop(self, client: int) -> Owed:
        """Forgets a client that has gone away; what it was woken for and did not take goes to the next."""
        waits = self._waits_of.pop(client, None)
        if waits is not None:
            for wait in waits:
                _unlink(wait)
        return self._pass_on(client)

    def revision_of(self, key: bytes) -> int:
        """The revision of the last change of `key`; 0 if it is absent."""
        return self._revisions.get(key, 0)

    def items(self, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes, int]]:
        """All keys that start with `prefix`, with value and revision; costs a look at every key."""
        for key, value in self._values.items():
            if key.startswith(prefix):
                yield key, bytes(value), self._revisions[key]

    def delete_prefix(self, prefix: bytes) -> tuple[int, Owed]:
        """Deletes all keys and queues that begin with `prefix`; a pass over all keys.

        Returns:
            How many there were, and what those who watch one of them are owed.
        """
        keys = [key for key in self._values if key.startswith(prefix)]
        queues = [key for key in self._queues if key.startswith(prefix)]
        owed: list[tuple[int, Reply]] = []
        for key in keys:
            owed += self._remove(key)
        for key in queues:
            del self._queues[key]
        return len(keys) + len(queues), owed

    def awaited(self, client: int) -> set[bytes]:
        """The keys that `client` still waits for, or watches."""
        return {key for wait in self._waits_of.get(client, ()) for key in wait.missing}

    @property
    def waits(self) -> int:
        """The number of clients that wait for something."""
        return len(self._waits_of)

    # Keys

    def _set(self, _client: int, request: Set) -> Owed:
        return self._put(request.key, request.value)

    def _compare_set(self, client: int, request: CompareSet) -> Owed:
        current = self._read(request.key)
        if current is None and request.expected:
            # Callers count on being told what they expected, although nothing is there.
            return [(client, Value(request.expected))]
        if current is not None and current != request.expected:
            return [(client, Value(current))]
        return [(client, Value(request.desired)), *self._put(request.key, request.desired)]

    def _get(self, client: int, request: Get) -> Owed:
        return [(client, Value(self._read(request.key)))]

    def _add(self, client: int, request: Add) -> Owed:
        total = self._number(request.key) + request.delta
        total = ((total + _SIGN_BIT) & (2 * _SIGN_BIT - 1)) - _SIGN_BIT
        return [(client, Number(total)), *self._put(request.key, b"%d" % total)]

    def _num_keys(self, client: int, _request: NumKeys) -> Owed:
        return [(client, Number(len(self._values)))]

    def _list_keys(self, client: int, _request: ListKeys) -> Owed:
        return [(client, Keys(list(self._values)))]

    def _delete_key(self, client: int, request: DeleteKey) -> Owed:
        if request.key not in self._values:
            return [(client, Number(0))]
        return [(client, Number(1)), *self._remove(request.key)]

    def _append(self, _client: int, request: Append) -> Owed:
        value = self._values.get(request.key, b"")
        if not isinstance(value, bytearray):
            value = bytearray(value)
        value += request.value
        return self._put(request.key, value)

    def _multi_get(self, client: int, request: MultiGet) -> Owed:
        return [(client, Values([self._read(key) for key in request.keys]))]

    def _multi_set(self, _client: int, request: MultiSet) -> Owed:
        owed: list[tuple[int, Reply]] = []
        for key, value in request.items:
            owed += self._put(key, value)
        return owed

    # Queues

    def _queue_push(self, _client: int, request: QueuePush) -> Owed:
        self._queues.setdefault(request.key, deque()).append(request.value)
        return self._wake_one(request.key)

    def _queue_pop(self, client: int, request: QueuePop) -> Owed:
        promised = self._promised.get(client)
        if promised is not None:
            promised.discard(request.key)
            if not promised:
                del self._promised[client]
        queue = self._queues.get(request.key)
        if queue is None:
            return [(client, Popped(0, None))]
        length = len(queue)
        value = queue.popleft()
        if not queue:
            del self._queues[request.key]
        return [(client, Popped(length, value))]

    def _queue_len(self, client: int, request: QueueLen) -> Owed:
        return [(client, Number(len(self._queues.get(request.key, ()))))]

    # Waiting

    def _missing(self, keys: list[bytes]) -> set[bytes]:
        return {key for key in keys if key not in self._values and key not in self._queues}

    def _check(self, client: int, request: Check) -> Owed:
        return [(client, Ready(not self._missing(request.keys)))]

    def _wait(self, client: int, request: Wait) -> Owed:
        missing = self._missing(request.keys)
        if not missing:
            return [(client, _DONE)]
        self._enlist(client, missing, self._waiting)
        return ()

    def _wait_queue(self, client: int, request: WaitQueue) -> Owed:
        if request.key in self._queues:
            return [(client, _DONE)]
        self._enlist(client, {request.key}, self._waiting)
        return ()

    def _barrier(self, client: int, request: Barrier) -> Owed:
        arrived = self._number(request.key) + 1
        owed = self._write(request.key, b"%d" % arrived)
        if arrived < request.world_size:
            self._enlist(client, {request.key}, self._waiting)
            return owed
        return [(client, _DONE), *owed, *self._wake_all(request.key)]

    def _watch(self, client: int, request: Watch) -> Owed:
        revision = self.revision_of(request.key)
        if revision != request.revision:
            return [(client, Changed(self._read(request.key), revision))]
        self._enlist(client, {request.key}, self._watching)
        return ()

    def _cancel_wait(self, client: int, _request: CancelWait) -> Owed:
        return [(client, _CANCELLED), *self.drop(client)]

    # The parts

    def _number(self, key: bytes) -> int:
        value = self._values.get(key, b"0")
        number = leading_integer(value)
        if number is None:
            raise not_a_number(key, value)
        return number

    def _read(self, key: bytes) -> bytes | None:
        value = self._values.get(key)
        if isinstance(value, bytearray):
            value = self._values[key] = bytes(value)
        return value

    def _put(self, key: bytes, value: bytes | bytearray) -> Owed:
        owed = self._write(key, value)
        return [*owed, *self._wake_all(key)] if key in self._waiting else owed

    def _write(self, key: bytes, value: bytes | bytearray) -> Owed:
        self.revision += 1
        self._values[key] = value
        self._revisions[key] = self.revision
        return self._tell_watchers(key) if self._watching else ()

    def _remove(self, key: bytes) -> Owed:
        del self._values[key], self._revisions[key]
        self.revision += 1
        return self._tell_watchers(key) if self._watching else ()

    def _tell_watchers(self, key: bytes) -> Owed:
        changed = Changed(self._read(key), self.revision_of(key))
        watches = self._watching.pop(key, ())
        for watch in watches:
            self._forget(watch)
        return [(watch.client, changed) for watch in watches]

    def _wake_all(self, key: bytes) -> Owed:
        owed: list[tuple[int, Reply]] = []
        for wait in self._waiting.pop(key, ()):
            wait.missing.discard(key)
            if not wait.missing:
                self._forget(wait)
                owed.append((wait.client, _DONE))
        return owed

    def _wake_one(self, key: bytes) -> Owed:
        waits = self._waiting.get(key)
        if waits is None:
            return ()
        wait = next(iter(waits))
        _unlink_from(wait, key)
        wait.missing.discard(key)
        self._promised.setdefault(wait.client, set()).add(key)
        if wait.missing:
            return ()
        self._forget(wait)
        return [(wait.client, _DONE)]

    def _pass_on(self, client: int) -> Owed:
        promised = self._promised.pop(client, None)
        if promised is None:
            return ()
        return [reply for key in promised if key in self._queues for reply in self._wake_one(key)]

    def _enlist(self, client: int, missing: set[bytes], index: _Index) -> None:
        wait = _PendingWait(client, missing, index)
        for key in missing:
            index.setdefault(key, {})[wait] = None
        self._waits_of.setdefault(client, {})[wait] = None

    def _forget(self, wait: _PendingWait) -> None:
        waits = self._waits_of[wait.client]
        del waits[wait]
        if not waits:
            del self._waits_of[wait.client]


def leading_integer(value: bytes | bytearray) -> int | None:
    """The integer that `value` starts with, after white space; None if there is none, or not of 64 bits."""
    match = _LEADING_INTEGER.match(value)
    if match is None or len(match[2]) > _MAX_DIGITS:
        return None
    number = int(match[1] + match[2])
    return number if -_SIGN_BIT <= number < _SIGN_BIT else None


def not_a_number(key: bytes, value: bytes | bytearray) -> StoreError:
    """The error of an `Add` or a `Barrier` on what is no number."""
    return StoreError(
        f"the value of key {key.decode(errors='backslashreplace')!r} is {bytes(value[:40])!r}, which does not"
        " start with an integer of 64 bits; add and barrier need a key that nothing else writes",
        key=key.decode(errors="backslashreplace"),
    )


def _unlink(wait: _PendingWait) -> None:
    for key in wait.missing:
        _unlink_from(wait, key)


def _unlink_from(wait: _PendingWait, key: bytes) -> None:
    waits = wait.index[key]
    del waits[wait]
    if not waits:
        del wait.index[key]

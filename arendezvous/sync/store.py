"""The key-value store for synchronous programs: the operations of `arendezvous.Store`, blocking."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import ClassVar, TypeVar, TypeVarTuple

from arendezvous.guesses import STORE, Guessable
from arendezvous.rendezvous.round_end import MembersStore
from arendezvous.stores.port import STORE_TIMEOUT, PrefixStore, Timeout
from arendezvous.stores.port import Store as AsyncStore
from arendezvous.sync.loop_thread import LoopThread, loop_thread

T = TypeVar("T")
Args = TypeVarTuple("Args")


class Store(Guessable):
    """A blocking view of an asynchronous store; each method does, and raises, what its namesake does there.

    All raise a `RuntimeError`, too, in a process that was forked after the store was made, and once this
    process is ending.

    Args:
        store: The asynchronous store; it stays open for as long as whoever opened it keeps it so.
        loop: The loop in which it was opened; None: the one of this process.
    """

    GUESSES: ClassVar[Mapping[str, str]] = STORE

    def __init__(self, store: AsyncStore, loop: LoopThread | None = None) -> None:
        self._store = store
        self._loop = loop or loop_thread()

    def _run(self, function: Callable[[*Args], Awaitable[T]], *args: *Args) -> T:
        return self._loop.run(self, function, *args)

    @property
    def timeout(self) -> float | None:
        """How long operations wait for other nodes, in seconds; None waits for ever. May be set."""
        return self._store.timeout

    @timeout.setter
    def timeout(self, seconds: float | None) -> None:
        self._store.timeout = seconds

    @property
    def outlive(self) -> bool:
        """Whether what waits goes on when a member of the round is lost, or it is over. May be set."""
        return not isinstance(self._store, MembersStore) or self._store.outlive

    @outlive.setter
    def outlive(self, goes_on: bool) -> None:
        if isinstance(self._store, MembersStore):
            self._store.outlive = goes_on

    @property
    def prefix(self) -> str:
        """The text that the store puts before each key, without the slash that follows; empty if nothing."""
        return self._store.prefix if isinstance(self._store, PrefixStore) else ""

    def set(self, key: str, value: bytes | str) -> None:
        """Sets the value of a key."""
        self._run(self._store.set, key, value)

    def get(self, key: str, *, timeout: Timeout = STORE_TIMEOUT) -> bytes:
        """Returns the value of a key; waits until there is one."""
        return self._run(partial(self._store.get, key, timeout=timeout))

    def compare_set(self, key: str, expected: bytes | str, desired: bytes | str) -> bytes:
        """Sets a key if its value is `expected`; returns the value that it then has."""
        return self._run(self._store.compare_set, key, expected, desired)

    def add(self, key: str, delta: int) -> int:
        """Adds to a counter and returns its new value."""
        return self._run(self._store.add, key, delta)

    def check(self, keys: Sequence[str]) -> bool:
        """Tells whether all keys exist."""
        return self._run(self._store.check, keys)

    def wait(self, keys: Sequence[str], timeout: Timeout = STORE_TIMEOUT) -> None:
        """Waits until all keys exist."""
        self._run(self._store.wait, keys, timeout)

    def delete_key(self, key: str) -> bool:
        """Deletes a key; returns whether there was one."""
        return self._run(self._store.delete_key, key)

    def num_keys(self) -> int:
        """Counts the keys."""
        return self._run(self._store.num_keys)

    def append(self, key: str, value: bytes | str) -> None:
        """Appends to the value of a key."""
        self._run(self._store.append, key, value)

    def multi_get(self, keys: Sequence[str], *, timeout: Timeout = STORE_TIMEOUT) -> list[bytes]:
        """Returns the values of several keys; waits until all exist."""
        return self._run(partial(self._store.multi_get, keys, timeout=timeout))

    def multi_set(self, keys: Sequence[str], values: Sequence[bytes | str]) -> None:
        """Sets several keys at once."""
        self._run(self._store.multi_set, keys, values)

    def queue_push(self, key: str, value: bytes | str) -> None:
        """Puts a value at the end of a queue."""
        self._run(self._store.queue_push, key, value)

    def queue_pop(self, key: str, block: bool = True, *, timeout: Timeout = STORE_TIMEOUT) -> bytes:
        """Takes the value at the front of a queue; waits for one if `block`."""
        return self._run(partial(self._store.queue_pop, key, block, timeout=timeout))

    def queue_len(self, key: str) -> int:
        """Counts the values in a queue."""
        return self._run(self._store.queue_len, key)

    def list_keys(self) -> list[str]:
        """Lists the keys."""
        return self._run(self._store.list_keys)

    def barrier(self, key: str, world_size: int, timeout: Timeout = STORE_TIMEOUT) -> None:
        """Waits until `world_size` callers have arrived."""
        self._run(self._store.barrier, key, world_size, timeout)

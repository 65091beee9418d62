"""The operations of ``torch.distributed.Store`` by means of ours, without torch.

`StoreBridge` is one half of a subclass of torch's class; `handler` adds the other. Torch's C++ code
calls two operations by names of its own (``deleteKey``, ``getNumKeys``), and all of them from any thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Self

from arendezvous.sync.store import Store


class StoreBridge:
    """Half a ``torch.distributed.Store``; the other half has its ``timeout``.

    Args:
        ours: Where the keys are.
    """

    timeout: timedelta

    def __init__(self, ours: Store) -> None:
        self._ours = ours

    def _translated(self) -> AbstractContextManager[None]:
        """Raises torch's errors in place of ours; the other half knows them."""
        raise NotImplementedError

    def _seconds(self, timeout: timedelta | None) -> float:
        return (self.timeout if timeout is None else timeout).total_seconds()

    def set(self, key: str, value: bytes | str) -> None:
        """Sets the value of a key."""
        with self._translated():
            self._ours.set(key, value)

    def get(self, key: str) -> bytes:
        """Returns the value of a key; waits until there is one."""
        with self._translated():
            return self._ours.get(key, timeout=self._seconds(None))

    def compare_set(self, key: str, expected: bytes | str, desired: bytes | str) -> bytes:
        """Sets a key if its value is `expected`; returns the value that it then has."""
        with self._translated():
            return self._ours.compare_set(key, expected, desired)

    def add(self, key: str, amount: int) -> int:
        """Adds to a counter and returns its new value."""
        with self._translated():
            return self._ours.add(key, amount)

    def check(self, keys: Sequence[str]) -> bool:
        """Tells whether all keys exist."""
        with self._translated():
            return self._ours.check(keys)

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        """Waits until all keys exist."""
        with self._translated():
            self._ours.wait(keys, self._seconds(timeout))

    def delete_key(self, key: str) -> bool:
        """Deletes a key; returns whether there was one."""
        with self._translated():
            return self._ours.delete_key(key)

    def num_keys(self) -> int:
        """Counts the keys."""
        with self._translated():
            return self._ours.num_keys()

    def append(self, key: str, value: bytes | str) -> None:
        """Appends to the value of a key."""
        with self._translated():
            self._ours.append(key, value)

    def multi_get(self, keys: Sequence[str]) -> list[bytes]:
        """Returns the values of several keys; waits until all exist."""
        with self._translated():
            return self._ours.multi_get(keys, timeout=self._seconds(None))

    def multi_set(self, keys: Sequence[str], values: Sequence[bytes | str]) -> None:
        """Sets several keys."""
        with self._translated():
            self._ours.multi_set(keys, values)

    def queue_push(self, key: str, value: bytes | str) -> None:
        """Puts a value at the end of a queue."""
        with self._translated():
            self._ours.queue_push(key, value)

    def queue_pop(self, key: str, block: bool = True) -> bytes:
        """Takes the value at the front of a queue; waits for one if `block`."""
        with self._translated():
            return self._ours.queue_pop(key, block, timeout=self._seconds(None))

    def queue_len(self, key: str) -> int:
        """Counts the values in a queue."""
        with self._translated():
            return self._ours.queue_len(key)

    def list_keys(self) -> list[str]:
        """Lists the keys."""
        with self._translated():
            return self._ours.list_keys()

    def barrier(self, key: str, world_size: int, timeout: timedelta | None = None) -> None:
        """Waits until `world_size` callers have arrived."""
        with self._translated():
            self._ours.barrier(key, world_size, self._seconds(timeout))

    def has_extended_api(self) -> bool:
        """Tells that there are ``append``, ``multi_get`` and ``multi_set``."""
        return True

    def clone(self) -> Self:
        """Returns the store itself: any number of threads may use it at the same time."""
        return self

    deleteKey = delete_key
    getNumKeys = num_keys

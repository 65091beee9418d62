"""The key-value store that members of a rendezvous share: the port, and the prefix on top of it.

The operations are those of ``torch.distributed.Store``, under the same names, awaited. What each store has
to promise is written here once, in `Store`; `arendezvous.testing.check_store` checks it.
"""

from __future__ import annotations

import abc
import enum
from collections.abc import Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import ClassVar, Final, Protocol, Self

from arendezvous.guesses import STORE, Guessable
from arendezvous.net.background import require_asyncio
from arendezvous.net.typed import typed
from arendezvous.stores.arguments import checked_keys, checked_timeout, shown


class _StoreTimeout(enum.Enum):
    STORE_TIMEOUT = "the timeout of the store"


STORE_TIMEOUT: Final = _StoreTimeout.STORE_TIMEOUT
"""Stands for the store's own `timeout` where an operation takes one."""

Timeout = float | timedelta | None | _StoreTimeout
"""Seconds, or a timedelta; None waits for ever; `STORE_TIMEOUT` is the store's own."""

ANSWER_TIME: Final = 2.0
"""For how many seconds longer than its time-out an operation may take that its store does not answer."""

DEFAULT_TIMEOUT: Final = 300.0
"""The time-out of a store that was given none, in seconds; as in torch."""


class Store(Guessable, abc.ABC):
    """A key-value store shared by the nodes of a job.

    Keys are text; values are bytes, and text given as a value is stored as UTF-8. Any number of tasks of
    one event loop may use one store at the same time: an operation that waits holds up no other.

    **Time.** `get`, `multi_get`, `wait`, `barrier` and a blocking `queue_pop` wait for other nodes, for at
    most `timeout` seconds; and two more, at most, if the store does not answer. The others answer at once,
    and fail only with the connection to the store.

    **Errors.** Besides what each operation names, all of them raise

    - `RendezvousConnectionError` if the store cannot be reached or stops answering. An operation that changes
      something may then have been carried out or not; it is never carried out twice.
    - `StoreError` if the store has been closed, or refuses the request (a key or a value that is too long);
      then nothing has changed.

    **Order.** Each operation is atomic. When one that changes something returns, every operation that starts
    later, at whichever node, sees the change. Operations of one task are carried out in its order; those that
    run at the same time in any.

    **Cancelling.** Every operation may be cancelled, and leaves the store usable. One that waits has no
    effect when cancelled, with two exceptions: a cancelled `barrier` stays counted, and a value taken by a
    `queue_pop` that is cancelled at that moment goes back to the end of its queue. A cancelled operation that
    answers at once is either carried out or not.

    Notes to implementers: a wait must be pushed by the store, not polled, wherever it can; a waiting
    operation must not occupy what others need; and `check_store` must pass.

    Args:
        timeout: How long waiting operations wait, in seconds; None waits for ever.
    """

    GUESSES: ClassVar[Mapping[str, str]] = STORE

    def __init__(self, *, timeout: float | timedelta | None = DEFAULT_TIMEOUT) -> None:
        self.timeout = timeout

    @property
    def timeout(self) -> float | None:
        """How long operations wait for other nodes, in seconds; None waits for ever. May be set at any time.

        Raises:
            RendezvousSettingsError: On setting it to something that is no time-out; see `Timeout`.
        """
        return self._timeout

    @timeout.setter
    def timeout(self, seconds: float | timedelta | None) -> None:
        self._timeout = checked_timeout(seconds)

    def _seconds(self, timeout: Timeout) -> float | None:
        return self._timeout if isinstance(timeout, _StoreTimeout) else checked_timeout(timeout)

    @abc.abstractmethod
    async def set(self, key: str, value: bytes | str) -> None:
        """Stores `value` under `key`, whatever was there, and wakes those who wait for the key."""

    @abc.abstractmethod
    async def get(self, key: str, *, timeout: Timeout = STORE_TIMEOUT) -> bytes:
        """Returns the value of `key`, and waits for the key if it is absent.

        Raises:
            StoreTimeoutError: The key did not appear within `timeout` seconds. 0 does not wait at all.
        """

    @abc.abstractmethod
    async def compare_set(self, key: str, expected: bytes | str, desired: bytes | str) -> bytes:
        """Stores `desired` if the value is `expected`; an absent key matches an empty `expected`.

        Returns:
            `desired` if it was stored; else the value that is there. As in torch, an absent key with an
            `expected` that is not empty gives `expected` back, and nothing is stored.
        """

    @abc.abstractmethod
    async def add(self, key: str, delta: int) -> int:
        """Adds `delta` to the number under `key`, and returns the sum; an absent key counts as 0.

        The number is kept as decimal text, and has 64 bits: beyond them it wraps around.

        Raises:
            StoreError: The value does not start with a number; it has not been changed.
        """

    @abc.abstractmethod
    async def check(self, keys: Sequence[str]) -> bool:
        """Returns whether every one of `keys` exists, as a key or as a queue that is not empty."""

    @abc.abstractmethod
    async def wait(self, keys: Sequence[str], timeout: Timeout = STORE_TIMEOUT) -> None:
        """Returns once every one of `keys` has existed since the call, as a key or as a queue with a value.

        Raises:
            StoreTimeoutError: That did not happen within `timeout` seconds. 0 does not wait at all.
        """

    @abc.abstractmethod
    async def delete_key(self, key: str) -> bool:
        """Removes `key`, and returns whether it was there. A queue cannot be deleted."""

    @abc.abstractmethod
    async def num_keys(self) -> int:
        """Returns the number of keys of the whole store, not counting queues.

        It counts every key of the server: those beyond a prefix too, and the ``init/`` by which torch counts
        workers.
        """

    @abc.abstractmethod
    async def append(self, key: str, value: bytes | str) -> None:
        """Appends `value` to the value of `key`; an absent key counts as empty."""

    @abc.abstractmethod
    async def multi_get(self, keys: Sequence[str], *, timeout: Timeout = STORE_TIMEOUT) -> list[bytes]:
        """Returns the values of `keys`, in their order, and waits until all of them have appeared.

        Raises:
            StoreTimeoutError: Some of them did not appear within `timeout` seconds. 0 does not wait at all.
        """

    @abc.abstractmethod
    async def multi_set(self, keys: Sequence[str], values: Sequence[bytes | str]) -> None:
        """Stores each of `values` under the key in the same place of `keys`.

        Raises:
            StoreError: There are not as many values as keys; nothing has been stored.
        """

    @abc.abstractmethod
    async def queue_push(self, key: str, value: bytes | str) -> None:
        """Appends `value` to the queue `key`, and wakes the one who has waited longest for it.

        Queues are apart from keys: a key of the same name is another thing.
        """

    @abc.abstractmethod
    async def queue_pop(self, key: str, block: bool = True, *, timeout: Timeout = STORE_TIMEOUT) -> bytes:
        """Takes the oldest value from the queue `key`.

        Args:
            key: The queue.
            block: Whether to wait for a value if there is none.
            timeout: For how many seconds to wait; without `block` it means nothing.

        Raises:
            StoreQueueEmptyError: There was no value, and `block` is false.
            StoreTimeoutError: No value came within `timeout` seconds.
        """

    @abc.abstractmethod
    async def queue_len(self, key: str) -> int:
        """Returns the number of values in the queue `key`."""

    @abc.abstractmethod
    async def list_keys(self) -> list[str]:
        """Returns the keys of this store, in no particular order; queues are not listed.

        Bytes of a key that are not UTF-8 are shown as lone surrogates (``surrogateescape``), and may be given
        so to every operation.
        """

    @abc.abstractmethod
    async def barrier(self, key: str, world_size: int, timeout: Timeout = STORE_TIMEOUT) -> None:
        """Returns once `world_size` calls with this `key` have been made.

        A key serves once: whoever comes later passes at once. The count is kept under the key, as decimal
        text.

        Raises:
            StoreTimeoutError: Too few came within `timeout` seconds; this call stays counted.
            StoreError: The value of the key does not start with a number; it has not been changed.
        """

    @abc.abstractmethod
    async def close(self) -> None:
        """Gives back what the store holds, such as connections; operations under way raise `StoreError`.

        The data stay where they are. May be called several times, and is safe to cancel. A store that has
        been closed may be opened again.
        """

    async def __aenter__(self) -> Self:
        require_asyncio("a store")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


class HostedStore(Protocol):
    """A store that this process serves."""

    @property
    def port(self) -> int:
        """The port that it listens on."""
        ...


class PrefixStore(Store):
    """A part of another store: every key, queue and barrier is that of the other with ``prefix/`` before it.

    Keys are those that ``torch.distributed.PrefixStore`` makes, and errors show them in full. Its `timeout`
    is its own, at first that of `store`; closing it does nothing, because the store below belongs to whoever
    opened it.

    Args:
        prefix: What comes before each key, without the slash at its end.
        store: The store below.
    """

    @typed
    def __init__(self, prefix: str, store: Store) -> None:
        super().__init__(timeout=store.timeout)
        self.prefix = prefix
        self.underlying_store = store
        self._start = f"{prefix}/"

    def __repr__(self) -> str:
        return f"PrefixStore({self.prefix!r}, {self.underlying_store!r})"

    def _all(self, keys: Sequence[str]) -> list[str]:
        return [self._full(key) for key in checked_keys(keys)]

    def _full(self, key: str) -> str:
        if not isinstance(key, str):
            raise TypeError(f"key is {shown(key)}, but must be a str")
        return self._start + key

    async def set(self, key: str, value: bytes | str) -> None:
        await self.underlying_store.set(self._full(key), value)

    async def get(self, key: str, *, timeout: Timeout = STORE_TIMEOUT) -> bytes:
        return await self.underlying_store.get(self._full(key), timeout=self._seconds(timeout))

    async def compare_set(self, key: str, expected: bytes | str, desired: bytes | str) -> bytes:
        return await self.underlying_store.compare_set(self._full(key), expected, desired)

    async def add(self, key: str, delta: int) -> int:
        return await self.underlying_store.add(self._full(key), delta)

    async def check(self, keys: Sequence[str]) -> bool:
        return await self.underlying_store.check(self._all(keys))

    async def wait(self, keys: Sequence[str], timeout: Timeout = STORE_TIMEOUT) -> None:
        await self.underlying_store.wait(self._all(keys), self._seconds(timeout))

    async def delete_key(self, key: str) -> bool:
        return await self.underlying_store.delete_key(self._full(key))

    async def num_keys(self) -> int:
        return await self.underlying_store.num_keys()

    async def append(self, key: str, value: bytes | str) -> None:
        await self.underlying_store.append(self._full(key), value)

    async def multi_get(self, keys: Sequence[str], *, timeout: Timeout = STORE_TIMEOUT) -> list[bytes]:
        return await self.underlying_store.multi_get(self._all(keys), timeout=self._seconds(timeout))

    async def multi_set(self, keys: Sequence[str], values: Sequence[bytes | str]) -> None:
        await self.underlying_store.multi_set(self._all(keys), values)

    async def queue_push(self, key: str, value: bytes | str) -> None:
        await self.underlying_store.queue_push(self._full(key), value)

    async def queue_pop(self, key: str, block: bool = True, *, timeout: Timeout = STORE_TIMEOUT) -> bytes:
        return await self.underlying_store.queue_pop(self._full(key), block, timeout=self._seconds(timeout))

    async def queue_len(self, key: str) -> int:
        return await self.underlying_store.queue_len(self._full(key))

    async def list_keys(self) -> list[str]:
        """Returns the keys with this prefix, without it."""
        keys = await self.underlying_store.list_keys()
        return [key.removeprefix(self._start) for key in keys if key.startswith(self._start)]

    async def barrier(self, key: str, world_size: int, timeout: Timeout = STORE_TIMEOUT) -> None:
        await self.underlying_store.barrier(self._full(key), world_size, self._seconds(timeout))

    async def close(self) -> None:
        """Does nothing: the store below belongs to whoever opened it."""

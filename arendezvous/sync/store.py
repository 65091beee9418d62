"""The key-value store for synchronous programs: the operations of `arendezvous.Store`, blocking."""

from __future__ import annotations

from arendezvous import guesses
from arendezvous.rendezvous.round_end import MembersStore
from arendezvous.stores.port import PrefixStore
from arendezvous.stores.port import Store as AsyncStore
from arendezvous.sync.blocking import Blocking, blocking


class Store(Blocking[AsyncStore]):
    """A blocking view of an asynchronous store; each method does, and raises, what its namesake does there.

    All raise a `RuntimeError`, too, in a process that was forked after the store was made, and once this
    process is ending. The asynchronous store stays open for as long as whoever opened it keeps it so.
    """

    GUESSES = guesses.STORE

    @property
    def timeout(self) -> float | None:
        """How long operations wait for other nodes, in seconds; None waits for ever. May be set."""
        return self.asynchronous.timeout

    @timeout.setter
    def timeout(self, seconds: float | None) -> None:
        self.asynchronous.timeout = seconds

    @property
    def outlive(self) -> bool:
        """Whether what waits goes on when a member of the round is lost, or it is over. May be set."""
        return not isinstance(self.asynchronous, MembersStore) or self.asynchronous.outlive

    @outlive.setter
    def outlive(self, goes_on: bool) -> None:
        if isinstance(self.asynchronous, MembersStore):
            self.asynchronous.outlive = goes_on

    @property
    def prefix(self) -> str:
        """The text that the store puts before each key, without the slash that follows; empty if nothing."""
        return self.asynchronous.prefix if isinstance(self.asynchronous, PrefixStore) else ""

    set = blocking(AsyncStore.set)
    """Sets the value of a key."""
    get = blocking(AsyncStore.get)
    """Returns the value of a key; waits until there is one."""
    compare_set = blocking(AsyncStore.compare_set)
    """Sets a key if its value is `expected`; returns the value that it then has."""
    add = blocking(AsyncStore.add)
    """Adds to a counter and returns its new value."""
    check = blocking(AsyncStore.check)
    """Tells whether all keys exist."""
    wait = blocking(AsyncStore.wait)
    """Waits until all keys exist."""
    delete_key = blocking(AsyncStore.delete_key)
    """Deletes a key; returns whether there was one."""
    num_keys = blocking(AsyncStore.num_keys)
    """Counts the keys."""
    append = blocking(AsyncStore.append)
    """Appends to the value of a key."""
    multi_get = blocking(AsyncStore.multi_get)
    """Returns the values of several keys; waits until all exist."""
    multi_set = blocking(AsyncStore.multi_set)
    """Sets several keys at once."""
    queue_push = blocking(AsyncStore.queue_push)
    """Puts a value at the end of a queue."""
    queue_pop = blocking(AsyncStore.queue_pop)
    """Takes the value at the front of a queue; waits for one if `block`."""
    queue_len = blocking(AsyncStore.queue_len)
    """Counts the values in a queue."""
    list_keys = blocking(AsyncStore.list_keys)
    """Lists the keys."""
    barrier = blocking(AsyncStore.barrier)
    """Waits until `world_size` callers have arrived."""

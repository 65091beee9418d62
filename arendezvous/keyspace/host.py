"""One keyspace and its clients: carries each reply that a request brings forth to whom it is owed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from itertools import chain
from typing import Any, Protocol, TypeAlias

import anyio

from arendezvous.keyspace.keyspace import Keyspace
from arendezvous.keyspace.messages import Reply, StoreRequest, whole
from arendezvous.keyspace.regions import KeyspaceLimits
from arendezvous.keyspace.rows import LIFE, KeyspaceRows, Marks, RowBatch
from arendezvous.keyspace.waits import Owed

Release: TypeAlias = Callable[[], None]


class KeyspaceClient(Protocol):
    """Somebody who asks a keyspace: a connection, a handler of HTTP requests, a store in this process."""

    def deliver(self, reply: Reply) -> None:
        """Takes a reply. Must neither raise nor ask the keyspace anything before it returns."""


class KeyspaceHost:
    """The keyspace of one server (or process), shared by all its listeners.

    Not safe for use from several threads. What a request leaves to do is done in later turns of the running
    event loop, a step in each.

    Where changes are recorded (`record`), no reply that follows a change leaves before that is down, in the
    order in which they were owed: it may tell of the change, whoever made it.
    """

    def __init__(self, limits: KeyspaceLimits | None = None) -> None:
        self.keyspace = Keyspace(limits)
        self.clients: dict[int, KeyspaceClient] = {}  # who is attached, by number
        self._last_client = 0  # the number that was given out last
        self._working: asyncio.Handle | None = None  # the next step, if there is one to come
        self._rows: KeyspaceRows | None = None  # what has changed; None: changes are not recorded
        self._note: Release = lambda: None  # asks for it to be collected
        self._sent: Marks | None = None  # what is being recorded; None: nothing is
        self._held: dict[object, list[Release]] = {}  # what waits until that is down, by whom it is for
        self._gathered: dict[object, list[Release]] = {}  # what waits until the changes since are down

    def attach(self, client: KeyspaceClient) -> int:
        """Gives `client` a number, by which it is known until it is detached."""
        self._last_client += 1
        self.clients[self._last_client] = client
        return self._last_client

    def detach(self, number: int) -> None:
        """Forgets a client, its waits, and what is held for it; may be called again."""
        if self.clients.pop(number, None) is not None:
            self._forget(number)
            self.deliver(self.keyspace.drop(number))

    def ask(self, number: int, request: StoreRequest) -> None:
        """Carries out `request` of client `number`; all replies that are then owed are delivered.

        The client's own is delivered at once: who sends it on waits until changes have `settled`. Raises
        `StoreError` if the keyspace refuses the request; nothing was changed.
        """
        owed = self.keyspace.handle(number, request)
        for to, reply in owed:
            if to == number:
                self.clients[to].deliver(reply)
            else:
                self.pass_on(to, reply)
        self._go_on()

    def delete_run(self, prefix: bytes) -> None:
        """Deletes all keys and queues of the run whose keys begin with `prefix`; tells who watches them."""
        self.deliver(self.keyspace.delete_run(prefix))

    def deliver(self, owed: Owed) -> None:
        """Delivers replies, and sees to it that those which are owed besides will be."""
        for to, reply in owed:
            self.pass_on(to, reply)
        self._go_on()

    def _go_on(self) -> None:
        if self._rows is not None and self._rows.marks:
            self._note()
        if self.keyspace.later and self._working is None:
            self._working = asyncio.get_running_loop().call_soon(self._work)

    def pass_on(self, to: int, reply: Reply) -> None:
        """Delivers a reply to a client, as soon as that may be."""
        client = self.clients[to]
        if self.holds:
            self.when_recorded(to, partial(client.deliver, reply))
        else:
            client.deliver(reply)

    def _work(self) -> None:
        self._working = None
        self.deliver(self.keyspace.work())

    # Where changes are recorded

    def record(self, note: Release, life: int, rows: Mapping[bytes, bytes]) -> None:
        """Has changes recorded from now on, and begins with those of earlier lives.

        Args:
            note: Has `collect` called soon, and then `recorded` or `failed`; called at each change.
            life: Counts the servers that have had these keys, so that no revision is used twice.
            rows: What is recorded, in the order of the keys. Raises as `KeyspaceRows.load` does.
        """
        self._rows = KeyspaceRows(life)
        self.keyspace.revision = life << LIFE
        self._rows.load(self.keyspace, rows)
        self.keyspace.rows = self._rows
        self._note = note

    @property
    def holds(self) -> bool:
        """Whether there are changes that are not recorded."""
        return self._rows is not None and (self._sent is not None or bool(self._rows.marks))

    def when_recorded(self, whose: object, release: Release) -> None:
        """Calls `release` once all changes up to now are recorded; only while it `holds`.

        It is for the client with the number `whose`: not if that is detached before.
        """
        waiting = self._gathered if self._rows is not None and self._rows.marks else self._held
        waiting.setdefault(whose, []).append(release)

    def _forget(self, whose: object) -> None:
        """Keeps nothing of who gives up while nothing can be recorded."""
        for waiting in (self._gathered, self._held):
            waiting.pop(whose, None)

    async def settled(self) -> None:
        """Returns once all changes up to now are recorded. Cancellation: safe."""
        if self.holds:
            event = anyio.Event()
            self.when_recorded(event, event.set)
            try:
                await event.wait()
            finally:
                self._forget(event)

    def collect(self, batch: RowBatch) -> None:
        """Adds all that has changed since it was recorded."""
        if self._rows is not None and self._rows.marks:
            self._sent = self._rows.collect(self.keyspace, batch)
            _move(self._gathered, self._held)

    def recorded(self) -> None:
        """Notes that what was collected is recorded: who has waited for that is told."""
        if self._sent is None:
            return
        self._sent = None
        held, self._held = self._held, {}
        for release in chain.from_iterable(held.values()):
            try:
                release()
            except Exception as error:  # noqa: BLE001 - it must not keep others from their replies
                said = {"message": "a reply that was held could not be sent", "exception": error}
                asyncio.get_running_loop().call_exception_handler(said)

    def failed(self, _why: str) -> None:
        """Notes that what was collected may not be recorded, and has to be collected again."""
        if self._rows is not None and self._sent is not None:
            self._rows.put_back(self._sent)
            self._sent = None
            _move(self._gathered, self._held)
            self._gathered, self._held = self._held, {}


def _move(some: dict[object, list[Release]], behind: dict[object, list[Release]]) -> None:
    for whose, releases in some.items():
        behind.setdefault(whose, []).extend(releases)
    some.clear()


class Caller:
    """One operation as a client of the keyspace: asks, and may wait for what it is told later.

    For one event loop. `host.detach(caller.number)` has to follow, at the latest when nobody waits any more.
    With `in_pieces` it takes long values in pieces that are not copied, as the keyspace gives them.
    """

    def __init__(self, host: KeyspaceHost, *, in_pieces: bool = False) -> None:
        self._host = host
        self._in_pieces = in_pieces
        self._reply: Reply | None = None
        self._event: anyio.Event | None = None
        self.number = host.attach(self)  # by which the keyspace knows it

    def ask(self, request: StoreRequest) -> Any:
        """Returns the reply, or None if there is none yet. Raises as `KeyspaceHost.ask` does."""
        self._reply = None
        self._host.ask(self.number, request)
        return self._reply

    def deliver(self, reply: Reply) -> None:
        """Takes the reply."""
        self._reply = reply if self._in_pieces else whole(reply)
        self.wake()

    async def delivered(self) -> Any:
        """Returns once there is a reply, or somebody has called `wake`: the reply, or None.

        Cancellation: safe; the wait goes on until the caller is detached.
        """
        if self._reply is None:
            self._event = anyio.Event()
            await self._event.wait()
        return self._reply

    def wake(self) -> None:
        """Ends `delivered`."""
        if self._event is not None:
            self._event.set()

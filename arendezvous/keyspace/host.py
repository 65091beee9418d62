"""One keyspace and its clients: carries each reply that a request brings forth to whom it is owed."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

import anyio

from arendezvous.keyspace.keyspace import Keyspace
from arendezvous.keyspace.messages import Reply, Request, whole
from arendezvous.keyspace.regions import KeyspaceLimits
from arendezvous.keyspace.waits import Owed


class KeyspaceClient(Protocol):
    """Somebody who asks a keyspace: a connection, a handler of HTTP requests, a store in this process."""

    def deliver(self, reply: Reply) -> None:
        """Takes a reply. Must neither raise nor ask the keyspace anything before it returns."""


class KeyspaceHost:
    """The keyspace of one server (or process), shared by all its listeners.

    Not safe for use from several threads. What a request leaves to do is done in later turns of the running
    event loop, a step in each.

    Args:
        limits: How much the keyspace keeps; None: the defaults of `KeyspaceLimits`.

    Attributes:
        keyspace: The keys.
        clients: Who is attached, by number.

    Its other fields:
        _last_client: The number that was given out last.
        _working: The next step, if there is one to come.
    """

    def __init__(self, limits: KeyspaceLimits | None = None) -> None:
        self.keyspace = Keyspace(limits)
        self.clients: dict[int, KeyspaceClient] = {}
        self._last_client = 0
        self._working: asyncio.Handle | None = None

    def attach(self, client: KeyspaceClient) -> int:
        """Gives `client` a number, by which it is known until it is detached."""
        self._last_client += 1
        self.clients[self._last_client] = client
        return self._last_client

    def detach(self, number: int) -> None:
        """Forgets a client and its waits; may be called again."""
        if self.clients.pop(number, None) is not None:
            self.deliver(self.keyspace.drop(number))

    def ask(self, number: int, request: Request) -> None:
        """Carries out `request` of client `number`; all replies that are then owed are delivered.

        Raises:
            StoreError: The keyspace refuses the request; nothing was changed.
        """
        self.deliver(self.keyspace.handle(number, request))

    def delete_run(self, prefix: bytes) -> None:
        """Deletes all keys and queues of the run whose keys begin with `prefix`; tells who watches them."""
        self.deliver(self.keyspace.delete_run(prefix))

    def deliver(self, owed: Owed) -> None:
        """Delivers replies, and sees to it that those which are owed besides will be."""
        for to, reply in owed:
            self.clients[to].deliver(reply)
        if self.keyspace.later and self._working is None:
            self._working = asyncio.get_running_loop().call_soon(self._work)

    def _work(self) -> None:
        self._working = None
        self.deliver(self.keyspace.work())


class Caller:
    """One operation as a client of the keyspace: asks, and may wait for what it is told later.

    For one event loop. `host.detach(caller.number)` has to follow, at the latest when nobody waits any more.

    Args:
        host: The keyspace.
        in_pieces: Takes long values in pieces that are not copied, as the keyspace gives them.

    Attributes:
        number: By which the keyspace knows it.
    """

    def __init__(self, host: KeyspaceHost, *, in_pieces: bool = False) -> None:
        self._host = host
        self._in_pieces = in_pieces
        self._reply: Reply | None = None
        self._event: anyio.Event | None = None
        self.number = host.attach(self)

    def ask(self, request: Request) -> Any:
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

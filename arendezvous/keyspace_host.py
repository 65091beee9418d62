"""One keyspace and its clients: carries each reply that a request brings forth to whom it is owed."""

from __future__ import annotations

from typing import Protocol

from arendezvous.keyspace import Keyspace
from arendezvous.store_messages import Reply, Request


class KeyspaceClient(Protocol):
    """Somebody who asks a keyspace: a connection, a handler of HTTP requests, a store in this process."""

    def deliver(self, reply: Reply) -> None:
        """Takes a reply. Must neither raise nor ask the keyspace anything before it returns."""


class KeyspaceHost:
    """The keyspace of one server (or process), shared by all its doors.

    Not safe for use from several threads.

    Attributes:
        keyspace: The keys.
        clients: Who is attached, by number.
    """

    def __init__(self) -> None:
        self.keyspace = Keyspace()
        self.clients: dict[int, KeyspaceClient] = {}
        self._last_client = 0

    def attach(self, client: KeyspaceClient) -> int:
        """Gives `client` a number, by which it is known until it is detached."""
        self._last_client += 1
        self.clients[self._last_client] = client
        return self._last_client

    def detach(self, number: int) -> None:
        """Forgets a client and its waits; may be called again."""
        if self.clients.pop(number, None) is None:
            return
        for to, reply in self.keyspace.drop(number):
            self.clients[to].deliver(reply)

    def ask(self, number: int, request: Request) -> None:
        """Carries out `request` of client `number`; all replies that are then owed are delivered.

        Raises:
            StoreError: The keyspace refuses the request; nothing was changed.
        """
        for to, reply in self.keyspace.handle(number, request):
            self.clients[to].deliver(reply)

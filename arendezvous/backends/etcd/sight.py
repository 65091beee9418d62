"""What one process sees of a run: the head, who leads, and the letters to its own nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import anyio

from arendezvous.backends.etcd.records import Head, Keys, Letter, decode
from arendezvous.errors import RendezvousError
from arendezvous.etcd.client import EtcdClient
from arendezvous.etcd.http import EndpointTrouble
from arendezvous.etcd.watch import CompactedError, Follower
from arendezvous.etcd.wire import KeyValue, TxnReply, after, range_op, txn
from arendezvous.stores.arguments import key_from_bytes, key_to_bytes

_DOING: Final = "watch of the run"
_FIRST_PAUSE: Final = 0.02
_LONGEST_PAUSE: Final = 0.5


class Sight:
    """Watches three ranges of keys in one stream, whatever the number of nodes.

    Args:
        client: Whom to ask.
        keys: The run's keys.
        link: The process's name in the run.
        told: Called with a speaker and its letter; None: the letter is gone.
        headed: Called when the head has changed.
        listed: Called with all speakers that have a letter, when everything has been read.
        trouble: Called with each error, and with None after each success.

    Attributes:
        head: The latest head.
        leader: Who leads; None if nobody does, as far as is known.
        known: Whether it has been read at all.
    """

    def __init__(
        self,
        client: EtcdClient,
        keys: Keys,
        link: str,
        told: Callable[[str, Letter | None], None],
        headed: Callable[[Head], None],
        listed: Callable[[set[str]], None],
        trouble: Callable[[RendezvousError | None], None],
    ) -> None:
        self.head = Head()
        self.leader: KeyValue | None = None
        self.known = False
        self._client = client
        self._keys = keys
        self._mail = keys.mail + key_to_bytes(f"{link}/")
        self._told = told
        self._headed = headed
        self._listed = listed
        self._trouble = trouble
        self._follower: Follower | None = None
        self._news = anyio.Event()

    async def changed_leader(self) -> None:
        """Returns when somebody else leads, or nobody. Cancellation: safe."""
        before = (self.known, None if self.leader is None else self.leader.create_revision)
        while before == (self.known, None if self.leader is None else self.leader.create_revision):
            await self._news.wait()

    async def run(self) -> None:
        """Follows what happens; after an error it reads everything again."""
        pause = _FIRST_PAUSE
        while True:
            try:
                if self._follower is None:
                    await self._read()
                    pause = _FIRST_PAUSE
                if self._follower is not None:
                    self._take([(each.kv, each.type) for each in await self._follower.next()])
            except (EndpointTrouble, CompactedError, RendezvousError) as error:
                self.close()
                if isinstance(error, RendezvousError):
                    self._trouble(error)
                await anyio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)

    def close(self) -> None:
        """Ends the stream; `run` opens another."""
        if self._follower is not None:
            self._follower.close()
            self._follower = None
        self.known = False

    async def _read(self) -> None:
        request = txn(
            [],
            [range_op(self._keys.head), range_op(self._keys.leader), range_op(self._mail, after(self._mail))],
        )
        reply = await self._client.call("kv/txn", request, TxnReply, doing="look at the run", repeat=True)
        ranges = [(self._keys.head, b""), (self._keys.leader, b""), (self._mail, after(self._mail))]
        follower = await Follower.open(self._client, ranges, reply.header.revision + 1, _DOING)
        head, leader, letters = reply.ranges
        self.known, self._follower = True, follower
        self.leader = None
        if not head.kvs:
            self.head = Head()
        self._take([(item, "PUT") for item in (*head.kvs, *leader.kvs, *letters.kvs)])
        self._listed({self._speaker(item.key) for item in letters.kvs})
        self._trouble(None)

    def _speaker(self, key: bytes) -> str:
        return key_from_bytes(key.removeprefix(self._keys.mail))

    def _take(self, changes: list[tuple[KeyValue, str]]) -> None:
        """Takes in changes: first what everybody is told, so that letters find the head they belong to."""
        letters: dict[str, Letter | None] = {}
        before = self.head
        for item, kind in changes:
            gone = kind != "PUT"
            if item.key == self._keys.leader:
                self.leader = None if gone else item
            elif item.key == self._keys.head:
                self.head = Head() if gone else decode(item.key, item.value, Head)
            else:
                letters[self._speaker(item.key)] = None if gone else decode(item.key, item.value, Letter)
        for speaker, letter in letters.items():
            self._told(speaker, letter)
        if self.head is not before:
            self._headed(self.head)
        news, self._news = self._news, anyio.Event()
        news.set()

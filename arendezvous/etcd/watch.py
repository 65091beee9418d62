"""Watches of etcd that any number of waiting tasks share, without a task of their own.

One of those who wait reads from the stream for all of them; when it has what it wanted, or is cancelled, it
hands the stream over to another. A stream that breaks is opened again, at another member if need be, from
a revision whose changes have all been seen, so that none is missed.
"""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio

from arendezvous.errors import RendezvousError
from arendezvous.etcd.client import EtcdClient
from arendezvous.etcd.follow import CompactedError, Follower, TokenRenewed
from arendezvous.etcd.http import EndpointTrouble
from arendezvous.etcd.wire import KeyValue

Ranges = tuple[tuple[bytes, bytes], ...]
"""What to watch: keys, each with the end of the range that it begins, or with nothing."""

_FIRST_PAUSE = 0.02
_LONGEST_PAUSE = 1.0


class Watcher:
    """One task's view of a watch: the puts behind the revision that it knows."""

    def __init__(self, shared: _SharedWatch, revision: int) -> None:
        self._shared = shared
        self._revision = revision
        self._news: list[KeyValue] = []
        self._event: anyio.Event | None = None

    async def next(self) -> list[KeyValue]:
        """Returns what has been put since the last call, in order; waits until there is something.

        Safe to cancel.

        Raises:
            CompactedError: The changes are not to be had any more.
            RendezvousConnectionError: No member could be watched within the read time-out.
            StoreError: The user may not read the keys, or the client is closed.
        """
        while not self._news:
            self._shared.raise_failure()
            if self._shared.reading:
                self._event = anyio.Event()
                await self._event.wait()
            else:
                await self._shared.read(self)
        news, self._news = self._news, []
        return news

    @property
    def idle(self) -> bool:
        """Whether it has nothing to return."""
        return not self._news

    def deliver(self, changes: list[KeyValue]) -> None:
        """Takes note of changes."""
        self._news += [change for change in changes if change.mod_revision > self._revision]
        if self._news:
            self.wake()

    def wake(self) -> None:
        """Makes `next` look again."""
        if self._event is not None:
            self._event.set()


class EtcdWatches:
    """All watches of one client."""

    def __init__(self, client: EtcdClient) -> None:
        self._client = client
        self._shared: dict[Ranges, _SharedWatch] = {}

    def __len__(self) -> int:
        return len(self._shared)

    @asynccontextmanager
    async def watch(self, ranges: Ranges, revision: int, doing: str) -> AsyncIterator[Watcher]:
        """Watches `ranges` for puts later than `revision`; those who watch the same share one stream."""
        shared = self._shared.get(ranges)
        if shared is None or not shared.covers(revision):
            shared = self._shared[ranges] = _SharedWatch(self._client, ranges, revision, doing)
        watcher = shared.join(revision)
        try:
            yield watcher
        finally:
            if shared.leave(watcher) and self._shared.get(ranges) is shared:
                del self._shared[ranges]

    async def until(
        self, done: Callable[[KeyValue], bool], ranges: Ranges, revision: int, doing: str
    ) -> None:
        """Watches until `done` holds for one of the puts, asked in order. Raises as `next` does."""
        async with self.watch(ranges, revision, doing) as watcher:
            while not any(done(change) for change in await watcher.next()):
                pass


class _SharedWatch:
    """One stream, and those who wait for what comes on it."""

    def __init__(self, client: EtcdClient, ranges: Ranges, revision: int, doing: str) -> None:
        self.reading = False
        self._client = client
        self._ranges = ranges
        self._first = self._seen = revision
        self._doing = doing
        self._watchers: dict[Watcher, None] = {}
        self._heir: Watcher | None = None  # who was told last that it is to read
        self._follower: Follower | None = None
        self._failure: RendezvousError | CompactedError | None = None
        self._renewed = False
        self._pause = _FIRST_PAUSE

    def covers(self, revision: int) -> bool:
        """Whether nothing behind `revision` has been delivered, or would not be."""
        return self._failure is None and self._first <= revision and self._seen <= revision

    def join(self, revision: int) -> Watcher:
        watcher = Watcher(self, revision)
        self._watchers[watcher] = None
        return watcher

    def leave(self, watcher: Watcher) -> bool:
        """Forgets a watcher; returns whether it was the last."""
        del self._watchers[watcher]
        if not self._watchers:
            self._drop_stream()
            return True
        if watcher is self._heir:
            self._pass_on()
        return False

    def raise_failure(self) -> None:
        """Raises what has ended this watch, for each watcher an exception of its own."""
        if self._failure is not None:
            raise copy.copy(self._failure) from self._failure

    async def read(self, reader: Watcher) -> None:
        """Reads for all watchers until `reader` has got something, or the watch has failed."""
        self.reading = True
        try:
            while reader.idle:
                await self._read_one()
        except (RendezvousError, CompactedError) as error:
            self._failure = error
            for watcher in self._watchers:
                watcher.wake()
        finally:
            self.reading = False
            self._pass_on()

    def _pass_on(self) -> None:
        """Lets another read, if nobody does."""
        if not self.reading and self._failure is None:
            self._heir = next((watcher for watcher in self._watchers if watcher.idle), None)
            if self._heir is not None:
                self._heir.wake()

    async def _read_one(self) -> None:
        try:
            if self._follower is None:
                # Only the changes of one range are sure to come in the order of their revisions.
                known = self._seen if len(self._ranges) == 1 else self._first
                self._follower = await Follower.open(
                    self._client, self._ranges, known + 1, self._doing,
                    deletes=False, renew=not self._renewed,
                )  # fmt: skip
            self._take([event.kv for event in await self._follower.next()])
        except EndpointTrouble as trouble:
            self._renewed |= isinstance(trouble, TokenRenewed)
            self._drop_stream()
            await anyio.sleep(self._pause)
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def _take(self, changes: list[KeyValue]) -> None:
        self._renewed, self._pause = False, _FIRST_PAUSE
        self._seen = max(self._seen, *(change.mod_revision for change in changes))
        for watcher in self._watchers:
            watcher.deliver(changes)

    def _drop_stream(self) -> None:
        if self._follower is not None:
            self._follower.close()
            self._follower = None

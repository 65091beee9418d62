"""Watching keys of etcd: by one reader, and by any number of waiting tasks that share a stream.

A `Follower` is for whoever has read keys and wants to know what happens from then on. `EtcdWatches` is for
tasks that wait for keys to appear, and has no task of its own: one of those who wait reads from the stream
for all of them; when it has what it wanted, or is cancelled, it hands the stream over to another. A stream
that breaks is opened again, at another member if need be, from a revision whose changes have all been seen,
so that none is missed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Self

import anyio

from arendezvous.errors import RendezvousError
from arendezvous.etcd import wire
from arendezvous.etcd.client import EtcdClient
from arendezvous.etcd.http import EndpointTrouble, Stream
from arendezvous.net.backoff import DEFAULT_BACKOFF

Ranges = tuple[tuple[bytes, bytes], ...]
"""What to watch: keys, each with the end of the range that it begins, or with nothing."""


class CompactedError(Exception):
    """The changes since the revision asked for have been compacted away: read the keys again, then watch."""


class LoginRenewed(EndpointTrouble):
    """The stream has ended because the user's login was too old; there is another one now."""


@dataclass(eq=False)
class Follower:
    """The changes of some ranges of keys, from one stream, for one reader.

    The changes of one range come in the order of their revisions; those of several come in any order. After
    an error the follower is of no use any more: read the keys again, and open another.
    """

    _client: EtcdClient
    _stream: Stream
    _doing: str
    _renew: bool = True

    @classmethod
    async def open(
        cls,
        client: EtcdClient,
        ranges: Sequence[tuple[bytes, bytes]],
        revision: int,
        doing: str,
        *,
        deletes: bool = True,
        renew: bool = True,
    ) -> Self:
        """Opens the stream: the changes from `revision` on of keys, or of ranges that begin with them.

        Should the login be refused before anything has come, `renew` has it log in again. Raises as
        `EtcdClient.stream` does.
        """
        request = wire.watch_request(ranges, revision, deletes=deletes)
        return cls(client, await client.stream("watch", request, doing=doing), doing, renew)

    async def next(self) -> list[wire.WatchEvent]:
        """Waits for the next changes. Cancellation: safe; nothing is lost.

        Raises:
            EndpointTrouble: The stream is broken; what has happened since is not known. `LoginRenewed` if it
                was for want of a login that is good.
            CompactedError: etcd has forgotten the changes that were asked for.
            RendezvousError: The user may not read the keys.
        """
        events: list[wire.WatchEvent] = []
        while not events or self._stream.ready:
            events += await self._read()
        self._renew = True
        return events

    def close(self) -> None:
        """Ends the stream."""
        self._stream.close()

    async def _read(self) -> list[wire.WatchEvent]:
        try:
            line = await self._stream.line()
        except EndpointTrouble:
            self._client.avoid(self._stream.endpoint)
            raise
        said = "sent what is no message of a watch"
        message = wire.decode(line, wire.Line[wire.WatchReply], lambda why: self._broken(f"{said} ({why})"))
        if message.error is not None:
            await self._ended(message.error.message, message.error.grpc_code)
        result = message.result or wire.WatchReply()
        if result.compact_revision:
            raise CompactedError
        if result.canceled:
            await self._ended(result.cancel_reason, 0)
        return result.events

    async def _ended(self, reason: str, code: int) -> None:
        """Raises what the end of the stream means; etcd 3.5 calls an old login a lack of permission too."""
        if wire.meaning_of(reason, code) not in (wire.Meaning.EXPIRED, wire.Meaning.DENIED):
            raise self._broken(f"ended the watch: {reason}")
        if not self._renew or not await self._client.renew(self._stream.endpoint, self._doing):
            raise self._client.denied(self._doing, reason)
        raise LoginRenewed(f"ended the watch: {reason}")

    def _broken(self, said: str) -> EndpointTrouble:
        self._client.avoid(self._stream.endpoint)
        return EndpointTrouble(said)


@dataclass(eq=False)
class _Watcher:
    """One task's view of a watch: the puts behind the revision that it knows.

    Its fields:
        _news: The puts that it has not returned yet.
        _event: Set when there is something to look at; None before it has waited.
    """

    _shared: _SharedWatch
    _revision: int
    _news: list[wire.KeyValue] = field(default_factory=list)
    _event: anyio.Event | None = None

    async def next(self) -> list[wire.KeyValue]:
        """Returns what has been put since the last call, in order; waits until there is something."""
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

    def deliver(self, changes: list[wire.KeyValue]) -> None:
        """Takes note of changes."""
        self._news += [change for change in changes if change.mod_revision > self._revision]
        if self._news:
            self.wake()

    def wake(self) -> None:
        """Makes `next` look again."""
        if self._event is not None:
            self._event.set()


class EtcdWatches:
    """All watches of one client; those who watch the same share one stream."""

    def __init__(self, client: EtcdClient) -> None:
        self._client = client
        self._shared: dict[Ranges, _SharedWatch] = {}

    def __len__(self) -> int:
        return len(self._shared)

    async def until(
        self, done: Callable[[wire.KeyValue], bool], ranges: Ranges, revision: int, doing: str
    ) -> None:
        """Watches until `done` holds for one of the puts behind `revision`, asked in order. Safe to cancel.

        Raises `CompactedError` if the changes are not to be had any more, and what `EtcdClient.stream` does.
        """
        shared = self._shared.get(ranges)
        if shared is None or not shared.covers(revision):
            shared = self._shared[ranges] = _SharedWatch(self._client, ranges, revision, doing)
        watcher = shared.join(revision)
        try:
            while not any(done(change) for change in await watcher.next()):
                pass
        finally:
            if shared.leave(watcher) and self._shared.get(ranges) is shared:
                del self._shared[ranges]


class _SharedWatch:
    """One stream, and those who wait for what comes on it.

    Its fields:
        reading: Whether one of them reads.
        _first: The revision from which on it delivers.
        _seen: The latest revision that it has delivered.
        _watchers: Those who wait, in the order in which they came.
        _next_reader: Who was told last that it is to read; None if nobody was.
        _follower: The stream; None while there is none.
        _failure: What has ended this watch for all of them; None if nothing has.
        _renewed: Whether it was logged in again and nothing has come since.
        _pauses: Those between a stream that broke and the next one.
    """

    def __init__(self, client: EtcdClient, ranges: Ranges, revision: int, doing: str) -> None:
        self.reading = False
        self._client = client
        self._ranges = ranges
        self._first = self._seen = revision
        self._doing = doing
        self._watchers: dict[_Watcher, None] = {}
        self._next_reader: _Watcher | None = None
        self._follower: Follower | None = None
        self._failure: RendezvousError | CompactedError | None = None
        self._renewed = False
        self._pauses = DEFAULT_BACKOFF.start()

    def covers(self, revision: int) -> bool:
        """Whether nothing behind `revision` has been delivered, or would not be."""
        return self._failure is None and self._first <= revision and self._seen <= revision

    def join(self, revision: int) -> _Watcher:
        watcher = _Watcher(self, revision)
        self._watchers[watcher] = None
        return watcher

    def leave(self, watcher: _Watcher) -> bool:
        """Forgets a watcher; returns whether it was the last."""
        del self._watchers[watcher]
        if not self._watchers:
            self._drop_stream()
            return True
        if watcher is self._next_reader:
            self._pass_on()
        return False

    def raise_failure(self) -> None:
        """Raises what has ended this watch, for each watcher an exception of its own."""
        if self._failure is not None:
            raise copy.copy(self._failure) from self._failure

    async def read(self, reader: _Watcher) -> None:
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
            self._next_reader = next((watcher for watcher in self._watchers if watcher.idle), None)
            if self._next_reader is not None:
                self._next_reader.wake()

    async def _read_one(self) -> None:
        try:
            if self._follower is None:
                # Only the changes of one range are sure to come in the order of their revisions.
                known = self._seen if len(self._ranges) == 1 else self._first
                where, since, renew = self._ranges, known + 1, not self._renewed
                self._follower = await Follower.open(
                    self._client, where, since, self._doing, deletes=False, renew=renew
                )
                self._pauses.succeeded()
            self._take([event.kv for event in await self._follower.next()])
        except EndpointTrouble as trouble:
            self._renewed |= isinstance(trouble, LoginRenewed)
            self._drop_stream()
            await self._pauses.sleep()

    def _take(self, changes: list[wire.KeyValue]) -> None:
        self._renewed = False
        self._seen = max(self._seen, *(change.mod_revision for change in changes))
        for watcher in self._watchers:
            watcher.deliver(changes)

    def _drop_stream(self) -> None:
        if self._follower is not None:
            self._follower.close()
            self._follower = None

"""Following keys of etcd for one reader: every change in order, deletions too.

`EtcdWatches` is for many tasks that wait for keys to appear. This is for one task that has read a few ranges
of keys and wants to know all that happens to them from then on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import msgspec

from arendezvous.stores.etcd_client import EtcdClient
from arendezvous.stores.etcd_http import EndpointTrouble, Stream
from arendezvous.stores.etcd_watch import CompactedError
from arendezvous.stores.etcd_wire import Event, Meaning, WatchLine, decode, meaning_of, watch_request


class Follower:
    """The changes of some ranges of keys, from one stream.

    The changes of one range come in the order of their revisions; those of several come in any order. After
    an error the follower is of no use any more: read the keys again, and open another.
    """

    def __init__(self, client: EtcdClient, stream: Stream, doing: str) -> None:
        self._client = client
        self._stream = stream
        self._doing = doing

    @classmethod
    async def open(
        cls, client: EtcdClient, ranges: Sequence[tuple[bytes, bytes]], revision: int, doing: str
    ) -> Self:
        """Opens the stream.

        Args:
            client: Whom to ask.
            ranges: Keys, each with the end of the range that it begins, or with nothing.
            revision: The first whose changes are wanted.
            doing: What errors say was being done.

        Raises:
            RendezvousConnectionError: No member answered within the client's read time-out.
            StoreError: The client is closed.
        """
        request = watch_request(ranges, revision, deletes=True)
        return cls(client, await client.stream("watch", request, doing=doing), doing)

    async def next(self) -> list[Event]:
        """Waits for the next changes. Cancellation: safe; nothing is lost.

        Raises:
            EndpointTrouble: The stream is broken; what has happened since is not known.
            CompactedError: etcd has forgotten the changes that were asked for.
            RendezvousError: The user may not read the keys.
        """
        events: list[Event] = []
        while not events or self._stream.ready:
            events += await self._take(await self._line())
        return events

    def close(self) -> None:
        """Ends the stream."""
        self._stream.close()

    async def _line(self) -> WatchLine:
        try:
            return decode(await self._stream.line(), WatchLine)
        except msgspec.DecodeError as error:
            raise self._broken(f"sent what is no message of a watch ({error})") from error
        except EndpointTrouble:
            self._client.avoid(self._stream.endpoint)
            raise

    async def _take(self, message: WatchLine) -> list[Event]:
        if message.error is not None:
            await self._ended(message.error.message, message.error.grpc_code)
        result = message.result
        if result is None:
            return []
        if result.compact_revision:
            raise CompactedError
        if result.canceled:
            await self._ended(result.cancel_reason, 0)
        return result.events

    async def _ended(self, reason: str, code: int) -> None:
        """Raises what the end of the stream means; etcd 3.5 calls an old token a lack of permission too."""
        denied = meaning_of(reason, code) in (Meaning.RENEW, Meaning.DENIED)
        if denied and not await self._client.renew(self._stream.endpoint, self._doing):
            raise self._client.denied(self._doing, reason)
        raise self._broken(f"ended the watch: {reason}")

    def _broken(self, said: str) -> EndpointTrouble:
        self._client.avoid(self._stream.endpoint)
        return EndpointTrouble(said)

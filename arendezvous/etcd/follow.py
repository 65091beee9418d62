"""Following keys of etcd for one reader, which has read them, and wants to know what happens from then on.

`etcd_watch` is for many tasks that wait for keys to appear.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import msgspec

from arendezvous.etcd.client import EtcdClient
from arendezvous.etcd.http import EndpointTrouble, Stream
from arendezvous.etcd.wire import Event, Meaning, WatchLine, decode, meaning_of, watch_request


class CompactedError(Exception):
    """The changes since the revision asked for have been compacted away: read the keys again, then watch."""


class TokenRenewed(EndpointTrouble):
    """The stream has ended because the user's token was too old; there is another one now."""


class Follower:
    """The changes of some ranges of keys, from one stream.

    The changes of one range come in the order of their revisions; those of several come in any order. After
    an error the follower is of no use any more: read the keys again, and open another.
    """

    def __init__(self, client: EtcdClient, stream: Stream, doing: str, *, renew: bool = True) -> None:
        self._client = client
        self._stream = stream
        self._doing = doing
        self._renew = renew

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
        """Opens the stream.

        Args:
            client: Whom to ask.
            ranges: Keys, each with the end of the range that it begins, or with nothing.
            revision: The first whose changes are wanted.
            doing: What errors say was being done.
            deletes: Whether deletions are wanted too.
            renew: Whether to get a new token should this one be refused before anything has come.

        Raises:
            RendezvousConnectionError: No member answered within the client's read time-out.
            StoreError: The client is closed.
        """
        request = watch_request(ranges, revision, deletes=deletes)
        return cls(client, await client.stream("watch", request, doing=doing), doing, renew=renew)

    async def next(self) -> list[Event]:
        """Waits for the next changes. Cancellation: safe; nothing is lost.

        Raises:
            EndpointTrouble: The stream is broken; what has happened since is not known. `TokenRenewed` if it
                was for want of a token that is good.
            CompactedError: etcd has forgotten the changes that were asked for.
            RendezvousError: The user may not read the keys.
        """
        events: list[Event] = []
        while not events or self._stream.ready:
            events += await self._take(await self._line())
        self._renew = True
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
        if meaning_of(reason, code) not in (Meaning.RENEW, Meaning.DENIED):
            raise self._broken(f"ended the watch: {reason}")
        if not self._renew or not await self._client.renew(self._stream.endpoint, self._doing):
            raise self._client.denied(self._doing, reason)
        raise TokenRenewed(f"ended the watch: {reason}")

    def _broken(self, said: str) -> EndpointTrouble:
        self._client.avoid(self._stream.endpoint)
        return EndpointTrouble(said)

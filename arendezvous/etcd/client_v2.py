"""A client of etcd's v2 keys API: several endpoints with fail-over, long polls that are shared, clear errors.

The API is described in etcd's documentation of version 2 ("etcd API", "Auth API"). Etcd 3.4 and 3.5 serve it
if they are started with ``--enable-v2``; etcd 3.6 does not have it any more.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote, urlencode

import anyio
import msgspec

from arendezvous.errors import StoreError
from arendezvous.etcd.cluster import ClusterClient, EtcdCluster
from arendezvous.etcd.http import BAD_REQUEST, SERVER_ERROR, EndpointTrouble, EtcdAnswer, EtcdMember, no_reply
from arendezvous.net.backoff import DEFAULT_BACKOFF
from arendezvous.wire.foreign import decode_foreign, json_decoder

NOT_FOUND: Final = 100
COMPARE_FAILED: Final = 101
EXISTS: Final = 105
NOT_EMPTY: Final = 108
INDEX_CLEARED: Final = 401
_EXPECTED: Final = frozenset({NOT_FOUND, COMPARE_FAILED, EXISTS, NOT_EMPTY, INDEX_CLEARED})
_UNAUTHORIZED: Final = 110
_RAFT_INTERNAL: Final = 300
_LEADER_ELECTION: Final = 301

_MAX_DIGITS: Final = 20  # of an index
_LONGEST_POLL: Final = 20.0  # seconds; then somebody asks whether the endpoint is alive
_FORM: Final = {"Content-Type": "application/x-www-form-urlencoded"}


class Node(msgspec.Struct, frozen=True, rename="camel"):
    """A key, or a directory, in an answer: its path, value, contents, and the index of its latest change."""

    key: str = "/"
    value: str = ""
    dir: bool = False
    nodes: tuple[Node, ...] = ()
    modified_index: int = 0


class KeysReply(msgspec.Struct, frozen=True, rename="camel"):
    """Holds what came of a request.

    Attributes:
        action: What was done, in a watch.
        node: What the request was about; after an error an empty one.
        error: 0, or the code of an error that its sender has to expect, as `NOT_FOUND`.
        message: What etcd says of an error.
        cause: What that was about.
        index: The index of etcd at that moment.
    """

    action: str = ""
    node: Node = Node()
    error: int = msgspec.field(default=0, name="errorCode")
    message: str = ""
    cause: str = ""
    index: int = 0

    @property
    def found(self) -> Node | None:
        """The node, unless there was an error."""
        return None if self.error else self.node


_decode_body: Final = json_decoder(KeysReply)


@dataclass(eq=False)
class _Poll:
    """A long poll under way, for all who wait for the same; its event is None if nothing came of it."""

    index: int
    over: anyio.Event = field(default_factory=anyio.Event)
    event: KeysReply | None = None


class EtcdV2Client(ClusterClient):
    """Sends requests to one cluster, for one event loop; any number at the same time.

    Its fields, besides those of `ClusterClient`:
        _headers: What shows the credentials.
        _polls: The long polls under way, by their paths and whether these are directories.
        _pauses: Those after a long poll that broke, shared by all.
    """

    def __init__(self, cluster: EtcdCluster | str | Sequence[str], *, read_timeout: float = 10.0) -> None:
        super().__init__(cluster, read_timeout=read_timeout)
        self._headers: dict[str, str] = {}
        if self.cluster.user:
            shown = b64encode(f"{self.cluster.user}:{self.cluster.password}".encode()).decode()
            self._headers["Authorization"] = f"Basic {shown}"
        self._polls: dict[tuple[str, bool], _Poll] = {}
        self._pauses = DEFAULT_BACKOFF.start()

    async def get(
        self, path: str, doing: str, *, sorted_: bool = False, seconds: float | None = None
    ) -> KeysReply:
        """Reads a key or a directory as it is now, which a majority of the members confirms."""
        query = {"quorum": "true", **({"sorted": "true"} if sorted_ else {})}
        return await self.ask("GET", path, query, doing=doing, repeat=True, seconds=seconds)

    async def ask(
        self,
        verb: str,
        path: str,
        parameters: Mapping[str, str],
        *,
        doing: str,
        repeat: bool,
        seconds: float | None = None,
    ) -> KeysReply:
        """Sends a request, with what etcd's documentation names, and returns what came of it.

        Cancellation: safe; it may have been carried out.

        Raises:
            RendezvousConnectionError: As `try_endpoints` does, which explains `repeat` and `seconds`; or the
                user is not let in.
            StoreError: etcd refuses the request, or the client is closed; nothing has changed.
        """

        async def send(endpoint: EtcdMember, limit: float) -> KeysReply:
            async with self._requests:
                return await self._exchange(endpoint, verb, path, parameters, limit, doing)

        return await self.try_endpoints(send, doing, repeat=repeat, seconds=seconds)

    async def watch(self, path: str, index: int, doing: str, *, recursive: bool = False) -> KeysReply | None:
        """Waits in one long poll for the first change since `index` of a key, or of what is in a directory.

        Those who wait for the same share it. Safe to cancel: another of them takes it over.

        Returns:
            The change; a reply with `INDEX_CLEARED` if etcd has forgotten what happened since; None if there
            was nothing for a while, or the connection broke. In both cases read the key again, then go on.

        Raises:
            RendezvousConnectionError: The user is not let in.
            StoreError: etcd refuses the request, or the client is closed.
        """
        name = (path, recursive)
        while True:
            poll = self._polls.get(name)
            if poll is None or poll.index > index:
                break
            await poll.over.wait()
            if poll.event is not None and poll.event.node.modified_index >= index:
                return poll.event
        poll = self._polls[name] = _Poll(index)
        try:
            poll.event = await self._poll(path, index, doing, recursive=recursive)
        finally:
            if self._polls.get(name) is poll:
                del self._polls[name]
            poll.over.set()
        return poll.event

    async def _poll(self, path: str, index: int, doing: str, *, recursive: bool) -> KeysReply | None:
        endpoint = self.current
        self.require_open()
        query = {"wait": "true", "waitIndex": str(index), **({"recursive": "true"} if recursive else {})}
        reply: KeysReply | None = None
        try:
            with anyio.move_on_after(min(self.read_timeout, _LONGEST_POLL)):
                reply = await self._exchange(endpoint, "GET", path, query, 2 * _LONGEST_POLL, doing)
            self._pauses.reset()
        except EndpointTrouble:
            self.avoid(endpoint)
            await self._pauses.sleep()  # or who is told at once would ask at once
        return reply

    async def _exchange(
        self,
        endpoint: EtcdMember,
        verb: str,
        path: str,
        parameters: Mapping[str, str],
        limit: float,
        doing: str,
    ) -> KeysReply:
        text, body, headers = urlencode(parameters), b"", self._headers
        url = f"{endpoint.url}/v2/keys{quote(path, safe='/=+')}"
        if verb not in ("GET", "DELETE"):
            body, headers = text.encode(), {**headers, **_FORM}
        elif text:
            url += f"?{text}"
        answer = await self.fetch(verb, url, body, headers, limit=limit)
        try:
            found = decode_foreign(_decode_body, answer.body, no_reply)
        except EndpointTrouble:
            if answer.status < BAD_REQUEST:
                raise
            raise await self._no_keys(endpoint, answer, limit) from None
        if found.error not in (0, *_EXPECTED):
            raise self._refused(found, doing)
        if not found.error and not found.action:
            raise EndpointTrouble(answer.told, done=True)
        index = answer.headers.get("X-Etcd-Index", "")
        if index.isascii() and index.isdecimal() and len(index) < _MAX_DIGITS:
            return msgspec.structs.replace(found, index=int(index))
        return found

    def _refused(self, body: KeysReply, doing: str) -> Exception:
        said = f"{body.message}: {body.cause}" if body.cause else body.message
        if body.error == _UNAUTHORIZED:
            advice = "it wants a user: give user and password"
            if self.cluster.user:
                advice = (
                    f"the name or the password of user {self.cluster.user!r} is wrong, or it has no role that"
                    " may read and write these keys; etcd's v2 API does not tell which"
                )
            return self.failed(doing, f" at {self.name}: etcd says {said!r}: {advice}")
        if body.error in (_RAFT_INTERNAL, _LEADER_ELECTION):
            quorum = " (perhaps the cluster has no quorum)" if "timed out" in body.cause else ""
            return EndpointTrouble(f"says {said!r}{quorum}", done="no leader" not in body.cause)
        return StoreError(f"{doing} at {self.name}: etcd refuses it: {said}")

    async def _no_keys(self, endpoint: EtcdMember, answer: EtcdAnswer, limit: float) -> EndpointTrouble:
        """Says what is wrong with an endpoint that does not answer as the keys API does."""
        if answer.status >= SERVER_ERROR:
            return EndpointTrouble(answer.told, done=True)
        version = await self.version_of(endpoint, limit)
        return EndpointTrouble(
            f"is etcd {version}, which does not serve the v2 API: use etcd://, or start it with"
            " --enable-v2 if it is older than 3.6",
            final=True,
        )

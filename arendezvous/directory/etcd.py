"""The directory in etcd: who leads has a key there, under a lease that it keeps alive.

The key is created by a transaction that holds only if it is absent, so of many candidates one becomes the
leader. Its create revision is the term, and with the key the leader's fence: whoever writes something on
condition that the key still has that revision writes it as the leader, or not at all. When the lease ends, or
is revoked, the key goes, and all who watch it are told.

The leader judges by its own monotonic clock: its lease is counted from before the keep-alive was sent that
etcd answered last, so that it knows no later than etcd that it leads no more, even after it was frozen.
"""

from __future__ import annotations

import logging
import math
import random
import secrets
import time
from collections.abc import Sequence
from typing import Final, Self

import anyio
import msgspec

from arendezvous.coordinator.journal import Journal
from arendezvous.directory.port import Directory, Fence, Leader, Listen, Office
from arendezvous.errors import (
    RendezvousConnectionError,
    RendezvousError,
    RendezvousSettingsError,
    RendezvousStateError,
    StoreError,
)
from arendezvous.etcd.client import EtcdClient
from arendezvous.etcd.cluster import EtcdCluster
from arendezvous.etcd.http import EndpointTrouble
from arendezvous.etcd.lease import Lease
from arendezvous.etcd.watch import CompactedError, Follower
from arendezvous.etcd.wire import KeyValue, RangeReply, TxnReply, created, put_op, range_op, txn
from arendezvous.net.addresses import loopback_id, own_address
from arendezvous.net.background import Background, finish
from arendezvous.net.backoff import DEFAULT_BACKOFF
from arendezvous.net.endpoint import parse_host_port
from arendezvous.net.tokens import check_token
from arendezvous.wire.foreign import decode_foreign, json_decoder

logger = logging.getLogger(__name__)

DEFAULT_PREFIX: Final = "/arendezvous"
LEASE: Final = 3.0  # seconds: so long after a leader has died another one leads at the latest
RESIGN_TIMEOUT: Final = 1.0  # seconds that giving the office up may take
SPREAD: Final = 0.05  # seconds over which those spread who would all campaign at the same moment
_LOOK: Final = "look who leads"
_FOREIGN: Final = "another program may use this prefix: remove the key, or choose another prefix"
_decode_leader: Final = json_decoder(Leader)


class EtcdDirectory(Directory):
    """Says who leads the servers of one prefix in one etcd cluster.

    Args:
        cluster: How to reach the cluster; see `EtcdClient`.
        prefix: What the keys of these servers begin with.
        read_timeout: Seconds after which etcd counts as out of reach.
        port: The port at which a leader of this process should listen; 0 picks any.

    Raises:
        RendezvousSettingsError: An endpoint or a certificate file is not what it has to be.

    Its fields:
        _key: The leader's key.
        _secret: That of the token, see `secret`.
        _journal: What the keys of the journal begin with.
        offices: Those that this process holds, or may hold; to be resigned in the end.
    """

    def __init__(
        self,
        cluster: EtcdCluster | str | Sequence[str],
        *,
        prefix: str = DEFAULT_PREFIX,
        read_timeout: float = 5.0,
        port: int = 0,
    ) -> None:
        self.client = EtcdClient(cluster, read_timeout=read_timeout)
        below = (f"{prefix.rstrip('/')}/{name}".encode() for name in ("leader", "token", "journal/"))
        self._key, self._secret, self._journal = below
        self._port = port
        self.offices: set[_Elected] = set()

    @property
    def name(self) -> str:
        """The cluster as a URL."""
        return "etcd://" + self.client.name.replace("https://", "").replace("http://", "")

    async def leader(self, seconds: float | None = None) -> Leader | None:
        """See `Directory.leader`; tries so for `seconds`; None stands for the `read_timeout`."""
        return (await self._look(seconds))[0]

    async def _look(self, seconds: float | None = None) -> tuple[Leader | None, int]:
        """Looks up who leads, and at which revision that is so."""
        reply = await self.client.call(
            "kv/range", {"key": self._key}, RangeReply, doing=_LOOK, repeat=True, seconds=seconds
        )
        return (_leader(reply.kvs[0]) if reply.kvs else None), reply.header.revision

    async def secret(self) -> str:
        """Returns the token of the servers that nodes host for each other; whoever asks first makes it.

        So whoever may read the prefix in etcd is let in, and nobody else. Raises as `EtcdClient.call` does,
        and `RendezvousStateError` if something else is there. Cancellation: safe.
        """
        doing, look = "look for the token", range_op(self._secret)
        key = look["request_range"]
        found = await self.client.call("kv/range", key, RangeReply, doing=doing, repeat=True)
        if found.kvs:
            return _token(found.kvs[0])
        made = secrets.token_urlsafe(32)
        request = txn([created(self._secret, 0)], [put_op(self._secret, made.encode())], [look])
        reply = await self.client.call("kv/txn", request, TxnReply, doing=doing, repeat=True)
        if reply.succeeded:
            return made
        other = reply.responses[0].response_range
        return _token(other.kvs[0]) if other and other.kvs else made

    async def changed(self, known: Leader | None) -> Leader | None:
        """See `Directory.changed`."""
        pauses = DEFAULT_BACKOFF.start()
        while True:
            try:
                leader, revision = await self._look(math.inf)
                if leader != known:
                    return leader
                follower = await Follower.open(self.client, [(self._key, b"")], revision + 1, _LOOK)
            except RendezvousConnectionError as error:
                logger.info("%s", error)
                await pauses.sleep()
                continue
            try:
                await follower.next()
            except (EndpointTrouble, CompactedError):
                await pauses.sleep()
            finally:
                follower.close()

    async def campaign(self, listen: Listen) -> Office | None:
        """See `Directory.campaign`; the leader listens where etcd is reached from."""
        if await self.leader() is not None:
            return None
        with anyio.move_on_after(SPREAD * random.random()):  # noqa: S311 - spreads, hides nothing
            if await self.changed(None) is not None:
                return None
        host, port = parse_host_port(self.client.current.url.partition("://")[2], name="endpoint")
        wanted = await listen(await own_address(host, port) or "127.0.0.1", self._port)
        wanted = msgspec.structs.replace(wanted, loopback=loopback_id(), since=time.time())
        lease = await Lease.grant(self.client, LEASE)
        office = _Elected(wanted, lease, self)
        self.offices.add(office)
        try:
            elected = await self._elect(office, lease)
        except BaseException:  # it may be elected yet, by a request that is late: not without its lease
            await finish(office.resign)
            raise
        if not elected:
            await office.resign()
            return None
        office.begin(self._key)
        return office

    async def _elect(self, office: _Elected, lease: Lease) -> bool:
        put = put_op(self._key, msgspec.json.encode(office.leader), lease.id)
        request = txn([created(self._key, 0)], [put], [range_op(self._key)])
        reply = await self.client.call("kv/txn", request, TxnReply, doing="election", repeat=True)
        term = reply.header.revision
        if not reply.succeeded:
            held = reply.ranges[0].kvs[0]
            if held.lease != lease.id:
                return False
            term = held.create_revision  # an attempt whose answer was lost
        office.leader = msgspec.structs.replace(office.leader, term=term)
        return True

    def journal(self, office: Office) -> Journal | None:
        """Makes the journal beside the leader's key; what it writes holds as long as the office does."""
        from arendezvous.coordinator.journals.etcd import EtcdJournal  # here, as followers need none

        return office.fence and EtcdJournal(self.client.cluster, self._journal, office.fence)

    async def __aenter__(self) -> Self:
        """Connects with the first request."""
        self.client.reopen()
        return self

    async def __aexit__(self, *_: object) -> None:
        """See `Directory.__aexit__`."""
        await finish(self._close)

    async def _close(self) -> None:
        try:
            for office in tuple(self.offices):
                await office.resign()
        finally:
            await self.client.close()


class _Elected(Office):
    """The office of who has the leader's key, kept by a lease.

    Its fields:
        _lost: Set once it may be somebody else's.
        _background: Keeps the lease alive, and watches the key.
    """

    def __init__(self, leader: Leader, lease: Lease, directory: EtcdDirectory) -> None:
        super().__init__(leader)
        self._directory = directory
        self._lease = lease
        self._lost = anyio.Event()
        self._background = Background(f"the office of {leader.tcp}", self._failed)

    @property
    def is_held(self) -> bool:
        """See `Office.is_held`."""
        return not self._lost.is_set() and not self._lease.over

    async def lost(self) -> None:
        """See `Office.lost`."""
        await self._lost.wait()

    def begin(self, key: bytes) -> None:
        """Takes office: keeps the lease alive from now on, and has the fence."""
        self.fence = Fence(key, self.leader.term)
        self._background.start(self._keep)
        self._background.start(self._watch)

    async def resign(self) -> None:
        """See `Office.resign`."""
        self._lost.set()
        await self._background.close()
        with anyio.move_on_after(RESIGN_TIMEOUT, shield=True):
            try:
                await self._lease.revoke()
            except RendezvousError as error:
                logger.info("%s: its lease is left to end by itself: %s", self.leader.tcp, error)
        self._directory.offices.discard(self)

    async def _keep(self) -> None:
        await self._lease.keep()
        why = self._lease.trouble or "it was not renewed in time"
        logger.warning("%s leads no more: its lease could not be renewed: %s", self.leader.tcp, why)
        self._lost.set()

    async def _watch(self) -> None:
        """Notices that somebody has removed the key, though the lease lasts."""
        try:
            await self._directory.changed(self.leader)
        except StoreError as error:
            logger.warning("%s leads no more: %s", self.leader.tcp, error)
        self._lost.set()

    def _failed(self, error: RendezvousError) -> None:
        logger.error("%s leads no more: %s", self.leader.tcp, error)
        self._lost.set()


def _leader(item: KeyValue) -> Leader:
    """Reads who leads; raises `RendezvousStateError` if it is something else."""

    def refuse(why: str) -> RendezvousStateError:
        return RendezvousStateError(
            f"the key {item.key!r} in etcd is {item.value[:80]!r}, which names no leader ({why}); {_FOREIGN}"
        )

    leader = decode_foreign(_decode_leader, item.value, refuse)
    return msgspec.structs.replace(leader, term=item.create_revision)


def _token(item: KeyValue) -> str:
    """Reads the token that servers and nodes show each other; raises as `_leader` does, and shows nothing."""
    text = item.value.decode("ascii", "replace")
    try:
        check_token(text)
    except RendezvousSettingsError as error:
        raise RendezvousStateError(
            f"the key {item.key!r} in etcd holds no token ({error.expected} are one); {_FOREIGN}"
        ) from error
    return text

"""What the backends of one process share in one run: connections, leases, one watch, and the turn to lead."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import secrets
from collections.abc import Callable
from typing import Final

import anyio
import msgspec

from arendezvous.backends.etcd.ages import lease_ages
from arendezvous.backends.etcd.leader import LEADER_TTL, Deposed, Leader
from arendezvous.backends.etcd.leases import Leases
from arendezvous.backends.etcd.outbox import Outbox
from arendezvous.backends.etcd.records import Head, Keys, Letter
from arendezvous.backends.etcd.replica import Replica
from arendezvous.backends.etcd.sight import Sight
from arendezvous.backends.etcd.speaker import Speaker
from arendezvous.errors import RendezvousConnectionError, RendezvousError
from arendezvous.etcd.client import EtcdClient
from arendezvous.etcd.cluster import EtcdCluster
from arendezvous.etcd.lease import Lease
from arendezvous.etcd.wire import (
    RangeReply,
    TxnReply,
    after,
    created,
    put_op,
    range_op,
    txn,
)
from arendezvous.keyspace.grants import run_prefix
from arendezvous.law.state import Phase
from arendezvous.law.status import RunStatus
from arendezvous.net.background import Background, finish
from arendezvous.stores.arguments import key_to_bytes

logger = logging.getLogger(__name__)

REQUEST_TIMEOUT: Final = 5.0
SAY_AGAIN: Final = 2.0
CLOSE_TIMEOUT: Final = 1.0
_PAUSE: Final = 0.1
_LONG_PAUSE: Final = 1.0
_SPREAD: Final = 0.05


class LinkConfig(msgspec.Struct, frozen=True):
    """Where a run is, and how to get there; backends with the same one share a link.

    Attributes:
        cluster: How to reach etcd.
        prefix: What all keys begin with.
        run_id: The run.
        read_timeout: Seconds after which requests fail.
        join_timeout: Seconds that a node that waits for a round endures to be without etcd.
        alone: Makes a configuration unlike any other.
    """

    cluster: EtcdCluster
    prefix: str
    run_id: str
    read_timeout: float
    join_timeout: float
    alone: str = ""


_links: Final[dict[tuple[asyncio.AbstractEventLoop, LinkConfig], Link]] = {}
"""Those that a backend uses, or is about to."""


class Link:
    """A process's connection to a run, from the first backend that uses it to the last.

    Attributes:
        id: Its name in the run.
        client: The client of etcd.
        replica: The run as etcd has it, up to when somebody looked.
        origin: The process that may use it.
    """

    def __init__(self, config: LinkConfig) -> None:
        self.id = secrets.token_hex(8)
        self._users: list[Callable[[RendezvousError], None]] = []
        read_timeout = min(config.read_timeout, REQUEST_TIMEOUT)
        self.client = EtcdClient(config.cluster, read_timeout=read_timeout)
        keys = self._keys = Keys(config.prefix, config.run_id)
        self.replica = Replica(self.client, keys)
        self._config = config
        self._speakers: dict[str, Speaker] = {}
        self._counter = 0
        self._background = Background(f"run {config.run_id!r} in etcd at {self.client.name}", self._fail)
        self.origin = self._background.origin
        self._leases = Leases(self.client, self._lapsed)
        self._outbox = Outbox(self.client, keys, self.id, self._leases, self._note)
        self._sight = Sight(self.client, keys, self.id, self._told, self._headed, self._listed, self._note)
        self._leader: Leader | None = None
        self._clock = -math.inf
        self._connected = False
        self._connecting = anyio.Lock()
        self._trouble: RendezvousError | None = None
        self._troubled_since = math.inf

    @classmethod
    def of(cls, config: LinkConfig, on_failure: Callable[[RendezvousError], None]) -> Link:
        """Returns the link that this event loop has for `config`; makes it if there is none.

        Args:
            config: Where the run is.
            on_failure: The user's; called with the error that ends the link's work. `detach` has to follow.
        """
        key = asyncio.get_running_loop(), config
        link = _links.get(key)
        if link is None or link.is_over:
            link = _links[key] = cls(config)
        link._users.append(on_failure)
        return link

    @property
    def is_over(self) -> bool:
        """Whether its work has failed: it can only be left."""
        return self._background.error is not None

    async def connect(self) -> None:
        """Finds out whether etcd can be read; once for all, as long as there is no trouble.

        Raises:
            RendezvousConnectionError: It is not, within the read time-out.
            StoreError: The user may not read the keys.
        """
        async with self._connecting:
            if not self._connected or self._trouble is not None:
                await self.client.call(
                    "kv/range", {"key": self._keys.ledger}, RangeReply, doing="connect", repeat=True,
                    seconds=self._config.read_timeout,
                )  # fmt: skip
            if not self._connected:
                self._connected = True
                self._background.start(self._serve)

    async def release(self, speakers: list[Speaker], on_failure: Callable[[RendezvousError], None]) -> None:
        """A backend is done: withdraws what its speakers want, and detaches it; `on_failure` is its own."""
        try:
            if len(self._users) > 1:  # with the last one all goes
                for speaker in speakers:
                    speaker.withdraw()
                with anyio.move_on_after(CLOSE_TIMEOUT, shield=True):
                    await self._outbox.drained(speakers)
        finally:
            for speaker in speakers:
                self._speakers.pop(speaker.path, None)
            await self.detach(on_failure)

    async def detach(self, on_failure: Callable[[RendezvousError], None]) -> None:
        """A backend does not use it any more; the last one ends everything."""
        self._users.remove(on_failure)
        if not self._users:
            key = asyncio.get_running_loop(), self._config
            if _links.get(key) is self:
                del _links[key]
            await finish(self._end)

    async def _end(self) -> None:
        """Takes back all that is kept under leases of this process, and disconnects."""
        try:
            await self._background.close()
            self._sight.close()
            leader, self._leader = self._leader, None
            with anyio.move_on_after(CLOSE_TIMEOUT):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._leases.revoke_all)
                    if leader is not None:
                        leader.close()
                        tasks.start_soon(self._resign, leader.lease)
        finally:
            await self.client.close()

    def _fail(self, error: RendezvousError) -> None:
        for on_failure in self._users:
            on_failure(error)

    def new_number(self) -> int:
        """A number for a backend, which no other of this link has."""
        self._counter += 1
        return self._counter

    def speaker(self, number: int, name: str) -> Speaker:
        """Makes a speaker for backend `number`."""
        speaker = Speaker(f"{self.id}/{number}/{name}", self._outbox.change)
        self._speakers[speaker.path] = speaker
        return speaker

    def check(self) -> None:
        """Finds out what this process may not believe any more, without waiting for anybody."""
        self._leases.check()

    def unreachable(self, seconds: float) -> RendezvousConnectionError:
        """The error for whoever has waited for so long."""
        why = "nobody leads the run" if self._trouble is None else self._trouble.message
        return RendezvousConnectionError(
            f"etcd at {self.client.name} has not answered for {seconds:g} s: {why}",
            endpoint=self.client.name,
            doing="waiting for an answer",
        )

    async def status(self) -> RunStatus:
        """Takes stock of the run. Raises as `Replica.refresh` does."""
        fold = await self.replica.look()
        ages = {} if fold.state is None else await lease_ages(self.client, self._keys)
        now = max(fold.now, anyio.current_time() + self._clock)
        return fold.status(self._config.run_id, now, ages)

    async def is_out_of_time(self) -> bool:
        """Whether this process knows nothing of the run's clock, though somebody leads who does."""
        if math.isfinite(self._clock):
            return False
        request = {"key": self._keys.leader, "count_only": True}
        reply = await self.client.call("kv/range", request, RangeReply, doing="look at the run", repeat=True)
        return reply.count > 0

    async def run_lease(self, fresh: bool) -> int:
        """The number of the lease under which the run is; 0 if there is no such run.

        Args:
            fresh: Whether to ask etcd, though it is known.

        Raises:
            RendezvousConnectionError: No member answered.
        """
        if fresh or self.replica.ledger is None:
            await self.replica.look()
        ledger = self.replica.ledger
        return 0 if ledger is None else int(ledger.lease, 16)

    def heartbeat_trouble(self, speaker: Speaker) -> RendezvousError | None:
        """Why the lease of `speaker` could not be renewed when that was tried last."""
        return None if speaker.lease is None else speaker.lease.trouble

    # The work

    async def _serve(self) -> None:
        """Starts the work as soon as somebody wants something of the run; who only looks on costs nothing."""
        await self._outbox.some()
        for work in (self._outbox.run, self._leases.run, self._sight.run, self._mind, self._be_candidate):
            self._background.start(work)

    async def _mind(self) -> None:
        """Looks after what nobody else would notice: silence of our own nodes, and of etcd."""
        while True:
            leasts = [speaker.ttl / 4 for speaker in self._speakers.values()]
            await anyio.sleep(min([1.0, *leasts]))
            now = anyio.current_time()
            for speaker in list(self._speakers.values()):
                if speaker.is_unanswered:
                    speaker.beat = now
                    if now - speaker.asked > SAY_AGAIN:
                        speaker.asked = now
                        self._outbox.change(speaker)
                elif speaker.intent is not None and now - speaker.beat > speaker.ttl:
                    speaker.evict(f"no heartbeat for {now - speaker.beat:.1f} s")
            if now - self._troubled_since > self._config.join_timeout:
                for speaker in self._speakers.values():
                    if speaker.phase is not Phase.GONE:
                        speaker.feed.fail(self.unreachable(self._config.join_timeout))

    def _note(self, error: RendezvousError | None) -> None:
        if error is None:
            if self._trouble is not None:
                for speaker in self._speakers.values():
                    speaker.feed.recover()
            self._trouble, self._troubled_since = None, math.inf
            return
        if self._trouble is None:
            logger.info("%s", error)
            self._troubled_since = anyio.current_time()
        self._trouble = error
        if not isinstance(error, RendezvousConnectionError):  # it will not get better by waiting
            for speaker in self._speakers.values():
                if speaker.is_unanswered:
                    speaker.fail(error)

    def _lapsed(self, lease: Lease) -> None:
        now = anyio.current_time()
        age = now - lease.renewed
        why = f": {lease.trouble}" if lease.trouble is not None else ""
        reason = f"its lease of {lease.ttl:g} s could not be renewed for {age:.1f} s{why}"
        for speaker in self._speakers.values():
            if speaker.lease is lease:
                speaker.lapse(reason[:256], now)

    def _told(self, path: str, letter: Letter | None) -> None:
        self._leases.check()  # this process may have been frozen, and this letter be old
        speaker = self._speakers.get(path)
        if speaker is None:
            return
        if letter is None:
            speaker.forgotten(anyio.current_time())
        else:
            self._clock = max(self._clock, letter.view.now - anyio.current_time())
            speaker.hear(letter, self._sight.head)

    def _headed(self, head: Head) -> None:
        self._leases.check()
        self._clock = max(self._clock, head.now - anyio.current_time())
        for speaker in list(self._speakers.values()):
            speaker.look_again(head)

    def _listed(self, paths: set[str]) -> None:
        for path in self._speakers.keys() - paths:
            self._speakers[path].forgotten(anyio.current_time())

    # Leading

    async def _be_candidate(self) -> None:
        """Leads whenever nobody else does, as long as a node of this process takes part."""
        sight = self._sight
        while True:
            try:
                if self._leader is not None:
                    await self._leader.lead()
                await self._outbox.some()
                if not await self._campaign():
                    await sight.changed_leader()
            except Deposed:
                await self._step_down()
            except RendezvousConnectionError as error:
                self._note(error)
                await anyio.sleep(_PAUSE)
            except RendezvousError as error:
                self._note(error)
                await self._step_down()
                await anyio.sleep(_LONG_PAUSE)

    async def _campaign(self) -> bool:
        """Tries to become the leader if there is none; returns whether to go on at once."""
        sight = self._sight
        if not sight.known or sight.leader is not None:
            return False
        if sight.head.world_size:  # a round was led by somebody: not all of its members at the same moment
            with anyio.move_on_after(_SPREAD * random.random()):  # noqa: S311 - spreads, hides nothing
                await sight.changed_leader()
                return True
        lease = await Lease.grant(self.client, LEADER_TTL)
        key, mine = self._keys.leader, key_to_bytes(self.id)
        request = txn([created(key, 0)], [put_op(key, mine, lease.id)], [range_op(key)])
        try:
            reply = await self.client.call("kv/txn", request, TxnReply, doing="election", repeat=True)
        except BaseException:  # it may be elected yet, by a request that is late: not without its lease
            with anyio.move_on_after(CLOSE_TIMEOUT, shield=True):
                await self._resign(lease)
            raise
        term = reply.header.revision
        if not reply.succeeded:
            held = reply.ranges[0].kvs[0]
            if held.lease != lease.id:
                sight.leader = held
                await self._resign(lease)
                return True
            term = held.create_revision
        rounds = key_to_bytes(f"{self._config.prefix.rstrip('/')}/store/")
        run = key_to_bytes(run_prefix(self._config.run_id)) + b"/"
        shared = tuple((rounds + kind + run, after(rounds + kind + run)) for kind in (b"k/", b"q/"))
        self._leader = Leader(self.client, self._keys, term, lease, self._outbox.holds, shared)
        return True

    async def _step_down(self) -> None:
        leader, self._leader = self._leader, None
        if leader is not None:
            leader.close()
            await self._resign(leader.lease)

    async def _resign(self, lease: Lease) -> None:
        try:
            await lease.revoke()
        except RendezvousConnectionError as error:
            logger.info("%s: a lease is left to end by itself: %s", self.client.name, error)

"""``etcd://``: a rendezvous in an etcd cluster, v3, without a server of ours.

Each node writes what it wants under a lease of its own process, so that nobody contends with anybody. One
process leads: it applies the law to what all want, and writes what comes of it; see `etcd_leader`. Everybody
watches what concerns it alone, and what concerns all and is of constant size. A round of N nodes costs so
many messages of each kind as there are nodes, or fewer.

A node lives as long as its lease: ``keep_alive_interval * keep_alive_max_attempt`` seconds (whole seconds,
and etcd's least) after its process was last heard of. A connection that breaks is seen by nobody, so
``disconnect_grace`` has no meaning here. A member judges by its own clock, too: when its lease may have
ended, it is evicted, whether it can reach etcd or not, and before anybody else may get its rank.

All keys are under leases. Nothing is left of a run when its nodes have been gone for the time of its lease:
their own, and `etcd_leader.LEADER_TTL` twice. Until then a closed run stays closed, and may be reopened.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self
from urllib.parse import urlsplit

import anyio

from arendezvous.backends.etcd.link import Link, LinkConfig
from arendezvous.backends.etcd.run_store import RunStore
from arendezvous.backends.etcd.speaker import Speaker
from arendezvous.backends.port import RendezvousBackend, subject
from arendezvous.errors import RendezvousError, RendezvousStateError
from arendezvous.etcd.cluster import EtcdCluster
from arendezvous.law.operations import Close, Drain, Join, KeepAlive, Operation, Reopen
from arendezvous.law.state import NodeDesc, NodeView, Phase
from arendezvous.law.status import RunStatus
from arendezvous.net.addresses import own_address
from arendezvous.net.reach import Reach
from arendezvous.stores.port import Store

DEFAULT_PREFIX: Final = "/arendezvous"
ASK_SECONDS: Final = 1.0
CLAIM_RETRY: Final = 0.5  # seconds between two attempts to get a name that another process has
CLAIM_SLACK: Final = 2.0  # seconds beyond the expiry, after which who has the name is alive


class EtcdBackend(RendezvousBackend):
    """A run in an etcd cluster, version 3.4 or later, through its JSON gateway.

    Args:
        cluster: How to reach the cluster. Its members' addresses are enough where nothing else is needed:
            ``host[:port]`` or ``http(s)://host[:port]``, in a sequence, or in text with commas.
        run_id: The run.
        read_timeout: Seconds that a request, or connecting, may take before `RendezvousConnectionError`.
        join_timeout: Seconds that a node that waits for a round endures to be without etcd.
        prefix: What all keys begin with.
        share: Whether backends of one event loop with the same arguments share connections and leases.

    Raises:
        RendezvousSettingsError: An endpoint or a file is not what it has to be.
    """

    def __init__(
        self,
        cluster: EtcdCluster | str | Sequence[str],
        run_id: str,
        *,
        read_timeout: float = 60.0,
        join_timeout: float = 600.0,
        prefix: str = DEFAULT_PREFIX,
        share: bool = True,
    ) -> None:
        cluster = cluster if isinstance(cluster, EtcdCluster) else EtcdCluster.of(cluster)
        if cluster.tls:
            cluster.tls.fresh_client_context()  # so that a file that is of no use is told of now
        self._config = LinkConfig(
            cluster=cluster, prefix=prefix, run_id=run_id, read_timeout=read_timeout,
            join_timeout=join_timeout, alone="" if share else secrets.token_hex(8),
        )  # fmt: skip
        self._link: Link | None = None
        self._number = 0
        self._address = ""
        self._speakers: dict[str, Speaker] = {}
        self._store: RunStore | None = None
        self._failure: RendezvousError | None = None

    @property
    def name(self) -> str:
        """``etcd``."""
        return "etcd"

    @property
    def endpoint(self) -> str:
        """The members' addresses, as a URL."""
        hosts = (url.partition("://")[2] for url in self._config.cluster.urls)
        return f"etcd://{','.join(hosts)}"

    @property
    def store(self) -> Store | None:
        """A store in the same cluster, whose keys last as long as the run; it connects when it is used."""
        if self._store is None:
            config, link = self._config, self._open_link
            self._store = RunStore(
                config.cluster, link.run_lease, read_timeout=config.read_timeout,
                prefix=f"{config.prefix.rstrip('/')}/store/",
            )  # fmt: skip
        return self._store

    @property
    def reach(self) -> Reach:
        """See `RendezvousBackend.reach`."""
        return super().reach if self._link is None else self._link.client.reach

    def addresses(self) -> tuple[str, ...]:
        """The address from which this machine reaches the member of etcd that answers."""
        return (self._address,) if self._address else ()

    async def __aenter__(self) -> Self:
        """Connects."""
        link = Link.of(self._config, self.fail)
        try:
            await link.connect()
        except BaseException:
            await link.detach(self.fail)
            raise
        member = urlsplit(link.client.current.url)
        self._address = await own_address(member.hostname or "", member.port or 0)
        self._number = link.new_number()
        self._link, self._failure = link, None
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Withdraws what its nodes want, and disconnects."""
        link, self._link = self._link, None
        store, self._store = self._store, None
        speakers, self._speakers = list(self._speakers.values()), {}
        closed = RendezvousStateError("the backend was closed meanwhile")
        for speaker in speakers:
            speaker.feed.fail(closed)
        try:
            if link is not None:
                await link.release(speakers, self.fail)
        finally:
            if store is not None:
                await store.close()

    def fail(self, error: RendezvousError) -> None:
        """See `RendezvousBackend.fail`."""
        self._failure = error
        for speaker in self._speakers.values():
            speaker.fail(error)
            speaker.feed.fail(error)

    async def propose(self, operation: Operation) -> NodeView:
        """See `RendezvousBackend.propose`.

        A heartbeat is not a message of its own: the process keeps its lease alive, for all of its nodes, as
        long as each of them is heard of; a node that is not is withdrawn.
        """
        link = self._open_link
        link.check()
        node = subject(operation)
        if isinstance(operation, KeepAlive):
            return self._beat(link, node)
        timeout = self._config.read_timeout
        patience = anyio.current_time() + (
            operation.settings.expiry + CLAIM_SLACK if isinstance(operation, Join) else 0.0
        )
        while True:
            try:
                with anyio.move_on_after(timeout):
                    return await self._say(link, operation)
                raise link.unreachable(timeout)
            except RendezvousStateError as error:  # who has the name may be dead, and its lease not over yet
                if error.data.get("node") != node or anyio.current_time() >= patience:
                    raise
            await anyio.sleep(CLAIM_RETRY)

    async def changed(self, node: str, since: int) -> NodeView:
        """See `RendezvousBackend.changed`."""
        link = self._open_link
        link.check()
        return await self._speaker(link, node).feed.changed(since)

    async def status(self) -> RunStatus:
        """See `RendezvousBackend.status`.

        Whoever takes no part in the run asks its leader for the time first. The ages of heartbeats are what
        etcd says of the leases, in whole seconds; they are 0 where there are more than 64 processes.
        """
        link = self._open_link
        if await link.is_out_of_time():
            with anyio.move_on_after(ASK_SECONDS):
                await self._say(link, KeepAlive(""))
        return await link.status()

    async def members(self, incarnation: int, round_: int) -> tuple[NodeDesc, ...]:
        """See `RendezvousBackend.members`."""
        fold = await self._open_link.replica.look()
        members = fold.members(incarnation, round_)
        if members is None:
            raise RendezvousStateError(
                f"round {round_} of run {self._config.run_id!r} is over; its members cannot be listed any"
                " more"
            )
        return members

    async def _say(self, link: Link, operation: Operation) -> NodeView:
        node = subject(operation)
        if isinstance(operation, Close | Reopen | Drain) and node not in self._speakers:
            node = ""  # somebody who steers the run, and is no node of this backend
        speaker = self._speaker(link, node)
        future = speaker.say(operation, anyio.current_time())
        try:
            return await future
        finally:
            speaker.abandon(future)

    def _speaker(self, link: Link, node: str) -> Speaker:
        if node not in self._speakers:
            self._speakers[node] = link.speaker(self._number, node)
        return self._speakers[node]

    def _beat(self, link: Link, node: str) -> NodeView:
        speaker = self._speakers.get(node)
        if speaker is None or speaker.feed.latest is None:
            return NodeView(node, 0, 0, -1, Phase.GONE)
        speaker.beat = anyio.current_time()
        trouble = link.heartbeat_trouble(speaker)
        if trouble is not None:
            raise trouble
        return speaker.feed.latest

    @property
    def _open_link(self) -> Link:
        if self._link is None:
            raise RuntimeError(f"the {self.name} backend is used outside of its 'async with' block")
        self._link.origin.check()
        if self._failure is not None:
            raise self._failure.with_traceback(None)
        return self._link

"""A run in etcd outlives what dies: members of etcd, and the process that leads the run."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import anyio
import msgspec
import pytest

from arendezvous.backends.etcd.backend import EtcdBackend
from arendezvous.backends.etcd.link import REQUEST_TIMEOUT
from arendezvous.errors import RendezvousClosedError, RendezvousConnectionError
from arendezvous.law.operations import Close, Drain, Join, KeepAlive, Leave
from arendezvous.law.state import Cause, NodeDesc, NodeView, Phase, RunSettings
from arendezvous.law.status import RunStatus
from arendezvous.rendezvous.changes import Change, NodeLost
from arendezvous.rendezvous.driver import DynamicRendezvousHandler
from arendezvous.rendezvous.handler import RendezvousInfo
from arendezvous.rendezvous.settings import RendezvousTimeout
from arendezvous.testing import FaultProxy
from arendezvous.testing.backend_check_tools import join_until_member, view_where
from tests.kit.etcd_server import RealEtcd, serve_etcd, text64
from tests.kit.process_kit import ended, send_signal
from tests.kit.waiting import until_seen

RUN = "run"
NODES = 64
PROCESSES = 8
LEASE = 4.0
LAST_CALL = 2.0
PATIENCE = 120.0
PAIR = RunSettings(2, 2, keep_alive_interval=0.5, keep_alive_max_attempt=8)
CALM = RunSettings(2, 2, keep_alive_interval=20.0)  # nobody is lost while a test lasts

LEADER = """
import asyncio, sys
from arendezvous.backends.etcd.backend import EtcdBackend
from arendezvous.rendezvous.driver import DynamicRendezvousHandler
from arendezvous.rendezvous.settings import RendezvousTimeout

async def main(endpoints, run_id, nodes, lease):
    backend = EtcdBackend(endpoints, run_id)
    timeout = RendezvousTimeout(last_call=2)
    async with DynamicRendezvousHandler.from_backend(
        run_id, backend, nodes, nodes + 1, "127.0.0.1", timeout,
        keep_alive_interval=lease / 4, keep_alive_max_attempt=4,
    ) as rdzv:
        await rdzv.next_rendezvous()
        await asyncio.get_running_loop().create_future()

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])))
"""


class Job:
    """Nodes of one run, in several processes as far as etcd can tell."""

    def __init__(self, etcd: RealEtcd, nodes: int, *, spare: int = 0) -> None:
        self.etcd = etcd
        self.nodes = nodes
        self.infos: list[RendezvousInfo] = []
        self.handlers: list[DynamicRendezvousHandler] = []
        self._max = nodes + spare

    def handler(self, number: int) -> DynamicRendezvousHandler:
        backend = EtcdBackend(self.etcd.urls, RUN, join_timeout=600.0 + number % PROCESSES)
        return DynamicRendezvousHandler.from_backend(
            RUN, backend, self.nodes, self._max, "127.0.0.1", RendezvousTimeout(last_call=LAST_CALL),
            keep_alive_interval=LEASE / 4, keep_alive_max_attempt=4,
        )  # fmt: skip

    async def connect(self, stack: AsyncExitStack) -> None:
        self.handlers = [await stack.enter_async_context(self.handler(i)) for i in range(self.nodes)]

    async def meet(self) -> None:
        """Returns once all have a rank in a new round; `infos` has them."""
        self.infos = []
        await self.join(self.handlers)

    async def join(self, handlers: list[DynamicRendezvousHandler]) -> None:
        """Returns once these have a rank."""

        async def join_one(handler: DynamicRendezvousHandler) -> None:
            self.infos.append(await handler.next_rendezvous())

        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as tasks:
                for handler in handlers:
                    tasks.start_soon(join_one, handler)

    async def join_around(self, early: int, others: int, kill: Callable[[], Awaitable[None]]) -> None:
        """Has all join: first so many, then comes `kill`, then the rest. `others` joined before."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.join, self.handlers[:early])
            await self.joined(early + others)
            await kill()
            await self.join(self.handlers[early:])

    async def joined(self, count: int) -> None:
        """Returns once so many nodes have joined."""
        await until_seen(self.handlers[0].explain, lambda status: len(status.nodes) >= count)

    def check_agreement(self, world_size: int) -> None:
        assert {(info.round, info.world_size, info.digest) for info in self.infos} == {
            (self.infos[0].round, world_size, self.infos[0].digest)
        }
        ranks = sorted(info.rank for info in self.infos)
        assert len(set(ranks)) == len(ranks) == self.nodes
        assert set(ranks) <= set(range(world_size))


@asynccontextmanager
async def leading_process(
    etcd: RealEtcd, nodes: int, lease: float
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process with one node, which leads the run."""
    arguments = [",".join(etcd.urls), RUN, str(nodes), str(lease)]
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", LEADER, *arguments)
    async with ended(process):
        await until_seen(etcd.keys, lambda keys: f"/arendezvous/runs/{RUN}/ledger" in keys)
        yield process


@asynccontextmanager
async def proxy_to(etcd: RealEtcd) -> AsyncIterator[FaultProxy]:
    async with FaultProxy("127.0.0.1", int(etcd.urls[0].rpartition(":")[2])) as proxy:
        yield proxy


def wait_for(backend: EtcdBackend, seconds: float) -> None:
    """Lets a backend wait so long for answers from now on."""
    backend._config = msgspec.structs.replace(backend._config, read_timeout=seconds)
    backend._open_link.client.read_timeout = min(seconds, REQUEST_TIMEOUT)


async def leader_of_run(etcd: RealEtcd) -> str:
    """The revision at which the run's leader was elected."""
    answer = await etcd.post("kv/range", {"key": text64(f"/arendezvous/runs/{RUN}/leader")})
    revision: str = answer["kvs"][0]["create_revision"]
    return revision


async def beat(backend: EtcdBackend, node: str) -> None:
    """Sends heartbeats, whatever becomes of them."""
    while True:
        with suppress(RendezvousConnectionError):
            await backend.propose(KeepAlive(node))
        await anyio.sleep(0.5)


def is_member(view: NodeView) -> bool:
    return view.phase is Phase.MEMBER


EARLY = {"joining": NODES // 2, "joined": NODES - 1}
"""How many have joined when somebody is killed."""


@pytest.mark.parametrize("moment", ["joining", "joined", "members"])
async def test_a_round_outlives_the_leader_of_etcd(moment: str) -> None:
    async with serve_etcd(3) as etcd, AsyncExitStack() as stack:

        async def kill() -> None:
            leader = await etcd.leader()
            leader.kill()

        job = Job(etcd, NODES)
        await job.connect(stack)
        if moment in EARLY:
            await job.join_around(EARLY[moment], 0, kill)
            job.check_agreement(NODES)
            return
        await job.meet()
        job.check_agreement(NODES)
        await kill()
        first = job.infos[0]
        assert len(await first.members()) == NODES
        await job.meet()
        job.check_agreement(NODES)
        assert job.infos[0].round == first.round + 1


@pytest.mark.parametrize("moment", ["joining", "joined", "members"])
async def test_a_round_outlives_the_process_that_leads(moment: str) -> None:
    async with serve_etcd() as etcd, AsyncExitStack() as stack:
        job = Job(etcd, NODES, spare=1)
        await job.connect(stack)
        process = await stack.enter_async_context(leading_process(etcd, NODES, LEASE))
        term = await leader_of_run(etcd)

        async def kill() -> None:
            send_signal(process, signal.SIGKILL)

        if moment in EARLY:
            await job.join_around(EARLY[moment], 1, kill)
            world_size = job.infos[0].world_size
            assert world_size in (NODES, NODES + 1)  # with the dead node, if it was not known to be dead
            job.check_agreement(world_size)
        else:
            await job.meet()
            job.check_agreement(NODES + 1)
            first = job.infos[0]
            await first.store.set("k", b"v")
            await kill()
            changes = [await first_change(handler) for handler in job.handlers]
            assert {type(change) for change in changes} == {NodeLost}
            assert await first.store.get("k") == b"v"
            await job.meet()
            assert job.infos[0].round == first.round + 1
            job.check_agreement(NODES)
        assert await leader_of_run(etcd) != term


async def test_a_member_that_cannot_reach_etcd_is_evicted_before_the_others_know() -> None:
    async with serve_etcd() as etcd, proxy_to(etcd) as proxy:
        far = EtcdBackend(proxy.address, RUN)
        async with EtcdBackend(etcd.urls, RUN) as near, far, anyio.create_task_group() as tasks:
            tasks.start_soon(join_until_member, near, Join(NodeDesc("near"), PAIR))
            held = await join_until_member(far, Join(NodeDesc("far"), PAIR))
            before = await view_where(near, await near.changed("near", -1), is_member)
            for backend, node in ((near, "near"), (far, "far")):
                tasks.start_soon(beat, backend, node)
            wait_for(far, 1.0)
            proxy.freeze()
            order: list[str] = []

            async def watch(
                backend: EtcdBackend, view: NodeView, known: Callable[[NodeView], object]
            ) -> None:
                order.append((await view_where(backend, view, known)).node)

            async with anyio.create_task_group() as watching:
                watching.start_soon(watch, near, before, lambda view: view.notices)
                watching.start_soon(watch, far, held, lambda view: view.phase is Phase.GONE)
            assert order == ["far", "near"]
            evicted = await far.changed("far", -1)
            assert evicted.gone is not None
            assert evicted.gone.cause is Cause.NO_HEARTBEAT
            assert "could not be renewed" in evicted.gone.reason
            assert (await near.changed("near", -1)).notices[-1].node == "far"
            wait_for(far, 60.0)
            proxy.thaw()
            again = await far.propose(Join(NodeDesc("far"), PAIR, held.generation))
            assert again.phase is Phase.WAITING
            assert (await near.changed("near", -1)).rank == before.rank
            tasks.cancel_scope.cancel()


async def test_without_quorum_requests_fail_with_what_each_member_said_and_joins_go_on() -> None:
    async with serve_etcd(3) as etcd:
        impatient = EtcdBackend(etcd.urls, RUN, read_timeout=60.5)  # as another process
        async with impatient, EtcdBackend(etcd.urls, RUN) as patient, anyio.create_task_group() as tasks:
            views: list[NodeView] = []

            async def join(backend: EtcdBackend, name: str) -> None:
                views.append(await join_until_member(backend, Join(NodeDesc(name), CALM)))

            gathering = await impatient.propose(Join(NodeDesc("a"), CALM))
            wait_for(impatient, 1.0)
            killed = etcd.members[:2]
            for member in killed:
                member.kill()
            tasks.start_soon(join, patient, "b")
            with pytest.raises(RendezvousConnectionError, match="after 1 s") as caught:
                await impatient.status()
            for url in etcd.urls:
                assert url in str(caught.value)
            with pytest.raises(RendezvousConnectionError, match="has not answered for 1 s"):
                await impatient.propose(Drain("b", 1.0))
            wait_for(impatient, 60.0)
            killed[0].start()
            views.append(await view_where(impatient, gathering, is_member))
        assert sorted(view.rank for view in views) == [0, 1]
        assert len({(view.generation, view.digest) for view in views}) == 1


async def test_nothing_is_left_of_a_closed_run_nor_of_one_whose_processes_were_killed() -> None:
    async with serve_etcd() as etcd:
        async with leading_process(etcd, 1, lease=1.0):
            pass  # it is killed
        settings = RunSettings(1, 1, keep_alive_interval=0.5, keep_alive_max_attempt=2)
        async with EtcdBackend(etcd.urls, "closed") as backend:
            view = await join_until_member(backend, Join(NodeDesc("a"), settings))
            store = backend.store
            assert store is not None
            await store.multi_set(["k", backend.round_prefix("closed", view)], [b"v", b"v"])
            await store.queue_push("q", b"v")
            await backend.propose(Close("a", "done"))
            await backend.propose(Leave("a"))
        async with EtcdBackend(etcd.urls, "closed") as late:
            with pytest.raises(RendezvousClosedError, match="done"):
                await late.propose(Join(NodeDesc("b"), settings))
        kept = await etcd.keys()
        assert "/arendezvous/store/k/k" in kept
        assert await until_seen(etcd.keys, lambda keys: not keys) == []


async def test_a_run_whose_keys_were_deleted_is_known_again_from_its_members() -> None:
    async with (
        serve_etcd() as etcd,
        EtcdBackend(etcd.urls, RUN) as one,
        EtcdBackend(etcd.urls, RUN, share=False) as two,
    ):
        joined = await one.propose(Join(NodeDesc("a"), CALM))
        held = await join_until_member(two, Join(NodeDesc("b"), CALM))
        first = await view_where(one, joined, is_member)
        await etcd.post("kv/deleterange", {"key": text64("\0"), "range_end": text64("\0")})
        status = await until_seen(two.status, lambda status: named(status) == {"a", "b"})
        assert (status.digest, status.round) == (held.digest, held.round)
        assert (await two.changed("b", -1)).rank == held.rank
        assert (await one.changed("a", -1)).rank == first.rank


def named(status: RunStatus) -> set[str]:
    return {node.desc.name for node in status.nodes}


async def first_change(handler: DynamicRendezvousHandler) -> Change:
    with anyio.fail_after(PATIENCE):
        async for change in handler.changes():
            return change
    raise AssertionError("the changes ended")

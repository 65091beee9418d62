"""Nodes that know nothing but etcd find the server there, or host it, and go on when it is gone."""

from __future__ import annotations

import asyncio
import base64
import signal
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import anyio
import msgspec
import pytest
import pytest_asyncio

import arendezvous as ar
from arendezvous.backends.tcp.elected import ElectedBackend, ElectedServer
from arendezvous.directory.etcd import EtcdDirectory
from arendezvous.directory.port import Leader
from arendezvous.etcd.cluster import EtcdCluster
from arendezvous.law.state import RunSettings
from arendezvous.net.credentials import NO_CREDENTIALS
from arendezvous.rendezvous.driver import DynamicRendezvousHandler
from arendezvous.rendezvous.node import describe_node
from arendezvous.rendezvous.option_groups import RendezvousTimeout
from arendezvous.rendezvous.settings import RendezvousSettings
from arendezvous.server.access.authority import Authority
from arendezvous.server.fleet import serve_fleet
from arendezvous.testing.backend_checks import BACKEND_CHECKS, run_check
from arendezvous.testing.check_tools import BackendCheck
from tests.kit.etcd_server import RealEtcd, add_users, serve_etcd, text64
from tests.kit.script_kit import Script, script
from tests.kit.waiting import until


@pytest_asyncio.fixture
async def etcd() -> AsyncIterator[RealEtcd]:
    async with serve_etcd() as cluster:
        yield cluster


def backend(etcd: RealEtcd, run_id: str = "job", **options: Any) -> ElectedBackend:
    return ElectedBackend(run_id, EtcdCluster.of(etcd.urls), **options)


def node(etcd: RealEtcd, name: str, nodes: int = 2, **options: Any) -> DynamicRendezvousHandler:
    timeout = RendezvousTimeout()
    settings = RendezvousSettings("job", timeout, RunSettings(nodes, nodes, timeout.last_call))
    return DynamicRendezvousHandler(settings, backend(etcd, **options), describe_node(name=name))


async def meet(*nodes: DynamicRendezvousHandler) -> list[ar.RendezvousInfo]:
    with anyio.fail_after(120):
        return list(await asyncio.gather(*(one.next_rendezvous() for one in nodes)))


@pytest.mark.parametrize("check", BACKEND_CHECKS, ids=lambda check: check.__name__[6:])
async def test_it_keeps_the_contract_of_the_port(check: BackendCheck, etcd: RealEtcd) -> None:
    async with backend(etcd, "somebody who serves all the time"):
        await run_check(check, lambda run_id: backend(etcd, run_id))


async def test_of_nodes_that_start_together_one_serves_and_all_meet(etcd: RealEtcd) -> None:
    names = [f"node{number}" for number in range(8)]
    async with AsyncExitStack() as stack, EtcdDirectory(etcd.urls) as directory:

        async def enter(name: str) -> DynamicRendezvousHandler:
            return await stack.enter_async_context(node(etcd, name, len(names)))

        nodes = await asyncio.gather(*map(enter, names))
        infos = await meet(*nodes)
        assert sorted(info.rank for info in infos) == list(range(len(names)))
        assert await directory.leader() is not None
        serving = [thread for thread in threading.enumerate() if "found by etcd" in thread.name]
        assert len(serving) == 1
    for thread in serving:
        await asyncio.to_thread(thread.join)


async def test_when_the_node_that_serves_leaves_another_one_does(etcd: RealEtcd) -> None:
    async with EtcdDirectory(etcd.urls) as directory, AsyncExitStack() as first:
        a = await first.enter_async_context(node(etcd, "a"))
        async with node(etcd, "b") as b, node(etcd, "c") as c:
            await meet(a, b)
            before = await directory.leader()
            await first.aclose()
            after = await meet(b, c)
            assert sorted(info.rank for info in after) == [0, 1]
            assert await directory.leader() not in (before, None)


async def test_two_nodes_of_one_process_may_leave_in_any_order(etcd: RealEtcd) -> None:
    for order in ((0, 1), (1, 0)):
        nodes = [node(etcd, "a"), node(etcd, "b")]
        for one in nodes:
            await one.__aenter__()
        await meet(*nodes)
        for index in order:
            await nodes[index].__aexit__(None, None, None)
    kept = [key for key in await etcd.keys() if "/journal/rows/" not in key]
    assert kept == ["/arendezvous/token"]  # nobody leads any more


async def test_nodes_find_a_fleet_by_etcd_alone(etcd: RealEtcd) -> None:
    async with serve_fleet(EtcdDirectory(etcd.urls), "127.0.0.1:0") as server:
        await until(lambda: server.leadership.is_own)
        async with node(etcd, "a") as a, node(etcd, "b") as b:
            assert sorted(info.rank for info in await meet(a, b)) == [0, 1]
        assert server.leadership.is_own


async def test_who_may_not_serve_waits_for_somebody_who_does(etcd: RealEtcd) -> None:
    async with AsyncExitStack() as stack, anyio.create_task_group() as tasks:
        looker = backend(etcd, is_host=False)
        tasks.start_soon(stack.enter_async_context, looker)
        async with backend(etcd) as host:
            await host.status()
            await until(lambda: looker.server_id)
            await stack.aclose()


class ToldDirectory(EtcdDirectory):
    """One that is told who leads, and asks nobody."""

    def __init__(self) -> None:
        super().__init__("127.0.0.1:1")
        self.told: asyncio.Queue[Leader | None] = asyncio.Queue()
        self.now: Leader | None = None

    async def leader(self, seconds: float | None = None) -> Leader | None:
        return self.now

    async def changed(self, known: Leader | None) -> Leader | None:
        self.now = await self.told.get()
        return self.now


async def test_a_pause_ends_when_another_leads_who_is_tried_again_soon_as_it_may_not_listen_yet() -> None:
    directory = ToldDirectory()
    elected = ElectedServer(lambda: directory, NO_CREDENTIALS, is_host=False)
    directory.now = Leader("tcp://10.0.0.1:1", term=1)
    with anyio.fail_after(60):
        for term, port in ((2, 2), (3, 2)):  # that may be the same server once more
            await elected.locate()
            assert await elected.pause(3600.0), "the first one is short"
            directory.told.put_nowait(Leader(f"tcp://10.0.0.1:{port}", term=term))
            assert not await elected.pause(3600.0)
            assert await elected.locate() == ("10.0.0.1", port)


async def test_an_office_that_is_lost_ends_the_server_and_its_nodes_go_on(etcd: RealEtcd) -> None:
    async with EtcdDirectory(etcd.urls) as directory, node(etcd, "a") as a, node(etcd, "b") as b:
        await meet(a, b)
        before = await directory.leader()
        await etcd.post("kv/deleterange", {"key": text64("/arendezvous/leader")})
        with anyio.fail_after(120):
            while await directory.leader() in (before, None):
                await directory.changed(await directory.leader())
        assert sorted(info.rank for info in await meet(a, b)) == [0, 1]


HOST = """
import asyncio, sys, time
from arendezvous.backends.tcp.elected import ElectedBackend, ElectedServer
from arendezvous.etcd.cluster import EtcdCluster

async def main():
    async with ElectedBackend("other", EtcdCluster.of(sys.argv[1])) as backend:
        print("serves", flush=True)
        time.sleep(600)

asyncio.run(main())
"""


async def host(stack: AsyncExitStack, etcd: RealEtcd) -> tuple[Script, Leader]:
    """Runs a process that serves though it blocks its loop."""
    process = await stack.enter_async_context(script("-c", HOST, ",".join(etcd.urls)))
    await process.line_with("serves")
    async with EtcdDirectory(etcd.urls) as directory:
        leader = await directory.leader()
    assert leader is not None
    return process, leader


async def test_a_host_that_blocks_its_loop_keeps_its_office_and_serves(etcd: RealEtcd) -> None:
    async with AsyncExitStack() as stack, EtcdDirectory(etcd.urls) as directory:
        _, leader = await host(stack, etcd)
        async with node(etcd, "a") as a, node(etcd, "b") as b:
            await meet(a, b)
            with anyio.move_on_after(4):  # longer than the lease: nothing must come of it
                await directory.changed(leader)
                raise AssertionError("it has lost its office")
            assert not (await a.outlook()).departed


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_nodes_whose_host_is_gone_meet_again(etcd: RealEtcd, how: signal.Signals) -> None:
    async with AsyncExitStack() as stack:
        process, leader = await host(stack, etcd)
        seconds = 2.0 if how == signal.SIGSTOP else 60.0  # until a silent server is left
        async with node(etcd, "a", read_timeout=seconds) as a, node(etcd, "b", read_timeout=seconds) as b:
            before = await meet(a, b)
            process.send_signal(how)
            async with EtcdDirectory(etcd.urls) as directory:
                with anyio.fail_after(120):
                    assert await directory.changed(leader) != leader
            after = await meet(a, b)
            assert after[0].round > before[0].round


async def test_who_may_not_use_etcd_is_told_why_at_once(etcd: RealEtcd) -> None:
    await add_users(etcd, "/arendezvous/")
    good = EtcdCluster.of(etcd.urls, user="ann", password="ann's")
    async with ElectedBackend("job", good) as there:
        assert there.server_id
    with pytest.raises(ar.StoreError, match="user 'ann' may not"):
        async with ElectedBackend("job", good, "/elsewhere"):
            pass
    bad = EtcdCluster.of(etcd.urls, user="ann", password="bad")
    with pytest.raises(ar.RendezvousConnectionError, match="the name or the password is wrong"):
        async with ElectedBackend("job", bad):
            pass


async def test_a_leader_at_the_loopback_of_another_machine_is_refused_with_what_to_do(etcd: RealEtcd) -> None:
    leader = Leader("tcp://127.0.0.1:4", loopback="another machine's")
    value = base64.b64encode(msgspec.json.encode(leader)).decode()
    await etcd.post("kv/put", {"key": text64("/arendezvous/leader"), "value": value})
    with pytest.raises(ar.RendezvousStateError, match=r"only its own machine .* Give its nodes an endpoint"):
        async with backend(etcd):
            pass


async def test_a_fleet_that_has_tokens_of_its_own_is_shown_the_one_that_is_given(etcd: RealEtcd) -> None:
    access = Authority.of("secret-of-the-fleet")
    async with serve_fleet(EtcdDirectory(etcd.urls), "127.0.0.1:0", authority=access) as server:
        await until(lambda: server.leadership.is_own)
        url = etcd.urls[0].replace("http://", "etcd://")
        options: dict[str, Any] = {"run_id": "job", "min_nodes": 1, "is_host": False, "read_timeout": 60.0}
        async with ar.open_rendezvous(url, token="secret-of-the-fleet", **options) as node:
            assert (await node.next_rendezvous()).world_size == 1
        with pytest.raises(ar.RendezvousPermissionError):
            async with ar.open_rendezvous(url, token="another-of-that-length", **options):
                pass

"""A fleet over an etcd of three that is full, narrow, compacted, guarded, or in part replaced."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio

import arendezvous as ar
from arendezvous.directory.etcd import EtcdDirectory
from arendezvous.etcd.cluster import EtcdCluster
from arendezvous.server.fleet import FleetServer, serve_fleet
from arendezvous.stores.tcp.store import TcpStore
from tests.kit.cli_kit import run
from tests.kit.etcd_server import EtcdMember, RealEtcd, add_users, serve_etcd, text64
from tests.kit.waiting import until, until_seen

PAIR: dict[str, Any] = {"run_id": "job", "min_nodes": 2, "max_nodes": 2, "read_timeout": 60.0}


@asynccontextmanager
async def fleet(
    etcd: RealEtcd, user: str = "", password: str = ""
) -> AsyncIterator[tuple[Sequence[FleetServer], Sequence[ar.AsyncRendezvousHandler]]]:
    """Two servers, and two nodes that have met at them."""
    cluster = EtcdCluster.of(etcd.urls, user=user, password=password)
    async with AsyncExitStack() as stack:
        serving = [serve_fleet(EtcdDirectory(cluster), "127.0.0.1:0") for _ in range(2)]
        servers = [await stack.enter_async_context(one) for one in serving]
        await until(lambda: all(server.leadership.leader for server in servers))
        url = "tcp://" + ",".join(server.tcp_url.removeprefix("tcp://") for server in servers)
        nodes = [await stack.enter_async_context(ar.open_rendezvous(url, node=n, **PAIR)) for n in "ab"]
        await meet(nodes)
        yield servers, nodes


async def meet(nodes: Sequence[ar.AsyncRendezvousHandler]) -> list[ar.RendezvousInfo]:
    with anyio.fail_after(120):
        return list(await asyncio.gather(*(node.next_rendezvous() for node in nodes)))


async def fill(etcd: RealEtcd) -> None:
    """Writes until etcd takes no more, not even a little, at any member."""
    for member in etcd.members:
        for size in (500_000, 1):
            await until_seen(partial(refusal, etcd, size, member), bool)


async def refusal(etcd: RealEtcd, size: int, member: EtcdMember) -> bool:
    """Writes that many bytes; returns whether they are refused because etcd is full."""
    try:
        await etcd.post("kv/put", {"key": text64("/other/big"), "value": text64("x" * size)}, member)
    except AssertionError as error:  # which may also be that it was too busy
        return "space exceeded" in str(error)
    return False


async def make_room(etcd: RealEtcd) -> None:
    """Does what `doctor` advises."""
    await etcd.compact()
    for member in etcd.members:
        await etcd.post("maintenance/defragment", {}, member)
    alarms = (await etcd.post("maintenance/alarm", {"action": "GET"})).get("alarms", [])
    for alarm in alarms:
        await etcd.post("maintenance/alarm", {"action": "DEACTIVATE", **alarm})


async def not_recorded(
    etcd: RealEtcd, nodes: Sequence[ar.AsyncRendezvousHandler]
) -> list[asyncio.Task[ar.RendezvousInfo]]:
    """Has nodes meet while etcd takes no record of that; returns their joins, which wait.

    Now and then etcd takes one more transaction after it has refused less: then it is filled again.
    """
    while True:
        await fill(etcd)
        joins = [asyncio.create_task(node.next_rendezvous()) for node in nodes]
        told = asyncio.create_task(
            until_seen(nodes[0].explain, lambda status: "database space exceeded" in status.obstacle)
        )
        await asyncio.wait([told, *joins], return_when=asyncio.FIRST_COMPLETED)
        if told.done():
            await told
            return joins
        told.cancel()
        await asyncio.gather(*joins)


async def test_while_etcd_is_full_no_round_completes_and_everybody_says_why() -> None:
    quota = ["--quota-backend-bytes", "4000000"]
    async with serve_etcd(3, options=quota) as etcd, fleet(etcd) as (_, nodes):
        with anyio.fail_after(120):
            joins = await not_recorded(etcd, nodes)
        urls = ",".join(url.removeprefix("http://") for url in etcd.urls)
        examined = await run("doctor", f"etcd://{urls}")
        assert "etcd is full: compact and defragment it" in examined.out + examined.err
        assert "grant" not in examined.out + examined.err
        await make_room(etcd)
        with anyio.fail_after(60):
            infos = await asyncio.gather(*joins)
        assert {info.world_size for info in infos} == {2}


async def test_batches_are_split_to_what_etcd_takes() -> None:
    options = ["--max-txn-ops", "4", "--max-request-bytes", "100000"]
    async with serve_etcd(3, options=options) as etcd, fleet(etcd) as (servers, nodes):
        port = int(servers[0].tcp_url.rpartition(":")[2])
        values = {f"key{number}": b"x" * 20_000 for number in range(50)}
        async with TcpStore("127.0.0.1", port) as store:
            await store.multi_set(list(values), list(values.values()))
            await meet(nodes)
            assert await store.multi_get(list(values)) == list(values.values())


async def test_a_compaction_is_noticed_by_nobody() -> None:
    async with serve_etcd(3) as etcd, fleet(etcd) as (_, nodes):
        for _ in range(2):
            await etcd.compact()
            infos = await meet(nodes)
        assert {info.round for info in infos} == {2}


async def test_authentication_that_is_switched_on_meanwhile_is_obeyed() -> None:
    async with serve_etcd(3) as etcd, fleet(etcd, "ann", "ann's") as (_, nodes):
        await add_users(etcd, "/arendezvous/")
        infos = await meet(nodes)
        assert {info.round for info in infos} == {1}
        urls = ",".join(url.removeprefix("http://") for url in etcd.urls)
        examined = await run("doctor", f"etcd://{urls}")
        assert "it wants a user" in examined.out + examined.err


async def test_a_member_of_etcd_may_be_replaced() -> None:
    async with serve_etcd(3) as etcd, fleet(etcd) as (_, nodes):
        await replace(etcd, 2)
        infos = await meet(nodes)
        etcd.members[1].kill()  # so that the new one is needed
        await until_seen(etcd._leader, bool)
        infos = await meet(nodes)
        assert {info.round for info in infos} == {2}


async def replace(etcd: RealEtcd, number: int) -> None:
    """Puts a member that knows nothing in the place of one that is lost with its disk."""
    lost = etcd.members[number]
    lost.kill()
    listed = (await etcd.post("cluster/member/list", {}))["members"]
    known = next(one for one in listed if one["name"] == f"m{number}")
    await until_seen(etcd._leader, bool)
    await etcd.post("cluster/member/remove", {"ID": known["ID"]})

    async def added() -> bool:
        try:
            await etcd.post("cluster/member/add", {"peerURLs": known["peerURLs"]})
        except AssertionError:  # the others have not been connected for long enough
            return False
        return True

    await until_seen(added, bool)
    directory = Path(option(lost, "--data-dir"))
    await asyncio.to_thread(shutil.rmtree, directory)
    lost.command = [*lost.command, "--initial-cluster-state", "existing"]
    lost.start()
    await etcd.ready()


def option(member: EtcdMember, name: str) -> str:
    return os.fspath(member.command[list(member.command).index(name) + 1])

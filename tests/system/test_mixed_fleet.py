"""Stock torch nodes and ours are members of one and the same rendezvous, over c10d and over etcd-v2."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

import arendezvous as ar
from arendezvous.law.state import Phase
from arendezvous.rendezvous.changes import NodeLost
from arendezvous.rendezvous.handler import AsyncRendezvousHandler
from arendezvous.stores.tcp.store import TcpStore
from tests.kit.fleet_kit import OUR_NODE, STOCK_NODE, agree, open_place, our_join


@pytest.mark.parametrize("kind", ["torch's server", "our server", "etcd"])
async def test_two_stock_nodes_and_two_of_ours_meet_and_a_survivor_of_each_kind_meets_again(
    kind: str,
) -> None:
    async with AsyncExitStack() as stack:
        place = await stack.enter_async_context(open_place(kind))
        scripts = (STOCK_NODE, STOCK_NODE, OUR_NODE)
        others = [await stack.enter_async_context(place.node(script, 2, 4)) for script in scripts]
        handler = await stack.enter_async_context(place.handler("mixed", 2, 4))
        for other in others:
            assert await other.line() == "ready"

        async with asyncio.TaskGroup() as tasks:
            ours = tasks.create_task(our_join(handler))
            theirs = [tasks.create_task(other.join("mixed")) for other in others]
        info, told = ours.result()
        agree([told, *(their.result() for their in theirs)], ["ours", "ours", "stock", "stock"])
        assert len(await info.members()) == 4

        others[1].kill()
        others[2].kill()
        changes = handler.changes()
        lost = [await anext(changes) for _ in range(2)]
        assert [type(change) for change in lost] == [NodeLost, NodeLost]

        async with asyncio.TaskGroup() as tasks:
            ours = tasks.create_task(our_join(handler))
            survivor = tasks.create_task(others[0].join("mixed"))
        info, told = ours.result()
        agree([told, survivor.result()], ["ours", "stock"])
        assert info.round > 0
        assert len((await handler.explain()).of_phase(Phase.MEMBER)) == 2


async def join_silently(handler: AsyncRendezvousHandler) -> ar.RendezvousInfo:
    """Joins, and does not ask where rank 0's store is."""
    info = await handler.next_rendezvous()
    await info.store.set(f"hello/{info.rank}", "ours")
    return info


async def test_whoever_is_rank_0_publishes_the_store_and_the_other_kind_reads_it() -> None:
    async with AsyncExitStack() as stack:
        place = await stack.enter_async_context(open_place("torch's server"))
        stock = await stack.enter_async_context(place.node(STOCK_NODE, 2, 2))  # its address is "localhost"
        assert await stock.line() == "ready"

        before = await stack.enter_async_context(place.handler("ours-is-0", 2, 2))
        async with asyncio.TaskGroup() as tasks:
            joined = tasks.create_task(join_silently(before))
            told = await stock.join("ours-is-0")
        assert (joined.result().rank, told["rank"]) == (0, 1)
        async with TcpStore(told["addr"], told["port"], timeout=60) as workers:
            await workers.set("k", b"v")
        where = await joined.result().bootstrap_store_info()
        assert (where.master_addr, where.master_port) == (told["addr"], told["port"])

        after = await stack.enter_async_context(place.handler("stock-is-0", 2, 2, address="z.invalid"))
        async with asyncio.TaskGroup() as tasks:
            theirs = tasks.create_task(stock.join("stock-is-0"))
            _, ours = await our_join(after)
        assert (theirs.result()["rank"], ours["rank"]) == (0, 1)
        agree([theirs.result(), ours], ["ours", "stock"])


WORKER = """
import datetime
import json
import os

from torch.distributed import TCPStore

names = ("RANK", "WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
env = {name: os.environ[name] for name in names}
patience = datetime.timedelta(seconds=120)
store = TCPStore(env["MASTER_ADDR"], int(env["MASTER_PORT"]), is_master=False, timeout=patience)
store.set("worker", json.dumps(env))
store.get("seen")
"""


@pytest.mark.parametrize("kind", ["torch's server", "etcd"])
async def test_a_torchrun_agent_and_one_of_ours_form_a_world_of_two(tmp_path: Path, kind: str) -> None:
    script = tmp_path / "train.py"
    script.write_text(WORKER)
    async with AsyncExitStack() as stack:
        place = await stack.enter_async_context(open_place(kind))
        handler = await stack.enter_async_context(place.handler("job", 2, 2))
        agent = await stack.enter_async_context(place.agent(script, "job"))
        info = await handler.next_rendezvous()
        where = await info.bootstrap_store_info()
        workers = await stack.enter_async_context(TcpStore(where.master_addr, where.master_port, timeout=120))
        env = json.loads(await workers.get("worker"))
        expected = {"RANK": str(1 - info.rank), "WORLD_SIZE": "2", "GROUP_RANK": str(1 - info.rank)}
        assert {key: env[key] for key in expected} == expected
        assert (env["MASTER_ADDR"], int(env["MASTER_PORT"])) == (where.master_addr, where.master_port)

        # what a stock agent does when its workers have ended: it waits for the other agents
        await workers.set("seen", "1")
        barrier = "torchelastic/agent/terminal_state"
        await info.store.add(f"{barrier}/num_members", 1)
        await info.store.set(f"{barrier}/last_member", "1")
        assert agent.stderr is not None
        async with asyncio.timeout(120):
            errors = await agent.stderr.read()
            assert await agent.wait() == 0, errors.decode()[-3000:]

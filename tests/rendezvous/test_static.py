"""``static``: ranks are given, rank 0 serves the store, and the meaning is that of torch's handler."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import arendezvous as ar
from arendezvous import sync
from arendezvous.registry import get_rendezvous_handler
from arendezvous.rendezvous.parameters import RendezvousParameters
from tests.kit.torch_process import run_torch

PATIENCE = 120.0
STOCK = """
import json, sys
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler
params = RendezvousParameters("static", f"127.0.0.1:{sys.argv[1]}", "job", 1, 1, rank=0)
handler = get_rendezvous_handler(params)
info = handler.next_rendezvous()
where = info.bootstrap_store_info
handler.set_closed()
print(json.dumps([info.rank, info.world_size, where.master_addr, where.master_port == int(sys.argv[1]),
    handler.num_nodes_waiting(), handler.is_closed(), handler.get_backend(), handler.get_run_id(),
    handler.use_agent_store, handler.shutdown()]))
"""


def node(port: int, rank: int, size: int = 2, **settings: Any) -> ar.AsyncRendezvousHandler:
    url = f"static://127.0.0.1:{port}"
    return ar.open_rendezvous(url, run_id="job", min_nodes=size, rank=rank, node=f"n{rank}", **settings)


async def test_nodes_have_the_ranks_that_they_were_given_and_share_a_store(free_port: int) -> None:
    async with node(free_port, 0) as first, node(free_port, 1) as second:
        async with asyncio.timeout(PATIENCE):
            infos = await asyncio.gather(first.next_rendezvous(), second.next_rendezvous())
        assert [(info.rank, info.world_size, info.round) for info in infos] == [(0, 2, 0), (1, 2, 0)]
        await infos[0].store.set("key", "value")
        assert await infos[1].store.get("key") == b"value"
        assert [one.name for one in await infos[1].members()] == ["n0", "n1"]
        assert await infos[1].bootstrap_store_info() == await infos[0].bootstrap_store_info()
        assert (await infos[0].bootstrap_store_info()).master_port == free_port
        assert await second.next_rendezvous() is infos[1]
        assert "world_size=2" in repr(await second.explain())
    assert [one.rank for one in await infos[1].members()] == [0, 1]  # they are known, though rank 0 is gone


async def test_rank_0_may_come_last(free_port: int) -> None:
    async def come(rank: int) -> int:
        async with node(free_port, rank) as rdzv:
            info = await rdzv.next_rendezvous()
            await info.store.barrier("end", 2, PATIENCE)
            return info.rank

    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as tasks:
        last = tasks.create_task(come(1))
        await asyncio.sleep(0)
        first = tasks.create_task(come(0))
    assert (first.result(), last.result()) == (0, 1)


async def test_it_answers_what_torchs_static_handler_answers(free_port: int) -> None:
    stock = json.loads(await run_torch(STOCK, free_port))
    params = RendezvousParameters("static", f"127.0.0.1:{free_port}", "job", 1, 1, rank="0")
    handler = get_rendezvous_handler(params)
    async with handler:
        info = await handler.next_rendezvous()
        where = await info.bootstrap_store_info()
        await handler.set_closed()
        ours = [
            info.rank, info.world_size, where.master_addr, where.master_port == free_port,
            await handler.num_nodes_waiting(), await handler.is_closed(), handler.get_backend(),
            handler.get_run_id(), handler.use_agent_store, await handler.shutdown(),
        ]  # fmt: skip
    assert ours == stock


async def test_nothing_happens_to_a_static_round_until_the_node_leaves() -> None:
    async with node(0, 0, 1) as rdzv:
        await rdzv.next_rendezvous()
        assert await rdzv.outlook() == ar.Outlook(0, departed=False, closed=False)

        async def all_changes() -> list[ar.Change]:
            return [change async for change in rdzv.changes()]

        async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as tasks:
            changes = tasks.create_task(all_changes())
            await asyncio.sleep(0)
            assert not changes.done()
            await rdzv.leave("enough")
        assert changes.result() == []
        with pytest.raises(ar.RendezvousStateError, match="use tcp://"):
            await rdzv.drain(3.0)
    assert [entry.what for entry in rdzv.history] == [
        "joining run 'job' as rank 0", "rank 0 of 1", "left the run: enough",
    ]  # fmt: skip
    with pytest.raises(RuntimeError, match="outside of its 'async with' block"):
        await rdzv.next_rendezvous()


async def test_rank_0_names_the_ranks_that_did_not_come(free_port: int) -> None:
    brief = ar.RendezvousTimeout(join=1.0)
    async with node(free_port, 0, 4, timeout=brief) as first, node(free_port, 2, 4) as third:
        await third.next_rendezvous()
        with pytest.raises(ar.RendezvousTimeoutError, match=r"within 1 s; missing are the ranks 1, 3"):
            await first.next_rendezvous()


async def test_without_rank_0_the_others_cannot_connect(free_port: int) -> None:
    with pytest.raises(ar.RendezvousConnectionError, match=str(free_port)):
        await node(free_port, 1, timeout=ar.RendezvousTimeout(join=0.1)).__aenter__()


async def test_a_second_rank_0_is_told_that_the_port_is_taken(free_port: int) -> None:
    async with node(free_port, 0):
        with pytest.raises(ar.RendezvousConnectionError, match="was rank 0 given twice") as caught:
            await node(free_port, 0).__aenter__()
        assert caught.value.endpoint == f"static://127.0.0.1:{free_port}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": None}, "rank is None, but must be a rank from 0 to 1"),
        ({"rank": 2}, "rank is 2, but must be a rank from 0 to 1"),
        ({"rank": "x"}, "rank is 'x', but must be an integer"),
        ({"min_nodes": 1}, "min_nodes is 1, but must be the same as max_nodes, 2"),
        ({"endpoint": " "}, "endpoint is ' ', but must be host:port"),
        ({"rnak": 1}, "no option 'rnak' (did you mean 'rank'?)"),
        ({"timeout": -1}, "timeout is -1"),
    ],
)
def test_a_parameter_that_is_not_allowed_is_named(change: dict[str, Any], message: str) -> None:
    given = {"endpoint": "127.0.0.1:1", "min_nodes": 2, "max_nodes": 2, "rank": 1, **change}
    with pytest.raises(ar.RendezvousSettingsError) as caught:
        get_rendezvous_handler(RendezvousParameters("static", run_id="job", **given))
    assert message in str(caught.value)


def test_synchronous_programs_have_it_too(free_port: int) -> None:
    def come(rank: int) -> tuple[int, bytes]:
        url = f"static://127.0.0.1:{free_port}"
        with sync.open_rendezvous(url, run_id="job", min_nodes=2, rank=rank) as rdzv:
            info = rdzv.next_rendezvous()
            info.store.set(f"from {rank}", str(rank))
            found = info.store.get(f"from {1 - rank}", timeout=PATIENCE)
            info.store.barrier("end", 2, PATIENCE)
            return info.rank, found

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(come, (0, 1), timeout=PATIENCE)) == [(0, b"1"), (1, b"0")]

"""Stock torch nodes and ours are members of one and the same c10d rendezvous."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from torch_process import torch_store_server

import arendezvous as ar
from arendezvous.changes import NodeLost
from arendezvous.rendezvous import DynamicRendezvousHandler
from arendezvous.settings import RendezvousTimeout
from arendezvous.state import Phase
from arendezvous.stores.tcp import TcpStore

HOST = "127.0.0.1"
INTERVAL, ATTEMPTS, LAST_CALL = 1, 4, 2

STOCK_NODE = """
import json
import sys

from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import create_backend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import create_handler

port, least, most, interval, attempts, last_call = sys.argv[1:]
handlers = {}


def open_handler(run_id):
    params = RendezvousParameters(
        "c10d", f"127.0.0.1:{port}", run_id, int(least), int(most), local_addr="localhost", is_host=False,
        read_timeout=20, join_timeout=60, last_call_timeout=last_call,
        keep_alive_interval=interval, keep_alive_max_attempt=attempts,
    )
    backend, store = create_backend(params)
    return create_handler(store, backend, params)


print("ready", flush=True)
for line in sys.stdin:
    run_id = line.strip()
    if run_id not in handlers:
        handlers[run_id] = open_handler(run_id)
    info = handlers[run_id].next_rendezvous()
    where = info.bootstrap_store_info
    info.store.set(f"hello/{info.rank}", "stock")
    told = {"rank": info.rank, "size": info.world_size, "addr": where.master_addr, "port": where.master_port}
    print(json.dumps(told), flush=True)
"""

OUR_NODE = """
import asyncio
import json
import sys

import arendezvous as ar
from arendezvous.settings import RendezvousTimeout

port, least, most, interval, attempts, last_call = sys.argv[1:]


async def main():
    print("ready", flush=True)
    run_id = (await asyncio.to_thread(sys.stdin.readline)).strip()
    async with ar.open_rendezvous(
        f"c10d://127.0.0.1:{port}", run_id=run_id, min_nodes=int(least), max_nodes=int(most),
        local_addr="127.0.0.1", rank_policy="natural", is_host=False,
        timeout=RendezvousTimeout(join=60, last_call=float(last_call)),
        keep_alive_interval=float(interval), keep_alive_max_attempt=int(attempts),
    ) as handler:
        info = await handler.next_rendezvous()
        where = await info.bootstrap_store_info()
        await info.store.set(f"hello/{info.rank}", "ours")
        told = {"rank": info.rank, "size": info.world_size}
        print(json.dumps(told | {"addr": where.master_addr, "port": where.master_port}), flush=True)
        await asyncio.sleep(600)


asyncio.run(main())
"""


class Node:
    """A node in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def line(self) -> str:
        assert self.process.stdout is not None
        async with asyncio.timeout(90):
            line = (await self.process.stdout.readline()).decode().strip()
        assert line, "the node ended"
        return line

    async def join(self, run_id: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{run_id}\n".encode())
        told: dict[str, Any] = json.loads(await self.line())
        return told

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)


@asynccontextmanager
async def node(script: str, port: int, least: int, most: int) -> AsyncIterator[Node]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "ignore", "-c", script,
        *map(str, (port, least, most, INTERVAL, ATTEMPTS, LAST_CALL)),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        # stock then publishes, and reads, rank 0's address in every round and not in a handler's first alone
        env={**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
    )  # fmt: skip
    try:
        yield Node(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@asynccontextmanager
async def store_server(kind: str) -> AsyncIterator[int]:
    """A store server of torch, or ours; yields its port."""
    if kind == "torch":
        with torch_store_server() as port:
            yield port
    else:
        async with ar.serve(f"{HOST}:0") as server:
            yield server.port


def our_handler(
    port: int, run_id: str, least: int, most: int, address: str = HOST
) -> DynamicRendezvousHandler:
    """One of ours; it ranks by address, as stock does, so that it is no matter who completes a round."""
    return ar.open_rendezvous(
        f"c10d://{HOST}:{port}",
        run_id=run_id,
        min_nodes=least,
        max_nodes=most,
        local_addr=address,
        rank_policy="natural",
        is_host=False,
        timeout=RendezvousTimeout(join=60, last_call=LAST_CALL),
        keep_alive_interval=INTERVAL,
        keep_alive_max_attempt=ATTEMPTS,
    )


async def our_join(handler: DynamicRendezvousHandler) -> tuple[ar.RendezvousInfo, dict[str, Any]]:
    info = await handler.next_rendezvous()
    where = await info.bootstrap_store_info()
    await info.store.set(f"hello/{info.rank}", "ours")
    told = {"rank": info.rank, "size": info.world_size}
    return info, told | {"addr": where.master_addr, "port": where.master_port}


def agree(worlds: list[dict[str, Any]], size: int) -> None:
    """All of them are in one world of this size."""
    assert sorted(world["rank"] for world in worlds) == list(range(size))
    assert {world["size"] for world in worlds} == {size}
    assert len({(world["addr"], world["port"]) for world in worlds}) == 1


@pytest.mark.parametrize("kind", ["torch", "ours"])
async def test_two_stock_nodes_and_two_of_ours_meet_and_a_survivor_of_each_kind_meets_again(
    kind: str,
) -> None:
    async with AsyncExitStack() as stack:
        port = await stack.enter_async_context(store_server(kind))
        scripts = (STOCK_NODE, STOCK_NODE, OUR_NODE)
        others = [await stack.enter_async_context(node(script, port, 2, 4)) for script in scripts]
        handler = await stack.enter_async_context(our_handler(port, "mixed", 2, 4))
        for other in others:
            assert await other.line() == "ready"

        async with asyncio.TaskGroup() as tasks:
            ours = tasks.create_task(our_join(handler))
            theirs = [tasks.create_task(other.join("mixed")) for other in others]
        info, told = ours.result()
        agree([told, *(their.result() for their in theirs)], 4)
        kinds = [(await info.store.get(f"hello/{rank}")).decode() for rank in range(4)]
        assert sorted(kinds) == ["ours", "ours", "stock", "stock"]
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
        agree([told, survivor.result()], 2)
        assert info.round > 0
        assert len((await handler.explain()).of_phase(Phase.MEMBER)) == 2


async def test_whoever_is_rank_0_publishes_the_store_and_the_other_kind_reads_it() -> None:
    async with AsyncExitStack() as stack:
        port = await stack.enter_async_context(store_server("torch"))
        stock = await stack.enter_async_context(node(STOCK_NODE, port, 2, 2))  # its address is "localhost"
        assert await stock.line() == "ready"

        before = await stack.enter_async_context(our_handler(port, "ours-is-0", 2, 2))
        async with asyncio.TaskGroup() as tasks:
            joined = tasks.create_task(before.next_rendezvous())  # nobody of ours asks where the store is
            told = await stock.join("ours-is-0")
        assert (joined.result().rank, told["rank"]) == (0, 1)
        async with TcpStore(told["addr"], told["port"], timeout=10) as workers:
            await workers.set("k", b"v")
        where = await joined.result().bootstrap_store_info()
        assert (where.master_addr, where.master_port) == (told["addr"], told["port"])

        after = await stack.enter_async_context(our_handler(port, "stock-is-0", 2, 2, address="z.invalid"))
        async with asyncio.TaskGroup() as tasks:
            theirs = tasks.create_task(stock.join("stock-is-0"))
            _, ours = await our_join(after)
        assert (theirs.result()["rank"], ours["rank"]) == (0, 1)
        agree([theirs.result(), ours], 2)


WORKER = """
import datetime
import json
import os

from torch.distributed import TCPStore

names = ("RANK", "WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
env = {name: os.environ[name] for name in names}
patience = datetime.timedelta(seconds=60)
store = TCPStore(env["MASTER_ADDR"], int(env["MASTER_PORT"]), is_master=False, timeout=patience)
store.set("worker", json.dumps(env))
store.get("seen")
"""


async def test_a_torchrun_agent_and_one_of_ours_form_a_world_of_two(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(WORKER)
    async with AsyncExitStack() as stack:
        port = await stack.enter_async_context(store_server("torch"))
        handler = await stack.enter_async_context(our_handler(port, "job", 2, 2))
        agent = await asyncio.create_subprocess_exec(
            sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1",
            "--rdzv-backend=c10d", f"--rdzv-endpoint={HOST}:{port}", "--rdzv-id=job", f"--local-addr={HOST}",
            f"--rdzv-conf=is_host=0,keep_alive_interval={INTERVAL},keep_alive_max_attempt={ATTEMPTS}",
            str(script),
            env={**os.environ, "OMP_NUM_THREADS": "1", "TORCH_ELASTIC_WORKER_IDENTICAL": "1"},
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        stack.push_async_callback(reap, agent)
        info = await handler.next_rendezvous()
        where = await info.bootstrap_store_info()
        workers = await stack.enter_async_context(TcpStore(where.master_addr, where.master_port, timeout=60))
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
        async with asyncio.timeout(60):
            errors = await agent.stderr.read()
            assert await agent.wait() == 0, errors.decode()[-3000:]


async def reap(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.wait()

"""Stock torch nodes and ours, in processes of their own or in this one, for one and the same rendezvous."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import arendezvous as ar
from arendezvous.rendezvous.handler import AsyncRendezvousHandler
from arendezvous.rendezvous.option_groups import RendezvousTimeout
from tests.kit import ROOT, torch_python
from tests.kit.etcd_server import serve_etcd
from tests.kit.process_kit import ended, send_signal
from tests.kit.torch_process import torch_store_server

HOST = "127.0.0.1"
INTERVAL, LAST_CALL = 1, 10  # nobody is too late on a busy machine
FEW, MANY = 8, 60  # keep-alives that may be missed: few only where somebody is killed

STOCK_NODE = """
import importlib
import json
import sys

from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import create_handler

name, endpoint, least, most, interval, attempts, last_call = sys.argv[1:]
module = {"c10d": "c10d_rendezvous_backend", "etcd-v2": "etcd_rendezvous_backend"}[name]
create_backend = importlib.import_module(f"torch.distributed.elastic.rendezvous.{module}").create_backend
handlers = {}


def open_handler(run_id):
    params = RendezvousParameters(
        name, endpoint, run_id, int(least), int(most), local_addr="localhost", is_host=False,
        read_timeout=60, join_timeout=120, last_call_timeout=last_call,
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
    kinds = [info.store.get(f"hello/{rank}").decode() for rank in range(info.world_size)]
    told = {"rank": info.rank, "size": info.world_size, "addr": where.master_addr, "port": where.master_port}
    print(json.dumps(told | {"kinds": sorted(kinds)}), flush=True)
"""

OUR_NODE = """
import asyncio
import json
import sys

from tests.kit.fleet_kit import Place, our_join

name, endpoint, least, most, *_ = sys.argv[1:]


async def main():
    print("ready", flush=True)
    run_id = (await asyncio.to_thread(sys.stdin.readline)).strip()
    async with Place(name, endpoint).handler(run_id, int(least), int(most)) as handler:
        _, told = await our_join(handler)
        print(json.dumps(told), flush=True)
        await asyncio.get_running_loop().create_future()


asyncio.run(main())
"""


class Node:
    """A node in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def line(self) -> str:
        assert self.process.stdout is not None
        async with asyncio.timeout(150):
            line = (await self.process.stdout.readline()).decode().strip()
        assert line, "the node ended"
        return line

    async def join(self, run_id: str) -> dict[str, Any]:
        """Returns what it has seen of its world; see `agree`."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{run_id}\n".encode())
        told: dict[str, Any] = json.loads(await self.line())
        return told

    def kill(self) -> None:
        send_signal(self.process, signal.SIGKILL)


@dataclass(frozen=True)
class Place:
    """Where stock nodes and ours can meet.

    Attributes:
        name: The backend's, ``c10d`` or ``etcd-v2``; stock and we have the same.
        endpoint: Its ``host:port``.
    """

    name: str
    endpoint: str

    def handler(self, run_id: str, least: int, most: int, address: str = HOST) -> AsyncRendezvousHandler:
        """One of ours; it ranks by address, as stock does, so that it is no matter who completes a round."""
        return ar.open_rendezvous(
            f"{self.name}://{self.endpoint}",
            run_id=run_id,
            min_nodes=least,
            max_nodes=most,
            local_addr=address,
            rank_policy="natural",
            timeout=RendezvousTimeout(join=120, last_call=LAST_CALL),
            keep_alive_interval=INTERVAL,
            keep_alive_max_attempt=_attempts(least, most),
            is_host=False if self.name == "c10d" else None,
        )

    @asynccontextmanager
    async def node(self, script: str, least: int, most: int) -> AsyncIterator[Node]:
        """Runs a node that joins the runs whose names it is told: `STOCK_NODE` or `OUR_NODE`."""
        options = (self.name, self.endpoint, least, most, INTERVAL, _attempts(least, most), LAST_CALL)
        process = await asyncio.create_subprocess_exec(
            *torch_python.command(), "-c", script, *map(str, options),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            # stock then publishes and reads rank 0's address in every round, not in a handler's first alone
            env={**_environment(), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
        )  # fmt: skip
        async with ended(process):
            yield Node(process)

    @asynccontextmanager
    async def agent(self, script: Path, run_id: str) -> AsyncIterator[asyncio.subprocess.Process]:
        """Runs torchrun with a worker that runs `script`, in a world of two agents."""
        is_there = "is_host=0," if self.name == "c10d" else ""
        process = await asyncio.create_subprocess_exec(
            *torch_python.command(), "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1",
            f"--rdzv-backend={self.name}", f"--rdzv-endpoint={self.endpoint}", f"--rdzv-id={run_id}",
            f"--rdzv-conf={is_there}keep_alive_interval={INTERVAL},keep_alive_max_attempt={MANY}",
            f"--local-addr={HOST}", "--no-python", *torch_python.command(), str(script),
            env={**_environment(), "TORCH_ELASTIC_WORKER_IDENTICAL": "1"}, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        async with ended(process):
            yield process


@asynccontextmanager
async def open_place(kind: str) -> AsyncIterator[Place]:
    """Somewhere to meet: torch's store server, ours, or etcd."""
    if kind == "torch's server":
        with torch_store_server() as port:
            yield Place("c10d", f"{HOST}:{port}")
    elif kind == "our server":
        async with ar.serve(f"{HOST}:0") as server:
            yield Place("c10d", f"{HOST}:{server.port}")
    else:
        async with serve_etcd(options=["--enable-v2"]) as etcd:
            yield Place("etcd-v2", etcd.urls[0].removeprefix("http://"))


async def our_join(handler: AsyncRendezvousHandler) -> tuple[ar.RendezvousInfo, dict[str, Any]]:
    """Joins; returns what has been seen of the world, too."""
    info = await handler.next_rendezvous()
    where = await info.bootstrap_store_info()
    await info.store.set(f"hello/{info.rank}", "ours")
    kinds = await info.store.multi_get([f"hello/{rank}" for rank in range(info.world_size)])
    told = {"rank": info.rank, "size": info.world_size, "addr": where.master_addr, "port": where.master_port}
    return info, told | {"kinds": sorted(kind.decode() for kind in kinds)}


def agree(worlds: Sequence[dict[str, Any]], kinds: Sequence[str]) -> None:
    """All of them are in one world, with one node of each of `kinds`, and have read each other's keys."""
    size = len(kinds)
    assert sorted(world["rank"] for world in worlds) == list(range(size))
    assert [(world["size"], world["kinds"]) for world in worlds] == [(size, list(kinds))] * size
    assert len({(world["addr"], world["port"]) for world in worlds}) == 1


def _attempts(least: int, most: int) -> int:
    return FEW if least < most else MANY  # who may be killed is not needed


def _environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}

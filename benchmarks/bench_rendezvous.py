"""How long N nodes take to agree: from "everybody calls next_rendezvous" to "the last one has its rank".

The server runs in a process of its own, the members as tasks of one other process; connecting is timed apart.
Beside it, where torch is installed and N <= 128: the stock c10d rendezvous, one process per node, forked
after importing torch, its store in a process of its own. Medians of several runs; all on loopback.

    python benchmarks/bench_rendezvous.py                    # asyncio's own loop
    python benchmarks/bench_rendezvous.py --loop uvloop --nodes 64 1024 --stock
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import arendezvous as ar

SERVER = """
import asyncio, sys
import arendezvous as ar
from arendezvous.server.limits import ServerLimits

async def main():
    async with ar.serve("127.0.0.1:0") as server:
        print(server.tcp_url, flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)

if sys.argv[1] == "uvloop":
    import uvloop
    uvloop.run(main())
else:
    asyncio.run(main())
"""

STOCK_SERVER = """
import sys, torch.distributed as dist
store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
print(store.port, flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def our_server(loop: str) -> Iterator[str]:
    """Runs our server in a process of its own and yields its URL."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, loop], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait(10)
        process.stdout.close()


class Timing:
    """What one run of N members took, in seconds."""

    def __init__(self) -> None:
        self.connect = 0.0
        self.meet = 0.0
        self.meet_again = 0.0


async def one_run(url: str, nodes: int, run_id: str) -> Timing:
    """Lets N members connect, meet, and meet again, and times each."""
    timing = Timing()
    counts = [0, 0, 0]
    gates = [asyncio.Event() for _ in range(4)]
    done = [asyncio.Event() for _ in range(3)]

    def arrive(stage: int) -> None:
        counts[stage] += 1
        if counts[stage] == nodes:
            done[stage].set()

    async def member() -> None:
        await gates[0].wait()
        async with ar.open_rendezvous(
            url, run_id=run_id, min_nodes=nodes, local_addr="127.0.0.1", is_host=False
        ) as rdzv:
            for stage in range(3):
                if stage:
                    info = await rdzv.next_rendezvous()
                    assert info.world_size == nodes
                arrive(stage)
                await gates[stage + 1].wait()

    async with asyncio.TaskGroup() as tasks:
        for _ in range(nodes):
            tasks.create_task(member())
        await asyncio.sleep(0)
        seconds = []
        for stage in range(3):
            start = time.perf_counter()
            gates[stage].set()
            await done[stage].wait()
            seconds.append(time.perf_counter() - start)
        timing.connect, timing.meet, timing.meet_again = seconds
        gates[3].set()
    return timing


def ours(sizes: list[int], repeats: int, loop: str) -> dict[int, list[Timing]]:
    """Times our rendezvous at every size."""

    async def main(url: str) -> dict[int, list[Timing]]:
        await one_run(url, 8, "warm-up")
        return {
            nodes: [await one_run(url, nodes, f"bench-{nodes}-{i}") for i in range(repeats)]
            for nodes in sizes
        }

    with our_server(loop) as url:
        if loop == "uvloop":
            import uvloop

            result: dict[int, list[Timing]] = uvloop.run(main(url))
            return result
        return asyncio.run(main(url))


def stock_node(port: int, nodes: int, run_id: str, barrier: Any, results: Any) -> None:
    """One process of the stock rendezvous; reports when it called and when it had its rank."""
    from torch.distributed.elastic.rendezvous import RendezvousParameters
    from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import create_backend
    from torch.distributed.elastic.rendezvous.dynamic_rendezvous import create_handler

    parameters = RendezvousParameters(
        "c10d", f"127.0.0.1:{port}", run_id, nodes, nodes, "127.0.0.1", is_host=False, store_type="tcp"
    )
    backend, store = create_backend(parameters)
    handler = create_handler(store, backend, parameters)
    barrier.wait(240)
    start = time.monotonic()
    info = handler.next_rendezvous()
    results.put((start, time.monotonic(), info.rank, info.world_size))
    results.close()
    results.join_thread()
    os._exit(0)  # not through torch's clean-up, which waits for the store


def stock(nodes: int, repeats: int) -> list[float]:
    """Times the stock c10d rendezvous, one forked process per node."""
    import torch.distributed as dist

    context = multiprocessing.get_context("fork")
    seconds = []
    for repeat in range(repeats):
        server = subprocess.Popen(
            [
                sys.executable,
                "-c",
                STOCK_SERVER,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert server.stdin is not None
        assert server.stdout is not None
        port = int(server.stdout.readline())
        assert dist.is_available()
        barrier: Any = context.Barrier(nodes)
        results: Any = context.Queue()
        children = [
            context.Process(target=stock_node, args=(port, nodes, f"stock-{repeat}", barrier, results))
            for _ in range(nodes)
        ]
        for child in children:
            child.start()
        times = [results.get(timeout=240) for _ in range(nodes)]
        for child in children:
            child.join(30)
        seconds.append(max(end for _, end, _, _ in times) - min(start for start, _, _, _ in times))
        results.close()
        server.stdin.close()
        server.wait(10)
        server.stdout.close()
    return seconds


def spread(seconds: list[float]) -> str:
    """Median and range in milliseconds."""
    median = statistics.median(seconds)
    return f"{median * 1e3:9.2f} ms ({min(seconds) * 1e3:.2f}-{max(seconds) * 1e3:.2f})"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[2, 64, 256, 1024, 4096])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="asyncio")
    parser.add_argument("--stock", action="store_true", help="time torch's c10d rendezvous too, to 128 nodes")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    timings = ours(arguments.nodes, arguments.repeats, arguments.loop)
    rows: list[dict[str, Any]] = []
    for nodes, runs in timings.items():
        row: dict[str, Any] = {"nodes": nodes, "loop": arguments.loop}
        fields: dict[str, Callable[[Timing], float]] = {
            "connect": lambda run: run.connect,
            "meet": lambda run: run.meet,
            "meet_again": lambda run: run.meet_again,
        }
        for name, field in fields.items():
            row[name] = [field(run) for run in runs]
        if arguments.stock and nodes <= 128 and importlib.util.find_spec("torch"):
            row["stock"] = stock(nodes, min(arguments.repeats, 3))
        rows.append(row)
    if arguments.json:
        print(json.dumps(rows))
        return
    print(f"event loop: {arguments.loop}; median of {arguments.repeats} (range)")
    for row in rows:
        parts = [f"{name} {spread(row[name])}" for name in ("connect", "meet", "meet_again")]
        if "stock" in row:
            ratio = statistics.median(row["stock"]) / statistics.median(row["meet"])
            parts.append(f"stock c10d {spread(row['stock'])} = {ratio:.0f} x ours")
        print(f"{row['nodes']:5d} nodes: " + "; ".join(parts))


if __name__ == "__main__":
    main()

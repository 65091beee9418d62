"""``python -m benchmarks failover``: how soon nodes meet again when the leader of a fleet is gone."""

from __future__ import annotations

import asyncio
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, ExitStack
from typing import Annotated, Any, Final, NamedTuple

import typer
from rich.console import Console
from rich.table import Table

import arendezvous as ar
from arendezvous.directory.etcd import EtcdDirectory
from benchmarks.contenders import start_etcd
from benchmarks.plan import Plan

SERVERS: Final = 3
LIMIT: Final = 30.0  # seconds
SETTLED: Final = 1.0  # seconds that nodes have been connected for: then a loss is no failed attempt


class Way(NamedTuple):
    """One way to end the leader, and by when nodes are to have met again."""

    what: str
    number: signal.Signals
    most: float


WAYS: Final = (
    Way("killed (-9)", signal.SIGKILL, 3.5),
    Way("told to stop (SIGTERM)", signal.SIGTERM, 0.2),
)


def start_server(stack: ExitStack, etcd: str) -> tuple[str, subprocess.Popen[str]]:
    """Starts a server of the fleet; returns where it is."""
    command = [sys.executable, "-m", "arendezvous", "serve", "--port", "0", "--etcd", etcd]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    stack.callback(server.wait)
    stack.callback(server.kill)
    assert server.stdout is not None
    return server.stdout.readline().split()[1].removeprefix("tcp://"), server


async def measure(way: Way, nodes: int, etcd: str) -> float:
    """Ends the leader while nodes have a round; returns the seconds until another has told all the next."""
    options: dict[str, Any] = {"run_id": "run", "nnodes": str(nodes), "disconnect_grace": LIMIT}
    with ExitStack() as servers:
        fleet = dict(start_server(servers, etcd) for _ in range(SERVERS))
        url = f"tcp://{','.join(fleet)}"
        async with AsyncExitStack() as stack, EtcdDirectory(etcd) as directory:
            opened = [ar.open_rendezvous(url, **options) for _ in range(nodes)]
            members = [await stack.enter_async_context(one) for one in opened]
            await meet(members)
            await asyncio.sleep(SETTLED + random.random())  # at any moment between two renewals of the lease
            leader = await directory.leader()
            assert leader is not None
            began = time.perf_counter()
            fleet[leader.tcp.removeprefix("tcp://")].send_signal(way.number)
            has_moved = False
            while not has_moved:  # who is told to stop may still see to a round
                has_moved = await directory.leader() not in (leader, None)
                await meet(members)
            return time.perf_counter() - began


async def meet(members: Sequence[ar.AsyncRendezvousHandler]) -> None:
    """Has all members meet."""
    async with asyncio.timeout(LIMIT):
        await asyncio.gather(*(one.next_rendezvous() for one in members))


def failover(
    nodes: Annotated[int, typer.Option(min=1, help="Nodes that meet.")] = 8,
    repeat: Annotated[int, typer.Option(min=1, help="How often each.")] = 5,
) -> None:
    """End the leader of a fleet of three, and measure how soon all nodes have the next round.

    Fails if the median is more than the lease and half a second (killed), or 0.2 s (told to stop).
    """
    shown = Table("the leader is", "median", "fastest", "slowest", "at most")
    is_good = True
    with ExitStack() as stack:
        etcd = start_etcd(stack, Plan())
        for way in WAYS:
            taken = [asyncio.run(measure(way, nodes, etcd)) for _ in range(repeat)]
            figures = (statistics.median(taken), min(taken), max(taken), way.most)
            shown.add_row(way.what, *(f"{figure:.3f} s" for figure in figures))
            is_good = is_good and figures[0] <= way.most
    Console(width=100).print(shown)
    raise typer.Exit(0 if is_good else 1)

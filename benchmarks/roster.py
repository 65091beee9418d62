"""What it takes until all members of a round have all of its roster: ``python -m benchmarks roster``.

A server in a process of its own, and members in two others, each with a session: they join with data, and
then all of them read the roster, whole and decoded. What counts is the time until the last one has it, and
the longest turn of the server's loop meanwhile, in which it heard nobody; that is measured in the simulation,
where no kernel and no other process is in the way.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import time
from contextlib import AsyncExitStack
from multiprocessing.synchronize import Barrier as Ready
from statistics import median
from typing import Annotated, Final, NamedTuple
from urllib.parse import urlsplit

import typer

from arendezvous.backends.tcp.session import SessionBackend
from arendezvous.cli.exits import fail
from arendezvous.coordinator.rosters import PAGE
from arendezvous.law.checks import encoded
from arendezvous.law.operations import Join
from arendezvous.law.rules import Brought
from arendezvous.law.state import NodeDesc, NodeView, RunSettings
from arendezvous.wire.native.messages import PREFACE, VERSION, GetRoster, Hello, Propose, encode
from benchmarks.process import Process
from benchmarks.processes.child import cpu_seconds, raise_open_files
from benchmarks.simulated import SimulatedConnection, SimulatedLoop, simulated_server

GOAL: Final = 2.0  # seconds
GOAL_TURN: Final = 0.050
PATIENCE: Final = 600.0
BATCH: Final = 64  # connections that ask in one turn of the loop
PROCESSES: Final = 2


class Reading(NamedTuple):
    """How long it took, and the processor's seconds of both sides."""

    seconds: float
    members: float
    server: float


def joins(nodes: int, size: int) -> list[Join]:
    """Makes the joins of nodes that each bring so many bytes of JSON."""
    settings = RunSettings(nodes, nodes, keep_alive_interval=PATIENCE)
    found = []
    for number in range(nodes):
        data = {"url": f"http://10.0.{number >> 8}.{number & 255}:8000", "key": ""}
        room = size - len(encoded("data", data, size))
        data["key"] = os.urandom(room // 2 + 1).hex()[:room]
        brings = Brought(data=encoded("data", data, size))
        desc = NodeDesc(f"node{number}", addr=f"10.0.{number >> 8}.{number & 255}", brings=brings)
        found.append(Join(desc, settings))
    return found


async def read_rosters(url: str, nodes: list[Join], ready: Ready, repeat: int) -> list[tuple[float, float]]:
    """Has some of the members join and read the roster, over and over, each time when all are ready.

    Returns:
        When each reading ended, on the clock of all processes, and the processor's seconds that it took here.
    """
    where = urlsplit(url)
    size = nodes[0].settings.max_nodes
    readings = []
    async with asyncio.timeout(PATIENCE), AsyncExitStack() as stack:
        sessions = [SessionBackend(str(where.hostname), where.port or 0, "roster") for _ in nodes]
        for session in sessions:
            await stack.enter_async_context(session)

        async def member(session: SessionBackend, join: Join) -> NodeView:
            view = await session.propose(join)
            while view.rank < 0:
                view = await session.changed(join.node, view.revision)
            return view

        views = await asyncio.gather(*map(member, sessions, nodes))
        generation = views[0].generation
        for _ in range(repeat):
            await asyncio.to_thread(ready.wait)
            spent = time.process_time()
            rosters = await asyncio.gather(*(session.roster(*generation) for session in sessions))
            readings.append((time.monotonic(), time.process_time() - spent))
            assert all(len(roster) == size for roster in rosters)
            await asyncio.to_thread(ready.wait)
    return readings


def measure(url: str, pid: int, nodes: int, size: int, repeat: int) -> list[Reading]:
    """Has members in several processes, as nodes are, read the roster."""
    processes = min(PROCESSES, nodes)
    forks = multiprocessing.get_context("fork")
    ready, results = forks.Barrier(processes + 1), forks.Queue()

    def work(part: list[Join]) -> None:
        results.put(asyncio.run(read_rosters(url, part, ready, repeat)))

    wanted = joins(nodes, size)
    members = [forks.Process(target=work, args=(wanted[n::processes],)) for n in range(processes)]
    for one in members:
        one.start()
    marks = []
    for _ in range(repeat):
        ready.wait(PATIENCE)
        began, spent = time.monotonic(), cpu_seconds(pid)
        ready.wait(PATIENCE)
        marks.append((began, cpu_seconds(pid) - spent))
    found = [results.get(timeout=PATIENCE) for _ in members]
    for one in members:
        one.join(PATIENCE)
    return [
        Reading(max(end for end, _ in parts) - began, sum(spent for _, spent in parts), served)
        for (began, served), *parts in zip(marks, *found, strict=True)
    ]


async def longest_turn(nodes: int, size: int) -> float:
    """Returns the longest turn of a simulated server of which all members read the roster."""
    async with simulated_server() as loop:
        assert loop.factory is not None
        connections = []
        for number, join in enumerate(joins(nodes, size)):
            connections.append(SimulatedConnection(loop.factory()))
            hello = PREFACE + encode(Hello(VERSION, "roster", number.to_bytes(16, "big")))
            connections[-1].send(hello + encode(Propose(1, join)))
        await asyncio.sleep(1.0)
        loop.time_turns()
        for first in range(0, nodes, PAGE):
            for number, connection in enumerate(connections):
                connection.send(encode(GetRoster(2 + first, 1, 0, first)))
                if number % BATCH == BATCH - 1:
                    await asyncio.sleep(0)
            await asyncio.sleep(0)
        return loop.longest_turn


def roster(
    nodes: Annotated[int, typer.Option(min=2, help="Members of the round.")] = 1024,
    size: Annotated[int, typer.Option(min=64, max=4096, help="Bytes that each brings.")] = 1024,
    repeat: Annotated[int, typer.Option(min=1, help="Readings.")] = 5,
) -> None:
    """Measure how long it takes until all members of a round have its roster.

    It fails if that takes more than 2 s, or a turn of the server's loop more than 50 ms.
    """
    raise_open_files()
    with Process("server", "--loop", "asyncio") as server:
        readings = measure(server.hello["tcp"], server.pid, nodes, size, repeat)
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        turn = runner.run(longest_turn(nodes, size))
    seconds, members, served = (median(values) for values in zip(*readings, strict=True))
    typer.echo(
        f"{nodes} members with {size} B each have all {nodes} of them in {seconds:.2f} s, median of {repeat}"
        f" ({min(readings).seconds:.2f} s at best); processor: {members:.2f} s of all members, {served:.2f} s"
        f" of the server; its longest turn: {turn * 1000:.1f} ms"
    )
    if seconds > GOAL or turn > GOAL_TURN:
        fail(f"the goals are {GOAL:g} s, and {GOAL_TURN * 1000:g} ms a turn")

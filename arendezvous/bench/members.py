"""The process of our members: N tasks of one event loop, each with a connection of its own."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import sys
import time
from typing import Any

import anyio

import arendezvous as ar
from arendezvous.bench.child import Answer, cpu_seconds, raise_open_files, resident, serve_requests
from arendezvous.bench.loops import runner

_numbers = itertools.count()


class Stage:
    """A moment that all members reach together."""

    def __init__(self, members: int) -> None:
        self._missing = members
        self._go = anyio.Event()
        self._all = anyio.Event()

    async def reach(self) -> None:
        """Arrives, and waits to be let on."""
        self._missing -= 1
        if self._missing == 0:
            self._all.set()
        await self._go.wait()

    async def reached(self) -> float:
        """Waits until all are here; returns when that was."""
        await self._all.wait()
        return time.perf_counter()

    def let_on(self) -> float:
        """Lets all go on; returns when that was."""
        self._go.set()
        return time.perf_counter()


def _open(url: str, options: dict[str, Any], run_id: str, nodes: int, **more: Any) -> Any:
    settings = {"min_nodes": nodes, "local_addr": "127.0.0.1", **options, **more}
    if url.startswith("tcp:"):
        settings["is_host"] = False
    return ar.open_rendezvous(url, run_id=run_id, **settings)


async def meet(url: str, options: dict[str, Any], nodes: int, counter: int = 0) -> Answer:
    """Lets `nodes` members connect, meet, and meet again; returns the seconds of each.

    With a `counter`, the port where the server tells its counts, it also returns what they were before each
    of these, before the members leave, and at the end.
    """
    counts = [_counts(counter)]
    run_id = f"meet-{os.getpid()}-{next(_numbers)}"
    stages = [Stage(nodes) for _ in range(4)]

    async def member() -> None:
        await stages[0].reach()
        async with _open(url, options, run_id, nodes) as rdzv:
            await stages[1].reach()
            for stage in stages[2:]:
                info = await rdzv.next_rendezvous()
                if info.world_size != nodes:
                    raise RuntimeError(f"a world of {info.world_size}; expected {nodes}")
                await stage.reach()

    seconds = []
    async with anyio.create_task_group() as tasks:
        for _ in range(nodes):
            tasks.start_soon(member)
        for stage, following in itertools.pairwise(stages):
            await stage.reached()
            began = stage.let_on()
            seconds.append(await following.reached() - began)
            counts.append(_counts(counter))
        stages[-1].let_on()
    counts.append(_counts(counter))
    return {**dict(zip(("connect", "meet", "again"), seconds, strict=True)), "counts": counts}


def _counts(port: int) -> dict[str, int]:
    """Asks the server for its counts, at a port of its own; none if the port is 0."""
    if not port:
        return {}
    with socket.create_connection(("127.0.0.1", port)) as sock, sock.makefile() as file:
        return dict(json.load(file))


async def lose_one(url: str, options: dict[str, Any], nodes: int, grace: float) -> Answer:
    """Kills a member in a process of its own; returns seconds until all are told, and have met again."""
    run_id = f"lose-{os.getpid()}-{next(_numbers)}"
    arguments = [url, run_id, str(nodes), str(grace), json.dumps(options)]
    met, told, again = Stage(nodes - 1), Stage(nodes - 1), Stage(nodes - 1)
    told.let_on()

    async def survivor() -> None:
        more = {"max_nodes": nodes, "disconnect_grace": grace}
        async with _open(url, options, run_id, nodes - 1, **more) as rdzv:
            await rdzv.next_rendezvous()
            await met.reach()
            async for change in rdzv.changes():
                if isinstance(change, ar.NodeLost):
                    await told.reach()
                    break
            info = await rdzv.next_rendezvous()
            if info.world_size != nodes - 1:
                raise RuntimeError(f"a world of {info.world_size}; expected {nodes - 1}")
            await again.reach()

    module = "arendezvous.bench.victim"
    victim = await anyio.open_process([sys.executable, "-m", module, *arguments], stdout=None, stderr=None)
    async with victim, anyio.create_task_group() as tasks:
        for _ in range(nodes - 1):
            tasks.start_soon(survivor)
        await met.reached()
        began = met.let_on()
        victim.send_signal(signal.SIGKILL)
        seconds = [await stage.reached() - began for stage in (told, again)]
        again.let_on()
        await victim.wait()
    return dict(zip(("told", "again"), seconds, strict=True))


async def idle(url: str, options: dict[str, Any], request: Answer) -> Answer:
    """Lets members meet and hold their places; returns what that costs the server and, apart, the members."""
    run_id = f"idle-{os.getpid()}-{next(_numbers)}"
    nodes, seconds, interval = request["nodes"], request["seconds"], request["interval"]
    met = Stage(nodes)
    before, server_before = resident(), resident(request["server"])

    async def member() -> None:
        async with _open(url, options, run_id, nodes, keep_alive_interval=interval) as rdzv:
            await rdzv.next_rendezvous()
            await met.reach()

    async with anyio.create_task_group() as tasks:
        for _ in range(nodes):
            tasks.start_soon(member)
        await met.reached()
        await anyio.sleep(interval)  # by then each has sent its first heartbeat
        begin, cpu, server_cpu = time.perf_counter(), time.process_time(), cpu_seconds(request["server"])
        await anyio.sleep(seconds)
        took = time.perf_counter() - begin
        answer = {
            "cpu": (cpu_seconds(request["server"]) - server_cpu) / took,
            "memory": (resident(request["server"]) - server_before) / nodes,
            "member_cpu": (time.process_time() - cpu) / took,
            "member_memory": (resident() - before) / nodes,
        }
        met.let_on()
    return answer


def main() -> None:
    """Answers requests until stdin ends; arguments: the URL, the event loop, and more options as JSON."""
    raise_open_files()
    url, loop, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])

    async def measure(request: Answer) -> Answer:
        if request["do"] == "lose":
            return await lose_one(url, options, request["nodes"], request["grace"])
        if request["do"] == "idle":
            return await idle(url, options, request)
        return await meet(url, options, request["nodes"], request.get("counter", 0))

    with runner(loop) as loop_runner:
        serve_requests(lambda request: loop_runner.run(measure(request)), ("arendezvous", "uvloop", "anyio"))


if __name__ == "__main__":
    main()

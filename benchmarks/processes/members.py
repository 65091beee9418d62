"""Runs our members: N tasks of one event loop, each with a connection of its own."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import anyio

import arendezvous as ar
from benchmarks.processes.child import (
    Answer,
    cpu_seconds,
    raise_open_files,
    resident,
    runner,
    serve_requests,
)

PACKAGE: Final = str(Path(ar.__file__).resolve().parent)
VALUE: Final = b"v" * 32
VICTIM: Final = "victim"

_numbers = itertools.count()


class Stage:
    """Lets all members go on at the same moment, once all of them have arrived.

    Args:
        members: How many there are.
    """

    def __init__(self, members: int) -> None:
        self._missing = members
        self._all = anyio.Event()
        self._go = anyio.Event()

    async def arrive(self) -> None:
        """Arrives, and waits until the members are released."""
        self._missing -= 1
        if self._missing == 0:
            self._all.set()
        await self._go.wait()

    async def all_arrived(self) -> float:
        """Waits until all have arrived; returns when that was."""
        await self._all.wait()
        return time.perf_counter()

    def release(self) -> float:
        """Releases all; returns when that was."""
        self._go.set()
        return time.perf_counter()


def _open(url: str, options: dict[str, Any], run_id: str, nodes: int, **more: Any) -> Any:
    settings = {"min_nodes": nodes, "local_addr": "127.0.0.1", **options, **more}
    if url.startswith("tcp:"):
        settings["is_host"] = False
    return ar.open_rendezvous(url, run_id=run_id, **settings)


def _new_run(what: str) -> str:
    return f"{what}-{os.getpid()}-{next(_numbers)}"


async def meet(url: str, options: dict[str, Any], nodes: int, counter: int = 0) -> Answer:
    """Lets `nodes` members connect, meet, and meet again; returns the seconds of each.

    With a `counter`, the port where the server tells its counts, it also returns what they were before each
    of these, before the members leave, and at the end.
    """
    counts = [_counts(counter)]
    run_id = _new_run("meet")
    stages = [Stage(nodes) for _ in range(4)]

    async def member() -> None:
        await stages[0].arrive()
        async with _open(url, options, run_id, nodes) as rdzv:
            await stages[1].arrive()
            for stage in stages[2:]:
                info = await rdzv.next_rendezvous()
                if info.world_size != nodes:
                    raise RuntimeError(f"a world of {info.world_size}; expected {nodes}")
                await stage.arrive()

    seconds = []
    async with anyio.create_task_group() as tasks:
        for _ in range(nodes):
            tasks.start_soon(member)
        for stage, following in itertools.pairwise(stages):
            await stage.all_arrived()
            began = stage.release()
            seconds.append(await following.all_arrived() - began)
            counts.append(_counts(counter))
        stages[-1].release()
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
    run_id = _new_run("lose")
    met, told, again = Stage(nodes - 1), Stage(nodes - 1), Stage(nodes - 1)
    told.release()
    more = {"max_nodes": nodes, "disconnect_grace": grace}

    async def survivor() -> None:
        async with _open(url, options, run_id, nodes - 1, **more) as rdzv:
            await rdzv.next_rendezvous()
            await met.arrive()
            async for change in rdzv.changes():
                if isinstance(change, ar.NodeLost):
                    await told.arrive()
                    break
            info = await rdzv.next_rendezvous()
            if info.world_size != nodes - 1:
                raise RuntimeError(f"a world of {info.world_size}; expected {nodes - 1}")
            await again.arrive()

    arguments = [url, json.dumps({**options, **more}), VICTIM, run_id, str(nodes - 1)]
    command = [sys.executable, "-m", "benchmarks.processes.members", *arguments]
    victim = await anyio.open_process(command, stdout=None, stderr=None)
    async with victim, anyio.create_task_group() as tasks:
        for _ in range(nodes - 1):
            tasks.start_soon(survivor)
        await met.all_arrived()
        began = met.release()
        victim.send_signal(signal.SIGKILL)
        seconds = [await stage.all_arrived() - began for stage in (told, again)]
        again.release()
        await victim.wait()
    return dict(zip(("told", "again"), seconds, strict=True))


async def be_killed(url: str, options: dict[str, Any], run_id: str, nodes: int) -> None:
    """Meets the others, and waits for the end of this process."""
    async with _open(url, options, run_id, nodes) as rdzv:
        await rdzv.next_rendezvous()
        await anyio.sleep_forever()


async def idle(url: str, options: dict[str, Any], request: Answer) -> Answer:
    """Lets members meet and hold their places; returns what that costs the server and, apart, the members."""
    run_id = _new_run("idle")
    nodes, seconds, interval = request["nodes"], request["seconds"], request["interval"]
    met = Stage(nodes)
    before, server_before = resident(), resident(request["server"])

    async def member() -> None:
        async with _open(url, options, run_id, nodes, keep_alive_interval=interval) as rdzv:
            await rdzv.next_rendezvous()
            await met.arrive()

    async with anyio.create_task_group() as tasks:
        for _ in range(nodes):
            tasks.start_soon(member)
        await met.all_arrived()
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
        met.release()
    return answer


async def use_store(url: str, options: dict[str, Any], request: Answer) -> Answer:
    """Gets and sets 32 bytes many times; returns the seconds of one operation, for each of the ``kinds``.

    A kind has ``get`` or ``set``, and how many operations are in flight at once. The store is that of a round
    of one member, or with a ``port`` in the request the TCPStore there.
    """
    seconds = {}
    async with _store(url, options, request["port"]) as store:
        for kind, (operation, in_flight) in request["kinds"].items():
            each = max(1, request["operations"] // in_flight)
            keys = [f"key{number}" for number in range(in_flight)]
            await store.multi_set(keys, [VALUE] * in_flight)
            work = partial(set_often if operation == "set" else get_often, store, each)
            began = time.perf_counter()
            async with anyio.create_task_group() as tasks:
                for key in keys:
                    tasks.start_soon(work, key)
            seconds[kind] = (time.perf_counter() - began) / (each * in_flight)
    return seconds


async def set_often(store: Any, count: int, key: str) -> None:
    """Sets a key, again and again."""
    for _ in range(count):
        await store.set(key, VALUE)


async def get_often(store: Any, count: int, key: str) -> None:
    """Gets a key, again and again."""
    for _ in range(count):
        await store.get(key)


@asynccontextmanager
async def _store(url: str, options: dict[str, Any], port: int) -> AsyncIterator[Any]:
    if port:
        async with ar.TcpStore("127.0.0.1", port) as store:
            yield store
    else:
        async with _open(url, options, _new_run("store"), 1) as rdzv:
            yield (await rdzv.next_rendezvous()).store


async def measure(url: str, options: dict[str, Any], request: Answer) -> Answer:
    """Does what is requested; returns what it took."""
    match request["do"]:
        case "lose":
            return await lose_one(url, options, request["nodes"], request["grace"])
        case "idle":
            return await idle(url, options, request)
        case "store":
            return await use_store(url, options, request)
        case _:
            return await meet(url, options, request["nodes"], request.get("counter", 0))


def main() -> None:
    """Answers requests until stdin ends.

    Arguments: the URL, more options as JSON, and the event loop; or, to be the member that is killed,
    ``victim``, the run, and the least number of nodes.
    """
    raise_open_files()
    url, options, loop, *rest = sys.argv[1], json.loads(sys.argv[2]), *sys.argv[3:]
    if loop == VICTIM:
        anyio.run(be_killed, url, options, rest[0], int(rest[1]))
        return
    facts = {"package": PACKAGE}
    packages = ("arendezvous", "uvloop", "anyio")
    with runner(loop) as loop_runner:
        serve_requests(lambda request: loop_runner.run(measure(url, options, request)), packages, facts)


if __name__ == "__main__":
    main()

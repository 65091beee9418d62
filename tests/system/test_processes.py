"""Real processes that are killed, stopped and started: the survivors are told, and meet again."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

import arendezvous as ar
from arendezvous.backends.tcp.session import SessionBackend
from arendezvous.law.operations import Close, Join
from arendezvous.law.state import NodeDesc, RunSettings
from tests.kit import ROOT
from tests.kit.process_kit import ended, send_signal
from tests.kit.waiting import until_seen

QUICK = RunSettings(2, 2, keep_alive_interval=0.5, keep_alive_max_attempt=6)
QUICK_NODE = {"interval": QUICK.keep_alive_interval, "attempts": QUICK.keep_alive_max_attempt}
SERVER = """
import asyncio, sys
import arendezvous as ar

async def main():
    async with ar.serve(sys.argv[1]) as server:
        print(server.tcp_url, flush=True)
        await asyncio.get_running_loop().create_future()

asyncio.run(main())
"""


class Child:
    """A process that says what happens to it, line by line."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.said: list[dict[str, Any]] = []

    def signal(self, number: signal.Signals) -> None:
        send_signal(self.process, number)

    async def line(self) -> str:
        assert self.process.stdout is not None
        with anyio.fail_after(120):
            return (await self.process.stdout.readline()).decode().strip()

    async def says(self, what: str) -> dict[str, Any]:
        """Waits until it says `what`, and returns all that it says of it."""
        while True:
            line = await self.line()
            assert line, f"the process ended instead of saying {what!r}; it said {self.said}"
            self.said.append(json.loads(line))
            if self.said[-1]["what"] == what:
                return self.said[-1]

    async def status(self) -> int:
        with anyio.fail_after(120):
            return await self.process.wait()


@asynccontextmanager
async def started(*command: str) -> AsyncIterator[Child]:
    """Runs Python with `command`; kills it in the end if need be."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = await asyncio.create_subprocess_exec(sys.executable, *command, stdout=PIPE, env=environment)
    async with ended(process):
        yield Child(process)


def node(url: str, name: str, **options: float) -> Any:
    settings = (f"--{key.replace('_', '-')}={value}" for key, value in options.items())
    return started(str(ROOT / "tests" / "kit" / "node_process.py"), url, name, *settings)


async def sizes(*children: Child) -> set[tuple[int, int]]:
    """Waits until each is a member again, and returns the rounds and world sizes."""
    said = [await child.says("member") for child in children]
    assert sorted(one["rank"] for one in said) == list(range(len(said)))
    return {(one["round"], one["world_size"]) for one in said}


async def test_survivors_are_told_of_a_killed_member_and_meet_again_without_it() -> None:
    shape = {"min": 2, "max": 3, "last_call": 120, "grace": 0.2}
    async with (
        ar.serve("127.0.0.1:0") as server,
        node(server.tcp_url, "a", **shape) as a,
        node(server.tcp_url, "b", **shape) as b,
        node(server.tcp_url, "c", **shape) as c,
    ):
        assert await sizes(a, b, c) == {(0, 3)}
        c.signal(signal.SIGKILL)
        for child in (a, b):
            lost = await child.says("NodeLost")
            assert (lost["node"], lost["cause"]) == ("c", "Cause.CONNECTION_LOST")
            assert lost["text"] == "c is lost: its connection broke and did not come back within 0.2 s"
        assert await sizes(a, b) == {(1, 2)}


async def test_a_stopped_member_is_expired_and_told_when_it_goes_on() -> None:
    async with (
        ar.serve("127.0.0.1:0") as server,
        node(server.tcp_url, "a", **QUICK_NODE) as a,
        node(server.tcp_url, "b", **QUICK_NODE) as b,
    ):
        assert await sizes(a, b) == {(0, 2)}
        b.signal(signal.SIGSTOP)
        lost = await a.says("NodeLost")
        assert (lost["node"], lost["cause"]) == ("b", "Cause.NO_HEARTBEAT")
        b.signal(signal.SIGCONT)
        evicted = await b.says("Evicted")
        assert evicted["cause"] == "Cause.NO_HEARTBEAT"


async def test_nobody_is_dropped_by_a_server_that_was_stopped_for_longer_than_the_expiry() -> None:
    async with started("-c", SERVER, "127.0.0.1:0") as server:
        url = await server.line()
        host, port = url.removeprefix("tcp://").split(":")
        async with (
            node(url, "a", **QUICK_NODE) as a,
            node(url, "b", **QUICK_NODE) as b,
            SessionBackend(host, int(port), "job") as backend,
            SessionBackend(host, int(port), "job", read_timeout=QUICK.expiry + 1) as impatient,
        ):
            assert await sizes(a, b) == {(0, 2)}
            server.signal(signal.SIGSTOP)
            with pytest.raises(ar.RendezvousConnectionError):
                await impatient.status()
            server.signal(signal.SIGCONT)
            begin = await backend.status()
            await until_a_silent_node_is_expired(host, int(port))
            status = await backend.status()
            for one in (begin, status):
                assert sorted(member.desc.name for member in one.nodes) == ["a", "b"]
            assert (status.round, status.complete, status.departed) == (0, True, ())


async def until_a_silent_node_is_expired(host: str, port: int) -> None:
    """Returns when whoever was silent for long enough at the beginning has been expired."""
    async with SessionBackend(host, port, "another job") as backend:
        await backend.propose(Join(NodeDesc("silent"), QUICK))
        gone = await until_seen(backend.status, lambda status: status.departed)
        assert [node.cause for node in gone.departed] == [ar.Cause.NO_HEARTBEAT]


async def test_a_member_that_is_terminated_leaves_at_once_and_ends_with_status_0() -> None:
    async with (
        ar.serve("127.0.0.1:0") as server,
        node(server.tcp_url, "a") as a,
        node(server.tcp_url, "b") as b,
    ):
        assert await sizes(a, b) == {(0, 2)}
        b.signal(signal.SIGTERM)
        left = await a.says("NodeLeft")
        assert (left["node"], left["cause"]) == ("b", "Cause.CANCELLED")
        assert await b.status() == 0


async def test_of_two_processes_that_start_at_once_one_hosts_and_the_other_connects(free_port: int) -> None:
    url = f"tcp://127.0.0.1:{free_port}"
    async with node(url, "a") as a, node(url, "b") as b:
        assert await sizes(a, b) == {(0, 2)}


async def test_clocks_that_are_off_by_an_hour_make_no_difference() -> None:
    async with (
        ar.serve("127.0.0.1:0") as server,
        node(server.tcp_url, "a", skew=3600, **QUICK_NODE) as a,
        node(server.tcp_url, "b", skew=-3600, **QUICK_NODE) as b,
    ):
        assert await sizes(a, b) == {(0, 2)}
        await until_a_silent_node_is_expired(server.host, server.port)
        async with SessionBackend(server.host, server.port, "job") as backend:
            status = await backend.status()
        assert (len(status.nodes), status.departed) == (2, ())
        assert all(0 <= member.heartbeat_age < 60 for member in status.nodes)


async def test_a_spare_is_promoted_when_a_member_dies_and_exits_gracefully_when_the_run_is_closed() -> None:
    async with (
        ar.serve("127.0.0.1:0") as server,
        SessionBackend(server.host, server.port, "job") as backend,
        node(server.tcp_url, "a", grace=0.1) as a,
        node(server.tcp_url, "b", grace=0.1) as b,
    ):
        assert await sizes(a, b) == {(0, 2)}
        async with node(server.tcp_url, "c", grace=0.1) as c, node(server.tcp_url, "d", grace=0.1) as d:
            await until_complete(backend, 4)
            a.signal(signal.SIGKILL)
            await b.says("NodeLost")
            await b.says("member")
            status = await until_complete(backend, 3)
            promoted = ({one.desc.name for one in status.nodes if one.rank >= 0} - {"b"}).pop()
            member, spare = (c, d) if promoted == "c" else (d, c)
            assert (await member.says("member"))["round"] == 1
            await backend.propose(Close("operator", "the job is done"))
            exited = await spare.says("graceful exit")
            assert "was a spare and is not needed: the run was closed by operator" in exited["text"]
            assert await spare.status() == 0
            assert "the job is done" in (await member.says("Closed"))["text"]


async def until_complete(backend: SessionBackend, count: int) -> ar.RunStatus:
    """Waits until so many nodes are in the run, and its round is complete."""
    return await until_seen(backend.status, lambda status: len(status.nodes) == count and status.complete)


async def test_three_hundred_members_in_one_loop_need_no_thread() -> None:
    before = set(threading.enumerate())
    async with ar.serve("127.0.0.1:0") as server, anyio.create_task_group() as tasks:
        done, met = anyio.Event(), anyio.Event()
        ranks: list[int] = []

        async def member(number: int) -> None:
            async with ar.open_rendezvous(
                server.tcp_url, run_id="job", min_nodes=300, node=f"n{number}"
            ) as rdzv:
                ranks.append((await rdzv.next_rendezvous()).rank)
                if len(ranks) == 300:
                    met.set()
                await done.wait()

        for number in range(300):
            tasks.start_soon(member, number)
        with anyio.fail_after(120):
            await met.wait()
        assert sorted(ranks) == list(range(300))
        assert set(threading.enumerate()) <= before
        done.set()


async def test_when_the_node_that_hosts_the_server_dies_another_takes_its_place(free_port: int) -> None:
    url = f"tcp://127.0.0.1:{free_port}"
    shape = {"min": 2, "max": 3, "last_call": 120, "grace": 4}
    async with node(url, "host", **shape) as host:
        await host.says("open")
        async with node(url, "b", **shape) as b, node(url, "c", **shape) as c:
            assert await sizes(host, b, c) == {(0, 3)}
            host.signal(signal.SIGKILL)
            for child in (b, c):
                lost = await child.says("NodeLost")
                assert "did not come back after the coordinator had been restarted" in lost["text"]
            assert await sizes(b, c) == {(1, 2)}
            async with node(url, "d", **shape) as d:
                assert (await b.says("NodesWaiting"))["count"] == 1
                assert await sizes(b, c, d) == {(2, 3)}

"""Whatever fails, nodes are never told of two worlds: real processes, a real etcd, and a checker."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest

from arendezvous.directory.etcd import EtcdDirectory
from arendezvous.errors import RendezvousError
from tests.kit import ROOT
from tests.kit.etcd_server import RealEtcd, serve_etcd
from tests.kit.nemesis_kit import MOST, Entry, faults, read_log
from tests.kit.ports import held_ports
from tests.kit.waiting import until

SEED = 14
GOOD: dict[str, list[Entry]] = {
    node: [
        {"incarnation": 1, "round": number, "rank": rank, "world_size": 2, "digest": f"d{number}"}
        for number in range(3)
    ]
    for rank, node in enumerate("ab")
}


def damaged(node: str, index: int, **changes: Any) -> dict[str, list[Entry]]:
    logs = {name: list(entries) for name, entries in GOOD.items()}
    logs[node][index] = {**logs[node][index], **changes}
    return logs


def test_the_checker_finds_nothing_in_good_logs() -> None:
    assert faults(GOOD) == []


@pytest.mark.parametrize(
    ("logs", "said"),
    [
        (damaged("a", 2, round=1), "a is told of round (1, 1) after (1, 1)"),
        (damaged("a", 1, digest="other"), "round (1, 1) has 2 member lists"),
        (damaged("b", 1, rank=0), "rank (1, 1, 0) is held by ['a', 'b']"),
        (damaged("b", 0, rank=2), "b has rank 2 of 2"),
    ],
)
def test_the_checker_finds_what_is_wrong(logs: dict[str, list[Entry]], said: str) -> None:
    assert said in faults(logs)


class Servers:
    """Three servers of one fleet, in processes of their own, at ports that stay theirs."""

    def __init__(self, etcd: RealEtcd, ports: tuple[int, ...]) -> None:
        self.etcd = etcd
        self.ports = ports
        self.processes: dict[int, Process] = {}

    async def start(self, port: int) -> None:
        http = str(self.ports[self.ports.index(port) + 3])
        hosts = ",".join(url.removeprefix("http://") for url in self.etcd.urls)
        command = ["serve", "--port", str(port), "--http-port", http, "--etcd", hosts]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "arendezvous", *command, stdout=PIPE, cwd=ROOT
        )
        self.processes[port] = process
        assert process.stdout is not None
        await process.stdout.readline()

    def end(self) -> None:
        for process in self.processes.values():
            if process.returncode is None:
                process.kill()

    async def leader(self) -> int:
        """The port of the one that leads, once one does."""
        async with EtcdDirectory(self.etcd.urls) as directory:
            while True:
                with suppress(RendezvousError):
                    leader = await directory.leader() or await directory.changed(None)
                    if leader is not None:
                        return int(leader.tcp.rpartition(":")[2])

    async def kill_the_leader(self) -> None:
        port = await self.leader()
        self.processes[port].kill()
        await self.processes[port].wait()
        await anyio.sleep(random.uniform(0, 4))
        await self.start(port)

    async def end_the_leader(self) -> None:
        port = await self.leader()
        self.processes[port].terminate()
        await self.processes[port].wait()
        await self.start(port)

    async def freeze_the_leader(self) -> None:
        process = self.processes[await self.leader()]
        process.send_signal(signal.SIGSTOP)
        await anyio.sleep(random.uniform(1, 6))
        process.send_signal(signal.SIGCONT)

    async def kill_the_leader_of_etcd(self) -> None:
        member = await self.etcd.leader()
        member.kill()
        await anyio.sleep(random.uniform(0, 2))
        member.start()

    async def take_the_quorum(self) -> None:
        for member in self.etcd.members[1:]:
            member.kill()
        await anyio.sleep(random.uniform(1, 5))
        for member in self.etcd.members[1:]:
            member.start()


class Nodes:
    """Nodes in processes of their own, with their logs.

    Args:
        urls: Where they meet, by turns.
        directory: Where they write their logs.
        environment: Variables of their environment.
    """

    def __init__(self, urls: Sequence[str], directory: Path, environment: Mapping[str, str] = {}) -> None:
        self.urls = urls
        self.logs = {f"node{number}": directory / f"node{number}" for number in range(MOST)}
        self.processes: dict[str, Process] = {}
        self._environment = {**os.environ, **environment}

    async def start(self, name: str) -> None:
        url = self.urls[list(self.logs).index(name) % len(self.urls)]
        self.processes[name] = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.kit.nemesis_kit", url, name, str(self.logs[name]),
            stdin=PIPE, stderr=DEVNULL, cwd=ROOT, env=self._environment,
        )  # fmt: skip

    async def end(self) -> None:
        for process in self.processes.values():
            process.kill()
            await process.wait()

    async def kill(self, name: str) -> None:
        self.processes[name].kill()
        await self.processes[name].wait()
        await anyio.sleep(random.uniform(0, 3))
        await self.start(name)

    async def freeze(self, name: str) -> None:
        self.processes[name].send_signal(signal.SIGSTOP)
        await anyio.sleep(random.uniform(1, 6))
        self.processes[name].send_signal(signal.SIGCONT)

    def read(self) -> dict[str, list[Entry]]:
        return {name: read_log(log) for name, log in self.logs.items()}

    async def get_on(self) -> None:
        """Returns once each of them was told of another round."""
        before = self.read()
        await until(lambda: all(len(log) > len(before[name]) for name, log in self.read().items()))


@asynccontextmanager
async def meeting(
    urls: Sequence[str], directory: Path, environment: Mapping[str, str] = {}
) -> AsyncIterator[Nodes]:
    """Nodes that meet, once each was told of a round; in the end the checker looks at their logs."""
    nodes = Nodes(urls, directory, environment)
    try:
        for name in nodes.logs:
            await nodes.start(name)
        with anyio.fail_after(600):
            await nodes.get_on()
            yield nodes
    finally:
        await nodes.end()
    assert faults(nodes.read()) == []


async def test_nodes_of_a_fleet_under_attack_are_never_told_of_two_worlds(tmp_path: Path) -> None:
    random.seed(SEED)
    async with serve_etcd(3) as etcd, AsyncExitStack() as stack:
        ports = tuple(stack.enter_context(held_ports(6)))
        servers = Servers(etcd, ports)
        stack.callback(servers.end)
        for port in ports[:3]:
            await servers.start(port)
        tcp, http = (",".join(f"127.0.0.1:{port}" for port in each) for each in (ports[:3], ports[3:]))
        async with meeting([f"tcp://{tcp}", f"http://{http}"], tmp_path) as nodes:
            for attack in (
                servers.kill_the_leader, servers.end_the_leader, servers.freeze_the_leader,
                servers.kill_the_leader_of_etcd, servers.take_the_quorum,
            ):  # fmt: skip
                await attack()
                await nodes.get_on()


async def test_nodes_that_serve_each_other_by_etcd_are_never_told_of_two_worlds(tmp_path: Path) -> None:
    random.seed(SEED)
    async with serve_etcd(3) as etcd:
        servers = Servers(etcd, ())
        url = "etcd://" + ",".join(url.removeprefix("http://") for url in etcd.urls)
        async with meeting([url], tmp_path, {"_ARENDEZVOUS_ETCD_ELECTED": "1"}) as nodes:
            for name in nodes.logs:  # one of them leads, and after it another one
                await (nodes.kill if random.random() < 0.5 else nodes.freeze)(name)
                await nodes.get_on()
            for attack in (servers.kill_the_leader_of_etcd, servers.take_the_quorum):
                await attack()
                await nodes.get_on()

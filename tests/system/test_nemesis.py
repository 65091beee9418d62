"""Whatever fails, nodes are never told of two worlds: real processes, a real etcd, and a checker."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import anyio
import pytest

import arendezvous as ar
from arendezvous.directory.etcd import EtcdDirectory
from arendezvous.errors import RendezvousError
from tests.kit import ROOT
from tests.kit.agreed import CORRUPTIONS, faults
from tests.kit.etcd_server import RealEtcd, serve_etcd
from tests.kit.nemesis_kit import NAMES, QUEUE, Entry, log_of, ranks, read_log
from tests.kit.networks import NETWORKS, Networks, connected, may_have_networks
from tests.kit.ports import held_ports
from tests.kit.process_kit import ended
from tests.kit.waiting import until

SEED = 14
SECONDS = float(os.environ.get("ARENDEZVOUS_NEMESIS_SECONDS", "0"))  # 0: each attack once


def good() -> dict[str, list[Entry]]:
    """Logs of two nodes that meet three times, and use the store."""
    logs: dict[str, list[Entry]] = {}
    for rank, node in enumerate("ab"):
        log = logs[node] = []
        for number in range(3):
            at = 10.0 * number + rank
            told = {"incarnation": 1, "round": number, "rank": rank, "world_size": 2, "digest": f"d{number}"}
            value = f"{node}.{number}"
            log += [
                {"what": "rank", "at": at, **told},
                {"what": "wrote", "at": at + 2, "key": node, "value": number + 1, "sure": False},
                {"what": "wrote", "at": at + 3, "key": node, "value": number + 1, "sure": True},
                {"what": "read", "at": at + 5, "key": node, "value": number + 1, "begun": at + 4},
                {"what": "pushed", "at": at + 6, "value": value, "sure": True},
                {"what": "popping", "at": at + 7},
                {"what": "popped", "at": at + 8, "value": value if number else ""},
            ]
    return logs


LEFT = ["a.0", "b.0"]


def test_the_checker_finds_nothing_in_good_logs() -> None:
    assert faults(log_of(good(), LEFT)) == []


@pytest.mark.parametrize(
    ("node", "index", "changes", "said"),
    [
        ("a", 14, {"round": 1}, "a falls back from (1, 1) to (1, 1)"),
        ("a", 7, {"digest": "other"}, "round (1, 1) has several member lists"),
        ("b", 7, {"rank": 0}, "round (1, 1) has the ranks [0] twice"),
        ("b", 0, {"rank": 2}, "round (1, 0) has ranks that there cannot be"),
        ("a", 10, {"value": 1}, "a is 1, but 2 was there"),
        ("a", 13, {"value": "b.1"}, "'b.1' came out of the queue 2 times"),
        ("a", 13, {"value": ""}, "1 values are lost"),
        ("a", 13, {"value": "x"}, "'x' came out of the queue, and was never pushed"),
    ],
)
def test_the_checker_finds_what_is_wrong(node: str, index: int, changes: Entry, said: str) -> None:
    logs = good()
    logs[node][index] = {**logs[node][index], **changes}
    assert any(said in fault for fault in faults(log_of(logs, LEFT)))


def test_a_pop_without_an_answer_may_have_taken_a_value() -> None:
    logs = good()
    del logs["a"][13]
    assert faults(log_of(logs, LEFT)) == []


class Servers:
    """Servers of one fleet, in processes of their own, at addresses that stay theirs.

    Args:
        etcd: What they have in common.
        places: Where they are: host, port, and port of HTTP.
        networks: With a namespace for each of them; None: they are in this one.
    """

    def __init__(
        self, etcd: RealEtcd, places: Sequence[tuple[str, int, int]] = (), networks: Networks | None = None
    ) -> None:
        self.etcd = etcd
        self.places = {f"{host}:{port}": (host, port, http) for host, port, http in places}
        self.processes: dict[str, Process] = {}
        self._spaces = dict(zip(self.places, networks.namespaces if networks else (), strict=False))

    @property
    def urls(self) -> list[str]:
        """Where nodes find them: one URL over tcp, and one over http."""
        tcp = ",".join(self.places)
        http = ",".join(f"{host}:{port}" for host, _, port in self.places.values())
        return [f"tcp://{tcp}", f"http://{http}"]

    async def start(self, place: str) -> None:
        host, port, http = self.places[place]
        hosts = ",".join(url.removeprefix("http://") for url in self.etcd.urls)
        command = ["serve", "--host", host, "--insecure", "--port", str(port), "--http-port", str(http)]
        inside = self._spaces[place].command if self._spaces else ()
        process = await asyncio.create_subprocess_exec(
            *inside, sys.executable, "-m", "arendezvous", *command, "--etcd", hosts, stdout=PIPE, cwd=ROOT
        )
        self.processes[place] = process
        assert process.stdout is not None
        await process.stdout.readline()

    async def end(self) -> None:
        for process in self.processes.values():
            async with ended(process):
                pass

    async def leader(self) -> str:
        """The place of the one that leads, once one does."""
        async with EtcdDirectory(self.etcd.urls) as directory:
            while True:
                with suppress(RendezvousError):
                    leader = await directory.leader() or await directory.changed(None)
                    if leader is not None:
                        return leader.tcp.removeprefix("tcp://")

    async def kill_the_leader(self) -> None:
        place = await self.leader()
        self.processes[place].kill()
        await self.processes[place].wait()
        await anyio.sleep(random.uniform(0, 4))
        await self.start(place)

    async def end_the_leader(self) -> None:
        place = await self.leader()
        self.processes[place].terminate()
        await self.processes[place].wait()
        await self.start(place)

    async def freeze_the_leader(self) -> None:
        process = self.processes[await self.leader()]
        process.send_signal(signal.SIGSTOP)
        await anyio.sleep(random.uniform(1, 6) if not SECONDS else random.uniform(1, 10))
        process.send_signal(signal.SIGCONT)

    async def cut_the_leader_off(self, *networks: str) -> None:
        space = self._spaces[await self.leader()]
        space.cut(*networks)
        await anyio.sleep(random.uniform(1, 8))
        space.mend(*networks)

    async def kill_the_leader_of_etcd(self) -> None:
        member = await self.etcd.leader()
        member.kill()
        await anyio.sleep(random.uniform(0, 2))
        member.start()

    async def take_the_quorum(self) -> None:
        for member in self.etcd.members[1:]:
            member.kill()
        await anyio.sleep(random.uniform(1, 5) if not SECONDS else random.uniform(1, 20))
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
        self.logs = {name: directory / name for name in NAMES}
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
            async with ended(process):
                pass

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
        await until(
            lambda: all(len(ranks(log)) > len(ranks(before[name])) for name, log in self.read().items())
        )


@asynccontextmanager
async def meeting(
    urls: Sequence[str], directory: Path, environment: Mapping[str, str] = {}
) -> AsyncIterator[Nodes]:
    """Nodes that meet, once each was told of a round; in the end the checker looks at their logs.

    It finds something in each log that is made of theirs as a broken server would have it.
    """
    nodes = Nodes(urls, directory, environment)
    try:
        for name in nodes.logs:
            await nodes.start(name)
        with anyio.fail_after(600):
            await nodes.get_on()
        yield nodes
    finally:
        await nodes.end()
    log = log_of(nodes.read(), await what_is_left(urls[0]))
    assert faults(log) == []
    for corrupt in CORRUPTIONS:
        assert faults(corrupt(log)), f"nobody noticed that {corrupt.__name__}"


async def what_is_left(url: str) -> list[str]:
    """Empties the queue."""
    left: list[str] = []
    async with ar.open_rendezvous(url, run_id="looker", min_nodes=1) as rdzv:
        assert isinstance(rdzv, ar.DynamicRendezvousHandler)
        store = rdzv._backend.store
        assert store is not None
        with suppress(ar.StoreQueueEmptyError):
            while True:
                left.append((await store.queue_pop(QUEUE, block=False)).decode())
    return left


async def under(attacks: Sequence[Callable[[], Awaitable[None]]], nodes: Nodes) -> None:
    """Has each attack happen, in any order, or any of them for so long; nodes get on after each."""
    end = anyio.current_time() + SECONDS
    left = random.sample(attacks, len(attacks))
    while left or anyio.current_time() < end:
        attack = left.pop() if left else random.choice(attacks)
        sys.stderr.write(f"{attack}\n")
        await attack()
        await nodes.get_on()


async def fleet(stack: AsyncExitStack, etcd: RealEtcd, networks: Networks | None = None) -> Servers:
    """Starts three servers, each in a namespace of its own if there are `networks`."""
    if networks is None:
        ports = stack.enter_context(held_ports(6))
        servers = Servers(etcd, [("127.0.0.1", *pair) for pair in zip(ports[:3], ports[3:], strict=True)])
    else:
        places = [(space.addresses["nodes"], 29400, 29401) for space in networks.namespaces]
        servers = Servers(etcd, places, networks)
    stack.push_async_callback(servers.end)
    for place in servers.places:
        await servers.start(place)
    return servers


def attacks_on(servers: Servers) -> list[Callable[[], Awaitable[None]]]:
    return [
        servers.kill_the_leader, servers.end_the_leader, servers.freeze_the_leader,
        servers.kill_the_leader_of_etcd, servers.take_the_quorum,
    ]  # fmt: skip


async def test_nodes_of_a_fleet_under_attack_are_never_told_of_two_worlds(tmp_path: Path) -> None:
    random.seed(SEED)
    async with serve_etcd(3) as etcd, AsyncExitStack() as stack:
        servers = await fleet(stack, etcd)
        async with meeting(servers.urls, tmp_path) as nodes:
            await under(attacks_on(servers), nodes)


async def test_nodes_of_a_fleet_that_is_cut_off_are_never_told_of_two_worlds(tmp_path: Path) -> None:
    if not may_have_networks():
        pytest.skip("only root may have networks of its own")
    random.seed(SEED)
    async with AsyncExitStack() as stack:
        networks = stack.enter_context(connected(3))
        etcd = await stack.enter_async_context(serve_etcd(3, host=networks.addresses["etcd"]))
        servers = await fleet(stack, etcd, networks)
        cuts = [partial(servers.cut_the_leader_off, *which) for which in (["etcd"], ["nodes"], NETWORKS)]
        async with meeting(servers.urls, tmp_path) as nodes:
            await under([*cuts, *(attacks_on(servers) if SECONDS else ())], nodes)


async def test_nodes_that_serve_each_other_by_etcd_are_never_told_of_two_worlds(tmp_path: Path) -> None:
    random.seed(SEED)
    async with serve_etcd(3) as etcd:
        servers = Servers(etcd)
        url = "etcd://" + ",".join(url.removeprefix("http://") for url in etcd.urls)
        async with meeting([url], tmp_path) as nodes:
            on_nodes = [
                partial(nodes.kill if random.random() < 0.5 else nodes.freeze, name) for name in nodes.logs
            ]  # one of them leads, and after it another one
            await under([*on_nodes, servers.kill_the_leader_of_etcd, servers.take_the_quorum], nodes)

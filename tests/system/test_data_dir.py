"""A server with a directory is killed again and again, and of what it has told nothing is ever taken back."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest

import arendezvous as ar
from arendezvous.cli.exits import ExitCode
from arendezvous.stores.http.store import HttpStore
from arendezvous.stores.tcp.store import TcpStore
from tests.kit import ROOT
from tests.kit.agreed import CORRUPTIONS, Log, Popped, Pushed, Rank, Read, Told, Wrote, faults
from tests.kit.cli_kit import run
from tests.kit.ports import held_ports
from tests.kit.process_kit import ended, send_signal
from tests.kit.waiting import until

SECONDS = float(os.environ.get("ARENDEZVOUS_KILL_SECONDS", "5"))
NODES = 16
UNKNOWN = (ar.RendezvousConnectionError, ar.StoreError)


@asynccontextmanager
async def served(ports: list[int], directory: Path) -> AsyncIterator[Process]:
    """A server in a process of its own, on two ports."""
    where = ["--port", str(ports[0]), "--http-port", str(ports[1]), "--data-dir", str(directory)]
    command = ["-m", "arendezvous", "serve", *where]
    process = await asyncio.create_subprocess_exec(sys.executable, *command, stdout=PIPE, cwd=ROOT)
    async with ended(process):
        assert process.stdout is not None
        with anyio.fail_after(60):
            line = await process.stdout.readline()
        assert line.startswith(b"serving"), line
        yield process


class Node:
    """Meets the others, writes its key, reads another's, pushes and pops; and notes what it is told.

    Half of the nodes do so over HTTP.
    """

    def __init__(self, name: str, ports: list[int], log: Log, names: list[str]) -> None:
        self.name = name
        self.rounds = 0
        over_http = names.index(name) % 2
        self._url = f"{('tcp', 'http')[over_http]}://127.0.0.1:{ports[over_http]}"
        self._log = log
        self._names = names
        self._count = 0

    async def live(self) -> None:
        options: dict[str, Any] = {"disconnect_grace": 20.0, "keep_alive_interval": 20.0}
        if self._url.startswith("tcp"):
            options["is_host"] = False
        async with (
            ar.open_rendezvous(self._url, run_id="job", min_nodes=NODES, node=self.name, **options) as rdzv,
            store_of(self._url) as store,
        ):
            while True:
                info = await rdzv.next_rendezvous()
                rank = (info.incarnation, info.round, info.rank, info.world_size, info.digest)
                self._note(Rank(self.name, *rank))
                self.rounds += 1
                for _ in range(5):
                    await self._use(store)

    async def _use(self, store: TcpStore | HttpStore) -> None:
        self._count += 1
        key, value = f"key/{self.name}", f"{self.name}.{self._count}"
        self._note(Wrote(key, self._count, sure=False))
        if await known(store.set(key, str(self._count))):
            self._note(Wrote(key, self._count, sure=True))
        other, begun = f"key/{random.choice(self._names)}", len(self._log.told)
        with suppress(*UNKNOWN):
            if await store.check([other]):
                self._note(Read(other, int(await store.get(other)), begun))
        sure = False
        try:
            sure = await known(store.queue_push("queue", value))
        finally:  # cancelled, it may have been pushed, too
            self._note(Pushed(value, sure=sure))
        if random.random() < 0.8:
            try:
                self._note(Popped((await store.queue_pop("queue", block=False)).decode()))
            except ar.StoreQueueEmptyError:
                pass
            except UNKNOWN:
                self._note(Popped(None))

    def _note(self, told: Told) -> None:
        self._log.told.append(told)


def store_of(url: str) -> TcpStore | HttpStore:
    if url.startswith("http"):
        return HttpStore(url, read_timeout=20.0)
    return TcpStore("127.0.0.1", int(url.rpartition(":")[2]), read_timeout=20.0)


async def known(operation: Awaitable[object]) -> bool:
    """Whether an operation was carried out for sure."""
    try:
        await operation
    except UNKNOWN:
        return False
    return True


async def kill_again_and_again(ports: list[int], directory: Path, seconds: float, log: Log) -> list[Node]:
    """Has nodes live while the server is killed about once a second; returns them."""
    random.seed(11)
    names = [f"n{number:02}" for number in range(NODES)]
    nodes = [Node(name, ports, log, names) for name in names]
    async with AsyncExitStack() as last, anyio.create_task_group() as tasks:
        for node in nodes:
            tasks.start_soon(node.live)
        end = anyio.current_time() + seconds
        while anyio.current_time() < end:
            async with served(ports, directory) as process:
                await anyio.sleep(random.uniform(0.4, 0.9))
                send_signal(process, signal.SIGKILL)
        await last.enter_async_context(served(ports, directory))
        rounds = [node.rounds for node in nodes]
        await until(lambda: all(node.rounds > n + 1 for node, n in zip(nodes, rounds, strict=True)))
        tasks.cancel_scope.cancel()
    return nodes


@pytest.fixture
def ports() -> Iterator[list[int]]:
    with held_ports(2) as held:
        yield held


async def test_nothing_that_was_told_is_taken_back_however_often_the_server_is_killed(
    ports: list[int], tmp_path: Path
) -> None:
    log = Log()
    nodes = await kill_again_and_again(ports, tmp_path / "data", SECONDS, log)
    async with served(ports, tmp_path / "data"), TcpStore("127.0.0.1", ports[0]) as store:
        while await store.queue_len("queue"):
            log.left.append((await store.queue_pop("queue", block=False)).decode())
        for node in nodes:
            begun = len(log.told)
            log.told.append(Read(f"key/{node.name}", int(await store.get(f"key/{node.name}")), begun))
    assert faults(log) == []
    assert min(node.rounds for node in nodes) > 3
    kinds = (Wrote, Read, Pushed, Popped)
    told = {kind: sum(isinstance(one, kind) for one in log.told) for kind in kinds}
    assert min(told.values()) > 50, told
    for corrupt in CORRUPTIONS:
        assert faults(corrupt(log)), f"nobody noticed that {corrupt.__name__}"


async def test_a_directory_that_a_server_has_is_refused_to_another(ports: list[int], tmp_path: Path) -> None:
    async with served(ports, tmp_path) as first:
        done = await run("serve", "--port", "0", "--data-dir", str(tmp_path))
        assert done.code == ExitCode.FAILED
        assert f'another server has {tmp_path}: {{"pid": {first.pid}, "host": ' in done.err
        assert "stop that one, or use another directory" in done.err


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for half a megabyte."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "none", str(tmp_path)]
    if os.getuid() or subprocess.run(mount, check=False).returncode:
        pytest.skip("only root may mount, and not everywhere")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


async def test_a_disk_that_is_full_holds_answers_up_until_it_has_room_again(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    async with (
        ar.serve("127.0.0.1:0", data_dir=small_disk / "data") as server,
        TcpStore("127.0.0.1", server.port, read_timeout=60.0) as store,
        anyio.create_task_group() as tasks,
    ):
        await store.set("before", "1")
        await asyncio.to_thread(ballast.write_bytes, bytes(400_000))
        stored = anyio.Event()

        async def put() -> None:
            await store.set("large", b"x" * 200_000)
            stored.set()

        tasks.start_soon(put)
        records = server.coordinator.records
        assert records is not None
        await until(lambda: records.commits.obstacle)
        assert "cannot be written: database or disk is full" in records.commits.obstacle
        assert not stored.is_set()
        await asyncio.to_thread(ballast.unlink)
        with anyio.fail_after(60):
            await stored.wait()
    async with (
        ar.serve("127.0.0.1:0", data_dir=small_disk / "data") as server,
        TcpStore("127.0.0.1", server.port) as store,
    ):
        assert (await store.get("before"), len(await store.get("large"))) == (b"1", 200_000)


# The checker, on corrupted copies of a real log

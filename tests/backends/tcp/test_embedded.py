"""The node that hosts the server holds the others up in nothing, and does not leave them in the lurch."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AsyncExitStack
from typing import Any

import anyio
import pytest

import arendezvous as ar
from arendezvous.backends import hosting
from arendezvous.backends.tcp.embedded import EmbeddedBackend
from arendezvous.backends.tcp.session import SessionBackend
from arendezvous.directory.address import AddressDirectory
from arendezvous.law.operations import Join
from arendezvous.law.state import NodeDesc
from arendezvous.testing.virtual_time import run_virtual
from tests.kit.waiting import until

PATIENCE = 120.0  # seconds


def wait(done: Future[None]) -> None:
    """Blocks as a program does that waits for a subprocess, or sleeps."""
    done.result(PATIENCE)


def compute(done: Future[None]) -> None:
    """Blocks as a program does that computes in Python."""
    while not done.done():
        sum(range(1000))
    done.result()


async def live_and_die(url: str, lost: threading.Event) -> None:
    """Two nodes meet, use the store, and one is lost; the other meets a third one."""
    run: dict[str, Any] = {
        "run_id": "others", "min_nodes": 2, "max_nodes": 2, "is_host": False, "disconnect_grace": 0.01,
    }  # fmt: skip
    async with AsyncExitStack() as nodes:
        a = await nodes.enter_async_context(ar.open_rendezvous(url, node="a", **run))
        port = int(url.rpartition(":")[2])
        async with SessionBackend("127.0.0.1", port, "others") as b:
            joining = b.propose(Join(NodeDesc("b"), a.settings.run))
            info, _ = await asyncio.gather(a.next_rendezvous(), joining)
            assert info.store is not None
            await info.store.set("key", "value")
            assert await info.store.get("key") == b"value"
        async for change in a.changes():  # b has disconnected without a word
            assert isinstance(change, ar.NodeLost)
            break
        lost.set()
        c = await nodes.enter_async_context(ar.open_rendezvous(url, node="c", **run))
        await asyncio.gather(a.next_rendezvous(), c.next_rendezvous())


@pytest.mark.parametrize("block", [wait, compute])
async def test_a_host_that_blocks_its_loop_holds_up_no_joins_no_deaths_and_no_store(
    free_port: int, block: Callable[[Future[None]], None]
) -> None:
    url, lost = f"tcp://127.0.0.1:{free_port}", threading.Event()
    with ThreadPoolExecutor(1) as elsewhere:
        async with ar.open_rendezvous(url, run_id="hosts", min_nodes=1, is_host=True) as host:
            await host.next_rendezvous()
            block(elsewhere.submit(asyncio.run, live_and_die(url, lost)))
            assert lost.is_set()


async def test_a_server_whose_thread_was_ended_is_hosted_anew(free_port: int) -> None:
    def interrupt() -> None:
        raise SystemExit

    async with EmbeddedBackend("127.0.0.1", free_port, "job", is_host=True) as backend:
        before, started = backend.server, backend.server_id
        assert before is not None
        before.coordinator._loop.call_soon_threadsafe(interrupt)
        await until(lambda: backend.server_id != started)
        assert not before.is_serving
        assert backend.server is not before
        assert (await backend.status()).run_id == "job"


async def test_nothing_is_left_of_the_hosts_thread_once_it_has_closed(free_port: int) -> None:
    def threads() -> list[threading.Thread]:
        return [one for one in threading.enumerate() if str(free_port) in one.name]

    async with ar.open_rendezvous(f"tcp://127.0.0.1:{free_port}", run_id="job", min_nodes=1) as rdzv:
        await rdzv.next_rendezvous()
        [serving] = threads()
    await asyncio.to_thread(serving.join)
    assert threads() == []


def test_in_virtual_time_the_server_stays_in_the_loop_of_its_host(free_port: int) -> None:
    async def host() -> int:
        async with ar.open_rendezvous(f"tcp://127.0.0.1:{free_port}", run_id="job", min_nodes=1) as rdzv:
            return (await rdzv.next_rendezvous()).world_size + len(threading.enumerate()) - alone

    alone = len(threading.enumerate())
    assert run_virtual(host, patience=0.05) == 1


async def test_the_host_of_a_closed_run_serves_until_the_others_have_left(free_port: int) -> None:
    url, left = f"tcp://127.0.0.1:{free_port}", []
    host_closed = anyio.Event()

    async def host() -> None:
        async with ar.open_rendezvous(url, run_id="run", min_nodes=2, is_host=True) as rdzv:
            await rdzv.next_rendezvous()
            await rdzv.set_closed("done")
            host_closed.set()
        left.append("host")

    async def other() -> None:
        async with ar.open_rendezvous(url, run_id="run", min_nodes=2, is_host=False) as rdzv:
            await rdzv.next_rendezvous()
            await host_closed.wait()
            async for change in rdzv.changes():
                assert isinstance(change, ar.NodeLeft | ar.Closed)
            await rdzv.leave("done, too")
            left.append("other")

    with anyio.fail_after(120):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(host)
            tasks.start_soon(other)

    assert left == ["other", "host"]


async def test_the_host_that_leaves_first_lets_members_of_a_new_round_find_each_others_keys(
    free_port: int,
) -> None:
    url = f"tcp://127.0.0.1:{free_port}"
    host_leaves = anyio.Event()
    found: list[bytes] = []
    run: dict[str, Any] = {"run_id": "run", "min_nodes": 3, "rank_policy": "natural"}

    async def host() -> None:
        async with ar.open_rendezvous(url, node="a", is_host=True, **run) as rdzv:
            await rdzv.next_rendezvous()
            host_leaves.set()

    async def other(node: str) -> None:
        async with ar.open_rendezvous(url, node=node, is_host=False, **run) as rdzv:
            info = await rdzv.next_rendezvous()
            assert info.store is not None
            await host_leaves.wait()
            async for change in rdzv.changes():
                assert isinstance(change, ar.NodeLeft)
                break
            await info.store.set(f"from {info.rank}", "v")
            found.append(await info.store.get(f"from {3 - info.rank}", timeout=60))

    with anyio.fail_after(120):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(host)
            tasks.start_soon(other, "b")
            tasks.start_soon(other, "c")

    assert found == [b"v", b"v"]


@pytest.mark.parametrize("scheme", ["tcp", "c10d"])
async def test_a_name_is_served_once_if_a_server_is_at_one_of_its_addresses(
    free_port: int, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    async def resolve(_: AddressDirectory) -> list[str]:
        return ["::1", "127.0.0.1"]

    monkeypatch.setattr(AddressDirectory, "_resolve", resolve)
    async with (
        ar.serve(f"127.0.0.1:{free_port}") as server,
        ar.open_rendezvous(f"{scheme}://localhost:{free_port}", run_id="job", nnodes="1") as node,
    ):
        await node.next_rendezvous()
        if scheme == "tcp":
            assert list(server.coordinator.runs) == ["job"]
        else:
            assert server.coordinator.runs == {}
        with pytest.raises(OSError, match=r"."):
            await anyio.connect_tcp("::1", free_port)


@pytest.mark.parametrize(("name", "warns"), [("node0.example", True), ("localhost", False)])
async def test_a_name_that_is_loopback_here_is_warned_about(
    free_port: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
    warns: bool,
) -> None:
    async def resolve(_: AddressDirectory) -> list[str]:
        return ["127.0.1.1"]

    monkeypatch.setattr(AddressDirectory, "_resolve", resolve)
    async with AsyncExitStack() as resources:
        server = await hosting.host_server(name, free_port, resources, is_host=None, timeout=5)
        assert server is not None
    said = f"{name} is 127.0.1.1 on this machine, which no other machine can reach"
    assert (said in caplog.text) is warns

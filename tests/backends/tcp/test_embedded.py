"""The node that hosts the server does not leave the others in the middle of something."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

import anyio
import pytest

import arendezvous as ar
from arendezvous.backends import hosting


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
    async def resolve(host: str, port: int, timeout: float) -> list[str]:
        return ["::1", "127.0.0.1"]

    monkeypatch.setattr(hosting, "_resolve", resolve)
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
    async def resolve(host: str, port: int, timeout: float) -> list[str]:
        return ["127.0.1.1"]

    monkeypatch.setattr(hosting, "_resolve", resolve)
    async with AsyncExitStack() as resources:
        server = await hosting.host_server(name, free_port, resources, is_host=None, timeout=5)
        assert server is not None
    said = f"{name} is 127.0.1.1 on this machine, which no other machine can reach"
    assert (said in caplog.text) is warns

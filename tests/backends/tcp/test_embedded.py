"""The node that hosts the server does not leave the others in the middle of something."""

from __future__ import annotations

from typing import Any

import anyio

import arendezvous as ar


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

"""The node that hosts the server leaves a closed run last."""

from __future__ import annotations

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

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(host)
            tasks.start_soon(other)

    assert left == ["other", "host"]

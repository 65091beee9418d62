"""A drained node is released, and does not come back: over every backend that knows drains, and blocking."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import pytest

import arendezvous as ar
from arendezvous import sync
from tests.kit.etcd_server import serve_etcd

WAYS = ("memory", "tcp", "http", "etcd")


@asynccontextmanager
async def place(way: str) -> AsyncIterator[str]:
    """A place to meet, as a URL."""
    if way == "memory":
        yield "memory://draining"
    elif way == "etcd":
        async with serve_etcd() as etcd:
            yield f"etcd://{etcd.urls[0].removeprefix('http://')}"
    else:
        async with ar.serve("127.0.0.1:0", http="127.0.0.1:0") as server:
            yield (server.http_url if way == "http" else server.tcp_url) or ""


@pytest.mark.parametrize("way", WAYS)
async def test_a_drained_node_is_released_by_the_others_and_told_to_go(way: str) -> None:
    told: list[str] = []

    async def take_part(handler: ar.AsyncRendezvousHandler) -> None:
        """The loop of the quick start."""
        while True:
            try:
                info = await handler.next_rendezvous()
            except ar.RendezvousGracefulExitError as error:
                told.append(str(error))
                return
            if info.round == 1:
                await handler.leave("done", cause=ar.Cause.FINISHED)
                return
            async for _ in handler.changes():
                break

    async with place(way) as url, AsyncExitStack() as stack:
        a, b, spare = [
            await stack.enter_async_context(
                ar.open_rendezvous(url, run_id="job", min_nodes=2, node=name, keep_alive_interval=1.0)
            )
            for name in ("a", "b", "spare")
        ]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(take_part, a)
            with anyio.fail_after(120):
                await b.next_rendezvous()
                tasks.start_soon(take_part, spare)
                await b.drain(600, "maintenance", wait=True)
                await take_part(b)
    assert told == ["b was drained: maintenance"]


def test_the_blocking_handler_waits_for_the_release_too() -> None:
    settings: dict[str, Any] = {"run_id": "job", "min_nodes": 1}
    with sync.open_rendezvous("memory://draining-sync", node="a", **settings) as rdzv:
        rdzv.next_rendezvous()
        rdzv.drain(0.1, "power", wait=True)
        with pytest.raises(ar.RendezvousGracefulExitError, match="a was drained: power"):
            rdzv.next_rendezvous()

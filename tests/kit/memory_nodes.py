"""Nodes that meet in this process, at one place in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio

import arendezvous as ar
from arendezvous.rendezvous.driver import DynamicRendezvousHandler

ENDPOINT = "memory://nodes"

Node = DynamicRendezvousHandler


def node(name: str, least: int = 2, most: int | None = None, **options: Any) -> Node:
    """A node of the run, at the address that its name is, not opened yet."""
    opened = ar.open_rendezvous(
        ENDPOINT, run_id="job", min_nodes=least, max_nodes=most, node=name, local_addr=name, **options
    )
    assert isinstance(opened, Node)
    return opened


async def meet(*nodes: Node) -> list[ar.RendezvousInfo]:
    """Has all of them join at the same time; returns what each is told."""
    infos: dict[str, ar.RendezvousInfo] = {}

    async def join(one: Node) -> None:
        infos[one.node] = await one.next_rendezvous()

    async with anyio.create_task_group() as tasks:
        for one in nodes:
            tasks.start_soon(join, one)
    return [infos[one.node] for one in nodes]


@asynccontextmanager
async def members(count: int, **options: Any) -> AsyncIterator[tuple[list[Node], list[ar.RendezvousInfo]]]:
    """So many nodes, n0, n1..., that have met in round 0."""
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(node(f"n{i}", count, **options)) for i in range(count)]
        yield nodes, await meet(*nodes)

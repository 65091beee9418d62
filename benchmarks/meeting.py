"""Measures barriers beside joins, how soon a death is told, and whether updates disturb anybody."""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Annotated, Final

import anyio
import typer

import arendezvous as ar
from arendezvous.backends.tcp.session import SessionBackend
from arendezvous.law.operations import Arrive, Join
from arendezvous.law.state import NodeDesc, NodeView, Phase, RunSettings
from arendezvous.rendezvous.meeting import Updates

GRACE: Final = 1.0  # seconds, the default
UPDATE_SECONDS: Final = 1.0
RATE: Final = 10_000  # states a second
TICKS: Final = 100  # in a second, at each of which some of these are said


def meeting(
    nodes: Annotated[int, typer.Option(min=2, help="Members of the large round.")] = 1024,
    waiting: Annotated[int, typer.Option(min=3, help="Members of which one is killed.")] = 64,
    repeat: Annotated[int, typer.Option(min=1, help="Turns of each.")] = 7,
) -> None:
    """Measure what members of a round do together: barriers, deaths at one, states.

    Server and members are in one process, over tcp. A barrier takes about as long as a join does.
    """
    asyncio.run(_measure(nodes, waiting, repeat))


async def _measure(nodes: int, waiting: int, repeat: int) -> None:
    joins, barriers = [], []
    for _ in range(repeat):
        async with _met(nodes) as (members, view, seconds):
            joins.append(seconds)
            barriers += [await _timed(_barrier(members, view, turn)) for turn in range(3)]
    join, barrier = statistics.median(joins), statistics.median(barriers)
    typer.echo(
        f"{nodes} members: join {join * 1e3:.1f} ms, barrier {barrier * 1e3:.1f} ms, {barrier / join:.2f} x"
    )
    late = statistics.median([await _death(waiting) for _ in range(repeat)])
    typer.echo(
        f"{waiting} members at a barrier, one killed: all are told {late * 1e3:.1f} ms after its grace"
    )
    calm, busy = await _updates(waiting)
    typer.echo(
        f"{waiting} members: a barrier takes {calm * 1e3:.2f} ms; {busy * 1e3:.2f} ms, {busy / calm:.2f} x,"
        f" beside a member that says what its state is {RATE} times a second"
    )


@asynccontextmanager
async def _met(count: int) -> AsyncIterator[tuple[list[SessionBackend], NodeView, float]]:
    """Members of a complete round, the view of one of them, and how long the join took."""
    settings = RunSettings(count, count, keep_alive_interval=60.0)
    async with ar.serve("127.0.0.1:0", thread=False) as server, AsyncExitStack() as stack:
        members = [
            await stack.enter_async_context(SessionBackend(server.host, server.port, "run"))
            for _ in range(count)
        ]

        async def join(number: int, member: SessionBackend) -> NodeView:
            view = await member.propose(Join(NodeDesc(f"n{number}"), settings))
            while view.phase is not Phase.MEMBER:
                view = await member.changed(view.node, view.revision)
            return view

        gc.collect()
        began = time.perf_counter()
        views = await asyncio.gather(*(join(number, member) for number, member in enumerate(members)))
        yield members, views[0], time.perf_counter() - began


def _arrive(number: int, view: NodeView, turn: int) -> Arrive:
    return Arrive(f"n{number}", view.incarnation, view.round, "barrier", turn)


async def _barrier(members: list[SessionBackend], view: NodeView, turn: int) -> None:
    await asyncio.gather(*(member.meet(_arrive(number, view, turn)) for number, member in enumerate(members)))


async def _timed(work: Awaitable[object]) -> float:
    gc.collect()
    began = time.perf_counter()
    await work
    return time.perf_counter() - began


async def _death(count: int) -> float:
    """Seconds from the end of the grace of a member that is killed until all the others are told."""
    async with _met(count) as (members, view, _):
        waits = [
            asyncio.ensure_future(member.meet(_arrive(number, view, 0)))
            for number, member in enumerate(members[:-1])
        ]
        await asyncio.sleep(0.2)
        killed = time.perf_counter()
        await members[-1].__aexit__(None, None, None)
        told = await asyncio.gather(*waits, return_exceptions=True)
        seconds = time.perf_counter() - killed
        wrong = [one for one in told if not (isinstance(one, ar.RoundOverError) and one.departures)]
        if wrong:
            raise AssertionError(f"told something else: {wrong[0]!r}")
        return seconds - GRACE


async def _updates(count: int) -> tuple[float, float]:
    """How long a barrier of all takes while nobody does anything else, and while one updates; in turns."""
    async with _met(count) as (members, view, _):
        turns = iter(range(1_000_000))

        async def barriers() -> list[float]:
            end, found = time.perf_counter() + UPDATE_SECONDS, []
            while time.perf_counter() < end:
                began = time.perf_counter()
                await _barrier(members, view, next(turns))
                found.append(time.perf_counter() - began)
                await asyncio.sleep(0.01)
            return found

        async def update() -> None:
            updates, number = Updates(members[-1], f"n{count - 1}"), 0
            async with anyio.create_task_group() as tasks:
                while True:
                    for _ in range(RATE // TICKS):
                        tasks.start_soon(updates.update, number)
                        number += 1
                    await asyncio.sleep(1 / TICKS)

        calm: list[float] = []
        busy: list[float] = []
        for _ in range(3):
            calm += await barriers()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(update)
                busy += await barriers()
                tasks.cancel_scope.cancel()
        return statistics.median(calm), statistics.median(busy)

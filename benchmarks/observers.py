"""How soon all who look on at a run are told of a change: ``python -m benchmarks observers``.

All observers are in this process, and the server is in one of its own. *Told* is when the last of them has
been handed the event by its connection; *seen* is when the last of as many `arendezvous.observe` have handed
it over, with a status that has what came of it, which takes a question and an answer each.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from statistics import median
from typing import Annotated, Any, Final

import msgspec
import typer
from rich.console import Console

import arendezvous as ar
from arendezvous.backends.tcp.watching import RunWatch, watch_server
from arendezvous.law.events import RunHeld, RunReleased
from arendezvous.net.servers import Servers
from arendezvous.wire.native.messages import Happened
from benchmarks.process import Process
from benchmarks.processes.child import raise_open_files

PATIENCE: Final = 60.0
AT_ONCE: Final = 50  # that connect together
CHANGES: Final = (RunHeld, RunReleased)


class Observed(msgspec.Struct, frozen=True):
    """How many seconds each change took until all observers were told, and until all had seen it."""

    told: tuple[float, ...]
    seen: tuple[float, ...]


def observers(
    count: Annotated[int, typer.Option(min=1, help="How many look on.")] = 1000,
    changes: Annotated[int, typer.Option(min=1, help="How often the run is held or released.")] = 20,
    json: Annotated[bool, typer.Option("--json", help="Write all values to stdout.")] = False,
) -> None:
    """Time how long it takes until everybody who looks on at a run has been told of a change."""
    raise_open_files()
    with Process("server") as server:
        found = asyncio.run(_observe(server.hello["tcp"], count, changes))
    if json:
        typer.echo(msgspec.json.encode(found))
        return
    for name, values in (("told", found.told), ("seen", found.seen)):
        worst, half = 1000 * max(values), 1000 * median(values)
        Console().print(f"{count} observers: all have {name} within {half:.1f} ms, at worst {worst:.1f} ms")


async def _observe(url: str, count: int, changes: int) -> Observed:
    host, _, port = url.removeprefix("tcp://").rpartition(":")
    async with ar.open_rendezvous(url, run_id="job", min_nodes=1) as node, AsyncExitStack() as stack:
        await node.next_rendezvous()
        servers = [Servers([(host, int(port))]) for _ in range(count)]
        watching = [watch_server(each, RunWatch, "job", timeout=PATIENCE) for each in servers]
        told = await _timed(await _entered(stack, watching), _hear, url, changes)
        await stack.aclose()
        looking = [ar.observe(url, run_id="job", read_timeout=PATIENCE) for _ in range(count)]
        seen = await _timed(await _entered(stack, looking), _see, url, changes)
    return Observed(told, seen)


async def _entered(stack: AsyncExitStack, contexts: Sequence[Any]) -> list[Any]:
    """Enters all contexts, some at once."""
    entered: list[Any] = []
    for start in range(0, len(contexts), AT_ONCE):
        entered += await asyncio.gather(
            *(stack.enter_async_context(one) for one in contexts[start : start + AT_ONCE])
        )
    return entered


async def _timed(
    lookers: Sequence[Any], wait: Callable[[Any], Awaitable[None]], url: str, changes: int
) -> tuple[float, ...]:
    """Has the run held and released, and times how long each takes until all lookers know."""
    operator, took = ar.connect(url, by="benchmark"), []
    for number in range(changes):
        waits = asyncio.gather(*map(wait, lookers))
        await asyncio.sleep(0.1)
        began = time.perf_counter()
        await (operator.release("job") if number % 2 else operator.hold("job"))
        await asyncio.wait_for(waits, PATIENCE)
        took.append(time.perf_counter() - began)
    return tuple(took)


async def _hear(watch: RunWatch) -> None:
    async for news in watch:
        if isinstance(news, Happened) and any(isinstance(event, CHANGES) for event in news.events):
            return


async def _see(run: ar.RunObserver) -> None:
    async for event in run:
        if isinstance(event, CHANGES):
            return

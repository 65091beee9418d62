"""The common parts of the conformance checks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final, TypeAlias, TypeVar

import anyio

from arendezvous.backends.port import RendezvousBackend
from arendezvous.law.operations import Join, KeepAlive
from arendezvous.law.state import NodeDesc, NodeView, Phase, RunSettings

MakeBackend: TypeAlias = Callable[[str], RendezvousBackend]
BackendCheck: TypeAlias = Callable[[MakeBackend, str], Awaitable[None]]

INTERVAL: Final = 0.5  # seconds between heartbeats, where a node has to die
PAIR: Final = RunSettings(2, 2)

E = TypeVar("E", bound=Exception)
T = TypeVar("T")

SOON: Final = 0.05
"""Seconds in which something that must not happen would have happened."""

LONG: Final = 30.0
"""Seconds after which something that must happen will not."""


def checks_of(names: Mapping[str, Any]) -> tuple[Any, ...]:
    """Returns the checks that a module has defined so far, in that order."""
    return tuple(each for name, each in names.items() if name.startswith("check_"))


@contextmanager
def named(check: object) -> Iterator[None]:
    """Has the message of an `AssertionError` begin with the name of the check that failed."""
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"{getattr(check, '__name__', repr(check))}: {error}") from error


async def refused(kind: type[E], operation: Awaitable[object]) -> E:
    """Awaits `operation` and returns the error of this kind that it raises; it fails if there is none."""
    try:
        result = await operation
    except kind as error:
        return error
    raise AssertionError(f"{result!r} was returned, but {kind.__name__} should have been raised")


@asynccontextmanager
async def meanwhile(*operations: Awaitable[T]) -> AsyncIterator[list[T]]:
    """Awaits operations while the block runs, and to their end; yields what they return, as it comes."""
    results: list[T] = []

    async def collect(operation: Awaitable[T]) -> None:
        results.append(await operation)

    async with anyio.create_task_group() as tasks:
        for operation in operations:
            tasks.start_soon(collect, operation)
        yield results


async def together(*operations: Awaitable[T]) -> list[T]:
    """Awaits operations at the same time; returns what they return, as it came."""
    async with meanwhile(*operations) as results:
        pass
    return results


async def view_where(
    backend: RendezvousBackend, view: NodeView, condition: Callable[[NodeView], object]
) -> NodeView:
    """Waits for the first view, from `view` on, for which `condition` holds."""
    with anyio.fail_after(LONG):
        while not condition(view):
            view = await backend.changed(view.node, view.revision)
    return view


async def join_until_member(backend: RendezvousBackend, join: Join) -> NodeView:
    """Joins, and waits until the node is a member of a later round than before."""
    return await view_where(
        backend,
        await backend.propose(join),
        lambda view: view.phase is Phase.MEMBER and view.generation > join.after,
    )


@asynccontextmanager
async def kept_alive(backend: RendezvousBackend, node: str) -> AsyncIterator[None]:
    """Sends heartbeats while the block runs."""

    async def beat() -> None:
        while True:
            await backend.propose(KeepAlive(node))
            await anyio.sleep(INTERVAL / 2)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(beat)
        yield
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def pair_of_members(
    make: MakeBackend, run_id: str, settings: RunSettings = PAIR
) -> AsyncIterator[tuple[RendezvousBackend, RendezvousBackend, NodeView]]:
    """Opens two backends whose nodes a and b are the members of a round; yields a's view of it, too."""
    async with make(run_id) as one, make(run_id) as two:
        first = await one.propose(Join(NodeDesc("a"), settings))
        await join_until_member(two, Join(NodeDesc("b"), settings))
        yield one, two, await view_where(one, first, lambda view: view.phase is Phase.MEMBER)

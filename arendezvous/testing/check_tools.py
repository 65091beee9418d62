"""The common parts of the checks of backends and of stores."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final, TypeAlias, TypeVar

import anyio

from arendezvous.backends.port import RendezvousBackend
from arendezvous.errors import RendezvousError
from arendezvous.law.operations import Join, KeepAlive, Operation
from arendezvous.law.state import NodeDesc, NodeView, Phase, RunSettings

MakeBackend: TypeAlias = Callable[[str], RendezvousBackend]
BackendCheck: TypeAlias = Callable[[MakeBackend, str], Awaitable[None]]

PATIENCE: Final = 30.0
INTERVAL: Final = 0.5  # of heartbeats, where a node has to die
PAIR: Final = RunSettings(2, 2)

E = TypeVar("E", bound=RendezvousError)
Refusal = TypeVar("Refusal", bound=Exception)

SOON: Final = 0.05
"""Seconds in which something that must not happen would have happened."""

LONG: Final = 30.0
"""Seconds after which something that must happen will not."""


async def refusal_of(backend: RendezvousBackend, operation: Operation, kind: type[E]) -> E:
    """The error of `kind` by which `operation` is refused."""
    try:
        await backend.propose(operation)
    except kind as error:
        return error
    raise AssertionError(f"{operation} was accepted; expected {kind.__name__}")


async def view_where(
    backend: RendezvousBackend, view: NodeView, condition: Callable[[NodeView], object]
) -> NodeView:
    """The first view, from `view` on, for which `condition` holds."""
    with anyio.fail_after(PATIENCE):
        while not condition(view):
            view = await backend.changed(view.node, view.revision)
    return view


async def join_until_member(backend: RendezvousBackend, join: Join) -> NodeView:
    """Joins, and waits until the node is a member of a later round than before."""
    view = await backend.propose(join)
    with anyio.fail_after(PATIENCE):
        while view.phase is not Phase.MEMBER or view.generation <= join.after:
            view = await backend.changed(join.node, view.revision)
    return view


async def keep_alive(backend: RendezvousBackend, node: str) -> None:
    """Sends heartbeats until it is cancelled."""
    while True:
        await backend.propose(KeepAlive(node))
        await anyio.sleep(INTERVAL / 2)


@asynccontextmanager
async def pair_of_members(
    make: MakeBackend, run_id: str, settings: RunSettings
) -> AsyncIterator[tuple[RendezvousBackend, RendezvousBackend, NodeView]]:
    """Two backends whose nodes a and b are the members of a round, and a's view of it."""
    async with make(run_id) as one, make(run_id) as two:
        await one.propose(Join(NodeDesc("a"), settings))
        await join_until_member(two, Join(NodeDesc("b"), settings))
        yield (
            one,
            two,
            await view_where(one, await one.changed("a", -1), lambda view: view.phase is Phase.MEMBER),
        )


def fresh() -> str:
    """A key that nobody has used."""
    return f"check-{secrets.token_hex(6)}"


async def refused(kind: type[Refusal], operation: Awaitable[object]) -> Refusal:
    """Awaits `operation` and returns the error of this kind that it raises.

    Raises:
        AssertionError: It raised none.
    """
    try:
        result = await operation
    except kind as error:
        return error
    raise AssertionError(f"{result!r} was returned, but {kind.__name__} should have been raised")

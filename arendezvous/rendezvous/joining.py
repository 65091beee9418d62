"""One node's way from a join to a complete round."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Final

import anyio

from arendezvous.backends.port import RendezvousBackend
from arendezvous.errors import RendezvousError, RendezvousGracefulExitError, RendezvousStateError
from arendezvous.law.machine import closed_error
from arendezvous.law.operations import Join
from arendezvous.law.state import Cause, NodeView, Phase

OWN_DECISIONS: Final = (Cause.LEFT, Cause.FINISHED, Cause.FAILED, Cause.CANCELLED)


async def join_round(
    backend: RendezvousBackend, join: Join, timeout: float, note: Callable[[str], None]
) -> NodeView | None:
    """Joins, and waits for a complete round that is newer than what the node held.

    Args:
        backend: Where the run is kept.
        join: The join of the node; repeated if the node is dropped meanwhile.
        timeout: Seconds that this may take; the time as a spare does not count.
        note: Called with what happened on the way, in words.

    Returns:
        The view of the round's new member; None if time is over.

    Raises:
        RendezvousError: The run is closed, or the node may not join; or its own doing ended the join.

    Cancellation: the node remains in the run.
    """
    deadline = asyncio.get_running_loop().time() + timeout
    view = await backend.join(join, timeout)
    if view is None or _is_complete(view, join):
        return view
    with anyio.CancelScope(deadline=deadline) as scope:
        while not _is_complete(view, join):
            if view.closed is not None:
                raise _closed_error(view)
            if view.phase is Phase.GONE:
                _check_dropped(view)
                note("dropped while joining; joining again")
                view = await backend.propose(join)
                continue
            if view.phase is Phase.REDUNDANT:
                scope.deadline = math.inf
            elif scope.deadline == math.inf:
                scope.deadline = anyio.current_time() + timeout
            view = await backend.changed(view.node, view.revision)
        return view
    return None


def _is_complete(view: NodeView, join: Join) -> bool:
    return view.phase is Phase.MEMBER and view.generation > join.after


def _check_dropped(view: NodeView) -> None:
    """A node that is gone while it waits, being frozen perhaps, starts over, unless it was asked to go."""
    if view.gone is None:
        return
    if view.gone.cause in OWN_DECISIONS:
        raise RendezvousStateError(f"{view.node} left the run while it was joining it, by another task")
    if view.gone.cause is Cause.DRAINED:
        raise RendezvousGracefulExitError(f"{view.node} was drained: {view.gone.reason or 'no reason given'}")


def _closed_error(view: NodeView) -> RendezvousError:
    assert view.closed is not None  # noqa: S101 - the caller has looked
    error = closed_error(view.closed, view.now)
    if view.phase is Phase.REDUNDANT:
        return RendezvousGracefulExitError(f"{view.node} was a spare and is not needed: {error.message}")
    return error

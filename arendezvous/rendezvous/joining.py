"""One node's way from a join to a complete round."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterable
from typing import Final

import anyio

from arendezvous.backends.port import RendezvousBackend
from arendezvous.errors import (
    FactsDifferError,
    RendezvousClosedError,
    RendezvousError,
    RendezvousGracefulExitError,
    RendezvousSettingsError,
    RendezvousStateError,
)
from arendezvous.law.admission import closed_error
from arendezvous.law.operations import NOTHING_KNOWN, Join
from arendezvous.law.state import Cause, Closure, NodeView, Phase
from arendezvous.law.status import DepartedStatus, explained
from arendezvous.law.words import because, duration

logger = logging.getLogger(__name__)

REPORT_INTERVAL: Final = 10.0  # seconds between two lines in the log about a node that waits, at first
LATER_INTERVAL: Final = 60.0  # the same after the first minute
ASK_TIMEOUT: Final = 2.0  # seconds that asking who is missing may take
MANY: Final = 16  # nodes of a run of which only the first goes on to ask who is missing
_PATIENT: Final = (Phase.REDUNDANT, Phase.MEMBER)  # a spare, or a draining member in its old round


async def join_round(
    backend: RendezvousBackend, join: Join, timeout: float, note: Callable[[str], None], *, was_in: bool
) -> NodeView | None:
    """Joins, and waits for a complete round that is newer than what the node held; None if time is over.

    Args:
        backend: Where the run is kept.
        join: Repeated if the node is dropped meanwhile. Cancelled, the node remains in the run.
        timeout: Seconds that this may take; the time as a spare, or until a drain is over, does not count.
        note: Called with what happened on the way, in words.
        was_in: Whether the node has joined through this backend before, and not left since.
    """
    if was_in and join.after != NOTHING_KNOWN:
        latest = await backend.changed(join.node, -1)
        if latest.gone is not None and latest.gone.cause is Cause.DRAINED:
            _check_dropped(latest, join)
    deadline = asyncio.get_running_loop().time() + timeout
    wait = _LoggedWait(backend)
    view = await backend.join(join, timeout)
    if view is None or _is_complete(view, join):
        return _sound(view)
    with anyio.CancelScope(deadline=deadline) as scope:
        while not _is_complete(view, join):
            if view.closed is not None:
                raise _closed_error(view, view.closed)
            if view.phase is Phase.GONE:
                _check_dropped(view, join)
                note("dropped while joining; joining again")
                view = await backend.propose(join)
                continue
            if view.phase is Phase.CLAIMING:
                note("waiting, as another has its name or its rank, and may be alive")
            if view.phase in _PATIENT:
                scope.deadline = math.inf
            elif scope.deadline == math.inf:
                scope.deadline = anyio.current_time() + timeout
            view = await wait.changed(view)
        return _sound(view)
    return None


def _sound(view: NodeView | None) -> NodeView | None:
    """Returns a complete view, which others have made, if its rank is one of its world."""
    if view is not None and not 0 <= view.rank < view.world_size:
        raise RendezvousStateError(
            f"{view.node} was given rank {view.rank} of {view.world_size}, which is none: whoever keeps the"
            " run is broken, or no arendezvous server"
        )
    return view


def _is_complete(view: NodeView, join: Join) -> bool:
    return view.phase is Phase.MEMBER and view.generation > join.after


def _check_dropped(view: NodeView, join: Join) -> None:
    """Raises unless a node that is gone while it waits, being frozen perhaps, may start over."""
    if (gone := view.gone) is None:
        return
    match gone.cause:
        case Cause.RANK_TAKEN:
            raise RendezvousSettingsError.of("rank", join.desc.rank, gone.reason)
        case Cause.NAME_TAKEN:
            raise RendezvousStateError(gone.reason, node=view.node)
        case Cause.DISAGREED:
            raise FactsDifferError(gone.reason)
        case Cause.LEFT | Cause.FINISHED | Cause.FAILED | Cause.CANCELLED:
            raise RendezvousStateError(f"{view.node} left the run while it was joining it, by another task")
        case Cause.DRAINED:
            raise RendezvousGracefulExitError(f"{view.node} was drained: {gone.reason or 'no reason given'}")


def _closed_error(view: NodeView, closed: Closure) -> RendezvousError:
    error = closed_error(closed, view.now)
    unneeded = {Phase.REDUNDANT: "was a spare and is not needed", Phase.MEMBER: "is draining, and not needed"}
    if (said := unneeded.get(view.phase)) is not None:
        return RendezvousGracefulExitError(f"{view.node} {said}: {error.message}")
    return error


def with_departures(error: RendezvousClosedError, gone: Iterable[DepartedStatus]) -> RendezvousClosedError:
    """Adds to the error for a closed run which members of its last round are gone, since when, and why."""
    named = [f"{one.node} ({one.cause.value} {one.age:.1f} s ago{because(one.reason)})" for one in gone]
    message = f"{error.message}; members that are gone: {', '.join(named)}" if named else error.message
    return RendezvousClosedError(message, by=error.by, reason=error.reason, age=error.age)


class _LoggedWait:
    """Waits for changes of a node that joins; while nothing comes, the log says at INFO who is missing.

    In a large run every node asks once, and then the first of them alone: an answer names all nodes.

    Its fields:
        _began: When the wait began, by the loop's clock.
        _due: When the log is to have its next line.
        _asks: Whether this node is to ask then.
    """

    def __init__(self, backend: RendezvousBackend) -> None:
        self._backend = backend
        self._began = anyio.current_time()
        self._due = self._began + REPORT_INTERVAL
        self._asks = True

    async def changed(self, view: NodeView) -> NodeView:
        """Waits until the node's view is another."""
        while logger.isEnabledFor(logging.INFO):
            with anyio.move_on_after(max(0.0, self._due - anyio.current_time())):
                return await self._backend.changed(view.node, view.revision)
            await self._tell(view.node)
        return await self._backend.changed(view.node, view.revision)

    async def _tell(self, node: str) -> None:
        waited = anyio.current_time() - self._began
        first_minute = waited + REPORT_INTERVAL <= LATER_INTERVAL
        self._due = anyio.current_time() + (REPORT_INTERVAL if first_minute else LATER_INTERVAL)
        said = f"the first node of the run logs who is missing in {self._backend.endpoint}"
        if self._asks:
            said = f"{self._backend.endpoint} does not answer"
            with anyio.move_on_after(ASK_TIMEOUT):
                try:
                    status = await self._backend.status()
                except RendezvousError as error:
                    said = error.message
                else:
                    said = "; ".join(explained(status))
                    self._asks = len(status.nodes) < MANY or status.nodes[0].desc.name == node
        logger.info("%s: waiting for %s: %s", node, duration(waited), said)

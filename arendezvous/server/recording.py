"""The events of a server: what happens to its runs, for whoever listens in its process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from arendezvous.coordinator.coordinator import Coordinator
from arendezvous.events import NodeState, construct_and_record_rdzv_event, get_logging_handler
from arendezvous.law.operations import (
    LawEvent,
    NodeDeparted,
    NodeDraining,
    RoundCompleted,
    RunClosed,
    RunReopened,
)


def record_events(coordinator: Coordinator, endpoint: str) -> Callable[[], None]:
    """Records what happens to `coordinator`'s runs as rendezvous events; returns how to stop that.

    These are the rounds, departures, drains, closing and reopening. Single joins are recorded by the nodes
    that join: recording them here, too, would cost the server more than the joins themselves.

    Raises:
        RendezvousSettingsError: ``ARENDEZVOUS_EVENTS`` has a bad value.
    """
    get_logging_handler()  # finds a bad destination now, not at the first event

    def observe(run_id: str, _: float, event: LawEvent) -> None:
        told = _in_words(event)
        if told is not None:
            message, state = told
            name = type(event).__name__
            construct_and_record_rdzv_event(run_id, message, state, name=name, master_endpoint=endpoint)

    return coordinator.observe(observe, *_TOLD)


_TOLD: Final = (RoundCompleted, NodeDeparted, NodeDraining, RunClosed, RunReopened)


def _in_words(event: LawEvent) -> tuple[str, NodeState] | None:
    if isinstance(event, RoundCompleted):
        return f"round {event.round} is complete with {event.world_size} nodes", NodeState.RUNNING
    if isinstance(event, NodeDeparted):
        why = f": {event.reason}" if event.reason else ""
        state = NodeState.FAILED if event.cause.is_loss else NodeState.SUCCEEDED
        return f"{event.node} departed ({event.cause.value}){why}", state
    if isinstance(event, NodeDraining):
        why = f": {event.reason}" if event.reason else ""
        return f"{event.node} is draining, to be gone within {event.seconds:g} s{why}", NodeState.RUNNING
    if isinstance(event, RunClosed):
        why = f": {event.reason}" if event.reason else ""
        return f"closed by {event.by or 'somebody'}{why}", NodeState.SUCCEEDED
    if isinstance(event, RunReopened):
        by = f" by {event.by}" if event.by else ""
        return f"reopened{by}, incarnation {event.incarnation}", NodeState.INIT
    return None

"""The events of a server: what happens to its runs, for whoever listens in its process.

The names of its events begin with that of this file, as in torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from arendezvous.coordinator.coordinator import Coordinator
from arendezvous.events import NodeState, construct_and_record_rdzv_event, get_logging_handler
from arendezvous.law import events
from arendezvous.law.words import event_text


def record_events(coordinator: Coordinator, endpoint: str) -> Callable[[], None]:
    """Records what happens to `coordinator`'s runs as rendezvous events; returns how to stop that.

    Single joins are not among them: the nodes record these, and here they would cost more than the joins.

    Raises:
        RendezvousSettingsError: ``ARENDEZVOUS_EVENTS`` has a bad value.
    """
    get_logging_handler()  # finds a bad destination now, not at the first event

    def observe(run_id: str, _: float, event: events.LawEvent) -> None:
        if isinstance(event, events.NodeDeparted):
            state = NodeState.FAILED if event.cause.is_loss else NodeState.SUCCEEDED
        else:
            state = _STATES[type(event)]
        construct_and_record_rdzv_event(
            run_id, event_text(event), state, name=event.name, master_endpoint=endpoint
        )

    return coordinator.observe(observe, *_STATES, events.NodeDeparted)


_STATES: Final[Mapping[type[events.LawEvent], NodeState]] = {
    events.RoundCompleted: NodeState.RUNNING,
    events.MemberDraining: NodeState.RUNNING,
    events.RunClosed: NodeState.SUCCEEDED,
    events.RunReopened: NodeState.INIT,
    events.RunResized: NodeState.RUNNING,
    events.RunHeld: NodeState.RUNNING,
    events.RunReleased: NodeState.RUNNING,
    events.NodeQuarantined: NodeState.FAILED,
    events.NodePardoned: NodeState.INIT,
}

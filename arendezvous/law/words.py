"""The events of the law in words."""

from __future__ import annotations

from typing import Final

from arendezvous.law.operations import (
    LawEvent,
    NodeDeparted,
    NodeDraining,
    NodeJoined,
    NodePromoted,
    RoundCompleted,
    RoundOpened,
    RunClosed,
    RunReopened,
    WaitingChanged,
)
from arendezvous.law.state import Phase

_CAME: Final = {
    Phase.GATHERING: "joins the round",
    Phase.MEMBER: "is back, with its rank",
    Phase.WAITING: "waits for the next round",
    Phase.REDUNDANT: "is a spare",
}


def words_of(event: LawEvent) -> str:
    """Says what happened."""
    if isinstance(event, RoundOpened):
        return f"round {event.round} gathers"
    if isinstance(event, RoundCompleted):
        return f"round {event.round} is complete with {event.world_size} nodes"
    if isinstance(event, RunClosed):
        return f"the run is closed by {event.by or 'somebody'}{_because(event.reason)}"
    if isinstance(event, RunReopened):
        by = f" by {event.by}" if event.by else ""
        return f"the run is open again{by}: incarnation {event.incarnation}"
    if isinstance(event, WaitingChanged):
        return f"the members are told that {event.count} wait for the next round"
    return _words_of_node(event)


def _words_of_node(event: NodeJoined | NodePromoted | NodeDeparted | NodeDraining) -> str:
    if isinstance(event, NodeDeparted):
        return f"{event.node} is gone ({event.cause.value}){_because(event.reason)}"
    if isinstance(event, NodeDraining):
        return f"{event.node} is draining, to be gone within {event.seconds:g} s{_because(event.reason)}"
    return f"{event.node} {_CAME.get(event.phase, event.phase.value)}"


def _because(reason: str) -> str:
    return f": {reason}" if reason else ""

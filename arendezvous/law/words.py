"""The one wording of what happens in a run, for logs, errors, status, events and the page alike."""

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
from arendezvous.law.state import Cause, Phase

_CAME: Final = {
    Phase.GATHERING: "joins the round",
    Phase.MEMBER: "is back, with its rank",
    Phase.WAITING: "waits for the next round",
    Phase.REDUNDANT: "is a spare",
}
_WENT: Final = {
    Cause.LEFT: "left",
    Cause.FINISHED: "finished its work",
    Cause.FAILED: "failed",
    Cause.CANCELLED: "left",
    Cause.DRAINED: "was drained",
    Cause.CONNECTION_LOST: "is lost",
    Cause.NO_HEARTBEAT: "is lost",
    Cause.REOPENED: "was dropped, as the run was opened anew",
    Cause.SUPERSEDED: "was dropped, as a round was formed without it",
}
_UNSAID: Final = {Cause.CANCELLED: "it was cancelled"}  # what is said of a node that gave no reason


def event_text(event: LawEvent) -> str:
    """Says what happened."""
    if isinstance(event, RoundOpened):
        return f"round {event.round} gathers"
    if isinstance(event, RoundCompleted):
        return f"round {event.round} is complete with {counted(event.world_size, 'node')}"
    if isinstance(event, RunClosed):
        return closing_text(event.by, event.reason)
    if isinstance(event, RunReopened):
        return f"the run is open again{by_whom(event.by)}: incarnation {event.incarnation}"
    if isinstance(event, WaitingChanged):
        return f"the members are told: {waiting_text(event.count)}"
    return _node_event_text(event)


def _node_event_text(event: NodeJoined | NodePromoted | NodeDeparted | NodeDraining) -> str:
    if isinstance(event, NodeDeparted):
        return departure_text(event.node, event.cause, event.reason)
    if isinstance(event, NodeDraining):
        return draining_text(event.node, event.seconds, event.reason)
    return arrival_text(event.node, event.phase)


def arrival_text(node: str, phase: Phase) -> str:
    """Says that `node` has entered `phase`."""
    return f"{node} {_CAME.get(phase, phase.value)}"


def departure_text(node: str, cause: Cause, reason: str) -> str:
    """Says that `node` is in the run no more, and why: in its own words or the law's, if there are any."""
    if cause.is_loss:
        return f"{node} is lost: {reason or cause.value}"
    return f"{node} {_WENT[cause]}{because(reason or _UNSAID.get(cause, ''))}"


def draining_text(node: str, seconds: float, reason: str) -> str:
    """Says that `node` will leave within `seconds`, which it had left when it said so."""
    return f"{node} is draining and will be gone within {seconds:g} s{because(reason)}"


def waiting_text(count: int) -> str:
    """Says how many nodes wait for the next round."""
    return f"{counted(count, 'node')} {'waits' if count == 1 else 'wait'} for the next round"


def closing_text(by: str, reason: str, age: float | None = None) -> str:
    """Says that the run is closed, by whom, how many seconds ago if that is known, and why."""
    when = "" if age is None else f" {ago(age)}"
    return f"the run was closed{by_whom(by)}{when}{because(reason)}"


def by_whom(by: str) -> str:
    """Names who did something, if that is known, as the end of a clause."""
    return f" by {by}" if by else ""


def because(reason: str) -> str:
    """Gives a reason, if there is any, as the end of a sentence."""
    return f": {reason}" if reason else ""


def counted(number: int, noun: str) -> str:
    """Counts something whose plural ends in s: ``1 node``, ``2 nodes``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def wanted_text(least: int, most: int) -> str:
    """Says how many nodes a round takes: ``3 nodes``, or ``2 to 3 nodes``."""
    return counted(most, "node") if least == most else f"{least} to {counted(most, 'node')}"


def duration(seconds: float) -> str:
    """Says how long something lasts or has lasted, in the unit that suits: ``0.4 s``, ``12 s``, ``3 min``."""
    seconds = max(0.0, seconds)
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"


def ago(age: float) -> str:
    """Says how long ago something was."""
    return "just now" if age < 0.1 else f"{duration(age)} ago"

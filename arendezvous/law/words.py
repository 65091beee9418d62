"""The one wording of what happens in a run, for logs, errors, status, events and the page alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from arendezvous.law import events as ev
from arendezvous.law.events import LawEvent
from arendezvous.law.state import Cause, Phase

_CAME: Final = {  # of one node, and of several
    Phase.GATHERING: ("joins the round", "join the round"),
    Phase.MEMBER: ("is back, with its rank", "are back, with their ranks"),
    Phase.WAITING: ("waits for the next round", "wait for the next round"),
    Phase.REDUNDANT: ("is a spare", "are spares"),
}
_NAMED: Final = 8  # nodes that a line names
_AGAIN: Final = ("joins again", "join again")
_WENT: Final = {
    Cause.LEFT: ("left", "left"),
    Cause.FINISHED: ("finished its work", "finished their work"),
    Cause.FAILED: ("failed", "failed"),
    Cause.CANCELLED: ("left", "left"),
    Cause.DRAINED: ("was drained", "were drained"),
    Cause.CONNECTION_LOST: ("is lost", "are lost"),
    Cause.NO_HEARTBEAT: ("is lost", "are lost"),
    Cause.REOPENED: ("was dropped, as the run was opened anew", "were dropped, as the run was opened anew"),
    Cause.DISAGREED: ("did not agree with the others", "did not agree"),
    Cause.SUPERSEDED: (
        "was dropped, as a round was formed without it", "were dropped, as a round was formed without them"
    ),
    Cause.QUARANTINED: ("was quarantined", "were quarantined"),
}  # fmt: skip
_SAYS_ENOUGH: Final = (Cause.CANCELLED, Cause.CONNECTION_LOST, Cause.NO_HEARTBEAT)  # for want of a reason


def event_text(event: LawEvent) -> str:
    """Says what happened."""
    return _TEXTS[type(event)](event)


def resizing_text(least: int, most: int, role: str, by: str, reason: str) -> str:
    """Says how many nodes a round has by decision; 0: as the nodes agreed."""
    of_role = f" of role {role}" if role else ""
    size = wanted_text(least, most) + of_role if most else f"as many nodes{of_role} as they agreed on"
    return f"the run was resized{by_whom(by)} to {size}{because(reason)}"


def holding_text(by: str, reason: str, seconds: float | None, age: float | None = None) -> str:
    """Says that no round completes, since when if that is known, and for how much longer."""
    until = "until it is released" if seconds is None else f"for {duration(seconds)}"
    return f"the run was held{by_whom(by, age)}, {until}{because(reason)}"


def quarantine_text(
    target: str, by: str, reason: str, seconds: float | None, age: float | None = None, *, is_label: bool
) -> str:
    """Says that a node, or all nodes with a label, are kept out, since when, and for how much longer."""
    until = "until pardoned" if seconds is None else f"for {duration(seconds)}"
    who = target_text(target, is_label=is_label)
    return f"{who} was quarantined{by_whom(by, age)}, {until}{because(reason)}"


def target_text(target: str, *, is_label: bool) -> str:
    """Names a node, or a label."""
    return f"label {target}" if is_label else target


def event_texts(events: Iterable[LawEvent], known: set[str]) -> list[str]:
    """Says what happened, alike to many in one line; `known` are the nodes in the run, brought up to date."""
    groups: dict[object, list[LawEvent]] = {}
    for event in events:
        key = _group_of(event, known)
        groups.setdefault(object() if key is None else key, []).append(event)
    return [_group_text(key, group) for key, group in groups.items()]


def _group_of(event: LawEvent, known: set[str]) -> tuple[object, ...] | None:
    """Returns what the events of one line have in common, their kind first; None: this one has its own."""
    if isinstance(event, ev.NodeJoined | ev.NodePromoted):
        again = isinstance(event, ev.NodeJoined) and event.node in known and event.phase is not Phase.MEMBER
        known.add(event.node)
        return ("came", _AGAIN if again else _came(event.phase))
    if isinstance(event, ev.NodeDeparted):
        known.discard(event.node)
        return ("went", event.cause)
    if isinstance(event, ev.NodeUpdated):
        return ("updated", event.node)
    return ("waiting",) if isinstance(event, ev.WaitingChanged) else None


def _came(phase: Phase) -> tuple[str, str]:
    return _CAME.get(phase, (phase.value,) * 2)


def _group_text(key: object, group: list[LawEvent]) -> str:
    last = group[-1]
    if not isinstance(key, tuple) or isinstance(last, ev.WaitingChanged | ev.NodeUpdated):
        return event_text(last)
    names = [
        event.node for event in group if isinstance(event, ev.NodeJoined | ev.NodePromoted | ev.NodeDeparted)
    ]
    if isinstance(last, ev.NodeDeparted):
        if len(names) == 1:
            return event_text(last)
        return f"{_counted_nodes(names, _WENT[last.cause][1])}{_why_gone(last.cause, last.reason)}"
    one, many = key[1]
    return f"{names[0]} {one}" if len(names) == 1 else _counted_nodes(names, many)


def _counted_nodes(names: list[str], did: str) -> str:
    return f"{counted(len(names), 'node')} {did} ({listed(names, _NAMED)})"


def departure_text(node: str, cause: Cause, reason: str) -> str:
    """Says that `node` is in the run no more, and why: in its own words or the law's, if there are any."""
    return f"{node} {_WENT[cause][0]}{_why_gone(cause, reason)}"


def _why_gone(cause: Cause, reason: str) -> str:
    return because(reason or (cause.value if cause in _SAYS_ENOUGH else ""))


def draining_text(node: str, seconds: float, reason: str) -> str:
    """Says that `node` will leave within `seconds`, which it had left when it said so."""
    return f"{node} is draining and will be gone within {seconds:g} s{because(reason)}"


def stalled_text(node: str, step: int, seconds: float) -> str:
    """Says that the progress of `node` has stood still for `seconds`."""
    return f"{node} stalls: it has been at step {step} for {duration(seconds)}"


def waiting_text(count: int) -> str:
    """Says how many nodes wait for the next round."""
    return f"{counted(count, 'node')} {'waits' if count == 1 else 'wait'} for the next round"


def closing_text(by: str, reason: str, age: float | None = None) -> str:
    """Says that the run is closed, by whom, how many seconds ago if that is known, and why."""
    return f"the run was closed{by_whom(by, age)}{because(reason)}"


def by_whom(by: str, age: float | None = None) -> str:
    """Names who did something, and how many seconds ago, as far as that is known, as the end of a clause."""
    return (f" by {by}" if by else "") + ("" if age is None else f" {ago(age)}")


def because(reason: str) -> str:
    """Gives a reason, if there is any, as the end of a sentence."""
    return f": {reason}" if reason else ""


def counted(number: int, noun: str) -> str:
    """Counts something whose plural ends in s: ``1 node``, ``2 nodes``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def listed(names: Sequence[str], limit: int) -> str:
    """Names the first `limit`, and counts the others."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


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


_TEXTS: Final[Mapping[type, Callable[[Any], str]]] = {
    ev.NodeJoined: lambda e: f"{e.node} {_came(e.phase)[0]}",
    ev.NodePromoted: lambda e: f"{e.node} {_came(e.phase)[0]}",
    ev.NodeDeparted: lambda e: departure_text(e.node, e.cause, e.reason),
    ev.NodeUpdated: lambda e: f"{e.node} says that its state is {e.state.decode()}",
    ev.WaitingChanged: lambda e: f"the members are told: {waiting_text(e.count)}",
    ev.MemberDraining: lambda e: draining_text(e.node, e.seconds, e.reason),
    ev.MemberStalled: lambda e: stalled_text(e.node, e.step, e.seconds),
    ev.RoundOpened: lambda e: f"round {e.round} gathers",
    ev.RoundCompleted: lambda e: f"round {e.round} is complete with {counted(e.world_size, 'node')}",
    ev.RunClosed: lambda e: closing_text(e.by, e.reason),
    ev.RunReopened: lambda e: f"the run is open again{by_whom(e.by)}: incarnation {e.incarnation}",
    ev.BarrierPassed: lambda e: f"all members have come to barrier {e.barrier!r}",
    ev.RoundBroken: lambda e: (
        f"those that wait at a barrier of round {e.round} are told that it is not whole any more"
    ),
    ev.RunResized: lambda e: resizing_text(e.min_nodes, e.max_nodes, e.role, e.by, e.reason),
    ev.RunHeld: lambda e: holding_text(e.by, e.reason, e.seconds),
    ev.RunReleased: lambda e: (
        f"the run was released{by_whom(e.by)}" if e.by else "the hold of the run is over"
    ),
    ev.NodeQuarantined: lambda e: quarantine_text(e.target, e.by, e.reason, e.seconds, is_label=e.is_label),
    ev.NodePardoned: lambda e: (
        f"{target_text(e.target, is_label=e.is_label)} may come in again{by_whom(e.by)}"
    ),
}

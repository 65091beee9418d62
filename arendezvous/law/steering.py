"""Applies the decisions of operators: what each comes to, see `decisions`, and what follows for the nodes."""

from __future__ import annotations

import math
from typing import TypeAlias

from msgspec.structs import replace

from arendezvous.errors import RendezvousSettingsError, RendezvousStateError
from arendezvous.law.decisions import MAX_QUARANTINES, Decisions, Ruling, Sizes
from arendezvous.law.events import LawEvent, NodePardoned, NodeQuarantined, RunHeld, RunReleased, RunResized
from arendezvous.law.operations import Hold, Pardon, Quarantine, Release, Resize
from arendezvous.law.rounds import Rounds
from arendezvous.law.rules import whole_units
from arendezvous.law.state import Cause, RunSettings

Decision: TypeAlias = Resize | Hold | Release | Quarantine | Pardon


def decide(decisions: Decisions, operation: Decision, settings: RunSettings, now: float) -> LawEvent | None:
    """Takes a decision in; returns what has been decided, None if it was so already. Nothing follows yet.

    Raises `RendezvousSettingsError` if it does not suit the run, `RendezvousStateError` if so many are
    quarantined that no more can be; then nothing has changed.
    """
    if isinstance(operation, Resize):
        return _resize(decisions, operation, settings)
    if isinstance(operation, Hold):
        until = math.inf if operation.seconds is None else now + operation.seconds
        held = Ruling(operation.by, operation.reason, now, until)
        if _is_same(decisions.held, held):
            return None
        decisions.held = held
        return RunHeld(operation.by, operation.reason, operation.seconds)
    if isinstance(operation, Release):
        if decisions.held is None:
            return None
        decisions.held = None
        return RunReleased(operation.by)
    key = (operation.is_label, operation.target)
    if isinstance(operation, Pardon):
        struck = not operation.is_label and decisions.strikes.pop(operation.target, None) is not None
        quarantined = decisions.quarantines.pop(key, None) is not None
        return NodePardoned(*key[::-1], operation.by) if struck or quarantined else None
    until = math.inf if operation.seconds is None else now + operation.seconds
    quarantine = Ruling(operation.by, operation.reason, now, until)
    if _is_same(decisions.quarantines.get(key), quarantine):
        return None
    if not decisions.set_quarantine(key, quarantine):
        message = f"{MAX_QUARANTINES} nodes and labels are quarantined, and more cannot be"
        raise RendezvousStateError(f"{message}: pardon some, or quarantine a label")
    return NodeQuarantined(*key[::-1], operation.by, operation.reason, operation.seconds)


def steer(rounds: Rounds, operation: Decision) -> None:
    """Applies a decision to a run."""
    state = rounds.state
    event = decide(state.decisions, operation, state.settings, rounds.now)
    if event is None:
        return
    state.decisions.is_known = True
    rounds.events.append(event)
    if isinstance(operation, Resize):
        rounds.fit(operation.role, operation.by, operation.reason)
    elif isinstance(operation, Quarantine):
        _expel(rounds, operation.is_label, operation.target)
    rounds.settle()


def enforce(rounds: Rounds) -> None:
    """Has decisions that were restored with a run take effect: what followed from them may be unknown."""
    decisions = rounds.state.decisions
    if decisions.are_any:
        for role in rounds.state.settings.agreed.roles or ("",):
            rounds.fit(role)
        for is_label, target in list(decisions.quarantines):
            _expel(rounds, is_label, target)


def _expel(rounds: Rounds, is_label: bool, target: str) -> None:
    """Takes those out of the run who are quarantined now."""
    nodes, decisions = rounds.state.nodes, rounds.state.decisions
    quarantine = decisions.quarantines[is_label, target]
    if quarantine.until <= rounds.now:
        return
    found = [target] if target in nodes and not is_label else []
    if is_label:
        found = [node for node, record in nodes.items() if record.desc.label == target]
    for node in found:
        rounds.depart(node, Cause.QUARANTINED, expulsion_text(quarantine))


def expulsion_text(quarantine: Ruling) -> str:
    """Says why a node departs that is quarantined, and by whom."""
    return f"{quarantine.reason or 'no reason given'} ({quarantine.by or 'somebody'})"


def _is_same(before: Ruling | None, after: Ruling) -> bool:
    """Whether a decision has been taken already, by the same one and for as long."""
    return before is not None and replace(before, at=after.at) == after


def _resize(decisions: Decisions, operation: Resize, settings: RunSettings) -> RunResized | None:
    roles, role = settings.agreed.roles, operation.role
    if bool(roles) is not bool(role) or (role and role not in roles):
        expected = f"one of the run's: {', '.join(roles)}" if roles else "left out, as the run has no roles"
        raise RendezvousSettingsError.of("role", role, expected)
    before = decisions.sizes.get(role)
    if operation.is_undoing:
        if before is None:
            return None
        del decisions.sizes[role]
    else:
        least, most = whole_units(operation.min_nodes, operation.max_nodes, settings.agreed.node_unit)
        if most < max(least, 1):
            numbers = f"{operation.min_nodes}:{operation.max_nodes}"
            expected = f"such that a multiple of node_unit ({settings.agreed.node_unit}) is in between"
            raise RendezvousSettingsError.of("min_nodes:max_nodes", numbers, expected)
        after = Sizes(operation.min_nodes, operation.max_nodes, role, operation.by, operation.reason)
        if after == before:
            return None
        decisions.sizes[role] = after
    decisions.sum_up(settings)
    return RunResized(operation.min_nodes, operation.max_nodes, role, operation.by, operation.reason)

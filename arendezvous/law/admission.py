"""Decides who may come into a run, and in whose place; the checks of the law that change nothing.

A name is an identity, and so is a given rank: each has one holder. A newcomer that asks for what somebody has

* takes the place of a holder whose connection is broken, at once; the others hear of a loss and a newcomer
  (but not of a member that has just been restored from a record, and may be about to come back);
* becomes a spare for a given rank if there is no room anyway, and waits for that rank to be given up;
* may not come in otherwise, as the holder may be alive. The owner of the state lets it wait until the holder
  has been heard of, when it is refused, or has expired: so no name is lost for longer than the expiry.

Two processes under one name are told apart by the owner of the state alone, which has their secrets: a join
by another process than the holder's is a `Claim`.
"""

from __future__ import annotations

import math
from typing import Any, Final

from arendezvous.errors import (
    QuarantinedError,
    RendezvousClosedError,
    RendezvousSettingsError,
    RendezvousStateError,
)
from arendezvous.law.facts import check_facts
from arendezvous.law.lists import is_stand_in
from arendezvous.law.operations import Claim, Join, Resume
from arendezvous.law.state import MAX_WORLD, MEMBER, Cause, Closure, NodeDesc, RendezvousState, RunSettings
from arendezvous.law.words import because, by_whom, closing_text, duration

_WAY_OUT: Final = (
    "use another run id, reopen this one (arendezvous reopen URL RUN_ID), or wait until the server has"
    " forgotten it: --run-retention seconds after its last node has left"
)


def holder_of(state: RendezvousState, operation: Join | Claim, now: float) -> str | None:
    """Tells who has what a node that is not in the run asks for, its name or its rank, and may be alive.

    None: it can be applied. Raises `RendezvousError` if the node may not come in, whoever has that.
    """
    claims = isinstance(operation, Claim)
    join = operation.join if isinstance(operation, Claim) else operation
    check_name(join.desc.name)
    check_newcomer(state, join, now)
    return _holders(state, join, now, claims=claims)[0]


def displaced_by(state: RendezvousState, join: Join, now: float, *, claims: bool) -> list[str]:
    """Lists whose place a newcomer takes; if it `claims`, it comes under a name that another process has.

    Raises `RendezvousError` if it may not come in.
    """
    check_newcomer(state, join, now)
    if not claims and join.desc.rank is None:
        return []
    holder, displaced = _holders(state, join, now, claims=claims)
    if holder is None:
        return displaced
    if holder == join.node:
        message = f"the node name {holder!r} is in use; give every node a name of its own"
        raise RendezvousStateError(message, node=holder)
    raise rank_error(join.desc, holder)


def _holders(state: RendezvousState, join: Join, now: float, *, claims: bool) -> tuple[str | None, list[str]]:
    """Finds who has the name or rank that is asked for and may be alive, if any; and who has lost touch."""
    desc, displaced = join.desc, []
    suspects = state.suspects if now >= state.reserved else {}
    if claims and desc.name in state.nodes:
        if desc.name not in suspects:
            return desc.name, []
        displaced.append(desc.name)
    holder = None if desc.rank is None else state.given.get(desc.rank)
    if holder is None or holder in displaced:
        return None, displaced
    if holder in suspects:
        return None, [*displaced, holder]
    becomes_spare = state.room <= 0 and not displaced
    return None if becomes_spare else holder, displaced


def check_newcomer(state: RendezvousState, join: Join, now: float) -> None:
    """Raises `RendezvousError` if it may not come in, whether or not its name and its rank are free."""
    if state.decisions.quarantines:  # saves a join two calls
        check_quarantine(state, join.desc, now)
    if join.reopen and begins_anew(state, join, now):
        check_rank(join.desc, join.settings, join.settings.max_nodes)
        return
    check_open(state, now)
    check_settings(state, join.desc, join.settings)


def begins_anew(state: RendezvousState, join: Join, now: float) -> bool:
    """Tells whether a newcomer begins the run anew, as its next incarnation.

    It does so, if its `Join.reopen` asks for it, to a run that has *ended*; or, with ``failed``, to any that
    was closed. Nobody may be in the run but nodes whose connection broke, and none that may be about to come
    back after a restart; and what an operator has closed stays closed.
    """
    if not join.reopen or (state.nodes and now < state.reserved):
        return False
    if state.closed is None:
        return state.ended
    if not state.closed.by_node or len(state.suspects) < len(state.nodes):
        return False
    return state.unfinished == 0 or join.reopen == "failed"


def was_released(state: RendezvousState, join: Join) -> bool:
    """Tells whether a member was drained and joins as it has not heard yet that its drain is over."""
    gone = state.departed.get(join.desc.name)
    return gone is not None and gone.cause is Cause.DRAINED and gone.round == join.after[1]


def check_name(node: str) -> None:
    """Raises `RendezvousSettingsError` if `node` is a name that no real node may have."""
    if is_stand_in(node):
        raise RendezvousSettingsError.of("node name", node, "another; such names stand in for absent members")


def check_open(state: RendezvousState, now: float) -> None:
    """Raises `RendezvousClosedError` if the run is closed."""
    if state.closed is not None:
        raise closed_error(state.closed, now)


def check_settings(state: RendezvousState, desc: NodeDesc, settings: RunSettings) -> None:
    """Raises `RendezvousSettingsError` unless a node's settings are the run's, and its given rank is one."""
    ours: Any = state.settings
    theirs: Any = settings
    has_roles = theirs.rules is not None  # which may be in another order, that is that of the ranks
    if state.nodes and (theirs != ours or (has_roles and [*theirs.rules.roles] != [*ours.rules.roles])):
        name = _differing(ours, theirs) or "rules"
        if name == "rules":
            ours, theirs = ours.agreed, theirs.agreed
            name = _differing(ours, theirs) or "roles"
        expected = f"{getattr(ours, name)!r}, as for the nodes that are in the run already"
        raise RendezvousSettingsError.of(name, getattr(theirs, name), expected)
    if settings.rules is not None or desc.brings is not None:
        check_brought(settings, desc)
    if settings.rank_policy == "given":
        check_rank(desc, settings, max(settings.max_nodes, state.max_nodes))


def check_rank(desc: NodeDesc, settings: RunSettings, max_nodes: int) -> None:
    """Raises `RendezvousSettingsError` unless a node has a given rank if it has to."""
    if settings.rank_policy == "given" and (desc.rank is None or desc.rank >= max_nodes):
        allowed = f"from 0 to {max_nodes - 1}, as the rank policy is 'given'"
        raise RendezvousSettingsError.of("rank", desc.rank, allowed)


def check_quarantine(state: RendezvousState, desc: NodeDesc, now: float) -> None:
    """Raises `QuarantinedError` if a node is kept out, by its name or its label."""
    found = state.decisions.quarantine_of(desc.name, desc.label, now)
    if found is None:
        return
    left = None if math.isinf(found.until) else max(0.0, found.until - now)
    until = "until it is pardoned" if left is None else f"for {duration(left)} more, or until it is pardoned"
    said = f"{desc.name} is quarantined{by_whom(found.by)}, {until}{because(found.reason)}"
    message = f"{said}. An operator lets it in: arendezvous pardon URL RUN_ID NODE"
    raise QuarantinedError(message, by=found.by, reason=found.reason, seconds=left)


def _differing(one: Any, other: Any) -> str:
    """Names the first field in which two settings differ; empty if they are equal."""
    return next((n for n in one.__struct_fields__ if getattr(one, n) != getattr(other, n)), "")


def check_brought(settings: RunSettings, desc: NodeDesc) -> None:
    """Raises `RendezvousSettingsError` unless a node has a role that the run has, and brings its facts."""
    rules, brought = settings.agreed, desc.brought
    if rules.roles and brought.role not in rules.roles:
        raise RendezvousSettingsError.of("role", brought.role, f"one of {', '.join(rules.roles)}")
    if brought.role and not rules.roles:
        expected = "left out: this run has no roles, see open_rendezvous(roles=)"
        raise RendezvousSettingsError.of("role", brought.role, expected)
    check_facts(rules.facts, brought.facts)


def check_resume(state: RendezvousState, operation: Resume) -> None:
    """Raises `RendezvousSettingsError` if there can be no such rank, or if another member has it."""
    size, settings, desc = operation.world_size, operation.settings, operation.desc
    check_name(desc.name)
    if not 1 <= size <= MAX_WORLD:  # the run may have been resized, which may be forgotten
        raise RendezvousSettingsError.of("world_size", size, f"from 1 to {MAX_WORLD}")
    if not 0 <= operation.rank < size:
        raise RendezvousSettingsError.of("rank", operation.rank, f"from 0 to {size - 1}")
    check_settings(state, desc, settings)
    holder = None if desc.rank is None else state.given.get(desc.rank)
    if holder is not None and state.phase(holder) is MEMBER:
        raise rank_error(desc, holder)


def can_be_restored(state: RendezvousState, operation: Resume) -> bool:
    """Whether nothing later than what `operation` tells of is known, nor was formed here.

    A run that was closed here before anybody told of a round may have one all the same.
    """
    held = (operation.incarnation, operation.round)
    known = (max(state.incarnation, state.incarnation_floor), state.round_floor - 1)
    if (state.closed is not None and state.unfinished >= 0) or held < known:
        return False
    if state.complete:  # in a recovery, what is complete was restored, perhaps by one who was away for long
        return state.recovery is not None and held > (state.incarnation, state.round)
    return held >= (state.incarnation, state.round)


def rank_error(desc: NodeDesc, holder: str) -> RendezvousSettingsError:
    """Builds the error for a node that asks for the given rank of another."""
    return RendezvousSettingsError.of("rank", desc.rank, f"free, but {holder} has it; give each node its own")


def closed_error(closure: Closure, now: float) -> RendezvousClosedError:
    """Builds the error for whoever joins a closed run."""
    age = max(0.0, now - closure.at)
    message = f"{closing_text(closure.by, closure.reason, age)}; {_WAY_OUT}"
    return RendezvousClosedError(message, by=closure.by, reason=closure.reason, age=age)

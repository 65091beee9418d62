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

from typing import Any, Final

from arendezvous.errors import RendezvousClosedError, RendezvousSettingsError, RendezvousStateError
from arendezvous.law.facts import check_facts
from arendezvous.law.lists import is_stand_in
from arendezvous.law.operations import Claim, Join, Resume
from arendezvous.law.state import MEMBER, Cause, Closure, NodeDesc, RendezvousState, RunSettings
from arendezvous.law.words import closing_text

_WAY_OUT: Final = (
    "use another run id, reopen this one (arendezvous reopen URL RUN_ID), or wait until the server has"
    " forgotten it: --run-retention seconds after its last node has left"
)


def holder_of(state: RendezvousState, operation: Join | Claim, now: float) -> str | None:
    """Tells who has what a node that is not in the run asks for, its name or its rank, and may be alive.

    Args:
        state: Looked at; not changed.
        operation: What the node proposes.
        now: Seconds on the clock of the state's owner.

    Returns:
        The holder; None: the operation can be applied.

    Raises:
        RendezvousError: The node may not come in, whoever has its name and its rank.
    """
    claims = isinstance(operation, Claim)
    join = operation.join if isinstance(operation, Claim) else operation
    check_name(join.desc.name)
    check_newcomer(state, join, now)
    return _holders(state, join, now, claims=claims)[0]


def displaced_by(state: RendezvousState, join: Join, now: float, *, claims: bool) -> list[str]:
    """Checks that a newcomer may come in, and lists those whose place it takes.

    Args:
        state: Looked at; not changed.
        join: What the newcomer proposes.
        now: Seconds on the clock of the state's owner.
        claims: It comes under a name that another process has.

    Raises:
        RendezvousError: It may not come in.
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
    """Finds who has the name or the given rank that a newcomer asks for.

    Returns:
        Who has it and may be alive, None if nobody; and all who have it and whose connection broke.
    """
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
    """Checks all but its name, and whether that and its rank are free.

    Raises:
        RendezvousError: It may not come in.
    """
    check_open(state, now)
    check_settings(state, join.desc, join.settings)


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
    if state.nodes and (settings != state.settings or not have_same_order(settings, state.settings)):
        ours: Any = state.settings
        theirs: Any = settings
        name = _differing(ours, theirs) or "rules"
        if name == "rules":
            ours, theirs = ours.agreed, theirs.agreed
            name = _differing(ours, theirs) or "roles"
        expected = f"{getattr(ours, name)!r}, as for the nodes that are in the run already"
        raise RendezvousSettingsError.of(name, getattr(theirs, name), expected)
    if settings.rules is not None or desc.brings is not None:
        check_brought(settings, desc)
    if settings.rank_policy == "given" and (desc.rank is None or desc.rank >= settings.max_nodes):
        allowed = f"from 0 to {settings.max_nodes - 1}, as the rank policy is 'given'"
        raise RendezvousSettingsError.of("rank", desc.rank, allowed)


def have_same_order(one: RunSettings, other: RunSettings) -> bool:
    """Whether the roles of equal settings are in the same order, which is that of the ranks."""
    return one.rules is None or other.rules is None or list(one.rules.roles) == list(other.rules.roles)


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
    if not settings.min_nodes <= size <= settings.max_nodes:
        allowed = f"from min_nodes ({settings.min_nodes}) to max_nodes ({settings.max_nodes})"
        raise RendezvousSettingsError.of("world_size", size, allowed)
    if not 0 <= operation.rank < size:
        raise RendezvousSettingsError.of("rank", operation.rank, f"from 0 to {size - 1}")
    check_settings(state, desc, settings)
    holder = None if desc.rank is None else state.given.get(desc.rank)
    if holder is not None and state.phase(holder) is MEMBER:
        raise rank_error(desc, holder)


def rank_error(desc: NodeDesc, holder: str) -> RendezvousSettingsError:
    """Builds the error for a node that asks for the given rank of another."""
    return RendezvousSettingsError.of("rank", desc.rank, f"free, but {holder} has it; give each node its own")


def closed_error(closure: Closure, now: float) -> RendezvousClosedError:
    """Builds the error for whoever joins a closed run."""
    age = max(0.0, now - closure.at)
    message = f"{closing_text(closure.by, closure.reason, age)}; {_WAY_OUT}"
    return RendezvousClosedError(message, by=closure.by, reason=closure.reason, age=age)

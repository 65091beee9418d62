"""The law of the rendezvous: pure and synchronous; time is an argument.

Theory of operation
===================

A run is a sequence of *rounds*. A round *gathers* participants until it is *complete*; then its participants
are *members*, each with a rank, and their list never changes but by removal. Two rules make up the rest:

1. **Only `apply` changes a `RendezvousState`**, one operation at a time, deterministically. An operation that
   is illegal raises and changes nothing. A repeated operation is harmless, so a lost reply may be answered
   by sending it again.
2. **`now` is the clock of the state's owner** and of nobody else. Nodes send durations, never times.

A node is in at most one of three lists::

                      Join                        the round completes
        (gone) ─────────────────► participants ═══════════════════════► member
           │  ▲                        ▲                                 │   │
      Join │  │ Leave, expiry          │ a round opens      Join (again) │   │ Leave, expiry,
           ▼  │                        │                                 ▼   ▼ drain over
        redundancy list ───────────► wait list ◄─────────────────── wait list (gone)
                        a place is free

* **Completion.** With `max_nodes` participants a round completes at once. With `min_nodes` the last call
  begins, and the round completes when it is over; if participants fall below `min_nodes` again, the last call
  is off. The last call is for newcomers: a round that consists of members of the round before alone, all
  that are left of them, completes as soon as it has `min_nodes`.
* **The next round** opens when no member of the complete round remains: each has joined again, left, or been
  expired. Draining members do not hold it up: once every other member has moved on, they are removed.
  Members of the round before enter first, by rank, then the wait list by age, up to `max_nodes`; the others
  become spares.
* **A place that comes free** in a complete round, or is about to (a drain), is offered to the oldest spare,
  which moves to the wait list; that the wait list is not empty tells the members to meet again.
* **Expiry.** A node that is silent for `RunSettings.expiry` seconds, or whose connection broke
  `disconnect_grace` seconds ago, departs on the next `Tick`. `next_wake` says when one is due. The owner
  applies a `Tick` before any other operation if one is due.
* **Closed** is final for the incarnation: no round opens or completes. Members keep their ranks.
* **A coordinator that forgot the run** (it keeps its state in memory, and was restarted) learns it again from
  its members, who `Resume`: the first restores the round, with a stand-in for every rank that has not resumed
  yet; a stand-in that nobody claims within `disconnect_grace` seconds, or one if that is longer, is expired.
  No round at or below one that a node says it knows, by `Resume` or `Join.after`, is ever formed again.

Cost: every operation is O(log N) amortised. Ranks are sorted once a round; expiry looks at the oldest
heartbeat, not at all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from arendezvous.errors import RendezvousClosedError, RendezvousSettingsError, RendezvousStateError
from arendezvous.law.operations import (
    Close,
    Disconnect,
    Drain,
    Join,
    KeepAlive,
    LawEvent,
    Leave,
    NodeDeparted,
    NodeDraining,
    NodeJoined,
    Operation,
    Reopen,
    Resume,
    RunClosed,
    RunReopened,
    Tick,
)
from arendezvous.law.rounds import Rounds, addresses_of, is_stand_in, stand_in_name
from arendezvous.law.state import (
    GATHERING,
    GONE,
    MEMBER,
    REDUNDANT,
    WAITING,
    Cause,
    Closure,
    Departure,
    NodeDesc,
    NodeView,
    RendezvousState,
    RunSettings,
)
from arendezvous.law.words import closing_text


def apply(state: RendezvousState, operation: Operation, now: float) -> list[LawEvent]:
    """Applies `operation` to `state`, in place.

    Args:
        state: Changed in place; not at all if this raises.
        operation: What to do.
        now: Seconds on the clock of the state's owner.

    Returns:
        What came of it, in order; empty if nobody can see a difference.

    Raises:
        RendezvousClosedError: A node that has no rank joins a closed run.
        RendezvousSettingsError: A node joins with settings or a given rank that do not fit the run's.
        RendezvousStateError: The state does not allow the operation.
    """
    handler = _HANDLERS.get(type(operation))
    if handler is None:
        raise RendezvousStateError(f"{type(operation).__name__} is not an operation of the rendezvous")
    rounds = Rounds(state, now)
    handler(rounds, operation)
    if rounds.events:
        state.revision += 1
    return rounds.events


def next_wake(state: RendezvousState) -> float | None:
    """Tells when the next `Tick` is due, on the owner's clock; None while nothing is pending."""
    due = math.inf if state.deadline is None else state.deadline
    if state.last_heartbeats:
        due = min(due, next(iter(state.last_heartbeats.values())) + state.settings.expiry)
    if state.suspects:
        due = min(due, next(iter(state.suspects.values())))
    if state.drain_queue:
        due = min(due, state.drain_queue[0][0])
    return None if due == math.inf else due


def view(state: RendezvousState, node: str, now: float) -> NodeView:
    """Takes `node`'s view of `state`; constant work, whatever the number of nodes."""
    phase = state.phase(node)
    if phase is MEMBER:
        return NodeView(
            node, state.revision, state.incarnation, state.round, phase, state.participants[node],
            state.world_size, state.digest, state.rank0, len(state.wait_list), tuple(state.notices),
            state.closed, None, now,
        )  # fmt: skip
    return NodeView(
        node, state.revision, max(state.incarnation, state.incarnation_floor),
        max(state.round, state.round_floor - 1), phase, waiting=len(state.wait_list),
        closed=state.closed, gone=state.departed.get(node), now=now,
    )  # fmt: skip


# The operations: each checks all that could be illegal before it changes anything.


def _join(rounds: Rounds, operation: Join) -> None:
    state, node = rounds.state, operation.desc.name
    _check_name(node)
    phase = state.phase(node)
    answered = phase is MEMBER and (state.incarnation, state.round) > operation.after
    if answered or phase not in (MEMBER, GONE):
        rounds.beat(node)
        return
    if state.closed is not None:
        raise closed_error(state.closed, rounds.now)
    if node in state.drains:
        message = f"{node} is draining, so it cannot join another round; leave the run first"
        raise RendezvousStateError(message, node=node)
    if phase is MEMBER:
        entered = WAITING
        rounds.exit(node, phase)
        rounds.enter(node, entered)
        rounds.learn(*operation.after)
    else:
        _check_admission(state, operation.desc, operation.settings)
        rounds.learn(*operation.after)
        state.settings = operation.settings
        state.departed.pop(node, None)
        rounds.register(operation.desc)
        if not state.complete:
            entered = GATHERING
        elif rounds.room() > 0:
            entered = WAITING
        else:
            entered = REDUNDANT
        rounds.enter(node, entered)
    rounds.events.append(NodeJoined(node, entered))
    rounds.beat(node)
    rounds.settle()


def _resume(rounds: Rounds, operation: Resume) -> None:
    state, node = rounds.state, operation.desc.name
    _check_name(node)
    if node in state.nodes:
        rounds.beat(node)
        return
    _check_resume(operation)
    _check_admission(state, operation.desc, operation.settings)
    held = (operation.incarnation, operation.round)
    unknown = not state.complete and state.closed is None and held >= (state.incarnation, state.round)
    if unknown and operation.round >= state.round_floor:
        rounds.restore(operation)
        rounds.settle()
    stand_in = stand_in_name(operation.round, operation.rank)
    same = held == (state.incarnation, state.round) and operation.digest == state.digest
    if same and stand_in in state.participants:
        rounds.exit(stand_in, MEMBER)
        rounds.forget(stand_in)
        rounds.register(operation.desc)
        state.participants[node] = state.ranks[node] = operation.rank
        if operation.rank == 0:
            state.rank0 = addresses_of(operation.desc)
        state.departed.pop(node, None)
        rounds.events.append(NodeJoined(node, MEMBER))
        rounds.beat(node)
        return
    rounds.learn(operation.incarnation, operation.round)
    if node not in state.departed:
        reason = "the coordinator did not know its round when it came back, and had begun another"
        rounds.remember(node, Departure(Cause.SUPERSEDED, reason, operation.round, rounds.now))
        rounds.events.append(NodeDeparted(node, GONE, Cause.SUPERSEDED, reason))


def _leave(rounds: Rounds, operation: Leave) -> None:
    if operation.node in rounds.state.nodes:
        rounds.depart(operation.node, operation.cause, operation.reason)
        rounds.settle()


def _drain(rounds: Rounds, operation: Drain) -> None:
    node = operation.node
    if node not in rounds.state.nodes:
        return
    if rounds.state.phase(node) is MEMBER:
        rounds.announce_drain(node, operation.seconds, operation.reason)
        rounds.events.append(NodeDraining(node, operation.seconds, operation.reason))
    else:
        rounds.depart(node, Cause.DRAINED, operation.reason)
    rounds.settle()


def _keep_alive(rounds: Rounds, operation: KeepAlive) -> None:
    if operation.node in rounds.state.nodes:
        rounds.beat(operation.node)


def _disconnect(rounds: Rounds, operation: Disconnect) -> None:
    state, node = rounds.state, operation.node
    if node not in state.nodes or node in state.suspects:
        return
    state.suspects[node] = rounds.now + state.settings.disconnect_grace
    if state.settings.disconnect_grace <= 0:
        rounds.expire()
        rounds.settle()


def _close(rounds: Rounds, operation: Close) -> None:
    over = operation.incarnation is not None and operation.incarnation < rounds.state.incarnation
    if rounds.state.closed is None and not over:
        rounds.state.closed = Closure(operation.by, operation.reason, rounds.now)
        rounds.state.deadline = None
        rounds.events.append(RunClosed(operation.by, operation.reason))


def _reopen(rounds: Rounds, operation: Reopen) -> None:
    state = rounds.state
    if operation.incarnation < state.incarnation:
        return
    latest = max(state.incarnation, state.incarnation_floor)
    if state.closed is None or operation.incarnation > latest:
        raise RendezvousStateError(
            f"incarnation {operation.incarnation} is not closed, so it cannot be reopened; "
            f"the run is in incarnation {state.incarnation}"
        )
    for node in list(state.nodes):
        rounds.depart(node, Cause.REOPENED, f"reopened by {operation.by}" if operation.by else "")
    state.closed = None
    state.incarnation = latest + 1
    rounds.events.append(RunReopened(state.incarnation, operation.by))
    rounds.open_round()
    rounds.settle()


def _tick(rounds: Rounds, _: Tick) -> None:
    rounds.expire()
    rounds.settle()


def closed_error(closure: Closure, now: float) -> RendezvousClosedError:
    """Builds the error for whoever joins a closed run."""
    age = max(0.0, now - closure.at)
    message = f"{closing_text(closure.by, closure.reason, age)}; use another run id, or reopen the run"
    return RendezvousClosedError(message, by=closure.by, reason=closure.reason, age=age)


def _check_name(node: str) -> None:
    if is_stand_in(node):
        raise RendezvousSettingsError.of("node name", node, "another; such names stand in for absent members")


def _check_admission(state: RendezvousState, desc: NodeDesc, settings: RunSettings) -> None:
    if state.nodes and settings != state.settings:
        ours, fields = state.settings, RunSettings.__struct_fields__
        name = next(n for n in fields if getattr(ours, n) != getattr(settings, n))
        expected = f"{getattr(ours, name)!r}, as for the nodes that are in the run already"
        raise RendezvousSettingsError.of(name, getattr(settings, name), expected)
    if settings.rank_policy != "given":
        return
    if desc.rank is None or desc.rank >= settings.max_nodes:
        allowed = f"from 0 to {settings.max_nodes - 1}, as the rank policy is 'given'"
        raise RendezvousSettingsError.of("rank", desc.rank, allowed)
    holder = state.given.get(desc.rank)
    if holder is not None:
        raise RendezvousSettingsError.of(
            "rank", desc.rank, f"free, but {holder} has it; give each node its own"
        )


def _check_resume(operation: Resume) -> None:
    size, settings = operation.world_size, operation.settings
    if not settings.min_nodes <= size <= settings.max_nodes:
        allowed = f"from min_nodes ({settings.min_nodes}) to max_nodes ({settings.max_nodes})"
        raise RendezvousSettingsError.of("world_size", size, allowed)
    if not 0 <= operation.rank < size:
        raise RendezvousSettingsError.of("rank", operation.rank, f"from 0 to {size - 1}")


_HANDLERS: Final[Mapping[type, Callable[[Rounds, Any], None]]] = {
    Join: _join,
    Resume: _resume,
    Leave: _leave,
    Drain: _drain,
    KeepAlive: _keep_alive,
    Disconnect: _disconnect,
    Close: _close,
    Reopen: _reopen,
    Tick: _tick,
}

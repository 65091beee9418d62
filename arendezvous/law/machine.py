"""The law of the rendezvous: pure and synchronous; time is an argument.

Theory of operation
===================

A run is a sequence of *rounds*. A round *gathers* participants until it is *complete*; then its participants
are *members*, each with a rank, and their list never changes but by removal. Two rules make up the rest:

1. **Only `apply` changes a `RendezvousState`** (and `recall` one that has been forgotten), one operation at a
   time, deterministically. An operation that is illegal raises and changes nothing. A repeated operation is
   harmless, so a lost reply may be answered by sending it again.
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
* **A draining member** that joins again stays where it is until it is removed, and is not brought back by it.
* **Roles and whole units** (`RoundRules`): what completes a round then, and who is a spare of what, says
  `seats`; who of the participants is chosen, and in which order, `blocks`. **Facts** are reduced as the round
  completes, see `facts`. Who its members were stays until the next one completes, see `rosters`.
* **A name is an identity**, and so is a given rank: `admission` says in whose place a newcomer comes.
* **Expiry.** A node that is silent for `RunSettings.expiry` seconds, or whose connection broke
  `disconnect_grace` seconds ago, departs on the next `Tick`. `next_wake` says when one is due. The owner
  applies a `Tick` before any other operation if one is due.
* **Closed** is final for the incarnation: no round opens or completes. Members keep their ranks.
* **A coordinator that forgot the run** (it keeps its state in memory, and was restarted) learns it again from
  its members, who `Resume`: the first restores the round, with a stand-in for every rank that has not resumed
  yet; a stand-in that nobody claims within `disconnect_grace` seconds, or one if that is longer, is expired.
  Members that keep an image of the run have their names put in, and what has become of them, see `recall`.
  No round at or below one that a node says it knows, by `Resume` or `Join.after`, is ever formed again.
* **An owner that keeps a record** (`RendezvousState.records`) makes a round complete in two steps: the law
  says that it is *ready*, the owner records who would have which rank, and then applies `Record`. If a node
  has come or gone meanwhile nothing happens, and what is ready then is recorded anew. So a rank that somebody
  was told is never forgotten; and as long as nothing can be recorded, nodes gather, and may go. What such an
  owner remembers is made a state again by `image.restore`.
* **Members of a complete round meet** at barriers, and agree on values there: `barriers`. What a node says of
  its state is kept for those who look on, and how far its work has come, so that who stands still is told of:
  `steps`.
* **Recovery.** Spares and newcomers may be back before any member. So no round completes in the second (or
  the expiry, if that is less) after somebody has told of a round that is not known here, nor in the one after
  the start of a coordinator that follows another, for which `RendezvousState` is made with a recovery. A
  member that comes in that time restores the round; who comes later, when another has been formed, is
  superseded. If none came, the next round gets the number `first_round` if that is later, because there may
  have been rounds that nobody here has heard of. A coordinator that knows of no other before it, and is told
  of no round, begins with round 0, at once.
* **Decisions** of operators, and of the law itself, change the numbers of nodes, hold rounds back, and keep
  nodes out: see `decisions`. Whoever joins a run that is over may begin it anew: see `admission.begins_anew`.

Cost: every operation is O(log N) amortised. Ranks are sorted once a round; expiry looks at the oldest
heartbeat, not at all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from arendezvous.errors import RendezvousStateError
from arendezvous.law import admission
from arendezvous.law import operations as ops
from arendezvous.law.barriers import Barriers, Steps, check_arrival
from arendezvous.law.events import LawEvent, MemberDraining, NodeDeparted, NodeJoined, NodeUpdated
from arendezvous.law.facts import checked_value
from arendezvous.law.lists import stand_in_name
from arendezvous.law.recall import restore
from arendezvous.law.rosters import addresses_of
from arendezvous.law.rounds import Rounds, ranked
from arendezvous.law.state import GONE, MEMBER, WAITING, Cause, Departure, NodeView, RendezvousState
from arendezvous.law.steering import expulsion_text, steer


def apply(state: RendezvousState, operation: ops.Operation, now: float) -> list[LawEvent]:
    """Applies `operation` to `state`, in place; not at all if this raises.

    `now` is in seconds, by the clock of the state's owner.

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
    if state.barriers is not None:
        rounds.events += state.barriers.settled(state)
    if rounds.events:
        state.revision += 1
    return rounds.events


def next_wake(state: RendezvousState) -> float | None:
    """Tells when the next `Tick` is due, on the owner's clock; None while nothing is pending."""
    due = math.inf if state.recovery is None else state.recovery
    if state.decisions.held is not None:
        due = min(due, state.decisions.held.until)
    elif state.recovery is None and state.deadline is not None and not state.ready:
        due = state.deadline
    if state.last_heartbeats:
        due = min(due, next(iter(state.last_heartbeats.values())) + state.settings.expiry)
    if state.suspects:
        due = min(due, next(iter(state.suspects.values())))
    if state.drain_queue:
        due = min(due, state.drain_queue[0][0])
    if state.steps is not None:
        stall = state.steps.due(state.settings.agreed.stall_timeout)
        due = due if stall is None else min(due, stall)
    return None if due == math.inf else due


def view(state: RendezvousState, node: str, now: float) -> NodeView:
    """Takes `node`'s view of `state`; constant work, whatever the number of nodes.

    Where nothing in it is dated, `NodeView.now` is a whole 0, which saves 8 of some 80 bytes on the wire.
    """
    phase, closed = state.phase(node), state.closed
    if phase is MEMBER:
        dated = 0 if closed is None else now
        rank, roster = state.participants[node], state.roster
        share = None if roster is None or roster.shares is None else roster.shares[rank]
        return NodeView(
            node, state.revision, state.incarnation, state.round, phase, rank,
            state.world_size, state.digest, state.rank0, len(state.wait_list), tuple(state.notices),
            closed, None, dated, share, state.decisions.excess,
        )  # fmt: skip
    gone = state.departed.get(node)
    dated = 0 if closed is None and gone is None else now
    return NodeView(
        node, state.revision, max(state.incarnation, state.incarnation_floor),
        max(state.round, state.round_floor - 1), phase, waiting=len(state.wait_list),
        closed=closed, gone=gone, now=dated,
    )  # fmt: skip


# The operations: each checks all that could be illegal before it changes anything.


def _join(rounds: Rounds, operation: ops.Join) -> None:
    state, node = rounds.state, operation.desc.name
    admission.check_name(node)
    phase = state.phase(node)
    if phase is GONE:
        if node not in state.departed or not admission.was_released(state, operation):
            _enter(rounds, operation, admission.displaced_by(state, operation, rounds.now, claims=False))
        return
    if phase is not MEMBER or node in state.drains or (state.incarnation, state.round) > operation.after:
        rounds.beat(node)
        return
    admission.check_open(state, rounds.now)
    brings = operation.desc.brings
    if brings is not None or state.settings.rules is not None:
        admission.check_brought(state.settings, operation.desc)
    rounds.move_on(node, brings)
    rounds.learn(*operation.after)
    rounds.events.append(NodeJoined(node, WAITING))
    rounds.beat(node)
    rounds.settle()


def _claim(rounds: Rounds, operation: ops.Claim) -> None:
    join = operation.join
    admission.check_name(join.desc.name)
    _enter(rounds, join, admission.displaced_by(rounds.state, join, rounds.now, claims=True))


def _enter(rounds: Rounds, join: ops.Join, displaced: list[str]) -> None:
    """Brings a newcomer in, in place of those that are `displaced`."""
    state, desc = rounds.state, join.desc
    rivals = state.rivals.pop(desc.rank, {}) if displaced and desc.rank is not None else {}
    for holder in displaced:
        rivals.pop(holder, None)
        what = "under its name" if holder == desc.name else f"for its rank, as {desc.name}"
        rounds.depart(holder, Cause.CONNECTION_LOST, f"its connection broke, and another process came {what}")
    if join.reopen and admission.begins_anew(state, join, rounds.now):
        rounds.begin_incarnation(join.node)
    if not state.nodes:
        if state.decisions.sizes and join.settings != state.settings:
            state.decisions.sizes.clear()
            state.decisions.sum_up(join.settings)
        rounds.settle_on(join.settings)
    if join.after != ops.NOTHING_KNOWN:
        rounds.hear_of(*join.after)
    state.departed.pop(desc.name, None)
    rounds.register(desc)
    if rivals and desc.rank is not None:  # it goes before those that wait for the rank
        state.rivals[desc.rank] = rivals
    entered = rounds.place_of(desc)
    rounds.enter(desc.name, entered)
    rounds.events.append(NodeJoined(desc.name, entered))
    rounds.beat(desc.name)
    rounds.settle()


def _resume(rounds: Rounds, operation: ops.Resume) -> None:
    state, node = rounds.state, operation.desc.name
    admission.check_name(node)
    held = (operation.incarnation, operation.round)
    same = held == (state.incarnation, state.round) and operation.digest == state.digest
    if node in state.nodes:
        roster = state.roster
        if same and roster is not None and state.participants.get(node) == operation.rank:
            roster.learn_share(operation.rank, operation.share)  # others knew all else of it
        rounds.beat(node)
        return
    admission.check_resume(state, operation)
    found = state.decisions.quarantine_of(node, operation.desc.label, rounds.now)
    if found is not None:
        _send_away(rounds, operation, Cause.QUARANTINED, expulsion_text(found))
        return
    if admission.can_be_restored(state, operation):
        restore(rounds, operation)
        rounds.settle()
        same = True
    stand_in = stand_in_name(operation.round, operation.rank)
    if same and stand_in in state.participants:
        rounds.take_out(stand_in)
        rounds.bring_back(operation.desc, operation.rank, stand_in)
        if state.roster is not None:
            state.roster.learn(operation.rank, operation.desc, operation.share)
        if operation.rank == 0:
            state.rank0 = addresses_of(operation.desc)
        state.departed.pop(node, None)
        rounds.events.append(NodeJoined(node, MEMBER))
        rounds.beat(node)
        rounds.settle()
        return
    rounds.learn(operation.incarnation, operation.round)
    rounds.renumber()
    reason = "the coordinator did not know its round when it came back, and had begun another"
    _send_away(rounds, operation, Cause.SUPERSEDED, reason)


def _send_away(rounds: Rounds, operation: ops.Resume, cause: Cause, reason: str) -> None:
    """Tells a member that it is gone, unless it has been told of that before."""
    node = operation.node
    if node not in rounds.state.departed:
        rounds.remember(node, Departure(cause, reason, operation.round, rounds.now))
        rounds.events.append(NodeDeparted(node, GONE, cause, reason))


def _leave(rounds: Rounds, operation: ops.Leave) -> None:
    if operation.node in rounds.state.nodes:
        rounds.depart(operation.node, operation.cause, operation.reason)
        rounds.settle()


def _drain(rounds: Rounds, operation: ops.Drain) -> None:
    node = operation.node
    if node not in rounds.state.nodes:
        return
    if rounds.state.phase(node) is MEMBER:
        rounds.begin_drain(node, operation.seconds, operation.reason)
        rounds.notice(node, None, operation.reason, operation.seconds)
        rounds.events.append(MemberDraining(node, operation.seconds, operation.reason))
    else:
        rounds.depart(node, Cause.DRAINED, operation.reason)
    rounds.settle()


def _keep_alive(rounds: Rounds, operation: ops.KeepAlive) -> None:
    if operation.node in rounds.state.nodes:
        rounds.beat(operation.node)


def _disconnect(rounds: Rounds, operation: ops.Disconnect) -> None:
    state, node = rounds.state, operation.node
    if node not in state.nodes or node in state.suspects:
        return
    until = rounds.now + state.settings.disconnect_grace
    if state.suspects:  # those that were restored may have longer, and the earliest comes first
        until = max(until, next(reversed(state.suspects.values())))
    state.suspects[node] = until
    if state.settings.disconnect_grace <= 0:
        rounds.expire()
        rounds.settle()


def _close(rounds: Rounds, operation: ops.Close) -> None:
    over = operation.incarnation is not None and operation.incarnation < rounds.state.incarnation
    if rounds.state.closed is None and not over:
        rounds.close(operation.by, operation.reason, by_node=operation.by_node)


def _reopen(rounds: Rounds, operation: ops.Reopen) -> None:
    state = rounds.state
    if operation.incarnation < state.incarnation:
        return
    latest = max(state.incarnation, state.incarnation_floor)
    if state.closed is None or operation.incarnation > latest:
        raise RendezvousStateError(
            f"incarnation {operation.incarnation} is not closed, so it cannot be reopened; "
            f"the run is in incarnation {state.incarnation}"
        )
    rounds.begin_incarnation(operation.by)
    rounds.settle()


def _tick(rounds: Rounds, _: ops.Tick) -> None:
    rounds.expire()
    rounds.note_stalls()
    rounds.settle()


def _record(rounds: Rounds, operation: ops.Record) -> None:
    state, order = rounds.state, list(operation.order)
    if not state.ready or (operation.incarnation, operation.round) != (state.incarnation, state.round):
        return
    if state.seats is not None:
        same = order == ranked(state)
    else:
        same = len(order) == len(state.participants) and state.participants.keys() == set(order)
    if same and all(state.nodes[node].arrival < operation.arrivals for node in order):
        rounds.complete(order)
        rounds.settle()


def _arrive(rounds: Rounds, operation: ops.Arrive) -> None:
    state, generation = rounds.state, operation.generation
    barriers = state.barriers
    if barriers is None or barriers.generation != generation:
        check_arrival(state, operation)
        barriers = Barriers(generation)
    if operation.key not in barriers.passed:
        check_arrival(state, operation)
        rounds.events += barriers.arrive(operation, state.participants)
    state.barriers = barriers
    if operation.node in state.nodes:
        rounds.beat(operation.node)


def _withdraw(rounds: Rounds, operation: ops.Withdraw) -> None:
    barriers = rounds.state.barriers
    is_member = operation.node in rounds.state.participants  # who has finished is not waited for
    if barriers is not None and is_member and barriers.generation == operation.generation:
        barriers.withdraw(operation)


def _update(rounds: Rounds, operation: ops.Update) -> None:
    node = operation.node
    if node not in rounds.state.nodes:
        return
    said, record = checked_value("state", "same", operation.state), rounds.state.nodes[node]
    rounds.beat(node)
    if said != record.state:
        record.state = said
        rounds.events.append(NodeUpdated(node, said))


def _progress(rounds: Rounds, operation: ops.Progress) -> None:
    state, node = rounds.state, operation.node
    if node not in state.nodes:
        return
    rounds.beat(node)
    if state.phase(node) is MEMBER:
        if state.steps is None:
            state.steps = Steps()
        state.steps.report(node, operation.step, rounds.now)
        if state.settings.agreed.stop_after and operation.step > state.decisions.step:
            state.decisions.step, state.decisions.vain = operation.step, 0


_HANDLERS: Final[Mapping[type, Callable[[Rounds, Any], None]]] = {
    ops.Join: _join,
    ops.Claim: _claim,
    ops.Resume: _resume,
    ops.Leave: _leave,
    ops.Drain: _drain,
    ops.KeepAlive: _keep_alive,
    ops.Disconnect: _disconnect,
    ops.Close: _close,
    ops.Reopen: _reopen,
    ops.Tick: _tick,
    ops.Record: _record,
    ops.Arrive: _arrive,
    ops.Withdraw: _withdraw,
    ops.Update: _update,
    ops.Progress: _progress,
    ops.Resize: steer,
    ops.Hold: steer,
    ops.Release: steer,
    ops.Quarantine: steer,
    ops.Pardon: steer,
}

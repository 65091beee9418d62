"""What must hold of the law, whatever happens: shared by the explorer, the state machine and the mutants.

`check_state` looks at one state; `check_wake` at what the clock would do to it; `check_step` at what one
operation changed and whom it told. Each raises `Broken`, which names what does not hold.
"""

from __future__ import annotations

import copy
import dataclasses
import heapq
import math
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from arendezvous.law import machine
from arendezvous.law.barriers import MAX_OPEN
from arendezvous.law.events import Audience, LawEvent, NodeDeparted, NodeJoined, RoundCompleted
from arendezvous.law.lists import stand_in_name
from arendezvous.law.operations import Tick
from arendezvous.law.rosters import addresses_of, member_digest
from arendezvous.law.rounds import wait_key
from arendezvous.law.state import NodeRecord, NodeView, Phase, RendezvousState, RunSettings
from tests.kit.law_seats import (
    Roles,
    check_kept,
    check_opinions,
    check_roster,
    check_round,
    check_seats,
    copied,
    form,
)


class Broken(AssertionError):
    """An invariant does not hold."""


def expect(holds: bool, what: str, actual: object = "", expected: object = "") -> None:
    """Raises `Broken` with both sides unless `holds`."""
    if not holds:
        raise Broken(f"{what}: actual {actual!r}, expected {expected!r}")


def same(what: str, actual: object, expected: object) -> None:
    """Raises `Broken` unless the two are equal."""
    expect(actual == expected, what, actual, expected)


_SLOTS: Final = RendezvousState.__slots__
_COPIED: Final = [
    name for name in _SLOTS if hasattr(getattr(RendezvousState(RunSettings(1, 1)), name), "copy")
]
_SHARED: Final = [name for name in _SLOTS if name not in _COPIED]


def clone(state: RendezvousState) -> RendezvousState:
    """An independent copy; what it holds is immutable but for the records and the queues for ranks."""
    twin = RendezvousState.__new__(RendezvousState)
    for name in _SHARED:
        setattr(twin, name, getattr(state, name))
    for name in _COPIED:
        setattr(twin, name, getattr(state, name).copy())
    for name, record in state.nodes.items():
        twin.nodes[name] = NodeRecord(record.desc, record.arrival, record.since, record.state)
    twin.barriers, twin.steps = _copied(state.barriers), _copied(state.steps)
    twin.decisions = state.decisions.copy()
    twin.seats, twin.opinions, twin.roster = map(copied, (state.seats, state.opinions, state.roster))
    twin.rivals = {rank: nodes.copy() for rank, nodes in state.rivals.items()}
    return twin


def _copied(value: Any) -> Any:
    """A copy of a dataclass, of dicts of such, or of what is immutable; a quick `copy.deepcopy`."""
    twin: Any
    if isinstance(value, dict):
        twin = value.copy()
        for key, held in value.items():
            if dataclasses.is_dataclass(held):
                twin[key] = _copied(held)
        return twin
    if not dataclasses.is_dataclass(value):
        return value
    twin = copy.copy(value)
    for field in dataclasses.fields(value):
        setattr(twin, field.name, _copied(getattr(value, field.name)))
    return twin


def unchanged(what: str, actual: RendezvousState, expected: RendezvousState, *ignored: str) -> None:
    """Raises `Broken` unless two states are equal, in order as well, but for the ignored attributes."""
    for name in _SLOTS:
        ours, theirs = getattr(actual, name), getattr(expected, name)
        if ours is theirs or name in ignored:
            continue
        ours, theirs = form(ours), form(theirs)
        if ours != theirs:
            raise Broken(f"{what}: {name} is {ours!r}, expected {theirs!r}")


def check_state(state: RendezvousState, now: float, *, resized: bool = False) -> None:
    """Checks the lists, the counters, the indexes, and the members' agreement."""
    _check_lists(state)
    _check_clocks(state, now)
    _check_round(state)
    check_meetings(state, now)
    _check_decisions(state, now)
    same("the seats are counted, and given", check_seats(state), [])
    same("opinions are those of the participants", check_opinions(state), [])
    same("the roster is that of the latest round", check_roster(state), [])
    if state.complete:
        _check_agreement(state, now, resized=resized)


def check_meetings(state: RendezvousState, now: float) -> None:
    """Checks the barriers and the progress of the members."""
    barriers, steps = state.barriers, state.steps
    if barriers is not None and barriers.open:
        whole = state.complete and len(state.participants) == state.unfinished
        expect(whole, "members wait in a whole round alone", list(state.participants), state.unfinished)
        same("they wait in the present round", barriers.generation, (state.incarnation, state.round))
        kept = sum(len(value) for barrier in barriers.open.values() for value in barrier.values)
        same("the size is that of what is kept", barriers.size, kept)
        expect(len(barriers.open) <= MAX_OPEN, "few barriers are open", len(barriers.open), MAX_OPEN)
        expect(not barriers.open.keys() & barriers.passed.keys(), "a barrier passes once", barriers.open)
        for key, barrier in barriers.open.items():
            groups = [set(barrier.arrived), set(barrier.missing), set(barrier.withdrawn)]
            same(f"{key}: nobody is in two groups", sum(map(len, groups)), len(set().union(*groups)))
            waited = groups[1] | groups[2]
            expect(waited <= set(state.participants), f"{key}: members alone are waited for", waited)
            here = set().union(*groups) & set(state.participants)
            same(f"{key}: every member is waited for, or there", here, set(state.participants))
            expect(bool(waited) or not groups[0], f"{key}: nobody waits though all have come", groups[0])
    if steps is not None:
        members = set(state.participants) if state.complete else set()
        expect(set(steps.latest) <= members, "steps are of members", set(steps.latest), members)
        both = set(steps.risen) | set(steps.stalled)
        same("each step stands since some time", both, set(steps.latest))
        expect(not set(steps.risen) & set(steps.stalled), "who stalls does not rise", both)
        since = list(steps.risen.values())
        same("who rose last is last", since, sorted(since))
    stalls = [notice.node for notice in state.notices if notice.step is not None]
    same("one notice tells of one stall", len(set(stalls)), len(stalls))


def _check_decisions(state: RendezvousState, now: float) -> None:
    decisions = state.decisions
    out = [n for n, record in state.nodes.items() if decisions.quarantine_of(n, record.desc.label, now)]
    same("nobody is in the run who is quarantined", out, [])
    expect(not (decisions.held and state.ready), "nothing is ready while the run is held", state.ready)
    staying = len(state.ranks) - len(state.drains)
    if state.complete and "" in decisions.sizes and decisions.excess is None:
        most = decisions.sizes[""].max_nodes
        expect(staying <= most, "members hear that they are too many", staying, most)
    if decisions.excess is not None:
        expect(state.complete, "only of a complete round there are too many", decisions.excess)
    stop_after = state.settings.agreed.stop_after
    expect(not stop_after or decisions.vain <= stop_after, "no round is in vain for ever", decisions.vain)


def _check_lists(state: RendezvousState) -> None:
    lists = [*state.participants, *state.wait_list, *state.redundancy_list]
    nodes = set(state.nodes)
    same("each node is in one list at most", len(lists), len(set(lists)))
    same("the nodes are those of the lists", nodes, set(lists))
    same("each node has a heartbeat", set(state.last_heartbeats), nodes)
    same("each record is its node's", [r.desc.name for r in state.nodes.values()], list(state.nodes))
    expect(set(state.suspects) <= nodes, "suspects are nodes", set(state.suspects), nodes)
    expect(set(state.ranks) <= nodes, "ranks are of nodes", set(state.ranks), nodes)
    expect(nodes.isdisjoint(state.departed), "no ghosts", nodes & set(state.departed), set())
    in_ranks = [node for node in state.wait_list if node in state.ranks]
    same("returning counts the wait list", state.returning, len(in_ranks))
    new = [node for node in state.participants if node not in state.ranks]
    same("newcomers counts the gathering", state.newcomers, 0 if state.complete else len(new))
    same("no spare has a rank", [node for node in state.redundancy_list if node in state.ranks], [])
    same("members were told of the wait list", state.told_waiting, wait_key(state))
    _check_given_ranks(state)


def _check_given_ranks(state: RendezvousState) -> None:
    """Each rank has one holder, and spares alone wait for it; who waits for none comes before them."""
    rivals = [node for nodes in state.rivals.values() for node in nodes]
    indexed = [*state.given.values(), *rivals]
    is_given = state.settings.rank_policy == "given"
    ranked = {n for n, r in state.nodes.items() if r.desc.rank is not None and is_given} - set(state.drains)
    same("each node has its given rank, waits for it, or drains", sorted(indexed), sorted(ranked))
    ranks = [(rank, node) for rank, node in state.given.items()]
    ranks += [(rank, node) for rank, nodes in state.rivals.items() for node in nodes]
    same("given ranks are indexed", [rank for rank, _ in ranks], [state.nodes[n].desc.rank for _, n in ranks])
    expect(all(state.rivals.values()), "no empty queue for a rank is kept", state.rivals)
    same("a rank that is waited for has a holder", state.rivals.keys() - state.given.keys(), set())
    spares = list(state.redundancy_list)
    same(
        "who waits for a rank is a spare, behind the others",
        set(spares[len(spares) - len(rivals) :]),
        set(rivals),
    )


def _check_clocks(state: RendezvousState, now: float) -> None:
    beats, graces = list(state.last_heartbeats.values()), list(state.suspects.values())
    same("heartbeats are sorted", beats, sorted(beats))
    same("graces are sorted", graces, sorted(graces))
    expect(all(beat <= now for beat in beats), "no heartbeat is of the future", beats, now)
    queue = list(state.drain_queue)
    queued = set(queue)
    drains = {(drain.until, node) for node, drain in state.drains.items()}
    expect(drains <= queued, "each drain is queued", drains, queued)
    heapq.heapify(queue)
    same("the drain queue is a heap", state.drain_queue[:1], queue[:1])


def _check_round(state: RendezvousState) -> None:
    limit, size = state.max_nodes, len(state.participants)
    most = max(limit, state.world_size) if state.complete else limit
    fine = size <= most or state.closed is not None or state.seats is not None
    expect(fine, "a round has max_nodes at most", size, most)
    room = limit - len(state.participants) + len(state.drains) - len(state.wait_list)
    if state.closed is None:
        waiting = sum(map(len, state.rivals.values()))
        free = room > 0 and len(state.redundancy_list) > waiting and state.seats is None
        expect(not free, "no spare waits while a place is free", list(state.redundancy_list), "none")
        held_up = state.complete and len(state.drains) == len(state.participants) and state.returning > 0
        expect(not held_up, "a drain does not hold up the others", list(state.drains), list(state.wait_list))
        fits = room >= 0 or len(state.wait_list) == state.returning or state.seats is not None
        expect(fits, "nobody waits for a place that will not be free", list(state.wait_list), "fewer")
        expect(bool(state.participants) or not state.complete, "a complete round has members")
        late = state.incarnation >= state.incarnation_floor and state.round >= state.round_floor
        late = late or state.recovery is not None
        expect(late or state.complete, "a gathering round is later than all that are known", state.round)
    if state.complete:
        same("a complete round has no deadline", state.deadline, None)
        counted = len(state.participants) <= state.unfinished <= state.world_size
        expect(counted, "who has not finished is counted", state.unfinished, list(state.participants))
        same("every member has a rank", state.participants, _ranks_of(state, state.participants))
        expect(set(state.drains) <= set(state.participants), "drains are of members", set(state.drains))
        return
    same("nobody waits beside a gathering round", list(state.wait_list), [])
    same("nobody drains in a gathering round", (state.drains, list(state.notices)), ({}, []))
    same("an incomplete round has no result", (state.world_size, state.digest, state.rank0), (0, "", ()))
    same("participants have no rank yet", set(state.participants.values()) - {-1}, set())
    enough = len(state.participants) >= state.min_nodes
    if state.seats is not None:
        enough = Roles(state.settings).enough(state.nodes[node].desc for node in state.participants)
    enough = enough and state.closed is None
    same("the last call runs if there are enough", state.deadline is not None, enough)


def _ranks_of(state: RendezvousState, nodes: Iterable[str]) -> dict[str, int]:
    return {node: state.ranks.get(node, -1) for node in nodes}


def _check_agreement(state: RendezvousState, now: float, *, resized: bool) -> None:
    views = [machine.view(state, node, now) for node in state.participants]
    seen = {(v.generation, v.world_size, v.digest, v.rank0, v.notices, v.closed) for v in views}
    expect(len(seen) <= 1, "all members see the same round", seen)
    ranks = sorted(v.rank for v in views)
    valid = len(set(ranks)) == len(ranks) and all(0 <= rank < state.world_size for rank in ranks)
    expect(valid, "ranks are unique and below the world size", ranks, state.world_size)
    settings = state.settings
    # a round that was resized may be restored by a member that does not know why it has another size
    free = resized or state.decisions.are_any
    fits = free or settings.min_nodes <= state.world_size <= settings.max_nodes
    expect(fits, "min <= world size <= max", state.world_size, (settings.min_nodes, settings.max_nodes))


def check_wake(state: RendezvousState, now: float) -> None:
    """Checks that no tick before `next_wake` does anything, and that one at it leaves nothing overdue."""
    wake = machine.next_wake(state)
    early = now + 1e6 if wake is None else math.nextafter(wake, -math.inf)
    if early >= now:
        twin = clone(state)
        same("no tick before next_wake does anything", machine.apply(twin, Tick(), early), [])
        unchanged("no tick before next_wake changes anything", twin, state, "drain_queue")
    expect(state.records or not state.ready, "only who records a round has it ready", state.ready)
    expect(not (state.ready and (state.complete or state.closed)), "what is ready gathers", state.round)
    if wake is None:
        same("somebody looks at each node", list(state.nodes), [])
        return
    twin, late = clone(state), max(wake, now)
    events = machine.apply(twin, Tick(), late)
    stale = len(twin.drain_queue) < len(state.drain_queue)
    stale = stale or twin.recovery != state.recovery or twin.ready != state.ready
    expect(bool(events) or stale, "a tick at next_wake does something", wake)
    following = machine.next_wake(twin)
    expect(following is None or following > late, "a tick leaves nothing overdue", following, f"> {late}")
    check_state(twin, late, resized=True)  # which is checked elsewhere


class Before(NamedTuple):
    """What `check_step` needs of the state before an operation.

    Attributes:
        views: The view of each node that ever was in the run.
        members: The ranks of the complete round; None if there was none.
        generation: Incarnation and round.
        state: All of it.
    """

    views: Mapping[str, NodeView]
    members: Mapping[str, int] | None
    generation: tuple[int, int]
    state: RendezvousState

    @classmethod
    def of(cls, state: RendezvousState, nodes: Iterable[str], now: float) -> Before:
        """Takes it, with the views of `nodes`."""
        views = {node: machine.view(state, node, now) for node in nodes}
        members = dict(state.participants) if state.complete else None
        return cls(views, members, (state.incarnation, state.round), clone(state) if state.seats else state)


def check_step(before: Before, state: RendezvousState, events: list[LawEvent], now: float) -> None:
    """Checks what an operation did to each node's view, and that whoever sees a difference was told.

    Args:
        before: Taken before the operation.
        state: The state after the operation.
        events: What applying it returned.
        now: When it was applied.
    """
    named = {getattr(event, "node", "") for event in events}
    audiences = {event.audience for event in events}
    for node, old in before.views.items():
        new = machine.view(state, node, now)
        expect(new.generation >= old.generation, "no view falls back", new.generation, old.generation)
        if old.closed and new.incarnation == old.incarnation:
            same("closed is final for the incarnation", new.closed, old.closed)
        told = (
            node in named
            or (Audience.EVERYONE in audiences and new.phase is not Phase.GONE)
            or (Audience.MEMBERS in audiences and node in state.participants)
        )
        changed = _visible(old) != _visible(new)
        expect(told or not changed, f"{node} is told that its view changed", _visible(new), _visible(old))
        if old.phase is new.phase is Phase.MEMBER and old.generation == new.generation:
            held = (old.rank, old.world_size, old.digest, old.share)
            same(f"{node} keeps its rank", (new.rank, new.world_size, new.digest, new.share), held)
    _check_exclusivity(before, state)
    same("who had a rank keeps it", check_kept(before.state, state, events), [])
    _check_events(state, events, now)


def _check_exclusivity(before: Before, state: RendezvousState) -> None:
    """A complete round does not change but by removal, or by a member that takes its place after amnesia."""
    if before.members is None or before.generation != (state.incarnation, state.round):
        return
    expect(state.complete, "a complete round stays complete", before.generation)
    for node, rank in state.participants.items():
        stand_in = stand_in_name(state.round, rank)
        resumed = stand_in in before.members and stand_in not in state.participants
        entered = before.members.get(node, rank if resumed else None)
        same(f"{node} did not enter a complete round", rank, entered)


def _visible(view: NodeView) -> tuple[object, ...]:
    """What of a view its node is woken for."""
    if view.phase is not Phase.MEMBER:
        return (view.phase, view.gone, view.closed is None if view.phase is not Phase.GONE else None)
    held = (view.incarnation, view.round, view.rank, view.world_size, view.digest)
    return (view.phase, view.closed, held, view.notices, view.waiting > 0, view.excess)


def _check_events(state: RendezvousState, events: list[LawEvent], now: float) -> None:
    for event in events:
        if isinstance(event, RoundCompleted):
            same("one round is complete", (state.complete, state.round), (True, event.round))
            same("no round completes while closed", state.closed, None)
            same("no round completes while members may come back", state.recovery, None)
            expect(state.decisions.held is None, "no round completes while held", event)
            sizes = (state.min_nodes, state.max_nodes)
            expect(sizes[0] <= event.world_size <= sizes[1], "min <= world size <= max", event, sizes)
            order = sorted(state.participants, key=state.participants.__getitem__)
            same("ranks are 0..n-1", [state.participants[n] for n in order], list(range(event.world_size)))
            same("a round completes as it should", check_round(state), [])
            same("the digest is of the member list", state.digest, _digest(state, order))
            same("rank 0 is reachable", state.rank0, addresses_of(state.nodes[order[0]].desc))
        if isinstance(event, NodeDeparted) and not _came_back(event.node, events):
            view = machine.view(state, event.node, now)
            same(f"{event.node} is gone", view.phase, Phase.GONE)
            assert view.gone is not None
            cause = (view.gone.cause, view.gone.reason)
            same(f"{event.node} learns why it is gone", cause, (event.cause, event.reason))
            if event.phase is Phase.MEMBER and state.complete and state.round == view.gone.round:
                heard = [notice.cause for notice in state.notices if notice.node == event.node]
                expect(event.cause in heard, f"members hear why {event.node} is gone", heard, event.cause)


def _came_back(node: str, events: list[LawEvent]) -> bool:
    """Whether another process has taken the place of `node` in the same breath."""
    return any(isinstance(event, NodeJoined) and event.node == node for event in events)


def _digest(state: RendezvousState, order: list[str]) -> str:
    return member_digest(state.incarnation, state.round, [state.nodes[node].desc for node in order])

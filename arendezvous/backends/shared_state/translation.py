"""Stock's state in the terms of the law, and back.

`to_law` makes a `RendezvousState` out of what an observer has seen, on the observer's clock; `from_law`
writes down what the law has made of it, and leaves alone what the law has not touched, stamps above all.

Two things are put right on the way in, because stock leaves them to the next node that comes along:

* *A gathering round with a wait list.* When the last stock member leaves a complete round, the next one opens
  empty, and those who wait enter it one by one. The law lets all of them in at once.
* *A round whose members may come back.* The law completes a round without a last call if all that are left of
  the round before are in it. A stock member that meets again is in no list for a moment; if the round before
  had stock members, nobody counts as coming back, and the last call is waited for, as stock does.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final

from arendezvous.backends.shared_state.observer import Observation, Observer
from arendezvous.errors import RendezvousStateError
from arendezvous.law import operations as ops
from arendezvous.law.events import Audience, LawEvent
from arendezvous.law.machine import apply
from arendezvous.law.rounds import wait_key
from arendezvous.law.state import Cause, NodeRecord, NodeView, Phase, RendezvousState, RunSettings
from arendezvous.wire.torch_state.state import Annex, GoneMember, NodeEntry, StockState, World
from arendezvous.wire.torch_state.unpickling import StockDesc

MAX_GONE: Final = 64
_TICK: Final = timedelta(microseconds=1)
_STOCK: Final = "the format of stock agents"
_INEXPRESSIBLE: Final[dict[type, str]] = {
    ops.Drain: f"draining cannot be expressed in {_STOCK}: leave the run instead, or use tcp://",
    ops.Reopen: f"a closed run cannot be reopened in {_STOCK}: use another run id, or tcp://",
    ops.Update: f"update() cannot tell the others anything in {_STOCK}: use tcp://, http:// or etcd://",
    ops.Progress: f"progress() cannot tell the others anything in {_STOCK}: use tcp://, http:// or etcd://",
}


def to_law(seen: Observer, settings: RunSettings) -> RendezvousState:
    """Makes the law's state out of what `seen` has seen; nothing of the observer is shared with it."""
    state, law = seen.state, RendezvousState(settings)
    law.round, law.complete, law.closed = state.round, state.complete, seen.closure
    law.deadline = None if state.closed else seen.deadline
    by_age = sorted(seen.sights.values(), key=lambda sight: sight.arrival)
    for sight in by_age:
        law.nodes[sight.desc.name] = NodeRecord(sight.desc, sight.arrival, sight.since)
    law.arrivals = seen.arrivals
    for sight in sorted(by_age, key=lambda sight: sight.beat):
        law.last_heartbeats[sight.desc.name] = sight.beat
    _fill_lists(seen, law, by_age)
    law.unfinished = _unfinished(seen)
    if state.complete and seen.world is not None:
        law.world_size, law.digest, law.rank0 = seen.world.size, seen.world.digest, seen.world.rank0
    law.notices.extend(seen.notices)
    law.notice_count = seen.notice_count
    law.departed = seen.departed.copy()
    law.told_waiting = wait_key(law)
    return law


def _fill_lists(seen: Observer, law: RendezvousState, by_age: list[Observation]) -> None:
    state = seen.state
    if state.complete:
        ranked = sorted(state.participants.items(), key=lambda item: item[1])
        law.participants = {seen.sights[node].desc.name: rank for node, rank in ranked}
    else:
        law.participants = {s.desc.name: -1 for s in by_age if s.phase is Phase.GATHERING}
    law.wait_list = {s.desc.name: None for s in by_age if s.phase is Phase.WAITING}
    _give_ranks(law, sorted(by_age, key=lambda sight: sight.phase is Phase.REDUNDANT))
    rivals = {name for names in law.rivals.values() for name in names}
    spares = [sight.desc.name for sight in by_age if sight.phase is Phase.REDUNDANT]
    for name in sorted(spares, key=rivals.__contains__):
        law.redundancy_list[name] = None
    if not seen.mixed:
        law.ranks = dict(law.participants) if state.complete else {}
        for node, sight in seen.sights.items():
            entry = state.annex.nodes.get(str(node))
            if entry is not None and entry.rank >= 0:
                law.ranks.setdefault(sight.desc.name, entry.rank)
    if not state.complete:
        law.newcomers = sum(node not in law.ranks for node in law.participants)
    law.returning = sum(node in law.ranks for node in law.wait_list)


def _give_ranks(law: RendezvousState, sights: list[Observation]) -> None:
    """Gives each rank that is asked for to the first in line; the others, which are spares, wait for it."""
    for desc in (sight.desc for sight in sights if law.settings.rank_policy == "given"):
        if desc.rank is not None and law.given.setdefault(desc.rank, desc.name) != desc.name:
            law.rivals.setdefault(desc.rank, {})[desc.name] = None


def _unfinished(seen: Observer) -> int:
    """How many members of the latest round are not known to have finished."""
    world = seen.state.annex.world
    if world is None:
        return -1
    gone = seen.state.annex.gone
    finished = sum(entry.cause is Cause.FINISHED and entry.round == world.round for entry in gone)
    return max(0, min(world.size, MAX_GONE) - finished)


def _admit_stragglers(law: RendezvousState, now: float) -> None:
    """Lets those who wait into the round that gathers, oldest first; who finds it full becomes a spare."""
    for node in list(law.wait_list):
        law.nodes[node].since = now
        if len(law.participants) < law.settings.max_nodes:
            law.participants[node] = -1
            law.newcomers += node not in law.ranks
        else:
            law.redundancy_list[node] = None
    law.wait_list.clear()
    law.returning = 0
    law.told_waiting = wait_key(law)


def advance(law: RendezvousState, now: float) -> bool:
    """Brings about whatever is due without anybody's doing; returns whether that was anything."""
    stragglers = bool(law.wait_list) and not law.complete and law.closed is None
    if stragglers:
        _admit_stragglers(law, now)
    return bool(apply(law, ops.Tick(), now)) or stragglers


def from_law(
    law: RendezvousState,
    seen: Observer,
    own: Mapping[str, StockDesc],
    now: float,
    wall: datetime,
    *,
    pulse: bool,
) -> StockState:
    """Writes down what the law has made of the state that `to_law` gave it.

    Args:
        law: What the law has made of it.
        seen: What it was made of.
        own: The names of nodes that may have come in, and how stock is to know them.
        now: When the law was applied, on the observer's clock.
        wall: The same on the wall clock, for what is stamped anew.
        pulse: Whether there is news in it.
    """
    before = seen.state

    def key(name: str, record: NodeRecord) -> StockDesc:
        return own[name] if record.arrival >= seen.arrivals else seen.keys[name]

    keys = {name: key(name, record) for name, record in law.nodes.items()}
    is_open = not law.complete and law.closed is None
    state = StockState(
        round=max(law.round, law.round_floor)
        if is_open
        else law.round,  # nobody can bring back an earlier one
        complete=law.complete,
        closed=law.closed is not None,
        participants={keys[name]: max(rank, 0) for name, rank in law.participants.items()},
        wait_list={keys[name] for name in law.wait_list},
        redundancy_list={keys[name] for name in law.redundancy_list},
        last_heartbeats={
            node: _stamp(seen.sights.get(node), law.last_heartbeats[name], wall)
            for name, node in keys.items()
        },
    )
    if law.deadline is not None:
        kept = law.deadline == seen.deadline
        state.deadline = before.deadline if kept else wall + timedelta(seconds=law.deadline - now)
    state.annex = _annex(law, seen, keys, pulse=pulse)
    return state


def _stamp(sight: Observation | None, beat: float, wall: datetime) -> datetime:
    """Keeps the stamp of a node that was not heard of; a new one differs from the old one in any case."""
    if sight is None or sight.stamp is None:
        return wall
    if sight.beat == beat:
        return sight.stamp
    stands_still = timedelta(0) <= sight.stamp - wall < timedelta(seconds=1)
    return sight.stamp + _TICK if stands_still else wall


def _annex(law: RendezvousState, seen: Observer, keys: dict[str, StockDesc], *, pulse: bool) -> Annex:
    before = seen.state.annex
    stock = {node for node, sight in seen.sights.items() if sight.is_stock}
    entries = {
        str(node): NodeEntry(
            law.nodes[name].arrival, None if node in stock else law.nodes[name].desc, law.ranks.get(name, -1)
        )
        for name, node in keys.items()
    }
    gone, count = list(before.gone), before.gone_count
    for name in seen.keys.keys() - law.nodes.keys():
        departure, count = law.departed[name], count + 1
        key = str(seen.keys[name])
        gone.append(GoneMember(count, key, name, departure.cause, departure.reason, departure.round))
    world, mixed = seen.world, seen.mixed
    if law.complete:
        world = World(law.round, law.world_size, law.digest, law.rank0)
        fresh = seen.world is None or seen.world.round != law.round
        mixed = (mixed and not fresh) or any(keys[name] in stock for name in law.participants)
    closure = law.closed
    return Annex(
        pulse=secrets.token_hex(8) if pulse else before.pulse,
        settings=law.settings,
        arrivals=law.arrivals,
        nodes=entries,
        gone=tuple(gone[-MAX_GONE:]),
        gone_count=count,
        closed=None if closure is None else (closure.by, closure.reason),
        world=world if world is not None else before.world,
        mixed=mixed,
    )


def check_expressible(operation: ops.Operation) -> None:
    """Raises `RendezvousStateError` if stock's format has no place for what `operation` does."""
    if isinstance(operation, ops.Tick | ops.Disconnect):
        raise RendezvousStateError(f"{type(operation).__name__} is not for a caller to propose")
    if isinstance(operation, ops.Drain | ops.Update | ops.Progress):
        raise RendezvousStateError(_INEXPRESSIBLE[type(operation)], node=operation.node)
    if isinstance(operation, ops.DECIDED) and not isinstance(operation, ops.Close):
        what = f"a {type(operation).__name__.lower()} cannot be expressed in {_STOCK}"
        raise RendezvousStateError(
            _INEXPRESSIBLE.get(type(operation), f"{what}, who would not heed it: use tcp://")
        )


def matters(event: LawEvent, node: str) -> bool:
    """Whether an event that `node` brought about changes what any other node sees."""
    return event.audience is not Audience.NOBODY or getattr(event, "node", node) != node


def what_is_news(seen: NodeView, law: RendezvousState) -> tuple[object, ...]:
    """Picks what of a view its node is to hear of; members hear of the wait list as the law tells them."""
    waiting = wait_key(law) if seen.phase is Phase.MEMBER else None
    return (
        seen.round, seen.phase, seen.rank, seen.world_size, seen.digest, seen.rank0, seen.notices,
        seen.closed, seen.gone, waiting,
    )  # fmt: skip

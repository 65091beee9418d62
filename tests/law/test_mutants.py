"""The checkers are checked: the law is broken in one named way after another, and each must be found."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
from msgspec import structs

from arendezvous.law import admission, barriers, facts, image, machine, ranking, recall, rosters, rounds
from arendezvous.law.barriers import Barriers, OpenBarrier, Steps
from arendezvous.law.events import Audience, LawEvent, MemberDraining, NodeUpdated
from arendezvous.law.facts import Opinions
from arendezvous.law.lists import Lists
from arendezvous.law.operations import Arrive, Close, Drain, Join, Operation, Record, Reopen
from arendezvous.law.rosters import RoundRoster
from arendezvous.law.rounds import Rounds
from arendezvous.law.rules import Brought, Role, RoundRules
from arendezvous.law.seats import Group, Seats
from arendezvous.law.state import NodeDesc, RendezvousState, RunSettings
from tests.kit.law_explorer import Mutants, Scope, explore
from tests.kit.law_world import Action

EVERYTHING = ("join", "leave", "drain", "beat", "cut", "look", "close", "reopen", "pass")
RESUMPTION = ("join", "look", "resume", "leave", "pass", "forget")
RESTARTS = (*RESUMPTION[:-1], "restart")
IDENTITY = ("join", "claim", "cut", "beat", "drain", "leave", "pass")
MET = tuple(Action(kind, node) for kind in ("join", "look") for node in "abc")
MET_PAIR = tuple(Action(kind, node) for kind in ("join", "look") for node in "ab")
WITHOUT_B = (  # b was silent, and does not know that a and c have met without it
    *MET,
    *(Action(kind, node) for kind, node in (("pass", ""), ("beat", "a"), ("beat", "c"), ("pass", ""))),
    *(Action(kind, "a") for kind in ("join", "look")),
)
RECORDED = ("join", "look", "leave", "record", "confirm", "crash")
MET_AND_RECORDED = (
    *(Action("join", node) for node in "ab"), Action("record"), Action("confirm"),
    *(Action("look", node) for node in "ab"), Action("join", "c"),
)  # fmt: skip
MEETING = ("arrive", "hear", "withdraw", "leave", "fail", "join", "pass")
PAIR = RunSettings(2, 2, 1, 2, 1, 1)
STALLING = RunSettings(2, 2, 1, 3, 2, 1, rules=RoundRules(stall_timeout=2))
ALONE = RunSettings(1, 2, 0, 2, 1, 1)


def ruled(roles: dict[str, Role], **rules: Any) -> RunSettings:
    """Settings with rules; without roles for two to four nodes."""
    agreed = RoundRules(roles=roles, **rules)
    numbers = agreed.sums if roles else (2, 4)
    return RunSettings(*numbers, 1, 2, 1, 1, rules=agreed)


SCOPES = [
    Scope("from nothing", RunSettings(2, 3, 1, 2, 1, 1), EVERYTHING, 3),
    Scope("a pair that met, and a spare", PAIR, EVERYTHING, 3, start=MET),
    Scope("an amnesia after all met", PAIR, RESUMPTION, 3, amnesias=1, start=MET),
    Scope("a restart after a round without b", PAIR, RESTARTS, 3, amnesias=1, start=WITHOUT_B),
    Scope("a restart with a spare that is out of date", ALONE, RESTARTS, 4, amnesias=1,
          start=(*MET, Action("join", "a"), Action("look", "a"))),
    Scope("names that are taken over", PAIR, IDENTITY, 3, start=MET),
    Scope("a spare for a given rank", RunSettings(2, 2, 1, 2, 1, 1, "given"), IDENTITY, 3, start=MET),
    Scope("a record of one to two", RunSettings(1, 2, 0, 2, 1, 1), RECORDED, 6, nodes="ab", amnesias=1,
          records=True),
    Scope("a record of a pair that met", PAIR, (*RECORDED, "claim", "drain", "pass", "close"), 3, amnesias=1,
          start=MET_AND_RECORDED, records=True),
    Scope("a barrier of a pair", PAIR, MEETING, 4, nodes="ab", start=2 * MET_PAIR),
    Scope("a barrier of three", RunSettings(2, 3, 1, 2, 1, 1),
          ("arrive", "withdraw", "leave", "fail", "join"), 4, start=MET),
    Scope("a barrier of a pair whose coordinator forgets", PAIR, ("arrive", "resume", "forget"), 5,
          nodes="ab", amnesias=1, start=2 * MET_PAIR),
    Scope("progress of a pair", STALLING, ("step", "update", "beat", "pass"), 5, nodes="ab",
          start=2 * MET_PAIR),
    Scope("a trainer and one to two generators that met, and a spare",
          ruled({"t": Role(1), "g": Role(1, 2)}), ("join", "leave", "look", "pass", "drain"), 3, nodes="abcd",
          bring={"a": Brought("g", 2), "b": Brought("t"), "c": Brought("g"), "d": Brought("t")},
          start=tuple(Action(kind, node) for kind in ("join", "look") for node in "abcd")),
    Scope("an amnesia of a trainer and a generator, with a spare", ruled({"t": Role(1), "g": Role(1)}),
          ("join", "resume", "leave", "forget"), 4, amnesias=1,
          bring={"a": Brought("t", 2), "b": Brought("g"), "c": Brought("g")},
          start=tuple(Action(kind, node) for kind in ("join", "look") for node in "abc")),
    Scope("units of two", ruled({}, node_unit=2), ("join", "leave", "pass", "drain"), 4, nodes="abcd",
          start=tuple(Action("join", node) for node in "abc")),
    Scope("nodes that do not agree", ruled({}, facts={"f": "same"}), ("join", "leave", "pass"), 3,
          bring={"a": Brought(facts={"f": 1}), "b": Brought(facts={"f": 1}), "c": Brought(facts={"f": 2})}),
]  # fmt: skip

Patch = pytest.MonkeyPatch
Method = Callable[..., Any]
mutant = Mutants(SCOPES)


def after(patch: Patch, owner: type, name: str, spoil: Callable[[RendezvousState], None]) -> None:
    """Spoils the state after each call of a method."""
    original: Method = getattr(owner, name)

    def spoiled(self: Lists, *args: object) -> object:
        result = original(self, *args)
        spoil(self.state)
        return result

    patch.setattr(owner, name, spoiled)


def without(patch: Patch, name: str, attribute: str, empty: Callable[[], object]) -> None:
    """Hides an attribute of the state from a method of `Rounds`."""
    original: Method = getattr(Rounds, name)

    def blind(self: Rounds) -> None:
        hidden = getattr(self.state, attribute)
        setattr(self.state, attribute, empty())
        original(self)
        if hidden:
            setattr(self.state, attribute, hidden)

    patch.setattr(Rounds, name, blind)


@mutant("the last call goes on although participants fell below min", "a record of one to two")
def _(patch: Patch) -> None:
    original = Rounds.gather

    def gather(self: Rounds) -> None:
        deadline = self.state.deadline
        original(self)
        if not self.state.complete:
            self.state.deadline = self.state.deadline or deadline

    patch.setattr(Rounds, "gather", gather)


@mutant("the last call starts anew with each node", "a record of one to two")
def _(patch: Patch) -> None:
    original = Rounds.gather

    def gather(self: Rounds) -> None:
        if self.state.deadline is not None and self.state.deadline > self.now:
            self.state.deadline = None
        original(self)
        if self.state.deadline is not None:
            self.state.deadline += 5 * len(self.state.participants)

    patch.setattr(Rounds, "gather", gather)


@mutant("newcomers are not reset", "a pair that met, and a spare")
def _(patch: Patch) -> None:
    def spoil(state: RendezvousState) -> None:
        state.newcomers = 1

    after(patch, Rounds, "complete", spoil)


@mutant("spares are not promoted", "a pair that met, and a spare")
def _(patch: Patch) -> None:
    without(patch, "settle", "redundancy_list", OrderedDict)


@mutant("the world size shrinks when a member goes", "a pair that met, and a spare")
def _(patch: Patch) -> None:
    def spoil(state: RendezvousState) -> None:
        if state.complete:
            state.world_size = len(state.participants)

    after(patch, Lists, "depart", spoil)


@mutant("ranks have a gap", "a pair that met, and a spare")
def _(patch: Patch) -> None:
    def spoil(state: RendezvousState) -> None:
        last = max(state.participants, key=state.participants.__getitem__)
        state.participants[last] = state.ranks[last] = state.world_size

    after(patch, Rounds, "complete", spoil)


@mutant("a member that is left behind moves up a rank", "a pair that met, and a spare")
def _(patch: Patch) -> None:
    def spoil(state: RendezvousState) -> None:
        for rank, node in enumerate(state.participants if state.complete else ()):
            state.participants[node] = state.ranks[node] = rank

    after(patch, Lists, "depart", spoil)


@mutant("a closed run still completes rounds", "from nothing")
def _(patch: Patch) -> None:
    without(patch, "settle", "closed", lambda: None)


@mutant("expiry forgets the broken connections", "a pair that met, and a spare")
def _(patch: Patch) -> None:
    without(patch, "expire", "suspects", OrderedDict)


@mutant("expiry forgets the silent nodes", "from nothing")
def _(patch: Patch) -> None:
    without(patch, "expire", "last_heartbeats", OrderedDict)


@mutant("a drain holds up the round and keeps its place", "a pair that met, and a spare")
def _(patch: Patch) -> None:
    without(patch, "settle", "drains", dict)


@mutant("a repeated join gives up the rank", "a pair that met, and a spare")
def _(patch: Patch) -> None:
    def join(rounds: Rounds, operation: Join) -> None:
        current = (rounds.state.incarnation, rounds.state.round)
        machine._join(rounds, structs.replace(operation, after=max(operation.after, current)))

    patch.setitem(_handlers(), Join, join)


@mutant("the round that a node knows is ignored", "a pair that met, and a spare")
def _(patch: Patch) -> None:
    def join(rounds: Rounds, operation: Join) -> None:
        known = operation.node in rounds.state.nodes
        machine._join(rounds, operation if known else structs.replace(operation, after=(0, -1)))

    patch.setitem(_handlers(), Join, join)


@mutant("reopening keeps the incarnation", "from nothing")
def _(patch: Patch) -> None:
    def reopen(rounds: Rounds, operation: Reopen) -> None:
        incarnation = rounds.state.incarnation
        machine._reopen(rounds, operation)
        rounds.state.incarnation = incarnation

    patch.setitem(_handlers(), Reopen, reopen)


@mutant("a node that comes back is still remembered as gone", "a restart after a round without b")
def _(patch: Patch) -> None:
    original = Lists.register

    def register(self: Lists, desc: Any) -> None:
        original(self, desc)
        if desc.name in "abc" and self.state.departed:
            self.state.departed[desc.name] = next(iter(self.state.departed.values()))

    patch.setattr(Lists, "register", register)


@mutant("a heartbeat does not clear the suspicion", "a pair that met, and a spare")
def _(patch: Patch) -> None:
    def beat(self: Lists, node: str) -> None:
        self.state.last_heartbeats[node] = self.now
        self.state.last_heartbeats.move_to_end(node)

    patch.setattr(Lists, "beat", beat)


@mutant("the heartbeats are not kept in order", "a restart after a round without b")
def _(patch: Patch) -> None:
    def beat(self: Lists, node: str) -> None:
        self.state.last_heartbeats[node] = self.now
        self.state.suspects.pop(node, None)

    patch.setattr(Lists, "beat", beat)


@mutant("a node that left keeps its heartbeat", "from nothing")
def _(patch: Patch) -> None:
    original = Lists.forget

    def forget(self: Lists, node: str) -> None:
        original(self, node)
        self.state.last_heartbeats[node] = self.now

    patch.setattr(Lists, "forget", forget)


@mutant("members do not hear why a member is gone", "a pair that met, and a spare")
def _(patch: Patch) -> None:
    patch.setattr(Lists, "notice", lambda *args: None)


@mutant("members are not woken by a drain", "a spare for a given rank")
def _(patch: Patch) -> None:
    patch.setattr(MemberDraining, "audience", Audience.NOBODY)


@mutant("members are not woken by the wait list", "a pair that met, and a spare")
def _(patch: Patch) -> None:
    patch.setattr(rounds, "wait_key", lambda state: (False, 0))


@mutant("next_wake forgets the drains", "a pair that met, and a spare")
def _(patch: Patch) -> None:
    original = machine.next_wake

    def next_wake(state: RendezvousState) -> float | None:
        queue, state.drain_queue = state.drain_queue, []
        due = original(state)
        state.drain_queue = queue
        return due

    patch.setattr(machine, "next_wake", next_wake)


@mutant("nodes with other settings are admitted", "from nothing")
def _(patch: Patch) -> None:
    patch.setattr(admission, "check_settings", lambda *args: None)


@mutant("a refused operation has changed something already", "from nothing")
def _(patch: Patch) -> None:
    def join(rounds: Rounds, operation: Join) -> None:
        rounds.state.arrivals += 1
        machine._join(rounds, operation)

    patch.setitem(_handlers(), Join, join)


@mutant("a restored round takes in more nodes than there is room for", "an amnesia after all met")
def _(patch: Patch) -> None:
    def restore(rounds: Rounds, operation: Any) -> None:
        patch.setattr(RendezvousState, "room", property(lambda self: 1))
        recall.restore(rounds, operation)
        patch.undo()
        patch.setattr(machine, "restore", restore)

    patch.setattr(machine, "restore", restore)


@mutant("a drain that is over is not carried out", "a pair that met, and a spare")
def _(patch: Patch) -> None:
    def drain(rounds: Rounds, operation: Drain) -> None:
        machine._drain(rounds, structs.replace(operation, seconds=operation.seconds * 100))
        rounds.state.drain_queue = [
            (until - 99 * operation.seconds, n) for until, n in rounds.state.drain_queue
        ]

    patch.setitem(_handlers(), Drain, drain)


@mutant("a name is taken from one that may be alive", "from nothing")
def _(patch: Patch) -> None:
    original = admission._holders

    def holders(
        state: RendezvousState, join: Join, now: float, *, claims: bool
    ) -> tuple[str | None, list[str]]:
        holder, displaced = original(state, join, now, claims=claims)
        return None, displaced if holder is None else [*displaced, holder]

    patch.setattr(admission, "_holders", holders)


@mutant("a rank is given to two at once", "from nothing")
def _(patch: Patch) -> None:
    patch.setattr(admission, "_holders", lambda state, join, now, claims: (None, []))


@mutant("a spare gets the rank of another", "a spare for a given rank")
def _(patch: Patch) -> None:
    patch.setattr(Rounds, "next_spare", lambda self: next(iter(self.state.redundancy_list), None))


@mutant("a rank that is given up is not passed on", "a spare for a given rank")
def _(patch: Patch) -> None:
    original = Lists.give_up_rank

    def give_up_rank(self: Lists, node: str) -> None:
        rivals, self.state.rivals = self.state.rivals, {}
        original(self, node)
        self.state.rivals = rivals

    patch.setattr(Lists, "give_up_rank", give_up_rank)


@mutant("a draining member that joins again gives up its rank", "a pair that met, and a spare")
def _(patch: Patch) -> None:
    def join(rounds: Rounds, operation: Join) -> None:
        drains, rounds.state.drains = rounds.state.drains, {}
        machine._join(rounds, operation)
        rounds.state.drains = drains

    patch.setitem(_handlers(), Join, join)


@mutant("a drained member comes back as it has not heard of its release", "a pair that met, and a spare")
def _(patch: Patch) -> None:
    patch.setattr(admission, "was_released", lambda *args: False)


@mutant("a coordinator that forgot waits for nobody", "a restart with a spare that is out of date")
def _(patch: Patch) -> None:
    without(patch, "gather", "recovery", lambda: None)


@mutant("nobody is listened to who knows a round that was forgotten", "an amnesia after all met")
def _(patch: Patch) -> None:
    patch.setattr(Rounds, "hear_of", lambda *args: None)


@mutant("a recovery never ends", "a restart after a round without b")
def _(patch: Patch) -> None:
    without(patch, "expire", "recovery", lambda: None)


@mutant("a coordinator that follows another counts from 0", "a restart with a spare that is out of date")
def _(patch: Patch) -> None:
    without(patch, "end_recovery", "first_round", lambda: 0)


@mutant("an old round that was restored is kept", "a restart after a round without b")
def _(patch: Patch) -> None:
    original = admission.can_be_restored

    def can_be_restored(state: RendezvousState, operation: Any) -> bool:
        return not state.complete and original(state, operation)

    patch.setattr(admission, "can_be_restored", can_be_restored)


@mutant("whoever finished is not counted", "a pair that met, and a spare")
def _(patch: Patch) -> None:
    def spoil(state: RendezvousState) -> None:
        state.unfinished = max(state.unfinished, state.world_size) + 1

    after(patch, Lists, "depart", spoil)


@mutant("a round completes before it is recorded", "a record of a pair that met")
def _(patch: Patch) -> None:
    original = Rounds.gather

    def gather(self: Rounds) -> None:
        original(self)
        if self.state.ready:
            self.complete(rounds.ranked(self.state))

    patch.setattr(Rounds, "gather", gather)


@mutant("a round completes with whoever has come since it was recorded", "a record of one to two")
def _(patch: Patch) -> None:
    def record(self: Rounds, operation: Record) -> None:
        if self.state.ready:
            self.complete(rounds.ranked(self.state))
            self.settle()

    patch.setitem(_handlers(), Record, record)


@mutant("a record is good for whoever has come back under a name in it", "a record of one to two")
def _(patch: Patch) -> None:
    def record(self: Rounds, operation: Record) -> None:
        machine._record(self, structs.replace(operation, arrivals=self.state.arrivals))

    patch.setitem(_handlers(), Record, record)


@mutant("a closed run is ready all the same", "a record of a pair that met")
def _(patch: Patch) -> None:
    def close(self: Rounds, operation: Close) -> None:
        ready = self.state.ready
        machine._close(self, operation)
        self.state.ready = ready

    patch.setitem(_handlers(), Close, close)


@mutant("who departed is restored with the others", "a record of a pair that met")
def _(patch: Patch) -> None:
    original = image._restore_round

    def restore_round(rounds: Rounds, head: Any, roster: Any, departed: Any) -> None:
        original(rounds, head, roster, {})

    patch.setattr(image, "_restore_round", restore_round)


@mutant("a run that was closed is restored open", "a record of a pair that met")
def _(patch: Patch) -> None:
    original = image.restore

    def restore(head: Any, *others: Any) -> RendezvousState:
        return original(structs.replace(head, closed=None), *others)

    patch.setattr(image, "restore", restore)


@mutant("ranks are restored the other way round", "a record of a pair that met")
def _(patch: Patch) -> None:
    original = image.restore

    def restore(head: Any, roster: Any, *others: Any) -> RendezvousState:
        return original(head, tuple(reversed(roster)), *others)

    patch.setattr(image, "restore", restore)


@mutant("the place of a member that was restored is taken at once", "a record of a pair that met")
def _(patch: Patch) -> None:
    original = image.restore

    def restore(*rows: Any) -> RendezvousState:
        state = original(*rows)
        state.reserved = -1.0
        return state

    patch.setattr(image, "restore", restore)


@mutant("nobody looks for a member that was restored and does not come back", "a record of a pair that met")
def _(patch: Patch) -> None:
    original = image.restore

    def restore(*rows: Any) -> RendezvousState:
        state = original(*rows)
        state.suspects.clear()
        return state

    patch.setattr(image, "restore", restore)


@mutant("a barrier passes when all but one have come", "a barrier of a pair")
def _(patch: Patch) -> None:
    patch.setattr(OpenBarrier, "is_due", property(lambda self: len(self.missing) <= 1 and not self.withdrawn))


@mutant("a barrier passes without those that have gone away from it", "a barrier of a pair")
def _(patch: Patch) -> None:
    patch.setattr(OpenBarrier, "is_due", property(lambda self: not self.missing))


@mutant("those who wait at a barrier are not told that somebody is lost", "a barrier of a pair")
def _(patch: Patch) -> None:
    patch.setattr(Barriers, "settled", lambda self, state: [])


@mutant("those who wait at a barrier are told nothing of a round that is broken", "a barrier of a pair")
def _(patch: Patch) -> None:
    original = Barriers.settled

    def settled(self: Barriers, state: RendezvousState) -> list[LawEvent]:
        original(self, state)
        return []

    patch.setattr(Barriers, "settled", settled)


@mutant("who has gone on to the next round is waited for", "a barrier of a pair")
def _(patch: Patch) -> None:
    original = barriers.is_whole

    def is_whole(state: RendezvousState, generation: tuple[int, int]) -> bool:
        moved = state.returning if state.complete else 0
        state.unfinished -= moved
        whole = original(state, generation)
        state.unfinished += moved
        return whole

    patch.setattr(barriers, "is_whole", is_whole)


@mutant("who has finished is waited for", "a barrier of a pair")
def _(patch: Patch) -> None:
    patch.setattr(Barriers, "excuse", lambda self, member: [])


@mutant("who withdraws from a barrier has still come", "a barrier of a pair")
def _(patch: Patch) -> None:
    patch.setattr(Barriers, "withdraw", lambda self, operation: None)


@mutant("a barrier that has passed is forgotten", "a barrier of a pair")
def _(patch: Patch) -> None:
    original = Barriers.arrive

    def arrive(self: Barriers, *args: Any) -> list[LawEvent]:
        events = original(self, *args)
        self.passed.clear()
        return events

    patch.setattr(Barriers, "arrive", arrive)


@mutant("a barrier of a name passes once for all turns", "a barrier of a pair")
def _(patch: Patch) -> None:
    patch.setattr(Arrive, "key", property(lambda self: (self.name, 0)))


@mutant("a barrier waits for a stand-in", "a barrier of a pair whose coordinator forgets")
def _(patch: Patch) -> None:
    patch.setattr(Barriers, "replace", lambda self, stand_in, member: None)


@mutant("a stall is told of again and again", "progress of a pair")
def _(patch: Patch) -> None:
    original = Steps.next_stalled

    def next_stalled(self: Steps, timeout: float, now: float) -> str | None:
        member = original(self, timeout, now)
        if member is not None:
            self.risen[member] = now
            self.risen.move_to_end(member)
        return member

    patch.setattr(Steps, "next_stalled", next_stalled)


@mutant("a stall is told of too early", "progress of a pair")
def _(patch: Patch) -> None:
    original = Steps.due

    def due(self: Steps, timeout: float) -> float | None:
        return original(self, timeout / 2)

    patch.setattr(Steps, "due", due)


@mutant("nobody looks for stalls", "progress of a pair")
def _(patch: Patch) -> None:
    patch.setattr(Steps, "due", lambda self, timeout: None)


@mutant("a member that is gone is expected to make progress", "progress of a pair")
def _(patch: Patch) -> None:
    patch.setattr(Steps, "forget", lambda self, member: None)


@mutant("a member's state wakes the others", "progress of a pair")
def _(patch: Patch) -> None:
    patch.setattr(NodeUpdated, "audience", property(lambda self: Audience.MEMBERS))


@mutant(
    "a round completes although a role lacks its least",
    "a trainer and one to two generators that met, and a spare",
)
def _(patch: Patch) -> None:
    patch.setattr(Seats, "has_enough", property(lambda self: any(g.usable for g in self.groups.values())))


@mutant("who is no whole unit gets a rank", "a trainer and one to two generators that met, and a spare")
def _(patch: Patch) -> None:
    patch.setattr(rounds, "seated", lambda seats, records, *_: [record.desc.name for record in records])


@mutant("the ranks of two roles are mixed", "a trainer and one to two generators that met, and a spare")
def _(patch: Patch) -> None:
    original = ranking.seated
    patch.setattr(rounds, "seated", lambda *arguments: sorted(original(*arguments)))


@mutant("spares move to the wait list one by one", "units of two")
def _(patch: Patch) -> None:
    def next_unit(self: Group) -> list[str]:
        return list(self.spares)[:1] if self.usable < self.most else []

    patch.setattr(Group, "next_unit", next_unit)


@mutant("spares do not move to the wait list", "a trainer and one to two generators that met, and a spare")
def _(patch: Patch) -> None:
    patch.setattr(Seats, "next_unit", lambda self: [])


@mutant("who drains counts as one who stays", "a trainer and one to two generators that met, and a spare")
def _(patch: Patch) -> None:
    def begin_drain(self: Rounds, node: str, *others: Any) -> None:
        seats, self.state.seats = self.state.seats, None
        original(self, node, *others)
        self.state.seats = seats

    original = Rounds.begin_drain
    patch.setattr(Rounds, "begin_drain", begin_drain)


@mutant("a spare takes a place in another role", "a trainer and one to two generators that met, and a spare")
def _(patch: Patch) -> None:
    patch.setattr(Seats, "takes", lambda self, role: any(g.usable < g.most for g in self.groups.values()))


@mutant(
    "spares move while nothing is known of members", "an amnesia of a trainer and a generator, with a spare"
)
def _(patch: Patch) -> None:
    def count(self: Lists, seats: Seats, node: str, *others: Any) -> None:
        original(self, seats, node, *others)
        seats.strangers = 0

    original = Lists.count
    patch.setattr(Lists, "count", count)


@mutant("a member that is back has lost its share", "an amnesia of a trainer and a generator, with a spare")
def _(patch: Patch) -> None:
    original = RoundRoster.learn
    patch.setattr(RoundRoster, "learn", lambda self, rank, desc, share: original(self, rank, desc, None))


@mutant(
    "ranks are not kept within the block of a role",
    "a trainer and one to two generators that met, and a spare",
)
def _(patch: Patch) -> None:
    original = ranking._in_block

    def in_block(records: Any, ranks: Any, policy: str, first: int) -> list[str]:
        return original(records, ranks, policy, first)[::-1]

    patch.setattr(ranking, "_in_block", in_block)


@mutant(
    "the digest leaves out what members bring", "a trainer and one to two generators that met, and a spare"
)
def _(patch: Patch) -> None:
    def digest(incarnation: int, round_: int, descs: Any) -> str:
        return rosters.member_digest(incarnation, round_, [NodeDesc(desc.name) for desc in descs])

    patch.setattr(rounds, "member_digest", digest)


@mutant("who has gone is not marked in the roster", "a pair that met, and a spare")
def _(patch: Patch) -> None:
    def depart(self: Lists, *arguments: Any) -> None:
        roster, self.state.roster = self.state.roster, None
        original(self, *arguments)
        self.state.roster = roster

    original = Lists.depart
    patch.setattr(Lists, "depart", depart)


@mutant("nodes that do not agree get ranks all the same", "nodes that do not agree")
def _(patch: Patch) -> None:
    patch.setattr(facts, "check_same", lambda *_: None)


@mutant("what members brought to the last round counts for the next", "nodes that do not agree")
def _(patch: Patch) -> None:
    original = Opinions.clear
    patch.setattr(Opinions, "clear", lambda self: original(self) if not self._held else None)


def _handlers() -> dict[type[Operation], Method]:
    handlers = machine._HANDLERS
    assert isinstance(handlers, dict)
    return handlers


def test_the_search_finds_nothing_wrong_with_the_law_as_it_is() -> None:
    for scope in SCOPES:
        explore(scope)


@pytest.mark.parametrize("name", list(mutant))
def test_the_search_finds_a_law_in_which(name: str) -> None:
    assert mutant.found(name) is not None, f"nobody noticed that {name}"

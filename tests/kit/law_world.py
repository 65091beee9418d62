"""A small world around the law: nodes that know what they were told, a clock, a forgetful coordinator.

A `World` offers *actions*, which the explorer tries in every order and the state machine at random. Each
action is applied as an owner would apply it, and everything in `law_invariants` is checked on the way. What a
node knows is what it *looked* at, not what is true: an action whose reply it has not looked at yet is an
action whose reply was lost.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from msgspec import structs

from arendezvous.errors import RendezvousError, RoundOverError
from arendezvous.law import image, machine, rounds
from arendezvous.law.barriers import standing
from arendezvous.law.events import (
    Audience,
    BarrierPassed,
    LawEvent,
    MemberDraining,
    MemberStalled,
    NodeDeparted,
    NodeJoined,
    NodeUpdated,
    RoundBroken,
    RoundCompleted,
    RoundOpened,
    WaitingChanged,
)
from arendezvous.law.facts import Opinions
from arendezvous.law.lists import is_stand_in, stand_in_name
from arendezvous.law.operations import (
    DECIDED,
    Arrive,
    Claim,
    Close,
    Decided,
    Disconnect,
    Drain,
    Hold,
    Join,
    KeepAlive,
    Leave,
    Operation,
    Pardon,
    Progress,
    Quarantine,
    Record,
    Release,
    Reopen,
    Resize,
    Resume,
    Tick,
    Update,
    Withdraw,
)
from arendezvous.law.recall import recall
from arendezvous.law.rules import Brought, Share
from arendezvous.law.state import MAX_WORLD, Cause, NodeDesc, NodeView, Phase, RendezvousState, RunSettings
from tests.kit import law_invariants as inv
from tests.kit.law_seats import Roles


class Action(NamedTuple):
    """Something that may happen: to a node, or to the run if `node` is empty.

    `nodes` is the size of a resize.
    """

    kind: str
    node: str = ""
    seconds: float = 1.0
    nodes: tuple[int, int] = (1, 1)


class Held(NamedTuple):
    """The rank that a node saw itself have."""

    incarnation: int
    round: int
    rank: int
    world_size: int
    digest: str
    share: Share | None = None

    @property
    def generation(self) -> tuple[int, int]:
        """When it had that rank."""
        return (self.incarnation, self.round)


class Rows(NamedTuple):
    """What the owner has recorded of the run: see `image.restore`."""

    head: image.RunHead
    roster: tuple[NodeDesc, ...] = ()
    departed: Mapping[str, image.DepartureRow] = {}
    drains: Mapping[str, image.DrainRow] = {}


NODE_KINDS = (
    "join", "claim", "leave", "fail", "drain", "beat", "cut", "look", "resume", "quarantine", "pardon",
    "join anew", "join after a failure", "arrive", "withdraw", "hear", "step", "update",
)  # fmt: skip
RUN_KINDS = (
    "close", "reopen", "pass", "forget", "restart", "record", "confirm", "crash", "hold", "release",
    "hold for ever", "shrink", "grow", "resize", "undo", "end",
)  # fmt: skip
NOTHING_YET = (0, -1)


@dataclass
class World:
    """One run and the nodes around it.

    Attributes:
        descs: The nodes that may take part.
        settings: What all of them ask for.
        state: The state of the run.
        now: The owner's clock.
        held: What each node last saw as a member.
        known: The latest round that each node knows of, as a member or as one that waits.
        resumable: Nodes that would present the rank that they hold.
        amnesias: How often the coordinator may still forget.
        lives: How many coordinators there have been.
        forgot: Whether one ever forgot without knowing it.
        rows: What is recorded; None: nothing is.
        departed: Departures from the recorded round that are not recorded yet.
        drains: Drains of its members, likewise.
        recorded: The round that has been recorded, before it completes; None: there is none.
        turns: How many barriers each node knows itself to have passed, in the round that it holds.
        waits: What each node that waits at a barrier has said.
        broken: The latest round that was complete, and has lost somebody otherwise than as finished.
        resized: Whether operators have ever changed how many nodes a round has.
        agreed: What is agreed of the complete round, as its coordinator knows it; None: it does not.
        images: What each node keeps of a round that it was a member of.
    """

    descs: Mapping[str, NodeDesc]
    settings: RunSettings
    state: RendezvousState
    now: float = 0.0
    held: dict[str, Held] = field(default_factory=dict)
    known: dict[str, tuple[int, int]] = field(default_factory=dict)
    resumable: frozenset[str] = frozenset()
    amnesias: int = 0
    lives: int = 1
    forgot: bool = False
    rows: Rows | None = None
    departed: dict[str, image.DepartureRow] = field(default_factory=dict)
    drains: dict[str, image.DrainRow] = field(default_factory=dict)
    recorded: Record | None = None
    turns: dict[str, int] = field(default_factory=dict)
    waits: dict[str, Arrive] = field(default_factory=dict)
    broken: bool = False
    resized: bool = False
    agreed: image.RunImage | None = None
    images: dict[str, image.RunImage] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        nodes: str,
        settings: RunSettings,
        amnesias: int = 0,
        *,
        records: bool = False,
        bring: Mapping[str, Brought] | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> World:
        """A world with one node for each letter of `nodes`; with given ranks if the settings want them.

        If there are more nodes than places, the last ones ask for the ranks of the first.
        """
        given = settings.rank_policy == "given"
        ranks = [i % settings.max_nodes if given else None for i in range(len(nodes))]
        bring, labels = bring or {}, labels or {}
        descs = {
            n: NodeDesc(n, addr=n, rank=rank, label=labels.get(n, ""), brings=bring.get(n))
            for n, rank in zip(nodes, ranks, strict=True)
        }
        return cls(descs, settings, RendezvousState(settings, records=records), amnesias=amnesias)

    def fork(self) -> World:
        """An independent copy."""
        return replace(
            self, state=inv.clone(self.state), held=dict(self.held), known=dict(self.known),
            departed=dict(self.departed), drains=dict(self.drains), turns=dict(self.turns),
            waits=dict(self.waits), images=dict(self.images),
        )  # fmt: skip

    def act(self, action: Action) -> bool:
        """Lets `action` happen; False if it could not have happened or was refused."""
        if action.kind == "look":
            return self._look(action.node)
        if action.kind == "hear":
            return self._hear(action.node)
        if action.kind == "tell":
            return self._tell(action.node)
        if action.kind in ("forget", "restart"):
            return self._forget(knowingly=action.kind == "restart")
        if action.kind in ("record", "confirm", "crash"):
            return {"record": self._record, "confirm": self._confirm, "crash": self._crash}[action.kind]()
        if action.kind == "pass":
            self.now += action.seconds
        operation = self._operation(action)
        if operation is None:
            return False
        if self.state.records and isinstance(operation, DECIDED):
            return self._decide(operation)
        if isinstance(operation, Arrive):
            self.waits[action.node] = operation  # whatever comes of it, the node is to be told
        elif isinstance(operation, Withdraw):
            self.waits.pop(action.node, None)
        return self.propose(operation)

    def _hear(self, node: str) -> bool:
        """Has a node hear that the barrier has passed at which it was last."""
        if node not in self.held:
            return False
        try:
            met = standing(self.state, self._arrival(node))
        except RoundOverError:
            return False
        self.turns[node] = self.turns.get(node, 0) + met.passed
        return met.passed

    def _arrival(self, node: str) -> Arrive:
        """What a node says that comes to the next barrier of the round that it holds; each brings its own."""
        held, value = self.held[node], 1 << list(self.descs).index(node)
        turn = self.turns.get(node, 0)
        return Arrive(node, held.incarnation, held.round, "x", turn, "sum", str(value).encode())

    def _check_meetings(self, before: RendezvousState, events: list[LawEvent]) -> None:
        """Checks that whoever waits at a barrier is told, as soon as there is something to be told."""
        state, passed = self.state, {(e.barrier, e.turn) for e in events if isinstance(e, BarrierPassed)}
        for event in events:
            if isinstance(event, RoundCompleted):
                self.broken = False
            elif isinstance(event, NodeDeparted) and event.phase is Phase.MEMBER:
                self.broken |= event.cause is not Cause.FINISHED
            elif isinstance(event, RoundOpened):
                self.broken = True
        self.broken |= state.complete and any(node in state.ranks for node in state.wait_list)
        waiting = dict(self.waits)
        for node, operation in waiting.items():
            key = (operation.name, operation.turn)
            present = (operation.incarnation, operation.round) == (state.incarnation, state.round)
            try:
                met = standing(state, operation)
            except RoundOverError as error:
                whole = present and state.complete and not self.broken and node in state.participants
                inv.expect(not whole, f"{node} waits on, as its round is whole", error)
                if before.barriers is not None and key in before.barriers.open:
                    told = any(isinstance(event, RoundBroken) for event in events)
                    inv.expect(told, f"{node} is told that its round is not whole", events)
                del self.waits[node]
                continue
            if met.passed:
                known = before.barriers is not None and key in before.barriers.passed
                inv.expect(key in passed or known, f"{node} is told that all have come", events)
                if not known:
                    self._check_sum(before, int(met.value), events, waiting)
                del self.waits[node]
                continue
            inv.expect(present and not self.broken, f"{node} waits in a whole round", self.broken)
            came = {n for n, other in self.waits.items() if (other.name, other.turn) == key}
            here = set(state.participants)
            inv.expect(not here <= came, f"{node} waits for somebody", came, here)
            if not met.withdrawn:
                missing = {*met.missing}
                inv.expect(missing <= here and not missing & came, "who is missing is missing", missing, came)

    def _check_sum(
        self, before: RendezvousState, total: int, events: list[LawEvent], waiting: Mapping[str, Arrive]
    ) -> None:
        """Checks that all have come: the sum of what they brought tells who they are."""
        came = {node for at, node in enumerate(self.descs) if total >> at & 1}
        left = {event.node for event in events if isinstance(event, NodeDeparted)}
        members = before.participants.keys() - left
        inv.expect(members <= came, "a barrier passes when all have come", came, members)
        inv.expect(came & members <= waiting.keys(), "who has gone away has not come", came, list(waiting))

    # An owner that keeps a record, as `coordinator.records` does it

    @property
    def _clocks(self) -> image.Clocks:
        return image.Clocks(self.now, self.now, "boot", self.now)

    def _record(self) -> bool:
        """Records what has not been: a round that is ready, or who has gone since."""
        if self.state.ready:
            self.recorded, head = image.proposal_of(self.state, self._clocks)
            members = tuple(self.state.nodes[node].desc for node in self.recorded.order)
            self.rows = Rows(head, members)
            self.departed, self.drains = {}, {}
            return True
        if self.rows is None or not (self.departed or self.drains):
            return False
        departed, drains = {**self.rows.departed, **self.departed}, {**self.rows.drains, **self.drains}
        self.rows = self.rows._replace(departed=departed, drains=drains)
        self.departed, self.drains = {}, {}
        return True

    def _confirm(self) -> bool:
        record, self.recorded = self.recorded, None
        if record is None or not self.propose(record):
            return False
        arrivals = [self.state.nodes[node].arrival for node in self.state.participants]
        same = (record.incarnation, record.round) == (self.state.incarnation, self.state.round)
        if self.state.complete and same and set(record.order) == self.state.participants.keys():
            inv.expect(max(arrivals) < record.arrivals, "who is a member was recorded", arrivals, record)
        return True

    def _check_restored(self) -> None:
        """Members have their time to come back, in which nobody takes their place; then they are lost."""
        state, rows = self.state, self.rows
        inv.same("what was closed is closed", state.closed is None, rows is None or rows.head.closed is None)
        decided = None if rows is None else rows.head.decisions
        inv.same("what was decided holds", image.DecisionsRow.of(state.decisions, self._clocks), decided)
        for node in state.nodes:
            twin = inv.clone(state)
            try:
                machine.apply(twin, Claim(Join(self.descs[node], self.settings)), self.now)
            except RendezvousError:
                continue
            inv.expect(state.closed is not None, f"{node}, which may come back, has its place", "it is taken")
        twin = inv.clone(state)
        grace = max(self.settings.disconnect_grace, rounds.RESUME_GRACE)
        machine.apply(twin, Tick(), self.now + grace)
        inv.same("who does not come back in time is lost", list(twin.nodes), [])

    def _decide(self, operation: Decided) -> bool:
        """Records a decision, and then applies it."""
        due = machine.next_wake(self.state)
        if due is not None and due <= self.now:
            self._apply(Tick())
        twin = inv.clone(self.state)
        try:
            machine.apply(twin, operation, self.now)
        except RendezvousError:
            return self.propose(operation)
        head = image.decided(image.head_of(self.state, self._clocks), operation, self._clocks)
        self._record_head(head)
        done = self.propose(operation)
        inv.same("what is decided is what was recorded", image.head_of(self.state, self._clocks), head)
        return done

    def _record_head(self, head: image.RunHead) -> None:
        self.recorded = None
        if head.complete and self.rows is not None:
            self.rows = self.rows._replace(head=head)
        else:
            self.rows, self.departed, self.drains = Rows(head), {}, {}

    def _note(self, events: list[LawEvent], roster: dict[str, int]) -> None:
        """Notes what has to be recorded of the members of the recorded round."""
        state = self.state
        for event in events:
            numbers = [notice.number for notice in state.notices if notice.node == getattr(event, "node", "")]
            number = max(numbers, default=0)
            if isinstance(event, NodeDeparted) and event.node in roster:
                is_member = event.phase is Phase.MEMBER
                row = image.DepartureRow(event.cause, event.reason, 0, number * is_member, self.now)
                self.departed[event.node] = row
            elif isinstance(event, MemberDraining) and event.node in roster:
                row_ = image.DrainRow(event.seconds, event.reason, number, "boot", self.now)
                self.drains[event.node] = row_

    def _crash(self) -> bool:
        """Another coordinator starts from what is recorded."""
        if not self.amnesias:
            return False
        self.amnesias -= 1
        self.lives += 1
        self.departed, self.drains, self.recorded = {}, {}, None
        self.waits.clear()
        self.broken = False
        if self.rows is None:
            self.state = RendezvousState(self.settings, records=True)
        else:
            self.state = image.restore(*self.rows, self._clocks)
        inv.check_state(self.state, self.now, resized=self.resized)
        self._check_restored()
        latest = max((held.generation for held in self.held.values()), default=NOTHING_YET)
        state, rows = self.state, self.rows
        inv.expect((state.incarnation, state.round) >= latest, "no round is forgotten", latest)
        for node, held in self.held.items():
            if rows is None or held.generation != rows.head.generation or not rows.head.complete:
                continue
            ranks = {desc.name: rank for rank, desc in enumerate(rows.roster)}
            told = (ranks.get(node), len(rows.roster), rows.head.digest)
            inv.same(f"{node} was told what is recorded", (held.rank, held.world_size, held.digest), told)
            gone = node in rows.departed
            where = Phase.GONE if gone or not state.complete else Phase.MEMBER
            if self._is_out(node):
                where = Phase.GONE
            inv.same(f"{node} is where the record says", state.phase(node), where)
        return True

    def propose(self, operation: Operation) -> bool:
        """Applies `operation` as the owner of the state does, and checks all; False if it is refused."""
        due = machine.next_wake(self.state)
        if due is not None and due <= self.now and not isinstance(operation, Tick):
            self._apply(Tick())
        twin = inv.clone(self.state)
        closed, over = self.state.closed, self.state.ended or self.state.closed is not None
        settled = self._settled_beforehand(operation)
        try:
            self._apply(operation, twin)
        except RendezvousError:
            inv.unchanged("a refused operation changes nothing", self.state, twin)
            return False
        node = getattr(operation, "node", "")
        if isinstance(operation, Join) and self.state.incarnation > max(twin.incarnation, operation.after[0]):
            inv.expect(over and operation.reopen != "", f"{node} begins anew what is over, if it asks for it")
            inv.expect(closed is None or closed.by_node, "what an operator closed stays closed", closed)
        if isinstance(operation, (Join, Claim)):
            inv.expect(not self._is_out(node), f"{node} is kept out while it is quarantined")
        if settled is not None:
            inv.same(f"{node} is where it has to be", self.state.phase(node), settled)
        if isinstance(operation, Claim):
            self._begin_anew(node)
            self._check_admitted(operation.join, node)
        elif isinstance(operation, (Join, Resume)):
            self._check_admitted(operation, node)
        elif isinstance(operation, KeepAlive):
            inv.expect(node not in self.state.suspects, f"{node} is no suspect once it speaks")
        elif isinstance(operation, Leave):
            inv.same(f"{node} has left", self.state.phase(node), Phase.GONE)
        return True

    def _settled_beforehand(self, operation: Operation) -> Phase | None:
        """Where a node has to be after its operation, if that is certain; None if it is not."""
        state = self.state
        if isinstance(operation, Join) and state.phase(operation.node) is Phase.GONE:
            gone = state.departed.get(operation.node)
            released = gone and gone.cause is Cause.DRAINED and gone.round == operation.after[1]
            return Phase.GONE if released else None
        if isinstance(operation, Join) and operation.node in state.drains:
            return Phase.MEMBER
        if isinstance(operation, Resume) and self._is_out(operation.node):
            return None
        if isinstance(operation, Resume) and state.recovery is not None and state.closed is None:
            latest = max(held.generation for held in self.held.values())
            reopened = operation.incarnation < max(state.incarnation, state.incarnation_floor)
            held = (operation.incarnation, operation.round)
            return Phase.MEMBER if held == latest and not reopened else None
        return None

    def repeat(self, operation: Operation) -> None:
        """Checks that `operation`, which was just applied, may be repeated: only heartbeats may differ."""
        if isinstance(operation, Claim) or (isinstance(operation, Join) and self._is_out(operation.node)):
            return  # by yet another process; or it was refused
        twin = inv.clone(self.state)
        events = machine.apply(twin, operation, self.now)
        if isinstance(operation, Drain):  # announced again, with a later end
            return
        inv.same(f"{type(operation).__name__} may be repeated", events, [])
        what = f"a repeated {type(operation).__name__} is harmless"
        inv.unchanged(what, twin, self.state, "last_heartbeats", "suspects")

    def check_refusals(self) -> None:
        """Checks that operations which no state allows are refused, and change nothing."""
        state, (name, desc) = self.state, next(iter(self.descs.items()))
        stranger = NodeDesc("x", rank=self.settings.max_nodes - 1, brings=desc.brings)
        other = structs.replace(self.settings, last_call=self.settings.last_call + 1)
        illegal: list[Operation] = [
            Reopen(state.incarnation + 9),
            Resume(stranger, self.settings, 1, 0, self.settings.max_nodes, self.settings.max_nodes, "d"),
            Resume(stranger, self.settings, 1, 0, 0, MAX_WORLD + 1, "d"),
            Resize(1, 1, "a role of another run"),
            Join(NodeDesc(stand_in_name(0, 0)), self.settings),
        ]
        if self.settings.rank_policy == "given":
            illegal.append(Join(structs.replace(stranger, rank=None), self.settings))
        alive = [node for node in state.nodes if node in self.descs and node not in state.suspects]
        illegal += [Claim(Join(self.descs[node], self.settings)) for node in alive[:1]]
        if state.nodes:
            illegal += [Join(stranger, other), Resume(stranger, other, 9, 9, 0, self.settings.max_nodes, "d")]
        if state.closed is not None:
            illegal += [
                Join(stranger, self.settings),
                *([Join(desc, self.settings)] * (name not in state.nodes)),
            ]
        twin = inv.clone(state)
        for operation in illegal:
            try:
                events = machine.apply(twin, operation, self.now)
            except RendezvousError:
                continue
            raise inv.Broken(f"{operation} is refused: actual {events}, expected an error")
        inv.unchanged("refused operations change nothing", twin, state)

    def _apply(self, operation: Operation, twin: RendezvousState | None = None) -> list[LawEvent]:
        """Applies an operation, and checks what it does to the state, of which `twin` may be a copy."""
        before = inv.Before.of(self.state, self.descs, self.now)
        twin = inv.clone(self.state) if twin is None else twin
        events = machine.apply(self.state, operation, self.now)
        self._check_meetings(twin, events)
        self._check_stalls(twin, operation, events)
        inv.check_step(before, self.state, events, self.now)
        self.resized |= isinstance(operation, Resize)
        inv.check_state(self.state, self.now, resized=self.resized)
        self._keep(events)
        if self.rows is not None and not isinstance(operation, Reopen):
            self._note(events, dict.fromkeys((desc.name for desc in self.rows.roster), 0))
        return events

    def _check_stalls(self, before: RendezvousState, operation: Operation, events: list[LawEvent]) -> None:
        """Checks that who stalls is told of once, when its time is over, and nobody is woken by a state."""
        timeout, steps = self.settings.agreed.stall_timeout, self.state.steps
        if timeout and steps is not None and isinstance(operation, Tick):
            late = [node for node, since in steps.risen.items() if since + timeout <= self.now]
            inv.same("who stalls is told of", late, [])
        for event in events:
            if isinstance(event, NodeUpdated):
                inv.same("the latest state is kept", self.state.nodes[event.node].state, event.state)
                inv.same("a state wakes nobody", {one.audience for one in events}, {Audience.NOBODY})
            if isinstance(event, MemberStalled) and before.steps is not None:
                inv.expect(event.node not in before.steps.stalled, f"{event.node} is told of once", events)
                stood = self.now - before.steps.risen[event.node]
                inv.same("a stall tells for how long", event.seconds, stood)
                inv.expect(stood >= timeout > 0, "a stall takes its time", stood, timeout)
                heard = [notice.step for notice in self.state.notices if notice.node == event.node]
                inv.expect(event.step in heard, f"members hear that {event.node} stalls", heard)

    # What a coordinator without a record has members keep

    def _keep(self, events: list[LawEvent]) -> None:
        """Notes what is agreed of the complete round."""
        state = self.state
        for event in events:
            number = max(
                (one.number for one in state.notices if one.node == getattr(event, "node", "")), default=0
            )
            if isinstance(event, RoundCompleted):
                known = len(state.participants) == state.world_size
                ranked = sorted(state.participants, key=state.participants.__getitem__)
                members = (image.ImageMember(r, state.nodes[n].desc) for r, n in enumerate(ranked))
                head = image.head_of(state, self._clocks)
                self.agreed = image.RunImage(head, tuple(members)) if known else None
            elif self.agreed is None:
                continue
            elif isinstance(event, NodeDeparted) and event.phase is Phase.MEMBER:
                row = image.DepartureRow(event.cause, event.reason, state.round, number, self.now)
                self.agreed = structs.replace(self.agreed, departed={**self.agreed.departed, event.node: row})
            elif isinstance(event, MemberDraining):
                drain = image.DrainRow(event.seconds, event.reason, number, "boot", self.now)
                self.agreed = structs.replace(self.agreed, drains={**self.agreed.drains, event.node: drain})

    def _tell(self, node: str) -> bool:
        """A node that is in the run tells what it keeps."""
        kept = self.images.get(node)
        if kept is None or node not in self.state.nodes:
            return False
        due = machine.next_wake(self.state)
        if due is not None and due <= self.now:
            self._apply(Tick())
        before = inv.Before.of(self.state, self.descs, self.now)
        twin = inv.clone(self.state)
        try:
            events, absent, changed = recall(self.state, kept, self._clocks)
        except RendezvousError:
            inv.unchanged("what is refused changes nothing", self.state, twin)
            return False
        told = [*events, *(NodeJoined(name, Phase.MEMBER) for name in absent)]  # who is told once it is back
        told += [WaitingChanged(0)] if changed else []
        inv.check_step(before, self.state, told, self.now)
        inv.check_state(self.state, self.now, resized=self.resized)
        inv.expect(absent <= set(self.state.suspects), "who is not back has its time to come", absent)
        same = (self.state.round, self.state.digest) == (kept.head.round, kept.head.digest)
        if self.state.complete and same:
            left = [name for name in self.state.participants if is_stand_in(name)]
            inv.same("everybody is known by name", left, [])
        inv.same("an image may be told again", recall(self.state, kept, self._clocks), ([], set(), False))
        return True

    def _check_admitted(self, operation: Join | Resume, node: str) -> None:
        view = machine.view(self.state, node, self.now)
        if isinstance(operation, Join):
            if view.phase is Phase.GONE:
                gone = view.gone
                released = gone and gone.cause is Cause.DRAINED and gone.round == operation.after[1]
                inv.expect(bool(released), f"{node} joined, unless it was drained", gone)
                self._begin_anew(node)
                return
            known = operation.after
        else:
            known = (operation.incarnation, operation.round)
            inv.expect(view.phase is not Phase.GONE or view.gone is not None, f"{node} is told why", view)
        if view.phase is Phase.MEMBER and isinstance(operation, Join) and node not in self.state.drains:
            inv.expect(view.generation > known, f"{node} is in a later round", view.generation, known)
        inv.expect(view.generation >= known, f"{node} does not fall back", view.generation, known)

    def _operation(self, action: Action) -> Operation | None:
        kind, node = action.kind, action.node
        if kind == "join":
            self.resumable -= {node}
            return Join(self.descs[node], self.settings, self.known.get(node, NOTHING_YET))
        if kind == "claim":
            return Claim(Join(self.descs[node], self.settings))
        if kind == "resume":
            return self._resume(node)
        if kind in ("arrive", "withdraw"):
            if node not in self.held:
                return None
            arrive = self._arrival(node)
            return arrive if kind == "arrive" else Withdraw(
                node, arrive.incarnation, arrive.round, arrive.name, arrive.turn
            )  # fmt: skip
        if kind == "step":
            step = 0 if self.state.steps is None else self.state.steps.latest.get(node, -1)
            return Progress(node, step + 1)
        if kind == "fail":
            self.resumable -= {node}
            return Leave(node, "boom", Cause.FAILED)
        simple: dict[str, Operation] = {
            "update": Update(node, b'"fine"'),
            "drain": Drain(node, action.seconds, "maintenance"),
            "beat": KeepAlive(node),
            "cut": Disconnect(node),
            "close": Close("admin", "enough"),
            "reopen": Reopen(self.state.incarnation, "admin"),
            "pass": Tick(),
            "hold": Hold("admin", "wait", action.seconds or 1.0),
            "hold for ever": Hold("admin", "wait"),
            "release": Release("admin"),
            "shrink": Resize(1, max(1, self.state.max_nodes - 1), "", "admin", "fewer"),
            "grow": Resize(self.state.min_nodes, self.state.max_nodes + 1, "", "admin", "more"),
            "resize": Resize(*action.nodes, "", "admin", "others"),
            "undo": Resize(0, 0, "", "admin"),
            "quarantine": Quarantine(node or "x", False, action.seconds or 1.0, "admin", "broken"),
            "pardon": Pardon(node or "x", False, "admin"),
            "fail": Leave(node, "crash", Cause.FAILED),
            "end": Close("a", "enough", by_node=True),
        }
        if kind == "fail":
            self.resumable -= {node}
        if kind in ("join anew", "join after a failure"):
            self.resumable -= {node}
            known = self.known.get(node, NOTHING_YET)
            return Join(self.descs[node], self.settings, known, "ended" if kind == "join anew" else "failed")
        if kind == "leave":
            self.resumable -= {node}
            return Leave(node, "done", Cause.FINISHED)
        return simple[kind]

    def _resume(self, node: str) -> Operation | None:
        if node not in self.resumable:
            return None
        return Resume(self.descs[node], self.settings, *self.held[node])

    def _look(self, node: str) -> bool:
        view = machine.view(self.state, node, self.now)
        if view.phase is not Phase.GONE:
            self.known[node] = max(self.known.get(node, NOTHING_YET), view.known)
        if view.phase is not Phase.MEMBER:
            self.resumable -= {node}
            return True
        held = Held(view.incarnation, view.round, view.rank, view.world_size, view.digest, view.share)
        last = self.held.get(node)
        if last is not None:
            inv.expect(held.generation >= last.generation, f"{node} does not fall back", held, last)
            if held.generation == last.generation:
                inv.same(f"{node} has one rank in a round", held, last)
        for name, other in self.held.items():
            if name != node and other.generation == held.generation:
                self._check_pair(name, other, node, held)
        if last is None or held.generation != last.generation:
            self.turns.pop(node, None)
        self.held[node] = held
        self.resumable |= {node}
        if self.agreed is not None and self.agreed.head.generation == held.generation:
            self.images[node] = self.agreed
        return True

    def _check_pair(self, name: str, other: Held, node: str, held: Held) -> None:
        """Two nodes that both had a rank in one round; who forgot unknowingly may have formed it twice."""
        if other.digest != held.digest:
            inv.expect(self.forgot, f"{name} and {node} agree on the members", held, other)
            return
        inv.same(f"{name} and {node} agree", held.world_size, other.world_size)
        inv.expect(held.rank != other.rank, f"{name} and {node} have different ranks", held, other)

    def _forget(self, *, knowingly: bool) -> bool:
        if not self.amnesias:
            return False
        if knowingly:
            recovery = self.now + rounds.recovery_time(self.settings)
            self.state = RendezvousState(self.settings, recovery, 1000 * self.lives)
        else:
            self.state = RendezvousState(self.settings)
        self.waits.clear()
        self.broken = False
        self.amnesias -= 1
        self.lives += 1
        self.agreed = None
        self.forgot |= not knowingly
        return True

    def _begin_anew(self, node: str) -> None:
        """Another process is the node from now on; it knows nothing."""
        self.held.pop(node, None)
        self.turns.pop(node, None)
        self.images.pop(node, None)
        self.known.pop(node, None)
        self.resumable -= {node}

    def view(self, node: str) -> NodeView:
        """What `node` would see."""
        return machine.view(self.state, node, self.now)

    def check_liveness(self) -> None:  # noqa: C901 - what must hold for there to be a round, item by item
        """Checks that fair nodes, all alive and joining, have a round within last call plus one expiry.

        A drain that was announced may first take its time: nothing takes a member's place before it is over.
        """
        settings, state = self.settings, self.state
        for key, one in state.decisions.quarantines.items():
            if one.until > self.now:  # who comes back in the meantime would have the others meet once more
                state.decisions.quarantines[key] = structs.replace(one, until=math.inf)
        inside = [node for node in self.descs if not self._is_out(node)]
        held = state.decisions.held_until
        places = {self.descs[node].rank if settings.rank_policy == "given" else node for node in inside}
        enough = len(places) >= state.min_nodes
        if settings.agreed.seats:
            enough = Roles(settings).enough(self.descs[node] for node in inside)
        opinions = Opinions.of(settings.rules)
        if opinions is not None:
            for node in inside:
                opinions.count(self.descs[node].brought.facts, 1)
        agree = opinions is None or opinions.agree
        if state.closed is not None or not enough or not agree or held == math.inf:
            return
        drain = max((drain.until for drain in state.drains.values()), default=self.now) - self.now
        recovery = self.now if state.recovery is None else state.recovery
        limit = max(self.now + max(drain, 0.0), recovery, held) + settings.last_call + settings.expiry
        patience = 200
        while not self._settled() and patience:
            patience -= 1
            if state.ready:
                machine.apply(state, image.proposal_of(state, self._clocks)[0], self.now)
            moved = [self._behave(node) for node in self.descs]
            if any(moved):
                continue
            due = machine.next_wake(self.state)
            if due is None or due > limit:
                break
            self.now = max(self.now, due)
            for node in self.descs:  # they are alive, so they beat in time
                if self.state.phase(node) is not Phase.GONE:
                    machine.apply(self.state, KeepAlive(node), self.now)
            machine.apply(self.state, Tick(), self.now)
        lists = (self.state.participants, list(self.state.wait_list), list(self.state.redundancy_list))
        inv.expect(self._settled(), "a round completes in time", lists, f"all settled by {limit}")

    def _behave(self, node: str) -> bool:
        """Does what a fair node does next; False if it has nothing to do."""
        phase = self.state.phase(node)
        if phase is Phase.MEMBER:
            self._look(node)
            decisions = self.state.decisions
            called = self.state.wait_list or self.state.notices or decisions.excess
            if not called or node in self.state.drains:
                return False
        elif phase is not Phase.GONE:
            return False
        if self._is_out(node):
            return False
        after = self.known.get(node, NOTHING_YET)
        try:
            machine.apply(self.state, Join(self.descs[node], self.settings, after), self.now)
        except RendezvousError:
            inv.expect(
                self.descs[node].rank in self.state.given, f"{node} is let in, unless its rank is taken"
            )
            return False
        if self.state.phase(node) is Phase.GONE:
            self._begin_anew(node)
        return True

    def _settled(self) -> bool:
        state = self.state
        if state.closed is not None:  # by the law
            return True
        if not state.complete or state.wait_list or state.drains:
            return False
        if state.decisions.excess is not None:
            return False
        if state.seats is not None:
            roles = Roles(state.settings)
            usable = roles.usable(self.descs.values())
            expected = {role: min(most, usable[role]) for role, most in roles.most.items()}
            members = Counter(state.nodes[node].desc.brought.role for node in state.participants)
            return set(state.participants) <= set(self.descs) and all(
                members[role] == number for role, number in expected.items()
            )
        taken = {rank: node for rank, node in state.given.items() if node in state.participants}
        here = {n for n, desc in self.descs.items() if desc.rank is None or taken.get(desc.rank, n) == n}
        here = {node for node in here if not self._is_out(node)}
        full = len(state.participants) >= state.max_nodes
        return set(state.participants) <= set(self.descs) and (full or here == set(state.participants))

    def _is_out(self, node: str) -> bool:
        """Whether `node` is quarantined."""
        decisions, desc = self.state.decisions, self.descs.get(node)
        label = "" if desc is None else desc.label
        return decisions.quarantine_of(node, label, self.now) is not None


def all_actions(world: World, kinds: tuple[str, ...]) -> list[Action]:
    """Every action of these kinds, on every node where it is on a node."""
    per_node = [Action(kind, node) for kind in kinds if kind in NODE_KINDS for node in world.descs]
    return per_node + [Action(kind) for kind in kinds if kind in RUN_KINDS]


def operation_of(world: World, action: Action) -> Operation | None:
    """The operation that `action` would propose; None if it is not one, or is not possible now."""
    if action.kind in ("look", "hear", "forget", "restart", "record", "confirm", "crash"):
        return None
    return world._operation(action)


def canonical(world: World) -> tuple[object, ...]:
    """What of a world decides its future, with times relative to now and nodes without their names.

    Two worlds with one canonical form behave alike, so the explorer follows one of them.
    """
    state, now = world.state, world.now
    newest = {n: i for i, n in enumerate(n for n in state.nodes if n not in state.ranks)}
    waits = {n: i for i, n in enumerate((*state.wait_list, *state.redundancy_list))}
    digests: dict[str, int] = {state.digest: 0}
    for held in sorted(world.held.values(), key=lambda one: one[:5]):
        digests.setdefault(held.digest, len(digests))
    names = {*world.descs, *state.nodes}
    sketch = []
    for name in names:
        desc = world.descs.get(name)
        known: tuple[object, ...] = ()
        if (after := world.known.get(name)) is not None:
            known = (_near(after[0] - state.incarnation), _near(after[1] - state.round))
        if (seen := world.held.get(name)) is not None:
            inc, rnd = (
                _near(a - b) for a, b in zip(seen.generation, (state.incarnation, state.round), strict=True)
            )
            known += (inc, rnd)
            if world.amnesias or world.lives > 1:
                known += (seen.rank, seen.world_size, digests[seen.digest], name in world.resumable)
        drain, grace = state.drains.get(name), state.suspects.get(name)
        beat = state.last_heartbeats.get(name)
        sketch.append((
            state.phase(name).value, -1 if desc is None else desc.rank, state.participants.get(name, -2),
            state.ranks.get(name, -2), newest.get(name, -1), waits.get(name, -1),
            -1.0 if beat is None else now - beat, -99.0 if grace is None else grace - now,
            -99.0 if drain is None else drain.until - now, _departure(world, name), known,
            _recorded(world, name), _meeting(world, name), *_decided(world, name),
            None if desc is None else repr((desc.label, desc.brings)),
        ))  # fmt: skip
    return (
        tuple(sorted(sketch, key=repr)), state.complete, state.closed is not None,
        -99.0 if state.deadline is None else state.deadline - now, state.world_size,
        _near(state.round_floor - state.round), _near(state.incarnation_floor - state.incarnation),
        -99.0 if state.recovery is None else state.recovery - now,
        state.round_floor == 0, state.unfinished, world.amnesias, world.lives, world.forgot,
        state.ready, max(-1.0, state.reserved - now), *_recorded_head(world), *_decided_of_run(world),
        world.broken,
    )  # fmt: skip


def _meeting(world: World, name: str) -> tuple[object, ...]:
    """What of a node's barriers, its progress and its state decides its future."""
    state, turn = world.state, world.turns.get(name, 0)
    found: tuple[object, ...] = (turn, name in world.waits)
    if state.barriers is not None:
        found += tuple(
            (
                key,
                name in barrier.arrived,
                name in barrier.missing,
                name in barrier.withdrawn,
            )
            for key, barrier in state.barriers.open.items()
        )
        found += (("x", turn) in state.barriers.passed,)
    if state.steps is not None and name in state.steps.latest:
        since = state.steps.risen.get(name)
        found += (-1.0 if since is None else world.now - since,)
    return (*found, bool(state.nodes[name].state) if name in state.nodes else False)


def _decided(world: World, name: str) -> tuple[object, ...]:
    """What has been decided of a node."""
    decisions = world.state.decisions
    found = decisions.quarantine_of(name, "", world.now)
    return (-1.0 if found is None else found.until - world.now, decisions.strikes.get(name, 0))


def _decided_of_run(world: World) -> tuple[object, ...]:
    """What has been decided of the run."""
    decisions, closed = world.state.decisions, world.state.closed
    by_node = closed is not None and closed.by_node
    sizes, held = (decisions.min_nodes, decisions.max_nodes), decisions.held_until - world.now
    return (by_node, sizes, held, decisions.excess is None, decisions.vain)


def _recorded(world: World, name: str) -> tuple[object, ...]:
    """What of the record of a node decides its future."""
    if world.rows is None:
        return ()
    drain, fresh = world.rows.drains.get(name), world.drains.get(name)
    return (
        next((rank for rank, desc in enumerate(world.rows.roster) if desc.name == name), -1),
        name in world.rows.departed, name in world.departed,
        -99.0 if drain is None else drain.uptime - world.now,
        -99.0 if fresh is None else fresh.uptime - world.now,
    )  # fmt: skip


def _recorded_head(world: World) -> tuple[object, ...]:
    """What of the record of a run decides its future, but for its nodes."""
    rows, state, recorded = world.rows, world.state, world.recorded
    if rows is None:
        return ()
    pending = () if recorded is None else (
        (recorded.incarnation, recorded.round) == (state.incarnation, state.round),
        set(recorded.order) == state.participants.keys()
        and all(state.nodes[node].arrival < recorded.arrivals for node in recorded.order),
    )  # fmt: skip
    head = rows.head
    return (
        _near(head.incarnation - state.incarnation), _near(head.round - state.round), head.complete,
        head.closed is not None, pending, head.ended, head.decisions,
    )  # fmt: skip


def _departure(world: World, name: str) -> tuple[object, ...]:
    """What of a departure decides how the node is treated when it comes again."""
    gone = world.state.departed.get(name)
    if gone is None:
        return ()
    drained = gone.cause is Cause.DRAINED and gone.round == world.known.get(name, NOTHING_YET)[1]
    return (world.lives > 1, drained)


def _near(difference: int) -> int:
    """Rounds that are far apart behave like rounds that are three apart."""
    return max(-1, min(3, difference))

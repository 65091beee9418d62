"""A small world around the law: nodes that know what they were told, a clock, a forgetful coordinator.

A `World` offers *actions*, which the explorer tries in every order and the state machine at random. Each
action is applied as an owner would apply it, and everything in `law_invariants` is checked on the way. What a
node knows is what it *looked* at, not what is true: an action whose reply it has not looked at yet is an
action whose reply was lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from msgspec import structs

from arendezvous.errors import RendezvousError
from arendezvous.law import image, machine, rounds
from arendezvous.law.operations import (
    Claim,
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
    Record,
    Reopen,
    Resume,
    RoundCompleted,
    Tick,
    WaitingChanged,
)
from arendezvous.law.recall import recall
from arendezvous.law.state import Cause, NodeDesc, NodeView, Phase, RendezvousState, RunSettings
from tests.kit import law_invariants as inv


class Action(NamedTuple):
    """Something that may happen: to a node, or to the run if `node` is empty."""

    kind: str
    node: str = ""
    seconds: float = 1.0


class Held(NamedTuple):
    """The rank that a node saw itself have."""

    incarnation: int
    round: int
    rank: int
    world_size: int
    digest: str

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


NODE_KINDS = ("join", "claim", "leave", "drain", "beat", "cut", "look", "resume")
RUN_KINDS = ("close", "reopen", "pass", "forget", "restart", "record", "confirm", "crash")
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
    agreed: image.RunImage | None = None
    images: dict[str, image.RunImage] = field(default_factory=dict)

    @classmethod
    def of(cls, nodes: str, settings: RunSettings, amnesias: int = 0, *, records: bool = False) -> World:
        """A world with one node for each letter of `nodes`; with given ranks if the settings want them.

        If there are more nodes than places, the last ones ask for the ranks of the first.
        """
        given = settings.rank_policy == "given"
        ranks = [i % settings.max_nodes if given else None for i in range(len(nodes))]
        descs = {n: NodeDesc(n, addr=n, rank=rank) for n, rank in zip(nodes, ranks, strict=True)}
        return cls(descs, settings, RendezvousState(settings, records=records), amnesias=amnesias)

    def fork(self) -> World:
        """An independent copy."""
        return replace(
            self, state=inv.clone(self.state), held=dict(self.held), known=dict(self.known),
            departed=dict(self.departed), drains=dict(self.drains), images=dict(self.images),
        )  # fmt: skip

    def act(self, action: Action) -> bool:
        """Lets `action` happen; False if it could not have happened or was refused."""
        if action.kind == "look":
            return self._look(action.node)
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
        if self.state.records and isinstance(operation, Close | Reopen):
            return self._decide(operation)
        return self.propose(operation)

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

    def _decide(self, operation: Close | Reopen) -> bool:
        """Records a decision, and then applies it."""
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
            elif isinstance(event, NodeDraining) and event.node in roster:
                row_ = image.DrainRow(event.seconds, event.reason, number, "boot", self.now)
                self.drains[event.node] = row_

    def _crash(self) -> bool:
        """Another coordinator starts from what is recorded."""
        if not self.amnesias:
            return False
        self.amnesias -= 1
        self.lives += 1
        self.departed, self.drains, self.recorded = {}, {}, None
        if self.rows is None:
            self.state = RendezvousState(self.settings, records=True)
        else:
            self.state = image.restore(*self.rows, self._clocks)
        inv.check_state(self.state, self.now)
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
            inv.same(f"{node} is where the record says", state.phase(node), where)
        return True

    def propose(self, operation: Operation) -> bool:
        """Applies `operation` as the owner of the state does, and checks all; False if it is refused."""
        due = machine.next_wake(self.state)
        if due is not None and due <= self.now and not isinstance(operation, Tick):
            self._apply(Tick())
        twin = inv.clone(self.state)
        settled = self._settled_beforehand(operation)
        try:
            self._apply(operation)
        except RendezvousError:
            inv.unchanged("a refused operation changes nothing", self.state, twin)
            return False
        node = getattr(operation, "node", "")
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
        if isinstance(operation, Resume) and state.recovery is not None and state.closed is None:
            latest = max(held.generation for held in self.held.values())
            reopened = operation.incarnation < max(state.incarnation, state.incarnation_floor)
            held = (operation.incarnation, operation.round)
            return Phase.MEMBER if held == latest and not reopened else None
        return None

    def repeat(self, operation: Operation) -> None:
        """Checks that `operation`, which was just applied, may be repeated: only heartbeats may differ."""
        if isinstance(operation, Claim):  # by yet another process
            return
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
        stranger = NodeDesc("x", rank=self.settings.max_nodes - 1)
        other = structs.replace(self.settings, last_call=self.settings.last_call + 1)
        illegal: list[Operation] = [
            Reopen(state.incarnation + 9),
            Resume(stranger, self.settings, 1, 0, self.settings.max_nodes, self.settings.max_nodes, "d"),
            Resume(stranger, self.settings, 1, 0, 0, self.settings.max_nodes + 1, "d"),
            Join(NodeDesc(rounds.stand_in_name(0, 0)), self.settings),
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
        for operation in illegal:
            twin = inv.clone(state)
            try:
                events = machine.apply(twin, operation, self.now)
            except RendezvousError:
                inv.unchanged("a refused operation changes nothing", twin, state)
            else:
                raise inv.Broken(f"{operation} is refused: actual {events}, expected an error")

    def _apply(self, operation: Operation) -> list[LawEvent]:
        before = inv.Before.of(self.state, self.descs, self.now)
        events = machine.apply(self.state, operation, self.now)
        inv.check_step(before, self.state, events, self.now)
        inv.check_state(self.state, self.now)
        self._keep(events)
        if self.rows is not None and not isinstance(operation, Reopen):
            self._note(events, dict.fromkeys((desc.name for desc in self.rows.roster), 0))
        return events

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
            elif isinstance(event, NodeDraining):
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
        inv.check_state(self.state, self.now)
        inv.expect(absent <= set(self.state.suspects), "who is not back has its time to come", absent)
        same = (self.state.round, self.state.digest) == (kept.head.round, kept.head.digest)
        if self.state.complete and same:
            left = [name for name in self.state.participants if rounds.is_stand_in(name)]
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
        simple: dict[str, Operation] = {
            "drain": Drain(node, action.seconds, "maintenance"),
            "beat": KeepAlive(node),
            "cut": Disconnect(node),
            "close": Close("admin", "enough"),
            "reopen": Reopen(self.state.incarnation, "admin"),
            "pass": Tick(),
        }
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
        held = Held(view.incarnation, view.round, view.rank, view.world_size, view.digest)
        last = self.held.get(node)
        if last is not None:
            inv.expect(held.generation >= last.generation, f"{node} does not fall back", held, last)
            if held.generation == last.generation:
                inv.same(f"{node} has one rank in a round", held, last)
        for name, other in self.held.items():
            if name != node and other.generation == held.generation:
                self._check_pair(name, other, node, held)
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
        self.amnesias -= 1
        self.lives += 1
        self.agreed = None
        self.forgot |= not knowingly
        return True

    def _begin_anew(self, node: str) -> None:
        """Another process is the node from now on; it knows nothing."""
        self.held.pop(node, None)
        self.images.pop(node, None)
        self.known.pop(node, None)
        self.resumable -= {node}

    def view(self, node: str) -> NodeView:
        """What `node` would see."""
        return machine.view(self.state, node, self.now)

    def check_liveness(self) -> None:
        """Checks that fair nodes, all alive and joining, have a round within last call plus one expiry.

        A drain that was announced may first take its time: nothing takes a member's place before it is over.
        """
        settings, state = self.settings, self.state
        if state.closed is not None or len(self.descs) < settings.min_nodes:
            return
        drain = max((drain.until for drain in state.drains.values()), default=self.now) - self.now
        recovery = self.now if state.recovery is None else state.recovery
        limit = max(self.now + max(drain, 0.0), recovery) + settings.last_call + settings.expiry
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
            called = self.state.wait_list or self.state.notices
            if not called or node in self.state.drains:
                return False
        elif phase is not Phase.GONE:
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
        if not state.complete or state.wait_list or state.drains:
            return False
        taken = {rank: node for rank, node in state.given.items() if node in state.participants}
        here = {n for n, desc in self.descs.items() if desc.rank is None or taken.get(desc.rank, n) == n}
        full = len(state.participants) == state.settings.max_nodes
        return set(state.participants) <= set(self.descs) and (full or here == set(state.participants))


def all_actions(world: World, kinds: tuple[str, ...]) -> list[Action]:
    """Every action of these kinds, on every node where it is on a node."""
    per_node = [Action(kind, node) for kind in kinds if kind in NODE_KINDS for node in world.descs]
    return per_node + [Action(kind) for kind in kinds if kind in RUN_KINDS]


def operation_of(world: World, action: Action) -> Operation | None:
    """The operation that `action` would propose; None if it is not one, or is not possible now."""
    if action.kind in ("look", "forget", "restart", "record", "confirm", "crash"):
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
    for held in sorted(world.held.values()):
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
            _recorded(world, name),
        ))  # fmt: skip
    return (
        tuple(sorted(sketch, key=repr)), state.complete, state.closed is not None,
        -99.0 if state.deadline is None else state.deadline - now, state.world_size,
        _near(state.round_floor - state.round), _near(state.incarnation_floor - state.incarnation),
        -99.0 if state.recovery is None else state.recovery - now,
        state.round_floor == 0, state.unfinished, world.amnesias, world.lives, world.forgot,
        state.ready, max(-1.0, state.reserved - now), *_recorded_head(world),
    )  # fmt: skip


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
        head.closed is not None, pending,
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

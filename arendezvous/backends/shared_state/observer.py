"""One observer of a stock rendezvous state: what it has seen, and when, by its own clock.

The state in the store carries other machines' clocks. Nothing here compares them with ours to judge who is
alive: a heartbeat counts from the moment at which its stamp was seen to *move*, and a last call from the
moment at which its deadline was first seen. Stamps are compared with our wall clock for one purpose only, to
report a clock that is off.

Stock's format has no notices. They are derived here, from the difference of two states: a member that
vanished from a complete round was lost if its heartbeat was overdue, and left otherwise; one of ours says so
itself.

All of this is pure: time is an argument.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Collection
from datetime import datetime

import msgspec

from arendezvous.law import state as law
from arendezvous.law.checks import MAX_NAME
from arendezvous.law.rosters import addresses_of, member_digest
from arendezvous.wire.torch_state.state import StockState, World
from arendezvous.wire.torch_state.unpickling import StockDesc


class Observation(msgspec.Struct):
    """Notes what was seen of one node.

    Attributes:
        desc: The node, in our terms.
        arrival: Counts the arrivals of the run; smaller is older.
        is_stock: Whether it is a stock node.
        phase: Where it stands.
        since: When it was first seen there.
        stamp: Its heartbeat, by its clock; None if it has none.
        beat: When that was seen to move, or first seen.
        skew: Seconds that its clock is ahead of ours, as far as its last heartbeat tells; None: unknown.
    """

    desc: law.NodeDesc
    arrival: int
    is_stock: bool
    phase: law.Phase
    since: float
    stamp: datetime | None
    beat: float
    skew: float | None = None


class Observer:
    """Keeps what one backend knows of a run, besides the state itself.

    Attributes:
        state: The state seen last; a new one, if there is none.
        exists: Whether there is one.
        sights: All nodes that are in some list.
        keys: Their names, which are unique.
        deadline: When the last call is over, on our clock.
        closure: Who closed the run.
        world: The complete round, as it was on completion; None while it gathers.
        mixed: Whether the latest complete round had stock members.
        departed: Who went, and why; the latest last.
        notices: What happened to members of the complete round.
        notice_count: How many notices there were.
        arrivals: How many nodes ever arrived.
    """

    def __init__(self) -> None:
        self.state = StockState()
        self.exists = False
        self.sights: dict[StockDesc, Observation] = {}
        self.keys: dict[str, StockDesc] = {}
        self.deadline: float | None = None
        self.closure: law.Closure | None = None
        self.world: World | None = None
        self.mixed = False
        self.departed: OrderedDict[str, law.Departure] = OrderedDict()
        self.notices: deque[law.Notice] = deque(maxlen=law.MAX_NOTICES)
        self.notice_count = 0
        self.arrivals = 0

    def settings(self) -> law.RunSettings | None:
        """Returns what our nodes in the run agreed on; None if there are none of ours."""
        ours = any(not sight.is_stock for sight in self.sights.values())
        return self.state.annex.settings if ours else None

    def observe(
        self,
        state: StockState | None,
        now: float,
        wall: datetime,
        settings: law.RunSettings,
        own: Collection[StockDesc] = (),
    ) -> list[StockDesc]:
        """Takes in a state that was read, or written, just now.

        Args:
            state: The state; None if there is none.
            now: Our clock, in seconds.
            wall: Our wall clock.
            settings: What is overdue, and how long a last call is, unless the state says so itself.
            own: Nodes that would know if they had left.

        Returns:
            Those of `own` that vanished though they were alive, by our clock.
        """
        before, self.exists = self.state, state is not None
        self.state = state = StockState() if state is None else state
        settings = state.annex.settings or settings
        dropped = self._bury(before, now, settings, own)
        self._look_at_nodes(now, wall)
        self._look_at_round(before, now, settings)
        return dropped

    def forgive(self, seconds: float) -> None:
        """Takes it that nobody was silent in the last `seconds`, in which this observer did not look."""
        for sight in self.sights.values():
            sight.beat += seconds
        if self.deadline is not None:
            self.deadline += seconds

    def skewed(self, limit: float) -> dict[str, float]:
        """Nodes whose clock is off ours by more than `limit` seconds, by name."""
        known = {sight.desc.name: sight.skew or 0.0 for sight in self.sights.values()}
        return {name: skew for name, skew in known.items() if abs(skew) > limit}

    def _bury(
        self, before: StockState, now: float, settings: law.RunSettings, own: Collection[StockDesc]
    ) -> list[StockDesc]:
        """Finds out who is gone, and why."""
        same_round = before.complete and self.state.complete and before.round == self.state.round
        if not same_round:
            self.notices.clear()
        here = self.state.nodes()
        fresh = {e.key: e for e in self.state.annex.gone if e.number > before.annex.gone_count}
        unseen = fresh.keys() - {str(node) for node in (*here, *self.sights)}
        for entry in (entry for entry in self.state.annex.gone if entry.key in unseen):
            self._remember(entry.node, law.Departure(entry.cause, entry.reason, entry.round, now))
        dropped: list[StockDesc] = []
        for node in [node for node in self.sights if node not in here]:
            sight = self.sights.pop(node)
            del self.keys[sight.desc.name]
            word = fresh.get(str(node))
            if word is not None:
                cause, reason = word.cause, word.reason
            elif not self.exists or self.state.round < before.round:
                cause = law.Cause.SUPERSEDED
                reason = "the store has lost the state of the run; it was restarted"
            else:
                cause, reason = self._guess(sight, now, settings, mine=node in own)
                if node in own and now - sight.beat < _overdue(settings):
                    dropped.append(node)
            self._remember(sight.desc.name, law.Departure(cause, reason, before.round, now))
            expected = self.state.closed and sight.is_stock  # it goes when its work is done, without a word
            if same_round and node in before.participants and not expected:
                self.notice_count += 1
                self.notices.append(law.Notice(self.notice_count, sight.desc.name, cause, reason))
        return dropped

    def _guess(
        self, sight: Observation, now: float, settings: law.RunSettings, *, mine: bool
    ) -> tuple[law.Cause, str]:
        age = now - sight.beat
        if age >= (_overdue if mine else _silent)(settings):
            return law.Cause.NO_HEARTBEAT, f"no heartbeat for {age:.1f} s"
        if mine:
            apart = max((s.skew for s in self.sights.values() if s.skew is not None), key=abs, default=0.0)
            hint = f"; the clock of a peer is {apart:+.1f} s off this one's" if abs(apart) >= 1 else ""
            reason = f"a peer dropped it, though its heartbeat was {age:.1f} s old: compare the clocks{hint}"
            return law.Cause.NO_HEARTBEAT, reason
        return law.Cause.LEFT, ""

    def _remember(self, name: str, departure: law.Departure) -> None:
        self.departed[name] = departure
        self.departed.move_to_end(name)
        if len(self.departed) > law.MAX_DEPARTED:
            self.departed.popitem(last=False)

    def _look_at_nodes(self, now: float, wall: datetime) -> None:
        state, entries = self.state, self.state.annex.nodes
        self.arrivals = max(self.arrivals, state.annex.arrivals)
        for node, phase in sorted(_phases(state).items(), key=lambda item: _age(item[0], state)):
            stamp, sight = state.last_heartbeats.get(node), self.sights.get(node)
            entry = entries.get(str(node))
            if sight is None:
                desc = entry.desc if entry is not None else None
                arrival = self.arrivals if entry is None else entry.arrival
                self.arrivals = max(self.arrivals, arrival + 1)
                described = self._name(node, desc)
                sight = Observation(described, arrival, desc is None, phase, now, stamp, now)
                self.sights[node] = sight
                self.keys[described.name] = node
                self.departed.pop(described.name, None)
                ahead = 0.0 if stamp is None else (stamp - wall).total_seconds()
                sight.skew = ahead if ahead > 0 else None  # an old stamp may be that of a dead node
            if entry is not None:
                sight.arrival = entry.arrival
            if sight.phase is not phase:
                sight.phase, sight.since = phase, now
            if stamp is not None and stamp != sight.stamp:
                sight.stamp, sight.beat = stamp, now
                sight.skew = (stamp - wall).total_seconds()

    def _name(self, node: StockDesc, desc: law.NodeDesc | None) -> law.NodeDesc:
        """Describes a node under a name that nobody else has."""
        if desc is None:
            desc = law.NodeDesc(str(node)[-MAX_NAME:], node.addr, node.pid, min(node.local_id, 2**53))
        name = desc.name
        while name in self.keys:
            name = f"{name[-MAX_NAME + 1 :]}~"
        return desc if name == desc.name else msgspec.structs.replace(desc, name=name)

    def _look_at_round(self, before: StockState, now: float, settings: law.RunSettings) -> None:
        state = self.state
        if state.deadline is None:
            self.deadline = None
        elif self.deadline is None or state.deadline != before.deadline or state.round != before.round:
            self.deadline = now + settings.last_call
        if not state.closed:
            self.closure = None
        elif self.closure is None:
            by, reason = state.annex.closed or ("", "")
            self.closure = law.Closure(by, reason, now)
        written = state.annex.world
        if not state.complete:
            self.world = None
            self.mixed = self.mixed or state.annex.mixed
            return
        if self.world is None or self.world.round != state.round:
            known = written is not None and written.round == state.round
            self.world = written if known else self._world()
            self.mixed = known and state.annex.mixed
        self.mixed = self.mixed or any(self.sights[node].is_stock for node in state.participants)

    def _world(self) -> World:
        """Takes the measure of a round that stock completed, from those who are in it."""
        ranked = sorted(self.state.participants.items(), key=lambda item: item[1])
        descs = [self.sights[node].desc for node, _ in ranked]
        size = ranked[-1][1] + 1 if ranked else 0
        rank0 = addresses_of(descs[0]) if ranked and ranked[0][1] == 0 else ()
        digest = member_digest(1, self.state.round, descs)
        return World(self.state.round, size, digest, rank0)


def _overdue(settings: law.RunSettings) -> float:
    """Seconds of silence after which a vanished node is taken for dead: a peer saw that a little earlier."""
    return settings.expiry - settings.keep_alive_interval / 2


def _silent(settings: law.RunSettings) -> float:
    """The same for somebody else's node, whose heartbeats may be seen a second late, as over etcd-v2.

    Whoever leaves has just been heard of: half-way between that and what is overdue is far from both.
    """
    return min(_overdue(settings), (settings.expiry + settings.keep_alive_interval) / 2)


def _phases(state: StockState) -> dict[StockDesc, law.Phase]:
    inside = law.Phase.MEMBER if state.complete else law.Phase.GATHERING
    phases = dict.fromkeys(state.redundancy_list, law.Phase.REDUNDANT)
    phases.update(dict.fromkeys(state.wait_list, law.Phase.WAITING))
    phases.update(dict.fromkeys(state.participants, inside))
    return phases


def _age(node: StockDesc, state: StockState) -> tuple[int, StockDesc]:
    """Sorts nodes by arrival; those that have no entry come last."""
    entry = state.annex.nodes.get(str(node))
    return (entry.arrival if entry is not None else state.annex.arrivals, node)

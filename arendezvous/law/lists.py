"""The lists of a rendezvous and what must hold between them; the bookkeeping under the law.

Every change of a list goes through `Lists`, which keeps the counters and indexes of the state true, so that
the rest of the law never counts or searches.
"""

from __future__ import annotations

from typing import Final

from msgspec import structs

from arendezvous.law.events import LawEvent, NodeDeparted, NodePromoted
from arendezvous.law.rules import Brought
from arendezvous.law.seats import Seats
from arendezvous.law.state import (
    GATHERING,
    MAX_DEPARTED,
    MAX_NOTICES,
    MEMBER,
    REDUNDANT,
    WAITING,
    Cause,
    Departure,
    NodeDesc,
    NodeRecord,
    Notice,
    Phase,
    RendezvousState,
)

_STAND_IN: Final = "(rank "


def stand_in_name(round_: int, rank: int) -> str:
    """The name under which a restored round keeps the place of a member that has not resumed yet."""
    return f"{_STAND_IN}{rank} of round {round_})"


def is_stand_in(node: str) -> bool:
    """Whether `node` is such a name; no real node may have one."""
    return node.startswith(_STAND_IN)


class Lists:
    """The lists of `state` while one operation is applied at `now`; `events` tells what came of it."""

    __slots__ = ("events", "now", "state")

    def __init__(self, state: RendezvousState, now: float) -> None:
        self.state, self.now = state, now
        self.events: list[LawEvent] = []

    def register(self, desc: NodeDesc) -> None:
        """Keeps a record of a node that is about to enter a list."""
        state = self.state
        state.nodes[desc.name] = NodeRecord(desc, state.arrivals, self.now)
        state.arrivals += 1
        if desc.rank is None or state.settings.rank_policy != "given":
            return
        if state.given.setdefault(desc.rank, desc.name) != desc.name:
            state.rivals.setdefault(desc.rank, {})[desc.name] = None

    def register_member(self, desc: NodeDesc) -> None:
        """Keeps a record of a member that is back; whoever has come for its given rank waits for it now."""
        state = self.state
        holder = None if desc.rank is None else state.given.pop(desc.rank, None)
        rivals = {} if desc.rank is None else state.rivals.pop(desc.rank, {})
        self.register(desc)
        if holder is None or desc.rank is None:
            return
        state.rivals[desc.rank] = {holder: None, **rivals}
        if holder in state.wait_list:
            self.promote(holder, WAITING, REDUNDANT)
        state.redundancy_list.move_to_end(holder)

    def enter(self, node: str, phase: Phase) -> None:
        """Puts a registered node into the list that `phase` stands for."""
        state = self.state
        state.nodes[node].since = self.now
        if phase is GATHERING:
            state.participants[node] = -1
            state.newcomers += node not in state.ranks
            if state.opinions is not None:
                state.opinions.count(state.nodes[node].desc.brought.facts, 1)
        elif phase is WAITING:
            state.wait_list[node] = None
            state.returning += node in state.ranks
        else:
            state.ranks.pop(node, None)  # of a member for which there is no place any more
            state.redundancy_list[node] = None
            if state.rivals and not self.is_rival(node):
                state.redundancy_list.move_to_end(node, last=False)
        if state.seats is not None:
            self.count(state.seats, node, phase, 1)

    def exit(self, node: str, phase: Phase) -> None:
        """Takes a node out of the list that `phase` stands for."""
        state = self.state
        if phase is WAITING:
            del state.wait_list[node]
            state.returning -= node in state.ranks
        elif phase is REDUNDANT:
            del state.redundancy_list[node]
        else:
            del state.participants[node]
            if phase is GATHERING:
                state.newcomers -= node not in state.ranks
                if state.opinions is not None:
                    state.opinions.count(state.nodes[node].desc.brought.facts, -1)
        if state.seats is not None:
            self.count(state.seats, node, phase, -1)

    def count(self, seats: Seats, node: str, phase: Phase, change: int) -> None:
        """Notes that a node comes into a list (1), or goes (-1); that a member drains is going."""
        if phase is MEMBER and node in self.state.drains:
            return
        if is_stand_in(node):
            seats.strangers += change
            return
        desc = self.state.nodes[node].desc
        group, label = seats.groups[desc.brought.role], seats.label_of(desc.label)
        if phase is not REDUNDANT:
            group.count(label, change, change if phase is GATHERING and node in self.state.ranks else 0)
        else:
            group.count_spare(node, label, change)

    def move_on(self, member: str, brings: Brought | None) -> None:
        """Moves a member that has joined again, and brings this now, from its round to the wait list."""
        self.exit(member, MEMBER)
        record = self.state.nodes[member]
        if brings != record.desc.brings:  # of what it brings the latest counts
            record.desc = structs.replace(record.desc, brings=brings)
        self.enter(member, WAITING)
        if self.state.steps is not None:
            self.state.steps.forget(member)

    def promote(self, node: str, origin: Phase, target: Phase) -> None:
        """Moves a node from one list to another."""
        self.exit(node, origin)
        self.enter(node, target)
        self.events.append(NodePromoted(node, target))

    def take_out(self, member: str) -> None:
        """Takes a member out of the round without a word."""
        self.exit(member, MEMBER)
        self.forget(member)

    def forget(self, node: str) -> None:
        """Drops all that is kept of a node that is in no list any more."""
        state = self.state
        self.give_up_rank(node)
        del state.nodes[node]
        for kept in (state.last_heartbeats, state.suspects, state.drains, state.ranks):
            kept.pop(node, None)
        if state.steps is not None:
            state.steps.forget(node)

    def is_rival(self, node: str) -> bool:
        """Whether `node` is a spare that waits for the holder of its given rank to go."""
        rank = self.state.nodes[node].desc.rank
        return rank is not None and node in self.state.rivals.get(rank, ())

    def give_up_rank(self, node: str) -> None:
        """Passes the given rank that `node` has, or waits for, on to the spare that has waited longest.

        Spares that have what they need stand before those that have not, so that one look at the first tells
        whether any can be promoted.
        """
        state = self.state
        rank = state.nodes[node].desc.rank
        if rank is None or rank not in state.given:
            return
        rivals = state.rivals.get(rank, {})
        if state.given[rank] != node:
            rivals.pop(node, None)
        elif rivals:
            heir = state.given[rank] = next(iter(rivals))
            del rivals[heir]
            state.redundancy_list.move_to_end(heir, last=False)
        else:
            del state.given[rank]
        if not rivals:
            state.rivals.pop(rank, None)

    def depart(self, node: str, cause: Cause, reason: str) -> None:
        """Takes a node out of its list and the run, and remembers why."""
        state = self.state
        phase, rank = state.phase(node), state.ranks.get(node)
        self.exit(node, phase)
        self.forget(node)
        departure = Departure(cause, reason, state.round, self.now)
        self.remember(node, departure)
        if rank is not None and state.roster is not None:
            state.roster.gone[rank] = departure
        if phase is MEMBER:
            self.notice(node, cause, reason)
            state.unfinished -= cause is Cause.FINISHED
        self.events.append(NodeDeparted(node, phase, cause, reason))
        if state.barriers is not None and phase is MEMBER and cause is Cause.FINISHED:
            self.events += state.barriers.excuse(node)

    def remember(self, node: str, departure: Departure) -> None:
        """Keeps the reason for a departure, so that the node can be told when it next speaks."""
        departed = self.state.departed
        departed[node] = departure
        departed.move_to_end(node)
        if len(departed) > MAX_DEPARTED:
            departed.popitem(last=False)

    def notice(
        self, node: str, cause: Cause | None, reason: str, seconds: float = 0.0, step: int | None = None
    ) -> None:
        """Tells the members of the complete round about one of them; `cause` None: it drains, or stalls.

        A notice of a stall gives way to what members have to hear.
        """
        state, notices = self.state, self.state.notices
        if state.steps is not None and len(notices) == MAX_NOTICES:
            stall = next((one for one in notices if one.step is not None), None)
            if stall is not None:
                notices.remove(stall)
        state.notice_count += 1
        notices.append(Notice(state.notice_count, node, cause, reason, seconds, step))

    def notice_stall(self, node: str, step: int, seconds: float) -> None:
        """Tells the members that one of them stalls, in place of what they heard of that before.

        Where there is no room for that beside what they have to hear, they are not told.
        """
        notices = self.state.notices
        same = next((one for one in notices if one.step is not None and one.node == node), None)
        if same is not None:
            notices.remove(same)
        if len(notices) < MAX_NOTICES:
            self.notice(node, None, "", seconds, step)

    def beat(self, node: str) -> None:
        """Notes a sign of life."""
        state = self.state
        state.last_heartbeats[node] = self.now
        state.last_heartbeats.move_to_end(node)
        state.suspects.pop(node, None)


def forget_departed(state: RendezvousState, keep: int) -> None:
    """Forgets why nodes went, but for the latest `keep`: a state may have an owner who cannot keep more."""
    while len(state.departed) > keep:
        state.departed.popitem(last=False)

"""Merges what members keep of a run into the state of an owner that has forgotten it, or a part of it.

The first member that comes back restores the round (`restore`) with a stand-in for each that is not back yet,
see `machine`. A member that keeps a `RunImage` tells who they are. So whoever does not come back is lost by
its name, a member that had left before is not lost once more, and a drain goes on.

What is agreed of a round only ever grows, so images and parts of it may be merged in any order, and again; of
two rounds the later one counts. Nobody can tell of more members than a `Resume` can.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from copy import copy
from operator import itemgetter
from typing import Final

from msgspec.structs import force_setattr

from arendezvous.errors import RendezvousSettingsError
from arendezvous.law.admission import can_be_restored, check_name, check_resume
from arendezvous.law.checks import check_seconds, check_text
from arendezvous.law.events import LawEvent, NodeDeparted, NodePromoted
from arendezvous.law.image import Clocks, DepartureRow, DrainRow, ImageMember, RunImage
from arendezvous.law.lists import is_stand_in, stand_in_name
from arendezvous.law.operations import Resume
from arendezvous.law.rosters import RoundRoster, addresses_of
from arendezvous.law.rounds import RESUME_GRACE, Rounds
from arendezvous.law.state import (
    MAX_ROUND,
    MEMBER,
    REDUNDANT,
    WAITING,
    Cause,
    Departure,
    NodeDesc,
    NodeRecord,
    Notice,
)
from arendezvous.law.state import RendezvousState as State
from arendezvous.law.steering import enforce


def restore(rounds: Rounds, operation: Resume) -> None:
    """Makes the round that `operation` tells of the complete one, with stand-ins for all its members."""
    state = rounds.state
    for node in list(state.participants) if state.complete else ():
        _supersede(rounds, node, operation.round)
    others = [*state.participants, *state.wait_list]
    for node in others:
        rounds.exit(node, state.phase(node))
    state.ranks = {}
    state.notices.clear()
    if not state.nodes:
        rounds.settle_on(operation.settings)
    settings = state.settings
    patience = min(settings.expiry, max(settings.disconnect_grace, RESUME_GRACE))
    rounds.begin_recovery()
    state.incarnation, state.round = operation.incarnation, operation.round
    state.complete, state.ready, state.deadline = True, False, None
    state.world_size = state.unfinished = operation.world_size
    state.digest, state.rank0 = operation.digest, ()
    somebody_else = bool(state.last_heartbeats)
    descs = _stand_in(rounds, operation.round, operation.world_size, rounds.now - settings.expiry + patience)
    state.roster = RoundRoster((operation.incarnation, operation.round), descs)
    if somebody_else:
        beats = sorted(state.last_heartbeats.items(), key=itemgetter(1))
        state.last_heartbeats = OrderedDict(beats)
    state.decisions.excess = None
    for role in (settings.agreed.roles or ("",)) if state.decisions.are_any else ():
        rounds.fit(role)
    for node in others:
        phase = rounds.place_of(state.nodes[node].desc)
        rounds.enter(node, phase)
        rounds.events.append(NodePromoted(node, phase))


def _stand_in(rounds: Rounds, round_: int, world_size: int, beat: float) -> list[NodeDesc]:
    """Puts a stand-in in the place of each member, heard of last at `beat`; returns them by rank.

    Descriptions are copied, as their checks would be a quarter of the work: 16,384 take 15 ms, and not 20.
    """
    state, now, unchecked = rounds.state, rounds.now, NodeDesc(stand_in_name(round_, 0))
    names = [stand_in_name(round_, rank) for rank in range(world_size)]
    arrivals, descs = state.arrivals, []
    for rank, name in enumerate(names):
        desc = copy(unchecked)
        force_setattr(desc, "name", name)
        state.nodes[name] = NodeRecord(desc, arrivals + rank, now)
        descs.append(desc)
    state.arrivals += world_size
    ranks = dict(zip(names, range(world_size), strict=True))
    state.participants.update(ranks)
    state.ranks.update(ranks)
    state.last_heartbeats.update(dict.fromkeys(names, beat))
    if state.seats is not None:
        state.seats.strangers += world_size
    return descs


def _supersede(rounds: Rounds, node: str, round_: int) -> None:
    """Removes a member of a restored round that is an old one; if it is not back, without a word."""
    if is_stand_in(node) or rounds.state.suspects.get(node) == rounds.state.reserved:
        rounds.take_out(node)
    else:
        rounds.depart(node, Cause.SUPERSEDED, f"round {round_}, without it, is later than the one it held")


TAKEN: Final = "it did not come back, and another process came under its name"


def resume_of(part: RunImage) -> Resume | None:
    """Makes the `Resume` by which a member of a part would present itself; None if it has no members."""
    if not part.members:
        return None
    head, first = part.head, part.members[0]
    return Resume(first.desc, head.settings, *head.generation, first.rank, head.world_size, head.digest)


def check_part(part: RunImage) -> None:
    """Raises `RendezvousSettingsError` unless there can be such a part, whatever the state of the run."""
    size, ranks, names = part.head.world_size, set(), set()
    for member in part.members:
        check_name(member.desc.name)
        if not 0 <= member.rank < size:
            raise RendezvousSettingsError.of("rank", member.rank, f"from 0 to {size - 1}")
        ranks.add(member.rank)
        names.add(member.desc.name)
    if not len(ranks) == len(names) == len(part.members):
        expected = "each once, and each with a rank of its own"
        raise RendezvousSettingsError.of("members", sorted(names), expected)
    for node in (*part.departed, *part.drains):
        if node not in names:
            expected = "one of the members of the same part"
            raise RendezvousSettingsError.of("departed or drains", node, expected)
    rows: list[DepartureRow | DrainRow] = [*part.departed.values(), *part.drains.values()]
    for row in rows:
        check_text("reason", row.reason)
        if not 0 <= row.notice <= MAX_ROUND:
            raise RendezvousSettingsError.of("notice", row.notice, f"from 0 to {MAX_ROUND}")
    for drain in part.drains.values():
        check_seconds("drain deadline", drain.seconds, zero=True)


def recall(
    state: State, part: RunImage, clocks: Clocks, known_as: Callable[[ImageMember], bool] = lambda _: True
) -> tuple[list[LawEvent], set[str], bool]:
    """Merges an image, or a part of one, into `state`, in place; not at all if this raises.

    Nothing happens unless its round is the one that is known here, or may be restored, and has stand-ins.
    `known_as` tells whether the process that has come under the name of a member is that member.

    Returns:
        The events; the members that are there by name now, and not back yet; and whether what all see is new.

    Raises:
        RendezvousSettingsError: There can be no such round.
    """
    resume = resume_of(part)
    if resume is None:
        return [], set(), False
    check_part(part)
    rounds = Rounds(state, clocks.now)
    if can_be_restored(state, resume):
        check_resume(state, resume)
        restore(rounds, resume)
        rounds.settle()
    merging = _Merging(rounds, clocks)
    held = (*part.head.generation, part.head.digest)
    if state.complete and held == (state.incarnation, state.round, state.digest):
        for member in part.members:
            name = member.desc.name
            gone, drain = part.departed.get(name), part.drains.get(name)
            if gone is not None:
                merging.depart(member, gone)
                continue
            merging.bring(member, known_as)
            if drain is not None:
                merging.drain(member, drain)
        is_known = state.decisions.is_known or state.decisions.are_any
        if not is_known and part.head.decisions is not None:
            state.decisions = part.head.decisions.restored(part.head.settings, clocks)
            enforce(rounds)
        rounds.settle()
    if rounds.events or merging.changed or merging.absent:
        state.revision += 1
    return rounds.events, merging.absent, merging.changed


class _Merging:
    """Merges members one by one."""

    def __init__(self, rounds: Rounds, clocks: Clocks) -> None:
        self.absent: set[str] = set()  # members that are there by name, and not back yet
        self.changed = False  # whether members see something else now
        self._rounds = rounds
        self._state = rounds.state
        self._clocks = clocks

    def depart(self, member: ImageMember, gone: DepartureRow) -> None:
        """Takes a member out that had departed before."""
        state, name = self._state, member.desc.name
        holder = self._holder(member)
        if holder is None:
            return
        self._rounds.take_out(holder)
        state.unfinished -= gone.cause is Cause.FINISHED
        departure = Departure(gone.cause, gone.reason, state.round, self._clocks.ago(gone.wall))
        self._learn(member, departure)
        if name not in state.nodes:
            self._rounds.remember(name, departure)
        if holder == name:  # it has come back, and does not know yet
            self._rounds.events.append(NodeDeparted(name, MEMBER, gone.cause, gone.reason))
        self._notice(Notice(gone.notice, name, gone.cause, gone.reason))

    def bring(self, member: ImageMember, known_as: Callable[[ImageMember], bool]) -> None:
        """Puts the name of a member in for its stand-in."""
        state, rounds, name = self._state, self._rounds, member.desc.name
        stand_in = stand_in_name(state.round, member.rank)
        if stand_in not in state.participants or name in state.participants:
            return
        until = state.last_heartbeats[stand_in] + state.settings.expiry
        self._rounds.take_out(stand_in)
        if member.rank == 0:
            state.rank0, self.changed = addresses_of(member.desc), True
        self._learn(member, state.departed.get(name))
        if name in state.nodes and not known_as(member):
            self._learn(member, Departure(Cause.CONNECTION_LOST, TAKEN, state.round, rounds.now))
            rounds.notice(name, Cause.CONNECTION_LOST, TAKEN)
            self.changed = True
        elif name in state.nodes:
            self._meet_again(name, member.rank)
        elif name not in state.departed:
            rounds.bring_back(member.desc, member.rank, stand_in)
            rounds.beat(name)
            state.reserved = max([until, state.reserved, *list(state.suspects.values())[-1:]])
            state.suspects[name] = state.reserved
            self.absent.add(name)

    def drain(self, member: ImageMember, drain: DrainRow) -> None:
        """Has a member drain that did before."""
        state, name = self._state, member.desc.name
        if name in state.participants and name not in state.drains:
            self._rounds.begin_drain(name, drain.left(self._clocks), drain.reason)
            self._notice(Notice(drain.notice, name, None, drain.reason, drain.seconds))

    def _meet_again(self, name: str, rank: int) -> None:
        """Gives a member its rank back that has joined again before it was known to be one."""
        state, rounds, phase = self._state, self._rounds, self._state.phase(name)
        desc, until = state.nodes[name].desc, state.suspects.get(name)
        rounds.exit(name, phase)
        rounds.forget(name)
        rounds.register_member(desc)  # which has its given rank before who has come for it meanwhile
        state.ranks[name] = rank
        rounds.enter(name, WAITING)
        rounds.beat(name)
        if until is not None:
            state.suspects[name] = max([until, *list(state.suspects.values())[-1:]])
        if phase is REDUNDANT:
            rounds.events.append(NodePromoted(name, WAITING))

    def _holder(self, member: ImageMember) -> str | None:
        """The one that has the rank of a member: its stand-in, or in a recovery itself; None: neither has."""
        state, stand_in = self._state, stand_in_name(self._state.round, member.rank)
        if stand_in in state.participants:
            return stand_in
        has_it = state.participants.get(member.desc.name) == member.rank
        return member.desc.name if has_it and state.recovery is not None else None

    def _learn(self, member: ImageMember, gone: Departure | None) -> None:
        """Notes in the roster who has a rank, and why that one is gone, if it is."""
        roster = self._state.roster
        if roster is not None:
            roster.learn(member.rank, member.desc, None)
            if gone is not None:
                roster.gone[member.rank] = gone

    def _notice(self, notice: Notice) -> None:
        """Tells members what they were told before, in its place."""
        state, self.changed = self._state, True
        if notice.number:
            notices = sorted([*state.notices, notice], key=lambda one: one.number)
            state.notices.clear()
            state.notices.extend(notices)
            state.notice_count = max(state.notice_count, notice.number)

"""The rounds of a rendezvous: what follows when the lists or the clock have changed; see `machine.py`."""

from __future__ import annotations

import heapq
import math
from typing import Final

from arendezvous.law.decisions import LAW, Ruling, Sizes
from arendezvous.law.events import (
    MemberStalled,
    NodeDeparted,
    NodePromoted,
    NodeQuarantined,
    RoundCompleted,
    RoundOpened,
    RunClosed,
    RunReleased,
    RunReopened,
    WaitingChanged,
)
from arendezvous.law.facts import DisagreementError, Opinions
from arendezvous.law.lists import Lists, is_stand_in
from arendezvous.law.ranking import RANK_POLICIES, seated, seniority
from arendezvous.law.rosters import RoundRoster, addresses_of, facts_of, member_digest
from arendezvous.law.seats import Seats
from arendezvous.law.state import (
    GATHERING,
    MEMBER,
    REDUNDANT,
    WAITING,
    Cause,
    Closure,
    NodeDesc,
    PendingDrain,
    Phase,
    RendezvousState,
    RunSettings,
    WaitKey,
)

EXPIRED_AT_ONCE: Final = 256  # nodes that one tick removes
EXACT_WAITING: Final = 8  # so many newcomers are told one by one
RESUME_GRACE: Final = 1.0  # seconds in which the members of a round come back that lost their coordinator
RESTARTED: Final = "it did not come back after the coordinator had been restarted"


def wait_key(state: RendezvousState) -> WaitKey:
    """Tells what members hear of the wait list; they are woken when this changes.

    The members that meet again one by one count as one piece of news; so do newcomers, except that the first
    few are told exactly and further ones each time their number doubles. Otherwise a burst of N joins would
    wake N members N times.
    """
    newcomers = len(state.wait_list) - state.returning
    told = newcomers if newcomers <= EXACT_WAITING else EXACT_WAITING + newcomers.bit_length()
    return (state.returning > 0, told)


def recovery_time(settings: RunSettings) -> float:
    """Seconds in which one member at least of a round comes back to a coordinator that has forgotten it."""
    return min(settings.expiry, RESUME_GRACE)


def completes_at(state: RendezvousState) -> float | None:
    """Tells when the gathering round completes unless something changes, -inf standing for at once.

    None: it lacks nodes, it is held until it is released, or nothing gathers.
    """
    if state.deadline is None:
        return None
    seats = state.seats
    if seats is None:
        most = state.decisions.max_nodes or state.settings.max_nodes  # saves a call a join
        settled = len(state.participants) >= most or not state.newcomers
    else:
        settled = not state.newcomers or seats.is_full or seats.is_as_before
    due = -math.inf if settled else state.deadline
    if state.recovery is not None:
        due = max(due, state.recovery)
    due = max(due, state.decisions.held_until)
    return None if due == math.inf else due


def ranked(state: RendezvousState) -> list[str]:
    """Orders the participants of a gathering round by the ranks that they would have now.

    Those who would have none, as they are no whole unit, are left out.
    """
    records = [state.nodes[node] for node in state.participants]
    if state.seats is not None:
        return seated(state.seats, records, state.ranks, state.settings.rank_policy)
    return RANK_POLICIES[state.settings.rank_policy](records, state.ranks)


class Rounds(Lists):
    """The lists, and the rounds that follow from them."""

    __slots__ = ()

    def begin_drain(self, node: str, seconds: float, reason: str) -> None:
        """Notes that a member will leave within `seconds`; a later word replaces an earlier one."""
        state = self.state
        until = self.now + seconds
        if state.seats is not None:  # else it is counted out already
            self.count(state.seats, node, Phase.MEMBER, -1)
        state.drains[node] = PendingDrain(until, reason)
        if len(state.drain_queue) > 2 * len(state.drains) + 16:
            state.drain_queue = [(drain.until, name) for name, drain in state.drains.items()]
            heapq.heapify(state.drain_queue)
        else:
            heapq.heappush(state.drain_queue, (until, node))
        self.give_up_rank(node)

    def expire(self) -> None:
        """Removes the nodes whose time is over; of a crowd some, and the next tick, which is due, others."""
        state, now, most = self.state, self.now, len(self.state.nodes) - EXPIRED_AT_ONCE
        expiry = state.settings.expiry
        while state.last_heartbeats and len(state.nodes) > most:
            node, beat = next(iter(state.last_heartbeats.items()))
            if beat + expiry > now:
                break
            reason = RESTARTED if is_stand_in(node) else f"no heartbeat for {now - beat:.1f} s"
            self.depart(node, Cause.NO_HEARTBEAT, reason)
        while state.suspects and next(iter(state.suspects.values())) <= now and len(state.nodes) > most:
            node, until = next(iter(state.suspects.items()))
            grace = state.settings.disconnect_grace
            reason = f"its connection broke and did not come back within {grace:g} s"
            self.depart(node, Cause.CONNECTION_LOST, RESTARTED if until == state.reserved else reason)
        while state.drain_queue and len(state.nodes) > most:
            until, node = state.drain_queue[0]
            drain = state.drains.get(node)
            stale = drain is None or drain.until != until
            if not stale and until > now:
                break
            heapq.heappop(state.drain_queue)
            if drain is not None and not stale:
                self.depart(node, Cause.DRAINED, drain.reason)
        if state.recovery is not None and state.recovery <= now:
            self.end_recovery()
        held = state.decisions.held
        if held is not None and held.until <= now:
            state.decisions.held = None
            self.events.append(RunReleased(""))

    def depart(self, node: str, cause: Cause, reason: str) -> None:
        """Takes a node out of its list and the run, and remembers why; see `decisions` for what follows."""
        super().depart(node, cause, reason)
        rules = self.state.settings.rules
        if rules is None or not rules.strikes or not (cause is Cause.FAILED or cause.is_loss):
            return
        departed = self.events[-1]
        if not isinstance(departed, NodeDeparted) or departed.phase is not MEMBER or is_stand_in(node):
            return
        decisions = self.state.decisions
        if not decisions.strike(node, rules.strikes):
            return
        why = "it failed, or was lost" + (f", {rules.strikes} times" if rules.strikes > 1 else "")
        quarantine = Ruling(LAW, why, self.now, self.now + rules.cooldown)
        if decisions.set_quarantine((False, node), quarantine):
            self.events.append(NodeQuarantined(node, False, LAW, why, rules.cooldown))

    def fit(self, role: str = "", by: str = "", reason: str = "") -> None:
        """Moves those who are too many since a resize, of a `role` if any; members are told that they are."""
        state, decisions = self.state, self.state.decisions
        least, most = self.numbers_of(role)
        if state.seats is not None:
            state.seats.resize(role, least, most)
            most = state.seats.groups[role].most
        if not state.complete:
            if state.seats is None:  # else those who are over are left out when the round completes
                came = sorted(state.participants, key=lambda node: seniority(state.nodes[node], state.ranks))
                for node in reversed(came[state.max_nodes :]):
                    self._put_back(node, GATHERING)
            return
        if state.seats is None:
            for node in reversed(list(state.wait_list)):
                if state.room >= 0:
                    break
                if node not in state.ranks:
                    self._put_back(node, WAITING)
        sizes = decisions.sizes.get(role) or Sizes(least, most, role, by, reason)
        staying = (node for node in state.ranks if node not in state.drains)
        if role:
            staying = (node for node in staying if state.nodes[node].desc.brought.role == role)
        if sum(1 for _ in staying) > most:
            decisions.excess = sizes
        elif decisions.excess is not None and decisions.excess.role == role:
            decisions.excess = None

    def _put_back(self, node: str, phase: Phase) -> None:
        """Makes a node the spare that is next to be promoted."""
        self.promote(node, phase, REDUNDANT)
        self.state.redundancy_list.move_to_end(node, last=False)

    def begin_incarnation(self, by: str) -> None:
        """Begins the run anew, without the nodes that are in it."""
        state = self.state
        for node in list(state.nodes):
            self.depart(node, Cause.REOPENED, f"reopened by {by}" if by else "")
        state.closed = state.recovery = None
        state.unfinished = -1
        state.incarnation = max(state.incarnation, state.incarnation_floor) + 1
        state.decisions.vain, state.decisions.step = 0, -1
        self.events.append(RunReopened(state.incarnation, by))
        self.open_round()

    def close(self, by: str, reason: str, *, by_node: bool) -> None:
        """Closes the run."""
        state = self.state
        state.closed = Closure(by, reason, self.now, by_node)
        state.deadline, state.ready = None, False
        self.events.append(RunClosed(by, reason))

    def settle(self) -> None:
        """Brings about whatever follows from a change of the lists."""
        state = self.state
        if state.closed is None:
            if state.complete:
                staying = len(state.participants) - len(state.drains)
                if not state.participants or (staying == 0 and state.returning):
                    self.open_round()
            if state.complete and state.seats is not None:
                while unit := state.seats.next_unit():
                    for spare in unit:
                        self.promote(spare, Phase.REDUNDANT, Phase.WAITING)
            elif state.complete:
                while state.redundancy_list and state.room > 0 and (first := self.next_spare()) is not None:
                    self.promote(first, Phase.REDUNDANT, Phase.WAITING)
            else:
                self.gather()
        key = wait_key(state)
        if key != state.told_waiting:
            state.told_waiting = key
            self.events.append(WaitingChanged(len(state.wait_list)))

    def open_round(self) -> None:
        """Opens the next round, with the nodes that wait for it."""
        state = self.state
        for node in list(state.drains):
            self.depart(node, Cause.DRAINED, state.drains[node].reason)
        state.drains.clear()  # it is empty; a dict that is emptied one by one stays slow to walk through
        state.drain_queue.clear()
        state.complete, state.deadline, state.newcomers = False, None, 0
        state.notices.clear()
        state.world_size, state.digest, state.rank0 = 0, "", ()
        state.decisions.excess = None
        self.learn(state.incarnation, state.round)
        self.renumber(state.round + 1)
        members = sorted(filter(state.ranks.__contains__, state.wait_list), key=state.ranks.__getitem__)
        newcomers = [node for node in state.wait_list if node not in state.ranks]
        if state.seats is not None:
            self.seat_all([*members, *newcomers])
        else:
            for node in (*members, *newcomers):
                full = len(state.participants) >= state.max_nodes
                self.promote(node, Phase.WAITING, Phase.REDUNDANT if full else Phase.GATHERING)
        state.wait_list.clear()  # as with the drains

    def seat_all(self, nodes: list[str]) -> None:
        """Has nodes of the wait list come into the round that opens, in this order."""
        for node in nodes:  # so that the seats are counted of those who have come alone
            self.exit(node, Phase.WAITING)
        for node in nodes:
            phase = self.place_of(self.state.nodes[node].desc)
            if phase is Phase.REDUNDANT:  # a member that comes back in another role
                self.state.ranks.pop(node, None)
            self.enter(node, phase)
            self.events.append(NodePromoted(node, phase))

    def place_of(self, desc: NodeDesc) -> Phase:
        """Tells which list a newcomer enters."""
        state, seats = self.state, self.state.seats
        if seats is None:
            is_free = state.room > 0
        elif state.complete:
            is_free = seats.is_wanted(desc.brought.role, desc.label)
        else:
            is_free = seats.takes(desc.brought.role)
        return Phase.REDUNDANT if not is_free else Phase.WAITING if state.complete else Phase.GATHERING

    def next_spare(self) -> str | None:
        """The spare that is next to be promoted; None if there is none, or only rivals."""
        spare = next(iter(self.state.redundancy_list), None)
        return None if spare is None or (self.state.rivals and self.is_rival(spare)) else spare

    def hear_of(self, incarnation: int, round_: int) -> None:
        """Takes in the latest round that a newcomer knows; one that is not known here was forgotten."""
        state = self.state
        news = round_ >= max(state.round, state.round_floor)
        news = news or incarnation > max(state.incarnation, state.incarnation_floor)
        if news and not state.complete:
            self.begin_recovery()
        self.learn(incarnation, round_)
        self.renumber()

    def begin_recovery(self) -> None:
        """Has the round wait for members of an earlier one, which has been forgotten here."""
        due = self.now + recovery_time(self.state.settings)
        self.state.recovery = due if self.state.recovery is None else max(due, self.state.recovery)

    def end_recovery(self) -> None:
        """Takes it that nobody else comes back: what gathers is the next round.

        After the latest round that somebody has told of there may have been others. Only whoever gathered for
        the very first one, and says so, tells that there was none.
        """
        state = self.state
        state.recovery = None
        was_none = state.incarnation_floor > 0 and state.round_floor == 0
        if not state.complete and not was_none:
            state.round_floor = max(state.round_floor, state.first_round)
        self.renumber()

    def learn(self, incarnation: int, round_: int) -> None:
        """Notes that a round has been, here or elsewhere: only later ones will be formed."""
        state = self.state
        if incarnation > state.incarnation_floor:
            state.incarnation_floor = incarnation
        if round_ >= state.round_floor:
            state.round_floor = round_ + 1

    def renumber(self, least: int = 0) -> None:
        """Gives what gathers a number beyond all that are known; one that may be restored is not passed."""
        state = self.state
        if state.complete or state.closed is not None:
            return
        if state.recovery is None:
            least = max(least, state.round_floor)
            state.incarnation = max(state.incarnation, state.incarnation_floor)
        if state.round < least:
            state.round = least
            self.events.append(RoundOpened(least))

    def gather(self) -> None:
        """Fills a gathering round from the spares, minds its last call, and completes it if it can be."""
        state = self.state
        while self.fill():
            if state.deadline is None:
                state.deadline = self.now + state.settings.last_call
            due = completes_at(state)
            is_due = due is not None and due <= self.now
            if is_due and self.is_in_vain:
                rounds = state.settings.agreed.stop_after
                self.close(LAW, f"{rounds} round{'s' * (rounds > 1)} without progress", by_node=True)
                return
            if is_due and state.opinions is not None and not state.opinions.agree and not self.agrees():
                continue
            state.ready = state.records and is_due
            if is_due and not state.records:
                self.complete(ranked(state))
            return
        state.deadline, state.ready = None, False

    def fill(self) -> bool:
        """Has spares come into a round that gathers; tells whether it has enough nodes then."""
        state, seats = self.state, self.state.seats
        if seats is not None:
            for spare in seats.next_spares():
                self.promote(spare, Phase.REDUNDANT, Phase.GATHERING)
            return seats.has_enough
        while state.redundancy_list and len(state.participants) < state.max_nodes:
            first = self.next_spare()
            if first is None:
                break
            self.promote(first, Phase.REDUNDANT, Phase.GATHERING)
        return len(state.participants) >= (state.decisions.min_nodes or state.settings.min_nodes)

    def agrees(self) -> bool:
        """Whether those who would be members agree on the facts; if not, all participants depart."""
        state = self.state
        try:
            facts_of(state.settings.rules, [state.nodes[node].desc for node in ranked(state)])
        except DisagreementError as error:
            state.deadline, state.ready = None, False
            for node in list(state.participants):
                self.depart(node, Cause.DISAGREED, str(error))
            return False
        return True

    def note_stalls(self) -> None:
        """Tells of the members whose progress stands still; of a crowd some, and the next tick others."""
        steps, timeout = self.state.steps, self.state.settings.agreed.stall_timeout
        if steps is None or not timeout:
            return
        for _ in range(EXPIRED_AT_ONCE):
            member = steps.next_stalled(timeout, self.now)
            if member is None:
                break
            step, seconds = steps.latest[member], self.now - steps.stalled[member]
            self.notice_stall(member, step, seconds)
            self.events.append(MemberStalled(member, step, seconds))

    @property
    def is_in_vain(self) -> bool:
        """Whether so many rounds have brought no progress that there is to be no further one."""
        rules = self.state.settings.rules
        return rules is not None and 0 < rules.stop_after <= self.state.decisions.vain

    def complete(self, order: list[str]) -> None:
        """Completes the round: its participants become members, with ranks in the given `order`."""
        state = self.state
        if state.seats is not None:
            chosen = set(order)
            for node in [one for one in state.participants if one not in chosen]:
                self.promote(node, Phase.GATHERING, Phase.REDUNDANT)
                state.ranks.pop(node, None)
            state.seats.round_completes()
        state.participants = {node: rank for rank, node in enumerate(order)}
        state.ranks = dict(state.participants)
        state.complete, state.ready = True, False
        state.deadline, state.newcomers = None, 0
        state.world_size = state.unfinished = len(order)
        descs = [state.nodes[node].desc for node in order]
        state.digest = member_digest(state.incarnation, state.round, descs)
        state.rank0 = addresses_of(descs[0])
        state.roster = RoundRoster.of((state.incarnation, state.round), descs, state.settings.rules)
        if state.opinions is not None:
            state.opinions.clear()
        if state.settings.rules is not None and state.settings.rules.stop_after:
            state.decisions.vain += 1  # until a member tells of progress
        self.events.append(RoundCompleted(state.round, state.world_size))

    def bring_back(self, desc: NodeDesc, rank: int, stand_in: str) -> None:
        """Puts a member that is known again in the place of its stand-in, which has been taken out."""
        self.register_member(desc)
        if self.state.barriers is not None:
            self.state.barriers.replace(stand_in, desc.name)
        self.seat_member(desc.name, rank)

    def seat_member(self, node: str, rank: int) -> None:
        """Gives a registered node the rank that it has in the complete round, as far as others know."""
        state = self.state
        state.participants[node] = state.ranks[node] = rank
        if state.seats is not None:
            self.count(state.seats, node, Phase.MEMBER, 1)

    def settle_on(self, settings: RunSettings) -> None:
        """Takes over what the first node of a run brings, on which the others have to agree."""
        state = self.state
        state.settings = settings
        state.seats = Seats.of(settings.rules, settings.min_nodes, settings.max_nodes)
        state.opinions = Opinions.of(settings.rules)
        if state.seats is not None:
            for role in state.decisions.sizes:
                state.seats.resize(role, *self.numbers_of(role))

    def numbers_of(self, role: str) -> tuple[int, int]:
        """Tells how many nodes of a role, or of a run without roles, a round has: by decision, or agreed."""
        settings, resized = self.state.settings, self.state.decisions.sizes.get(role)
        if resized is not None:
            return resized.min_nodes, resized.max_nodes
        agreed = settings.agreed.roles.get(role)
        return (settings.min_nodes, settings.max_nodes) if agreed is None else (agreed.min_nodes, agreed.most)

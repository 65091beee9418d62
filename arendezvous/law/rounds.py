"""The rounds of a rendezvous: what follows when the lists or the clock have changed; see `machine.py`."""

from __future__ import annotations

import hashlib
import heapq
import math
from collections import OrderedDict
from operator import itemgetter
from typing import Final

from arendezvous.law.decisions import LAW, Decisions, Exclusion, Sizes
from arendezvous.law.lists import Lists
from arendezvous.law.operations import (
    NodeDeparted,
    NodePromoted,
    NodeQuarantined,
    Resume,
    RoundCompleted,
    RoundOpened,
    RunClosed,
    RunReleased,
    RunReopened,
    WaitingChanged,
)
from arendezvous.law.ranking import RANK_POLICIES
from arendezvous.law.state import (
    GATHERING,
    MEMBER,
    REDUNDANT,
    WAITING,
    Cause,
    Closure,
    Drain,
    NodeDesc,
    Phase,
    RendezvousState,
    RunSettings,
    WaitKey,
)

EXPIRED_AT_ONCE: Final = 256  # nodes that one tick removes
EXACT_WAITING: Final = 8  # so many newcomers are told one by one
RESUME_GRACE: Final = 1.0  # seconds in which the members of a round come back that lost their coordinator
RESTARTED: Final = "it did not come back after the coordinator had been restarted"
_STAND_IN: Final = "(rank "


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
    settled = len(state.participants) >= state.max_nodes or not state.newcomers
    due = -math.inf if settled else state.deadline
    if state.recovery is not None:
        due = max(due, state.recovery)
    if state.decisions is not None:
        due = max(due, state.decisions.held_until)
    return None if due == math.inf else due


def ranked(state: RendezvousState) -> list[str]:
    """Orders the participants of a gathering round by the ranks that they would have now."""
    records = [state.nodes[node] for node in state.participants]
    return RANK_POLICIES[state.settings.rank_policy](records, state.ranks)


def stand_in_name(round_: int, rank: int) -> str:
    """The name under which a restored round keeps the place of a member that has not resumed yet."""
    return f"{_STAND_IN}{rank} of round {round_})"


def is_stand_in(node: str) -> bool:
    """Whether `node` is such a name; no real node may have one."""
    return node.startswith(_STAND_IN)


def member_digest(incarnation: int, round_: int, order: list[str]) -> str:
    """A short fingerprint of a round's member list, in rank order."""
    text = "\n".join((f"{incarnation}.{round_}", *order))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def addresses_of(desc: NodeDesc) -> tuple[str, ...]:
    """Lists where a node may be reached, the best first; never empty."""
    return desc.addresses or (desc.addr or desc.name,)


class Rounds(Lists):
    """The lists, and the rounds that follow from them."""

    __slots__ = ()

    def announce_drain(self, node: str, seconds: float, reason: str) -> None:
        """Notes that a member will leave within `seconds`, and tells the others; see `begin_drain`."""
        self.begin_drain(node, seconds, reason)
        self.notice(node, None, reason, seconds)

    def begin_drain(self, node: str, seconds: float, reason: str) -> None:
        """Notes that a member will leave within `seconds`; a later word replaces an earlier one."""
        state = self.state
        until = self.now + seconds
        state.drains[node] = Drain(until, reason)
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
            reason = f"no heartbeat for {now - beat:.1f} s"
            if is_stand_in(node):
                reason = RESTARTED
            self.depart(node, Cause.NO_HEARTBEAT, reason)
        while state.suspects and next(iter(state.suspects.values())) <= now and len(state.nodes) > most:
            node, until = next(iter(state.suspects.items()))
            grace = state.settings.disconnect_grace
            reason = f"its connection broke and did not come back within {grace:g} s"
            if until == state.reserved:
                reason = RESTARTED
            self.depart(node, Cause.CONNECTION_LOST, reason)
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
        decisions = state.decisions
        if decisions is not None and decisions.held is not None and decisions.held.until <= now:
            decisions.held = None
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
        decisions = self.decisions
        if not decisions.strike(node, rules.strikes):
            return
        why = "it failed, or was lost" + (f", {rules.strikes} times" if rules.strikes > 1 else "")
        quarantine = Exclusion(LAW, why, self.now, self.now + rules.cooldown)
        if decisions.set_quarantine((False, node), quarantine):
            self.events.append(NodeQuarantined(node, False, LAW, why, rules.cooldown))

    @property
    def decisions(self) -> Decisions:
        """Returns what has been decided; kept from now on, be it nothing."""
        if self.state.decisions is None:
            self.state.decisions = Decisions()
        return self.state.decisions

    def fit(self, role: str = "", by: str = "", reason: str = "") -> None:
        """Moves those who are too many since the run was resized; members are told that they are.

        Args:
            role: The one that was resized.
            by: Who decided so.
            reason: Why.
        """
        state, decisions, settings = self.state, self.decisions, self.state.settings
        if not state.complete:
            over = sorted(state.participants, key=self._seniority)[state.max_nodes :]
            for node in reversed(over):
                self._put_back(node, GATHERING)
            return
        for node in reversed(list(state.wait_list)):
            if state.room >= 0:
                break
            if node not in state.ranks:
                self._put_back(node, WAITING)
        agreed = settings.agreed.roles.get(role)
        least, most = (agreed.min_nodes, agreed.most) if agreed else (settings.min_nodes, settings.max_nodes)
        sizes = decisions.sizes.get(role) or Sizes(least, most, role, by, reason)
        staying = (node for node in state.ranks if node not in state.drains)
        if role:
            staying = (node for node in staying if state.nodes[node].desc.brought.role == role)
        decisions.excess = sizes if sum(1 for _ in staying) > sizes.max_nodes else None

    def _seniority(self, node: str) -> tuple[bool, int]:
        """Sorts members of the last round by their rank, then newcomers, the oldest first."""
        rank = self.state.ranks.get(node)
        return (True, self.state.nodes[node].arrival) if rank is None else (False, rank)

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
        if state.decisions is not None:
            state.decisions.begin_incarnation()
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
            if state.complete:
                while state.redundancy_list and state.room > 0 and (spare := self.next_spare()) is not None:
                    self.promote(spare, Phase.REDUNDANT, Phase.WAITING)
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
        state.complete = False
        state.deadline = None
        state.newcomers = 0
        state.notices.clear()
        state.world_size, state.digest, state.rank0 = 0, "", ()
        if state.decisions is not None:
            state.decisions.excess = None
        self.learn(state.incarnation, state.round)
        self.renumber(state.round + 1)
        members = sorted(
            (node for node in state.wait_list if node in state.ranks), key=state.ranks.__getitem__
        )
        newcomers = [node for node in state.wait_list if node not in state.ranks]
        for node in (*members, *newcomers):
            full = len(state.participants) >= state.max_nodes
            self.promote(node, Phase.WAITING, Phase.REDUNDANT if full else Phase.GATHERING)
        state.wait_list.clear()  # as with the drains

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
        state, settings = self.state, self.state.settings
        while state.redundancy_list and len(state.participants) < state.max_nodes:
            spare = self.next_spare()
            if spare is None:
                break
            self.promote(spare, Phase.REDUNDANT, Phase.GATHERING)
        size = len(state.participants)
        if size < state.min_nodes:
            state.deadline, state.ready = None, False
            return
        if state.deadline is None:
            state.deadline = self.now + settings.last_call
        due = completes_at(state)
        if due is not None and due <= self.now and self.is_in_vain:
            rounds = settings.agreed.stop_after
            self.close(LAW, f"{rounds} round{'s' * (rounds > 1)} without progress", by_node=True)
            return
        state.ready = state.records and due is not None and due <= self.now
        if due is not None and due <= self.now and not state.records:
            self.complete(ranked(state))

    @property
    def is_in_vain(self) -> bool:
        """Whether so many rounds have brought no progress that there is to be no further one."""
        rules, decisions = self.state.settings.rules, self.state.decisions
        return rules is not None and decisions is not None and 0 < rules.stop_after <= decisions.vain

    def complete(self, order: list[str]) -> None:
        """Completes the round: its participants become members, with ranks in the given `order`."""
        state = self.state
        state.participants = {node: rank for rank, node in enumerate(order)}
        state.ranks = dict(state.participants)
        state.complete, state.ready = True, False
        state.deadline = None
        state.newcomers = 0
        state.world_size = state.unfinished = len(order)
        state.digest = member_digest(state.incarnation, state.round, order)
        state.rank0 = addresses_of(state.nodes[order[0]].desc)
        if state.settings.rules is not None and state.settings.rules.stop_after:
            self.decisions.vain += 1
        self.events.append(RoundCompleted(state.round, state.world_size))

    def restore(self, operation: Resume) -> None:
        """Makes the round that `operation` tells of the complete one, with stand-ins for all its members."""
        state = self.state
        for node in list(state.participants) if state.complete else ():
            self.supersede(node, operation.round)
        others = [*state.participants, *state.wait_list]
        state.participants, state.ranks, state.wait_list = {}, {}, {}
        state.newcomers = state.returning = 0
        state.notices.clear()
        settings = state.settings = operation.settings
        patience = min(settings.expiry, max(settings.disconnect_grace, RESUME_GRACE))
        self.begin_recovery()
        state.incarnation, state.round = operation.incarnation, operation.round
        state.complete, state.ready, state.deadline = True, False, None
        state.world_size = state.unfinished = operation.world_size
        state.digest, state.rank0 = operation.digest, ()
        for rank in range(operation.world_size):
            name = stand_in_name(operation.round, rank)
            self.register(NodeDesc(name))
            state.participants[name] = state.ranks[name] = rank
            state.last_heartbeats[name] = self.now - settings.expiry + patience
        beats = sorted(state.last_heartbeats.items(), key=itemgetter(1))
        state.last_heartbeats = OrderedDict(beats)
        if state.decisions is not None:
            self.fit()
        for node in others:
            phase = Phase.WAITING if state.room > 0 else Phase.REDUNDANT
            self.enter(node, phase)
            self.events.append(NodePromoted(node, phase))

    def supersede(self, node: str, round_: int) -> None:
        """Removes a member of a restored round that turns out to be an old one; a stand-in without a word."""
        if is_stand_in(node):
            self.exit(node, Phase.MEMBER)
            self.forget(node)
        else:
            self.depart(node, Cause.SUPERSEDED, f"round {round_}, without it, is later than the one it held")

"""Barriers, where the members of a round wait for each other and agree on values; and their progress.

A barrier belongs to one complete round. Its key is a name and a *turn*: how many barriers of that name the
member has passed in this round. So a name can be used again, in a loop, and a request can still be repeated.

Let M be the members of the round as it was completed, F those of them that have left as finished, and A those
that have arrived at the barrier, and have not withdrawn.

* **It passes** as soon as all of M but F are in A. What each brought is reduced to one value, which is the
  same for all, and so is the error if it cannot be reduced. The latest `MAX_PASSED` are remembered: who asks
  again, having missed the answer, is told the same.
* **The round is whole** as long as each of M is a member still or in F. Once it is not, no barrier of it
  passes any more: somebody is lost, has failed, left or been evicted, or has gone on to the next round.
  Those who wait are told so at once, and so is whoever arrives later.
* **Who withdraws** is told that the barrier has passed meanwhile, or who has not come. Those that came and
  have withdrawn before are not named there: they did come.

Arriving is a sign of life. An arrival costs O(1), but for the first, which takes down all who are to come,
and the last, which reduces what they brought.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, TypeAlias

import msgspec

from arendezvous.errors import RendezvousSettingsError, RendezvousStateError, RoundOverError
from arendezvous.law.events import BarrierPassed, LawEvent, RoundBroken
from arendezvous.law.facts import checked_value, reduced_value
from arendezvous.law.operations import Arrive, Withdraw
from arendezvous.law.rules import Json
from arendezvous.law.state import Cause, RendezvousState
from arendezvous.law.words import departure_text, listed

MAX_OPEN: Final = 64  # barriers of a round at which somebody waits
MAX_PASSED: Final = 64  # that are remembered, so that a lost answer can be given again
MAX_VALUES: Final = 1024 * 1024  # bytes of all different values at the barriers that are open
MAX_MISSING: Final = 12  # members that whoever withdraws is named

Key: TypeAlias = tuple[str, int]


class Met(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Tells a member how a barrier stands.

    Attributes:
        passed: Whether all have come.
        value: What they agreed on, as JSON; empty if it has not passed, or nobody brought anything.
        problem: Why they did not agree on anything, as what they brought cannot be reduced; empty: they did.
        missing: The first `MAX_MISSING` of those that have not come.
        others: How many more have not come.
        withdrawn: How many have come, and waited no longer.
    """

    passed: bool
    value: Json = b""
    problem: str = ""
    missing: tuple[str, ...] = ()
    others: int = 0
    withdrawn: int = 0


@dataclass(slots=True)
class OpenBarrier:
    """A barrier at which somebody waits, or has waited."""

    reducer: str  # how the values are reduced; empty: nobody brings one
    missing: dict[str, None]  # who has not come yet, by rank
    withdrawn: dict[str, None] = field(default_factory=dict)  # who has come, and waits no more
    values: dict[bytes, bytes] = field(default_factory=dict)  # the different ones, kept once each
    arrived: dict[str, bytes] = field(default_factory=dict)  # who has come, to what they brought

    @property
    def is_due(self) -> bool:
        """Whether all have come."""
        return not self.missing and not self.withdrawn


@dataclass(slots=True)
class Barriers:
    """The barriers of one round; kept in `RendezvousState.barriers` from the first arrival on."""

    generation: tuple[int, int]  # incarnation and round that they belong to
    open: dict[Key, OpenBarrier] = field(default_factory=dict)  # those that have not passed
    passed: OrderedDict[Key, bytes | str] = field(default_factory=OrderedDict)  # the latest, with the result
    size: int = 0  # bytes of the values at those that are open

    def excuse(self, member: str) -> list[LawEvent]:
        """Waits for a member no more, as it has left as finished; returns what passes because of that."""
        events: list[LawEvent] = []
        for key, barrier in list(self.open.items()):
            barrier.missing.pop(member, None)
            barrier.withdrawn.pop(member, None)
            events += self._passed(key, barrier)
        return events

    def replace(self, stand_in: str, member: str) -> None:
        """Waits for `member` where its stand-in was waited for."""
        for barrier in self.open.values():
            if stand_in in barrier.missing:
                del barrier.missing[stand_in]
                barrier.missing[member] = None

    def settled(self, state: RendezvousState) -> list[LawEvent]:
        """Breaks the barriers that are open if the round is whole no more; returns what has happened."""
        if not self.open or is_whole(state, self.generation):
            return []
        self.open.clear()
        self.size = 0
        return [RoundBroken(self.generation[1])]

    def arrive(self, operation: Arrive, members: dict[str, int]) -> list[LawEvent]:
        """Notes an arrival of one of the `members`; returns what has happened. Raises if it does not fit."""
        key, value = operation.key, operation.value
        if operation.reducer:
            value = checked_value("value", operation.reducer, value or b"null")
        barrier = self.open.get(key)
        if barrier is not None and barrier.arrived and barrier.reducer != operation.reducer:
            others = barrier.reducer or "none"
            expected = f"{others!r}, as for the members that have come to barrier {operation.name!r} already"
            raise RendezvousSettingsError.of("reducer", operation.reducer, expected)
        more = 0 if barrier is not None and value in barrier.values else len(value)
        if self.size + more > MAX_VALUES:
            raise RendezvousStateError(
                f"the members bring more than {MAX_VALUES} bytes of different values to the barriers of this"
                " round that are open: share them by info.store"
            )
        if barrier is None or not barrier.arrived:  # whoever came before has gone away
            self._make_room(key)
            if barrier is None:
                barrier = self.open[key] = OpenBarrier(operation.reducer, dict.fromkeys(members))
            barrier.reducer = operation.reducer
        barrier.arrived[operation.node] = barrier.values.setdefault(value, value)
        self.size += more
        barrier.missing.pop(operation.node, None)
        barrier.withdrawn.pop(operation.node, None)
        return self._passed(key, barrier)

    def withdraw(self, operation: Withdraw) -> None:
        """Takes an arrival back."""
        barrier = self.open.get(operation.key)
        if barrier is not None and barrier.arrived.pop(operation.node, None) is not None:
            barrier.withdrawn[operation.node] = None

    def standing(self, key: Key) -> Met | None:
        """Tells how a barrier stands; None: nobody has come to it."""
        result = self.passed.get(key)
        if isinstance(result, str):
            return Met(passed=True, problem=result)
        if result is not None:
            return Met(passed=True, value=result)
        barrier = self.open.get(key)
        if barrier is None:
            return None
        missing = tuple(islice(barrier.missing, MAX_MISSING))
        others = len(barrier.missing) - len(missing)
        return Met(passed=False, missing=missing, others=others, withdrawn=len(barrier.withdrawn))

    def _make_room(self, key: Key) -> None:
        """Sees to it that one more barrier may be open: those where nobody waits any more give way."""
        if len(self.open) < MAX_OPEN or key in self.open:
            return
        left = next((other for other, barrier in self.open.items() if not barrier.arrived), None)
        if left is None:
            raise RendezvousStateError(
                f"members wait at {MAX_OPEN} barriers of this round already, and none of them has passed;"
                " wait for one of these first"
            )
        self._close(left)

    def _close(self, key: Key) -> None:
        self.size -= sum(map(len, self.open.pop(key).values))

    def _passed(self, key: Key, barrier: OpenBarrier) -> list[LawEvent]:
        if not barrier.is_due or not barrier.arrived:
            return []
        self._close(key)
        try:
            name, reducer = f"value at barrier {key[0]!r}", barrier.reducer
            self.passed[key] = reduced_value(name, reducer, barrier.arrived) if reducer else b""
        except RendezvousStateError as error:
            self.passed[key] = error.message
        if len(self.passed) > MAX_PASSED:
            self.passed.popitem(last=False)
        return [BarrierPassed(*key)]


def is_whole(state: RendezvousState, generation: tuple[int, int]) -> bool:
    """Tells whether `generation` is the present round, and nobody is missing in it but who has finished."""
    is_present = state.complete and (state.incarnation, state.round) == generation
    return is_present and len(state.participants) == state.unfinished


def check_arrival(state: RendezvousState, operation: Arrive | Withdraw) -> None:
    """Raises `RoundOverError` unless the round of `operation` is whole, and its node a member of it."""
    generation = operation.generation
    if not is_whole(state, generation) or operation.node not in state.participants:
        raise over_error(state, generation, operation.node)


def standing(state: RendezvousState, operation: Arrive | Withdraw) -> Met:
    """Tells a member how a barrier stands to which it has come. Raises `RoundOverError` if it cannot pass."""
    generation = operation.generation
    barriers = state.barriers
    if barriers is not None and barriers.generation == generation:
        met = barriers.standing(operation.key)
        if met is not None:
            return met
    check_arrival(state, operation)
    return Met(passed=False, others=len(state.participants))


def over_error(state: RendezvousState, generation: tuple[int, int], node: str = "") -> RoundOverError:
    """Builds the error for who waits in a round that is not whole, or over: it says who is gone, and why."""
    round_, closed = generation[1], state.closed is not None
    if not state.complete or (state.incarnation, state.round) != generation:
        gone = state.departed.get(node)
        why = "" if gone is None else f"; {departure_text(node, gone.cause, gone.reason)}"
        message = f"round {round_} is over{why}; {way_on(closed=closed)}"
        return RoundOverError(message, round=round_, closed=closed)
    texts, departures = [], {}
    for notice in state.notices:
        if notice.cause is not None and notice.cause is not Cause.FINISHED:
            texts.append(departure_text(notice.node, notice.cause, notice.reason))
            departures[notice.node] = notice.reason or notice.cause.value
    if state.returning:
        for other in (one for one in islice(state.wait_list, MAX_OPEN) if one in state.ranks):
            texts.append(f"{other} has joined the next round")
            departures[other] = "it has joined the next round"
    text = listed(texts, MAX_MISSING) or "its members are not all here any more"
    message = f"round {round_} is not whole any more: {text}; {way_on(closed=closed)}"
    return RoundOverError(message, round=round_, departures=departures, closed=closed)


def way_on(*, closed: bool) -> str:
    """Says what is left to do for who waited in a round that is over."""
    return "the run is closed, so there is no next round" if closed else "join the next round"


@dataclass(slots=True)
class Steps:
    """Progress: how far the work of each member has come, and whose stands still.

    A member reports a *step*, a number that rises as long as its work goes on; a report that is not higher
    than the one before counts as a sign of life, and no more. With `RoundRules.stall_timeout` a member that
    has reported in this round, and whose step has not risen for so long, is *stalled*: the members are told
    once, and again only if it has risen in between. It keeps its rank. Who has never reported in this round
    never stalls.

    A report costs O(1), and so does finding out who is the next to stall: members are kept in the order in
    which their steps rose last. It is kept in `RendezvousState.steps` from the first report on.
    """

    latest: dict[str, int] = field(default_factory=dict)  # each member's highest step in this round
    risen: OrderedDict[str, float] = field(default_factory=OrderedDict)  # when it rose; of who does not stall
    stalled: dict[str, float] = field(default_factory=dict)  # the same, of those that stall

    def report(self, member: str, step: int, now: float) -> None:
        """Notes a member's step; nothing happens if it has not risen."""
        if step <= self.latest.get(member, -1):
            return
        self.latest[member] = step
        self.stalled.pop(member, None)
        self.risen[member] = now
        self.risen.move_to_end(member)

    def forget(self, member: str) -> None:
        """Looks at a member no more: it is none, or will be one of another round."""
        if self.latest.pop(member, None) is not None:
            self.risen.pop(member, None)
            self.stalled.pop(member, None)

    def due(self, timeout: float) -> float | None:
        """Tells when the next member stalls; None: none will."""
        return next(iter(self.risen.values())) + timeout if self.risen and timeout else None

    def next_stalled(self, timeout: float, now: float) -> str | None:
        """Takes out the next of those that stall by now, and returns its name; None: there are no more."""
        due = self.due(timeout)
        if due is None or due > now:
            return None
        member, since = self.risen.popitem(last=False)
        self.stalled[member] = since
        return member

"""Remembers the latest rounds of each run: how long each gathered, who came last, and what ended it."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from heapq import nlargest
from typing import Final, TypeAlias

from arendezvous.coordinator.coordinator import Coordinator
from arendezvous.law.events import (
    LawEvent,
    MemberDraining,
    NodeDeparted,
    RoundCompleted,
    RoundOpened,
    RunClosed,
    RunReopened,
    RunResized,
    WaitingChanged,
)
from arendezvous.law.state import Cause, Phase, RendezvousState
from arendezvous.law.words import event_text
from arendezvous.wire.http.bodies import ComerBody, RoundBody

ROUNDS: Final = 32  # of a run that are remembered; with their texts some 20 KiB
RUNS: Final = 1024  # of which rounds are remembered
LATE: Final = 3  # nodes that are named

_Ending: TypeAlias = NodeDeparted | MemberDraining | WaitingChanged | RunClosed | RunResized
_KINDS: Final = (
    RoundOpened, RoundCompleted, RunReopened, NodeDeparted, MemberDraining, WaitingChanged, RunClosed,
    RunResized,
)  # fmt: skip


class _Round:
    """A round that was complete.

    Fields:
        incarnation, number, world_size: As the law has them.
        began, completed: When, by the coordinator's clock.
        ended: When it was over; None: it is not.
        late: Who came last.
        why: What ended it, or will; empty: nothing has.
    """

    __slots__ = ("began", "completed", "ended", "incarnation", "late", "number", "why", "world_size")

    def __init__(self, state: RendezvousState, now: float) -> None:
        self.incarnation = state.incarnation
        self.number = state.round
        self.world_size = state.world_size
        self.began, self.late = _comers(state)
        self.completed = now
        self.ended: float | None = None
        self.why = ""


class RoundLog:
    """Remembers the rounds of the runs of one coordinator, from now on.

    Args:
        coordinator: Where the runs are.
    """

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._rounds: OrderedDict[str, deque[_Round]] = OrderedDict()  # the run that changed last is last
        self._stop: tuple[Callable[[], None], ...] = (
            coordinator.observe(self._on_event, *_KINDS),
            coordinator.observe_forgotten(self._forget),
        )

    def close(self) -> None:
        """Remembers nothing more."""
        for stop in self._stop:
            stop()

    def of(self, run_id: str) -> list[RoundBody]:
        """Lists the latest rounds of a run, the oldest first, and the one that gathers as the last."""
        run, now = self._coordinator.runs.get(run_id), self._coordinator.clock()
        rounds = [_told(one, now) for one in self._rounds.get(run_id, ())]
        if run is not None and not run.state.complete and run.state.participants:
            state = run.state
            began, late = _comers(state)
            rounds.append(
                RoundBody(
                    incarnation=state.incarnation,
                    round=state.round,
                    world_size=0,
                    began=now - began,
                    completed=None,
                    ended=None,
                    late=late,
                )
            )
        return rounds

    def _forget(self, run_id: str) -> None:
        self._rounds.pop(run_id, None)

    def _on_event(self, run_id: str, now: float, event: LawEvent) -> None:
        state, rounds = self._coordinator.runs[run_id].state, self._rounds.get(run_id)
        if isinstance(event, RoundCompleted):
            if state.complete and state.round == event.round:  # and not over in the very same moment
                self._add(run_id, _Round(state, now))
        elif rounds and rounds[-1].ended is None:
            latest = rounds[-1]
            if isinstance(event, _Ending) and not latest.why and _is_cause(event):
                latest.why = event_text(event)
            if isinstance(event, RoundOpened | RunReopened) or not state.participants:
                latest.ended = now

    def _add(self, run_id: str, one: _Round) -> None:
        rounds = self._rounds.setdefault(run_id, deque(maxlen=ROUNDS))
        if rounds and rounds[-1].ended is None:
            rounds[-1].ended = one.began
        rounds.append(one)
        self._rounds.move_to_end(run_id)
        if len(self._rounds) > RUNS:
            self._rounds.popitem(last=False)


def _is_cause(event: _Ending) -> bool:
    """Whether a complete round ends by this."""
    if isinstance(event, NodeDeparted):
        return event.phase is Phase.MEMBER and event.cause is not Cause.FINISHED
    return not isinstance(event, WaitingChanged) or event.count > 0


def _comers(state: RendezvousState) -> tuple[float, tuple[ComerBody, ...]]:
    """When the first participant came, and who came last; work proportional to their number."""
    came = [(state.nodes[node].since, node) for node in state.participants]
    first = min(came)[0]
    late = nlargest(LATE, came)
    return first, tuple(ComerBody(node=node, after=since - first) for since, node in late if since > first)


def _told(one: _Round, now: float) -> RoundBody:
    return RoundBody(
        incarnation=one.incarnation,
        round=one.number,
        world_size=one.world_size,
        began=now - one.began,
        completed=now - one.completed,
        ended=None if one.ended is None else now - one.ended,
        late=one.late,
        why=one.why,
    )

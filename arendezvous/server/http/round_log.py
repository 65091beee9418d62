"""Remembers the latest rounds of each run: how long each gathered, who came last, and what ended it."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from heapq import nlargest
from typing import Final, TypeAlias

from arendezvous.coordinator.coordinator import Coordinator
from arendezvous.coordinator.history import PastRound
from arendezvous.law.events import (
    LawEvent,
    MemberDraining,
    NodeDeparted,
    NodeJoined,
    RoundCompleted,
    RoundOpened,
    RunClosed,
    RunReopened,
    RunResized,
    WaitingChanged,
)
from arendezvous.law.state import Cause, Phase, RendezvousState
from arendezvous.law.words import event_text, waiting_text
from arendezvous.wire.http.bodies import ComerBody, RoundBody

ROUNDS: Final = 32  # of a run that are remembered; with their names and texts 50 KiB at most
RUNS: Final = 512  # of which rounds are remembered
LATE: Final = 3  # nodes that are named

_Ending: TypeAlias = NodeDeparted | MemberDraining | WaitingChanged | RunClosed | RunResized
_KINDS: Final = (
    NodeJoined, RoundOpened, RoundCompleted, RunReopened, NodeDeparted, MemberDraining, WaitingChanged,
    RunClosed, RunResized,
)  # fmt: skip


class _Rounds:
    """The rounds of one run.

    Fields:
        latest: Those that were complete.
        came: Node to when it came, since the latest was complete; nodes that are still here.
        began: When the first node came to the next one, in a run with members the first of these; None: none.
    """

    __slots__ = ("began", "came", "latest")

    def __init__(self) -> None:
        self.latest: deque[PastRound] = deque(maxlen=ROUNDS)
        self.came: dict[str, float] = {}
        self.began: float | None = None

    def late(self, began: float, nodes: Iterable[str]) -> tuple[tuple[str, float], ...]:
        """Names those of some nodes that came last; work proportional to their number."""
        came = [(self.came.get(node, began), node) for node in nodes]
        return tuple((node, at - began) for at, node in nlargest(LATE, came) if at > began)


class RoundLog:
    """Remembers the rounds of the runs of one coordinator, and those that earlier servers have recorded.

    Args:
        coordinator: Where the runs are.
    """

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._runs: OrderedDict[str, _Rounds] = OrderedDict()  # the one that had a round last is last
        self._stop: tuple[Callable[[], None], ...] = (
            coordinator.observe(self._on_event, *_KINDS),
            coordinator.retention.observe(self._forget),
        )
        if coordinator.records is not None:
            coordinator.records.history.follow(self)

    def close(self) -> None:
        """Remembers nothing more."""
        for stop in self._stop:
            stop()

    def of(self, run_id: str) -> list[RoundBody]:
        """Lists the latest rounds of a run, the oldest first, and the one that nodes come to as the last."""
        rounds, run = self._runs.get(run_id), self._coordinator.runs.get(run_id)
        if rounds is None or run is None:
            return []
        now, state = self._coordinator.clock(), run.state
        told = [_body(one, now) for one in rounds.latest]
        if rounds.began is not None and state.closed is None:
            nodes = state.wait_list if state.complete else state.participants
            told.append(
                RoundBody(
                    incarnation=state.incarnation,
                    round=state.round + state.complete,
                    world_size=0,
                    began=now - rounds.began,
                    completed=None,
                    ended=None,
                    late=_comers(rounds.late(rounds.began, nodes)),
                )
            )
        return told

    def rounds_of(self, run_id: str) -> Iterable[PastRound]:
        """See `PastRounds.rounds_of`."""
        rounds = self._runs.get(run_id)
        return () if rounds is None else rounds.latest

    def restore(self, run_id: str, rounds: Iterable[PastRound]) -> None:
        """See `PastRounds.restore`."""
        latest, state = self._rounds(run_id).latest, self._coordinator.runs[run_id].state
        latest.extend(rounds)
        here = (state.incarnation, state.round) if state.complete else None
        if latest and latest[-1].ended is None and (latest[-1].incarnation, latest[-1].number) != here:
            latest[-1].ended = self._coordinator.clock()  # or before: that was not recorded any more

    def _forget(self, run_id: str) -> None:
        self._runs.pop(run_id, None)

    def _on_event(self, run_id: str, now: float, event: LawEvent) -> None:
        rounds, state = self._rounds(run_id), self._coordinator.runs[run_id].state
        if isinstance(event, NodeJoined):
            rounds.came[event.node] = now
            if rounds.began is None and (not state.complete or event.node in state.ranks):
                rounds.began = now
        elif isinstance(event, RoundCompleted):
            self._on_completed(rounds, state, now, event)
            self._runs.move_to_end(run_id)
        else:
            _end(rounds, state, now, event)

    def _rounds(self, run_id: str) -> _Rounds:
        rounds = self._runs.get(run_id)
        if rounds is None:
            rounds = self._runs[run_id] = _Rounds()
            if len(self._runs) > RUNS:
                self._runs.popitem(last=False)
        return rounds

    def _on_completed(
        self, rounds: _Rounds, state: RendezvousState, now: float, event: RoundCompleted
    ) -> None:
        if state.complete and state.round == event.round:  # and not over in the very same moment
            began = now if rounds.began is None else rounds.began
            late = rounds.late(began, state.participants)
            latest = PastRound(state.incarnation, state.round, state.world_size, began, now, late)
            rounds.latest.append(latest)
        rounds.came.clear()
        rounds.began = None


def _body(past: PastRound, now: float) -> RoundBody:
    return RoundBody(
        incarnation=past.incarnation,
        round=past.number,
        world_size=past.world_size,
        began=now - past.began,
        completed=now - past.completed,
        ended=None if past.ended is None else now - past.ended,
        late=_comers(past.late),
        why=past.why,
    )


def _comers(late: tuple[tuple[str, float], ...]) -> tuple[ComerBody, ...]:
    return tuple(ComerBody(node=node, after=after) for node, after in late)


def _end(rounds: _Rounds, state: RendezvousState, now: float, event: LawEvent) -> None:
    """Notes that the latest round is over by this, or why it will be."""
    if isinstance(event, NodeDeparted):
        rounds.came.pop(event.node, None)
    if isinstance(event, RunReopened) or not rounds.came:
        rounds.began = None
    latest = rounds.latest[-1] if rounds.latest else None
    if latest is None or latest.ended is not None:
        return
    if isinstance(event, _Ending) and not latest.why and _is_cause(event):
        latest.why = waiting_text(event.count) if isinstance(event, WaitingChanged) else event_text(event)
    if isinstance(event, RoundOpened | RunReopened) or not state.nodes:
        latest.ended = now
        latest.why = latest.why or ("its nodes finished their work" if state.ended else "")


def _is_cause(event: _Ending) -> bool:
    """Whether a complete round ends by this."""
    if isinstance(event, NodeDeparted):
        return event.phase is Phase.MEMBER and event.cause is not Cause.FINISHED
    return not isinstance(event, WaitingChanged) or event.count > 0

"""``/v1/runs/{run_id}/rounds``: the latest rounds of a run, how long each gathered, and what ended it."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from heapq import nlargest
from typing import Final

from aiohttp import web
from msgspec import structs

from arendezvous.coordinator.coordinator import Coordinator
from arendezvous.coordinator.history import PastRound
from arendezvous.law import events
from arendezvous.law.events import LawEvent, NodeDeparted, RunReopened
from arendezvous.law.state import Cause, Phase, RendezvousState
from arendezvous.law.words import event_text, waiting_text
from arendezvous.server.http.requests import Query, run_in_turn
from arendezvous.server.http.responses import json_answer
from arendezvous.server.http.routes import CONTEXT, NO_RUN, RUN_ID, Answer, Resource, Route, json
from arendezvous.wire.http.bodies import ROUNDS, ComerBody, RoundBody, RoundsBody

KEPT: Final = 32  # of a run that are remembered; with their names and texts 50 KiB at most
RUNS: Final = 512  # of which rounds are remembered
LATE: Final = 3  # nodes that are named

_ENDING: Final = (
    NodeDeparted,
    events.MemberDraining,
    events.WaitingChanged,
    events.RunClosed,
    events.RunResized,
)
_KINDS: Final = (events.NodeJoined, events.RoundOpened, events.RoundCompleted, RunReopened, *_ENDING)


@dataclass(slots=True)
class _Rounds:
    """The rounds of one run.

    Fields:
        latest: Those that were complete, with times by the coordinator's clock.
        came: Node to when it came, since the latest was complete; nodes that are still here.
        began: When the first node came to the next one, in a run with members the first of these; None: none.
    """

    latest: deque[PastRound] = field(default_factory=lambda: deque(maxlen=KEPT))
    came: dict[str, float] = field(default_factory=dict)
    began: float | None = None

    def late(self, began: float, nodes: Iterable[str]) -> tuple[tuple[str, float], ...]:
        """Names those of some nodes that came last; work proportional to their number."""
        came = [(self.came.get(node, began), node) for node in nodes]
        return tuple((node, at - began) for at, node in nlargest(LATE, came) if at > began)


class RoundLog:
    """Remembers the rounds of the runs of one coordinator, and those that earlier servers have recorded."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._runs: OrderedDict[str, _Rounds] = OrderedDict()  # the one that had a round last is last
        self._stop = ExitStack()
        self._stop.callback(coordinator.observe(self._on_event, *_KINDS))
        self._stop.callback(coordinator.retention.observe(self._forget))
        if coordinator.records is not None:
            coordinator.records.history.follow(self)

    def close(self) -> None:
        """Remembers nothing more."""
        self._stop.close()

    def of(self, run_id: str) -> list[RoundBody]:
        """Lists the latest rounds of a run, the oldest first, and the one that nodes come to as the last."""
        rounds, run = self._runs.get(run_id), self._coordinator.runs.get(run_id)
        if rounds is None or run is None:
            return []
        told = list(rounds.latest)
        if rounds.began is not None and run.state.closed is None:
            nodes = run.state.wait_list if run.state.complete else run.state.participants
            told.append(_round(run.state, rounds, rounds.began, None, nodes))
        now = self._coordinator.clock()
        return [_body(one.shifted(-now)) for one in told]

    def rounds_of(self, run_id: str) -> Iterable[PastRound]:
        """See `PastRounds.rounds_of`."""
        rounds = self._runs.get(run_id)
        return () if rounds is None else rounds.latest

    def restore(self, run_id: str, rounds: Iterable[PastRound]) -> None:
        """See `PastRounds.restore`."""
        latest, state = self._rounds(run_id).latest, self._coordinator.runs[run_id].state
        latest.extend(rounds)
        if latest and latest[-1].ended is None and latest[-1].generation != _complete(state):
            # or before: that was not recorded any more
            latest[-1] = structs.replace(latest[-1], ended=self._coordinator.clock())

    def _forget(self, run_id: str) -> None:
        self._runs.pop(run_id, None)

    def _on_event(self, run_id: str, now: float, event: LawEvent) -> None:
        rounds, state = self._rounds(run_id), self._coordinator.runs[run_id].state
        if isinstance(event, events.NodeJoined):
            rounds.came[event.node] = now
            if rounds.began is None and (not state.complete or event.node in state.ranks):
                rounds.began = now
        elif isinstance(event, events.RoundCompleted):
            if state.complete and state.round == event.round:  # and not over in the very same moment
                began = now if rounds.began is None else rounds.began
                rounds.latest.append(_round(state, rounds, began, now, state.participants))
            rounds.came.clear()
            rounds.began = None
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


def _complete(state: RendezvousState) -> tuple[int, int] | None:
    return (state.incarnation, state.round) if state.complete else None


def _round(
    state: RendezvousState, rounds: _Rounds, began: float, completed: float | None, nodes: Iterable[str]
) -> PastRound:
    """Describes the round that began then; one that is not complete is the next one of a run with members."""
    number = state.round + (state.complete and completed is None)
    size = 0 if completed is None else state.world_size
    return PastRound(state.incarnation, number, size, began, completed, rounds.late(began, nodes))


def _body(one: PastRound) -> RoundBody:
    """Tells of a round whose times are in seconds from now."""
    ages = {
        name: None if time is None else -time
        for name in ("began", "completed", "ended")
        for time in [getattr(one, name)]
    }
    late = tuple(ComerBody(node=node, after=after) for node, after in one.late)
    return RoundBody(**structs.asdict(one) | ages | {"late": late})


def _end(rounds: _Rounds, state: RendezvousState, now: float, event: LawEvent) -> None:
    """Notes that the latest round is over by this, or why it will be."""
    if isinstance(event, NodeDeparted):
        rounds.came.pop(event.node, None)
    if isinstance(event, RunReopened) or not rounds.came:
        rounds.began = None
    latest = rounds.latest[-1] if rounds.latest else None
    if latest is None or latest.ended is not None:
        return
    why, ended = latest.why, None
    if not why and _is_cause(event):
        why = waiting_text(event.count) if isinstance(event, events.WaitingChanged) else event_text(event)
    if isinstance(event, events.RoundOpened | RunReopened) or not state.nodes:
        why, ended = why or ("its nodes finished their work" if state.ended else ""), now
    if ended is not None or why != latest.why:
        rounds.latest[-1] = structs.replace(latest, why=why, ended=ended)


def _is_cause(event: LawEvent) -> bool:
    """Whether a complete round ends by this."""
    if isinstance(event, NodeDeparted):
        return event.phase is Phase.MEMBER and event.cause is not Cause.FINISHED
    return event.count > 0 if isinstance(event, events.WaitingChanged) else isinstance(event, _ENDING)


_LOG: Final = web.AppKey("round_log", RoundLog)


async def list_rounds(request: web.Request) -> web.StreamResponse:
    """Lists the latest rounds of a run, the oldest first, and the one that nodes come to as the last.

    A server without a record knows those since it was started.
    """
    Query(request)
    run = await run_in_turn(request)
    rounds = request.app[_LOG].of(run.run_id)
    return json_answer(ROUNDS.encode(RoundsBody(rounds=tuple(rounds))))


async def _shared(app: web.Application) -> AsyncIterator[None]:
    app[_LOG] = RoundLog(app[CONTEXT].coordinator)
    yield
    app[_LOG].close()


RESOURCE: Final = Resource((
    Route(
        "GET", "/v1/runs/{run_id}/rounds", "listRounds", list_rounds, "runs",
        {200: Answer("The rounds.", (json(ROUNDS.twin),))}, NO_RUN, (RUN_ID,),
    ),
), _shared)  # fmt: skip

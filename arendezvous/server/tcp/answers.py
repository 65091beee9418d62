"""Answers of native sessions: long ones, encoded once for all who ask, and late ones, at barriers."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple, Self

import msgspec

from arendezvous.coordinator.coordinator import Coordinator
from arendezvous.coordinator.meeting import Outcome
from arendezvous.coordinator.rosters import RosterPages, remaining_members, roster_of
from arendezvous.coordinator.run import Attachment, Run
from arendezvous.errors import RendezvousError
from arendezvous.keyspace.grants import EVERYTHING, Grant
from arendezvous.law.operations import Arrive, KeepAlive, Leave, Progress, Update, Withdraw
from arendezvous.wire.native import messages
from arendezvous.wire.native.versions import status_for_1

LARGE: Final = 4096  # nodes of a run that is told of in a few milliseconds
SHARE: Final = 10  # it is good for so much longer than it took to make: a tenth of the time goes into it
KEPT: Final = 16  # answers
STEP: Final = 64  # runs that are looked at before others get their turn

_encoder: Final = msgspec.msgpack.Encoder()
AT_BARRIERS: Final = (Arrive, Withdraw)
OF_ITS_OWN: Final = (KeepAlive, Leave, Update, Progress)  # what else a node says of itself alone


class KeptAnswer(NamedTuple):
    """Keeps an answer, with the revision of the run that it tells of and until when it is good enough."""

    encoded: bytes
    revision: int
    until: float


class Answers:
    """Answers about runs, as clients are sent them; encoded once for all members of a round who ask for them.

    Fields:
        _status: Encodes the status of a run for clients that speak a version of the protocol.
        _members: Encodes the members of a round.
        _large: Nodes of a run beyond which an answer about it may be a moment old.
        _pages: The pages of rosters.
        _kept: The latest answers, by what was asked.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        status: Callable[[str, int], bytes],
        members: Callable[[str, tuple[int, int]], bytes],
        large: int = LARGE,
    ) -> None:
        self._coordinator = coordinator
        self._status = status
        self._members = members
        self._large = large
        self._loop = asyncio.get_running_loop()
        self._kept: OrderedDict[tuple[Any, ...], KeptAnswer] = OrderedDict()
        self._pages = RosterPages(_encoder.encode)

    @classmethod
    def in_messages(cls, coordinator: Coordinator) -> Self:
        """Makes answers for native sessions."""
        return cls(
            coordinator,
            lambda run_id, version: _encoder.encode(
                coordinator.status(run_id)
                if version >= messages.VERSION
                else status_for_1(coordinator.status(run_id))
            ),
            lambda run_id, generation: _encoder.encode(remaining_members(coordinator, run_id, generation)),
        )

    def status(self, run_id: str, version: int = messages.VERSION) -> bytes:
        """The status of a run, as `Coordinator.status` gives it."""
        run = self._coordinator.runs.get(run_id)
        if run is None or len(run.state.nodes) <= self._large:
            return self._status(run_id, version)
        kept = self._kept.get((run_id, version))
        if kept is not None and self._loop.time() < kept.until:
            return kept.encoded
        return self._keep((run_id, version), run, lambda: self._status(run_id, version))

    def members(self, run_id: str, generation: tuple[int, int]) -> bytes:
        """The members of a round, as `remaining_members` gives them."""
        run = self._coordinator.runs.get(run_id)
        if run is None or not run.state.complete or (run.state.incarnation, run.state.round) != generation:
            return self._members(run_id, generation)  # raises
        kept = self._kept.get((run_id, generation))
        if kept is not None and (kept.revision == run.state.revision or self._loop.time() < kept.until):
            return kept.encoded
        return self._keep((run_id, generation), run, lambda: self._members(run_id, generation))

    def of_roster(
        self, run_id: str, asked: messages.GetRoster | messages.GetGone
    ) -> messages.RosterPage | messages.Gone:
        """Answers who the members of a round were, and who of them has gone."""
        roster = roster_of(self._coordinator, run_id, (asked.incarnation, asked.round))
        if isinstance(asked, messages.GetGone):
            return messages.Gone(asked.id, roster.gone_members(self._coordinator.clock()))
        page: Any = msgspec.Raw(self._pages.page(roster, asked.first))
        return messages.RosterPage(asked.id, len(roster.descs), page)

    def _keep(self, asked: tuple[Any, ...], run: Run, make: Callable[[], bytes]) -> bytes:
        began = self._loop.time()
        encoded = make()
        now = self._loop.time()
        good = SHARE * (now - began) if len(run.state.nodes) > self._large else 0.0
        self._kept[asked] = KeptAnswer(encoded, run.state.revision, now + good)
        self._kept.move_to_end(asked)
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return encoded


def run_summaries(
    coordinator: Coordinator, grant: Grant = EVERYTHING
) -> Iterator[tuple[messages.RunSummary, ...]]:
    """One line about each run that the coordinator keeps and the bearer of `grant` may look at, in steps."""
    if grant.run_id is not None:
        run = coordinator.runs.get(grant.run_id)
        if run is not None:
            yield (run_summary(run, coordinator.clock()),)
        return
    runs = list(coordinator.runs.values())
    for start in range(0, len(runs), STEP):
        now = coordinator.clock()
        yield tuple(run_summary(run, now) for run in runs[start : start + STEP])


def run_summary(run: Run, now: float) -> messages.RunSummary:
    """One line about a run, `now` by the coordinator's clock; takes as long however many nodes it has."""
    state = run.state
    gone = max(0, state.unfinished - len(state.participants)) if state.complete and not state.ended else 0
    gathering = () if state.complete or state.closed is not None else state.participants
    first = [next(iter(nodes)) for nodes in (gathering, state.wait_list) if nodes]
    return messages.RunSummary(
        run.run_id,
        state.incarnation,
        state.round,
        state.complete,
        state.closed is not None,
        len(state.participants),
        len(state.wait_list),
        len(state.redundancy_list),
        state.ended,
        gone + len(state.suspects),
        max((now - state.nodes[node].since for node in first), default=0.0),
    )


def meet(
    coordinator: Coordinator,
    attachment: Attachment,
    operation: Arrive | Withdraw,
    request: int,
    write: Callable[[bytes], None],
) -> messages.ServerMessage | None:
    """Has a member come to a barrier, or wait there no more; returns the answer; None: `write` sends it."""
    if isinstance(operation, Withdraw):
        return messages.Standing(request, coordinator.meetings.withdraw(attachment, operation))

    def answer(outcome: Outcome) -> None:
        if isinstance(outcome, RendezvousError):
            write(messages.encode(messages.failure(request, outcome)))
        else:
            write(messages.encode(messages.Standing(request, outcome)))

    met = coordinator.meetings.arrive(attachment, operation, answer)
    return None if met is None else messages.Standing(request, met)

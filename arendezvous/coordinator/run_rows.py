"""Keeps count of the rows of one run: of those that are recorded, on their way, and still to be."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from arendezvous.coordinator.run import Run
from arendezvous.errors import RendezvousError
from arendezvous.law import image
from arendezvous.law.operations import Decided, Record
from arendezvous.law.state import NodeView, RendezvousState

Outcome: TypeAlias = NodeView | RendezvousError
Answer: TypeAlias = Callable[[Outcome], None]


class Decision(NamedTuple):
    """Asks for something that has to be recorded first, and says whom to answer."""

    operation: Decided
    answer: Answer


class RunRows:
    """The rows of one run: those that are recorded, and those that are to be.

    Attributes:
        generation: Incarnation and round of the recorded roster; None: there is none.
        roster: The name of its rows.
        names: Its members.
        departed: Departures of these that are in no batch yet.
        drains: Their drains, likewise.
        decisions: What has been decided, likewise, in order.
        garbage: Prefixes of rows that count no more, to be removed with the next batch.
        is_stale: Whether the recorded head, or the one under way, is another than it should be.
        vain: How many rounds without progress the recorded head counts.
        sent: What is in the batch under way; None: nothing is.
    """

    __slots__ = (
        "decisions", "departed", "drains", "garbage", "generation", "is_stale", "names", "roster", "sent",
        "vain",
    )  # fmt: skip

    def __init__(self) -> None:
        self.generation: tuple[int, int] | None = None
        self.roster = ""
        self.names: frozenset[str] = frozenset()
        self.departed: dict[str, image.DepartureRow] = {}
        self.drains: dict[str, image.DrainRow] = {}
        self.decisions: list[Decision] = []
        self.garbage: list[bytes] = []
        self.is_stale = False
        self.vain = 0
        self.sent: SentRows | None = None

    def keeps(self, node: str) -> bool:
        """Whether `node` is in the roster that is recorded, or in the one that is being recorded."""
        return node in self.names or (self.sent is not None and node in self.sent.names)


class SentRows(NamedTuple):
    """Holds what a batch that is under way has of a run.

    Attributes:
        run: The run.
        departed: Departures.
        drains: Drains.
        garbage: Prefixes that it removes.
        head: The head; None: it is not changed.
        decisions: What the head has been changed by.
        record: What completes the round of the head; None: no round is to be completed.
        names: The members of that round.
    """

    run: Run
    departed: dict[str, image.DepartureRow]
    drains: dict[str, image.DrainRow]
    garbage: list[bytes]
    head: image.RunHead | None
    decisions: list[Decision]
    record: Record | None
    names: frozenset[str]


class RecordedRun(NamedTuple):
    """Holds a run as it is recorded.

    Attributes:
        run: The run, without a state.
        state: Its state.
        proofs: See `Run.restore`.
        idle: For how many seconds nobody has been in it, by the wall clock: good for forgetting it, no more.
    """

    run: Run
    state: RendezvousState
    proofs: dict[str, bytes]
    idle: float

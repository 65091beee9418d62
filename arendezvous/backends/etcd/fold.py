"""Folding: what becomes of a run when the operations of its log are applied, one after the other.

Pure, like the law that it applies. Whoever reads the same log gets the same state, the same answers and the
same refusals, so a leader that takes over need not know what the one before had told already: it tells again
whatever differs. Time is the run's own: each entry of the log says when it was applied, on a clock that goes
on where the last leader left it, and stands still while there is none.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping

import msgspec

from arendezvous.backends.etcd.image import FoldImage, SpeakerImage, from_bytes, image_of, state_of, to_bytes
from arendezvous.backends.etcd.records import Batch, Head, Letter, Refused, Said, Spoke, node_of
from arendezvous.backends.port import subject
from arendezvous.errors import RendezvousError, RendezvousStateError
from arendezvous.law.machine import apply, next_wake, view
from arendezvous.law.operations import (
    Audience,
    Close,
    Disconnect,
    Drain,
    Join,
    LawEvent,
    Leave,
    NodeDeparted,
    Operation,
    Reopen,
    Resume,
    RoundCompleted,
    RoundOpened,
    RunReopened,
    Tick,
)
from arendezvous.law.state import Cause, NodeDesc, NodeView, Phase, RendezvousState, RunSettings
from arendezvous.law.status import RunStatus, run_status

MAX_REFUSED = 16


class Fold:
    """A run's state, and what its speakers are to be told.

    Attributes:
        now: The run's clock at the last batch.
        state: None until somebody joined or closed the run.
        speakers: Those whose intents are there.
        owners: Node to the speaker that speaks for it.
        touched: Speakers whose letters may have changed; emptied by whoever writes them.
        head_touched: Whether the head has changed.
        round_over: Whether the keys that members kept in the store are nobody's any more.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.state: RendezvousState | None = None
        self.speakers: dict[str, SpeakerImage] = {}
        self.owners: dict[str, str] = {}
        self.touched: dict[str, None] = {}
        self.head_touched = False
        self.round_over = False
        self._version = 0
        self._waiting = 0

    def apply(self, batch: Batch) -> list[LawEvent]:
        """Applies one entry of the log; returns what came of it."""
        self.now = max(self.now, batch.now)
        events: list[LawEvent] = []
        due = self.due()
        if due is not None and due <= self.now:
            events += self._obey(Tick())
        changed = self.head_touched
        self.head_touched = False
        for each in batch.inputs:
            if isinstance(each, Spoke):
                for said in each.said:
                    events += self._hear(each.speaker, said)
            else:
                events += self._miss(each.speaker)
        self._note(events)
        self._version += self.head_touched
        self.head_touched |= changed
        return events

    def due(self) -> float | None:
        """When time alone has something to do, on the run's clock; None while nothing is pending."""
        wake = None if self.state is None else next_wake(self.state)
        return None if wake is None or math.isinf(wake) else wake

    def head(self) -> Head:
        """What everybody is to know."""
        state = self.state
        if state is None:
            return Head(self._version, now=self.now)
        return Head(
            self._version, state.incarnation, state.round, state.complete, state.world_size, state.digest,
            state.rank0, self._waiting, tuple(state.notices), state.closed, self.now,
        )  # fmt: skip

    def letter(self, speaker: str) -> Letter | None:
        """What a speaker is to know; None if it is gone."""
        known = self.speakers.get(speaker)
        if known is None:
            return None
        seen = self._view(speaker, known.subject)
        if seen.phase is Phase.MEMBER:
            seen = msgspec.structs.replace(seen, rank0=(), waiting=0, notices=(), closed=None)
        return Letter(known.answered, seen, self._version, known.refused)

    def status(self, run_id: str, now: float, ages: Mapping[str, float]) -> RunStatus:
        """Takes stock.

        Args:
            run_id: The run.
            now: When that is, on the run's clock.
            ages: How long ago speakers were heard of, in seconds; of those left out, nothing is known against
                them. What a node has said since is a sign of life, too.
        """
        if self.state is None:
            return RunStatus(run_id)
        beats = self.state.last_heartbeats
        said = {
            node: beat for node, beat in beats.items() if beat < math.inf
        }  # the others live by their leases
        shown = {
            node: max(now - ages.get(speaker, 0.0), said.get(node, -math.inf))
            for node, speaker in self.owners.items()
        }
        self.state.last_heartbeats = OrderedDict(beats | shown)
        try:
            return run_status(run_id, self.state, now)
        finally:
            self.state.last_heartbeats = beats

    def members(self, incarnation: int, round_: int) -> tuple[NodeDesc, ...] | None:
        """The remaining members of a complete round, in rank order; None if it is not the current one."""
        state = self.state
        if state is None or not state.complete or (state.incarnation, state.round) != (incarnation, round_):
            return None
        ranked = sorted(state.participants, key=state.participants.__getitem__)
        return tuple(state.nodes[node].desc for node in ranked)

    def to_bytes(self) -> bytes:
        """The whole of it, for `from_bytes`."""
        state = None if self.state is None else image_of(self.state)
        return to_bytes(FoldImage(self.now, self._version, self._waiting, self.speakers, self.owners, state))

    @classmethod
    def from_bytes(cls, data: bytes) -> Fold:
        """What `to_bytes` returned, as it was; nothing is touched.

        Raises:
            RendezvousStateError: The bytes are something else.
        """
        image, fold = from_bytes(data), cls()
        fold.now, fold._version, fold._waiting = image.now, image.version, image.waiting
        fold.speakers, fold.owners = image.speakers, image.owners
        fold.state = None if image.state is None else state_of(image.state)
        return fold

    # One input after the other

    def _hear(self, speaker: str, said: Said) -> list[LawEvent]:
        known = self.speakers.setdefault(speaker, SpeakerImage())
        if said.number <= known.answered:
            return []
        known.answered, known.subject = said.number, node_of(speaker) or subject(said.operation)
        self.touched[speaker] = None
        try:
            return self._carry_out(speaker, said.operation)
        except RendezvousError as error:
            refused = Refused(said.number, type(error).__name__, error.message, error.data)
            known.refused = (*known.refused, refused)[-MAX_REFUSED:]
            return []

    def _carry_out(self, speaker: str, operation: Operation) -> list[LawEvent]:
        node = subject(operation)
        if isinstance(operation, Tick | Disconnect):
            raise RendezvousStateError(f"{type(operation).__name__} is for the leader alone to decide")
        if self.state is None and not self._begin(operation):
            return []
        steers = isinstance(operation, Close | Reopen | Drain)
        if not steers and node != node_of(speaker):
            raise RendezvousStateError(f"{node!r} has to speak for itself, not by {speaker!r}", node=node)
        if not steers and self.owners.get(node, speaker) != speaker:
            if not isinstance(operation, Join | Resume):
                return []  # it is out of the run already
            raise RendezvousStateError(
                f"the node name {node!r} is in use in this run; give every node a name of its own", node=node
            )
        events = self._obey(operation)
        state = self.state
        if state is not None and isinstance(operation, Join | Resume) and node in state.nodes:
            self.owners[node] = speaker
            state.last_heartbeats[node] = math.inf  # its lease is its heartbeat
        return events

    def _begin(self, operation: Operation) -> bool:
        """Makes the state for the first operation of a run; returns whether there is one to apply that to."""
        if isinstance(operation, Join | Resume):
            self.state = RendezvousState(operation.settings)
        elif isinstance(operation, Close):
            self.state = RendezvousState(RunSettings(1, 1))
        elif isinstance(operation, Reopen | Drain):
            raise RendezvousStateError("there is no such run in etcd: nobody has joined it, or it is over")
        return self.state is not None

    def _miss(self, speaker: str) -> list[LawEvent]:
        """The speaker's intent is gone; so is its node, if it is in the run still."""
        if self.speakers.pop(speaker, None) is None:
            return []
        self.touched[speaker] = None
        node = node_of(speaker)
        if self.state is None or self.owners.get(node) != speaker:
            return []
        expiry = self.state.settings.expiry
        reason = f"its lease in etcd ended: no heartbeat for {expiry:g} s, or its process is gone"
        return self._obey(Leave(node, reason, Cause.NO_HEARTBEAT))

    def _obey(self, operation: Operation) -> list[LawEvent]:
        assert self.state is not None  # noqa: S101 - the callers have looked
        events = apply(self.state, operation, self.now)
        for event in events:
            node = getattr(event, "node", None)
            if node in self.owners:
                self.touched[self.owners[node]] = None
            if isinstance(event, NodeDeparted):
                self.owners.pop(event.node, None)
        return events

    def _note(self, events: list[LawEvent]) -> None:
        """Finds out who has to be told of what has happened, besides those it happened to."""
        state = self.state
        if state is None:
            return
        for event in events:
            if event.audience is not Audience.NOBODY or isinstance(event, RoundOpened | RunReopened):
                self.head_touched = True
            if isinstance(event, RoundCompleted):
                self.touched |= {self.owners[n]: None for n in state.participants if n in self.owners}
            deserted = isinstance(event, NodeDeparted) and not state.nodes
            self.round_over |= deserted or isinstance(event, RoundOpened)
        if self.head_touched:
            self._waiting = len(state.wait_list)

    def _view(self, speaker: str, node: str) -> NodeView:
        """The view of a node; whoever speaks in the name of somebody else's node sees itself as gone."""
        state = self.state
        if state is None:
            return NodeView(node, 0, 0, -1, Phase.GONE, now=self.now)
        if node_of(speaker) and self.owners.get(node, speaker) != speaker:
            return NodeView(node, state.revision, state.incarnation, state.round, Phase.GONE, now=self.now)
        return view(state, node, self.now)

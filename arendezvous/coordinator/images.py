"""Has a few members of each round keep what is agreed of it, for a coordinator without a record.

The members with the lowest ranks are given a `RunImage` with a view that they are sent anyway, when the round
completes, or another of them has gone; and once something was decided, a part of one that says what is new.
What happens in between, departures and drains, is in the views of all members, so it is not sent once more,
unless so much happens that views cannot hold it all.

A coordinator that has forgotten the run is told by them, in parts that are merged by `law.recall`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from arendezvous.coordinator.budget import FEW_ADDRESSES, Budget
from arendezvous.coordinator.run import UNPROVEN, Attachment, MemberRows, Run, matches, note_member
from arendezvous.errors import RendezvousStateError
from arendezvous.law import image
from arendezvous.law.events import (
    LawEvent,
    MemberDraining,
    NodeDeparted,
    NodePardoned,
    NodeQuarantined,
    RoundCompleted,
    RunHeld,
    RunReleased,
    RunResized,
)
from arendezvous.law.machine import view
from arendezvous.law.operations import Resume
from arendezvous.law.recall import check_part, recall, resume_of
from arendezvous.law.state import MAX_NOTICES, NodeDesc, Phase, RendezvousState

if TYPE_CHECKING:
    from arendezvous.coordinator.coordinator import Coordinator

KEEPERS: Final = 3  # members that keep an image: so many have to die at once with the server
_DECISIONS: Final = (RunResized, RunHeld, RunReleased, NodeQuarantined, NodePardoned)
_BEHIND: Final = MAX_NOTICES // 2  # notices after which an image is sent anew, before views lose the first


class Given(NamedTuple):
    """Notes how far a keeper has been told."""

    notices: int = -1  # the count of notices then; -1: nothing was given
    noted: int = 0  # how many departures and drains were noted then


@dataclass(eq=False, slots=True)
class Agreed(MemberRows):
    """Holds what is agreed of the complete round of one run, and who keeps it.

    Attributes:
        generation: Incarnation and round.
        size: How many members it had.
        roster: Its members with their ranks, as far as they are known: in a round that was restored, not all
            may be.
        departed: The members that have departed.
        drains: Those that drain.
        noted: Whose departures and drains were noted, in that order.
        rows: The roster, encoded once for all images of it; empty: not yet.
        keepers: Who keeps an image, the lowest ranks first.
        order: Who has not been looked at for a keeper, the lowest ranks last; None: nobody has been.
        seen: The count of notices when they were chosen; -1: nobody has been.
        decided: How often operators, or the law, have decided something since the round completed.
    """

    generation: tuple[int, int]
    size: int
    roster: dict[str, tuple[int, NodeDesc]] = field(default_factory=dict)
    noted: list[str] = field(default_factory=list)
    rows: bytes = b""
    keepers: dict[str, Given] = field(default_factory=dict)
    order: list[str] | None = None
    seen: int = -1
    decided: int = 0

    @property
    def is_known(self) -> bool:
        """Whether all members are known."""
        return len(self.roster) == self.size


class Entrusting(NamedTuple):
    """Carries an image to a keeper."""

    data: bytes  # encoded; empty: nothing is to be sent
    adds: bool  # whether it is a part that goes before what the keeper has, and not instead of it


NOTHING: Final = Entrusting(b"", False)


class RunImages:
    """The images of the runs of one coordinator, which keeps no record.

    Its fields:
        _agreed: What is agreed of the complete round of each run, by its id.
        _made: What was made last, and of what: three members get the same.
    """

    def __init__(self, coordinator: Coordinator, budget: Budget) -> None:
        self._coordinator = coordinator
        self._budget = budget
        self._agreed: dict[str, Agreed] = {}
        self._made: tuple[object, bytes] = (None, b"")
        coordinator.observe(self._note, RoundCompleted, NodeDeparted, MemberDraining, *_DECISIONS)
        coordinator.retention.observe(self._forget)

    def choose(self, run: Run) -> None:
        """Chooses who is to keep what is agreed of a run; to be called whenever many were told of it.

        Whoever has gone is followed by the next rank. As ranks are looked at once, all choices of a round
        take as long as it has members; and as many who go at once are told of in one go, they are followed
        once.
        """
        state, agreed = run.state, self._agreed.get(run.run_id)
        if agreed is None or not state.complete or agreed.seen == state.notice_count or not agreed.is_known:
            return
        agreed.seen = state.notice_count
        if agreed.order is None:
            agreed.order = sorted(agreed.roster, key=agreed.roster.__getitem__, reverse=True)
        keepers = {node: given for node, given in agreed.keepers.items() if node in state.participants}
        while len(keepers) < KEEPERS and agreed.order:
            node = agreed.order.pop()
            if node in state.participants:
                keepers[node] = Given()
        behind = max(0, state.notice_count - _BEHIND)
        run.owed = {node for node, given in keepers.items() if given.notices < behind or node in run.owed}
        agreed.keepers = keepers

    def choose_first(self, run: Run) -> None:
        """Chooses who is to keep a round that has just completed, before its members are told of it."""
        agreed = self._agreed.get(run.run_id)
        if agreed is not None and agreed.seen < 0:
            self.choose(run)

    def attached(self, run: Run, node: str) -> None:
        """Has an image sent to a keeper that may have missed it, as its connection is another."""
        agreed = self._agreed.get(run.run_id)
        if agreed is not None and node in agreed.keepers:
            agreed.keepers[node] = Given()
            run.owed.add(node)

    def take(self, run: Run, node: str) -> Entrusting:
        """Makes what a keeper is to be sent, which is owed no more."""
        run.owed.discard(node)
        state, agreed = run.state, self._agreed.get(run.run_id)
        if agreed is None or node not in agreed.keepers or agreed.generation != _generation(state):
            return NOTHING
        given = agreed.keepers[node]
        agreed.keepers[node] = Given(state.notice_count, len(agreed.noted))
        adds = given.notices >= 0
        since = given.noted if adds else 0
        of = (run.run_id, agreed.generation, state.notice_count, agreed.decided, adds, since)
        if self._made[0] != of:
            self._made = (of, self._news(run, agreed, since) if adds else self._image(run, agreed))
        return Entrusting(self._made[1], adds)

    def merge(self, attachment: Attachment, part: image.RunImage) -> None:
        """Has the law merge what a node tells of its run, see `law.recall`, if it and the limits allow it."""
        coordinator, run = self._coordinator, attachment.run
        if coordinator.runs.get(run.run_id) is not run or attachment.phase in (Phase.GONE, Phase.CLAIMING):
            raise RendezvousStateError(f"{attachment.node} is not in the run, so it cannot tell of it")
        resume = resume_of(part)
        if resume is None:
            return
        check_part(part)
        self._check(run, resume, part)
        events, absent, changed = recall(
            run.state, part, self._coordinator.clocks(), lambda member: self._is_known(run, member)
        )
        if _generation(run.state) == part.head.generation and run.state.complete:
            self._learn(run, part)
        for member in part.members:
            if member.desc.name in absent and member.proof:
                run.proofs[member.desc.name], run.secrets[member.desc.name] = member.proof, UNPROVEN
            if member.desc.name in absent and len(member.desc.addresses) > FEW_ADDRESSES:
                self._budget.add(run, member.desc.name)
        coordinator.recalled(run, events, changed=changed)

    def _check(self, run: Run, resume: Resume, part: image.RunImage) -> None:
        """Raises `RendezvousError` if a limit does not allow it to take that in."""
        self._budget.check_settings(resume.settings)
        if not run.state.complete:
            self._budget.check_restoring(run, resume)
        for drain in part.drains.values():
            self._budget.check_drain(drain)

    def _is_known(self, run: Run, member: image.ImageMember) -> bool:
        """Whether the process that has come under the name of a member is that."""
        secret = run.secrets.get(member.desc.name)
        return not member.proof or secret is None or matches(member.proof, secret)

    def _learn(self, run: Run, part: image.RunImage) -> None:
        """Takes in the roster of a round that was restored, and who has departed."""
        state, agreed = run.state, self._agreed.get(run.run_id)
        if agreed is None or agreed.generation != _generation(state):
            agreed = self._agreed[run.run_id] = Agreed(_generation(state), state.world_size)
        for member in part.members:
            agreed.roster.setdefault(member.desc.name, (member.rank, member.desc))
        agreed.noted += [node for node in (*part.departed, *part.drains) if node not in agreed.departed]
        agreed.departed = {**part.departed, **agreed.departed}
        agreed.drains = {**part.drains, **agreed.drains}

    def _forget(self, run_id: str) -> None:
        self._agreed.pop(run_id, None)

    def _note(self, run_id: str, _: float, event: LawEvent) -> None:
        """Notes what becomes of a round and its members; called for every event of these kinds."""
        run = self._coordinator.runs[run_id]
        state, agreed = run.state, self._agreed.get(run_id)
        if isinstance(event, RoundCompleted):
            agreed = self._agreed[run_id] = Agreed(_generation(state), state.world_size)
            nodes = state.nodes  # who has gone in the same breath stays unknown
            agreed.roster = {node: (rank, nodes[node].desc) for node, rank in state.ranks.items()}
            run.owed = set()
            return
        if agreed is None or agreed.generation != _generation(state):
            return
        if isinstance(event, NodeDeparted) and event.phase is not Phase.MEMBER:
            return
        if isinstance(event, _DECISIONS):
            agreed.decided += 1
            run.owed |= agreed.keepers.keys()
        if isinstance(event, MemberDraining | NodeDeparted):
            note_member(agreed, state, event, self._coordinator.clocks())
            agreed.noted.append(event.node)
        if not (isinstance(event, NodeDeparted) and event.cause.is_loss):
            self._tell_keepers(run, agreed)

    def _tell_keepers(self, run: Run, agreed: Agreed) -> None:
        """Tells keepers at once of what a node has said, so that it has no answer that could be forgotten."""
        for node in agreed.keepers:
            attachment = run.attachments.get(node)
            if attachment is not None and node in run.state.participants:
                attachment.listener(view(run.state, node, self._coordinator.clock()))

    def _image(self, run: Run, agreed: Agreed) -> bytes:
        """Makes the whole image of a run."""
        if not agreed.rows:
            agreed.rows = _rows(run, agreed.roster.values())
        clocks = self._coordinator.clocks()
        drains = {node: row.spent_by(clocks) for node, row in agreed.drains.items()}
        return image.assemble(image.head_of(run.state, clocks), agreed.rows, agreed.departed, drains)

    def _news(self, run: Run, agreed: Agreed, since: int) -> bytes:
        """Makes a part: what is decided, and whose departures and drains were noted after the first `since`.

        Its first member is one that has not departed, so that a part of which nothing but the head is new can
        be told, too.
        """
        clocks = self._coordinator.clocks()
        names = dict.fromkeys((next(iter(agreed.keepers)), *agreed.noted[since:]))
        departed = {node: agreed.departed[node] for node in names if node in agreed.departed}
        drains = {node: agreed.drains[node].spent_by(clocks) for node in names if node in agreed.drains}
        rows = _rows(run, map(agreed.roster.__getitem__, names))
        return image.assemble(image.head_of(run.state, clocks), rows, departed, drains)


def _rows(run: Run, members: Iterable[tuple[int, NodeDesc]]) -> bytes:
    return image.encode([image.ImageMember(rank, desc, run.proof_of(desc.name)) for rank, desc in members])


def _generation(state: RendezvousState) -> tuple[int, int]:
    return (state.incarnation, state.round)

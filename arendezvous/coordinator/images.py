"""Has a few members of each round keep what is agreed of it, for a coordinator without a record.

The members with the lowest ranks are given a `RunImage` with a view that they are sent anyway: when the round
completes, and again once one of them has gone, or something was decided. What happens in between, departures
and drains, is in the views of all members, so it is not sent once more, unless so much happens that views
cannot hold it all.

A coordinator that has forgotten the run is told by them, in parts that are merged by `law.recall`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from heapq import nsmallest
from operator import itemgetter
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from arendezvous.coordinator.budget import FEW_ADDRESSES, Budget
from arendezvous.coordinator.run import UNPROVEN, Attachment, Run, matches
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
from arendezvous.net.addresses import boot_id

if TYPE_CHECKING:
    from arendezvous.coordinator.coordinator import Coordinator

KEEPERS: Final = 3  # members that keep an image: so many have to die at once with the server
_DECISIONS: Final = (RunResized, RunHeld, RunReleased, NodeQuarantined, NodePardoned)
_BEHIND: Final = MAX_NOTICES // 2  # notices after which an image is sent anew, before views lose the first


class Recalled(Protocol):
    """Publishes what has come of it that a round was recalled."""

    def __call__(self, run: Run, events: Iterable[LawEvent], *, changed: bool) -> None:
        """Publishes `events`, and tells all members if what they see has `changed`."""


class Agreed:
    """Holds what is agreed of the complete round of one run, and who keeps it.

    Attributes:
        generation: Incarnation and round.
        roster: Its members, by rank; None: not known yet, as the round was restored.
        unknown: How many of the roster are not known.
        departed: The members that have departed.
        drains: Those that drain.
        keepers: Who keeps an image, to the count of notices in it.
        seen: The count of notices when they were chosen.
        decided: How often operators, or the law, have decided something since the round completed.
    """

    __slots__ = (
        "decided", "departed", "drains", "generation", "keepers", "roster", "seen", "unknown",
    )  # fmt: skip

    def __init__(self, generation: tuple[int, int], size: int) -> None:
        self.generation = generation
        self.roster: list[NodeDesc | None] = [None] * size
        self.unknown = size
        self.departed: dict[str, image.DepartureRow] = {}
        self.drains: dict[str, image.DrainRow] = {}
        self.keepers: dict[str, int] = {}
        self.seen = -1
        self.decided = 0


class RunImages:
    """The images of the runs of one coordinator.

    Args:
        coordinator: Whose runs they are; it keeps no record.
        budget: Its.
        recalled: Publishes what comes of a recall.

    Its fields:
        _agreed: What is agreed of the complete round of each run, by its id.
        _made: The image that was made last, and for which run at which counts of notices and decisions: three
            members get the same.
        _boot: Names this start of the machine.
    """

    def __init__(self, coordinator: Coordinator, budget: Budget, recalled: Recalled) -> None:
        self._coordinator = coordinator
        self._budget = budget
        self._recalled = recalled
        self._agreed: dict[str, Agreed] = {}
        self._made: tuple[str, tuple[int, int], int, int, bytes] = ("", (0, 0), 0, 0, b"")
        self._boot = boot_id()
        coordinator.observe(self._note, RoundCompleted, NodeDeparted, MemberDraining, *_DECISIONS)
        coordinator.observe_forgotten(self._forget)

    def choose(self, run: Run) -> None:
        """Chooses who is to keep what is agreed of a run; to be called whenever members are told of it."""
        state, agreed = run.state, self._agreed.get(run.run_id)
        if agreed is None or not state.complete or agreed.seen == state.notice_count or agreed.unknown:
            return
        agreed.seen = state.notice_count
        lowest = nsmallest(KEEPERS, state.participants.items(), key=itemgetter(1))
        keepers = {node: agreed.keepers.get(node, -1) for node, _ in lowest}
        behind = state.notice_count - _BEHIND
        run.owed = {node for node, count in keepers.items() if count < max(0, behind) or node in run.owed}
        agreed.keepers = keepers

    def attached(self, run: Run, node: str) -> None:
        """Has an image sent to a keeper that may have missed it, as its connection is another."""
        agreed = self._agreed.get(run.run_id)
        if agreed is not None and node in agreed.keepers:
            run.owed.add(node)

    def take(self, run: Run, node: str) -> bytes:
        """Makes the image that a keeper is to be sent, which is owed no more; empty if there is none."""
        run.owed.discard(node)
        state, agreed = run.state, self._agreed.get(run.run_id)
        if agreed is None or node not in agreed.keepers or agreed.generation != _generation(state):
            return b""
        agreed.keepers[node] = state.notice_count
        made = (run.run_id, agreed.generation, state.notice_count, agreed.decided)
        if self._made[:4] != made:
            self._made = (*made, image.encode(self._image(run, agreed)))
        return self._made[4]

    def merge(self, attachment: Attachment, part: image.RunImage) -> None:
        """Has the law merge what a node in the run tells of it, see `law.recall`.

        Raises:
            RendezvousError: The node is not in the run; or a limit, or the law, does not allow it.
        """
        coordinator, run = self._coordinator, attachment.run
        if coordinator.runs.get(run.run_id) is not run or attachment.phase in (Phase.GONE, Phase.CLAIMING):
            raise RendezvousStateError(f"{attachment.node} is not in the run, so it cannot tell of it")
        resume = resume_of(part)
        if resume is None:
            return
        check_part(part)
        self._check(run, resume, part)
        events, absent, changed = recall(
            run.state, part, self._clocks(), lambda member: self._is_known(run, member)
        )
        if _generation(run.state) == part.head.generation and run.state.complete:
            self._learn(run, part)
        for member in part.members:
            if member.desc.name in absent and member.proof:
                run.proofs[member.desc.name], run.secrets[member.desc.name] = member.proof, UNPROVEN
            if member.desc.name in absent and len(member.desc.addresses) > FEW_ADDRESSES:
                self._budget.add(run, member.desc.name)
        self._recalled(run, events, changed=changed)

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
            if agreed.roster[member.rank] is None:
                agreed.roster[member.rank] = member.desc
                agreed.unknown -= 1
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
            for node, rank in state.ranks.items():  # who has gone in the same breath stays unknown
                agreed.roster[rank] = state.nodes[node].desc
            agreed.unknown = state.world_size - len(state.ranks)
            run.owed = set()
        elif agreed is None or agreed.generation != _generation(state):
            return
        elif isinstance(event, _DECISIONS):
            agreed.decided += 1
            run.owed |= agreed.keepers.keys()
            self._tell_keepers(run, agreed)
        elif isinstance(event, MemberDraining):
            clocks, number = self._clocks(), _number(state, event.node)
            row = image.DrainRow(event.seconds, event.reason, number, clocks.boot, clocks.uptime)
            agreed.drains[event.node] = row
            self._tell_keepers(run, agreed)
        elif isinstance(event, NodeDeparted) and event.phase is Phase.MEMBER:
            number = _number(state, event.node)
            gone = image.DepartureRow(event.cause, event.reason, state.round, number, time.time())
            agreed.departed[event.node] = gone
            if not event.cause.is_loss:
                self._tell_keepers(run, agreed)

    def _tell_keepers(self, run: Run, agreed: Agreed) -> None:
        """Tells keepers at once of what a node has said, so that it has no answer that could be forgotten."""
        for node in agreed.keepers:
            attachment = run.attachments.get(node)
            if attachment is not None and node in run.state.participants:
                attachment.listener(view(run.state, node, self._coordinator.clock()))

    def _image(self, run: Run, agreed: Agreed) -> image.RunImage:
        clocks = self._clocks()
        members = [
            image.ImageMember(rank, desc, b"" if desc.name in agreed.departed else run.proof_of(desc.name))
            for rank, desc in enumerate(agreed.roster)
            if desc is not None
        ]
        drains = {
            node: msgspec.structs.replace(row, spent=row.seconds - row.left(clocks))
            for node, row in agreed.drains.items()
        }
        return image.RunImage(image.head_of(run.state, clocks), tuple(members), agreed.departed, drains)

    def _clocks(self) -> image.Clocks:
        return image.Clocks(self._coordinator.clock(), time.time(), self._boot, time.monotonic())


def _generation(state: RendezvousState) -> tuple[int, int]:
    return (state.incarnation, state.round)


def _number(state: RendezvousState, node: str) -> int:
    """The number of the latest notice about a node; 0 if there is none."""
    return next((one.number for one in reversed(state.notices) if one.node == node), 0)

"""A run as data, and back: what an owner that keeps a record writes down, and starts from again.

An owner without a record has some members keep the same rows, as a `RunImage`; see `recall`.

What is agreed of a run is kept in rows, so that nothing that happens to one node costs a row for each other
node: a *head*, which is small and written anew at each decision; the *roster* of the complete round, written
once, or within the head where it is short; and a row for each member that *departed* or *drains* since.
`restore` makes a state of them in which the members are there by name, expected back.

No time in a row is compared with another machine's clock. How much of a drain is over is known by the uptime
of the machine that noted it; elsewhere, or after that was started anew, a drain begins again. The wall clock
only tells people how long ago a run was closed, or a node went.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from arendezvous.errors import RendezvousStateError
from arendezvous.law.decisions import Decisions, Ruling, Sizes
from arendezvous.law.operations import Close, Decided, Record, Reopen
from arendezvous.law.rosters import RoundRoster, addresses_of, member_digest
from arendezvous.law.rounds import RESUME_GRACE, Rounds, ranked
from arendezvous.law.state import Cause, Closure, Departure, NodeDesc, Notice, RendezvousState, RunSettings
from arendezvous.law.steering import decide, enforce

VERSION: Final = 2
PROOF: Final = 8  # bytes that are recorded of each proof, see `Roster`
PLAIN: Final = 1  # of the rows of runs without rules or decisions, which earlier releases read as they are

encode: Final = msgspec.msgpack.Encoder().encode  # an image, a part of one, or members for `assemble`


class Clocks(msgspec.Struct, frozen=True):
    """One moment by all clocks of the owner."""

    now: float  # seconds on the clock of the state's owner
    wall: float  # seconds since 1970 by the wall clock; only ever shown
    boot: str  # this start of this machine; empty if that is not known
    uptime: float  # seconds on a clock that counts from then

    def ago(self, wall: float) -> float:
        """Tells when something was on the owner's clock that was at `wall` by the wall clock."""
        return self.now - max(0.0, self.wall - wall)


class TimedRow(msgspec.Struct, frozen=True, array_like=True):
    """Says that the run is held, or somebody quarantined."""

    by: str  # who decided so
    reason: str
    seconds: float | None  # for how long, counted from the decision; None: until it is taken back
    boot: str  # the start of the machine on which it was noted
    uptime: float  # when it was decided, in seconds from that start
    wall: float  # when, by the wall clock

    @classmethod
    def of(cls, decision: Ruling, clocks: Clocks) -> TimedRow:
        """Makes the row of a decision; milliseconds do."""
        age, seconds = clocks.now - decision.at, decision.until - decision.at
        return cls(
            decision.by, decision.reason, None if seconds == math.inf else round(seconds, 3),
            clocks.boot, round(clocks.uptime - age, 3), round(clocks.wall - age, 3),
        )  # fmt: skip

    def span(self, clocks: Clocks) -> tuple[float, float]:
        """Tells when it was decided, and until when it holds, all of its time if that cannot be known."""
        seconds = math.inf if self.seconds is None else self.seconds
        if not self.boot or self.boot != clocks.boot:
            return clocks.ago(self.wall), clocks.now + seconds
        at = clocks.now - max(0.0, clocks.uptime - self.uptime)
        return at, at + seconds


class DecisionsRow(msgspec.Struct, frozen=True, array_like=True):
    """Holds what has been decided besides closing; see `Decisions`."""

    sizes: tuple[Sizes, ...]
    held: TimedRow | None
    quarantines: tuple[tuple[bool, str, TimedRow], ...]  # whether it is a label, the node or label, the rest
    strikes: tuple[tuple[str, int], ...] = ()  # how often nodes have failed, the latest last
    vain: int = 0  # how many rounds have brought no progress
    step: int = -1  # the highest step; -1: none

    @classmethod
    def of(cls, decisions: Decisions, clocks: Clocks) -> DecisionsRow | None:
        """Makes the row; None if nothing has been decided, or counted."""
        if not decisions.are_any:
            return None
        return cls(
            tuple(decisions.sizes.values()),
            None if decisions.held is None else TimedRow.of(decisions.held, clocks),
            tuple((*key, TimedRow.of(one, clocks)) for key, one in decisions.quarantines.items()),
            tuple(decisions.strikes.items()), decisions.vain, decisions.step,
        )  # fmt: skip

    def restored(self, settings: RunSettings, clocks: Clocks) -> Decisions:
        """Makes the decisions of it."""
        held = self.held
        decisions = Decisions(
            sizes={resized.role: resized for resized in self.sizes},
            held=None if held is None else Ruling(held.by, held.reason, *held.span(clocks)),
            quarantines={
                (is_label, target): Ruling(row.by, row.reason, *row.span(clocks))
                for is_label, target, row in self.quarantines
            },
            strikes=dict(self.strikes), vain=self.vain, step=self.step, is_known=True,
        )  # fmt: skip
        decisions.sum_up(settings)
        return decisions


class Roster(msgspec.Struct, frozen=True, array_like=True):
    """Holds the members of a complete round, or some of them.

    A proof is a digest of the secret that tells a process from others of its name. Here they are `PROOF`
    bytes of each, in one text: they cannot be compressed, and are most of what everybody waits for.
    """

    members: tuple[NodeDesc, ...]  # by rank
    # by rank; those of release 0.2 are a tuple; empty: in another row
    proofs: bytes | tuple[bytes, ...] = b""

    def known(self, count: int) -> dict[int, bytes]:
        """Returns the proofs that it has, by their places; raises `ValueError` if they are not `count`."""
        proofs = self.proofs if isinstance(self.proofs, tuple) else split_proofs(self.proofs)
        if len(proofs) != count:
            raise ValueError(f"{len(proofs)} proofs of {count} members")
        return {place: one for place, one in enumerate(proofs) if one.strip(b"\0")}


class RunHead(msgspec.Struct, frozen=True, array_like=True):
    """Holds what is agreed of a run, but for its members; see `RendezvousState`."""

    version: int  # of the rows of this run
    settings: RunSettings  # what the nodes agreed on
    incarnation: int  # counts how often the run was opened
    round: int  # the round that is complete, or that gathers
    complete: bool = False  # whether it is complete; then there is a roster
    world_size: int = 0  # of the complete round
    digest: str = ""  # of its member list
    round_floor: int = 0  # the lowest number that a round may still get
    incarnation_floor: int = 0  # the latest incarnation that some node knows
    closed: Closure | None = None  # who closed the run, `at` by the wall clock; None while it is open
    roster: str = ""  # under which name the owner keeps the rows of the complete round
    decisions: DecisionsRow | None = None  # what has been decided besides; None: nothing
    ended: bool = False  # whether all members of the latest round have finished, and the next one gathers
    members: Roster | None = None  # of the complete round; None: it is incomplete, or they are too many

    @property
    def generation(self) -> tuple[int, int]:
        """Incarnation and round."""
        return (self.incarnation, self.round)


class DepartureRow(msgspec.Struct, frozen=True, array_like=True):
    """Says why a member of the complete round departed."""

    cause: Cause  # why, for programs
    reason: str  # why, in words
    round: int  # in which round it went
    notice: int  # the number of the notice by which the others heard of it; 0: they did not
    wall: float  # when, by the wall clock


class DrainRow(msgspec.Struct, frozen=True, array_like=True):
    """Says that a member drains."""

    seconds: float  # how long it may take, counted from the announcement
    reason: str
    notice: int  # the number of the notice by which the others heard of it
    boot: str  # the start of the machine on which it was noted
    uptime: float  # when it was announced, in seconds from that start
    spent: float = 0.0  # how many seconds were over when the row was made; for where `boot` says nothing

    def left(self, clocks: Clocks) -> float:
        """Tells how many seconds are left of it, as far as that can be known."""
        known = self.boot and self.boot == clocks.boot
        spent = clocks.uptime - self.uptime if known else self.spent
        return min(self.seconds, max(0.0, self.seconds - spent))

    def spent_by(self, clocks: Clocks) -> DrainRow:
        """Makes the row as it is to be told now."""
        return replace(self, spent=self.seconds - self.left(clocks))


class ImageMember(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A member of the complete round, as it was completed."""

    rank: int
    desc: NodeDesc
    proof: bytes = b""  # see `Roster`; empty if it is not known, or the member has departed


class RunImage(msgspec.Struct, frozen=True, array_like=True):
    """Holds what is agreed of a run, for a few members to keep; or a part of that.

    A part has all that concerns the members that are in it. Parts and images of one round may be merged in
    any order, any number of times.
    """

    head: RunHead  # the head; its version is that of all
    members: tuple[ImageMember, ...] = ()  # members of the complete round, by rank
    departed: dict[str, DepartureRow] = {}  # those of them that have departed
    drains: dict[str, DrainRow] = {}  # those of them that drain


_decode: Final = msgspec.msgpack.Decoder(RunImage).decode


def assemble(
    head: RunHead, members: bytes, departed: dict[str, DepartureRow], drains: dict[str, DrainRow]
) -> bytes:
    """Encodes an image, or a part of one, of members that have been encoded: once for many images."""
    return encode((head, msgspec.Raw(members), departed, drains))


def decode(data: bytes) -> RunImage:
    """Decodes an image, or a part of one. Raises `RendezvousError` if it is damaged, or from later."""
    try:
        image = _decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise RendezvousStateError(f"what is told of the run cannot be read: {error}") from error
    if image.head.version > VERSION:
        raise RendezvousStateError(
            f"what is told of the run is of version {image.head.version}, and this release of arendezvous"
            f" reads versions up to {VERSION}"
        )
    return image


def _version(settings: RunSettings, decisions: DecisionsRow | None) -> int:
    return PLAIN if decisions is None and settings.rules is None else VERSION


def head_of(state: RendezvousState, clocks: Clocks) -> RunHead:
    """Takes the head of a run as it is now."""
    closed, decisions = state.closed, DecisionsRow.of(state.decisions, clocks)
    return RunHead(
        version=_version(state.settings, decisions),
        settings=state.settings,
        incarnation=state.incarnation,
        round=state.round,
        complete=state.complete,
        world_size=state.world_size,
        digest=state.digest,
        round_floor=state.round_floor,
        incarnation_floor=state.incarnation_floor,
        closed=None if closed is None else replace(closed, at=clocks.wall - (clocks.now - closed.at)),
        decisions=decisions,
        ended=not state.complete and state.unfinished == 0,
    )


def proposal_of(state: RendezvousState, clocks: Clocks, roster: str = "") -> tuple[Record, RunHead]:
    """Tells of a round that is ready what completes it, and the head that has to be recorded before."""
    order = tuple(ranked(state))
    changes: dict[str, Any] = {"complete": True, "world_size": len(order), "ended": False, "roster": roster}
    if state.settings.agreed.stop_after:
        counting = state.decisions.copy()
        counting.vain += 1
        changes["decisions"] = DecisionsRow.of(counting, clocks)
    descs = [state.nodes[one].desc for one in order]
    changes["digest"] = member_digest(state.incarnation, state.round, descs)
    head = replace(head_of(state, clocks), **changes)
    return Record(state.incarnation, state.round, order, state.arrivals), head


def decided(head: RunHead, operation: Decided, clocks: Clocks) -> RunHead:
    """Tells what the head is once a decision is applied. Raises `RendezvousError` if it never can be."""
    if not isinstance(operation, Close | Reopen):
        row = head.decisions
        decisions = Decisions() if row is None else row.restored(head.settings, clocks)
        if decide(decisions, operation, head.settings, clocks.now) is None:
            return head
        row = DecisionsRow.of(decisions, clocks)
        return replace(head, version=_version(head.settings, row), decisions=row)
    over = operation.incarnation is not None and operation.incarnation < head.incarnation
    if over or (head.closed is None) is isinstance(operation, Reopen):
        return head
    if isinstance(operation, Close):
        closed = Closure(operation.by, operation.reason, clocks.wall, operation.by_node)
        return replace(head, closed=closed)
    latest = max(head.incarnation, head.incarnation_floor)
    if operation.incarnation > latest:
        return head
    least = max(head.round + 1, head.round_floor)
    decided = None if head.decisions is None else replace(head.decisions, vain=0, step=-1)
    return RunHead(
        head.version, head.settings, latest + 1, least, round_floor=least, incarnation_floor=latest + 1,
        decisions=decided,
    )  # fmt: skip


def without_round(head: RunHead) -> RunHead:
    """Takes the complete round, of which there is no roster, out of a head; its number stays used."""
    later = max(head.round + 1, head.round_floor)
    return replace(
        head, complete=False, world_size=0, digest="", round=later, round_floor=later, roster="", members=None
    )


def joined_proofs(proofs: Iterable[bytes]) -> bytes:
    """Makes one text of proofs."""
    return b"".join([proof[:PROOF] or bytes(PROOF) for proof in proofs])


def split_proofs(text: bytes) -> list[bytes]:
    """Takes such a text apart."""
    return [text[at : at + PROOF] for at in range(0, len(text), PROOF)]


def check_version(run_id: str, version: int) -> None:
    """Raises `RendezvousStateError` if the rows of a run are of a version that is not known here."""
    if version > VERSION:
        raise RendezvousStateError(
            f"the record of run {run_id!r} is of version {version}, and this release of arendezvous reads"
            f" versions up to {VERSION}; use the release that wrote it, or a later one"
        )


def restore(
    head: RunHead,
    roster: Sequence[NodeDesc],
    departed: Mapping[str, DepartureRow],
    drains: Mapping[str, DrainRow],
    clocks: Clocks,
) -> RendezvousState:
    """Makes the state of a run from its rows, at the moment `clocks`.

    Members of the `roster`, which is in rank order, that have not departed are there by name. They have
    `RESUME_GRACE` seconds, or the run's grace if that is longer, to come back, and nobody takes their place
    before.
    """
    now = clocks.now
    state = RendezvousState(head.settings, records=True)
    rounds = Rounds(state, now)
    rounds.settle_on(head.settings)
    state.incarnation, state.round = head.incarnation, head.round
    state.round_floor, state.incarnation_floor = head.round_floor, head.incarnation_floor
    state.unfinished = 0 if head.ended else -1
    if head.decisions is not None:
        state.decisions = head.decisions.restored(head.settings, clocks)
    if head.closed is not None:
        state.closed = replace(head.closed, at=clocks.ago(head.closed.at))
    if head.complete:
        _restore_round(rounds, head, roster, departed)
        _restore_notices(rounds, departed, drains, clocks)
    ranks = {desc.name: rank for rank, desc in enumerate(roster)}
    for node, gone in sorted(departed.items(), key=lambda one: one[1].wall):
        departure = Departure(gone.cause, gone.reason, gone.round, clocks.ago(gone.wall))
        rounds.remember(node, departure)
        if node in ranks and state.roster is not None:
            state.roster.gone[ranks[node]] = departure
    enforce(rounds)
    rounds.settle()
    state.revision = 1  # somebody may see it as it is now
    return state


def _restore_round(
    rounds: Rounds, head: RunHead, roster: Sequence[NodeDesc], departed: Mapping[str, DepartureRow]
) -> None:
    state = rounds.state
    finished = [gone for gone in departed.values() if gone.cause is Cause.FINISHED and gone.notice]
    state.complete, state.world_size, state.digest = True, head.world_size, head.digest
    state.unfinished = head.world_size - len(finished)
    state.rank0 = addresses_of(roster[0])
    state.reserved = rounds.now + max(head.settings.disconnect_grace, RESUME_GRACE)
    state.roster = RoundRoster.of(head.generation, roster, head.settings.rules)
    for rank, desc in enumerate(roster):
        if desc.name not in departed:
            rounds.register(desc)
            rounds.seat_member(desc.name, rank)
            state.last_heartbeats[desc.name] = rounds.now
            state.suspects[desc.name] = state.reserved


def _restore_notices(
    rounds: Rounds, departed: Mapping[str, DepartureRow], drains: Mapping[str, DrainRow], clocks: Clocks
) -> None:
    state = rounds.state
    notices = [
        Notice(gone.notice, node, gone.cause, gone.reason) for node, gone in departed.items() if gone.notice
    ]
    for node, drain in drains.items():
        notices.append(Notice(drain.notice, node, None, drain.reason, drain.seconds))
        if node in state.participants:
            rounds.begin_drain(node, drain.left(clocks), drain.reason)
    notices.sort(key=lambda notice: notice.number)
    state.notices.extend(notices)  # which keeps the latest
    state.notice_count = max((notice.number for notice in notices), default=0)

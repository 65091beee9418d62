"""A run as data, and back: what an owner that keeps a record writes down, and starts from again.

What is agreed of a run is kept in rows, so that nothing that happens to one node costs a row for each other
node: a *head*, which is small and written anew at each decision; the *roster* of the complete round, written
once; and a row for each member that *departed* or *drains* since. `restore` makes a state of them in which
the members are there by name, expected back.

No time in a row is compared with another machine's clock. How much of a drain is over is known by the uptime
of the machine that noted it; elsewhere, or after that was started anew, a drain begins again. The wall clock
only tells people how long ago a run was closed, or a node went.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from arendezvous.errors import RendezvousStateError
from arendezvous.law.operations import Close, Record, Reopen
from arendezvous.law.rosters import RoundRoster, addresses_of, member_digest
from arendezvous.law.rounds import RESUME_GRACE, Rounds, ranked
from arendezvous.law.state import (
    MAX_NOTICES,
    Cause,
    Closure,
    Departure,
    NodeDesc,
    Notice,
    RendezvousState,
    RunSettings,
)

VERSION: Final = 2
PLAIN: Final = 1  # of the rows of runs without rules, which earlier releases read as they are


class Clocks(msgspec.Struct, frozen=True):
    """One moment by all clocks of the owner.

    Attributes:
        now: Seconds on the clock of the state's owner.
        wall: Seconds since 1970 by the wall clock; only ever shown.
        boot: Names this start of this machine; empty if that is not known.
        uptime: Seconds on a clock that counts from then.
    """

    now: float
    wall: float
    boot: str
    uptime: float


class ClosureRow(msgspec.Struct, frozen=True, array_like=True):
    """Says who closed the run, why, and when by the wall clock."""

    by: str
    reason: str
    wall: float


class RunHead(msgspec.Struct, frozen=True, array_like=True):
    """Holds what is agreed of a run, but for its members; see `RendezvousState`.

    Attributes:
        version: Of the rows of this run.
        settings: What the nodes agreed on.
        incarnation: Counts how often the run was opened.
        round: The round that is complete, or that gathers.
        complete: Whether it is complete; then there is a roster.
        world_size: Of the complete round.
        digest: Of its member list.
        round_floor: The lowest number that a round may still get.
        incarnation_floor: The latest incarnation that some node knows.
        closed: Who closed the run; None while it is open.
        roster: Under which name the owner keeps the rows of the complete round.
    """

    version: int
    settings: RunSettings
    incarnation: int
    round: int
    complete: bool = False
    world_size: int = 0
    digest: str = ""
    round_floor: int = 0
    incarnation_floor: int = 0
    closed: ClosureRow | None = None
    roster: str = ""

    @property
    def generation(self) -> tuple[int, int]:
        """Incarnation and round."""
        return (self.incarnation, self.round)


class Roster(msgspec.Struct, frozen=True, array_like=True):
    """Holds the members of a complete round.

    Attributes:
        members: In rank order.
        proofs: For each of them, what tells its process from others under its name: a digest of the secret.
    """

    members: tuple[NodeDesc, ...]
    proofs: tuple[bytes, ...]


class DepartureRow(msgspec.Struct, frozen=True, array_like=True):
    """Says why a member of the complete round departed.

    Attributes:
        cause: Why, for programs.
        reason: Why, in words.
        round: In which round it went.
        notice: The number of the notice by which the others heard of it; 0: they did not.
        wall: When, by the wall clock.
    """

    cause: Cause
    reason: str
    round: int
    notice: int
    wall: float


class DrainRow(msgspec.Struct, frozen=True, array_like=True):
    """Says that a member drains.

    Attributes:
        seconds: How long it may take, counted from the announcement.
        reason: Why.
        notice: The number of the notice by which the others heard of it.
        boot: The start of the machine on which it was noted.
        uptime: When it was announced, in seconds from that start.
    """

    seconds: float
    reason: str
    notice: int
    boot: str
    uptime: float

    def left(self, clocks: Clocks) -> float:
        """Tells how many seconds are left of it, all of them if that cannot be known."""
        if not self.boot or self.boot != clocks.boot:
            return self.seconds
        return min(self.seconds, max(0.0, self.seconds - (clocks.uptime - self.uptime)))


def head_of(state: RendezvousState, clocks: Clocks) -> RunHead:
    """Takes the head of a run as it is now."""
    closed = state.closed
    return RunHead(
        version=PLAIN if state.settings.rules is None else VERSION,
        settings=state.settings,
        incarnation=state.incarnation,
        round=state.round,
        complete=state.complete,
        world_size=state.world_size,
        digest=state.digest,
        round_floor=state.round_floor,
        incarnation_floor=state.incarnation_floor,
        closed=None if closed is None else ClosureRow(
            closed.by, closed.reason, clocks.wall - (clocks.now - closed.at)
        ),
    )  # fmt: skip


def proposal_of(state: RendezvousState, clocks: Clocks) -> tuple[Record, RunHead]:
    """Tells of a round that is ready what completes it, and the head that has to be recorded before."""
    order = tuple(ranked(state))
    record = Record(state.incarnation, state.round, order, state.arrivals)
    head = msgspec.structs.replace(
        head_of(state, clocks),
        complete=True,
        world_size=len(order),
        digest=member_digest(state.incarnation, state.round, [state.nodes[one].desc for one in order]),
    )
    return record, head


def decided(head: RunHead, operation: Close | Reopen, clocks: Clocks) -> RunHead:
    """Tells what the head will be once a decision has been applied; the same, if that is refused."""
    over = operation.incarnation is not None and operation.incarnation < head.incarnation
    if over or (head.closed is None) is isinstance(operation, Reopen):
        return head
    if isinstance(operation, Close):
        closed = ClosureRow(operation.by, operation.reason, clocks.wall)
        return msgspec.structs.replace(head, closed=closed)
    latest = max(head.incarnation, head.incarnation_floor)
    if operation.incarnation > latest:
        return head
    least = max(head.round + 1, head.round_floor)
    return RunHead(
        head.version, head.settings, latest + 1, least, round_floor=least, incarnation_floor=latest + 1
    )


def without_round(head: RunHead) -> RunHead:
    """Takes the complete round, of which there is no roster, out of a head; its number stays used."""
    later = max(head.round + 1, head.round_floor)
    return msgspec.structs.replace(
        head, complete=False, world_size=0, digest="", round=later, round_floor=later, roster=""
    )


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

    Members that have not departed are there by name. They have `RESUME_GRACE` seconds, or the run's grace if
    that is longer, to come back, and nobody takes their place before.

    Args:
        head: The head.
        roster: The members of the complete round in rank order; empty if there is none.
        departed: Those of them that have departed.
        drains: Those of them that drain.
        clocks: The moment.
    """
    now = clocks.now
    state = RendezvousState(head.settings, records=True)
    rounds = Rounds(state, now)
    rounds.settle_on(head.settings)
    state.incarnation, state.round = head.incarnation, head.round
    state.round_floor, state.incarnation_floor = head.round_floor, head.incarnation_floor
    if head.closed is not None:
        age = max(0.0, clocks.wall - head.closed.wall)
        state.closed = Closure(head.closed.by, head.closed.reason, now - age)
    if head.complete:
        _restore_round(rounds, head, roster, departed)
        _restore_notices(rounds, departed, drains, clocks)
    ranks = {desc.name: rank for rank, desc in enumerate(roster)}
    for node, gone in sorted(departed.items(), key=lambda one: one[1].wall):
        at = now - max(0.0, clocks.wall - gone.wall)
        departure = Departure(gone.cause, gone.reason, gone.round, at)
        rounds.remember(node, departure)
        if node in ranks and state.roster is not None:
            state.roster.gone[ranks[node]] = departure
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
    state.roster = RoundRoster.of((head.incarnation, head.round), roster, head.settings.rules)
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
    state.notices.extend(notices[-MAX_NOTICES:])
    state.notice_count = max((notice.number for notice in notices), default=0)

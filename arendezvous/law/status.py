"""The status of a run, as data and in words: who is in, who is missing, who was dropped and why."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from arendezvous.law import words
from arendezvous.law.decisions import Decisions, Ruling, Sizes, total_sizes
from arendezvous.law.rounds import completes_at
from arendezvous.law.rules import Json
from arendezvous.law.seats import lacking, lacks_text
from arendezvous.law.state import Cause, NodeDesc, Phase, RendezvousState, RunSettings
from arendezvous.law.words import ago, because, counted, duration, listed

NAMED: Final = 12  # nodes that a line names


class NodeStatus(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One node of a run. All times are ages or remaining times in seconds, by the backend's clock.

    Attributes:
        phase: Where it stands.
        rank: Its rank; -1 unless it is a member.
        since: For how long it has stood there.
        heartbeat_age: Time since its last sign of life.
        grace_left: Its connection broke: the time it has to come back. None if the connection is up.
        drain_left: It is draining: the time until it is removed. None if it is not draining.
        drain_reason: Why it drains.
        skew: How far its clock is off the observer's, where the backend can tell; None where it cannot.
        state: What it has said of itself last, as JSON; empty: nothing.
        step: How far its work has come in this round; None: it has not said.
        stalled: Since when its step stands still, if that is too long; None: it is not.
    """

    desc: NodeDesc
    phase: Phase
    rank: int
    since: float
    heartbeat_age: float
    grace_left: float | None = None
    drain_left: float | None = None
    drain_reason: str = ""
    skew: float | None = None
    state: Json = b""
    step: int | None = None
    stalled: float | None = None


class DepartedStatus(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A node that is in the run no more: when (age in seconds), in which round, and why."""

    node: str
    cause: Cause
    reason: str
    round: int
    age: float


class ClosedStatus(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Says who closed the run, why, and how many seconds ago."""

    by: str
    reason: str
    age: float


class HeldStatus(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Says who holds the run, why, how many seconds ago, and for how many more; None: until its release."""

    by: str
    reason: str
    age: float
    left: float | None


class QuarantineStatus(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Says that a node, or all nodes with a label, are kept out of the run.

    Attributes:
        target: The node, or the label.
        by: Who decided so.
        reason: Why; may be empty.
        age: How many seconds ago.
        left: For how many more; None: until it is pardoned.
    """

    target: str
    is_label: bool
    by: str
    reason: str
    age: float
    left: float | None


class RunStatus(msgspec.Struct, frozen=True):
    """The whole of a run at one moment, as `explain()` returns it.

    Attributes:
        run_id: The run.
        settings: What its nodes agreed on; None if the backend knows no such run.
        incarnation: How often it was opened.
        round: The current round.
        complete: Whether that round is complete.
        world_size: Of the complete round; 0 while it gathers.
        digest: Of the complete round's member list.
        deadline_left: Seconds until the gathering round completes, unless something changes: until the last
            call is over, or members of a round that was forgotten have had their time to come back. None: it
            lacks nodes, or nothing gathers.
        closed: Who closed it; None while it is open.
        nodes: All nodes: participants by rank (or age), then the wait list, then the spares.
        departed: Who went, the latest last.
        ended: Whether the work is done: all members of the latest round left as finished, and nobody is here.
        obstacle: Why a round that has its nodes does not complete: the server cannot record it. Empty if
            nothing is in the way.
        resized: The numbers of nodes that were decided, and not agreed, by whom and why; of each such role.
        held: Who holds the run; None: nobody.
        quarantined: Who is kept out.
        excess: Whether the complete round has more members than it may have since it was resized.
    """

    run_id: str
    settings: RunSettings | None = None
    incarnation: int = 1
    round: int = 0
    complete: bool = False
    world_size: int = 0
    digest: str = ""
    deadline_left: float | None = None
    closed: ClosedStatus | None = None
    nodes: tuple[NodeStatus, ...] = ()
    departed: tuple[DepartedStatus, ...] = ()
    ended: bool = False
    obstacle: str = ""
    resized: tuple[Sizes, ...] = ()
    held: HeldStatus | None = None
    quarantined: tuple[QuarantineStatus, ...] = ()
    excess: bool = False

    def __str__(self) -> str:
        return "\n".join(explained(self))

    def of_phase(self, phase: Phase) -> list[NodeStatus]:
        """The nodes that stand in `phase`, in order."""
        return [node for node in self.nodes if node.phase is phase]

    @property
    def missing(self) -> int:
        """How many nodes the gathering round lacks; 0 if it is complete or has enough."""
        return sum(self.lacks.values())

    @property
    def lacks(self) -> dict[str, int]:
        """How many nodes the gathering round lacks, by role; without roles all under an empty one."""
        if self.complete or self.ended or self.settings is None:
            return {}
        gathered = [node.desc for node in self.of_phase(Phase.GATHERING)]
        return lacking(self.settings, gathered, {one.role: one.min_nodes for one in self.resized})

    @property
    def sizes(self) -> tuple[int, int]:
        """How many nodes a round has at least and at most, as they agreed or by decision; (0, 0): unknown."""
        if self.settings is None:
            return (0, 0)
        if not self.resized:
            return (self.settings.min_nodes, self.settings.max_nodes)
        return total_sizes(self.settings, self.resized)


def run_status(
    run_id: str,
    state: RendezvousState,
    now: float,
    skews: Mapping[str, float] | None = None,
    obstacle: str = "",
) -> RunStatus:
    """Takes stock of a run; work proportional to the number of nodes.

    `now` is by the clock of the state's owner. `skews` says how far clocks are off the observer's, where the
    backend can tell; `obstacle` why the owner cannot record a round that is ready, empty if it can.
    """

    def status(node: str, phase: Phase, rank: int = -1) -> NodeStatus:
        record, drain, grace = state.nodes[node], state.drains.get(node), state.suspects.get(node)
        stalled = None if state.steps is None else state.steps.stalled.get(node)
        return NodeStatus(
            desc=record.desc,
            phase=phase,
            rank=rank,
            since=now - record.since,
            heartbeat_age=now - state.last_heartbeats[node],
            grace_left=None if grace is None else grace - now,
            drain_left=None if drain is None else drain.until - now,
            drain_reason="" if drain is None else drain.reason,
            skew=None if skews is None else skews.get(node),
            state=record.state,
            step=None if state.steps is None else state.steps.latest.get(node),
            stalled=None if stalled is None else now - stalled,
        )

    inside = Phase.MEMBER if state.complete else Phase.GATHERING
    participants = sorted(state.participants.items(), key=lambda one: one[1])  # stable: by age while equal
    nodes = [status(node, inside, rank) for node, rank in participants]
    nodes += [status(node, Phase.WAITING) for node in state.wait_list]
    nodes += [status(node, Phase.REDUNDANT) for node in state.redundancy_list]
    closed, due = state.closed, completes_at(state)
    return RunStatus(
        run_id=run_id,
        settings=state.settings,
        incarnation=state.incarnation,
        round=state.round,
        complete=state.complete,
        world_size=state.world_size,
        digest=state.digest,
        deadline_left=None if due is None else max(0.0, due - now),
        closed=None if closed is None else ClosedStatus(closed.by, closed.reason, now - closed.at),
        nodes=tuple(nodes),
        departed=tuple(
            DepartedStatus(node, gone.cause, gone.reason, gone.round, now - gone.at)
            for node, gone in state.departed.items()
        ),
        ended=state.ended,
        obstacle=obstacle if state.ready else "",
        **_decided(state.decisions, now),
    )


def _decided(decisions: Decisions, now: float) -> dict[str, Any]:
    """Takes stock of what has been decided of a run."""

    def ruled(one: Ruling) -> tuple[str, str, float, float | None]:
        left = None if one.until == math.inf else max(0.0, one.until - now)
        return one.by, one.reason, now - one.at, left

    return {
        "resized": tuple(decisions.sizes.values()),
        "held": None if decisions.held is None else HeldStatus(*ruled(decisions.held)),
        "quarantined": tuple(
            QuarantineStatus(target, is_label, *ruled(one))
            for (is_label, target), one in decisions.quarantines.items()
            if one.until > now
        ),
        "excess": decisions.excess is not None,
    }


def explained(status: RunStatus) -> list[str]:
    """Says in plain words what `status` means, the headline first."""
    if is_unknown(status):
        return [f"run {status.run_id!r}: nobody has joined it yet"]
    lines = [_headline(status)]
    if (closed := status.closed) is not None:
        said = words.closing_text(closed.by, closed.reason, closed.age)
        lines.append(f"{said}; no further round will form")
    lines += _decisions_text(status)
    for phase, word in ((Phase.WAITING, "waiting for the next round"), (Phase.REDUNDANT, "spare")):
        if nodes := status.of_phase(phase):
            lines.append(f"{word}: {_ages(nodes)}")
    if status.complete and status.of_phase(Phase.WAITING):
        staying = [node for node in status.of_phase(Phase.MEMBER) if node.drain_left is None]
        names = listed([node.desc.name for node in staying], NAMED)
        lines.append(f"the next round opens when these have joined it, left or died: {names}")
    if slowest := slowest_text(status):
        lines.append(slowest)
    lines += [f"{node.desc.name}: {troubles}" for node in status.nodes if (troubles := trouble_text(node))]
    if dropped := _dropped_nodes(status):
        lines.append(f"dropped: {dropped}")
    return lines


def _decisions_text(status: RunStatus) -> list[str]:
    """Says what has been decided of the run, by whom and why."""
    lines = [
        words.resizing_text(one.min_nodes, one.max_nodes, one.role, one.by, one.reason)
        for one in status.resized
    ]
    if status.excess:
        lines.append(f"round {status.round} has more members than it may have, who are to meet again")
    if (held := status.held) is not None:
        lines.append(words.holding_text(held.by, held.reason, held.left, held.age))
    shown = status.quarantined[:NAMED]
    lines += [
        words.quarantine_text(one.target, one.by, one.reason, one.left, one.age, is_label=one.is_label)
        for one in shown
    ]
    if len(status.quarantined) > len(shown):
        lines.append(f"and {len(status.quarantined) - len(shown)} more are quarantined")
    return lines


def is_unknown(status: RunStatus) -> bool:
    """Tells whether nobody has joined the run, nor closed it."""
    return status.settings is None and not status.nodes and status.closed is None


def trouble_text(node: NodeStatus) -> str:
    """Says what is out of the ordinary about a node; empty if nothing is."""
    troubles = []
    if node.drain_left is not None:
        troubles.append(f"draining, gone within {duration(node.drain_left)}{because(node.drain_reason)}")
    if node.grace_left is not None:
        troubles.append(f"connection lost, expires in {duration(node.grace_left)}")
    if node.stalled is not None:
        troubles.append(f"stalls, at step {node.step} for {duration(node.stalled)}")
    if node.skew is not None:
        troubles.append(f"clock off by {node.skew:+.1f} s")
    return "; ".join(troubles)


def slowest_text(status: RunStatus) -> str:
    """Names the member whose work has come least far; empty if no two have said how far theirs has come."""
    steps = [(node.step, node.desc.name) for node in status.nodes if node.step is not None]
    if len(steps) <= 1:
        return ""
    slowest, fastest = min(steps)[0], max(steps)[0]
    if slowest == fastest:
        return f"progress: all {len(steps)} are at step {slowest}"
    names = [name for step, name in steps if step == slowest]
    return f"progress: steps {slowest} to {fastest}; slowest: {listed(names, NAMED)}"


def timeout_text(status: RunStatus, desc: NodeDesc, least: int, timeout: float) -> str:
    """Says why a node got no rank within `timeout` seconds in a run of at least `least` nodes."""
    holder = _holder(status, desc)
    if holder is not None:
        return _claim_text(status, desc, holder, timeout)
    if status.obstacle:
        came = counted(len(status.of_phase(Phase.GATHERING)), "node")
        return (
            f"joined, and {came} came, but for up to {timeout:g} s the server could not record the round:"
            f" {status.obstacle}. Mend that at the server; it tries again by itself"
        )
    if status.held is not None and not status.missing and not status.complete:
        held = words.holding_text(status.held.by, status.held.reason, status.held.left, status.held.age)
        return f"joined, and enough nodes came within {timeout:g} s, but {held}. Ask for its release"
    if status.complete:
        text = f"joined, but the members of round {status.round} did not meet again within {timeout:g} s"
    else:
        here, lacks = status.of_phase(Phase.GATHERING), status.lacks
        text = (
            f"joined, but only {len(here)} of at least {counted(least, 'node')} came within {timeout:g} s: "
        )
        text += f"{_ages(here)}; missing {status.missing}"
        text += f" ({lacks_text(lacks)})" if any(lacks) else ""
    if dropped := _dropped_nodes(status):
        text += f"; dropped: {dropped}"
    return text + ". Start the missing nodes, or raise the join time-out"


def _holder(status: RunStatus, desc: NodeDesc) -> NodeStatus | None:
    """Names who has the name, or the given rank, of a node that is not in the run because of that."""
    if any(node.desc == desc for node in status.nodes):
        return None
    is_given = status.settings is not None and status.settings.rank_policy == "given"
    named = [node for node in status.nodes if node.desc.name == desc.name]
    ranked = [node for node in status.nodes if is_given and node.desc.rank == desc.rank]
    return next(iter(named + ranked), None)


def _claim_text(status: RunStatus, desc: NodeDesc, holder: NodeStatus, timeout: float) -> str:
    what = f"the name {desc.name!r}" if holder.desc.name == desc.name else f"the rank {desc.rank}"
    who = f"{holder.desc.name}, process {holder.desc.pid}, heard of {holder.heartbeat_age:.1f} s ago"
    expiry = "" if status.settings is None else f" ({status.settings.expiry:g} s)"
    return (
        f"{what} was not given up within {timeout:g} s by another process that has it: {who}. Stop that one,"
        f" or raise the join time-out above the time{expiry} after which whoever is silent is lost"
    )


def _dropped_nodes(status: RunStatus) -> str:
    """Names the nodes that were lost, the latest first, each with the reason; empty if there are none."""
    lost = [gone for gone in reversed(status.departed) if gone.cause.is_loss]
    return listed([f"{gone.node}, {gone.reason or gone.cause.value}" for gone in lost], NAMED)


def _headline(status: RunStatus) -> str:
    if status.ended:
        ages = (gone.age for gone in reversed(status.departed) if gone.cause is Cause.FINISHED)
        done = f"all nodes of its last round have finished, the last of them {ago(next(ages, 0.0))}"
        return f"run {status.run_id!r}: ended; {done}"
    if status.complete:
        lost = status.world_size - len(status.of_phase(Phase.MEMBER))
        gone = f", {lost} of them gone" if lost else ""
        size = counted(status.world_size, "node")
        return f"run {status.run_id!r}: round {status.round} is complete with {size}{gone}"
    here, settings = status.of_phase(Phase.GATHERING), status.settings
    wanted = "nodes" if settings is None else words.wanted_text(*status.sizes)
    if settings is not None and settings.agreed.node_unit > 1:
        wanted += f" in units of {settings.agreed.node_unit}"
    if status.obstacle:
        rest = f"enough, but the server cannot record the round: {status.obstacle}"
    elif lacks := status.lacks:
        rest = lacks_text(lacks)
    elif status.held is not None:
        rest = "held"
    elif status.deadline_left is not None:
        rest = f"last call, {max(0.0, status.deadline_left):.1f} s left"
    else:
        rest = "no last call"
    named = f": {_ages(here)}" if here else ""
    return f"run {status.run_id!r}: round {status.round} gathers {wanted}, {len(here)} came ({rest}){named}"


def _ages(nodes: Iterable[NodeStatus]) -> str:
    return listed([f"{node.desc.name} ({_kind(node)}{duration(node.since)})" for node in nodes], NAMED)


def _kind(node: NodeStatus) -> str:
    """Says of which role a node is, and of how many slots, where that is more than nothing."""
    brought = node.desc.brings
    if brought is None:
        return ""
    slots = f"{brought.slots} slots, " if brought.slots > 1 else ""
    return f"{brought.role}, {slots}" if brought.role else slots

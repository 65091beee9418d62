"""Tells what has happened to a member of a complete round, from two views of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec

from arendezvous.law import words
from arendezvous.law.state import Cause, NodeView, Phase


@dataclass(frozen=True)
class NodesWaiting:
    """Nodes wait for the next round: new ones, or members that have joined again.

    Attributes:
        count: How many; exact for the first few newcomers, at least half of them beyond.
    """

    count: int

    def __str__(self) -> str:
        return words.waiting_text(self.count)


@dataclass(frozen=True)
class _Departed:
    node: str
    cause: Cause
    reason: str

    def __str__(self) -> str:
        return words.departure_text(self.node, self.cause, self.reason)


@dataclass(frozen=True)
class NodeLost(_Departed):
    """A member is gone without having said so.

    Attributes:
        node: Its name.
        cause: ``CONNECTION_LOST`` or ``NO_HEARTBEAT``.
        reason: The same in words.
    """


@dataclass(frozen=True)
class NodeLeft(_Departed):
    """A member left by decision.

    Attributes:
        node: Its name.
        cause: How it left; ``FINISHED`` means that its work succeeded.
        reason: Why, in its own words; may be empty.
    """


@dataclass(frozen=True)
class NodeDraining:
    """A member, perhaps this one, will leave.

    Attributes:
        node: Its name.
        deadline: Seconds that it had left when it said so.
        reason: Why, in its own words; may be empty.
    """

    node: str
    deadline: float
    reason: str

    def __str__(self) -> str:
        return words.draining_text(self.node, self.deadline, self.reason)


@dataclass(frozen=True)
class Evicted:
    """This node itself is not a member any more, though it did not leave; its rank is void.

    Attributes:
        cause: Why.
        reason: The same in words.
    """

    cause: Cause
    reason: str

    def __str__(self) -> str:
        reason = "" if self.reason == self.cause.value else self.reason
        return f"this node was evicted ({self.cause.value}){words.because(reason)}"


@dataclass(frozen=True)
class Closed:
    """The run is closed: there will be no further round; members may finish what they do.

    Attributes:
        by: Who closed it.
        reason: Why; may be empty.
    """

    by: str
    reason: str

    def __str__(self) -> str:
        return words.closing_text(self.by, self.reason)


@dataclass(frozen=True)
class Resized:
    """The round has more members than it may have by decision: they are to meet again, as fewer.

    Attributes:
        min_nodes: A round never completes with fewer nodes from now on.
        max_nodes: It never has more.
        role: Of this role; empty in a run without roles.
        by: Who decided so.
        reason: Why; may be empty.
    """

    min_nodes: int
    max_nodes: int
    role: str
    by: str
    reason: str

    def __str__(self) -> str:
        return words.resizing_text(self.min_nodes, self.max_nodes, self.role, self.by, self.reason)


@dataclass(frozen=True)
class NodeStalled:
    """A member's work does not go on: the step that it has reported has not risen for the stall time-out.

    Attributes:
        node: Its name.
        step: The step at which it stands.
        seconds: For how long it had stood there when the others were told.
    """

    node: str
    step: int
    seconds: float

    def __str__(self) -> str:
        return words.stalled_text(self.node, self.step, self.seconds)


@dataclass(frozen=True)
class StateChanged:
    """A node says that its state is another; told by ``changes(states=True)`` alone.

    Attributes:
        node: Its name.
        state: What it says.
    """

    node: str
    state: Any

    def __str__(self) -> str:
        return f"{self.node} says that its state is {self.state!r}"


Change: TypeAlias = (
    NodesWaiting
    | NodeLost
    | NodeLeft
    | NodeDraining
    | Evicted
    | Closed
    | Resized
    | NodeStalled
    | StateChanged
)


def ends_round(change: Change) -> bool:
    """Tells whether members that work together have to meet again; that the run is closed is no reason."""
    if isinstance(change, NodeLeft):
        return change.cause is not Cause.FINISHED
    return isinstance(change, NodesWaiting | NodeLost | NodeDraining | Evicted | Resized)


def at_completion(begin: NodeView) -> NodeView:
    """Makes the view that a member had at the very moment of completion; `begin` is the first one it got.

    A view may tell of several events at once, so the first one may tell of more than the completion.
    """
    return msgspec.structs.replace(begin, notices=(), waiting=0, closed=None, excess=None)


def difference(before: NodeView, after: NodeView) -> list[Change]:
    """Tells what has happened to a member between two of its views, in order.

    Empty if nothing has that it must know, or if the node itself went on to another round.
    """
    if after.phase is Phase.GONE:
        if (gone := after.gone) is None:
            return [Evicted(Cause.SUPERSEDED, "the coordinator does not know this node any more")]
        return [Evicted(gone.cause, gone.reason or gone.cause.value)]
    if after.phase is not Phase.MEMBER or after.generation != before.generation:
        return []
    changes: list[Change] = []
    told = set(before.notices)  # their numbers start anew if the coordinator does
    for notice in (one for one in after.notices if one not in told):
        if notice.step is not None:
            changes.append(NodeStalled(notice.node, notice.step, notice.seconds))
        elif notice.cause is None:
            changes.append(NodeDraining(notice.node, notice.seconds, notice.reason))
        elif notice.cause.is_loss:
            changes.append(NodeLost(notice.node, notice.cause, notice.reason or notice.cause.value))
        else:
            changes.append(NodeLeft(notice.node, notice.cause, notice.reason))
    if after.waiting > before.waiting:
        changes.append(NodesWaiting(after.waiting))
    if (excess := after.excess) is not None and excess != before.excess:
        changes.append(Resized(excess.min_nodes, excess.max_nodes, excess.role, excess.by, excess.reason))
    if after.closed is not None and before.closed is None:
        changes.append(Closed(after.closed.by, after.closed.reason))
    return changes


@dataclass(frozen=True)
class Outlook:
    """Whether a member has a reason to meet again.

    Attributes:
        waiting: How many nodes wait for the next round.
        departed: Whether a peer is lost, has left, or is draining, other than by finishing its work; or this
            node itself was evicted; or some are to go, as the run was resized. In a closed run a draining
            peer does not count before it is gone.
        closed: Whether the run is closed: there will be no next round.
        draining: Whether this node itself is to be gone soon.
        departures: What `departed` stands for: who is gone, and why.
        remaining: How many nodes can meet again, as far as this one has been told: members that are not gone,
            and nodes that wait; at most, as members that have joined again already are both.
    """

    waiting: int
    departed: bool
    closed: bool
    draining: bool = False
    departures: tuple[Change, ...] = ()
    remaining: int = 0


def outlook(begin: NodeView, latest: NodeView) -> Outlook:
    """Judges a member's round by its view at the beginning and its `latest` one."""
    closed = latest.closed is not None
    changes = difference(at_completion(begin), latest)
    gone = {change.node for change in changes if isinstance(change, NodeLost | NodeLeft)}
    departures = tuple(
        change
        for change in changes
        if (isinstance(change, NodeLost | NodeLeft) and change.cause is not Cause.FINISHED)
        or (isinstance(change, NodeDraining) and change.node != begin.node and not closed)
        or isinstance(change, Evicted | Resized)
    )
    draining = any(isinstance(change, NodeDraining) and change.node == begin.node for change in changes)
    remaining = begin.world_size - len(gone) + latest.waiting
    return Outlook(latest.waiting, bool(departures), closed, draining, departures, remaining)

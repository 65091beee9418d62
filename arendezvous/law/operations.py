"""The operations of the law: what may be asked of it.

Each operation is a small frozen value that can be sent over a wire. None of them carries a time: durations
are seconds from the moment at which the owner of the state applies the operation.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

import msgspec

from arendezvous.errors import RendezvousSettingsError
from arendezvous.law.checks import check_seconds, check_size, check_text
from arendezvous.law.rules import Json, Reducer, Share
from arendezvous.law.state import MAX_ROUND, MAX_WORLD, Cause, Closure, NodeDesc, Reopening, RunSettings

MAX_VALUE: Final = 1024  # bytes of JSON of a value at a barrier, or of a node's state
NOTHING_KNOWN: Final = (0, -1)  # what `Join.after` is for a node that knows no round


def _check_generation(name: str, generation: tuple[int, int], least: tuple[int, int]) -> None:
    incarnation, round_ = generation
    if not (least[0] <= incarnation <= MAX_ROUND and least[1] <= round_ <= MAX_ROUND):
        raise RendezvousSettingsError.of(name, generation, f"from {least} to {(MAX_ROUND, MAX_ROUND)}")


class OperationBase(msgspec.Struct, frozen=True, array_like=True, tag=True, gc=False):
    """The base of all operations: small frozen values that can be sent over a wire."""


class _Worded(OperationBase, frozen=True):
    """An operation that says by whom, or why."""

    def __post_init__(self) -> None:
        for name in ("role", "by", "reason"):
            check_text(name, getattr(self, name, ""))


class Join(OperationBase, frozen=True):
    """A node wants a rank in a round later than `after`.

    Repeating it is harmless: it is a heartbeat for a node that waits already, and changes nothing for a
    member of a later round. A member of the round `after` gives up its rank and waits for the next round.
    """

    desc: NodeDesc  # the node's description of itself
    settings: RunSettings  # what it takes the run's settings to be
    after: tuple[int, int] = NOTHING_KNOWN  # the latest (incarnation, round) that it has been told of
    # which kind of a run that is over it begins anew, if nobody is in it; empty: none, see
    # `admission.begins_anew`
    reopen: Reopening = ""

    def __post_init__(self) -> None:
        _check_generation("after", self.after, NOTHING_KNOWN)

    @property
    def node(self) -> str:
        """The node that joins."""
        return self.desc.name

    def knowing(self, generation: tuple[int, int]) -> Join:
        """The same join, of a node that has also been told of the round `generation`."""
        return self if generation <= self.after else msgspec.structs.replace(self, after=generation)


class Claim(OperationBase, frozen=True):
    """A join under a name by another process than the one that has it.

    Nodes do not propose this: the owner of the state tells the processes apart.
    """

    join: Join  # what that process asks for

    @property
    def node(self) -> str:
        """The name that it comes under."""
        return self.join.desc.name


class Resume(OperationBase, frozen=True):
    """A member presents the rank it holds to a coordinator that may have forgotten the run."""

    desc: NodeDesc  # the node's description of itself
    settings: RunSettings  # the run's settings
    incarnation: int  # the incarnation that it knows
    round: int  # the complete round that it is a member of
    rank: int  # its rank there
    world_size: int  # the world size there
    digest: str  # the digest of the member list there
    share: Share | None = None  # what it has there besides its rank; None: nothing

    def __post_init__(self) -> None:
        check_text("digest", self.digest)
        _check_generation("(incarnation, round)", (self.incarnation, self.round), (1, 0))

    @property
    def node(self) -> str:
        """The node that resumes."""
        return self.desc.name


class Leave(_Worded, frozen=True):
    """A node leaves the run; nothing happens if it is in no list."""

    node: str
    reason: str = ""
    cause: Cause = Cause.LEFT


class Drain(_Worded, frozen=True):
    """A member will leave within `seconds`; a node that is not a member leaves at once.

    A draining member stays a member until the others have met without it, or the time is over; that it joins
    meanwhile changes nothing.
    """

    node: str
    seconds: float
    reason: str = ""

    def __post_init__(self) -> None:
        check_seconds("drain deadline", self.seconds, zero=True)
        super().__post_init__()


class KeepAlive(OperationBase, frozen=True):
    """A node is alive; nothing happens if it is in no list."""

    node: str


class Disconnect(OperationBase, frozen=True):
    """A failure detector's word: the node's connection broke. It has the run's grace to come back."""

    node: str


class Close(_Worded, frozen=True):
    """No more rounds in this incarnation; closing a closed run changes nothing.

    Attributes:
        by: The node or person who closes it.
        reason: Why; may be empty.
        incarnation: What is to be closed; nothing happens if that is over already, so that a repeated
            Close does not hit a run that was reopened in between. None: whatever is open.
        by_node: Whether a node of the run closes it, and no operator: then another may begin it anew, see
            `Join.reopen`.
    """

    by: str = ""
    reason: str = ""
    incarnation: int | None = None
    by_node: bool = False

    @classmethod
    def again(cls, closed: Closure, incarnation: int) -> Close:
        """Makes what closes a run once more that was closed, for who has forgotten it."""
        return cls(closed.by, closed.reason, incarnation, closed.by_node)


class Reopen(_Worded, frozen=True):
    """Opens the closed run anew; nothing happens if `incarnation` is over already.

    Attributes:
        incarnation: The closed incarnation that is to be followed by a new one.
        by: The node or person who reopens it.
    """

    incarnation: int
    by: str = ""


class Tick(OperationBase, frozen=True):
    """Time has passed: who is overdue is expired, and a last call that is over completes the round."""


class Record(OperationBase, frozen=True):
    """The owner has recorded the round that was ready: it completes, if it is still the one recorded.

    Nodes do not propose this. Nothing happens if a node has come or gone since; what is ready then has to be
    recorded anew.
    """

    incarnation: int  # the incarnation of the round
    round: int  # its number
    order: tuple[str, ...]  # its participants in rank order, as `rounds.ranked` gave them
    arrivals: int  # how many nodes had ever arrived then, see `RendezvousState.arrivals`


class _AtBarrier(OperationBase, frozen=True):
    """An operation of a member at a barrier of its round.

    Attributes:
        incarnation: The incarnation of the round.
        round: The round.
        name: Names the barrier.
        turn: How many barriers of that name the member has passed in this round.
    """

    node: str
    incarnation: int
    round: int
    name: str
    turn: int = 0

    def __post_init__(self) -> None:
        _check_generation("(incarnation, round)", self.generation, (1, 0))
        check_text("barrier", self.name, empty=False)
        if not 0 <= self.turn <= MAX_ROUND:
            raise RendezvousSettingsError.of("turn", self.turn, f"from 0 to {MAX_ROUND}")

    @property
    def key(self) -> tuple[str, int]:
        """Tells the barrier from the others of its round."""
        return (self.name, self.turn)

    @property
    def generation(self) -> tuple[int, int]:
        """Incarnation and round."""
        return (self.incarnation, self.round)


class Arrive(_AtBarrier, frozen=True):
    """A member has come to a barrier of its round, and waits until all have; see `barriers`.

    Repeating it is harmless, also after the barrier has passed.

    Attributes:
        reducer: How the values are reduced to one; empty: nobody brings a value.
        value: What the member brings, as JSON; empty: null, or nothing without a reducer.
    """

    reducer: Reducer | Literal[""] = ""
    value: Json = b""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_size("value", self.value, MAX_VALUE)
        if self.value and not self.reducer:
            expected = "left out without a reducer"
            raise RendezvousSettingsError.of("value", self.value.decode(errors="replace"), expected)


class Withdraw(_AtBarrier, frozen=True):
    """A member waits at a barrier no more; nothing happens if that has passed, or the round is over."""


class Update(OperationBase, frozen=True):
    """A node says what its state is now; nothing happens if it is in no list.

    Attributes:
        state: What it says, as JSON; the latest counts.
    """

    node: str
    state: Json

    def __post_init__(self) -> None:
        check_size("state", self.state, MAX_VALUE)


class Progress(OperationBase, frozen=True):
    """A node says how far its work has come; nothing happens if it is in no list. See `steps`.

    Attributes:
        step: A number that rises as long as the work goes on.
    """

    node: str
    step: int

    def __post_init__(self) -> None:
        if not 0 <= self.step <= MAX_ROUND:
            raise RendezvousSettingsError.of("step", self.step, f"from 0 to {MAX_ROUND}")


class Resize(_Worded, frozen=True):
    """Changes how many nodes a round has, whatever the nodes agreed on; see `decisions`.

    Attributes:
        min_nodes: A round never completes with fewer; 0, as `max_nodes`: as the nodes agreed.
        max_nodes: A round never has more.
        role: Of this role; empty in a run without roles.
        by: Who decides so.
        reason: Why; may be empty.
    """

    min_nodes: int
    max_nodes: int
    role: str = ""
    by: str = ""
    reason: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.is_undoing:
            return
        least = 0 if self.role else 1
        if not least <= self.min_nodes <= MAX_WORLD:
            raise RendezvousSettingsError.of("min_nodes", self.min_nodes, f"from {least} to {MAX_WORLD}")
        if not max(1, self.min_nodes) <= self.max_nodes <= MAX_WORLD:
            allowed = f"from min_nodes ({self.min_nodes}) to {MAX_WORLD}, and at least 1"
            raise RendezvousSettingsError.of("max_nodes", self.max_nodes, allowed)

    @property
    def is_undoing(self) -> bool:
        """Whether the numbers are to be again what the nodes agreed on."""
        return self.min_nodes == self.max_nodes == 0


class Hold(_Worded, frozen=True):
    """No round completes until the run is released; see `decisions`. A later word replaces an earlier one.

    Attributes:
        by: Who decides so.
        reason: Why; may be empty.
        seconds: For how long; None: until it is released.
    """

    by: str = ""
    reason: str = ""
    seconds: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seconds is not None:
            check_seconds("hold", self.seconds)


class Release(_Worded, frozen=True):
    """Ends a hold; nothing happens if the run is not held."""

    by: str = ""


class Quarantine(_Worded, frozen=True):
    """Keeps a node, or all nodes with one label, out of the run; see `decisions`.

    Attributes:
        target: The node, or the label.
        seconds: For how long; None: until it is pardoned.
        by: Who decides so.
        reason: Why; may be empty.
    """

    target: str
    is_label: bool = False
    seconds: float | None = None
    by: str = ""
    reason: str = ""

    def __post_init__(self) -> None:
        check_text("label" if self.is_label else "node name", self.target, empty=False)
        super().__post_init__()
        if self.seconds is not None:
            check_seconds("quarantine", self.seconds)


class Pardon(_Worded, frozen=True):
    """Lets a node, or the nodes with a label, in again; nothing happens if nothing is held against it.

    Attributes:
        target: The node, or the label.
        by: Who decides so.
    """

    target: str
    is_label: bool = False
    by: str = ""

    def __post_init__(self) -> None:
        check_text("label" if self.is_label else "node name", self.target, empty=False)
        super().__post_init__()


Operation: TypeAlias = (
    Join | Claim | Resume | Leave | Drain | KeepAlive | Disconnect | Close | Reopen | Tick | Record
    | Arrive | Withdraw | Update | Progress
    | Resize | Hold | Release | Quarantine | Pardon
)  # fmt: skip
Decided: TypeAlias = Close | Reopen | Resize | Hold | Release | Quarantine | Pardon
"""What is decided of a run from outside: by whoever may change it, be it no node, and recorded beforehand."""
DECIDED: Final = (Close, Reopen, Resize, Hold, Release, Quarantine, Pardon)

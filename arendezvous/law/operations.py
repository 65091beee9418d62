"""The operations of the law, and the events that applying them brings about.

Each operation is a small frozen value that can be sent over a wire. None of them carries a time: durations
are seconds from the moment at which the owner of the state applies the operation.
"""

from __future__ import annotations

import enum
from typing import Final, TypeAlias

import msgspec

from arendezvous.errors import RendezvousSettingsError
from arendezvous.law.checks import check_seconds, check_text
from arendezvous.law.rules import Share
from arendezvous.law.state import MAX_ROUND, Cause, NodeDesc, Phase, RunSettings

NOTHING_KNOWN: Final = (0, -1)  # what `Join.after` is for a node that knows no round


class _Operation(msgspec.Struct, frozen=True, array_like=True, tag=True, gc=False):
    pass


def _check_generation(name: str, generation: tuple[int, int], least: tuple[int, int]) -> None:
    incarnation, round_ = generation
    if not (least[0] <= incarnation <= MAX_ROUND and least[1] <= round_ <= MAX_ROUND):
        raise RendezvousSettingsError.of(name, generation, f"from {least} to {(MAX_ROUND, MAX_ROUND)}")


class Join(_Operation, frozen=True):
    """A node wants a rank in a round later than `after`.

    Repeating it is harmless: it is a heartbeat for a node that waits already, and changes nothing for a
    member of a later round. A member of the round `after` gives up its rank and waits for the next round.

    Attributes:
        desc: The node's description of itself.
        settings: What it takes the run's settings to be.
        after: The latest (incarnation, round) that it knows, as a member or from what it was told while it
            waited; (0, -1) if none.
    """

    desc: NodeDesc
    settings: RunSettings
    after: tuple[int, int] = NOTHING_KNOWN

    def __post_init__(self) -> None:
        _check_generation("after", self.after, NOTHING_KNOWN)

    @property
    def node(self) -> str:
        """The node that joins."""
        return self.desc.name

    def knowing(self, generation: tuple[int, int]) -> Join:
        """The same join, of a node that has also been told of the round `generation`."""
        return self if generation <= self.after else msgspec.structs.replace(self, after=generation)


class Claim(_Operation, frozen=True):
    """A join under a name by another process than the one that has it.

    Nodes do not propose this: the owner of the state tells the processes apart.

    Attributes:
        join: What that process asks for.
    """

    join: Join

    @property
    def node(self) -> str:
        """The name that it comes under."""
        return self.join.desc.name


class Resume(_Operation, frozen=True):
    """A member presents the rank it holds to a coordinator that may have forgotten the run.

    Attributes:
        desc: The node's description of itself.
        settings: The run's settings.
        incarnation: The incarnation that it knows.
        round: The complete round that it is a member of.
        rank: Its rank there.
        world_size: The world size there.
        digest: The digest of the member list there.
        share: What it has there besides its rank; None: nothing.
    """

    desc: NodeDesc
    settings: RunSettings
    incarnation: int
    round: int
    rank: int
    world_size: int
    digest: str
    share: Share | None = None

    def __post_init__(self) -> None:
        check_text("digest", self.digest)
        _check_generation("(incarnation, round)", (self.incarnation, self.round), (1, 0))

    @property
    def node(self) -> str:
        """The node that resumes."""
        return self.desc.name


class Leave(_Operation, frozen=True):
    """A node leaves the run; nothing happens if it is in no list."""

    node: str
    reason: str = ""
    cause: Cause = Cause.LEFT

    def __post_init__(self) -> None:
        check_text("reason", self.reason)


class Drain(_Operation, frozen=True):
    """A member will leave within `seconds`; a node that is not a member leaves at once.

    A draining member stays a member until the others have met without it, or the time is over; that it joins
    meanwhile changes nothing.
    """

    node: str
    seconds: float
    reason: str = ""

    def __post_init__(self) -> None:
        check_seconds("drain deadline", self.seconds, zero=True)
        check_text("reason", self.reason)


class KeepAlive(_Operation, frozen=True):
    """A node is alive; nothing happens if it is in no list."""

    node: str


class Disconnect(_Operation, frozen=True):
    """A failure detector's word: the node's connection broke. It has the run's grace to come back."""

    node: str


class Close(_Operation, frozen=True):
    """No more rounds in this incarnation; closing a closed run changes nothing.

    Attributes:
        by: The node or person who closes it.
        reason: Why; may be empty.
        incarnation: What is to be closed; nothing happens if that is over already, so that a repeated
            Close does not hit a run that was reopened in between. None: whatever is open.
    """

    by: str = ""
    reason: str = ""
    incarnation: int | None = None

    def __post_init__(self) -> None:
        check_text("by", self.by)
        check_text("reason", self.reason)


class Reopen(_Operation, frozen=True):
    """Opens the closed run anew; nothing happens if `incarnation` is over already.

    Attributes:
        incarnation: The closed incarnation that is to be followed by a new one.
        by: The node or person who reopens it.
    """

    incarnation: int
    by: str = ""

    def __post_init__(self) -> None:
        check_text("by", self.by)


class Tick(_Operation, frozen=True):
    """Time has passed: who is overdue is expired, and a last call that is over completes the round."""


class Record(_Operation, frozen=True):
    """The owner has recorded the round that was ready: it completes, if it is still the one recorded.

    Nodes do not propose this. Nothing happens if a node has come or gone since; what is ready then has to be
    recorded anew.

    Attributes:
        incarnation: The incarnation of the round.
        round: Its number.
        order: Its participants in rank order, as `rounds.ranked` gave them.
        arrivals: How many nodes had ever arrived then, see `RendezvousState.arrivals`.
    """

    incarnation: int
    round: int
    order: tuple[str, ...]
    arrivals: int


Operation: TypeAlias = (
    Join | Claim | Resume | Leave | Drain | KeepAlive | Disconnect | Close | Reopen | Tick | Record
)


class Audience(enum.Enum):
    """Names whose view an event changes, besides that of the node it names."""

    NOBODY = "nobody"
    MEMBERS = "members"  #: the participants of the round
    EVERYONE = "everyone"  #: every node in any list


NOBODY: Final = Audience.NOBODY  # see `state.GATHERING`


class _Event(msgspec.Struct, frozen=True, tag=True, gc=False):
    @property
    def audience(self) -> Audience:
        """Names whose view this changes, besides that of the node it names."""
        return NOBODY


class NodeJoined(_Event, frozen=True):
    """A node entered a list: `phase` says which."""

    node: str
    phase: Phase


class NodePromoted(_Event, frozen=True):
    """A node moved up: from the redundancy list or the wait list into `phase`, or down to spare."""

    node: str
    phase: Phase


class NodeDeparted(_Event, frozen=True):
    """A node is in no list any more; `phase` is where it stood."""

    node: str
    phase: Phase
    cause: Cause
    reason: str

    @property
    def audience(self) -> Audience:
        """Members hear of members."""
        return Audience.MEMBERS if self.phase is Phase.MEMBER else Audience.NOBODY


class NodeDraining(_Event, frozen=True):
    """A member will leave within `seconds`."""

    node: str
    seconds: float
    reason: str

    @property
    def audience(self) -> Audience:
        """Members hear of members."""
        return Audience.MEMBERS


class WaitingChanged(_Event, frozen=True):
    """The wait list changed enough for members to be told, see `rounds.wait_key`."""

    count: int

    @property
    def audience(self) -> Audience:
        """All members may want to meet again."""
        return Audience.MEMBERS


class RoundOpened(_Event, frozen=True):
    """A new round gathers."""

    round: int


class RoundCompleted(_Event, frozen=True):
    """The round is complete: its participants are members and have ranks."""

    round: int
    world_size: int

    @property
    def audience(self) -> Audience:
        """All participants have waited for this."""
        return Audience.MEMBERS


class RunClosed(_Event, frozen=True):
    """The run is closed."""

    by: str
    reason: str

    @property
    def audience(self) -> Audience:
        """Nobody will get a rank any more."""
        return Audience.EVERYONE


class RunReopened(_Event, frozen=True):
    """A new incarnation begins; every node of the last one has departed."""

    incarnation: int
    by: str


LawEvent: TypeAlias = (
    NodeJoined
    | NodePromoted
    | NodeDeparted
    | NodeDraining
    | WaitingChanged
    | RoundOpened
    | RoundCompleted
    | RunClosed
    | RunReopened
)

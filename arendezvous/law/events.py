"""The events of the law: what applying an operation brings about, and whose view that changes."""

from __future__ import annotations

import enum
from typing import ClassVar, Final, TypeAlias

import msgspec

from arendezvous.law.rules import Json
from arendezvous.law.state import Cause, Phase


class Audience(enum.Enum):
    """Names whose view an event changes, besides that of the node it names."""

    NOBODY = "nobody"
    MEMBERS = "members"  #: the participants of the round
    EVERYONE = "everyone"  #: every node in any list


NOBODY: Final = Audience.NOBODY  # see `state.GATHERING`


class _Event(msgspec.Struct, frozen=True, tag=True, gc=False):
    @property
    def name(self) -> str:
        """Its kind, as wires and logs name it."""
        return str(self.__struct_config__.tag)

    audience: ClassVar[Audience] = NOBODY  # whose view this changes, besides that of the node it names


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
    def audience(self) -> Audience:  # type: ignore[override]  # members hear of members
        """Tells the members if it was one."""
        return Audience.MEMBERS if self.phase is Phase.MEMBER else Audience.NOBODY


class MemberDraining(_Event, frozen=True, tag="NodeDraining"):
    """A member will leave within `seconds`."""

    audience = Audience.MEMBERS  # members hear of members
    node: str
    seconds: float
    reason: str


class WaitingChanged(_Event, frozen=True):
    """The wait list changed enough for members to be told, see `rounds.wait_key`."""

    audience = Audience.MEMBERS  # they may want to meet again
    count: int


class RoundOpened(_Event, frozen=True):
    """A new round gathers."""

    round: int


class RoundCompleted(_Event, frozen=True):
    """The round is complete: its participants are members and have ranks."""

    audience = Audience.MEMBERS  # they have waited for this
    round: int
    world_size: int


class RunClosed(_Event, frozen=True):
    """The run is closed."""

    audience = Audience.EVERYONE  # nobody will get a rank any more
    by: str
    reason: str


class RunReopened(_Event, frozen=True):
    """A new incarnation begins; every node of the last one has departed."""

    incarnation: int
    by: str


class BarrierPassed(_Event, frozen=True):
    """All members have come to a barrier; those that wait for it are told, and nobody else."""

    barrier: str
    turn: int


class RoundBroken(_Event, frozen=True):
    """The round is whole no more, so that those who wait at its barriers wait in vain; they are told."""

    round: int


class NodeUpdated(_Event, frozen=True):
    """A node has said what its state is, as JSON; told to those who look on, and to no other node."""

    node: str
    state: Json


class MemberStalled(_Event, frozen=True, tag="NodeStalled"):
    """A member's progress has stood still at `step` for so many seconds; told once until it goes on."""

    audience = Audience.MEMBERS  # members hear of members
    node: str
    step: int
    seconds: float


class RunResized(_Event, frozen=True):
    """Rounds have other numbers of nodes by decision; 0: those that the nodes agreed on."""

    audience = Audience.MEMBERS  # they may be too many now
    min_nodes: int
    max_nodes: int
    role: str
    by: str
    reason: str


class RunHeld(_Event, frozen=True):
    """No round completes for `seconds`; None: until the run is released."""

    by: str
    reason: str
    seconds: float | None


class RunReleased(_Event, frozen=True):
    """Rounds complete again; `by` is empty if the time of the hold was over."""

    by: str


class NodeQuarantined(_Event, frozen=True):
    """A node, or all nodes with one label, are kept out for `seconds`; None: until they are pardoned."""

    target: str
    is_label: bool
    by: str
    reason: str
    seconds: float | None


class NodePardoned(_Event, frozen=True):
    """A node, or the nodes with one label, may come in again."""

    target: str
    is_label: bool
    by: str


LawEvent: TypeAlias = (
    NodeJoined
    | NodePromoted
    | NodeDeparted
    | MemberDraining
    | WaitingChanged
    | RoundOpened
    | RoundCompleted
    | RunClosed
    | RunReopened
    | BarrierPassed
    | RoundBroken
    | NodeUpdated
    | MemberStalled
    | RunResized
    | RunHeld
    | RunReleased
    | NodeQuarantined
    | NodePardoned
)

"""Defines what the law is about: nodes, the settings of a run, its state, and what one node sees of it.

Everything here is data. Times are seconds on the clock of whoever owns the state (see `machine.py`); what
leaves the owner carries ages and durations instead, so that two machines' clocks never meet in a comparison.
"""

from __future__ import annotations

import enum
import math
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, get_args

import msgspec

from arendezvous.errors import RendezvousSettingsError, RendezvousTypeError
from arendezvous.law.checks import check_id, check_text, not_seconds
from arendezvous.law.decisions import Decisions, Sizes
from arendezvous.law.rules import NO_RULES, NOTHING, Brought, RoundRules, Share

if TYPE_CHECKING:
    from arendezvous.law.barriers import Barriers, Steps
    from arendezvous.law.facts import Opinions
    from arendezvous.law.rosters import RoundRoster
    from arendezvous.law.seats import Seats

MAX_ADDRESSES: Final = 16
MAX_WORLD: Final = 1_000_000
MAX_ROUND: Final = 2**53 - 1  # rounds and incarnations: what any JSON reader takes for an integer
MAX_NOTICES: Final = 64  # carried by a view, so that it stays of constant size
MAX_DEPARTED: Final = 1024  # remembered, so that who left is told when it next speaks

RankPolicyName: TypeAlias = Literal["sticky", "natural", "given", "topology"]
RANK_POLICY_NAMES: Final[tuple[str, ...]] = get_args(RankPolicyName)
Reopening: TypeAlias = Literal["", "ended", "failed"]


class NodeDesc(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A node, as it describes itself when it joins.

    Attributes:
        name: Unique in its run. Whoever comes back under the same name is the same node.
        addr: The address it goes by, a host name or an IP address.
        pid: Its process id.
        local_id: Tells the nodes of one process apart.
        addresses: Where other nodes may reach it, the best first; empty means `addr` alone.
        label: Where it stands in the topology, for instance a rack; used by the rank policy ``topology``.
        rank: The rank it asks for; used, and needed, by the rank policy ``given`` only.
        brings: What it brings to the round; None: nothing.
    """

    name: str
    addr: str = ""
    pid: int = 0
    local_id: int = 0
    addresses: tuple[str, ...] = ()
    label: str = ""
    rank: int | None = None
    brings: Brought | None = None

    def __post_init__(self) -> None:
        check_id("node name", self.name)
        check_text("node address", self.addr)
        check_text("topology label", self.label)
        if not (type(self.pid) is type(self.local_id) is int):
            raise RendezvousTypeError.of("pid and local_id", (self.pid, self.local_id), "whole numbers")
        if not isinstance(self.addresses, tuple):
            raise RendezvousTypeError.of("addresses", self.addresses, "a tuple of addresses")
        if len(self.addresses) > MAX_ADDRESSES:
            expected = f"a list of at most {MAX_ADDRESSES} addresses"
            raise RendezvousSettingsError.of("addresses", self.addresses, expected)
        for address in self.addresses:
            check_text("node address", address)
        if self.rank is not None and not isinstance(self.rank, int):
            raise RendezvousTypeError.of("rank", self.rank, "a whole number, or None")
        if self.rank is not None and not 0 <= self.rank < MAX_WORLD:
            raise RendezvousSettingsError.of("rank", self.rank, f"from 0 to {MAX_WORLD - 1}, or None")

    @property
    def brought(self) -> Brought:
        """Tells what it brings to the round, be it nothing."""
        return NOTHING if self.brings is None else self.brings


class RunSettings(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Holds what all nodes of a run agree on; the first brings it, the others must ask for the same.

    Attributes:
        min_nodes: A round never completes with fewer.
        max_nodes: A round completes at once with as many; who comes later is a spare.
        last_call: Seconds that a round with at least `min_nodes` waits for more.
        keep_alive_interval: Seconds between two heartbeats of a node.
        keep_alive_max_attempt: A node that misses so many heartbeats in a row is dead.
        disconnect_grace: Seconds that a node whose connection broke has to come back.
        rank_policy: One of `RANK_POLICY_NAMES`.
        rules: What else they agree on; None: nothing.
    """

    min_nodes: int
    max_nodes: int
    last_call: float = 30.0
    keep_alive_interval: float = 5.0
    keep_alive_max_attempt: int = 3
    disconnect_grace: float = 1.0
    rank_policy: str = "sticky"
    rules: RoundRules | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.min_nodes <= MAX_WORLD:
            raise RendezvousSettingsError.of("min_nodes", self.min_nodes, f"from 1 to {MAX_WORLD}")
        if not self.min_nodes <= self.max_nodes <= MAX_WORLD:
            allowed = f"from min_nodes ({self.min_nodes}) to {MAX_WORLD}"
            raise RendezvousSettingsError.of("max_nodes", self.max_nodes, allowed)
        if not 0 <= self.last_call < math.inf:
            raise not_seconds("last_call", self.last_call, zero=True)
        if not 0 < self.keep_alive_interval < math.inf:
            raise not_seconds("keep_alive_interval", self.keep_alive_interval)
        if not 1 <= self.keep_alive_max_attempt <= 1000:
            attempts = self.keep_alive_max_attempt
            raise RendezvousSettingsError.of("keep_alive_max_attempt", attempts, "from 1 to 1000")
        if not 0 <= self.disconnect_grace < math.inf:
            raise not_seconds("disconnect_grace", self.disconnect_grace, zero=True)
        if self.rank_policy not in RANK_POLICY_NAMES:
            expected = f"one of {', '.join(RANK_POLICY_NAMES)}"
            raise RendezvousSettingsError.of("rank_policy", self.rank_policy, expected)
        if self.rules is not None:
            self.rules.check_numbers(self.min_nodes, self.max_nodes, self.rank_policy)

    @property
    def agreed(self) -> RoundRules:
        """Tells what else the nodes agree on, be it nothing."""
        return NO_RULES if self.rules is None else self.rules

    @property
    def expiry(self) -> float:
        """Seconds of silence after which a node is dead."""
        return self.keep_alive_interval * self.keep_alive_max_attempt


class Phase(enum.Enum):
    """Names where a node stands in its run."""

    GATHERING = "gathering"  #: participant of a round that is not complete yet
    MEMBER = "member"  #: participant of the complete round; has a rank
    WAITING = "waiting"  #: on the wait list, for the next round
    REDUNDANT = "spare"  #: on the redundancy list, as torch calls it
    CLAIMING = "claiming"  #: in no list yet: its name, or its given rank, has a holder that may be alive
    GONE = "gone"  #: in no list


# Up to Python 3.11 a name of its own is found eight times faster than a member in its enum.
GATHERING: Final = Phase.GATHERING
MEMBER: Final = Phase.MEMBER
WAITING: Final = Phase.WAITING
REDUNDANT: Final = Phase.REDUNDANT
GONE: Final = Phase.GONE


class Cause(enum.Enum):
    """Why a node is in no list any more."""

    LEFT = "left"
    FINISHED = "finished"  #: left because its work succeeded
    FAILED = "failed"  #: left because its work failed
    CANCELLED = "cancelled"  #: its join was cancelled or timed out
    DRAINED = "drained"  #: its drain is over
    CONNECTION_LOST = "connection lost"  #: the connection broke, and did not come back within the grace
    NO_HEARTBEAT = "no heartbeat"
    REOPENED = "reopened"  #: the run was closed and opened anew
    SUPERSEDED = "superseded"  #: a round without it was formed, or its name taken over, while it was away
    NAME_TAKEN = "name taken"  #: refused: its name has a holder that is alive
    RANK_TAKEN = "rank taken"  #: refused: its given rank has a holder that is alive
    QUARANTINED = "quarantined"  #: kept out of the run by decision
    DISAGREED = "disagreed"  #: it and others brought different values of a fact that must be the same

    @property
    def is_loss(self) -> bool:
        """Whether the node was lost, rather than leaving by decision."""
        return self in (Cause.CONNECTION_LOST, Cause.NO_HEARTBEAT)

    @property
    def is_refusal(self) -> bool:
        """Whether the node never was in the run, as what it asked for has a holder."""
        return self in (Cause.NAME_TAKEN, Cause.RANK_TAKEN)


class Departure(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Why a node went, and when.

    Attributes:
        cause: Why, for programs.
        reason: Why, in the node's own words or the law's; may be empty.
        round: In which round it went.
        at: When, on the owner's clock.
    """

    cause: Cause
    reason: str
    round: int
    at: float


class Closure(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Tells who closed the run, why, and when.

    Attributes:
        by: The node or person who closed it.
        reason: Why; may be empty.
        at: When, on the owner's clock.
        by_node: Whether a node of the run closed it, or the law, and no operator.
    """

    by: str
    reason: str
    at: float
    by_node: bool = False


class PendingDrain(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A member's announced departure: at the latest at `until`, on the owner's clock."""

    until: float
    reason: str


class Notice(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Something that members of the current round must hear.

    Attributes:
        number: Counts the notices of a run from 1; tells a member which of them are new to it.
        node: Whom it is about.
        cause: Why it is gone; None: it is draining, or stalls.
        reason: In the node's own words, or the law's.
        seconds: For a drain: how long the node may still take, counted from the announcement. For a stall:
            how long its progress had stood still.
        step: The step at which it stalls; None: it does not.
    """

    number: int
    node: str
    cause: Cause | None
    reason: str
    seconds: float = 0.0
    step: int | None = None


class NodeRecord(msgspec.Struct, gc=False):
    """Keeps what is known of a node that is in some list."""

    desc: NodeDesc  # the node's description of itself
    arrival: int  # counts the arrivals of a run; smaller is older
    since: float  # when it entered the list it is in, on the owner's clock
    state: bytes = b""  # what it has said of itself last, as JSON; empty: nothing


WaitKey: TypeAlias = tuple[bool, int]


@dataclass(slots=True, eq=False, repr=False)
class RendezvousState:
    """The state of one run, changed in place by `machine.apply` alone."""

    settings: RunSettings  # what the nodes agreed on
    # until when members of a round that was forgotten may come back; no round completes before that. None:
    # nothing was forgotten, as far as is known
    recovery: float | None = None
    # the least number of the first round if a recovery ends in which nobody has told of an earlier one: two
    # lives of a server then do not form two rounds of one number
    first_round: int = 0
    records: bool = False  # whether the owner records a round before it completes, see `Record`
    ready: bool = False  # whether the round could complete, and waits to be recorded; never without `records`
    incarnation: int = 1  # counts how often the run was opened, from 1
    round: int = 0  # counts the rounds, from 0; it rises over incarnations too
    complete: bool = False  # whether the round is complete
    deadline: float | None = None  # when the last call is over; None while there is none
    # until when nobody takes the place of a suspect: members of a round that was restored from its record
    # come back until then
    reserved: float = -math.inf
    closed: Closure | None = None  # who closed this incarnation and why; None while it is open
    participants: dict[str, int] = field(default_factory=dict)  # node to rank; -1 until the round is complete
    wait_list: dict[str, None] = field(default_factory=dict)  # who waits for the next round, oldest first
    redundancy_list: OrderedDict[str, None] = field(default_factory=OrderedDict)  # spares, oldest first
    nodes: dict[str, NodeRecord] = field(default_factory=dict)  # the record of each node in these lists
    # node to its last sign of life, the oldest first
    last_heartbeats: OrderedDict[str, float] = field(default_factory=OrderedDict)
    # nodes whose connection broke, to the end of their grace, the earliest first
    suspects: OrderedDict[str, float] = field(default_factory=OrderedDict)
    drains: dict[str, PendingDrain] = field(default_factory=dict)  # members that announced their departure
    # a heap of (until, node) over `drains`; an entry may be stale
    drain_queue: list[tuple[float, str]] = field(default_factory=list)
    ranks: dict[str, int] = field(default_factory=dict)  # in the last complete round, of who is still here
    newcomers: int = 0  # how many participants of an incomplete round are not in `ranks`
    returning: int = 0  # how many nodes of the wait list are in `ranks`
    given: dict[int, str] = field(default_factory=dict)  # given rank to who is to have it; none that drains
    # given rank to the spares that wait for its holder to go, oldest first; never empty ones
    rivals: dict[int, dict[str, None]] = field(default_factory=dict)
    world_size: int = 0  # of the complete round; it does not shrink when a member is lost
    unfinished: int = -1  # members of the latest round that have not left as finished; -1: there was none
    digest: str = ""  # of the complete round's member list, in rank order
    rank0: tuple[str, ...] = ()  # addresses of rank 0 of the complete round
    # the latest notices of the complete round
    notices: deque[Notice] = field(default_factory=partial(deque, maxlen=MAX_NOTICES))
    notice_count: int = 0  # how many notices there have been in this run
    # who went, and why; the latest `MAX_DEPARTED`
    departed: OrderedDict[str, Departure] = field(default_factory=OrderedDict)
    arrivals: int = 0  # how many nodes ever arrived
    round_floor: int = 0  # the lowest number that a round may still get: some node knows the one before
    incarnation_floor: int = 0  # the latest incarnation that some node knows, if that is later than ours
    told_waiting: WaitKey = (False, 0)  # what members were last told of the wait list, see `rounds.wait_key`
    revision: int = 0  # rises with every change that somebody may see
    barriers: Barriers | None = None  # of the present round, or an earlier one; None: nobody came to any
    steps: Steps | None = None  # how far the members' work has come; None: nobody has said
    decisions: Decisions = field(default_factory=Decisions)  # of operators, or the law
    seats: Seats | None = None  # who could be seated, where a run has roles or units; None: it has neither
    opinions: Opinions | None = None  # on facts that must be the same; None: there are no such facts
    roster: RoundRoster | None = None  # the members of the latest complete round; None: there was none

    def phase(self, node: str) -> Phase:
        """Tells where `node` stands; `Phase.GONE` if it is in no list."""
        if node in self.participants:
            return MEMBER if self.complete else GATHERING
        if node in self.wait_list:
            return WAITING
        return REDUNDANT if node in self.redundancy_list else GONE

    @property
    def min_nodes(self) -> int:
        """How many nodes a round has at least: as they agreed, unless it was resized."""
        return self.decisions.min_nodes or self.settings.min_nodes

    @property
    def max_nodes(self) -> int:
        """How many nodes a round has at most, likewise."""
        return self.decisions.max_nodes or self.settings.max_nodes

    @property
    def room(self) -> int:
        """How many more nodes the next round can take, if everybody stays who does not drain.

        Less than 0 if it was resized and there are too many members.
        """
        staying = len(self.participants) - len(self.drains)
        most = self.decisions.max_nodes or self.settings.max_nodes  # saves a call a join
        return most - staying - len(self.wait_list)

    @property
    def ended(self) -> bool:
        """Whether the work is done: all members of the latest round left as finished, and nobody is here."""
        return self.unfinished == 0 and not self.nodes


class NodeView(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Tells one node all that it needs to know; of constant size, whatever the number of nodes.

    Attributes:
        node: Whose view this is.
        revision: Of the state that it was taken from.
        incarnation: How often the run was opened.
        round: Of the phase; for a node that is not a member, the latest round that any node knows.
        phase: Where the node stands.
        rank: The node's rank; -1 unless it is a member.
        world_size: Of the complete round; 0 unless the node is a member.
        digest: Of the complete round's member list; the same for all members.
        rank0: Addresses of rank 0; empty unless the node is a member.
        waiting: How many nodes are on the wait list.
        notices: What happened to other members since the round was completed; the latest `MAX_NOTICES`.
        closed: Who closed the run and why; None while it is open.
        gone: Why the node is in no list, if it ever was in one and that is remembered.
        now: The owner's clock when the view was taken, to turn `at` into ages; 0 where there is no `at`.
        share: What there is to say of its place besides its rank; None: nothing, or it is no member.
        excess: Why the members of the round are to meet again: it has more than it may have since it was
            resized. None: it has not.
    """

    node: str
    revision: int
    incarnation: int
    round: int
    phase: Phase
    rank: int = -1
    world_size: int = 0
    digest: str = ""
    rank0: tuple[str, ...] = ()
    waiting: int = 0
    notices: tuple[Notice, ...] = ()
    closed: Closure | None = None
    gone: Departure | None = None
    now: float = 0.0
    share: Share | None = None
    excess: Sizes | None = None

    @property
    def generation(self) -> tuple[int, int]:
        """Incarnation and round; it never falls."""
        return (self.incarnation, self.round)

    @property
    def known(self) -> tuple[int, int]:
        """The latest round that has been complete, as far as this view of a node in the run tells."""
        return (self.incarnation, self.round - (self.phase is GATHERING))

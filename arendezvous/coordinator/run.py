"""One run at the coordinator: its state, who has to be told what has changed, and what is recorded of it."""

from __future__ import annotations

import hashlib
import hmac
import math
from asyncio import TimerHandle
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeAlias

import msgspec

from arendezvous.errors import RendezvousError
from arendezvous.law import image
from arendezvous.law.events import Audience, LawEvent, MemberDraining, NodeDeparted
from arendezvous.law.lists import forget_departed
from arendezvous.law.machine import view
from arendezvous.law.operations import Decided, Join, Record
from arendezvous.law.state import Cause, Departure, NodeView, Phase, RendezvousState

Listener: TypeAlias = Callable[[NodeView], object]

HISTORY: Final = 256
UNPROVEN: Final = bytes(128)  # longer than any secret that a process may have
_HASHER: Final = hashlib.blake2b(digest_size=16, person=b"arendezvous")
LATEST: Final = 16  # events and departures that are remembered of a run in any case
Outcome: TypeAlias = NodeView | RendezvousError
Answer: TypeAlias = Callable[[Outcome], None]


@dataclass(eq=False, slots=True)
class Attachment:
    """A process's presence at the coordinator, for one node: one per connection.

    Attributes:
        run: The run; its own until the node has come into one.
        node: The node's name, which another process may have.
        secret: Tells the processes that come under one name apart.
        listener: Is called with each new view of the node.
        claim: The join that waits for another to give up the node's name or rank; None: there is none.
        holder: The one that it waits for; empty without a claim.
        gone: Why the node is in no list, if the law does not know: its claim was refused, or another process
            has its name; None: ask the law.
    """

    run: Run
    node: str
    secret: bytes
    listener: Listener
    claim: Join | None = None
    holder: str = ""
    gone: Departure | None = None

    @property
    def is_stranger(self) -> bool:
        """Whether another process has the node's name."""
        return self.run.secrets.get(self.node, self.secret) != self.secret

    @property
    def phase(self) -> Phase:
        """Tells where the node stands in its run."""
        if self.claim is not None:
            return Phase.CLAIMING
        return Phase.GONE if self.is_stranger else self.run.state.phase(self.node)

    def view(self, now: float) -> NodeView:
        """Takes the node's view, as far as this process is the node."""
        state = self.run.state
        if self.claim is None and not self.is_stranger:
            seen = view(state, self.node, now)
            if self.gone is None or seen.phase is not Phase.GONE:
                return seen
        phase, gone = self.phase, self.gone
        if phase is Phase.GONE and gone is None:
            gone = Departure(Cause.SUPERSEDED, "another process has its name", state.round, now)
        return msgspec.structs.replace(view(state, "", now), node=self.node, phase=phase, gone=gone)


@dataclass(eq=False, slots=True)
class Run:
    """One run: its state, who is attached to it, and what has happened lately.

    Attributes:
        attachments: Node to the connection that hears of its views.
        secrets: Node to the secret of the process that has its name; forgotten when the node departs.
        proofs: Of members that were restored from a record, and have not come back: what their secrets are
            known by.
        claims: Holder of a name or rank to the attachments whose joins wait for it, in order; never empty.
        dirty: Nodes that are to be told their view.
        owed: Members that are to be sent what is agreed with their next view, see `RunImages`.
        due: By when, on the coordinator's clock, the law has something to do; infinite: there is nothing.
            It may be too early, but never too late.
        history: The latest events, each with the time at which it happened.
        counted: How many nodes the coordinator's budget has counted; `large` and `remembered` are its, too.
        remembered: Bytes that are counted for `history`, and for what is remembered of nodes that departed.
        large: Bytes that are counted for nodes with many addresses, beyond those of every node.
        happened: The number of the latest event. Numbers go up by one, and are not used again for a run that
            is forgotten and comes back.
        recalled: The same of those that happened before this server began; 0: none is known.
    """

    run_id: str
    state: RendezvousState
    attachments: dict[str, Attachment] = field(default_factory=dict)
    secrets: dict[str, bytes] = field(default_factory=dict)
    proofs: dict[str, bytes] = field(default_factory=dict)
    claims: dict[str, list[Attachment]] = field(default_factory=dict)
    dirty: set[str] = field(default_factory=set)
    owed: set[str] = field(default_factory=set)
    history: deque[tuple[float, LawEvent]] = field(default_factory=lambda: deque(maxlen=HISTORY))
    happened: int = 0
    recalled: int = 0
    counted: int = 0
    remembered: int = 0
    large: dict[str, int] = field(default_factory=dict)
    timer: TimerHandle | None = None
    due: float = math.inf
    _spread: tuple[object, ...] = ()
    _answered: list[str] = field(default_factory=list)

    def prove(self, node: str, secret: bytes) -> None:
        """Has the process with `secret` be the restored member `node`, if it was that before."""
        if self.is_proven(node, secret):
            self.secrets[node] = secret
            del self.proofs[node]

    def is_proven(self, node: str, secret: bytes) -> bool:
        """Whether `secret` is that of the restored member `node`, which has not come back yet."""
        known = self.proofs.get(node)
        return known is not None and matches(known, secret)

    def proof_of(self, node: str) -> bytes:
        """Tells what the secret of a node is known by once it is recorded; empty if it has none."""
        known = self.proofs.get(node)
        if known is not None:
            return known
        secret = self.secrets.get(node)
        return b"" if secret is None else proof(secret)

    def forget(self) -> None:
        """Keeps only the latest of what has happened, and of who departed."""
        while len(self.history) > LATEST:
            self.history.popleft()
        forget_departed(self.state, LATEST)

    def spread(self, audience: Audience) -> None:
        """Makes all of an audience dirty; many events in a row with the same one cost as much as one."""
        state = self.state
        nodes = state.participants if audience is Audience.MEMBERS else state.nodes
        spread = (audience, state.incarnation, state.round, state.complete)
        if spread == self._spread:  # whoever came since was made dirty by its own event
            self.dirty.update(node for node in self._answered if node in nodes)
        else:
            self.dirty.update(nodes)
            self._spread = spread
        self._answered.clear()

    def answered(self, node: str) -> None:
        """The node has been told its view, as an answer."""
        self.dirty.discard(node)
        if not self.dirty:
            self._spread = ()
            self._answered.clear()
        elif self._spread:
            self._answered.append(node)

    def take_dirty(self) -> set[str]:
        """Hands over who is to be told; nobody is dirty then."""
        dirty, self.dirty = self.dirty, set()
        self._spread = ()
        self._answered.clear()
        return dirty


def matches(known: bytes, secret: bytes) -> bool:
    """Whether `known` is the proof of a secret, or what is recorded of it."""
    return len(known) >= image.PROOF and hmac.compare_digest(known, proof(secret)[: len(known)])


def proof(secret: bytes) -> bytes:
    """Makes what is recorded of a secret: enough to know it again, and not to show it."""
    digest = _HASHER.copy()  # 0.2 microseconds; making one takes 0.35
    digest.update(secret)
    return digest.digest()


class Decision(NamedTuple):
    """Asks for something that has to be recorded first, and says whom to answer."""

    operation: Decided
    answer: Answer


@dataclass(eq=False, slots=True)
class MemberRows:
    """Holds what has become of members of a complete round: departures and drains, by their names."""

    departed: dict[str, image.DepartureRow] = field(default_factory=dict, kw_only=True)
    drains: dict[str, image.DrainRow] = field(default_factory=dict, kw_only=True)


@dataclass(eq=False, slots=True)
class RunRows(MemberRows):
    """The rows of one run: those that are recorded, and those that are in no batch yet."""

    generation: tuple[int, int] | None = None  # of the recorded roster; None: there is none
    roster: str = ""  # names its rows
    names: frozenset[str] = frozenset()  # its members
    members: image.Roster | None = None  # what the recorded head has of it
    has_rows: bool = False  # whether there are rows of its name
    decisions: list[Decision] = field(default_factory=list)  # to be recorded, in order
    garbage: list[bytes] = field(default_factory=list)  # prefixes of rows to be removed with the next batch
    is_stale: bool = False  # whether the recorded head, or the one under way, is another than it should be
    vain: int = 0  # how many rounds without progress the recorded head counts
    sent: SentRows | None = None  # what is in the batch under way; None: nothing is

    def keeps(self, node: str) -> bool:
        """Whether `node` is in the roster that is recorded, or in the one that is being recorded."""
        return node in self.names or (self.sent is not None and node in self.sent.names)


class SentRows(NamedTuple):
    """Holds what a batch that is under way has of a run."""

    run: Run
    departed: dict[str, image.DepartureRow]
    drains: dict[str, image.DrainRow]
    garbage: list[bytes]  # prefixes that it removes
    head: image.RunHead | None  # None: it is not changed
    decisions: list[Decision]  # what the head has been changed by
    record: Record | None  # what completes the round of the head; None: no round is to be completed
    names: frozenset[str]  # its members


def note_member(
    rows: MemberRows, state: RendezvousState, event: NodeDeparted | MemberDraining, clocks: image.Clocks
) -> None:
    """Adds the row of a member that departs or drains."""
    numbers = (one.number for one in reversed(state.notices) if one.node == event.node)
    number = next(numbers, state.notice_count)  # the last to go takes the notices along
    if isinstance(event, MemberDraining):
        row = image.DrainRow(event.seconds, event.reason, number, clocks.boot, clocks.uptime)
        rows.drains[event.node] = row
        return
    if event.phase is not Phase.MEMBER:
        number = 0
    gone = image.DepartureRow(event.cause, event.reason, state.round, number, clocks.wall)
    rows.departed[event.node] = gone

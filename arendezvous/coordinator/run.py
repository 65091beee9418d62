"""One run at the coordinator: its state, who has to be told what has changed, and what is recorded of it."""

from __future__ import annotations

import hashlib
import hmac
import math
from asyncio import TimerHandle
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple, TypeAlias

import msgspec

from arendezvous.errors import RendezvousError
from arendezvous.law import image
from arendezvous.law.events import Audience, LawEvent
from arendezvous.law.lists import forget_departed
from arendezvous.law.machine import view
from arendezvous.law.operations import Decided, Join, Record
from arendezvous.law.state import Cause, Departure, NodeView, Phase, RendezvousState, RunSettings

Listener: TypeAlias = Callable[[NodeView], object]

HISTORY: Final = 256
UNPROVEN: Final = bytes(128)  # longer than any secret that a process may have
LATEST: Final = 16  # events and departures that are remembered of a run in any case
Outcome: TypeAlias = NodeView | RendezvousError
Answer: TypeAlias = Callable[[Outcome], None]


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

    __slots__ = ("claim", "gone", "holder", "listener", "node", "run", "secret")

    def __init__(self, run: Run, node: str, secret: bytes, listener: Listener) -> None:
        self.run = run
        self.node = node
        self.secret = secret
        self.listener = listener
        self.claim: Join | None = None
        self.holder = ""
        self.gone: Departure | None = None

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
    """

    __slots__ = (
        "_answered", "_spread", "attachments", "claims", "counted", "dirty", "due", "happened", "history",
        "large", "owed", "proofs", "remembered", "run_id", "secrets", "state", "timer",
    )  # fmt: skip

    def __init__(self, run_id: str, settings: RunSettings) -> None:
        self.run_id = run_id
        self.state = RendezvousState(settings)
        self.attachments: dict[str, Attachment] = {}
        self.secrets: dict[str, bytes] = {}
        self.proofs: dict[str, bytes] = {}
        self.claims: dict[str, list[Attachment]] = {}
        self.dirty: set[str] = set()
        self.owed: set[str] = set()
        self.history: deque[tuple[float, LawEvent]] = deque(maxlen=HISTORY)
        self.happened = 0
        self.counted = 0
        self.remembered = 0
        self.large: dict[str, int] = {}
        self.timer: TimerHandle | None = None
        self.due = math.inf
        self._spread: tuple[object, ...] = ()
        self._answered: list[str] = []

    def restore(self, state: RendezvousState, proofs: dict[str, bytes]) -> None:
        """Takes a state over that was restored from a record; see the attribute `proofs`."""
        self.state, self.proofs = state, proofs
        self.secrets = dict.fromkeys(proofs, UNPROVEN)

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
    """Whether `known` is the proof of a secret."""
    return hmac.compare_digest(known, proof(secret))


def proof(secret: bytes) -> bytes:
    """Makes what is recorded of a secret: enough to know it again, and not to show it."""
    return hashlib.blake2b(secret, digest_size=16, person=b"arendezvous").digest()


class Decision(NamedTuple):
    """Asks for something that has to be recorded first, and says whom to answer."""

    operation: Decided
    answer: Answer


class RunRows:
    """The rows of one run: those that are recorded, and those that are to be.

    Attributes:
        generation: Incarnation and round of the recorded roster; None: there is none.
        roster: The name of its rows.
        names: Its members.
        departed: Departures of these that are in no batch yet.
        drains: Their drains, likewise.
        decisions: What has been decided, likewise, in order.
        garbage: Prefixes of rows that count no more, to be removed with the next batch.
        is_stale: Whether the recorded head, or the one under way, is another than it should be.
        vain: How many rounds without progress the recorded head counts.
        sent: What is in the batch under way; None: nothing is.
    """

    __slots__ = (
        "decisions", "departed", "drains", "garbage", "generation", "is_stale", "names", "roster", "sent",
        "vain",
    )  # fmt: skip

    def __init__(self) -> None:
        self.generation: tuple[int, int] | None = None
        self.roster = ""
        self.names: frozenset[str] = frozenset()
        self.departed: dict[str, image.DepartureRow] = {}
        self.drains: dict[str, image.DrainRow] = {}
        self.decisions: list[Decision] = []
        self.garbage: list[bytes] = []
        self.is_stale = False
        self.vain = 0
        self.sent: SentRows | None = None

    def keeps(self, node: str) -> bool:
        """Whether `node` is in the roster that is recorded, or in the one that is being recorded."""
        return node in self.names or (self.sent is not None and node in self.sent.names)


class SentRows(NamedTuple):
    """Holds what a batch that is under way has of a run.

    Attributes:
        run: The run.
        departed: Departures.
        drains: Drains.
        garbage: Prefixes that it removes.
        head: The head; None: it is not changed.
        decisions: What the head has been changed by.
        record: What completes the round of the head; None: no round is to be completed.
        names: The members of that round.
    """

    run: Run
    departed: dict[str, image.DepartureRow]
    drains: dict[str, image.DrainRow]
    garbage: list[bytes]
    head: image.RunHead | None
    decisions: list[Decision]
    record: Record | None
    names: frozenset[str]


class RecordedRun(NamedTuple):
    """Holds a run as it is recorded.

    Attributes:
        run: The run, without a state.
        state: Its state.
        proofs: See `Run.restore`.
        idle: For how many seconds nobody has been in it, by the wall clock: good for forgetting it, no more.
    """

    run: Run
    state: RendezvousState
    proofs: dict[str, bytes]
    idle: float

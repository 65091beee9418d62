"""The bodies of the rendezvous over HTTP: JSON objects with names, for people and programs alike.

They are derived from the law's own types (`named`), with their names and meanings, but for times, which are
always ages or remaining times in seconds. In what the server is sent, an unknown field is an error.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Final

import msgspec
from msgspec import structs

from arendezvous.law import operations as ops
from arendezvous.law.barriers import Met
from arendezvous.law.events import LawEvent
from arendezvous.law.rosters import Member, MemberGone
from arendezvous.law.rules import Json
from arendezvous.law.state import NodeDesc, NodeView
from arendezvous.law.status import RunStatus, explained
from arendezvous.law.words import event_text
from arendezvous.wire.http import named
from arendezvous.wire.http.named import Codec, OperationCodec
from arendezvous.wire.native.messages import RunSummary

SESSION_HEADER: Final = "Arendezvous-Session"
KEEPS_HEADER: Final = "Arendezvous-Keeps"  # of a node that keeps what it is entrusted with
FORMER_HEADER: Final = "Arendezvous-Former-Session"  # of a member, at a server that was started anew


class _Body(msgspec.Struct, frozen=True, kw_only=True):
    pass


class JoinedBody(_Body, frozen=True):
    """The answer to a join.

    Attributes:
        session: The secret by which this node speaks for itself, in the header ``Arendezvous-Session``.
        server: Which start of the server this is.
        expiry: Seconds of silence after which the node is dead.
        view: Where the node stands.
    """

    node: str
    session: str
    server: str
    expiry: float
    view: NodeView

    def __repr__(self) -> str:
        return f"JoinedBody(node={self.node!r}, server={self.server!r}, view={self.view!r})"


class ImageBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Carries what is agreed of a run, or a part of it: to keep, or for a server that has forgotten.

    Attributes:
        image: Opaque, but for those who know `arendezvous.law.image.RunImage`; in Base64.
        adds: Of what a node is to keep: whether it is kept besides what came before, and brought before that;
            else it replaces it.
    """

    image: bytes
    adds: bool = False


class _OfRoundBody(_Body, frozen=True, kw_only=True):
    """Says something of a round.

    Attributes:
        incarnation: How often the run had been opened.
        round: The number of the round.
    """

    incarnation: int
    round: int


class MembersBody(_OfRoundBody, frozen=True, kw_only=True):
    """The remaining members of a complete round, in rank order."""

    members: tuple[NodeDesc, ...]


class RosterBody(_OfRoundBody, frozen=True, kw_only=True):
    """Some of the members of a round as it was completed, in rank order.

    Attributes:
        world_size: How many members it had.
        first: The rank of the first of these.
        next: What goes into ``?first=`` to get those that follow; null if there are no more.
        gone: Who of them has gone since.
    """

    world_size: int
    first: int
    members: tuple[Member, ...]
    next: int | None
    gone: tuple[MemberGone, ...] = ()


class GoneBody(_OfRoundBody, frozen=True, kw_only=True):
    """Lists who of the members of a round has gone since it was completed, by rank."""

    gone: tuple[MemberGone, ...]


class RunsBody(_Body, frozen=True):
    """Some of the runs that the server keeps, by their ids.

    Attributes:
        next: What goes into ``?after=`` to get those that follow; null if there are no more.
        only: The one run that the token is good for, whether or not there is such a run; null: all runs.
        read_only: Whether the token is good for looking alone.
        version: Of the server.
    """

    runs: tuple[RunSummary, ...]
    next: str | None
    only: str | None = None
    read_only: bool = False
    version: str = ""


class ComerBody(_Body, frozen=True):
    """A node that came to a round, and how many seconds after the first."""

    node: str
    after: float


class RoundBody(_OfRoundBody, frozen=True, kw_only=True):
    """One round of a run. All times are ages in seconds.

    Attributes:
        world_size: Of the complete round; 0 while nodes come to it.
        began: When its first node came; of a run with members, the first of these.
        completed: When it was complete; null if it is not.
        ended: When it was over, as the next one gathered, the work was done or the run was closed; null if
            it is not.
        late: The nodes that came last, the latest first.
        why: What ended it, or will, in words; empty if nothing has.
    """

    world_size: int
    began: float
    completed: float | None
    ended: float | None
    late: tuple[ComerBody, ...] = ()
    why: str = ""


class RoundsBody(_Body, frozen=True):
    """The latest rounds of a run, the oldest first."""

    rounds: tuple[RoundBody, ...]


class RunBody(RunStatus, frozen=True, kw_only=True):
    """The whole of a run at one moment; see `arendezvous.law.status.RunStatus`.

    Attributes:
        explain: The same in words.
        last_event: The id of the latest event that is in it: whoever goes on with the run's events sends it
            as ``Last-Event-ID``, or as ``?after=``.
    """

    explain: tuple[str, ...] = ()
    last_event: str = ""

    @classmethod
    def of(cls, status: RunStatus, last_event: str) -> RunBody:
        """Says what `status` says."""
        return cls(**structs.asdict(status), explain=tuple(explained(status)), last_event=last_event)

    @property
    def status(self) -> RunStatus:
        """The status alone."""
        return RunStatus(**{name: getattr(self, name) for name in RunStatus.__struct_fields__})


class ForgottenBody(_Body, frozen=True):
    """A run that the server has forgotten, as nobody was in it any more."""

    run_id: str


class EventBody(_Body, frozen=True):
    """Something that happened to a run.

    Attributes:
        number: Counts the events of the run.
        type: The name of its kind: ``NodeJoined``, ``RoundCompleted`` and so on.
        at: When, in seconds of the server's clock, for differences alone.
        age: How many seconds ago that was when it was sent.
        text: What happened in words.
        data: What happened, by name; depends on the type, see `arendezvous.law.events.LawEvent`.
    """

    run_id: str
    number: int
    type: str
    at: float
    age: float
    text: str
    data: dict[str, Any]

    @classmethod
    def of(cls, run_id: str, number: int, at: float, now: float, event: LawEvent) -> EventBody:
        """Says what `event` says."""
        text, data = event_text(event), structs.asdict(event)
        return cls(run_id=run_id, number=number, type=event.name, at=at, age=now - at, text=text, data=data)

    @property
    def event(self) -> LawEvent:
        """The law's own event. Raises `msgspec.ValidationError` if it is of a kind of a later version."""
        happened: LawEvent = msgspec.convert({"type": self.type, **self.data}, LawEvent)
        return happened


class StateBody(_Body, frozen=True):
    """Tells what a node says of its state; a stream begins with those that are known."""

    run_id: str
    node: str
    state: Json


class ResetBody(_Body, frozen=True):
    """The stream has a gap, as its reader was too slow or away for too long: ask for the whole state again.

    Attributes:
        missed: How many events are left out; null if that is not known.
    """

    missed: int | None


class GenerationRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A round of a run: how often the run was opened, and the number of the round."""

    incarnation: int
    round: int


_SHARED: Final = tuple(field for field in structs.fields(ops.Join) if field.name not in ("desc", "after"))
_HELD: Final = named.make_twin(
    "Held",
    "The rank that a member holds, for a server that may have forgotten the run.",
    [
        named.twin_field(field)
        for field in structs.fields(ops.Resume)
        if field.name not in ops.Join.__struct_fields__
    ],
    request=True,
)
_JOIN_DOC: Final = """A node wants a rank.

    Attributes:
        settings: What it takes the run's settings to be.
        after: The round that it held a rank in before; null if none.
        held: It is a member already, and shows its rank to a server that may not know; null if it is not.
    """
_REJOIN_DOC: Final = "A node of this session wants a rank in a later round than `after`, or shows its rank."


class JoinCodec:
    """Turns a `Join` or a `Resume` into one JSON object and back.

    Its fields are those of a join, with the description of the node as ``node``, or none if `again`.
    What a resume has beyond these, the rank that the node holds, is in ``held``.
    """

    def __init__(self, *, again: bool) -> None:
        node = named.twin_of(NodeDesc, request=True)
        name, doc = ("Rejoin", _REJOIN_DOC) if again else ("Join", _JOIN_DOC)
        fields = [
            ("node", node | None, None) if again else ("node", node),
            *(named.twin_field(field, request=True) for field in _SHARED),
            ("after", GenerationRequest | None, None),
            ("held", _HELD | None, None),
        ]
        self.twin = named.make_twin(name, doc, fields, request=True)  # what the JSON looks like, for a schema
        self._decode = named.decoder_of(self.twin)

    def encode(self, operation: ops.Join | ops.Resume) -> bytes:
        """Encodes an operation."""
        fields = structs.asdict(operation)
        fields["node"] = fields.pop("desc")
        after = fields.pop("after", ops.NOTHING_KNOWN)
        fields["after"] = None if after == ops.NOTHING_KNOWN else GenerationRequest(*after)
        fields["held"] = operation if isinstance(operation, ops.Resume) else None
        return named.encode_twin(named.to_twin(SimpleNamespace(**fields), self.twin))

    def decode(self, data: bytes, own: NodeDesc | None = None) -> ops.Join | ops.Resume:
        """Decodes an operation, of `own` if it does not say of which node. Raises as `Codec.decode`."""
        fields = structs.asdict(self._decode(data))
        node, after, held = fields.pop("node"), fields.pop("after"), fields.pop("held")
        fields["desc"] = own if node is None else node
        if held is not None:
            return named.to_law(SimpleNamespace(**fields, **structs.asdict(held)), ops.Resume)
        fields["after"] = ops.NOTHING_KNOWN if after is None else (after.incarnation, after.round)
        return named.to_law(SimpleNamespace(**fields), ops.Join)


JOIN: Final = JoinCodec(again=False)
REJOIN: Final = JoinCodec(again=True)
KEEP_ALIVE: Final = OperationCodec(ops.KeepAlive)
LEAVE: Final = OperationCodec(ops.Leave)
DRAIN: Final = OperationCodec(ops.Drain)
CLOSE: Final = OperationCodec(ops.Close)
REOPEN: Final = OperationCodec(ops.Reopen)
ARRIVE: Final = OperationCodec(ops.Arrive, "name")
WITHDRAW: Final = OperationCodec(ops.Withdraw, "name")
UPDATE: Final = OperationCodec(ops.Update)
PROGRESS: Final = OperationCodec(ops.Progress)
RESIZE: Final = OperationCodec(ops.Resize)
HOLD: Final = OperationCodec(ops.Hold)
RELEASE: Final = OperationCodec(ops.Release)
QUARANTINE: Final = OperationCodec(ops.Quarantine)
PARDON: Final = OperationCodec(ops.Pardon)
_DECIDING: Final[tuple[OperationCodec[Any], ...]] = (CLOSE, REOPEN, RESIZE, HOLD, RELEASE, QUARANTINE, PARDON)
DECISIONS: Final = {codec.kind: (codec.kind.__name__.lower(), codec) for codec in _DECIDING}
"""The last step of the path at which something is decided of a run, and its body."""

VIEW: Final = Codec(NodeView, view=lambda view: view)
JOINED: Final = Codec(JoinedBody, view=lambda joined: joined.view)
IMAGE: Final = Codec(ImageBody, request=True)
MEMBERS: Final = Codec(MembersBody)
ROSTER: Final = Codec(RosterBody)
ENTRY: Final = Codec(Member)
GONE: Final = Codec(MemberGone)
GONE_MEMBERS: Final = Codec(GoneBody)
RUN: Final = Codec(RunBody)
RUNS: Final = Codec(RunsBody)
ROUNDS: Final = Codec(RoundsBody)
SUMMARY: Final = Codec(RunSummary)
MET: Final = Codec(Met)
STATE: Final = Codec(StateBody)

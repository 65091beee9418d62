"""Native sessions: the frames and messages between a node and our server.

A connection begins with `PREFACE`, whose first byte is no opcode of the TCPStore protocol, so that both can
share a port. After it both sides send frames: a big-endian ``u32`` length, then one MessagePack value of that
length. A message is an array whose first item is its type, validated on decoding.

The client speaks first: `Hello`, and without waiting for the answer its requests, each with an id of its
choice, greater than 0. The server answers each request with exactly one `Ack`, `View` or other reply with
that id, or `Failed`; in order, but for a `Join` that completes no round yet: its answer comes when there is
news for the node, or a fraction of a second later; and for an `Arrive`, which is answered by `Standing` once
the barrier has passed, however long that takes. And it sends a `View` with id 0 whenever the view of a
node that joined in this session changes. A session that asked to `WatchRun` is also sent `Happened`, with id
0, for all that happens to the run, and one that asked to `WatchRuns` likewise `RunsChanged`. A `Failed` with
id 0 concerns the whole connection, which the server then closes. One of them, `moved`, is the answer of a
server that does not lead: its data say who does, and clients that know it go there; to others it is an error
that says the same.

Both sides speak the lower of the versions in `Hello` and `Welcome`; `versions` says what is in which. From
version 2 on a server that keeps no record entrusts what is agreed to a few members (`Entrusted`), and
they tell it to the next server (`Recall`), once that has said by its `Welcome` that it is another one.
"""

from __future__ import annotations

import functools
import inspect
import struct
from collections.abc import Callable
from typing import Any, Final, TypeAlias, cast

import msgspec

from arendezvous import errors
from arendezvous.errors import RendezvousConnectionError, RendezvousError
from arendezvous.law import operations as ops
from arendezvous.law.barriers import Met
from arendezvous.law.events import LawEvent
from arendezvous.law.image import RunImage
from arendezvous.law.rosters import Member, MemberGone
from arendezvous.law.state import NodeDesc, NodeView
from arendezvous.law.status import RunStatus
from arendezvous.wire.foreign import decode_foreign

PREFACE: Final = b"\xa4AR1"
VERSION: Final = 2
KEEPING: Final = 2  # the first version that knows `Entrusted` and `Recall`
HEADER: Final = 4
MAX_HELLO: Final = 4 * 1024  # what a server reads of one who has not said hello: the longest has half of it
MAX_REQUEST: Final = 64 * 1024  # what a server reads: a join with 16 addresses is far smaller
VERSION_2_OPERATIONS: Final[frozenset[type]] = frozenset({  # those that version 1 does not know
    ops.Arrive, ops.Withdraw, ops.Update, ops.Progress,
    ops.Resize, ops.Hold, ops.Release, ops.Quarantine, ops.Pardon,
})  # fmt: skip
MOVED: Final = "MovedToLeader"  # the kind of the failure that says who leads
MAX_REPLY: Final = 256 * 1024 * 1024  # what a client reads: the status of a run of 1,000,000 nodes


class FrameError(RendezvousConnectionError):
    """The peer sent something that is no frame of this protocol; the connection must be closed."""


class _Message(msgspec.Struct, frozen=True, array_like=True, tag=True, gc=False):
    @property
    def name(self) -> str:
        """Its kind, as the wire names it."""
        return str(self.__struct_config__.tag)


class _Numbered(_Message, frozen=True):
    id: int  # of the request; 0: none, it is a push, or concerns the connection


class _OfRound(_Numbered, frozen=True):
    incarnation: int
    round: int


class Hello(_Message, frozen=True):
    """The client's first message."""

    version: int  # of the protocol that it speaks
    run_id: str = ""  # the run that the session is about; empty for a session that only looks at the server
    # owns the nodes that join in this session: 16 random bytes of the client's choice, the same on every
    # connection of one client. A session whose nodes never join only looks
    secret: bytes = b""
    token: str = ""  # the bearer token, where the server asks for one
    # the URL of a server that could not be reached; one that does not lead answers once it knows another
    # leader than that, instead of naming it. Empty: whoever leads is to be named at once
    lost: str = ""
    # for how many seconds the client has been without a server: it may be sent to a leader that was elected
    # meanwhile, be it the one that it could not reach
    without: float = 0.0

    def __repr__(self) -> str:
        return f"Hello(version={self.version}, run_id={self.run_id!r})"

    def __rich_repr__(self) -> Any:
        yield repr(self)


class Propose(_Numbered, frozen=True):
    """Asks for an operation to be applied; answered by `Ack` or `View`, at a barrier by `Standing`."""

    operation: ops.Operation


class GetStatus(_Numbered, frozen=True):
    """Asks for the status of the session's run; answered by `Status`."""


class GetMembers(_OfRound, frozen=True):
    """Asks for the members of a complete round; answered by `Members`."""


class GetRuns(_Numbered, frozen=True):
    """Asks which runs the server keeps; answered by `Runs`."""


class WatchRuns(_Numbered, frozen=True):
    """Asks to be told what becomes of the runs from now on; answered by `Runs`, from version 2 on."""


class WatchRun(_Numbered, frozen=True, tag="Watch"):
    """Asks to be told all that happens to the run from now on; answered by `Status`, the state before it."""


class Recall(_Numbered, frozen=True):
    """Tells a server what was agreed of the run, as another has entrusted to a node; answered by `Ack`."""

    node: str  # the node, which is in the run
    image: RunImage  # what was agreed, or a part of it


class GetRoster(_OfRound, frozen=True):
    """Asks for the members of a round as it was completed; answered by `RosterPage`."""

    first: int = 0  # the rank with which the page begins: 0, and then what the pages before have


class GetGone(_OfRound, frozen=True):
    """Asks who of the members of a round has gone since; answered by `Gone`."""


class Welcome(_Message, frozen=True):
    """The server's answer to `Hello`: the version it will speak, and who it is."""

    version: int  # of the protocol, at most the client's
    server: str  # drawn anew each time a server starts
    # whether one of the nodes hosts it; if that node ends, another one at the same address may take its place
    embedded: bool = False


class Ack(_Numbered, frozen=True):
    """The operation was applied and changed nothing that the node can see."""


class View(_Numbered, frozen=True):
    """The node's view: an answer, or with id 0 a push."""

    view: NodeView


class Entrusted(View, frozen=True):
    """The node's view, and what is agreed of its run: to be kept, and told a server that does not know it."""

    image: bytes  # a `RunImage` in MessagePack, or a part of one
    adds: bool = False  # whether it is a part, to be told before earlier ones; else it replaces those


class Status(_Numbered, frozen=True):
    """The status of the session's run."""

    status: RunStatus


class Members(_Numbered, frozen=True):
    """The members of a round, in rank order."""

    members: tuple[NodeDesc, ...]


class RosterPage(_Numbered, frozen=True):
    """Lists some of the members of a round, by rank, and says how many there are in all."""

    size: int
    members: tuple[Member, ...]


class Gone(_Numbered, frozen=True):
    """Tells who of the members of a round has gone, by rank."""

    gone: tuple[MemberGone, ...]


class RunSummary(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One line about a run; see `RunStatus` for what has ``ended``.

    Attributes:
        incarnation: How often it was opened.
        round: The current round.
        participants: Nodes that are in the round.
        waiting: Nodes that wait for the next one.
        spares: Nodes that are ready to step in.
        ended: Whether the work is done.
        lost: Members of the complete round that are gone, otherwise than as finished, and nodes whose
            connection is broken.
        waited: For how many seconds the first of those that wait for a rank has waited; 0: nobody waits.
    """

    run_id: str
    incarnation: int
    round: int
    complete: bool
    closed: bool
    participants: int
    waiting: int
    spares: int
    ended: bool = False
    lost: int = 0
    waited: float = 0.0


class Runs(_Numbered, frozen=True):
    """The runs that the server keeps."""

    runs: tuple[RunSummary, ...]


class RunsChanged(_Numbered, frozen=True):
    """Tells a session that watches all runs which are not as they were; a push, so its id is 0."""

    runs: tuple[RunSummary, ...]  # runs that are new, or have changed
    forgotten: tuple[str, ...] = ()  # the ids of those that the server has forgotten


class Happened(_Numbered, frozen=True):
    """Tells what has happened to the run that the session watches, in order; a push, so its id is 0."""

    at: float  # when the latest of them happened, in seconds of the server's clock, for differences alone
    events: tuple[LawEvent, ...]  # what happened
    missed: int = 0  # how many events before these were left out, as the session read too slowly


class Standing(_Numbered, frozen=True):
    """Tells how a barrier stands: passed, or else the member has withdrawn from it."""

    met: Met


class Failed(_Numbered, frozen=True):
    """The request was refused and nothing changed; `kind` is the name of the error's class."""

    kind: str
    message: str
    data: dict[str, Any] = {}


Request: TypeAlias = (
    Propose | GetStatus | GetMembers | GetRuns | WatchRuns | WatchRun | Recall | GetRoster | GetGone
)
ClientMessage: TypeAlias = Hello | Request
ServerMessage: TypeAlias = (
    Welcome | Ack | View | Entrusted | Status | Members | Runs | RunsChanged | Happened | Failed | Standing
    | RosterPage | Gone
)  # fmt: skip

_length_at: Final = struct.Struct(">I").unpack_from
_encoder: Final = msgspec.msgpack.Encoder()
_decode_client: Final = msgspec.msgpack.Decoder(ClientMessage).decode
_decode_server: Final = msgspec.msgpack.Decoder(ServerMessage).decode


def encode(message: msgspec.Struct) -> bytes:
    """Encodes one message, of a session or of a login, as a frame."""
    payload = _encoder.encode(message)
    return len(payload).to_bytes(HEADER, "big") + payload


def decode_client(frame: bytes | memoryview) -> ClientMessage:
    """Decodes what a client sent. Raises `FrameError` if it is no message of a client."""
    return cast(ClientMessage, decode_foreign(_decode_client, frame, _refused))


def decode_server(frame: bytes | memoryview) -> ServerMessage:
    """Decodes what a server sent. Raises `FrameError` if it is no message of a server."""
    return cast(ServerMessage, decode_foreign(_decode_server, frame, _refused))


def _refused(said: str) -> FrameError:
    return FrameError(f"not a valid message: {said}")


class FrameParser:
    """Cuts a stream of bytes into frames; sans-I/O.

    A frame of more than `limit` bytes is refused before any of it is stored; the first one, if `first` is
    given, of more than that.
    """

    __slots__ = ("_buffer", "_limit", "_next", "kept")

    def __init__(self, limit: int, *, first: int | None = None) -> None:
        self._limit = limit  # of the frames after the next one
        self._next = limit if first is None else first  # of the next frame
        self._buffer = bytearray()  # what has come of it
        self.kept = 0  # bytes of a frame that is not complete

    def feed(self, data: bytes) -> list[bytes]:
        """Takes bytes; returns the frames that are complete now, without their lengths.

        Raises `FrameError` if one is too long, or empty; the parser must not be fed any more.
        """
        buffer = self._buffer
        if buffer:
            buffer += data
            data = bytes(buffer) if self._complete(buffer) else b""
            if not data:
                self.kept = len(buffer)
                return []
            buffer.clear()
        frames = []
        position, end = 0, len(data)
        while end - position >= HEADER:
            start = position + HEADER
            stop = start + _length_at(data, position)[0]
            if not start < stop <= start + self._next:
                raise FrameError(f"a frame of {stop - start} bytes; allowed are 1 to {self._next}")
            if stop > end:
                break
            frames.append(data[start:stop])
            position = stop
            self._next = self._limit
        if position < end:
            buffer += data[position:] if position else data
        self.kept = end - position
        return frames

    def _complete(self, buffer: bytearray) -> bool:
        """Tells whether at least one frame is whole, or the length is one to be refused."""
        if len(buffer) < HEADER:
            return False
        length = int.from_bytes(buffer[:HEADER], "big")
        return not 0 < length <= self._next or len(buffer) >= HEADER + length


def failure(request: int, error: RendezvousError) -> Failed:
    """Turns an error into the message that carries it."""
    return Failed(request, type(error).__name__, error.message, error.data)


def moved(url: str) -> Failed:
    """Makes the answer of a server that does not lead; `url` is the leader's, ``tcp://host:port``."""
    return Failed(0, MOVED, f"this server does not lead: connect to {url}, which does", {"url": url})


def leader_of(message: ServerMessage) -> str | None:
    """Returns the leader's URL if `message` is what `moved` makes; None for any other."""
    if not isinstance(message, Failed) or message.kind != MOVED:
        return None
    url = message.data.get("url")
    return url if isinstance(url, str) else None


def error_class(name: object) -> type[RendezvousError] | None:
    """Finds the class of an error of ours by its name; None: there is none."""
    kind = getattr(errors, name, None) if isinstance(name, str) else None
    return kind if isinstance(kind, type) and issubclass(kind, RendezvousError) else None


def error_of(failed: Failed) -> RendezvousError:
    """Builds the error that `failed` carries; one of an unknown kind becomes a `RendezvousError`."""
    kind = error_class(failed.kind)
    if kind is None:
        return RendezvousError(f"{failed.kind}: {failed.message}")
    try:
        data = decode_foreign(_data_decoder(kind.__name__), failed.data, ValueError)
        error: RendezvousError = kind(failed.message, **data)
    except (TypeError, ValueError):  # a later version has other data
        return kind(failed.message)
    return error


@functools.cache
def _data_decoder(kind: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Makes what checks the data of an error: each of its attributes has the type that its class says."""
    parameters = inspect.signature(getattr(errors, kind), eval_str=True).parameters.values()
    named = {one.name: one.annotation for one in parameters if one.kind is one.KEYWORD_ONLY}
    if not named:
        return dict
    made = msgspec.defstruct(f"{kind}Data", [(name, of, msgspec.UNSET) for name, of in named.items()])

    def decode(data: dict[str, Any]) -> dict[str, Any]:
        found = msgspec.structs.asdict(msgspec.convert(data, made))
        return {name: value for name, value in found.items() if value is not msgspec.UNSET}

    return decode

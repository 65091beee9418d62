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
from arendezvous.law.barriers import Met
from arendezvous.law.events import LawEvent
from arendezvous.law.image import RunImage
from arendezvous.law.operations import Arrive, Operation, Progress, Update, Withdraw
from arendezvous.law.orders import Hold, Pardon, Quarantine, Release, Resize
from arendezvous.law.rosters import Member, MemberGone
from arendezvous.law.state import NodeDesc, NodeView
from arendezvous.law.status import RunStatus
from arendezvous.wire.foreign import decode_foreign

PREFACE: Final = b"\xa4AR1"
VERSION: Final = 2
KEEPING: Final = 2  # the first version that knows `Entrusted` and `Recall`
HEADER: Final = 4
MAX_HELLO: Final = (
    4 * 1024
)  # what a server reads of one who has not said hello: a longest hello is half of it
MAX_REQUEST: Final = 64 * 1024  # what a server reads: a join with 16 addresses is far smaller
VERSION_2_OPERATIONS: Final[frozenset[type]] = frozenset({  # those that version 1 does not know
    Arrive, Withdraw, Update, Progress, Resize, Hold, Release, Quarantine, Pardon,
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


class Hello(_Message, frozen=True):
    """The client's first message.

    Attributes:
        version: Of the protocol that it speaks.
        run_id: The run that the session is about; empty for a session that only looks at the server.
        secret: Owns the nodes that join in this session: 16 random bytes of the client's choice, the same on
            every connection of one client. A session whose nodes never join only looks.
        token: The bearer token, where the server asks for one.
        lost: The URL of a server that could not be reached; one that does not lead answers once it knows
            another leader than that, instead of naming it. Empty: whoever leads is to be named at once.
    """

    version: int
    run_id: str = ""
    secret: bytes = b""
    token: str = ""
    lost: str = ""

    def __repr__(self) -> str:
        return f"Hello(version={self.version}, run_id={self.run_id!r})"

    def __rich_repr__(self) -> Any:
        yield repr(self)


class Propose(_Message, frozen=True):
    """Asks for an operation to be applied; answered by `Ack` or `View`, at a barrier by `Standing`."""

    id: int
    operation: Operation


class GetStatus(_Message, frozen=True):
    """Asks for the status of the session's run; answered by `Status`."""

    id: int


class GetMembers(_Message, frozen=True):
    """Asks for the members of a complete round; answered by `Members`."""

    id: int
    incarnation: int
    round: int


class GetRuns(_Message, frozen=True):
    """Asks which runs the server keeps; answered by `Runs`."""

    id: int


class WatchRuns(_Message, frozen=True):
    """Asks to be told what becomes of the runs from now on; answered by `Runs`, from version 2 on."""

    id: int


class WatchRun(_Message, frozen=True, tag="Watch"):
    """Asks to be told all that happens to the run from now on; answered by `Status`, the state before it."""

    id: int


class Recall(_Message, frozen=True):
    """Tells a server what was agreed of the run, as another one has entrusted to a node; answered by `Ack`.

    Attributes:
        id: Of the request.
        node: The node, which is in the run.
        image: What was agreed, or a part of it.
    """

    id: int
    node: str
    image: RunImage


class GetRoster(_Message, frozen=True):
    """Asks for the members of a round as it was completed; answered by `RosterPage`.

    Attributes:
        id: Of the request.
        incarnation: Of the round.
        round: Its number.
        first: The rank with which the page begins: 0, and then what the pages before have.
    """

    id: int
    incarnation: int
    round: int
    first: int = 0


class GetGone(_Message, frozen=True):
    """Asks who of the members of a round has gone since; answered by `Gone`."""

    id: int
    incarnation: int
    round: int


class Welcome(_Message, frozen=True):
    """The server's answer to `Hello`: the version it will speak, and who it is.

    Attributes:
        version: Of the protocol, at most the client's.
        server: Drawn anew each time a server starts.
        embedded: Whether one of the nodes hosts it; if that node ends, another one at the same address may
            take its place.
    """

    version: int
    server: str
    embedded: bool = False


class Ack(_Message, frozen=True):
    """The operation was applied and changed nothing that the node can see."""

    id: int


class View(_Message, frozen=True):
    """The node's view: an answer, or with id 0 a push."""

    id: int
    view: NodeView


class Entrusted(View, frozen=True):
    """The node's view, and what is agreed of its run: to be kept, and told a server that does not know it.

    Attributes:
        image: A `RunImage` in MessagePack, or a part of one.
        adds: Whether it is a part, to be told before what was entrusted earlier; else it replaces that.
    """

    image: bytes
    adds: bool = False


class Status(_Message, frozen=True):
    """The status of the session's run."""

    id: int
    status: RunStatus


class Members(_Message, frozen=True):
    """The members of a round, in rank order."""

    id: int
    members: tuple[NodeDesc, ...]


class RosterPage(_Message, frozen=True):
    """Lists some of the members of a round, by rank, and says how many there are in all."""

    id: int
    size: int
    members: tuple[Member, ...]


class Gone(_Message, frozen=True):
    """Tells who of the members of a round has gone, by rank."""

    id: int
    gone: tuple[MemberGone, ...]


class RunSummary(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One line about a run; see `RunStatus` for what has ``ended``.

    Attributes:
        run_id: The run.
        incarnation: How often it was opened.
        round: The current round.
        complete: Whether that round is complete.
        closed: Whether the run is closed.
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


class Runs(_Message, frozen=True):
    """The runs that the server keeps."""

    id: int
    runs: tuple[RunSummary, ...]


class RunsChanged(_Message, frozen=True):
    """Tells which runs are not as they were, to a session that watches all of them; a push, so its id is 0.

    Attributes:
        id: 0.
        runs: Runs that are new, or have changed.
        forgotten: The ids of those that the server has forgotten.
    """

    id: int
    runs: tuple[RunSummary, ...]
    forgotten: tuple[str, ...] = ()


class Happened(_Message, frozen=True):
    """Tells what has happened to the run that the session watches, in order; a push, so its id is 0.

    Attributes:
        id: 0.
        at: When the latest of them happened, in seconds of the server's clock, for differences alone.
        events: What happened.
        missed: How many events before these were left out, as the session read too slowly.
    """

    id: int
    at: float
    events: tuple[LawEvent, ...]
    missed: int = 0


class Standing(_Message, frozen=True):
    """Tells how a barrier stands: passed, or else the member has withdrawn from it."""

    id: int
    met: Met


class Failed(_Message, frozen=True):
    """The request was refused and nothing changed; `kind` is the name of the error's class."""

    id: int
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


def encode(message: ClientMessage | ServerMessage) -> bytes:
    """Encodes one message as a frame."""
    payload = _encoder.encode(message)
    return len(payload).to_bytes(HEADER, "big") + payload


def decode_client(frame: bytes | memoryview) -> ClientMessage:
    """Decodes what a client sent.

    Raises:
        FrameError: It is no message of a client.
    """
    return cast(ClientMessage, decode_foreign(_decode_client, frame, _refused))


def decode_server(frame: bytes | memoryview) -> ServerMessage:
    """Decodes what a server sent.

    Raises:
        FrameError: It is no message of a server.
    """
    return cast(ServerMessage, decode_foreign(_decode_server, frame, _refused))


def _refused(said: str) -> FrameError:
    return FrameError(f"not a valid message: {said}")


class FrameParser:
    """Cuts a stream of bytes into frames; sans-I/O.

    Args:
        limit: The longest frame accepted, in bytes; a longer one is refused before any of it is stored.
        first: The same for the first frame; None: as for the others.

    Attributes:
        kept: Bytes of a frame that is not complete.

    Its other fields:
        _limit: Of the frames after the next one.
        _next: Of the next frame.
        _buffer: What has come of it.
    """

    __slots__ = ("_buffer", "_limit", "_next", "kept")

    def __init__(self, limit: int, *, first: int | None = None) -> None:
        self._limit = limit
        self._next = limit if first is None else first
        self._buffer = bytearray()
        self.kept = 0

    def feed(self, data: bytes) -> list[bytes]:
        """Takes what has come and returns the frames that are complete now, without their lengths.

        Raises:
            FrameError: A frame is longer than the limit, or empty. The parser must not be fed any more.
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
    """Makes the answer of a server that does not lead to every native client.

    Args:
        url: The leader's, ``tcp://host:port``.
    """
    return Failed(0, MOVED, f"this server does not lead: connect to {url}, which does", {"url": url})


def leader_of(message: ServerMessage) -> str | None:
    """Returns the leader's URL if `message` is what `moved` makes; None for any other."""
    if not isinstance(message, Failed) or message.kind != MOVED:
        return None
    url = message.data.get("url")
    return url if isinstance(url, str) else None


def error_of(failed: Failed) -> RendezvousError:
    """Builds the error that `failed` carries; one of an unknown kind becomes a `RendezvousError`."""
    kind = getattr(errors, failed.kind, None)
    if not (isinstance(kind, type) and issubclass(kind, RendezvousError)):
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

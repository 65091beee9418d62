"""The bodies of the rendezvous over HTTP: JSON objects with names, for people and programs alike.

What the server sends has the names and meanings of the objects that it stands for (`RunStatus`, `NodeView`
and so on), but for times: they are always ages or remaining times in seconds. In what the server is sent, an
unknown field is an error.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from arendezvous.law.state import Cause, Phase

SESSION_HEADER: Final = "Arendezvous-Session"


class _Body(msgspec.Struct, frozen=True, kw_only=True):
    pass


class _Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class NodeBody(_Body, frozen=True):
    """A node as it describes itself; see `arendezvous.law.state.NodeDesc`."""

    name: str
    addr: str = ""
    pid: int = 0
    local_id: int = 0
    addresses: tuple[str, ...] = ()
    label: str = ""
    rank: int | None = None


class SettingsBody(_Body, frozen=True):
    """What all nodes of a run agree on; see `arendezvous.law.state.RunSettings`."""

    min_nodes: int
    max_nodes: int
    last_call: float = 30.0
    keep_alive_interval: float = 5.0
    keep_alive_max_attempt: int = 3
    disconnect_grace: float = 1.0
    rank_policy: str = "sticky"


class NodeRequest(NodeBody, frozen=True, forbid_unknown_fields=True):
    """A node as it describes itself when it joins; see `arendezvous.law.state.NodeDesc`."""


class SettingsRequest(SettingsBody, frozen=True, forbid_unknown_fields=True):
    """What a node takes the run's settings to be; see `arendezvous.law.state.RunSettings`."""


class GenerationBody(_Request, frozen=True):
    """A round of a run: how often the run was opened, and the number of the round."""

    incarnation: int
    round: int


class HeldBody(_Request, frozen=True):
    """The rank that a member holds, for a server that may have forgotten the run."""

    incarnation: int
    round: int
    rank: int
    world_size: int
    digest: str


class JoinRequest(_Request, frozen=True):
    """A node wants a rank.

    Attributes:
        node: The node.
        settings: What it takes the run's settings to be.
        after: The round that it held a rank in before; null if none.
        held: It is a member already, and shows its rank to a server that may not know; null if it is not.
    """

    node: NodeRequest
    settings: SettingsRequest
    after: GenerationBody | None = None
    held: HeldBody | None = None


class RejoinRequest(_Request, frozen=True):
    """A node of this session wants a rank in a round later than `after`, or shows the one it holds."""

    settings: SettingsRequest
    node: NodeRequest | None = None
    after: GenerationBody | None = None
    held: HeldBody | None = None


class CloseRequest(_Request, frozen=True):
    """Close the run; `incarnation` null: whatever is open."""

    by: str = ""
    reason: str = ""
    incarnation: int | None = None


class ReopenRequest(_Request, frozen=True):
    """Open the closed run anew; nothing happens if `incarnation` is over already."""

    incarnation: int
    by: str = ""


class DrainRequest(_Request, frozen=True):
    """A member will leave within `seconds`; a node that is not a member leaves at once."""

    seconds: float
    reason: str = ""


class Nothing(_Request, frozen=True):
    """An empty object, or no body at all."""


class ClosedBody(_Body, frozen=True):
    """Who closed the run, why, and how many seconds ago."""

    by: str
    reason: str
    age: float


class GoneBody(_Body, frozen=True):
    """Why a node is in no list any more, in which round it went, and how many seconds ago."""

    cause: Cause
    reason: str
    round: int
    age: float


class NoticeBody(_Body, frozen=True):
    """What happened to another member; `cause` null: it is draining. See `arendezvous.law.state.Notice`."""

    number: int
    node: str
    cause: Cause | None
    reason: str
    seconds: float


class ViewBody(_Body, frozen=True):
    """What one node needs to know; see `arendezvous.law.state.NodeView`.

    Attributes:
        revision: Differs from one view of a node to the next; goes into ``?since=``.
        rank: -1 unless the node is a member.
    """

    node: str
    revision: int
    incarnation: int
    round: int
    phase: Phase
    rank: int
    world_size: int
    digest: str
    rank0: tuple[str, ...]
    waiting: int
    notices: tuple[NoticeBody, ...] = ()
    closed: ClosedBody | None = None
    gone: GoneBody | None = None


class JoinedBody(_Body, frozen=True):
    """The answer to a join.

    Attributes:
        node: The node.
        session: The secret by which this node speaks for itself, in the header ``Arendezvous-Session``.
        server: Which start of the server this is.
        expiry: Seconds of silence after which the node is dead.
        view: Where the node stands.
    """

    node: str
    session: str
    server: str
    expiry: float
    view: ViewBody


class MembersBody(_Body, frozen=True):
    """The remaining members of a complete round, in rank order."""

    incarnation: int
    round: int
    members: tuple[NodeBody, ...]


class NodeStatusBody(_Body, frozen=True):
    """One node of a run; see `arendezvous.law.status.NodeStatus`."""

    desc: NodeBody
    phase: Phase
    rank: int
    since: float
    heartbeat_age: float
    grace_left: float | None
    drain_left: float | None
    drain_reason: str
    skew: float | None


class DepartedBody(_Body, frozen=True):
    """A node that is in the run no more: why, in which round, and how many seconds ago."""

    node: str
    cause: Cause
    reason: str
    round: int
    age: float


class RunSummaryBody(_Body, frozen=True):
    """One line about a run; see `arendezvous.wire.native.messages.RunSummary`."""

    run_id: str
    incarnation: int
    round: int
    complete: bool
    closed: bool
    participants: int
    waiting: int
    redundant: int
    ended: bool = False


class RunsBody(_Body, frozen=True):
    """Some of the runs that the server keeps, by their ids.

    Attributes:
        runs: The runs.
        next: What goes into ``?after=`` to get those that follow; null if there are no more.
        only: The one run that the token is good for, whether or not there is such a run; null: all runs.
    """

    runs: tuple[RunSummaryBody, ...]
    next: str | None
    only: str | None = None


class ForgottenBody(_Body, frozen=True):
    """A run that the server has forgotten, as nobody was in it any more."""

    run_id: str


class RunBody(_Body, frozen=True):
    """The whole of a run at one moment; see `arendezvous.law.status.RunStatus`.

    Attributes:
        explain: The same in words.
        last_event: The id of the latest event that is in it: whoever goes on with the run's events sends it
            as ``Last-Event-ID``, or as ``?after=``.
    """

    run_id: str
    settings: SettingsBody | None
    incarnation: int
    round: int
    complete: bool
    world_size: int
    digest: str
    deadline_left: float | None
    closed: ClosedBody | None
    nodes: tuple[NodeStatusBody, ...]
    departed: tuple[DepartedBody, ...]
    ended: bool = False
    explain: tuple[str, ...] = ()
    last_event: str = ""


class EventBody(_Body, frozen=True):
    """Something that happened to a run.

    Attributes:
        run_id: The run.
        number: Counts the events of the run.
        type: The name of its kind: ``NodeJoined``, ``RoundCompleted`` and so on.
        at: When, in seconds of the server's clock, for differences alone.
        age: How many seconds ago that was when it was sent.
        text: What happened in words.
        data: What happened, by name; depends on the type, see `arendezvous.law.operations.LawEvent`.
    """

    run_id: str
    number: int
    type: str
    at: float
    age: float
    text: str
    data: dict[str, Any]


class ResetBody(_Body, frozen=True):
    """The stream has a gap, as its reader was too slow or away for too long: ask for the whole state again.

    Attributes:
        missed: How many events are left out; null if that is not known.
    """

    missed: int | None

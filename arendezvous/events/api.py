"""Events as data, and their JSON.

The classes, their fields and their JSON are those of ``torch.distributed.elastic.events``, so a line written
by either side is read by the other.
"""

from __future__ import annotations

import json
from dataclasses import MISSING, asdict, dataclass, field, fields
from enum import Enum
from functools import partial
from typing import Any, ClassVar, NamedTuple, Self, TypeAlias

from arendezvous.errors import RendezvousSettingsError
from arendezvous.wire.foreign import decode_foreign

EventMetadataValue: TypeAlias = str | int | float | bool | None


class EventSource(str, Enum):  # noqa: UP042 - str() of a member is its full name, as in torch
    """Names the one who produced an event: the agent of a node, or one of its workers."""

    AGENT = "AGENT"
    WORKER = "WORKER"


class NodeState(str, Enum):  # noqa: UP042 - str() of a member is its full name, as in torch
    """Says how far a node is on its way through the rendezvous."""

    INIT = "INIT"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"


@dataclass
class _Line:
    """An event that is one line of JSON; one of its fields is one of a few words."""

    _CHOICE: ClassVar[tuple[str, type[Enum]]]

    def __str__(self) -> str:
        return self.serialize()

    @classmethod
    def deserialize(cls, data: str | Self) -> Self:
        """Reads an event from its JSON; an event is given back as it is.

        Raises:
            RendezvousSettingsError: `data` is not the JSON of an event of this kind.
        """
        return data if isinstance(data, cls) else cls(**_parse(data, cls, *cls._CHOICE))

    def serialize(self) -> str:
        """Writes the event as one line of ASCII JSON."""
        return json.dumps(asdict(self))


@dataclass
class Event(_Line):
    """Something that happened to a job.

    Attributes:
        name: What happened.
        source: Who says so.
        timestamp: When it happened, in milliseconds since the epoch; 0 if not given.
        metadata: Anything else worth keeping, by name.
    """

    _CHOICE = ("source", EventSource)

    name: str
    source: EventSource
    timestamp: int = 0
    metadata: dict[str, EventMetadataValue] = field(default_factory=dict)


@dataclass
class RdzvEvent(_Line):
    """Something that happened in a rendezvous.

    Attributes:
        name: What was going on, as ``file:function`` or ``file:name``.
        run_id: The run.
        message: What happened, in words.
        hostname: The node's host.
        pid: The node's process id.
        node_state: Where the node is on its way.
        master_endpoint: The endpoint of the rendezvous store; empty if unknown.
        rank: The node's rank; None if it has none yet.
        local_id: Tells apart the nodes of one process; None if unknown.
        error_trace: The traceback of what went wrong; empty unless the node has failed.
    """

    _CHOICE = ("node_state", NodeState)

    name: str
    run_id: str
    message: str
    hostname: str
    pid: int
    node_state: NodeState
    master_endpoint: str = ""
    rank: int | None = None
    local_id: int | None = None
    error_trace: str = ""


AnyEvent: TypeAlias = Event | RdzvEvent


class RecordedEvent(NamedTuple):
    """An event with its place in this process's record.

    Attributes:
        number: 1 for the first event that this process kept, then 2, 3 and so on without gaps.
        time: When it was recorded, in seconds since the epoch by this machine's clock: for people to read,
            not to compare between machines.
        event: What was recorded.
    """

    number: int
    time: float
    event: AnyEvent


def _parse(data: object, kind: type[_Line], choice: str, choices: type[Enum]) -> dict[str, Any]:
    wanted = f"the JSON of one {kind.__name__}"
    if not isinstance(data, str):
        raise RendezvousSettingsError.of("event", data, f"text with {wanted}")
    refused = partial(RendezvousSettingsError.of, "event", data)
    values: Any = decode_foreign(json.loads, data, lambda said: refused(f"{wanted} ({said})"))
    if not isinstance(values, dict):
        raise refused(f"{wanted}: an object")
    known = {item.name for item in fields(kind)}
    needed = {item.name for item in fields(kind) if item.default is item.default_factory is MISSING}
    if missing := sorted(needed - values.keys()):
        raise refused(f"{wanted}: it has no {', '.join(missing)}")
    if unknown := sorted(values.keys() - known):
        raise refused(f"{wanted}: it has an unknown {', '.join(unknown)}")
    chosen = values[choice]
    if not isinstance(chosen, str) or chosen not in choices.__members__:
        names = ", ".join(choices.__members__)
        raise RendezvousSettingsError.of(f"{choice} of the event", chosen, f"one of {names}")
    return {**values, choice: choices[chosen]}

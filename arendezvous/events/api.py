"""Events as data, and their JSON.

The classes, their fields and their JSON are those of ``torch.distributed.elastic.events``, so a line written
by either side is read by the other.
"""

from __future__ import annotations

import json
from dataclasses import MISSING, asdict, dataclass, field, fields
from enum import Enum
from typing import Any, NamedTuple, TypeAlias, TypeVar

from arendezvous.errors import RendezvousSettingsError
from arendezvous.wire.foreign import decode_foreign

EventMetadataValue: TypeAlias = str | int | float | bool | None

EventT = TypeVar("EventT", "Event", "RdzvEvent")


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
class Event:
    """Something that happened to a job.

    Attributes:
        name: What happened.
        source: Who says so.
        timestamp: When it happened, in milliseconds since the epoch; 0 if not given.
        metadata: Anything else worth keeping, by name.
    """

    name: str
    source: EventSource
    timestamp: int = 0
    metadata: dict[str, EventMetadataValue] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.serialize()

    @staticmethod
    def deserialize(data: str | Event) -> Event:
        """Reads an event from its JSON; an `Event` is given back as it is.

        Raises:
            RendezvousSettingsError: `data` is not the JSON of an event.
        """
        return data if isinstance(data, Event) else _parse(data, Event, "source", EventSource)

    def serialize(self) -> str:
        """Writes the event as one line of ASCII JSON."""
        return json.dumps(asdict(self))


@dataclass
class RdzvEvent:
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

    def __str__(self) -> str:
        return self.serialize()

    @staticmethod
    def deserialize(data: str | RdzvEvent) -> RdzvEvent:
        """Reads an event from its JSON; a `RdzvEvent` is given back as it is.

        Raises:
            RendezvousSettingsError: `data` is not the JSON of a rendezvous event.
        """
        return data if isinstance(data, RdzvEvent) else _parse(data, RdzvEvent, "node_state", NodeState)

    def serialize(self) -> str:
        """Writes the event as one line of ASCII JSON."""
        return json.dumps(asdict(self))


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


def _parse(data: str, kind: type[EventT], choice: str, choices: type[Enum]) -> EventT:
    wanted = f"the JSON of one {kind.__name__}"
    if not isinstance(data, str):
        raise RendezvousSettingsError.of("event", data, f"text with {wanted}")
    values: Any = decode_foreign(
        json.loads, data, lambda said: RendezvousSettingsError.of("event", data, f"{wanted} ({said})")
    )
    if not isinstance(values, dict):
        raise RendezvousSettingsError.of("event", data, f"{wanted}: an object")
    known = {item.name for item in fields(kind)}
    needed = {item.name for item in fields(kind) if item.default is item.default_factory is MISSING}
    if missing := sorted(needed - values.keys()):
        raise RendezvousSettingsError.of("event", data, f"{wanted}: it has no {', '.join(missing)}")
    if unknown := sorted(values.keys() - known):
        raise RendezvousSettingsError.of("event", data, f"{wanted}: it has an unknown {', '.join(unknown)}")
    chosen = values[choice]
    if not isinstance(chosen, str) or chosen not in choices.__members__:
        names = ", ".join(choices.__members__)
        raise RendezvousSettingsError.of(f"{choice} of the event", chosen, f"one of {names}")
    return kind(**{**values, choice: choices[chosen]})

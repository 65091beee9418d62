"""The state of a run as bytes, and back: what a new leader starts from, so that the log can be cut."""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from typing import Final

import msgspec

from arendezvous.backends.etcd.records import Refused
from arendezvous.errors import RendezvousStateError
from arendezvous.law.state import (
    MAX_NOTICES,
    Closure,
    Departure,
    Drain,
    NodeRecord,
    Notice,
    RendezvousState,
    RunSettings,
)


class SpeakerImage(msgspec.Struct, array_like=True):
    """What is known of a speaker: its last answered operation, whom that was about, and what was refused."""

    answered: int = 0
    subject: str = ""
    refused: tuple[Refused, ...] = ()


class FoldImage(msgspec.Struct, array_like=True):
    """Everything that a leader knows of a run; see `RendezvousState` for the state's attributes.

    ``last_heartbeats`` holds the nodes without a lease alone: the others live as long as their leases.
    """

    now: float
    version: int
    waiting: int
    speakers: dict[str, SpeakerImage]
    owners: dict[str, str]
    state: StateImage | None


class StateImage(msgspec.Struct, array_like=True):
    """The slots of a `RendezvousState`, under their names."""

    arrivals: int
    closed: Closure | None
    complete: bool
    deadline: float | None
    departed: list[tuple[str, Departure]]
    digest: str
    drain_queue: list[tuple[float, str]]
    drains: dict[str, Drain]
    first_round: int
    given: dict[int, str]
    incarnation: int
    incarnation_floor: int
    last_heartbeats: list[tuple[str, float]]
    newcomers: int
    nodes: dict[str, NodeRecord]
    notice_count: int
    notices: list[Notice]
    participants: dict[str, int]
    rank0: tuple[str, ...]
    ranks: dict[str, int]
    recovery: float | None
    redundancy_list: list[str]
    returning: int
    revision: int
    rivals: dict[int, list[str]]
    round: int
    round_floor: int
    settings: RunSettings
    suspects: list[tuple[str, float]]
    told_waiting: tuple[bool, int]
    unfinished: int
    wait_list: list[str]
    world_size: int


_PAIRS: Final = ("departed", "last_heartbeats", "suspects")
_LISTS: Final = ("notices", "redundancy_list", "wait_list")


def image_of(state: RendezvousState) -> StateImage:
    """Takes the image of a state."""
    slots = {name: getattr(state, name) for name in StateImage.__struct_fields__}
    slots |= {name: list(slots[name].items()) for name in _PAIRS}
    slots |= {name: list(slots[name]) for name in _LISTS}
    slots["rivals"] = {rank: list(nodes) for rank, nodes in state.rivals.items()}
    return StateImage(**slots)


def state_of(image: StateImage) -> RendezvousState:
    """Makes a state from its image."""
    state = RendezvousState(image.settings)
    for name in StateImage.__struct_fields__:
        setattr(state, name, getattr(image, name))
    state.departed = OrderedDict(image.departed)
    state.last_heartbeats = OrderedDict(image.last_heartbeats)
    state.suspects = OrderedDict(image.suspects)
    state.notices = deque(image.notices, maxlen=MAX_NOTICES)
    state.redundancy_list = OrderedDict.fromkeys(image.redundancy_list)
    state.wait_list = dict.fromkeys(image.wait_list)
    state.rivals = {rank: dict.fromkeys(nodes) for rank, nodes in image.rivals.items()}
    return state


def to_bytes(image: FoldImage) -> bytes:
    """MessagePack of an image; times may be infinite, so it is not JSON."""
    return msgspec.msgpack.encode(image)


def from_bytes(data: bytes) -> FoldImage:
    """The image in `data`.

    Raises:
        RendezvousStateError: There is none.
    """
    try:
        image = msgspec.msgpack.decode(data, type=FoldImage)
    except msgspec.DecodeError as error:
        raise RendezvousStateError(
            f"the snapshot of a run in etcd is damaged: {error}; if nobody uses the run, delete its keys"
        ) from error
    if not math.isfinite(image.now):
        raise RendezvousStateError(f"the snapshot of a run in etcd is damaged: its clock shows {image.now}")
    return image

"""What the backend ``etcd`` keeps in etcd: the layout of its keys, and the records in them.

Below ``<prefix>/runs/<run>/``:

===========================  ==================================================  ======================
key                          what it holds                                       lease
===========================  ==================================================  ======================
``intents/<speaker>``        what a node wants: its operations not yet answered  the node's
``fences/<link>``            how often the process has written its intents       the node's
``leader``                   who folds the intents                               the leader's
``ledger``                   how far the log goes, and from where                the run's
``log/<index>``              operations in the order in which they were applied  the run's
``snapshots/<index>/<n>``    the state after that entry of the log               the run's
``mail/<speaker>``           what a node needs to know: its answers, its place   the run's
``head``                     what everybody needs to know                        the run's
===========================  ==================================================  ======================

A *speaker* is ``<link>/<number>/<node>``: the process, the backend in it, and the node; the name is empty for
somebody who steers the run from outside. Records are JSON, so that ``etcdctl get`` shows them.
"""

from __future__ import annotations

from typing import Any, Final, TypeVar
from urllib.parse import quote

import msgspec

from arendezvous.errors import RendezvousStateError
from arendezvous.law.operations import Operation
from arendezvous.law.state import Closure, NodeView, Notice
from arendezvous.stores.arguments import key_to_bytes

T = TypeVar("T")

FORMAT: Final = 1


class Keys:
    """The keys of one run.

    Args:
        prefix: What all keys of this package begin with in this cluster.
        run_id: The run.
    """

    def __init__(self, prefix: str, run_id: str) -> None:
        base = key_to_bytes(f"{prefix.rstrip('/')}/runs/{quote(run_id, safe='')}/")
        self.base = base
        self.leader = base + b"leader"
        self.ledger = base + b"ledger"
        self.head = base + b"head"
        self.log = base + b"log/"
        self.snapshots = base + b"snapshots/"
        self.intents = base + b"intents/"
        self.mail = base + b"mail/"
        self.fences = base + b"fences/"

    def log_at(self, index: int) -> bytes:
        """The key of an entry of the log; such keys sort by index."""
        return self.log + b"%016d" % index

    def snapshot_at(self, index: int) -> bytes:
        """What the keys of a snapshot begin with."""
        return self.snapshots + b"%016d/" % index

    def intent_of(self, speaker: str) -> bytes:
        """Where a speaker says what it wants."""
        return self.intents + key_to_bytes(speaker)

    def mail_of(self, speaker: str) -> bytes:
        """Where it is answered."""
        return self.mail + key_to_bytes(speaker)


def node_of(speaker: str) -> str:
    """The node for which a speaker speaks; empty if it is none."""
    return speaker.split("/", 2)[2]


def check_speaker(speaker: str) -> None:
    """Raises `RendezvousStateError` unless `speaker` is the name of one."""
    if speaker.count("/") < 2 or not speaker.isprintable():
        raise RendezvousStateError(f"{speaker!r} is no speaker of a run; expected <link>/<number>/<node>")


class Said(msgspec.Struct, frozen=True, array_like=True):
    """One operation of a speaker; its operations are numbered from 1."""

    number: int
    operation: Operation


class Intent(msgspec.Struct, frozen=True):
    """What a speaker wants: those of its operations that it knows no answer to."""

    said: tuple[Said, ...]
    format: int = FORMAT


class Spoke(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """An entry of the log: a speaker said something new."""

    speaker: str
    said: tuple[Said, ...]


class Vanished(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """An entry of the log: the intent of a speaker is gone, with its lease or because it left."""

    speaker: str


class Batch(msgspec.Struct, frozen=True):
    """What was applied at one moment.

    Attributes:
        now: Seconds on the run's clock.
        inputs: In order; empty if only time had passed.
    """

    now: float
    inputs: tuple[Spoke | Vanished, ...] = ()


class Refused(msgspec.Struct, frozen=True, array_like=True):
    """Why an operation was refused: an error, by the name of its class and what it carries."""

    number: int
    kind: str
    message: str
    data: dict[str, Any]


class Letter(msgspec.Struct, frozen=True):
    """What one node needs to know.

    Attributes:
        answered: The number of its latest operation that has been applied or refused.
        view: Its view of the run. A member's lacks what is the same for all members: that is in the head.
        head: The version of the head that it belongs to.
        refused: Its latest operations that were refused.
    """

    answered: int
    view: NodeView
    head: int
    refused: tuple[Refused, ...] = ()


class Head(msgspec.Struct, frozen=True):
    """What everybody needs to know; of constant size, whatever the number of nodes.

    Attributes:
        version: Rises with every change.
        incarnation: How often the run was opened.
        round: The current round.
        complete: Whether it is complete.
        world_size: Of the complete round.
        digest: Of its member list.
        rank0: Where its rank 0 can be reached.
        waiting: How many wait for the next round, as far as members are to be told.
        notices: What happened to its members.
        closed: Who closed the run, and why.
        now: The run's clock when this was written.
    """

    version: int = 0
    incarnation: int = 1
    round: int = 0
    complete: bool = False
    world_size: int = 0
    digest: str = ""
    rank0: tuple[str, ...] = ()
    waiting: int = 0
    notices: tuple[Notice, ...] = ()
    closed: Closure | None = None
    now: float = 0.0


class Ledger(msgspec.Struct, frozen=True):
    """How far the log goes. It changes with every entry, so that it tells what a leader built on.

    Attributes:
        index: Of the log's last entry.
        writer: Who wrote that: an id of its own for every attempt to lead.
        lease: The run's lease, in hexadecimal.
        snapshot: The index of the entry after which the latest snapshot was taken; 0 if there is none.
        pieces: In how many keys that snapshot is.
        format: The format of all records of the run.
    """

    index: int
    writer: str
    lease: str
    snapshot: int = 0
    pieces: int = 0
    format: int = FORMAT


def encode(record: msgspec.Struct) -> bytes:
    """The JSON of a record."""
    return msgspec.json.encode(record)


def decode(key: bytes, value: bytes, kind: type[T]) -> T:
    """The record that `value`, found under `key`, is.

    Raises:
        RendezvousStateError: It is none, or one of a format that this version does not know.
    """
    try:
        record = msgspec.json.decode(value, type=kind)
    except msgspec.DecodeError as error:
        raise RendezvousStateError(
            f"the key {key.decode(errors='backslashreplace')!r} in etcd holds no {kind.__name__} of"
            f" arendezvous: {error}; if nobody uses the run, delete the key"
        ) from error
    found = getattr(record, "format", FORMAT)
    if found != FORMAT:
        raise RendezvousStateError(
            f"the key {key.decode(errors='backslashreplace')!r} in etcd has format {found}, and this version"
            f" of arendezvous knows format {FORMAT} alone: let all nodes of a run use the same version"
        )
    return record

"""Lists what can be asked of a store, and what it answers: small values that any listener can carry.

Keys and values are bytes here, because that is what every listener ends up with; text is the business of
`arendezvous.stores.port`.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from arendezvous.keyspace.values import Pieces


class StoreRequest(Struct, frozen=True, gc=False):
    """Asks something of a keyspace, or of a connection to it."""


class Validate(StoreRequest, frozen=True):
    """The greeting of a connection: `magic` says which protocol the peer believes it speaks."""

    magic: int


class Ping(StoreRequest, frozen=True):
    """Asks for `nonce` back, after everything that was sent before it has been handled."""

    nonce: int


class Set(StoreRequest, frozen=True):
    """Stores `value` under `key`, whatever was there."""

    key: bytes
    value: bytes


class CompareSet(StoreRequest, frozen=True):
    """Stores `desired` if the value is `expected`, or if the key is absent and `expected` is empty."""

    key: bytes
    expected: bytes
    desired: bytes


class Get(StoreRequest, frozen=True):
    """Reads a value; an absent key is answered at once, with None."""

    key: bytes


class Add(StoreRequest, frozen=True):
    """Adds `delta` to the decimal number under `key`; an absent key counts as 0."""

    key: bytes
    delta: int


class Check(StoreRequest, frozen=True):
    """Asks whether every key exists, as a key or as a queue that is not empty."""

    keys: list[bytes]
    # whether further keys follow in the next request of the client, which is then answered for all
    more: bool = False


class Wait(StoreRequest, frozen=True):
    """Asks to be told once every key, missing at this moment, has been written."""

    keys: list[bytes]
    # whether further keys follow in the next request of the client, which is one wait with this
    more: bool = False


class WaitQueue(StoreRequest, frozen=True):
    """Asks to be told when the queue `key` may hold something: look again. Not in c10d."""

    key: bytes


class NumKeys(StoreRequest, frozen=True):
    """Asks how many keys begin with `prefix`; queues do not count."""

    prefix: bytes = b""


class DeleteKey(StoreRequest, frozen=True):
    """Removes a key; the reply is the number removed, 0 or 1."""

    key: bytes


class Append(StoreRequest, frozen=True):
    """Appends `value` to what is under `key`; an absent key counts as empty."""

    key: bytes
    value: bytes


class MultiGet(StoreRequest, frozen=True):
    """Reads several values in one moment; absent ones are None."""

    keys: list[bytes]


class MultiSet(StoreRequest, frozen=True):
    """Stores several values in one moment; of a key given twice the later value stays."""

    items: list[tuple[bytes, bytes]]


class CancelWait(StoreRequest, frozen=True):
    """Gives up all waits of this client, barriers and watches too; always answered, waiting or not."""


class QueuePush(StoreRequest, frozen=True):
    """Appends `value` to the queue `key`, and wakes the one that has waited for it the longest."""

    key: bytes
    value: bytes


class QueuePop(StoreRequest, frozen=True):
    """Takes the oldest value from the queue `key`; an empty queue is answered at once."""

    key: bytes


class QueueLen(StoreRequest, frozen=True):
    """Asks how many values are in the queue `key`."""

    key: bytes


class ListKeys(StoreRequest, frozen=True):
    """Asks for all keys that begin with `prefix`, as stored; queues are not listed."""

    prefix: bytes = b""


class Barrier(StoreRequest, frozen=True):
    """Counts this arrival under `key`, and asks to be told once `world_size` have arrived."""

    key: bytes
    world_size: int


class Watch(StoreRequest, frozen=True):
    """Asks to be told once the revision of `key` is not `revision`, 0 for absent: for long polls."""

    key: bytes
    revision: int


class Reply(Struct, frozen=True, gc=False):
    """Answers a request."""


class Value(Reply, frozen=True):
    """A value, in pieces if it would have to be copied to be bytes; None if the key is absent."""

    value: bytes | Pieces | None


class Values(Reply, frozen=True):
    """The values of a MultiGet, likewise, in the order of its keys."""

    values: list[bytes | Pieces | None]


class Number(Reply, frozen=True):
    """A count, or the sum after an Add: a signed integer of 64 bits."""

    number: int


class Ready(Reply, frozen=True):
    """Whether every key of a Check exists."""

    ready: bool


class WaitDone(Reply, frozen=True):
    """A Wait or a Barrier is over."""


class WaitCancelled(Reply, frozen=True):
    """A CancelWait has been handled: no WaitDone for an earlier request will follow."""


class Popped(Reply, frozen=True):
    """The length of a queue before a QueuePop, and the value taken; None if there was none."""

    length: int
    value: bytes | None


class Keys(Reply, frozen=True):
    """All keys, as stored, in no particular order."""

    keys: list[bytes]


class Pong(Reply, frozen=True):
    """The nonce of a Ping."""

    nonce: int


class Changed(Reply, frozen=True):
    """Tells what a watched key is now: None and revision 0 if it is absent."""

    value: bytes | Pieces | None
    revision: int


def whole(reply: Reply) -> Reply:
    """The reply with its values as bytes; a long one is copied once for all who read it before it changes."""
    if isinstance(reply, Value | Changed) and isinstance(reply.value, Pieces):
        return replace(reply, value=reply.value.whole())
    if isinstance(reply, Values):
        return Values([value.whole() if isinstance(value, Pieces) else value for value in reply.values])
    return reply


ANSWERS: Final[dict[type[StoreRequest], type[Reply]]] = {
    CompareSet: Value,
    Get: Value,
    Add: Number,
    NumKeys: Number,
    DeleteKey: Number,
    QueueLen: Number,
    Check: Ready,
    Wait: WaitDone,  # once it is over, as the next two
    WaitQueue: WaitDone,
    Barrier: WaitDone,
    CancelWait: WaitCancelled,
    MultiGet: Values,
    QueuePop: Popped,
    ListKeys: Keys,
    Watch: Changed,  # once it differs
    Ping: Pong,  # by the connection
}
"""What is owed to whom asks; to all other requests no reply is."""

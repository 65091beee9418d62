"""Lists what can be asked of a store, and what it answers: small values that any listener can carry.

Keys and values are bytes here, because that is what every listener ends up with; text is the business of
`arendezvous.stores.port`. A request with no entry in the right-hand column below is owed no reply::

    Set, Append, MultiSet, QueuePush        -
    CompareSet, Get                         Value, or InPieces
    Add, NumKeys, DeleteKey, QueueLen       Number
    Check                                   Ready
    Wait, WaitQueue, Barrier                WaitDone, once it is over
    CancelWait                              WaitCancelled
    MultiGet                                Values, or ManyInPieces
    QueuePop                                Popped
    ListKeys                                Keys
    Watch                                   Changed, once it differs
    Validate                                -        (of the connection, not of the keys)
    Ping                                    Pong     (of the connection, not of the keys)
"""

from __future__ import annotations

from msgspec import Struct

from arendezvous.keyspace.values import Pieces


class Validate(Struct, frozen=True, gc=False):
    """The greeting of a connection: `magic` says which protocol the peer believes it speaks."""

    magic: int


class Ping(Struct, frozen=True, gc=False):
    """Asks for `nonce` back, after everything that was sent before it has been handled."""

    nonce: int


class Set(Struct, frozen=True, gc=False):
    """Stores `value` under `key`, whatever was there."""

    key: bytes
    value: bytes


class CompareSet(Struct, frozen=True, gc=False):
    """Stores `desired` if the value is `expected`, or if the key is absent and `expected` is empty."""

    key: bytes
    expected: bytes
    desired: bytes


class Get(Struct, frozen=True, gc=False):
    """Reads a value; an absent key is answered at once, with None."""

    key: bytes


class Add(Struct, frozen=True, gc=False):
    """Adds `delta` to the decimal number under `key`; an absent key counts as 0."""

    key: bytes
    delta: int


class Check(Struct, frozen=True, gc=False):
    """Asks whether every key exists, as a key or as a queue that is not empty.

    Attributes:
        keys: The keys.
        more: Whether further keys follow in the next request of the client, which is then answered for all.
    """

    keys: list[bytes]
    more: bool = False


class Wait(Struct, frozen=True, gc=False):
    """Asks to be told once every key, missing at this moment, has been written.

    Attributes:
        keys: The keys.
        more: Whether further keys follow in the next request of the client, which is one wait with this.
    """

    keys: list[bytes]
    more: bool = False


class WaitQueue(Struct, frozen=True, gc=False):
    """Asks to be told when the queue `key` may hold something: look again.

    The c10d protocol has no such request: its `Wait` is over as long as a key of that name exists.
    """

    key: bytes


class NumKeys(Struct, frozen=True, gc=False):
    """Asks how many keys begin with `prefix`; queues do not count."""

    prefix: bytes = b""


class DeleteKey(Struct, frozen=True, gc=False):
    """Removes a key; the reply is the number removed, 0 or 1."""

    key: bytes


class Append(Struct, frozen=True, gc=False):
    """Appends `value` to what is under `key`; an absent key counts as empty."""

    key: bytes
    value: bytes


class MultiGet(Struct, frozen=True, gc=False):
    """Reads several values in one moment; absent ones are None."""

    keys: list[bytes]


class MultiSet(Struct, frozen=True, gc=False):
    """Stores several values in one moment; of a key given twice the later value stays."""

    items: list[tuple[bytes, bytes]]


class CancelWait(Struct, frozen=True, gc=False):
    """Gives up all waits of this client, barriers and watches too; always answered, waiting or not."""


class QueuePush(Struct, frozen=True, gc=False):
    """Appends `value` to the queue `key`, and wakes the one that has waited for it the longest."""

    key: bytes
    value: bytes


class QueuePop(Struct, frozen=True, gc=False):
    """Takes the oldest value from the queue `key`; an empty queue is answered at once."""

    key: bytes


class QueueLen(Struct, frozen=True, gc=False):
    """Asks how many values are in the queue `key`."""

    key: bytes


class ListKeys(Struct, frozen=True, gc=False):
    """Asks for all keys that begin with `prefix`, as stored; queues are not listed."""

    prefix: bytes = b""


class Barrier(Struct, frozen=True, gc=False):
    """Counts this arrival under `key`, and asks to be told once `world_size` have arrived."""

    key: bytes
    world_size: int


class Watch(Struct, frozen=True, gc=False):
    """Asks to be told once the revision of `key` is not `revision`; 0 means absent.

    The c10d protocol has no such request; it is what a long-poll needs.
    """

    key: bytes
    revision: int


Request = (
    Set
    | CompareSet
    | Get
    | Add
    | Check
    | Wait
    | WaitQueue
    | NumKeys
    | DeleteKey
    | Append
    | MultiGet
    | MultiSet
    | CancelWait
    | QueuePush
    | QueuePop
    | QueueLen
    | ListKeys
    | Barrier
    | Watch
)
"""What a keyspace answers."""

ConnectionRequest = Validate | Ping
"""What the connection itself answers."""


class Value(Struct, frozen=True, gc=False):
    """A value; None if the key is absent."""

    value: bytes | None


class Values(Struct, frozen=True, gc=False):
    """The values of a MultiGet, in the order of its keys; None for an absent key."""

    values: list[bytes | None]


class InPieces(Struct, frozen=True, gc=False):
    """A `Value` that is long and has been appended to, so that it would have to be copied to be one."""

    value: Pieces


class ManyInPieces(Struct, frozen=True, gc=False):
    """`Values` of which one is like that."""

    values: list[bytes | Pieces | None]


class Number(Struct, frozen=True, gc=False):
    """A count, or the sum after an Add: a signed integer of 64 bits."""

    number: int


class Ready(Struct, frozen=True, gc=False):
    """Whether every key of a Check exists."""

    ready: bool


class WaitDone(Struct, frozen=True, gc=False):
    """A Wait or a Barrier is over."""


class WaitCancelled(Struct, frozen=True, gc=False):
    """A CancelWait has been handled: no WaitDone for an earlier request will follow."""


class Popped(Struct, frozen=True, gc=False):
    """The length of a queue before a QueuePop, and the value taken; None if there was none."""

    length: int
    value: bytes | None


class Keys(Struct, frozen=True, gc=False):
    """All keys, as stored, in no particular order."""

    keys: list[bytes]


class Pong(Struct, frozen=True, gc=False):
    """The nonce of a Ping."""

    nonce: int


class Changed(Struct, frozen=True, gc=False):
    """Tells what a watched key is now: None and revision 0 if it is absent."""

    value: bytes | Pieces | None
    revision: int


Reply = (
    Value
    | Values
    | InPieces
    | ManyInPieces
    | Number
    | Ready
    | WaitDone
    | WaitCancelled
    | Popped
    | Keys
    | Pong
    | Changed
)


def whole(reply: Reply) -> Reply:
    """The reply with its values as bytes; a long one is copied once for all who read it before it changes."""
    if isinstance(reply, InPieces):
        return Value(reply.value.whole())
    if isinstance(reply, ManyInPieces):
        return Values([value.whole() if isinstance(value, Pieces) else value for value in reply.values])
    if isinstance(reply, Changed) and isinstance(reply.value, Pieces):
        return Changed(reply.value.whole(), reply.revision)
    return reply

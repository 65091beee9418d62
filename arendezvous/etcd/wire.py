"""The messages of etcd v3's JSON gateway that this package uses, and what its error messages mean.

The gateway is described in etcd's documentation under "gRPC gateway": byte strings travel in base64, numbers
of 64 bits as text, and what has its default value is left out. Pure: no I/O.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Final, Generic, TypeVar

import msgspec

from arendezvous.wire.foreign import decode_foreign

T = TypeVar("T")
Op = dict[str, Any]
Int64 = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]

_FAN_OUT: Final = 31
"""Operations on a level of a transaction: etcd takes 128 from the root to a leaf; so 4 levels and a fence."""


class KeyValue(msgspec.Struct):
    """A key with its value, the revisions of its creation and of its last change, and its lease."""

    key: bytes = b""
    value: bytes = b""
    create_revision: Int64 = 0
    mod_revision: Int64 = 0
    lease: Int64 = 0


class Header(msgspec.Struct):
    """Comes with each reply."""

    revision: Int64 = 0


class RangeReply(msgspec.Struct):
    """Holds a range of keys."""

    header: Header = msgspec.field(default_factory=Header)
    kvs: list[KeyValue] = msgspec.field(default_factory=list)
    count: Int64 = 0


class PutReply(msgspec.Struct):
    """A key has been put."""

    header: Header = msgspec.field(default_factory=Header)


class DeleteReply(msgspec.Struct):
    """How many keys have been deleted."""

    deleted: Int64 = 0


class OpReply(msgspec.Struct):
    """The reply to one operation of a transaction; one of its fields is there."""

    response_range: RangeReply | None = None
    response_put: PutReply | None = None
    response_delete_range: DeleteReply | None = None
    response_txn: TxnReply | None = None


class TxnReply(msgspec.Struct):
    """The reply to a transaction."""

    header: Header = msgspec.field(default_factory=Header)
    succeeded: bool = False
    responses: list[OpReply] = msgspec.field(default_factory=list)

    @property
    def ranges(self) -> list[RangeReply]:
        """The replies to its range operations, in order; those of transactions inside it too."""
        found: list[RangeReply] = []
        for response in self.responses:
            if response.response_range is not None:
                found.append(response.response_range)
            elif response.response_txn is not None:
                found += response.response_txn.ranges
        return found


class LeaseReply(msgspec.Struct):
    """A lease has been granted, or renewed; `TTL` is in seconds, and 0 for a lease that has ended."""

    ID: Int64 = 0
    TTL: Int64 = 0


class LoginReply(msgspec.Struct):
    """Holds the token that a user who has been authenticated shows from then on."""

    token: str = ""

    def __repr__(self) -> str:
        return "LoginReply(token='...')"


class WatchEvent(msgspec.Struct):
    """A change of one key; `type` is left out for a put."""

    kv: KeyValue
    type: str = "PUT"


class WatchReply(msgspec.Struct):
    """One message of a watch."""

    created: bool = False
    canceled: bool = False
    compact_revision: Int64 = 0
    cancel_reason: str = ""
    events: list[WatchEvent] = msgspec.field(default_factory=list)


class StreamError(msgspec.Struct):
    """Why a stream has ended."""

    message: str = ""
    grpc_code: Int64 = 0


class Line(msgspec.Struct, Generic[T]):
    """One line of a stream: of a watch, or the only one of the keep-alive of a lease."""

    result: T | None = None
    error: StreamError | None = None


class ErrorReply(msgspec.Struct):
    """The body of a reply whose status is not 200."""

    error: str
    code: Int64 = 0


class Meaning(enum.Enum):
    """Says what an error of etcd means for the one who asked."""

    NOT_DONE = "another member, or a later try, may do it"
    IN_DOUBT = "it may have been done"
    EXPIRED = "the login is no longer valid"
    DENIED = "the user may not do that"
    REFUSED = "nobody will do it"


_NOT_DONE = (
    "etcdserver: no leader",
    "etcdserver: not leader",
    "etcdserver: too many requests",
    "raft proposal dropped",
    "etcdserver: rpc not supported for learner",
)
_EXPIRED = (
    "etcdserver: invalid auth token",
    "etcdserver: user name is empty",
    "etcdserver: revision of auth store is old",
)
_IN_DOUBT_CODES = frozenset({0, 1, 2, 4, 13, 14})  # none, cancelled, unknown, deadline, internal, unavailable
_CODE_DENIED = 7
_CODE_UNAUTHENTICATED = 16


def meaning_of(message: str, code: int) -> Meaning:
    """Returns what an error means; `code` is gRPC's."""
    if any(known in message for known in _NOT_DONE):
        return Meaning.NOT_DONE
    if code == _CODE_UNAUTHENTICATED or any(known in message for known in _EXPIRED):
        return Meaning.EXPIRED
    if code == _CODE_DENIED or "permission denied" in message:
        return Meaning.DENIED
    return Meaning.IN_DOUBT if code in _IN_DOUBT_CODES else Meaning.REFUSED


def decode(data: bytes, kind: type[T], refuse: Callable[[str], Exception]) -> T:
    """Decodes a message; raises what `refuse` makes of why it is none. Unknown fields are left aside."""
    return decode_foreign(lambda raw: msgspec.json.decode(raw, type=kind, strict=False), data, refuse)


# Requests


def after(start: bytes) -> bytes:
    """The end of the range of all keys that begin with `start`, whose last byte is not 255."""
    return start[:-1] + bytes([start[-1] + 1])


def _range(key: bytes, end: bytes) -> dict[str, Any]:
    return {"key": key, "range_end": end} if end else {"key": key}


def range_op(key: bytes, end: bytes = b"", **options: Any) -> Op:
    """Reads `key`, or all from it to before `end`."""
    return {"request_range": {**_range(key, end), **options}}


def put_op(key: bytes, value: bytes, lease: int = 0) -> Op:
    """Stores `value` under `key`, until `lease` ends; 0: for good."""
    return {"request_put": {"key": key, "value": value, **({"lease": str(lease)} if lease else {})}}


def delete_op(key: bytes, end: bytes = b"") -> Op:
    """Removes `key`, or all from it to before `end`."""
    return {"request_delete_range": _range(key, end)}


def txn(compare: Sequence[Op], success: Sequence[Op], failure: Sequence[Op] = ()) -> dict[str, Any]:
    """A transaction: carries out `success` if all of `compare` hold, else `failure`; all in one moment.

    What is more than etcd takes in one transaction is put into transactions inside it.
    """
    return {"compare": list(compare), "success": _nested(success), "failure": _nested(failure)}


def fits(request: Mapping[str, Any], reply: TxnReply) -> bool:
    """Tells whether a reply has what each operation of a transaction is answered by."""
    if not reply.succeeded and not request["compare"]:  # nothing can have kept it from that
        return False
    ops = request["success" if reply.succeeded else "failure"]
    return len(ops) == len(reply.responses) and all(map(_answers, ops, reply.responses))


def _answers(op: Op, reply: OpReply) -> bool:
    [(kind, body)] = op.items()
    inner = reply.response_txn
    if kind == "request_txn":
        return inner is not None and fits(body, inner)
    return getattr(reply, kind.replace("request", "response", 1)) is not None


def txn_op(compare: Sequence[Op], success: Sequence[Op], failure: Sequence[Op] = ()) -> Op:
    """A transaction inside another."""
    return {"request_txn": txn(compare, success, failure)}


def unchanged(key: bytes, mod_revision: int) -> Op:
    """Holds if the last change of `key` is that of `mod_revision`; 0 if it must be absent."""
    return {"key": key, "target": "MOD", "result": "EQUAL", "mod_revision": str(mod_revision)}


def created(key: bytes, create_revision: int) -> Op:
    """Holds if `key` was created at `create_revision`, and has not been removed since; 0 if it is absent."""
    number = str(create_revision)
    return {"key": key, "target": "CREATE", "result": "EQUAL", "create_revision": number}


def holds(key: bytes, value: bytes) -> Op:
    """Holds if `key` exists and has `value`."""
    return {"key": key, "target": "VALUE", "result": "EQUAL", "value": value}


def watch_request(ranges: Sequence[tuple[bytes, bytes]], revision: int, *, deletes: bool = False) -> bytes:
    """Asks for the puts in each of `ranges` (a key, and the end or nothing) from `revision` on.

    With `deletes` it asks for deletions, too, among them those that the end of a lease brings.
    """
    options = {"start_revision": str(revision), **({} if deletes else {"filters": ["NODELETE"]})}
    requests = [{"create_request": {**_range(key, end), **options}} for key, end in ranges]
    return b"".join(map(msgspec.json.encode, requests))


def _nested(ops: Sequence[Op]) -> list[Op]:
    level = list(ops)
    while len(level) > _FAN_OUT:
        level = [
            {"request_txn": {"success": level[start : start + _FAN_OUT]}}
            for start in range(0, len(level), _FAN_OUT)
        ]
    return level

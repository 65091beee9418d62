"""The facts of the c10d wire protocol, spoken by ``torch.distributed.TCPStore`` of torch 2.x.

A request is one opcode, then its arguments; `str` and `bytes` are a length of 64 bits and then that many
bytes; integers are in the order of the host's processor. Requests carry no number: a peer tells replies
apart by their order. `arendezvous.wire.c10d.requests` and `arendezvous.wire.c10d.replies` put requests and
replies to bytes and back; neither does any I/O. Observed against torch 2.13.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from struct import Struct as Packer

from arendezvous.errors import StoreError

MAGIC = 0x3C85F7CE
"""What a client says first, in `Validate`."""

U8 = Packer("=B")
U32 = Packer("=I")
U64 = Packer("=Q")
I64 = Packer("=q")
HEAD = Packer("=BQ")
"""An opcode and the length of what follows it."""
ONE = Packer("=QQ")
"""The number of keys in a list, and the length of the first."""


class Opcode(enum.IntEnum):
    """The first byte of a request."""

    VALIDATE = 0
    SET = 1
    COMPARE_SET = 2
    GET = 3
    ADD = 4
    CHECK = 5
    WAIT = 6
    GETNUMKEYS = 7
    DELETE_KEY = 8
    APPEND = 9
    MULTI_GET = 10
    MULTI_SET = 11
    CANCEL_WAIT = 12
    PING = 13
    QUEUE_PUSH = 14
    QUEUE_POP = 15
    QUEUE_LEN = 16
    LIST_KEYS = 17
    BARRIER = 18


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one peer may ask of the other; the first three are those of the stock server."""

    key: int = 8 * 1024  # the longest key, in bytes
    value: int = 8 * 1024 * 1024  # the longest value in a request, in bytes
    keys: int = 128 * 1024  # the most keys in one request
    request: int = 1024 * 1024 * 1024  # the longest request altogether, in bytes; stock has no such limit
    # the most keys that are handed on at once; what a request has beyond them, in parts
    part_keys: int = 1024
    part_bytes: int = 8 * 1024 * 1024  # bytes of keys and values after which a part ends, likewise
    # the longest value in a reply, in bytes: a value may have been appended to
    reply_value: int = 1024 * 1024 * 1024
    reply_keys: int = 16 * 1024 * 1024  # the most keys in one reply


LIMITS = Limits()


class C10dProtocolError(StoreError):
    """The peer sent, or we were about to send, what the c10d protocol does not allow."""

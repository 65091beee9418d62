"""The facts of the c10d wire protocol, spoken by ``torch.distributed.TCPStore`` of torch 2.x.

A request is one opcode, then its arguments; `str` and `bytes` are a length of 64 bits and then that many
bytes; integers are in the order of the host's processor. Requests carry no number: a peer tells replies
apart by their order. `arendezvous.wire.c10d.requests` and `arendezvous.wire.c10d.replies` put requests and
replies to bytes and back; neither does any I/O. Observed against torch 2.13.
"""

from __future__ import annotations

import enum
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from struct import Struct as Packer
from typing import Any

from arendezvous.errors import StoreError

MAGIC = 0x3C85F7CE
"""What a client says first, in `Validate`."""

_LONG = 64 * 1024  # bytes of a string that is not copied more often than need be

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
    part_keys: int = 1024  # the most keys that are handed on at once; a request with more comes in parts
    part_bytes: int = 8 * 1024 * 1024  # bytes of keys and values after which a part ends, likewise
    reply_value: int = 1024 * 1024 * 1024  # the longest value in a reply: it may be appended to
    reply_keys: int = 16 * 1024 * 1024  # the most keys in one reply


LIMITS = Limits()


class C10dProtocolError(StoreError):
    """The peer sent, or we were about to send, what the c10d protocol does not allow."""


class WireParser:
    """Keeps the bytes of a connection that have come, and are not parsed."""

    def __init__(self, limits: Limits) -> None:
        self.kept = 0  # bytes that have come of a message, or part of one, that is not complete
        self.lacking = 0  # bytes of the string under way that are still to come
        self._limits = limits
        self._fed = b""

    def feed(self, data: bytes) -> None:
        """Takes the next bytes of the connection."""
        self._fed = self._fed + data if self._fed else data

    def _more(
        self, data: bytes, at: int, size: int, read: Sequence[Any] = ()
    ) -> Generator[None, None, bytes]:
        """Waits until `size` bytes are there from `at` on; returns them, and what comes after a short string.

        A long string is copied only once for that. What has been `read` of the same request is kept, too.
        """
        pieces = [data[at:]]
        lacking = size - len(pieces[0])
        before = sum([len(string) for string in read if isinstance(string, bytes)])
        while lacking > len(self._fed):
            if self._fed:
                pieces.append(self._fed)
                lacking -= len(self._fed)
                self._fed = b""
            self.kept, self.lacking = before + size - lacking, lacking
            yield None
        self.kept = self.lacking = 0
        if size <= _LONG:
            pieces.append(self._fed)
            self._fed = b""
        else:
            pieces.append(self._fed[:lacking])
            self._fed = self._fed[lacking:]
        return b"".join(pieces)

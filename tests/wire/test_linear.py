"""Parsers look at each byte a bounded number of times, however small the pieces are in which it comes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import pytest

from arendezvous.keyspace.messages import Get, ListKeys, Set, Validate
from arendezvous.wire.c10d import replies, requests
from arendezvous.wire.c10d.protocol import MAGIC, U64
from arendezvous.wire.c10d.replies import ReplyParser
from arendezvous.wire.c10d.requests import RequestParser, encode_request
from arendezvous.wire.http import sse
from arendezvous.wire.http.sse import EventParser
from arendezvous.wire.native import login, messages
from arendezvous.wire.native.login import LoginParser, encode_login
from arendezvous.wire.native.messages import FrameParser

SIZE = 1 << 18
PIECE = 64
MOST = 8  # times that a byte is copied or looked at


class Counting(bytearray):
    """A buffer that counts the bytes that are copied into it and out of it, searched or moved."""

    work = 0

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        Counting.work += len(self)

    def __iadd__(self, more: Any) -> Self:  # type: ignore[misc]  # as that of bytearray
        Counting.work += len(more)
        return super().__iadd__(more)

    def __getitem__(self, at: Any) -> Any:
        found = super().__getitem__(at)
        Counting.work += len(found) if isinstance(at, slice) else 1
        return found

    def __delitem__(self, at: Any) -> None:
        before = len(self)
        super().__delitem__(at)
        if isinstance(at, slice) and at.start:  # what is taken off at the front is not moved
            Counting.work += before - len(self)

    def __bytes__(self) -> bytes:
        Counting.work += len(self)
        return bytes(memoryview(self))

    def find(self, *args: Any) -> int:
        Counting.work += len(self) - (args[1] if len(args) > 1 else 0)
        return super().find(*args)

    def rfind(self, *args: Any) -> int:
        Counting.work += len(self) - (args[1] if len(args) > 1 else 0)
        return super().rfind(*args)


def _events(stream: bytes) -> int:
    parser = EventParser()
    return sum(len(parser.feed(piece)) for piece in _pieces(stream))


def _frames(stream: bytes) -> int:
    parser = FrameParser(2 * SIZE)
    return sum(len(parser.feed(piece)) for piece in _pieces(stream))


def _logins(stream: bytes) -> int:
    parser = LoginParser()
    return sum(parser.feed(piece) is not None for piece in _pieces(stream))


def _requests(stream: bytes) -> int:
    parser, found = RequestParser(), 0
    for piece in _pieces(stream):
        parser.feed(piece)
        found += sum(1 for _ in parser)
    return found


def _replies(request: Any) -> Callable[[bytes], int]:
    def parse(stream: bytes) -> int:
        parser, found = ReplyParser(), 0
        parser.expect(request)
        for piece in _pieces(stream):
            parser.feed(piece)
            found += sum(1 for _ in parser)
        return found

    return parse


def _pieces(stream: bytes) -> list[bytes]:
    return [stream[at : at + PIECE] for at in range(0, len(stream), PIECE)]


def _keys(count: int) -> bytes:
    return U64.pack(count) + (U64.pack(8) + b"a key...") * count


STREAMS: dict[str, tuple[Callable[[bytes], int], bytes, int]] = {
    "one long line of events": (_events, b"data: " + b"x" * SIZE + b"\n\n", 1),
    "many lines of one event": (_events, b"data: x\n" * (SIZE // 8) + b"\n", 1),
    "many events": (_events, b"data: x\n\n" * (SIZE // 9), SIZE // 9),
    "a comment without an end": (_events, b":" * SIZE, 0),
    "one long frame": (_frames, (SIZE).to_bytes(4, "big") + b"x" * SIZE, 1),
    "many frames": (_frames, b"\0\0\0\1x" * (SIZE // 5), SIZE // 5),
    "a login": (_logins, encode_login("t" * 1024), 1),
    "one long value": (
        _requests, encode_request(Validate(MAGIC)) + encode_request(Set(b"k", b"x" * SIZE)), 2
    ),
    "many requests": (_requests, encode_request(Validate(MAGIC)) + encode_request(Get(b"key")) * 4000, 4001),
    "one long reply": (_replies(Get(b"k")), U64.pack(SIZE) + b"x" * SIZE, 1),
    "a reply of many keys": (_replies(ListKeys()), _keys(SIZE // 16), 1),
}  # fmt: skip


@pytest.mark.parametrize(("parse", "stream", "count"), STREAMS.values(), ids=STREAMS.keys())
def test_a_stream_in_small_pieces_costs_a_bounded_number_of_looks_at_each_byte(
    parse: Callable[[bytes], int], stream: bytes, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (sse, messages, login, requests, replies):
        monkeypatch.setattr(module, "bytearray", Counting, raising=False)
    Counting.work = 0

    assert parse(stream) == count

    assert Counting.work <= MOST * len(stream) + 4096

"""The c10d protocol as bytes: both sides, cut anywhere, and what is refused."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arendezvous.keyspace.messages import (
    Add,
    Append,
    Barrier,
    CancelWait,
    Check,
    CompareSet,
    DeleteKey,
    Get,
    Keys,
    ListKeys,
    MultiGet,
    MultiSet,
    Number,
    NumKeys,
    Ping,
    Pong,
    Popped,
    QueueLen,
    QueuePop,
    QueuePush,
    Ready,
    Reply,
    Set,
    StoreRequest,
    Validate,
    Value,
    Values,
    Wait,
    WaitCancelled,
    WaitDone,
)
from arendezvous.wire.c10d.protocol import MAGIC, C10dProtocolError, Limits
from arendezvous.wire.c10d.replies import ReplyParser, encode_reply
from arendezvous.wire.c10d.requests import RequestParser, encode_request

SMALL = Limits(key=4, value=8, keys=3, request=20, reply_value=16, reply_keys=3)


def u64(number: int) -> bytes:
    return struct.pack("=Q", number)


def string(text: bytes) -> bytes:
    return u64(len(text)) + text


GREETING = b"\x00" + struct.pack("=I", MAGIC)

REQUESTS: list[tuple[StoreRequest, bytes]] = [
    (Set(b"k", b"v1"), b"\x01" + string(b"k") + string(b"v1")),
    (CompareSet(b"k", b"", b"new"), b"\x02" + string(b"k") + string(b"") + string(b"new")),
    (Get(b"\x00\xff"), b"\x03" + string(b"\x00\xff")),
    (Add(b"n", -5), b"\x04" + string(b"n") + struct.pack("=q", -5)),
    (Check([b"a", b"b"]), b"\x05" + u64(2) + string(b"a") + string(b"b")),
    (Wait([]), b"\x06" + u64(0)),
    (NumKeys(), b"\x07"),
    (DeleteKey(b"k"), b"\x08" + string(b"k")),
    (Append(b"k", b""), b"\x09" + string(b"k") + string(b"")),
    (MultiGet([b"a"]), b"\x0a" + u64(1) + string(b"a")),
    (
        MultiSet([(b"a", b"1"), (b"b", b"22")]),
        b"\x0b" + u64(2) + string(b"a") + string(b"1") + string(b"b") + string(b"22"),
    ),
    (CancelWait(), b"\x0c"),
    (Ping(0xDEADBEEF), b"\x0d" + struct.pack("=I", 0xDEADBEEF)),
    (QueuePush(b"q", b"v"), b"\x0e" + string(b"q") + string(b"v")),
    (QueuePop(b"q"), b"\x0f" + string(b"q")),
    (QueueLen(b"q"), b"\x10" + string(b"q")),
    (ListKeys(), b"\x11"),
    (Barrier(b"b", 4), b"\x12" + string(b"b") + struct.pack("=q", 4)),
]

REPLIES: list[tuple[StoreRequest, Reply, bytes]] = [
    (Get(b"k"), Value(b"v1"), string(b"v1")),
    (CompareSet(b"k", b"", b""), Value(b""), string(b"")),
    (Add(b"k", 1), Number(-5), struct.pack("=q", -5)),
    (NumKeys(), Number(7), struct.pack("=q", 7)),
    (DeleteKey(b"k"), Number(1), struct.pack("=q", 1)),
    (QueueLen(b"k"), Number(0), struct.pack("=q", 0)),
    (Check([]), Ready(True), b"\x00"),
    (Check([]), Ready(False), b"\x01"),
    (Wait([]), WaitDone(), b"\x00"),
    (Barrier(b"b", 1), WaitDone(), b"\x00"),
    (CancelWait(), WaitCancelled(), b"\x01"),
    (MultiGet([b"a", b"b"]), Values([b"", b"x"]), string(b"") + string(b"x")),
    (QueuePop(b"q"), Popped(0, None), struct.pack("=q", 0)),
    (QueuePop(b"q"), Popped(3, b""), struct.pack("=q", 3) + string(b"")),
    (ListKeys(), Keys([b"a", b"\xff"]), u64(2) + string(b"a") + string(b"\xff")),
    (ListKeys(), Keys([]), u64(0)),
    (Ping(9), Pong(9), struct.pack("=I", 9)),
]


def kind(value: object) -> str:
    return type(value).__name__


def parse(data: bytes, size: int, limits: Limits, *, validated: bool = False) -> list[StoreRequest]:
    """The requests in `data`, fed in pieces of `size` bytes."""
    parser = RequestParser(limits, validated=validated)
    requests: list[StoreRequest] = []
    for at in range(0, len(data), size):
        parser.feed(data[at : at + size])
        requests += parser
    return requests


@pytest.mark.parametrize(("request_", "data"), REQUESTS, ids=kind)
def test_a_request_has_the_bytes_that_the_stock_server_reads(request_: StoreRequest, data: bytes) -> None:
    assert encode_request(request_) == data


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 10_000])
def test_all_requests_are_read_back_however_they_are_cut(size: int) -> None:
    stream = GREETING + b"".join(data for _, data in REQUESTS)
    assert parse(stream, size, Limits()) == [Validate(MAGIC), *(request for request, _ in REQUESTS)]


def test_a_request_is_given_as_soon_as_its_last_byte_is_there_and_not_before() -> None:
    for request, data in REQUESTS:
        parser = RequestParser(validated=True)
        for byte in data[:-1]:
            parser.feed(bytes([byte]))
            assert list(parser) == []
        parser.feed(data[-1:])
        assert list(parser) == [request]


@pytest.mark.parametrize(("request_", "reply", "data"), REPLIES, ids=kind)
def test_a_reply_has_the_bytes_that_the_stock_client_reads(
    request_: StoreRequest, reply: Reply, data: bytes
) -> None:
    assert encode_reply(reply) == data


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 10_000])
def test_all_replies_are_read_back_however_they_are_cut(size: int) -> None:
    parser = ReplyParser()
    for request, _, _ in REPLIES:
        assert parser.expect(request)
    stream = b"".join(data for _, _, data in REPLIES)
    replies: list[Reply] = []
    for at in range(0, len(stream), size):
        parser.feed(stream[at : at + size])
        replies += parser
    assert replies == [reply for _, reply, _ in REPLIES]
    assert parser.owed == 0


def test_absent_values_travel_as_empty_ones() -> None:
    assert encode_reply(Value(None)) == string(b"")
    assert encode_reply(Values([None, b"x"])) == string(b"") + string(b"x")


@pytest.mark.parametrize(
    "request_", [Set(b"k", b""), Append(b"k", b""), MultiSet([]), QueuePush(b"q", b"")], ids=kind
)
def test_requests_without_a_reply_are_not_expected_to_have_one(request_: StoreRequest) -> None:
    assert not ReplyParser().expect(request_)


@pytest.mark.parametrize(
    ("data", "replies"),
    [(b"\x01", [WaitCancelled()]), (b"\x00\x01", [WaitDone(), WaitCancelled()])],
    ids=["in time", "crossed"],
)
def test_a_cancelled_wait_is_answered_by_one_or_by_zero_and_one(data: bytes, replies: list[Reply]) -> None:
    parser = ReplyParser()
    for request in (Wait([b"k"]), CancelWait(), Get(b"k")):
        parser.expect(request)
    parser.feed(data + string(b"v"))
    assert list(parser) == [*replies, Value(b"v")]


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"\x03", "starts with opcode 3, but a c10d client sends 0 first"),
        (b"GET / HTTP/1.1", "starts with opcode 71"),
        (b"\x00\x01\x02\x03\x04", "magic number 0x4030201"),
        (GREETING + GREETING, "a second VALIDATE"),
        (GREETING + b"\x13", "unknown opcode 19"),
        (GREETING + b"\xff", "unknown opcode 255"),
        (GREETING + b"\x03" + u64(5), "GET with a key of 5 bytes; the limit is 4"),
        (GREETING + b"\x01" + string(b"k") + u64(9), "SET with a value of 9 bytes; the limit is 8"),
        (GREETING + b"\x01" + string(b"k") + u64(2**64 - 1), "SET with a value of 184467440737"),
        (GREETING + b"\x06" + u64(4), "WAIT with 4 keys, but the most in one request is 3"),
        (GREETING + b"\x0a" + u64(1) + u64(5), "MULTI_GET with a key of 5 bytes"),
        (GREETING + b"\x0b" + u64(1) + string(b"k") + u64(9), "MULTI_SET with a value of 9 bytes"),
        (GREETING + b"\x0b" + u64(3) + (string(b"kkkk") + string(b"v" * 8)) * 2, "MULTI_SET of more than 20"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("size", [1, 1000])
def test_a_peer_that_breaks_the_protocol_is_told_apart_with_the_reason(
    data: bytes, complaint: str, size: int
) -> None:
    with pytest.raises(C10dProtocolError, match=complaint):
        parse(data, size, SMALL)


def test_what_came_before_the_error_is_given_before_it_is_raised() -> None:
    parser = RequestParser(SMALL, validated=True)
    parser.feed(encode_request(Get(b"k")) + b"\xff")
    requests = iter(parser)
    assert next(requests) == Get(b"k")
    with pytest.raises(C10dProtocolError):
        next(requests)


def test_sizes_at_the_limit_are_taken() -> None:
    requests: list[StoreRequest] = [Set(b"kkkk", b"v" * 8), Check([b"k"] * 3)]
    data = b"".join(encode_request(request, SMALL) for request in requests)
    assert parse(data, 5, SMALL, validated=True) == requests


@pytest.mark.parametrize(
    ("request_", "complaint"),
    [
        (Get(b"k" * 5), "key b'kkkkk'... has 5 bytes, but a c10d store takes at most 4"),
        (Set(b"k", b"v" * 9), "the value has 9 bytes, but a c10d store takes at most 8"),
        (MultiSet([(b"k", b"v" * 9)]), "the value has 9 bytes"),
        (Wait([b"k"] * 4), "4 keys in one request, but a c10d store takes at most 3"),
        (MultiSet([(b"k", b"v")] * 4), "4 keys in one request"),
        (Add(b"k", 2**63), "9223372036854775808 does not fit into a signed integer of 64 bits"),
    ],
    ids=lambda value: value if isinstance(value, str) else kind(value),
)
def test_a_request_that_a_server_would_drop_us_for_is_not_sent(
    request_: StoreRequest, complaint: str
) -> None:
    with pytest.raises(C10dProtocolError) as caught:
        encode_request(request_, SMALL)
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    ("requests", "data", "complaint"),
    [
        ([], b"\x00", "which nobody has asked for"),
        ([Get(b"k")], u64(17), "a length of 17 bytes; the limit is 16"),
        ([ListKeys()], u64(4), "4 keys in one reply; the limit is 3"),
        ([ListKeys()], u64(1) + u64(5), "a length of 5 bytes; the limit is 4"),
        ([Check([])], b"\x02", "answered READY with 2"),
        ([Wait([])], b"\x01", "cancelled a wait that nobody has cancelled"),
        ([CancelWait()], b"\x00", "ended a wait that was over"),
    ],
)
def test_a_server_that_breaks_the_protocol_is_told_apart_with_the_reason(
    requests: list[StoreRequest], data: bytes, complaint: str
) -> None:
    parser = ReplyParser(SMALL)
    for request in requests:
        parser.expect(request)
    parser.feed(data)
    with pytest.raises(C10dProtocolError, match=complaint):
        list(parser)


_KEYS = st.binary(max_size=20)
_VALUES = st.binary(max_size=200)
_NUMBERS = st.integers(-(2**63), 2**63 - 1)
_ANY_REQUEST: st.SearchStrategy[Any] = st.one_of(
    st.builds(Set, _KEYS, _VALUES),
    st.builds(CompareSet, _KEYS, _VALUES, _VALUES),
    st.builds(Get, _KEYS),
    st.builds(Add, _KEYS, _NUMBERS),
    st.builds(MultiGet, st.lists(_KEYS, max_size=9)),
    st.builds(MultiSet, st.lists(st.tuples(_KEYS, _VALUES), max_size=9)),
    st.builds(Barrier, _KEYS, _NUMBERS),
    st.builds(Ping, st.integers(0, 2**32 - 1)),
    st.just(ListKeys()),
)


@given(st.lists(_ANY_REQUEST, max_size=20), st.lists(st.integers(1, 300), max_size=40))
def test_any_requests_cut_anywhere_come_back_the_same(requests: list[StoreRequest], cuts: list[int]) -> None:
    data = b"".join(map(encode_request, requests))
    parser = RequestParser(validated=True)
    parsed: list[StoreRequest] = []
    for cut in [*cuts, len(data)]:
        parser.feed(data[:cut])
        data = data[cut:]
        parsed += parser
    assert parsed == requests


@given(st.lists(st.tuples(st.binary(max_size=300), st.booleans()), max_size=10))
def test_noise_gives_requests_or_a_protocol_error_and_nothing_else(pieces: list[tuple[bytes, bool]]) -> None:
    parser = RequestParser(SMALL)
    parser.feed(GREETING)
    try:
        for piece, look in pieces:
            parser.feed(piece)
            if look:
                list(parser)
    except C10dProtocolError:
        pass


@given(st.lists(st.sampled_from([request for request, _, _ in REPLIES]), max_size=9), st.binary(max_size=200))
def test_noise_from_a_server_gives_replies_or_a_protocol_error_and_nothing_else(
    requests: list[StoreRequest], noise: bytes
) -> None:
    parser = ReplyParser(SMALL)
    for request in requests:
        parser.expect(request)
    parser.feed(noise)
    try:
        replies = list(parser)
    except C10dProtocolError:
        return
    assert len(replies) + parser.owed <= len(requests)

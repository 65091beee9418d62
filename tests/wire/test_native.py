"""Frames and messages of native sessions survive any cutting of the stream, and hostile bytes are refused."""

from __future__ import annotations

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arendezvous import errors
from arendezvous.errors import RendezvousError
from arendezvous.law.events import MemberDraining, NodeJoined, RoundCompleted, RunClosed
from arendezvous.law.operations import (
    Close,
    Disconnect,
    Drain,
    Join,
    KeepAlive,
    Leave,
    Operation,
    Reopen,
    Resume,
    Tick,
)
from arendezvous.law.state import Cause, Closure, Departure, NodeDesc, NodeView, Notice, Phase, RunSettings
from arendezvous.law.status import ClosedStatus, DepartedStatus, NodeStatus, RunStatus
from arendezvous.wire.native.messages import (
    MAX_REQUEST,
    PREFACE,
    Ack,
    ClientMessage,
    Failed,
    FrameError,
    FrameParser,
    GetMembers,
    GetRuns,
    GetStatus,
    Happened,
    Hello,
    Members,
    Propose,
    Runs,
    RunSummary,
    ServerMessage,
    Status,
    View,
    WatchRun,
    Welcome,
    decode_client,
    decode_server,
    encode,
    error_of,
    failure,
)

DESC = NodeDesc("a", "host-a", 7, 1, ("10.0.0.1", "fe80::1"), "rack1", 3)
SETTINGS = RunSettings(2, 4, 1.5, 0.5, 2, 0.0, "given")
VIEW = NodeView(
    "a", 9, 2, 5, Phase.MEMBER, 1, 3, "d1", ("10.0.0.1",), 2,
    (Notice(1, "b", Cause.CONNECTION_LOST, "gone"), Notice(2, "c", None, "draining", 3.5)),
    Closure("b", "over", 12.5), Departure(Cause.LEFT, "bye", 4, 11.0), 13.0,
)  # fmt: skip
STATUS = RunStatus(
    "job", SETTINGS, 2, 5, True, 3, "d1", 4.5, ClosedStatus("b", "over", 1.0),
    (NodeStatus(DESC, Phase.MEMBER, 0, 1.0, 0.5, 0.25, 9.0, "why", -3.0),),
    (DepartedStatus("z", Cause.NO_HEARTBEAT, "no heartbeat for 15.2 s", 4, 8.0),),
)  # fmt: skip
OPERATIONS: list[Operation] = [
    Join(DESC, SETTINGS, (1, 4)),
    Resume(DESC, SETTINGS, 1, 4, 1, 3, "d1"),
    Leave("a", "done", Cause.FINISHED),
    Drain("a", 2.5, "maintenance"),
    KeepAlive("a"),
    Disconnect("a"),
    Close("a", "over", 1),
    Reopen(1, "a"),
    Tick(),
]
FROM_CLIENT: list[ClientMessage] = [
    Hello(1, "job", b"0123456789abcdef", "token"),
    *(Propose(number, operation) for number, operation in enumerate(OPERATIONS, 1)),
    GetStatus(2**40),
    GetMembers(3, 1, 2),
    GetRuns(4),
    WatchRun(5),
]
FROM_SERVER: list[ServerMessage] = [
    Welcome(1, "f00"),
    Ack(1),
    View(0, VIEW),
    Status(2, STATUS),
    Status(2, RunStatus("unknown")),
    Members(3, (DESC, NodeDesc("b"))),
    Runs(4, (RunSummary("job", 1, 2, True, False, 3, 4, 5),)),
    Happened(0, 12.5, (NodeJoined("a", Phase.GATHERING), RoundCompleted(0, 1), RunClosed("a", "")), 3),
    Failed(5, "RendezvousClosedError", "closed", {"by": "b", "reason": "over", "age": 1.5}),
]


@pytest.mark.parametrize("message", FROM_CLIENT, ids=lambda m: type(m).__name__)
def test_every_message_of_a_client_comes_out_as_it_went_in(message: ClientMessage) -> None:
    (frame,) = FrameParser(MAX_REQUEST).feed(encode(message))
    assert decode_client(frame) == message


@pytest.mark.parametrize("message", FROM_SERVER, ids=lambda m: type(m).__name__)
def test_every_message_of_a_server_comes_out_as_it_went_in(message: ServerMessage) -> None:
    (frame,) = FrameParser(MAX_REQUEST).feed(encode(message))
    assert decode_server(frame) == message


def test_the_frame_of_a_heartbeat_has_the_documented_bytes() -> None:
    expected = b"\x00\x00\x00\x17" + msgspec.msgpack.encode(["Propose", 1, ["KeepAlive", "a"]])
    assert encode(Propose(1, KeepAlive("a"))) == expected
    assert bytes([0xA4, 0x41, 0x52, 0x31]) == PREFACE


def test_names_on_the_wire_do_not_follow_those_of_classes() -> None:
    assert msgspec.msgpack.decode(encode(WatchRun(5))[4:]) == ["Watch", 5]
    happened = encode(Happened(0, 1.0, (MemberDraining("a", 1, ""),), 0))
    _, _, _, (event,), _ = msgspec.msgpack.decode(happened[4:])
    assert event["type"] == "NodeDraining"


def test_frames_come_out_of_single_bytes_as_soon_as_they_are_whole() -> None:
    stream = b"".join(encode(message) for message in FROM_CLIENT)
    ends, at = set(), 0
    for message in FROM_CLIENT:
        at += len(encode(message))
        ends.add(at)
    parser, got = FrameParser(MAX_REQUEST), []
    for position, byte in enumerate(stream, 1):
        frames = parser.feed(bytes([byte]))
        assert len(frames) == (position in ends)
        got += [decode_client(frame) for frame in frames]
    assert got == FROM_CLIENT


@given(st.lists(st.integers(0, 400), max_size=60))
def test_frames_come_out_the_same_however_the_stream_is_cut(cuts: list[int]) -> None:
    stream = b"".join(encode(message) for message in FROM_SERVER)
    parser, got, at = FrameParser(MAX_REQUEST), [], 0
    for size in [*cuts, len(stream)]:
        got += parser.feed(stream[at : at + size])
        at += size
    assert [decode_server(frame) for frame in got] == FROM_SERVER


@pytest.mark.parametrize("length", [0, 101, 2**31, 2**32 - 1])
@pytest.mark.parametrize("cut", [1, 3, 4, 5])
def test_a_length_out_of_bounds_is_refused_before_the_frame_is_stored(length: int, cut: int) -> None:
    stream = encode(GetRuns(1)) + length.to_bytes(4, "big") + b"x"
    parser = FrameParser(100)
    at = len(stream) - 5 + cut
    with pytest.raises(FrameError, match=f"a frame of {length} bytes; allowed are 1 to 100"):
        [parser.feed(part) for part in (stream[:at], stream[at:])]


def test_a_frame_of_exactly_the_limit_is_taken() -> None:
    assert FrameParser(5).feed(b"\x00\x00\x00\x05hello") == [b"hello"]


@given(st.binary(max_size=300))
def test_any_bytes_are_either_messages_or_a_frame_error(data: bytes) -> None:
    for decode in (decode_client, decode_server):
        with contextlib.suppress(FrameError):
            decode(data)


@given(st.sampled_from(FROM_CLIENT), st.data())
def test_a_changed_byte_is_either_another_message_or_a_frame_error(
    message: ClientMessage, data: st.DataObject
) -> None:
    frame = bytearray(encode(message)[4:])
    at = data.draw(st.integers(0, len(frame) - 1))
    frame[at] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(FrameError):
        decode_client(bytes(frame))


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (["Unknown", 1], "Invalid value 'Unknown'"),
        (["Propose", 1, ["Explode", "a"]], "Invalid value 'Explode'"),
        (["Propose", 1], "at least length 3"),
        (["Propose", "one", ["KeepAlive", "a"]], "Expected `int`, got `str`"),
        (["Hello", 1, "job", "no bytes"], "Expected `bytes`, got `str`"),
        ({"type": "GetRuns"}, "Expected `array`, got `object`"),
        (["Propose", 1, ["Join", ["", "x"], [1, 1]]], "node name is ''"),
        (["Propose", 1, ["Join", ["a"], [0, 1]]], "min_nodes is 0"),
        (["Propose", 1, ["Join", ["a"], [2, 1]]], "max_nodes is 1"),
        (["Propose", 1, ["Join", ["a" * 257], [1, 1]]], "node name is"),
        (["Propose", 1, ["Drain", "a", float("inf")]], "drain deadline is inf"),
        (["Propose", 1, ["Drain", "a", float("nan")]], "drain deadline is nan"),
        (["Welcome", 1, "f00"], "Invalid value 'Welcome'"),
    ],
)
def test_a_message_that_is_not_allowed_is_refused_with_the_reason(value: object, why: str) -> None:
    with pytest.raises(FrameError) as caught:
        decode_client(msgspec.msgpack.encode(value))
    assert why in str(caught.value)


@pytest.mark.parametrize("opening", [b"\x91", b"\x81\xa1a", b"\xdd\x00\x00\x00\x01"])
def test_deep_nesting_is_refused(opening: bytes) -> None:
    frame = opening * (MAX_REQUEST // len(opening))
    with pytest.raises(FrameError):
        decode_client(frame)
    with pytest.raises(FrameError):
        decode_server(b"\x95\xa6Failed\x01\xa1K\xa1m\x81\xa1d" + frame)


def test_a_length_inside_a_frame_that_promises_gigabytes_is_refused() -> None:
    for huge in (
        b"\xdd\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
    ):
        with pytest.raises(FrameError):
            decode_client(huge)
        with pytest.raises(FrameError):
            decode_client(b"\x93\xa7Propose\x01" + huge)


def test_bytes_after_a_message_are_refused() -> None:
    with pytest.raises(FrameError):
        decode_client(encode(GetRuns(1))[4:] + b"\x00")


def test_a_newer_peer_may_send_more_fields() -> None:
    frame = msgspec.msgpack.encode(["Hello", 2, "job", b"s", "t", "", 0.0, "something new", 42])
    assert decode_client(frame) == Hello(2, "job", b"s", "t")


# Errors on the wire

EVERY_ERROR: list[RendezvousError] = [
    errors.RendezvousError("plain", detail=1),
    errors.RendezvousClosedError("closed", by="b", reason="over", age=1.5),
    errors.RendezvousTimeoutError("late", timeout=600.0, explanation="who"),
    errors.RendezvousConnectionError("away", endpoint="tcp://h:1", doing="connecting"),
    errors.RendezvousStateError("state", node="a"),
    errors.RendezvousGracefulExitError("go"),
    errors.RendezvousSettingsError.of("min_nodes", 0, "1 or more"),
    errors.StoreTimeoutError("keys", keys=["k"], timeout=1.0),
    errors.StoreQueueEmptyError("empty", key="q"),
]


@pytest.mark.parametrize("error", EVERY_ERROR, ids=lambda error: type(error).__name__)
def test_every_error_crosses_the_wire_with_its_message_and_data(error: RendezvousError) -> None:
    sent = decode_server(encode(failure(3, error))[4:])
    assert isinstance(sent, Failed)
    got = error_of(sent)
    assert type(got) is type(error)
    assert (str(got), got.data, sent.id) == (str(error), error.data, 3)
    assert vars(got) == vars(error)


@pytest.mark.parametrize(
    "kind", ["SystemExit", "annotations", "Sequence", "_rebuild", "__doc__", "", "NewError"]
)
def test_an_error_of_an_unknown_kind_becomes_a_plain_one(kind: str) -> None:
    got = error_of(Failed(1, kind, "why", {"x": 1}))
    assert (type(got), str(got)) == (RendezvousError, f"{kind}: why")


@pytest.mark.parametrize("data", [{"message": "again"}, {"unknown": 1}, {"self": 2}])
def test_an_error_with_data_that_does_not_fit_keeps_its_kind_and_message(data: dict[str, object]) -> None:
    got = error_of(Failed(1, "RendezvousClosedError", "why", data))
    assert (type(got), str(got)) == (errors.RendezvousClosedError, "why")

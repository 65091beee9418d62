"""The client's parsers of HTTP/1.1 and of server-sent events, however bytes are cut and whatever they are."""

from __future__ import annotations

import itertools
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arendezvous.wire.http import http1
from arendezvous.wire.http.http1 import ResponseParser, encode_request
from arendezvous.wire.http.sse import EventParser, ServerEvent
from arendezvous.wire.native.messages import FrameError

STREAM = (
    b": hello\n\nevent: view\nid: 7\ndata: {}\n\n"
    b"data: one\r\ndata:two\r\n\r\nevent: nothing\n\nretry: 5\nevent: last\ndata: x\n\n"
)
EVENTS = [
    ServerEvent("view", b"{}", "7"),
    ServerEvent("message", b"one\ntwo", "7"),
    ServerEvent("last", b"x", "7"),
]
CHUNKED = (
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\nX-Y: z\r\n\r\n"
    b"3\r\nabc\r\nA;why=not\r\n0123456789\r\n0\r\nTrailer: t\r\n\r\n"
)
LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nServer: x\r\n\r\nhello"


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """`data` in pieces, cut at `places`."""
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


@given(st.lists(st.integers(min_value=0), max_size=20))
def test_events_are_the_same_however_the_stream_is_cut(places: list[int]) -> None:
    parser = EventParser()
    assert [event for piece in cut(STREAM, places) for event in parser.feed(piece)] == EVENTS


def test_events_come_as_soon_as_they_are_complete() -> None:
    parser, came = EventParser(), []
    for number in range(len(STREAM)):
        came += [(number, event) for event in parser.feed(STREAM[number : number + 1])]
    assert [event for _, event in came] == EVENTS
    assert came[0][0] == STREAM.index(b"{}\n\n") + 3


def test_an_event_that_is_too_long_is_refused_before_it_ends() -> None:
    parser = EventParser(limit=100)
    for _ in range(6):
        parser.feed(b"data: 0123456789\n")
    with pytest.raises(FrameError, match="more than 100 bytes"):
        parser.feed(b"data: 0123456789\n")
    with pytest.raises(FrameError, match="more than 100 bytes"):
        EventParser(limit=100).feed(b"x" * 101)


@given(st.lists(st.integers(min_value=0), max_size=20), st.sampled_from([CHUNKED, LENGTH]))
def test_a_response_is_the_same_however_it_is_cut(places: list[int], response: bytes) -> None:
    parser = ResponseParser("GET")
    body = b"".join(parser.feed(piece) for piece in cut(response, places) if piece)
    expected = (201, b"abc0123456789") if response is CHUNKED else (200, b"hello")
    assert (parser.status, body) == expected
    assert parser.is_done()
    assert parser.reusable


@given(st.binary(max_size=200), st.sampled_from([CHUNKED, LENGTH, b""]), st.integers(0, 120))
def test_garbage_is_refused_or_waited_out_but_never_breaks_the_parser(
    garbage: bytes, start: bytes, at: int
) -> None:
    with suppress(FrameError):
        ResponseParser("GET").feed(start[:at] + garbage)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"SSH-2.0-OpenSSH", "not of HTTP/1.1"),
        (b"HTTP/1.1 2x0 OK\r\n\r\n", "not of HTTP/1.1"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n", "the length '-5'"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "the size b'zz'"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n", "longer than it says"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"0" * 5000, "more than 4096 bytes"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * http1.MAX_HEAD, "more than 65536 bytes"),
    ],
)
def test_what_is_no_response_is_refused_and_named(data: bytes, said: str) -> None:
    with pytest.raises(FrameError, match=said):
        ResponseParser("GET").feed(data)


@pytest.mark.parametrize(
    ("method", "response", "reusable"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", True),
        ("GET", b"HTTP/1.1 304 Not Modified\r\n\r\n", True),
        ("GET", b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n", False),
        ("GET", b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", False),
        ("GET", LENGTH + b"HTTP/1.1 200 OK", False),
    ],
)
def test_the_end_of_a_response_and_whether_its_connection_can_be_used_again(
    method: str, response: bytes, reusable: bool
) -> None:
    parser = ResponseParser(method)
    parser.feed(response)
    assert parser.is_done()
    assert parser.reusable is reusable


def test_a_body_of_unknown_length_ends_with_the_connection() -> None:
    parser = ResponseParser("GET")
    assert parser.feed(b"HTTP/1.1 200 OK\r\n\r\nab") == b"ab"
    assert parser.feed(b"cd") == b"cd"
    assert not parser.is_done()
    assert parser.end()
    cut_off = ResponseParser("GET")
    cut_off.feed(LENGTH[:-1])
    assert not cut_off.end()


def test_a_request_is_encoded_with_its_length() -> None:
    assert encode_request("GET", "/a", {"Host": "h"}, b"") == b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n"
    posted = encode_request("POST", "/a", {"Host": "h"}, b"{}")
    assert posted == b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}"
    empty = encode_request("DELETE", "/a", {}, b"")
    assert empty == b"DELETE /a HTTP/1.1\r\nContent-Length: 0\r\n\r\n"


def test_a_header_field_cannot_smuggle_another_one_in() -> None:
    with pytest.raises(FrameError, match="line break"):
        encode_request("GET", "/", {"Host": "h\r\nX: y"}, b"")

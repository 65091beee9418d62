"""The parser of server-sent events, however bytes are cut."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

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

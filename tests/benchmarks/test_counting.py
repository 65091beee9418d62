"""What connections carry is counted as it is."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from arendezvous.wire.native.messages import PREFACE, Ack, encode
from benchmarks.counting import FrameCount


@given(st.lists(st.integers(1, 300), max_size=8), st.lists(st.integers(1, 20), min_size=1))
def test_frames_are_counted_however_the_bytes_are_cut(numbers: list[int], cuts: list[int]) -> None:
    data = PREFACE + b"".join(encode(Ack(number)) for number in numbers)
    counter, counted, position = FrameCount(len(PREFACE)), 0, 0
    while position < len(data):
        cut = cuts[position % len(cuts)]
        counted += counter.count(data[position : position + cut])
        position += cut
    assert counted == len(numbers)

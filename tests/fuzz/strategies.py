"""Inputs that are nearly right: what is wrong at the first byte comes no further than that."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

DEEP: Final = b"[" * 100_000
ODD: Final = (
    b"",
    b"\0",
    b"\xff",
    b'"\\ud800"',
    b"\xff\xff\xff\xff",
    b"\r\n",
    b"1e999",
    b"%",
    b"\x1b]0;x\x07",
)

junk: Final[SearchStrategy[Any]] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from((2**63 - 1, 2**63, -(2**63) - 1, 10**30, -1, 0))
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(("AAAA", "x" * 5000, "\x1b]0;x", "\u202e", "9" * 5000)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
"""Anything that JSON can be."""


@st.composite
def broken(draw: DrawFn, right: SearchStrategy[bytes], *, most: int = 4) -> bytes:
    """Bytes that are right but for up to `most` edits."""
    data = draw(right)
    for _ in range(draw(st.integers(0, most))):
        at = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, 16))
        how = draw(st.sampled_from(("set", "insert", "drop", "repeat", "cut", "odd")))
        if how == "set":
            data = data[:at] + draw(st.binary(min_size=length, max_size=length)) + data[at + length :]
        elif how == "insert":
            data = data[:at] + draw(st.binary(max_size=8)) + data[at:]
        elif how == "drop":
            data = data[:at] + data[at + length :]
        elif how == "repeat":
            data = data[:at] + data[at : at + length] * draw(st.integers(2, 5)) + data[at + length :]
        elif how == "cut":
            data = data[:at]
        else:
            data = data[:at] + draw(st.sampled_from(ODD)) + data[at:]
    return data


@st.composite
def twisted(draw: DrawFn, right: SearchStrategy[Any]) -> Any:
    """A value of JSON that is right but for some of its parts."""
    return _twist(draw, draw(right), draw(st.integers(0, 3)))


def _twist(draw: DrawFn, value: Any, times: int) -> Any:
    for _ in range(times):
        value = _twist_one(draw, value)
    return value


def _twist_one(draw: DrawFn, value: Any) -> Any:
    """Goes down to some part, and puts another there, drops it or doubles it."""
    if isinstance(value, dict) and value and draw(st.integers(0, 4)):
        name = draw(st.sampled_from(sorted(value)))
        if not draw(st.integers(0, 5)):
            return {other: held for other, held in value.items() if other != name}
        return {**value, name: _twist_one(draw, value[name])}
    if isinstance(value, list) and value and draw(st.integers(0, 4)):
        at = draw(st.integers(0, len(value) - 1))
        if not draw(st.integers(0, 5)):
            return [*value[:at], *value[at + 1 :]]
        if not draw(st.integers(0, 5)):
            return [*value[: at + 1], *value[at:]]
        return [*value[:at], _twist_one(draw, value[at]), *value[at + 1 :]]
    return draw(junk)


def json_bytes(right: SearchStrategy[Any]) -> SearchStrategy[bytes]:
    """JSON that is right but for some of its parts, and for some of its bytes; or nested too deep."""
    whole = twisted(right).map(lambda value: json.dumps(value).encode())
    return st.one_of(whole, whole, broken(whole, most=2), st.just(DEEP), st.just(b'{"a":' * 10_000))


@st.composite
def in_pieces(draw: DrawFn, data: SearchStrategy[bytes]) -> list[bytes]:
    """Bytes as a connection may deliver them."""
    whole = draw(data)
    if draw(st.booleans()):
        size = draw(st.integers(1, 7))
        return [whole[at : at + size] for at in range(0, min(len(whole), 4096), size)] + [whole[4096:]]
    cuts = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=5)))
    return [whole[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]


def one_of_these(*values: bytes) -> SearchStrategy[bytes]:
    return st.sampled_from(values)


def joined(parts: Sequence[bytes]) -> SearchStrategy[bytes]:
    """Several of these parts, one behind the other."""
    return st.lists(st.sampled_from(parts), min_size=1, max_size=6).map(b"".join)

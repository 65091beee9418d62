"""Writes the pickle in which stock torch keeps its rendezvous state, opcode by opcode: it needs no torch.

The counterpart of `stock_pickle`, and after the same sources. The memo is used for what every node needs
again: the classes, the names of a node's fields, the time zone, and each node once it was written.
"""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from typing import Any, Final

from arendezvous.wire.torch_state.unpickling import Global, StockDesc

_U8, _U16, _I32, _U32 = (struct.Struct(layout) for layout in ("<B", "<H", "<i", "<I"))


def _text(text: str) -> bytes:
    encoded = text.encode()
    if len(encoded) < 256:
        return b"\x8c" + _U8.pack(len(encoded)) + encoded
    return b"X" + _U32.pack(len(encoded)) + encoded


def _int(number: int) -> bytes:
    if 0 <= number < 256:
        return b"K" + _U8.pack(number)
    if 0 <= number < 65536:
        return b"M" + _U16.pack(number)
    if -(2**31) <= number < 2**31:
        return b"J" + _I32.pack(number)
    packed = number.to_bytes(number.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + _U8.pack(len(packed)) + packed


def _name_global(known: Global) -> bytes:
    return b"".join(map(_text, known.value)) + b"\x93"


_KEEP: Final = b"\x940"  # into the memo, and off the stack
_CONSTANTS: Final = (
    _name_global(Global.STATE),  # h0
    _name_global(Global.NODE),  # h1
    _name_global(Global.DATETIME),  # h2
    *map(_text, StockDesc._fields),  # h3, h4, h5
    _name_global(Global.TIMEZONE) + _name_global(Global.TIMEDELTA) + b"K\x00K\x00K\x00\x87R\x85R",  # h6: UTC
)
_PREFACE: Final = b"\x80\x04" + b"".join(constant + _KEEP for constant in _CONSTANTS)


class _Writer:
    """Writes values; a node that was written already is recalled from the memo."""

    def __init__(self) -> None:
        self._kept: dict[StockDesc, int] = {}

    def node(self, desc: StockDesc) -> bytes:
        index = self._kept.get(desc)
        if index is not None:
            return b"h" + _U8.pack(index) if index < 256 else b"j" + _U32.pack(index)
        self._kept[desc] = len(_CONSTANTS) + len(self._kept)
        fields = (_text(desc.addr), b"h\x04", _int(desc.pid), b"h\x05", _int(desc.local_id))
        return b"h\x01)\x81}(h\x03" + b"".join(fields) + b"ub\x94"

    def value(self, value: object) -> bytes:
        if value is None:
            return b"N"
        if isinstance(value, bool):
            return b"\x88" if value else b"\x89"
        if isinstance(value, int):
            return _int(value)
        if isinstance(value, str):
            return _text(value)
        if isinstance(value, datetime):
            return _stamp(value)
        if isinstance(value, dict):
            return b"}(" + b"".join(self.node(node) + self.value(item) for node, item in value.items()) + b"u"
        assert isinstance(value, set)  # noqa: S101 - the attributes of a state have no other type
        return b"\x8f(" + b"".join(map(self.node, sorted(value))) + b"\x90"


def _stamp(moment: datetime) -> bytes:
    utc = moment.astimezone(UTC)
    high, low = divmod(utc.microsecond, 65536)
    packed = struct.pack(">H6BH", utc.year, utc.month, utc.day, utc.hour, utc.minute, utc.second, high, low)
    return b"h\x02C\x0a" + packed + b"h\x06\x86R"


def write_state(attributes: dict[str, Any]) -> bytes:
    """Pickles a stock state with these attributes, so that stock reads it; the inverse of `read_state`."""
    writer = _Writer()
    items = b"".join(_text(name) + writer.value(value) for name, value in attributes.items())
    return _PREFACE + b"h\x00)\x81}(" + items + b"ub."

"""The rendezvous state that stock agents share, as text in a store; and what we add to it.

The text is base64 of a pickle (see `unpickling`), or a sentinel that means that there is no state yet.

Stock carries attributes that it does not know along, because it unpickles and pickles the whole ``__dict__``
of its state. One such attribute, `ANNEX`, holds as JSON text what stock's format has no place for: names and
addresses of our nodes, their settings, and why somebody left. It means nothing to stock, and to us nothing
depends on it: lists, ranks, stamps and rounds are read from stock's attributes alone. Any other attribute
that we do not know is refused: a later version of torch may rely on whoever writes the state to keep it true.
"""

from __future__ import annotations

import struct
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any, Final

import msgspec

from arendezvous.errors import RendezvousStateError
from arendezvous.law.checks import MAX_NAME
from arendezvous.law.state import MAX_ROUND, Cause, NodeDesc, RunSettings
from arendezvous.wire.foreign import decode_foreign, json_decoder
from arendezvous.wire.torch_state.unpickling import Global, StockDesc, corrupt, read_state

SENTINEL: Final = b"Y2FuaW1hZGFt"
ANNEX: Final = "_arendezvous"
MAX_STATE: Final = 8 * 1024 * 1024  # the longest value that a stock store takes
_ANNEX_VERSION: Final = 1
_MAX_NUMBER: Final = 2**63


_Text = Annotated[str, msgspec.Meta(max_length=MAX_NAME)]
_Words = Annotated[str, msgspec.Meta(max_length=4096)]
_Count = Annotated[int, msgspec.Meta(ge=0)]
_U8, _U16, _I32, _U32 = (struct.Struct(layout) for layout in ("<B", "<H", "<i", "<I"))


class NodeEntry(msgspec.Struct, frozen=True, array_like=True):
    """Adds to one node what stock does not know."""

    arrival: _Count  # counts the arrivals of a run; smaller is older
    desc: NodeDesc | None = None  # how the node describes itself; None for a stock node
    rank: int = -1  # its rank in the last complete round; -1 if it had none


class GoneMember(msgspec.Struct, frozen=True, array_like=True):
    """One of the latest departures that one of ours brought about."""

    number: _Count  # counts them from 1
    key: str  # stock's text for the node
    node: _Text  # its name
    cause: Cause  # why it went
    reason: _Words  # the same in words
    round: _Count  # the round at that time


class World(msgspec.Struct, frozen=True, array_like=True):
    """A complete round as it was on completion."""

    round: _Count
    size: _Count
    digest: _Text
    rank0: tuple[_Text, ...]


class Annex(msgspec.Struct, frozen=True, omit_defaults=True):
    """Adds to stock's state what it does not know."""

    version: int = _ANNEX_VERSION  # of this format
    pulse: _Text = "0"  # changes with all that one of ours does, but heartbeats; see `FencedKey`
    settings: RunSettings | None = None  # of those of our nodes that are in the run
    arrivals: _Count = 0  # how many nodes ever arrived, as far as ours have seen
    nodes: dict[str, NodeEntry] = {}  # by stock's text for the node
    gone: tuple[GoneMember, ...] = ()  # the latest departures
    gone_count: _Count = 0  # how many there have been
    closed: tuple[_Text, _Words] | None = None  # by whom, and why; None if that is not known
    world: World | None = None  # the latest complete round that one of ours has written or seen
    mixed: bool = False  # whether that round had stock members


@dataclass
class StockState:
    """Stock's state: see `_RendezvousState` of torch for its attributes."""

    round: int = 0  # the round that gathers or is complete
    complete: bool = False  # whether it is complete
    deadline: datetime | None = None  # when the last call is over, by the clock of who wrote it; None: none
    closed: bool = False  # whether the run is closed
    participants: dict[StockDesc, int] = field(default_factory=dict)  # to ranks, once complete
    wait_list: set[StockDesc] = field(default_factory=set)  # nodes that wait for the next round
    redundancy_list: set[StockDesc] = field(default_factory=set)  # spares
    last_heartbeats: dict[StockDesc, datetime] = field(default_factory=dict)  # each by its own clock
    annex: Annex = field(default_factory=Annex, compare=False)  # what we add; not compared

    def nodes(self) -> set[StockDesc]:
        """All nodes that are in some list."""
        return {*self.participants, *self.wait_list, *self.redundancy_list}


_decode_annex: Final = json_decoder(Annex)
_decode_base64: Final = partial(b64decode, validate=True)


def decode_state(text: bytes) -> StockState | None:
    """Reads a state from the text in the store; None if there is none yet.

    Raises `RendezvousStateError` if it is not one of stock's, or of another version. Nothing is executed.
    """
    if text in (b"", SENTINEL):
        return None
    if len(text) > MAX_STATE:
        message = f"the rendezvous state has {len(text)} bytes, but at most {MAX_STATE} are read"
        raise RendezvousStateError(message)
    data = decode_foreign(
        _decode_base64, text, lambda said: corrupt(f"it is not base64 ({said}): {text[:40]!r}")
    )
    return _checked(read_state(data))


def encode_state(state: StockState) -> bytes:
    """Writes text that stock reads. Raises `RendezvousStateError` if a store does not take so much."""
    attributes: dict[str, Any] = {name: getattr(state, name) for name in _KINDS}
    if state.annex != Annex():
        attributes[ANNEX] = msgspec.json.encode(state.annex).decode()
    text = b64encode(write_state(attributes))
    if len(text) > MAX_STATE:
        raise RendezvousStateError(
            f"the rendezvous state would have {len(text)} bytes with {len(state.nodes())} nodes, but a store"
            f" takes at most {MAX_STATE}; use tcp:// for a run of that size"
        )
    return text


def _is_int(value: object, limit: int = _MAX_NUMBER) -> bool:
    return type(value) is int and 0 <= value <= limit


def _is_moment(value: object) -> bool:
    return isinstance(value, datetime) and value.tzinfo is not None


def _is_node(value: object) -> bool:
    return (
        isinstance(value, StockDesc)
        and 0 < len(value.addr) <= MAX_NAME
        and value.addr.isprintable()
        and _is_int(value.pid)
        and _is_int(value.local_id)
    )


def _is_set(value: object) -> bool:
    return isinstance(value, set) and all(map(_is_node, value))


def _is_dict(value: object, fits: Callable[[object], bool]) -> bool:
    return isinstance(value, dict) and all(_is_node(node) and fits(held) for node, held in value.items())


_KINDS: Final[Mapping[str, tuple[Any, str]]] = {
    "round": (lambda value: _is_int(value, MAX_ROUND), "a round number"),
    "complete": (lambda value: isinstance(value, bool), "true or false"),
    "deadline": (lambda value: value is None or _is_moment(value), "a date with a time zone, or None"),
    "closed": (lambda value: isinstance(value, bool), "true or false"),
    "participants": (lambda value: _is_dict(value, _is_int), "a dict of nodes and ranks"),
    "wait_list": (_is_set, "a set of nodes"),
    "redundancy_list": (_is_set, "a set of nodes"),
    "last_heartbeats": (
        lambda value: _is_dict(value, _is_moment),
        "a dict of nodes and dates with a time zone",
    ),
}


def _checked(attributes: Mapping[Any, Any]) -> StockState:
    found = {name for name in attributes if type(name) is str}  # a key may be a node as well
    missing, unknown = _KINDS.keys() - found, found - _KINDS.keys() - {ANNEX}
    if missing or unknown or len(found) != len(attributes):
        raise RendezvousStateError(
            "the rendezvous state is of a version of torch that this one does not know: "
            f"missing attributes: {_listed(missing)}; unknown ones: {_listed(unknown)}. It is left as it is",
            missing=sorted(missing),
            unknown=[name[:200] for name in sorted(unknown)],
        )
    for name, (accepts, expected) in _KINDS.items():
        if not accepts(attributes[name]):
            raise corrupt(f"{name} is {_described(attributes[name])}, not {expected}")
    state = StockState(**{name: attributes[name] for name in _KINDS}, annex=_annex(attributes.get(ANNEX)))
    ranks = sorted(state.participants.values())
    if state.complete and len(set(ranks)) != len(ranks):
        raise corrupt(f"members share a rank: {ranks[:40]}")
    return state


def _annex(text: object) -> Annex:
    if text is None:
        return Annex()
    if not isinstance(text, str):
        raise corrupt(f"{ANNEX} is {_described(text)}, not text")
    annex = decode_foreign(_decode_annex, text, lambda said: corrupt(f"{ANNEX}: {said}"))
    if annex.version != _ANNEX_VERSION:
        raise RendezvousStateError(
            f"the rendezvous state was written by another version of arendezvous ({ANNEX} has version"
            f" {annex.version}, this one knows {_ANNEX_VERSION}); run the same version on all nodes"
        )
    return annex


def _listed(names: set[str]) -> str:
    return ", ".join(name[:80] for name in sorted(names)[:16]) or "none"


def _described(value: object) -> str:
    """Says what `value` is; never by its repr, which may be exponentially long."""
    if isinstance(value, bool | int | float | datetime):
        return f"{value}"[:80]
    if isinstance(value, str | bytes):
        return repr(value[:80])
    return f"a {type(value).__name__}"


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
        for kind, write in _WRITE.items():  # not by its type: a clock may give a kind of datetime of its own
            if isinstance(value, kind):
                return write(value)
        if isinstance(value, dict):
            return b"}(" + b"".join(self.node(node) + self.value(item) for node, item in value.items()) + b"u"
        assert isinstance(value, set)  # noqa: S101 - the attributes of a state have no other type
        return b"\x8f(" + b"".join(map(self.node, sorted(value))) + b"\x90"


def _stamp(moment: datetime) -> bytes:
    utc = moment.astimezone(UTC)
    high, low = divmod(utc.microsecond, 65536)
    packed = struct.pack(">H6BH", utc.year, utc.month, utc.day, utc.hour, utc.minute, utc.second, high, low)
    return b"h\x02C\x0a" + packed + b"h\x06\x86R"


_WRITE: Final[Mapping[type, Callable[[Any], bytes]]] = {
    type(None): lambda _: b"N",
    bool: lambda value: b"\x88" if value else b"\x89",
    int: _int,
    str: _text,
    datetime: _stamp,
}


def write_state(attributes: dict[str, Any]) -> bytes:
    """Pickles a stock state with these attributes, so that stock reads it; the inverse of `read_state`."""
    writer = _Writer()
    items = b"".join(_text(name) + writer.value(value) for name, value in attributes.items())
    return _PREFACE + b"h\x00)\x81}(" + items + b"ub."

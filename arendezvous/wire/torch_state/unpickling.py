"""The pickle in which stock torch keeps its rendezvous state, read as data, without the pickle module.

Source: the `_RendezvousState` of ``torch.distributed.elastic.rendezvous.dynamic_rendezvous`` in torch 2.13,
as pickled by protocol 4 or 5, and the opcodes documented in the standard library's ``pickletools``.

Reading is a small stack machine that knows those opcodes and five global names. It imports, calls and looks
up nothing: a global becomes one of five marks, and the two opcodes that would call one build plain values.
What it makes is never larger than a constant times the input, and only text and node descriptions are ever
hashed, so that neither memory nor time can be blown up from inside. `state` writes it.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone, tzinfo
from typing import Any, Final, NamedTuple

from arendezvous.errors import RendezvousStateError

_MODULE: Final = "torch.distributed.elastic.rendezvous.dynamic_rendezvous"


class StockDesc(NamedTuple):
    """A node as stock describes it; sorted as stock sorts, when it gives out ranks."""

    addr: str  # the node's address
    pid: int  # its process id
    local_id: int  # tells the nodes of one process apart

    def __str__(self) -> str:
        return f"{self.addr}_{self.pid}_{self.local_id}"


class Global(enum.Enum):
    """The global names that the pickle may mention; `_BY_NAME` has them all."""

    STATE = (_MODULE, "_RendezvousState")
    NODE = (_MODULE, "_NodeDesc")
    DATETIME = ("datetime", "datetime")
    TIMEZONE = ("datetime", "timezone")
    TIMEDELTA = ("datetime", "timedelta")


_BY_NAME: Final = {known.value: known for known in Global}


@dataclass(slots=True, eq=False, repr=False)
class _Object:
    """A state or a node: made by NEWOBJ, filled by BUILD."""

    kind: Global
    value: dict[str, Any] | StockDesc | None = None


class _Machine:
    """Reads one pickle."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> dict[str, Any]:
        """Returns the attributes of the state."""
        while True:
            opcode = self.byte()
            if opcode == _STOP:
                break
            handler = _HANDLERS.get(opcode)
            if handler is None:
                shown = bytes([opcode])
                raise corrupt(f"the pickle has the opcode {shown!r}, for which no rendezvous state has use")
            handler(self)
        top = self.pop()
        if self.stack or self.at != len(self.data):
            raise corrupt("the pickle goes on behind the state")
        if not isinstance(top, _Object) or top.kind is not Global.STATE or not isinstance(top.value, dict):
            raise corrupt(f"the pickle holds {_kind(top)} instead of a rendezvous state")
        return top.value

    def take(self, count: int) -> bytes:
        end = self.at + count
        if end > len(self.data):
            raise corrupt(f"the pickle ends after {len(self.data)} bytes, in the middle")
        taken, self.at = self.data[self.at : end], end
        return taken

    def byte(self) -> int:
        at = self.at
        if at >= len(self.data):
            raise corrupt(f"the pickle ends after {at} bytes, in the middle")
        self.at = at + 1
        return self.data[at]

    def number(self, layout: struct.Struct) -> int:
        value: int = layout.unpack(self.take(layout.size))[0]
        return value

    def line(self) -> str:
        end = self.data.find(b"\n", self.at)
        if end < 0:
            raise corrupt("the pickle ends within a name")
        text, self.at = self.data[self.at : end], end + 1
        return text.decode("utf-8", "replace")

    def pop(self) -> Any:
        if not self.stack or (self.marks and self.marks[-1] == len(self.stack)):
            raise corrupt("the pickle takes something from an empty stack")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        if not self.marks:
            raise corrupt("the pickle goes back to a mark that it never set")
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def text(self, length: int) -> str:
        try:
            return self.take(length).decode()
        except UnicodeDecodeError as error:
            raise corrupt("the pickle has text that is not UTF-8") from error

    # What the opcodes do

    def find_global(self, module: object, name: object) -> None:
        known = _BY_NAME.get((module, name)) if isinstance(module, str) and isinstance(name, str) else None
        if known is None:
            raise RendezvousStateError(
                f"the rendezvous state refers to {_shown(module)}.{_shown(name)}, which no rendezvous state"
                " does; nothing was executed. Find out who can write to the store, and use another run id",
                module=_shown(module),
                name=_shown(name),
            )
        self.stack.append(known)

    def stack_global(self) -> None:
        name = self.pop()
        self.find_global(self.pop(), name)

    def new_object(self) -> None:
        arguments, kind = self.pop(), self.pop()
        if arguments != () or kind not in (Global.STATE, Global.NODE):
            raise corrupt(f"the pickle makes an object of {_kind(kind)} with {_kind(arguments)}")
        self.stack.append(_Object(kind))

    def reduce(self) -> None:
        arguments, kind = self.pop(), self.pop()
        maker = _MAKERS.get(kind) if isinstance(kind, Global) else None
        if maker is None or not isinstance(arguments, tuple):
            raise corrupt(f"the pickle calls {_kind(kind)}; only dates are made in that way")
        try:
            self.stack.append(maker(*arguments))
        except (TypeError, ValueError, OverflowError, struct.error) as error:
            raise corrupt(f"the pickle makes a {kind.value[1]} out of something else") from error

    def build(self) -> None:
        attributes, target = self.pop(), self.pop()
        if not isinstance(target, _Object) or target.value is not None or not isinstance(attributes, dict):
            raise corrupt(f"the pickle fills {_kind(target)} with {_kind(attributes)}")
        if target.kind is Global.STATE:
            target.value = dict(attributes)
        else:
            target.value = _node(attributes)
        self.stack.append(target)

    def set_items(self, items: list[Any]) -> None:
        target = self.pop()
        if not isinstance(target, dict) or len(items) % 2:
            raise corrupt(f"the pickle puts items into {_kind(target)}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_hashable(key)] = value
        self.stack.append(target)

    def set_item(self) -> None:
        value = self.pop()
        self.set_items([self.pop(), value])

    def add_items(self) -> None:
        items, target = self.pop_to_mark(), self.pop()
        if not isinstance(target, set):
            raise corrupt(f"the pickle adds members to {_kind(target)}")
        target.update(_hashable(item) for item in items)
        self.stack.append(target)

    def tuple_of(self, count: int) -> None:
        items = [self.pop() for _ in range(count)]
        self.stack.append(tuple(reversed(items)))

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise corrupt(f"the pickle recalls number {index}, which it never kept")
        self.stack.append(self.memo[index])

    def keep(self, index: int) -> None:
        if not self.stack:
            raise corrupt("the pickle keeps something from an empty stack")
        self.memo[index] = self.stack[-1]


def _node(attributes: dict[Any, Any]) -> StockDesc:
    found = {name: value for name, value in attributes.items() if isinstance(name, str)}
    addr, pid, local_id = (found.get(name) for name in StockDesc._fields)
    plain = isinstance(addr, str) and type(pid) is int and type(local_id) is int
    if len(attributes) != len(StockDesc._fields) or not plain:
        shown = list(attributes.items())[:8]
        described = ", ".join(f"{_shown(name)}: {_kind(value)}" for name, value in shown)
        raise corrupt(f"a node has ({described}), expected addr: str, pid: int, local_id: int")
    return StockDesc(addr, pid, local_id)  # type: ignore[arg-type]  # looked at just above


def _hashable(key: object) -> str | StockDesc:
    if isinstance(key, str):
        return key
    if isinstance(key, _Object) and isinstance(key.value, StockDesc):
        return key.value
    raise corrupt(f"the pickle has {_kind(key)} as a key; only names and nodes are")


def _make_datetime(packed: object, zone: object) -> datetime:
    if not isinstance(packed, bytes) or len(packed) != 10 or not isinstance(zone, tzinfo):
        raise ValueError("not a date with a time zone")
    year, month, day, hour, minute, second, high, low = struct.unpack(">H6BH", packed)
    return datetime(year, month & 0x7F, day, hour, minute, second, high << 16 | low, zone)


_MAKERS: Final[dict[Global, Callable[..., object]]] = {
    Global.DATETIME: _make_datetime,
    Global.TIMEDELTA: timedelta,
    Global.TIMEZONE: timezone,
}

_U16, _I32, _U32, _U64 = (struct.Struct(layout) for layout in ("<H", "<i", "<I", "<Q"))


def _proto(machine: _Machine) -> None:
    version = machine.byte()
    if version not in (4, 5):
        raise corrupt(f"the pickle has protocol {version}, expected 4 or 5")


_OPCODES: Final[dict[bytes, Callable[[_Machine], object]]] = {
    b"\x80": _proto,
    b"\x95": lambda m: m.number(_U64),  # a frame: a hint for reading from a file
    b"(": lambda m: m.marks.append(len(m.stack)),
    b"0": _Machine.pop,
    b"N": lambda m: m.stack.append(None),
    b"\x88": lambda m: m.stack.append(True),
    b"\x89": lambda m: m.stack.append(False),
    b"K": lambda m: m.stack.append(m.byte()),
    b"M": lambda m: m.stack.append(m.number(_U16)),
    b"J": lambda m: m.stack.append(m.number(_I32)),
    b"\x8a": lambda m: m.stack.append(int.from_bytes(m.take(m.byte()), "little", signed=True)),
    b"\x8c": lambda m: m.stack.append(m.text(m.byte())),
    b"X": lambda m: m.stack.append(m.text(m.number(_U32))),
    b"C": lambda m: m.stack.append(m.take(m.byte())),
    b")": lambda m: m.stack.append(()),
    b"\x85": lambda m: m.tuple_of(1),
    b"\x86": lambda m: m.tuple_of(2),
    b"\x87": lambda m: m.tuple_of(3),
    b"}": lambda m: m.stack.append({}),
    b"\x8f": lambda m: m.stack.append(set()),
    b"s": _Machine.set_item,
    b"u": lambda m: m.set_items(m.pop_to_mark()),
    b"\x90": _Machine.add_items,
    b"c": lambda m: m.find_global(m.line(), m.line()),
    b"\x93": _Machine.stack_global,
    b"\x81": _Machine.new_object,
    b"R": _Machine.reduce,
    b"b": _Machine.build,
    b"\x94": lambda m: m.keep(len(m.memo)),
    b"q": lambda m: m.keep(m.byte()),
    b"r": lambda m: m.keep(m.number(_U32)),
    b"h": lambda m: m.recall(m.byte()),
    b"j": lambda m: m.recall(m.number(_U32)),
}

_HANDLERS: Final = {opcode[0]: handler for opcode, handler in _OPCODES.items()}
_STOP: Final = ord(".")


def corrupt(what: str) -> RendezvousStateError:
    """Builds the error for a state that is damaged."""
    return RendezvousStateError(f"the rendezvous state is corrupt: {what}")


def _kind(value: object) -> str:
    if isinstance(value, Global):
        return ".".join(value.value)
    if isinstance(value, _Object):
        return f"a {value.kind.value[1]}"
    return type(value).__name__


def _shown(name: object) -> str:
    return name[:200] if isinstance(name, str) else f"({_kind(name)})"


def read_state(data: bytes) -> dict[str, Any]:
    """Reads the attributes of a pickled stock state, without a look at their values; nodes are `StockDesc`.

    Raises `RendezvousStateError` if it is no such pickle; a global that has no business in it is named.
    """
    return _Machine(data).run()

"""Checks of the values that the law is given: texts, names, seconds, and the JSON that nodes bring."""

from __future__ import annotations

import math
from typing import Any, Final

import msgspec

from arendezvous.errors import RendezvousSettingsError, RendezvousTypeError

MAX_NAME: Final = 256  # characters in a node's name, address, label or reason
MAX_DEPTH: Final = 32
_INT64: Final = 2**63
_PLAIN: Final = frozenset({int, float, str, bool, type(None)})

_encode: Final = msgspec.json.Encoder(order="sorted").encode
_scan: Final = msgspec.json.Decoder(msgspec.Raw).decode
_decode: Final = msgspec.json.Decoder().decode


def check_text(name: str, text: object, *, empty: bool = True) -> None:
    """Raises `RendezvousSettingsError` unless `text` is short, printable and, if so asked, not empty.

    It is a `RendezvousTypeError` if it is no text at all.
    """
    if not isinstance(text, str):
        raise RendezvousTypeError.of(name, text, "text")
    if len(text) > MAX_NAME or not text.isprintable() or not (text or empty):
        least = 0 if empty else 1
        raise RendezvousSettingsError.of(name, text, f"{least} to {MAX_NAME} printable characters")


def check_id(name: str, text: object) -> None:
    """Raises `RendezvousSettingsError` unless `text` may name a run or a node, wherever names are written."""
    # as each node calls this, no call for it
    if not isinstance(text, str) or not text or len(text) > MAX_NAME or not text.isprintable():
        check_text(name, text, empty=False)
    if text in (".", ".."):
        raise RendezvousSettingsError.of(name, text, "another name: in a URL this is a step between folders")


def check_seconds(name: str, value: float, *, zero: bool = False) -> None:
    """Raises `RendezvousSettingsError` unless `value` is a finite, positive (or zero) number of seconds."""
    if not (0 < value < math.inf or (zero and value == 0)):
        raise not_seconds(name, value, zero=zero)


def not_seconds(name: str, value: float, *, zero: bool = False) -> RendezvousSettingsError:
    """Builds the error for a `value` that is no finite, positive (or zero) number of seconds."""
    return RendezvousSettingsError.of(name, value, f"{'0 or more' if zero else 'more than 0'} seconds")


def check_size(name: str, data: bytes, most: int) -> None:
    """Raises `RendezvousSettingsError` if JSON has more than `most` bytes."""
    if len(data) > most:
        size = f"{len(data)} bytes as JSON"
        raise RendezvousSettingsError.of(name, size, f"at most {most}: share more by info.store")


def encoded(name: str, value: object, most: int) -> bytes:
    """Encodes what is JSON, or like it: tuples are lists; the same value gives the same bytes.

    Raises `RendezvousSettingsError` if there is something else in it, or it has more than `most` bytes.
    """
    _check(name, value, 0)
    try:
        made = _encode(value)
    except UnicodeEncodeError as error:
        raise RendezvousSettingsError.of(name, value, "of texts that are Unicode") from error
    check_size(name, made, most)
    return made


def decoded(data: bytes) -> Any:
    """Decodes what a node brought; None if that is nothing."""
    return _decode(data) if data else None


def _check(path: str, value: Any, depth: int) -> None:
    kind = type(value)
    if kind is int and not -_INT64 <= value < _INT64:
        raise RendezvousSettingsError.of(path, value, "an integer of at most 64 bits")
    if kind is float and not math.isfinite(value):
        raise RendezvousSettingsError.of(path, value, "a finite number: JSON has no other")
    if kind in _PLAIN:
        return
    if depth >= MAX_DEPTH:
        raise RendezvousSettingsError.of(path, value, f"nested less than {MAX_DEPTH} levels deep")
    if kind is list or kind is tuple:
        for number, item in enumerate(value):
            _check(f"{path}[{number}]", item, depth + 1)
    elif kind is dict:
        for key, item in value.items():
            if type(key) is not str:
                raise RendezvousSettingsError.of(f"a key of {path}", key, "a text")
            _check(f"{path}[{key!r}]", item, depth + 1)
    else:
        expected = "JSON: a dict with texts as keys, a list, a text, a number, a bool or None"
        raise RendezvousSettingsError.of(path, value, expected)


def check_encoded(data: bytes) -> None:
    """Raises `RendezvousSettingsError` unless `data` is JSON."""
    try:
        data.decode()
        _scan(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RendezvousSettingsError.of("data", data, f"JSON: {error}") from error

"""Checks of the values that the law is given: texts, names, seconds."""

from __future__ import annotations

import math
from typing import Final

from arendezvous.errors import RendezvousSettingsError, RendezvousTypeError

MAX_NAME: Final = 256  # characters in a node's name, address, label or reason


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
    if (
        not isinstance(text, str) or not text or len(text) > MAX_NAME or not text.isprintable()
    ):  # as each node calls this, no call for it
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

"""Decoding what came from outside: answers, messages and records that others wrote, or broke.

Whatever they hold, it is either understood or refused in words, by an exception that the caller chooses: all
that decoders may raise is known here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

import msgspec

D = TypeVar("D")
T = TypeVar("T")

NOT_UNDERSTOOD: Final = (msgspec.MsgspecError, ValueError, ArithmeticError, LookupError, RecursionError)
"""What decoders raise; ValueError stands for another encoding, and for values that the law refuses,
LookupError for what lacks a part."""

_LONGEST: Final = 300  # characters of a reason: the names of unknown fields are others' to choose


def decode_foreign(decode: Callable[[D], T], data: D, refuse: Callable[[str], Exception]) -> T:
    """Decodes what somebody else has made; raises what `refuse` makes of the reason, which can be printed."""
    try:
        return decode(data)
    except NOT_UNDERSTOOD as error:
        raise refuse(printable(str(error)[:_LONGEST])) from error


def json_decoder(kind: type[T]) -> Callable[[bytes | str], T]:
    """Makes the function that decodes JSON of a type; unknown fields are left aside."""
    return msgspec.json.Decoder(kind).decode


def printable(text: str) -> str:
    r"""Escapes what a terminal would take for commands, or for another direction of writing.

    So the result is one line: a line break becomes ``\n``. What can be printed stays as it is.
    """
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else _escaped(one) for one in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")

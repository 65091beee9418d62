"""Reduces what members bring to one value: checks each value, and makes the result.

Values are JSON. `min`, `max` and `sum` take numbers, whole ones of at most `MAX_WHOLE`, so that every JSON
reader takes them for what they are; `all` and `any` take true and false; `same` takes anything, and fails
unless all bring the same.
"""

from __future__ import annotations

import builtins
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import msgspec

from arendezvous.errors import RendezvousSettingsError, RendezvousStateError
from arendezvous.law.words import counted, listed

MAX_WHOLE: Final = 2**53
MAX_GROUPS: Final = 8  # different values that an error names
MAX_NAMED: Final = 8  # members that it names for each
MAX_SHOWN: Final = 80  # characters of a value in an error

_NUMBERS: Final[Mapping[str, Callable[[Iterable[Any]], Any]]] = {
    "min": min,
    "max": max,
    "sum": builtins.sum,
}
_TRUTHS: Final[Mapping[str, Callable[[Iterable[Any]], bool]]] = {"all": all, "any": any}


def checked_value(name: str, reducer: str, value: bytes) -> bytes:
    """Returns `value` in the one form that equal values have.

    Args:
        name: What it is called in an error.
        reducer: One of `rules.REDUCERS`.
        value: JSON.

    Raises:
        RendezvousSettingsError: It does not fit the reducer, or is no JSON.
    """
    shown = value[:MAX_SHOWN].decode(errors="replace")
    try:
        parsed = msgspec.json.decode(value)
        canonical = msgspec.json.encode(parsed, order="sorted")
    except (msgspec.MsgspecError, ValueError, RecursionError, OverflowError) as error:
        raise RendezvousSettingsError.of(name, shown, f"JSON ({error})") from error
    is_number = isinstance(parsed, int | float) and not isinstance(parsed, bool)
    if reducer in _NUMBERS and not (is_number and abs(parsed) <= _limit_of(parsed)):
        raise RendezvousSettingsError.of(name, shown, f"a number, for {reducer}; whole ones up to 2**53")
    if reducer in _TRUTHS and not isinstance(parsed, bool):
        raise RendezvousSettingsError.of(name, shown, f"true or false, for {reducer}")
    return canonical


def _limit_of(number: float) -> float:
    return MAX_WHOLE if isinstance(number, int) else math.nextafter(math.inf, 0)


def reduced(name: str, reducer: str, values: Mapping[str, bytes]) -> bytes:
    """Reduces the values of some members to one.

    Args:
        name: What they are called in an error.
        reducer: One of `rules.REDUCERS`.
        values: Member to its value, as `checked_value` gave it; at least one.

    Raises:
        RendezvousStateError: They are to be the same, and are not; or their sum is none that JSON has.
    """
    if reducer == "same":
        first = next(iter(values.values()))
        if any(value != first for value in values.values()):
            raise RendezvousStateError(f"{name} is not the same at all: {_who_brought_what(values)}")
        return first
    parsed = map(msgspec.json.decode, values.values())
    result = (_NUMBERS.get(reducer) or _TRUTHS[reducer])(parsed)
    if isinstance(result, float) and not math.isfinite(result):
        raise RendezvousStateError(f"{name}: the sum over {counted(len(values), 'member')} is too large")
    return msgspec.json.encode(result) if isinstance(result, float) else str(result).lower().encode()


def _who_brought_what(values: Mapping[str, bytes]) -> str:
    groups: dict[bytes, list[str]] = {}
    for member, value in values.items():
        groups.setdefault(value, []).append(member)
    ordered = sorted(groups.items(), key=lambda one: -len(one[1]))
    said = [f"{_shown(value)} at {listed(names, MAX_NAMED)}" for value, names in ordered]
    return "; ".join(said[:MAX_GROUPS]) + (
        f"; and {len(said) - MAX_GROUPS} others" if len(said) > MAX_GROUPS else ""
    )


def _shown(value: bytes) -> str:
    text = value.decode()
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."

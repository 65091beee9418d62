"""Reduces what nodes bring to one value: the facts of a run, and what its members agree on at a barrier.

A run agrees on *facts*, each with a reducer. Every node brings a value of every fact with its join; when a
round completes they are reduced over its members, in rank order, so that all see the same. Members that
brought different values of a fact that must be the `same` get no rank: all participants depart, and hear who
brought what.

At a barrier values are JSON, and a sum that JSON has not is an error; that of a fact is cut to what it has.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from arendezvous.errors import RendezvousSettingsError, RendezvousStateError
from arendezvous.law.checks import encoded
from arendezvous.law.rules import MAX_FACT, RoundRules
from arendezvous.law.words import counted, listed

MAX_ALL_FACTS: Final = 16 * 1024  # bytes of JSON of all facts that a node brings
MAX_EXACT: Final = 2**53  # up to it every integer is a float, too
_INT64: Final = 2**63
_GREATEST: Final = sys.float_info.max
_NAMED: Final = 6  # nodes that are named of those that brought one value, and values
_SHOWN: Final = 60  # characters of a value in an error
_LONGEST: Final = 700  # characters of an error, which is the reason of each departure


def _is_number(value: object) -> bool:
    if type(value) is int:
        return -MAX_EXACT <= value <= MAX_EXACT
    return type(value) is float and math.isfinite(value)


_NUMBER: Final = "a finite number, and from -2**53 to 2**53 if it is an integer"
_REDUCERS: Final[Mapping[str, tuple[Callable[[object], bool], str, Callable[[Sequence[Any]], Any]]]] = {
    "min": (_is_number, _NUMBER, min),
    "max": (_is_number, _NUMBER, max),
    "sum": (_is_number, _NUMBER, sum),
    "all": (lambda value: isinstance(value, bool), "a bool", all),
    "any": (lambda value: isinstance(value, bool), "a bool", any),
    "same": (lambda _: True, "", lambda values: values[0]),
}  # what fits, what is expected in words, and what is made of it


def check_facts(reducers: Mapping[str, str], facts: Mapping[str, Any]) -> None:
    """Raises `RendezvousSettingsError` unless a node brings what fits each fact, and no other."""
    if facts.keys() - reducers.keys():
        expected = f"those on which the run agrees: {', '.join(reducers)}"
        if not reducers:
            expected = "left out: this run agrees on none, see open_rendezvous(facts=)"
        raise RendezvousSettingsError.of("facts", sorted(facts), expected)
    size = 0
    for name, reducer in reducers.items():
        path = f"facts[{name!r}]"
        if name not in facts:
            expected = f"given: each node brings its own, for the reducer {reducer!r}"
            raise RendezvousSettingsError.of(path, "missing", expected)
        _check_fits(path, reducer, facts[name], facts[name])
        size += len(encoded(path, facts[name], MAX_FACT))
    if size > MAX_ALL_FACTS:
        raise RendezvousSettingsError.of("facts", f"{size} bytes as JSON", f"at most {MAX_ALL_FACTS} in all")


def _check_fits(name: str, reducer: str, value: object, shown: object) -> None:
    fits, expected, _ = _REDUCERS[reducer]
    if not fits(value):
        raise RendezvousSettingsError.of(name, shown, f"{expected}, for the reducer {reducer!r}")


def checked_value(name: str, reducer: str, value: bytes) -> bytes:
    """Returns JSON in the form that equal values have. Raises if it is none, or does not fit the reducer."""
    shown = value[:80].decode(errors="replace")
    try:
        parsed = msgspec.json.decode(value)
        canonical = msgspec.json.encode(parsed, order="sorted")
    except (msgspec.MsgspecError, ValueError, RecursionError, OverflowError) as error:
        raise RendezvousSettingsError.of(name, shown, f"JSON ({error})") from error
    _check_fits(name, reducer, parsed, shown)
    return canonical


def reduced_value(name: str, reducer: str, values: Mapping[str, bytes]) -> bytes:
    """Reduces what members brought to a barrier. Raises `RendezvousStateError` if that has no one value."""
    if reducer == "same":
        try:
            check_same(name, list(values.items()))
        except DisagreementError as error:
            raise RendezvousStateError(str(error)) from None
        return next(iter(values.values()))
    result = _REDUCERS[reducer][2](list(map(msgspec.json.decode, values.values())))
    if isinstance(result, float) and not math.isfinite(result):
        raise RendezvousStateError(f"{name}: the sum over {counted(len(values), 'member')} is too large")
    # msgspec has no integers of more than 64 bits
    return str(result).encode() if type(result) is int else msgspec.json.encode(result)


class DisagreementError(Exception):
    """Nodes brought values that have nothing in common; says who brought what."""


def reduced(reducers: Mapping[str, str], brought: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Reduces what members `brought`, in rank order, to one value a fact. Raises `DisagreementError`."""
    result = {}
    for name, reducer in reducers.items():
        values = [facts[name] for _, facts in brought]
        if reducer == "same":
            brought_as = [(node, encoded(name, facts[name], MAX_FACT)) for node, facts in brought]
            check_same(f"fact {name!r}", brought_as)
        total = result[name] = _REDUCERS[reducer][2](values)
        if reducer == "sum" and not (isinstance(total, int) and abs(total) < _INT64):
            result[name] = max(-_GREATEST, min(_GREATEST, float(total)))  # as JSON has no infinity
    return result


class Opinions:
    """Counts what the participants of a round that gathers bring of the facts that must be the same."""

    __slots__ = ("_held",)

    def __init__(self, names: Iterable[str]) -> None:
        self._held: dict[str, Counter[bytes]] = {name: Counter() for name in names}  # how many bring which

    @classmethod
    def of(cls, rules: RoundRules | None) -> Opinions | None:
        """Makes what a run with these rules needs; None: nothing."""
        names = [] if rules is None else [name for name, reducer in rules.facts.items() if reducer == "same"]
        return cls(names) if names else None

    @property
    def agree(self) -> bool:
        """Whether all bring the same."""
        return all(len(held) <= 1 for held in self._held.values())

    def count(self, facts: Mapping[str, Any], change: int) -> None:
        """Notes that one comes who brings these (1), or goes (-1)."""
        for name, held in self._held.items():
            value = encoded(name, facts[name], MAX_FACT)
            held[value] += change
            if not held[value]:
                del held[value]

    def clear(self) -> None:
        """Forgets what is held, as the round is complete."""
        for held in self._held.values():
            held.clear()


def check_same(name: str, brought: Iterable[tuple[str, bytes]]) -> None:
    """Raises `DisagreementError`, that names who brought what, unless all brought the same."""
    holders: dict[bytes, list[str]] = {}
    for node, value in brought:
        holders.setdefault(value, []).append(node)
    if len(holders) > 1:
        said = [
            f"{_shortened(value.decode(), _SHOWN)} by {counted(len(nodes), 'node')} ({listed(nodes, _NAMED)})"
            for value, nodes in sorted(holders.items(), key=lambda one: -len(one[1]))
        ]
        text = f"{name} must be the same at all nodes, but is {listed(said, _NAMED)}"
        raise DisagreementError(_shortened(text, _LONGEST))


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}..."

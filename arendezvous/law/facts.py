"""Checks what nodes bring of the facts of a run, and reduces it to one value each.

A run agrees on *facts*, each with a reducer. Every node brings a value of every fact with its join; when a
round completes they are reduced over its members, in rank order, so that all see the same. Members that
brought different values of a fact that must be the `same` get no rank: all participants depart, and hear who
brought what.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from arendezvous.errors import RendezvousSettingsError
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


def check_facts(reducers: Mapping[str, str], facts: Mapping[str, Any]) -> None:
    """Raises `RendezvousSettingsError` unless a node brings what fits each fact, and no other."""
    for name in facts:
        if name not in reducers:
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
        value = facts[name]
        if not _FITS[reducer](value):
            expected = f"{_EXPECTED[reducer]}, for the reducer {reducer!r}"
            raise RendezvousSettingsError.of(path, value, expected)
        size += len(encoded(path, value, MAX_FACT))
    if size > MAX_ALL_FACTS:
        raise RendezvousSettingsError.of("facts", f"{size} bytes as JSON", f"at most {MAX_ALL_FACTS} in all")


def _is_number(value: object) -> bool:
    if type(value) is int:
        return -MAX_EXACT <= value <= MAX_EXACT
    return type(value) is float and math.isfinite(value)


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


_FITS: Final[Mapping[str, Callable[[object], bool]]] = {
    "min": _is_number, "max": _is_number, "sum": _is_number,
    "all": _is_bool, "any": _is_bool, "same": lambda _: True,
}  # fmt: skip
_NUMBER: Final = "a finite number, an integer from -2**53 to 2**53"
_EXPECTED: Final = {"min": _NUMBER, "max": _NUMBER, "sum": _NUMBER, "all": "a bool", "any": "a bool"}


def _sum(values: Sequence[Any]) -> Any:
    total = sum(values)
    if isinstance(total, int) and abs(total) < _INT64:
        return total
    return max(-_GREATEST, min(_GREATEST, float(total)))  # as JSON has no infinity


_REDUCE: Final[Mapping[str, Callable[[Sequence[Any]], Any]]] = {
    "min": min, "max": max, "sum": _sum, "all": all, "any": any, "same": lambda values: values[0],
}  # fmt: skip


class DisagreementError(Exception):
    """Nodes brought values that have nothing in common; says who brought what."""


def reduced(reducers: Mapping[str, str], brought: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Reduces what the members of a round brought, in rank order, to one value a fact.

    Args:
        reducers: The facts.
        brought: The name and the facts of each member.

    Raises:
        DisagreementError: They brought different values of a fact that must be the same.
    """
    result = {}
    for name, reducer in reducers.items():
        values = [facts[name] for _, facts in brought]
        if reducer == "same":
            check_same(name, [(node, encoded(name, facts[name], MAX_FACT)) for node, facts in brought])
        result[name] = _REDUCE[reducer](values)
    return result


class Opinions:
    """Counts what the participants of a round that gathers bring of the facts that must be the same.

    Args:
        names: Those facts.

    Its fields:
        _held: How many bring each value, for each fact.
    """

    __slots__ = ("_held",)

    def __init__(self, names: Iterable[str]) -> None:
        self._held: dict[str, Counter[bytes]] = {name: Counter() for name in names}

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


def check_same(name: str, brought: Sequence[tuple[str, bytes]]) -> None:
    """Raises `DisagreementError`, that names who brought what, unless all brought the same of a fact."""
    holders: dict[bytes, list[str]] = {}
    for node, value in brought:
        holders.setdefault(value, []).append(node)
    if len(holders) > 1:
        said = [
            f"{shortened(value)} by {counted(len(nodes), 'node')} ({listed(nodes, _NAMED)})"
            for value, nodes in sorted(holders.items(), key=lambda one: -len(one[1]))
        ]
        text = f"fact {name!r} must be the same at all nodes, but is {listed(said, _NAMED)}"
        raise DisagreementError(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}...")


def shortened(value: bytes) -> str:
    """Shows JSON in an error."""
    text = value.decode()
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."

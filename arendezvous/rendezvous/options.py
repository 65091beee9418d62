"""How an option of a rendezvous is declared, checked, and read from torch's parameters.

An option is one line of a `TypedDict`: its name, its type, and what it is::

    class BeaconOptions(TypedDict, total=False):
        beacon: Annotated[float | timedelta | None, Option("Time between two beacons.", default=1.0)]

That line makes it a keyword of `open_rendezvous`, an option of ``--rdzv-conf``, and a line of ``help()`` and
of the documentation. None, for every option, is the same as leaving it out. A type is a time (``float |
timedelta``, in seconds), ``int``, ``bool``, ``str``, a ``Literal`` of texts, or any other class.
"""

from __future__ import annotations

import functools
import inspect
import operator
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, replace
from datetime import timedelta
from types import NoneType
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, get_args, get_origin, get_type_hints

from arendezvous.errors import RendezvousSettingsError, RendezvousTypeError
from arendezvous.law.checks import check_seconds
from arendezvous.law.state import Cause

if TYPE_CHECKING:
    from arendezvous.rendezvous.parameters import RendezvousParameters

Seconds = float | timedelta

_NAMES: Final = {str: "text", int: "a whole number", Mapping: "a dict"}
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Option:
    """Describes an option.

    Attributes:
        text: What it means, in a sentence.
        default: What holds if it is left out; None: what `otherwise` says.
        otherwise: Where the value comes from if it is left out and there is no default, in words.
        zero: Whether a number of seconds may be 0.
        also: Other names that people may take it for.
        instead: Added to the error about a value of another type; ``{value}`` stands for the value.
        unfit: Why ``--rdzv-conf`` does not take it, and what to give instead; empty: it does.
        name: Its name; it and `types` are filled in by `settings_of`.
        types: The types that a value may have, without None; or one ``Literal``.
    """

    text: str
    _: KW_ONLY
    default: object = None
    otherwise: str = ""
    zero: bool = False
    also: tuple[str, ...] = ()
    instead: str = ""
    unfit: str = ""
    name: str = ""
    types: tuple[Any, ...] = ()

    @property
    def choices(self) -> tuple[str, ...]:
        """The texts that the value may be; empty if it is no ``Literal``."""
        return get_args(self.types[0]) if get_origin(self.types[0]) is Literal else ()

    def check(self, value: Any) -> Any:
        """Returns `value`, times as seconds, unless it is of another type, or not allowed."""
        kind = self.types[0]
        if kind is float:
            return seconds(self.name, value, zero=self.zero)
        if kind is int:
            return whole(self.name, value)
        if self.choices:
            return choice(self.name, value, self.choices)
        kinds = tuple(get_origin(one) or one for one in self.types)
        if not isinstance(value, kinds) or (isinstance(value, bool) and kind is not bool):
            raise RendezvousTypeError.of(self.name, value, self._expected(value))
        return value

    def read(self, given: RendezvousParameters) -> Any:
        """Returns the option from torch's parameters, where it may be text; it is still to be checked."""
        if unfit := self.unfit:
            raise RendezvousSettingsError(f"{self.name} must be {unfit}", name=self.name, expected=unfit)
        reads: Any = {float: given.get_as_float, int: given.get_as_int, bool: given.get_as_bool}
        value = reads.get(self.types[0], given.get)(self.name)
        return value.strip().lower() if self.choices and isinstance(value, str) else value

    def _expected(self, value: object) -> str:
        if bool in self.types:
            expected = "True or False"
        elif self.types == (str,):
            expected = f"text: write {self.name}={str(value)!r}"
        else:
            kinds = [get_origin(one) or one for one in self.types]
            expected = " or ".join(_NAMES.get(kind, f"a {kind.__name__}") for kind in kinds)
        return expected + self.instead.format(value=repr(value))


@functools.cache
def settings_of(*groups: type) -> Mapping[str, Option]:
    """Returns the options of some `TypedDict`s, by name, in the order in which they are written."""
    found: dict[str, Option] = {}
    for group in groups:
        for name, hint in get_type_hints(group, include_extras=True).items():
            kind, option = get_args(hint)
            types = tuple(part for part in get_args(kind) if part is not NoneType)
            found[name] = replace(option, name=name, types=types)
    return found


def picked(given: Mapping[str, Any], *groups: type) -> dict[str, Any]:
    """Returns those of the options that are in some `TypedDict`s."""
    return {name: given[name] for name in settings_of(*groups) if name in given}


def other_names(known: Mapping[str, Option]) -> Mapping[str, str]:
    """Returns the names that people may take an option for, each with the option's own."""
    return {other: name for name, option in known.items() for other in option.also}


def check_options(known: Mapping[str, Option], given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what is given, checked, without what is None; all names must be known."""
    return {name: known[name].check(value) for name, value in given.items() if value is not None}


def seconds(name: str, value: Seconds, *, zero: bool = False) -> float:
    """Turns a number or a `timedelta`, neither negative nor infinite, into seconds; `zero`: it may be 0."""
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RendezvousTypeError.of(name, value, "a number of seconds or a timedelta")
    check_seconds(name, value, zero=zero)
    return float(value)


def whole(name: str, value: int) -> int:
    """Returns `value`, which must be a whole number."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise RendezvousTypeError.of(name, value, "a whole number")
    return value


def text(name: str, value: str) -> str:
    """Returns `value`, which must be text."""
    if not isinstance(value, str):
        raise RendezvousTypeError.of(name, value, f"text: write {name}={str(value)!r}")
    return value


def cause_of(value: Cause) -> Cause:
    """Returns why a node leaves, which must be a `Cause`."""
    if not isinstance(value, Cause):
        raise RendezvousTypeError.of("cause", value, "a Cause, such as Cause.FINISHED")
    return value


def choice(name: str, value: str, choices: Iterable[str]) -> str:
    """Returns `value`, which must be one of `choices`."""
    expected = f"one of {', '.join(choices)}"
    if not isinstance(value, str):
        raise RendezvousTypeError.of(name, value, expected)
    if value not in choices:
        raise RendezvousSettingsError.of(name, value, expected)
    return value


def takes_options(*groups: type) -> Callable[[F], F]:
    """Has ``help()`` and `inspect.signature` show each option of a function that takes ``**options``."""

    def decorate(function: F) -> F:
        known = settings_of(*groups)
        plain = inspect.signature(function, eval_str=True)
        named = [one for one in plain.parameters.values() if one.kind is not one.VAR_KEYWORD]
        named += [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=option.default,
                              annotation=functools.reduce(operator.or_, (*option.types, None)))
            for name, option in known.items()
        ]  # fmt: skip
        function.__signature__ = plain.replace(parameters=named)  # type: ignore[attr-defined]  # it may have one
        fill = functools.partial(textwrap.fill, width=100, initial_indent=" " * 4, subsequent_indent=" " * 8)
        lines = []
        for name, option in known.items():
            left_out = f" Left out: {option.otherwise}." if option.otherwise else ""
            lines.append(fill(f"{name}: {option.text}{left_out}"))
        function.__doc__ = "\n".join([inspect.cleandoc(function.__doc__ or ""), "", "Options:", *lines])
        return function

    return decorate

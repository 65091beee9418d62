"""Types of arguments, checked where users hand them in: at the call, by the annotations."""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Final, ParamSpec, TypeVar, Union, get_args, get_origin

import msgspec

from arendezvous.errors import RendezvousTypeError

P = ParamSpec("P")
T = TypeVar("T")

_WORDS: Final[dict[Any, str]] = {
    str: "text",
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    timedelta: "a timedelta",
    type(None): "None",
}


def typed(function: Callable[P, T]) -> Callable[P, T]:
    """Has a function check its arguments: they must be of the plain types and classes that are annotated.

    Whatever else is annotated, protocols and literals among them, is let pass. An int is a float, too, but a
    bool is no number. `RendezvousTypeError` names the argument; it is raised at the call, also where that
    makes a context manager.
    """
    signature = inspect.signature(function)

    @functools.cache
    def hints() -> dict[str, Any]:
        return typing.get_type_hints(inspect.unwrap(function))

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:
            return function(*args, **kwargs)  # which says it with its name
        for name in given.keys() & hints().keys():
            if not _fits(given[name], hints()[name]):
                raise RendezvousTypeError.of(name, given[name], _expected(hints()[name]))
        return function(*args, **kwargs)

    return checked


def check_fields(struct: msgspec.Struct) -> None:
    """Checks the fields of a struct as `typed` checks arguments; raises `RendezvousTypeError`, too."""
    for name, hint in _hints_of(type(struct)).items():
        value = getattr(struct, name)
        if not _fits(value, hint):
            raise RendezvousTypeError.of(name, value, _expected(hint))


@functools.cache
def _hints_of(kind: type[msgspec.Struct]) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _fits(value: object, hint: Any) -> bool:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in get_args(hint))
    if isinstance(origin, type) and issubclass(origin, Sequence):
        is_list = isinstance(value, Sequence) and not isinstance(value, str | bytes)
        return is_list and all(_fits(one, get_args(hint)[0]) for one in typing.cast(Sequence[object], value))
    if hint is int or hint is float:
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    is_class = isinstance(hint, type) and hint is not Any and origin is None
    return not is_class or getattr(hint, "_is_protocol", False) or isinstance(value, hint)


def _expected(hint: Any) -> str:
    each = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    words = [_WORDS.get(one) or _named(one) for one in each]
    return " or ".join(words) if len(words) < 3 else f"{', '.join(words[:-1])} or {words[-1]}"


def _named(hint: Any) -> str:
    if get_origin(hint) is not None:
        return f"a sequence, each of {_expected(get_args(hint)[0])}"
    name = getattr(hint, "__name__", str(hint))
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"

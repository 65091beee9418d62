"""Checks what a rendezvous handler is made from, when it is given.

The constructor and the getters are those of torch's ``RendezvousParameters``; the errors are ours, and are
`ValueError` too.
"""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar, overload

from arendezvous.errors import RendezvousSettingsError
from arendezvous.rendezvous.options import text

T = TypeVar("T")

_TRUE = ("1", "true", "t", "yes", "y")
_FALSE = ("0", "false", "f", "no", "n")


class RendezvousParameters:
    """The parameters of a rendezvous handler.

    Args:
        backend: The name of the backend.
        endpoint: Where the backend is: ``host[:port]`` or a URL.
        run_id: The run.
        min_nodes: How many nodes a round needs.
        max_nodes: How many nodes a round admits.
        local_addr: This node's address as others reach it; None to find it out.
        **kwargs: The backend's options.

    Attributes:
        config: The backend's options, by name.

    Raises:
        RendezvousTypeError: What must be text is something else.
        RendezvousSettingsError: The backend has no name, or not 1 <= min_nodes <= max_nodes.
    """

    def __init__(
        self,
        backend: str,
        endpoint: str,
        run_id: str,
        min_nodes: int,
        max_nodes: int,
        local_addr: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.backend = text("backend", backend)
        self.endpoint = text("endpoint", endpoint)
        self.run_id = text("run_id", run_id)
        text("local_addr", local_addr or "")
        if not backend:
            raise RendezvousSettingsError.of("backend", backend, "the name of a rendezvous backend")
        self.min_nodes = _count("min_nodes", min_nodes, 1, "a positive integer")
        self.max_nodes = _count(
            "max_nodes", max_nodes, self.min_nodes, f"an integer not less than min_nodes, {self.min_nodes}"
        )
        self.config: dict[str, Any] = kwargs
        self.local_addr = local_addr

    def get(self, key: str, default: Any = None) -> Any:
        """Returns the option `key` as it was given, or `default` if it was not."""
        return self.config.get(key, default)

    @overload
    def get_as_bool(self, key: str, default: bool) -> bool: ...
    @overload
    def get_as_bool(self, key: str, default: bool | None = None) -> bool | None: ...
    def get_as_bool(self, key: str, default: bool | None = None) -> bool | None:
        """Returns the option `key` as a truth value, or `default` if it was not given.

        Strings count in any case: 1, true, t, yes and y; 0, false, f, no and n.

        Raises:
            RendezvousSettingsError: The value is neither true nor false.
        """
        return self._get_as(_truth, key, default, f"one of {', '.join(_TRUE + _FALSE)}")

    @overload
    def get_as_int(self, key: str, default: int) -> int: ...
    @overload
    def get_as_int(self, key: str, default: int | None = None) -> int | None: ...
    def get_as_int(self, key: str, default: int | None = None) -> int | None:
        """Returns the option `key` as an integer, or `default` if it was not given.

        As in torch, the value is what ``int()`` makes of it: a fraction is cut off.

        Raises:
            RendezvousSettingsError: ``int()`` makes nothing of the value.
        """
        return self._get_as(int, key, default, "an integer")

    @overload
    def get_as_float(self, key: str, default: float) -> float: ...
    @overload
    def get_as_float(self, key: str, default: float | None = None) -> float | None: ...
    def get_as_float(self, key: str, default: float | None = None) -> float | None:
        """Returns the option `key` as a number, or `default` if it was not given.

        Raises:
            RendezvousSettingsError: The value is not a finite number.
        """
        return self._get_as(_finite, key, default, "a finite number")

    def _get_as(self, read: Callable[[Any], T], key: str, default: T | None, expected: str) -> T | None:
        value = self.get(key, default)
        try:
            return None if value is None else read(value)
        except (ValueError, TypeError, OverflowError) as error:
            raise RendezvousSettingsError.of(key, value, expected) from error


def _truth(value: object) -> bool:
    said = str(value).lower() if isinstance(value, int | str) else ""
    if said not in (*_TRUE, *_FALSE):
        raise ValueError("neither true nor false")
    return said in _TRUE


def _finite(value: Any) -> float:
    number = math.nan if isinstance(value, bool) else float(value)
    if not math.isfinite(number):
        raise ValueError("not finite")
    return number


def reject_unknown(
    params: RendezvousParameters, known: Collection[str], others: Mapping[str, str] = {}
) -> None:
    """Refuses the options of `params` that are not in `known`, with the names nearest to them."""
    unknown = sorted(params.config.keys() - set(known))
    if not unknown:
        return
    shown = "; ".join(f"{key!r}{suggestion(key, known, others)}" for key in unknown)
    options = ", ".join(sorted(known)) or "none"
    raise RendezvousSettingsError(
        f"the backend {params.backend!r} has no option {shown}. Its options: {options}",
        name=unknown[0],
        expected=options,
    )


def suggestion(word: str, known: Collection[str], others: Mapping[str, str] = {}) -> str:
    """Returns `` (did you mean ...?)`` with the name of `nearest`; empty if there is none."""
    near = nearest(word, known, others)
    return f" (did you mean {near!r}?)" if near else ""


def nearest(word: str, known: Collection[str], others: Mapping[str, str] = {}) -> str:
    """Returns the known name that `word`, or one of the `others`, may be meant for; empty if none is near."""
    near = difflib.get_close_matches(word, [*known, *others], n=1)
    return others.get(near[0], near[0]) if near else ""


def _count(name: str, value: object, least: int, expected: str) -> int:
    try:
        number = operator.index(value)  # type: ignore[arg-type]  # what is no integer is what this finds out
    except TypeError as error:
        raise RendezvousSettingsError.of(name, value, expected) from error
    if number < least:
        raise RendezvousSettingsError.of(name, value, expected)
    return number

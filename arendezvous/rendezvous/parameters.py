"""Checks what a rendezvous handler is made from, when it is given.

The constructor and the getters are those of torch's ``RendezvousParameters``; the errors are ours, and are
`ValueError` too.
"""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Collection, Mapping
from typing import Any, overload

from arendezvous.errors import RendezvousSettingsError, RendezvousTypeError

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
        texts = {"backend": backend, "endpoint": endpoint, "run_id": run_id, "local_addr": local_addr or ""}
        for name, value in texts.items():
            if not isinstance(value, str):
                raise RendezvousTypeError.of(name, value, f"text: write {name}={str(value)!r}")
        if not backend:
            raise RendezvousSettingsError.of("backend", backend, "the name of a rendezvous backend")
        self.backend = backend
        self.endpoint = endpoint
        self.run_id = run_id
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
        value = self.get(key, default)
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int | str):
            text = str(value).lower()
            if text in _TRUE:
                return True
            if text in _FALSE:
                return False
        raise RendezvousSettingsError.of(key, value, f"one of {', '.join(_TRUE + _FALSE)}")

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
        value = self.get(key, default)
        if value is None:
            return None
        try:
            return int(value)
        except (ValueError, TypeError, OverflowError) as error:
            raise RendezvousSettingsError.of(key, value, "an integer") from error

    @overload
    def get_as_float(self, key: str, default: float) -> float: ...
    @overload
    def get_as_float(self, key: str, default: float | None = None) -> float | None: ...
    def get_as_float(self, key: str, default: float | None = None) -> float | None:
        """Returns the option `key` as a number, or `default` if it was not given.

        Raises:
            RendezvousSettingsError: The value is not a finite number.
        """
        value = self.get(key, default)
        if value is None:
            return None
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (ValueError, TypeError, OverflowError) as error:
            raise RendezvousSettingsError.of(key, value, "a finite number") from error
        if not math.isfinite(number):
            raise RendezvousSettingsError.of(key, value, "a finite number")
        return number


def reject_unknown(
    params: RendezvousParameters, known: Collection[str], others: Mapping[str, str] | None = None
) -> None:
    """Checks that every option of `params` is in `known`, so that a misspelt one is not ignored in silence.

    Args:
        params: The parameters.
        known: The names of options.
        others: Other names that people may take an option for, and its own.

    Raises:
        RendezvousSettingsError: An option is unknown; `name` is the first such option and the message has all
            of them, each with the known name nearest to it.
    """
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


def suggestion(word: str, known: Collection[str], others: Mapping[str, str] | None = None) -> str:
    """Returns `` (did you mean ...?)`` with the name of `nearest`; empty if there is none."""
    near = nearest(word, known, others)
    return f" (did you mean {near!r}?)" if near else ""


def nearest(word: str, known: Collection[str], others: Mapping[str, str] | None = None) -> str:
    """Returns the known name that `word` may be meant for; empty if none is near.

    Args:
        word: What was written.
        known: The names that there are.
        others: Other names that people may take a known one for, and that one.
    """
    others = {} if others is None else others
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

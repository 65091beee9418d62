"""Plug-ins: what other distributions add to the package, by the entry points of a group.

Broken metadata of one distribution is passed over, and a plug-in is imported when its own name is asked
for, so that a broken one is in nobody else's way.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, distributions
from typing import Any

from arendezvous.errors import RendezvousSettingsError

_log = logging.getLogger(__name__)


class PlugIns:
    """The plug-ins of one entry point group; they are looked for once, when they are first needed.

    Args:
        group: The group.
        kind: What each of them adds, for errors: ``backend``, ``scheme``.
    """

    def __init__(self, group: str, kind: str) -> None:
        self.group = group
        self._kind = kind

    def names(self) -> tuple[str, ...]:
        """Returns the names of all plug-ins, sorted; none is imported."""
        return tuple(sorted(self._points))

    def load(self, name: str, read: Callable[[EntryPoint], object] = EntryPoint.load) -> Any:
        """Imports the plug-in `name`, one of `names`, and returns what it adds, which `read` gets at."""
        claims = self._points[name]
        if len(claims) > 1:
            described = " and ".join(map(_describe, claims))
            expected = f"claimed by one plug-in, not by {described}: uninstall all but one of them"
            raise RendezvousSettingsError.of(self._kind, name, expected)
        return load(self.describe(name), lambda: read(claims[0]), self._kind)

    def describe(self, name: str) -> str:
        """Returns, for errors, where the plug-in `name` comes from."""
        return f"plug-in {_describe(self._points[name][0])} for {self._kind} {name!r}"

    @functools.cached_property
    def _points(self) -> Mapping[str, list[EntryPoint]]:
        """The entry points by name; broken metadata of one distribution spoils only its own."""
        found: dict[str, list[EntryPoint]] = {}
        owners: set[str] = set()
        for distribution in distributions():
            try:
                points = tuple(distribution.entry_points.select(group=self.group))
                owner = distribution.metadata["Name"] if points else ""
            except Exception as error:  # noqa: BLE001 - whatever is wrong there is not ours, and must not stop us
                _log.warning("passing over a distribution whose entry points cannot be read: %r", error)
                continue
            if points and owner not in owners:  # the first on the path is the one that is imported
                owners.add(owner)
                for point in points:
                    found.setdefault(point.name, []).append(point)
        return found


def load(what: str, read: Callable[[], object], kind: str) -> Any:
    """Returns what `read` returns, and says of what it raises that `what`, which adds a `kind`, is broken."""
    try:
        return read()
    except Exception as error:
        said = f"the {what} cannot be loaded: {type(error).__name__}: {error}"
        raise RendezvousSettingsError(said, name=kind) from error


def _describe(point: EntryPoint) -> str:
    owner = f" of {point.dist.name}" if point.dist is not None else ""
    return f"{point.value!r}{owner}"

"""The operations by which operators decide something of a run, besides closing it; see `decisions`."""

from __future__ import annotations

import msgspec

from arendezvous.errors import RendezvousSettingsError
from arendezvous.law.checks import check_seconds, check_text
from arendezvous.law.state import MAX_WORLD


class OperationBase(msgspec.Struct, frozen=True, array_like=True, tag=True, gc=False):
    """The base of all operations: small frozen values that can be sent over a wire."""


class Resize(OperationBase, frozen=True):
    """Changes how many nodes a round has, whatever the nodes agreed on; see `decisions`.

    Attributes:
        min_nodes: A round never completes with fewer; 0, as `max_nodes`: as the nodes agreed.
        max_nodes: A round never has more.
        role: Of this role; empty in a run without roles.
        by: Who decides so.
        reason: Why; may be empty.
    """

    min_nodes: int
    max_nodes: int
    role: str = ""
    by: str = ""
    reason: str = ""

    def __post_init__(self) -> None:
        check_text("role", self.role)
        check_text("by", self.by)
        check_text("reason", self.reason)
        if self.is_undoing:
            return
        least = 0 if self.role else 1
        if not least <= self.min_nodes <= MAX_WORLD:
            raise RendezvousSettingsError.of("min_nodes", self.min_nodes, f"from {least} to {MAX_WORLD}")
        if not max(1, self.min_nodes) <= self.max_nodes <= MAX_WORLD:
            allowed = f"from min_nodes ({self.min_nodes}) to {MAX_WORLD}, and at least 1"
            raise RendezvousSettingsError.of("max_nodes", self.max_nodes, allowed)

    @property
    def is_undoing(self) -> bool:
        """Whether the numbers are to be again what the nodes agreed on."""
        return self.min_nodes == self.max_nodes == 0


class Hold(OperationBase, frozen=True):
    """No round completes until the run is released; see `decisions`. A later word replaces an earlier one.

    Attributes:
        by: Who decides so.
        reason: Why; may be empty.
        seconds: For how long; None: until it is released.
    """

    by: str = ""
    reason: str = ""
    seconds: float | None = None

    def __post_init__(self) -> None:
        check_text("by", self.by)
        check_text("reason", self.reason)
        if self.seconds is not None:
            check_seconds("hold", self.seconds)


class Release(OperationBase, frozen=True):
    """Ends a hold; nothing happens if the run is not held."""

    by: str = ""

    def __post_init__(self) -> None:
        check_text("by", self.by)


class Quarantine(OperationBase, frozen=True):
    """Keeps a node, or all nodes with one label, out of the run; see `decisions`.

    Attributes:
        target: The node, or the label.
        is_label: Whether it is a label.
        seconds: For how long; None: until it is pardoned.
        by: Who decides so.
        reason: Why; may be empty.
    """

    target: str
    is_label: bool = False
    seconds: float | None = None
    by: str = ""
    reason: str = ""

    def __post_init__(self) -> None:
        check_text("label" if self.is_label else "node name", self.target, empty=False)
        check_text("by", self.by)
        check_text("reason", self.reason)
        if self.seconds is not None:
            check_seconds("quarantine", self.seconds)


class Pardon(OperationBase, frozen=True):
    """Lets a node, or the nodes with a label, in again; nothing happens if nothing is held against it.

    Attributes:
        target: The node, or the label.
        is_label: Whether it is a label.
        by: Who decides so.
    """

    target: str
    is_label: bool = False
    by: str = ""

    def __post_init__(self) -> None:
        check_text("label" if self.is_label else "node name", self.target, empty=False)
        check_text("by", self.by)

"""Says what the versions of the protocol have in common, and what a peer of the first one lacks.

Version 2 has what runs agree on besides numbers (`RunSettings.rules`), what nodes bring (`NodeDesc.brings`),
joins that begin a run anew (`Join.reopen`), the operations of `messages.VERSION_2_OPERATIONS`, and causes and
events that version 1 does not know. Fields are only ever added at the end, where a peer of an earlier version
leaves them unread. So two things have to be minded: what it would misunderstand by that, and words that it
does not know.
"""

from __future__ import annotations

from typing import Any, Final

from msgspec import structs

from arendezvous.errors import RendezvousSettingsError, RendezvousStateError
from arendezvous.law.events import LawEvent
from arendezvous.law.operations import Join, Operation, Resume
from arendezvous.law.rules import NO_RULES, NOTHING, Brought, RoundRules
from arendezvous.law.state import Cause, NodeView, RunSettings
from arendezvous.law.status import RunStatus
from arendezvous.wire.native.messages import VERSION, VERSION_2_OPERATIONS

_CAUSES_1: Final = frozenset({
    "left", "finished", "failed", "cancelled", "drained", "connection lost", "no heartbeat", "reopened",
    "superseded", "name taken", "rank taken",
})  # fmt: skip
_EVENTS_1: Final = frozenset({
    "NodeJoined", "NodePromoted", "NodeDeparted", "NodeDraining", "WaitingChanged", "RoundOpened",
    "RoundCompleted", "RunClosed", "RunReopened",
})  # fmt: skip


def check_peer(operation: Operation, version: int, endpoint: str) -> None:
    """Raises `RendezvousError` unless a server of that version knows an operation and its options."""
    if version >= VERSION:
        return
    upgrade = f"{endpoint} speaks version {version} of the protocol; upgrade the server first"
    if type(operation) in VERSION_2_OPERATIONS:
        raise RendezvousStateError(f"the server does not know {type(operation).__name__}: {upgrade}")
    if isinstance(operation, Join | Resume):
        names = [*_used(operation.settings.rules, NO_RULES), *_used(operation.desc.brings, NOTHING)]
        if isinstance(operation, Join) and operation.reopen:
            names.append("reopen")
        if names:
            message = f"{', '.join(names)} must be left out: {upgrade}, or leave it out"
            raise RendezvousSettingsError(message, name=names[0], expected="left out")


def check_node(settings: RunSettings, version: int) -> None:
    """Raises `RendezvousSettingsError` if a run agrees on what a node of that version cannot even name."""
    if version < VERSION and settings.rules is not None:
        names = ", ".join(_used(settings.rules, NO_RULES))
        message = (
            f"the nodes of this run agree on {names}, which this node does not know: it speaks version"
            f" {version} of the protocol, and version {VERSION} has them; install the others' release on it"
        )
        raise RendezvousSettingsError(message, name="rules", expected=names)


def _used(used: RoundRules | Brought | None, default: RoundRules | Brought) -> list[str]:
    """Names the fields that are not as they are by default."""
    if used is None:
        return []
    return [name for name in used.__struct_fields__ if getattr(used, name) != getattr(default, name)]


def is_known(cause: Cause) -> bool:
    """Tells whether a peer of version 1 knows the cause."""
    return cause.value in _CAUSES_1


def view_for_1(view: NodeView) -> NodeView:
    """Says what `view` says in words that version 1 has."""
    gone = None if view.gone is None else _reworded(view.gone)
    said = structs.replace(view, gone=gone, notices=tuple(map(_reworded, view.notices)))
    return view if said == view else said


def status_for_1(status: RunStatus) -> RunStatus:
    """Says what `status` says in words that version 1 has."""
    return structs.replace(status, departed=tuple(map(_reworded, status.departed)))


def events_for_1(events: tuple[LawEvent, ...]) -> tuple[LawEvent, ...]:
    """Says of `events` what version 1 has words for."""
    return tuple(_reworded(event) for event in events if event.name in _EVENTS_1)


def _reworded(said: Any) -> Any:
    """Says that a node left, where version 1 does not know the cause; the reason still says why."""
    cause = getattr(said, "cause", None)
    if cause is None or is_known(cause):
        return said
    return structs.replace(said, cause=Cause.LEFT, reason=said.reason or cause.value)

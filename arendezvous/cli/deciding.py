"""``arendezvous close``, ``drain``, ``resize``, ``hold`` and others: steering a run from outside."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING, Annotated

import typer

from arendezvous.cli.command import time_option
from arendezvous.cli.contact import Contact, Reason, RunId
from arendezvous.cli.output import data_of
from arendezvous.errors import RendezvousSettingsError

if TYPE_CHECKING:
    from arendezvous.law.status import RunStatus

Seconds = Annotated[
    float | None,
    typer.Option(metavar="SECONDS", help="For how long; left out: until it is taken back."),
]
Label = Annotated[bool, typer.Option("--label", help="NODE is a label: it stands for all nodes with it.")]
Target = Annotated[str, typer.Argument(metavar="NODE", help="The node's name; it need not be in the run.")]
Deadline = Annotated[float, time_option(0, 1e9, "How long it may take at most; then the node is removed.")]
AGREED = "agreed"


async def close(contact: Contact, run_id: RunId, reason: Reason = "") -> None:
    """Close a run: no further round will form, and all of its nodes are told.

    Closing a run that is closed already changes nothing, and is no error.
    """
    server = contact.connection()
    before = await server.status(run_id)
    closed = (await server.close(run_id, reason)).closed or before.closed
    by, why = (closed.by, closed.reason) if closed else ("", "")
    data = {
        "run_id": run_id,
        "incarnation": before.incarnation,
        "already": before.closed is not None,
        "by": by,
        "reason": why,
    }
    already = f"run {run_id!r} was closed already, by {by or 'somebody'}{f': {why}' if why else ''}"
    contact.tell(data, f"run {run_id!r} is closed" if before.closed is None else already)


async def reopen(contact: Contact, run_id: RunId) -> None:
    """Open a closed run anew, as its next incarnation; nodes that are still in it are dropped."""
    number = (await contact.connection().reopen(run_id)).incarnation
    data = {"run_id": run_id, "incarnation": number}
    contact.tell(data, f"run {run_id!r} is open again: incarnation {number}")


async def drain(
    contact: Contact,
    run_id: RunId,
    node: Annotated[str, typer.Argument(metavar="NODE", help="The node's name.")],
    deadline: Deadline = 30.0,
    reason: Reason = "",
) -> None:
    """Announce that a member must leave; the others meet without it, and a spare is called up first.

    A node that is not a member of a complete round is removed at once.
    """
    from arendezvous.law.state import Phase

    server = contact.connection()
    before = await server.status(run_id)  # for afterwards a member may be gone already
    await server.drain(run_id, node, deadline, reason)
    member = any(one.desc.name == node and one.phase is Phase.MEMBER for one in before.nodes)
    data = {"run_id": run_id, "node": node, "draining": member, "deadline": deadline, "reason": reason}
    draining = f"{node} is draining, and will be gone within {deadline:g} s"
    removed = f"{node} was not a member of a complete round, and is removed"
    contact.tell(data, draining if member else removed)


async def resize(
    contact: Contact,
    run_id: RunId,
    nodes: Annotated[
        str, typer.Argument(metavar="NODES", help="How many nodes: 4, or 2:8; or agreed, to go back.")
    ],
    role: Annotated[str, typer.Option(metavar="NAME", help="Of this role, in a run with roles.")] = "",
    reason: Reason = "",
) -> None:
    """Change how many nodes a round has, whatever the nodes agreed on.

    If a complete round has more, its members are told, and meet again: the last of them become spares. If
    rounds may have more nodes now, spares are called up.
    """
    sizes = f"{nodes} nodes{f' of role {role}' if role else ''} now"
    sizes = "as many nodes as they agreed on" if nodes == AGREED else sizes
    decision = contact.connection().resize(run_id, *_sizes(nodes), role=role, reason=reason)
    await _decided(contact, decision, f"run {run_id!r} has rounds of {sizes}")


async def hold(contact: Contact, run_id: RunId, seconds: Seconds = None, reason: Reason = "") -> None:
    """Have no round complete until the run is released; one that is complete goes on."""
    until = "until it is released" if seconds is None else f"for {seconds:g} s"
    decision = contact.connection().hold(run_id, reason, seconds)
    await _decided(contact, decision, f"run {run_id!r} is held {until}")


async def release(contact: Contact, run_id: RunId) -> None:
    """End a hold: a round that is due completes. If the run is not held nothing happens."""
    await _decided(contact, contact.connection().release(run_id), f"run {run_id!r} is not held")


async def quarantine(
    contact: Contact,
    run_id: RunId,
    node: Target,
    label: Label = False,
    seconds: Seconds = None,
    reason: Reason = "",
) -> None:
    """Keep a node, or all nodes with one label, out of a run; who is in it departs at once."""
    until = "until pardoned" if seconds is None else f"for {seconds:g} s"
    decision = contact.connection().quarantine(run_id, **_named(node, label), seconds=seconds, reason=reason)
    await _decided(contact, decision, f"{'label ' * label}{node} is quarantined {until}")


async def pardon(contact: Contact, run_id: RunId, node: Target, label: Label = False) -> None:
    """Let a node, or the nodes with one label, in again. If nothing is held against it nothing happens."""
    decision = contact.connection().pardon(run_id, **_named(node, label))
    await _decided(contact, decision, f"{'label ' * label}{node} may come in")


async def _decided(contact: Contact, decision: Awaitable[RunStatus], said: str) -> None:
    after = await decision
    orders = {name: getattr(after, name) for name in ("resized", "held", "quarantined")}
    contact.tell({"run_id": after.run_id, **data_of(orders)}, said)


def _named(node: str, label: bool) -> dict[str, str]:
    return {"label": node} if label else {"node": node}


def _sizes(nodes: str) -> tuple[int | None, int | None]:
    """Reads how many nodes; None: as they agreed."""
    if nodes == AGREED:
        return None, None
    fewest, separator, more = nodes.partition(":")
    try:
        return int(fewest), int(more if separator else fewest)
    except ValueError:
        raise RendezvousSettingsError.of("NODES", nodes, "a number, MIN:MAX, or agreed") from None

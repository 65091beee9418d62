"""``arendezvous close``, ``drain``, ``resize``, ``hold`` and others: steering a run from outside."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated

import typer

from arendezvous.cli.command import time_option
from arendezvous.cli.exits import run_async
from arendezvous.cli.options import Json, Reason, RunId, Timeout, Url, connection
from arendezvous.cli.output import data_of, say, write_json
from arendezvous.errors import RendezvousSettingsError

if TYPE_CHECKING:
    from arendezvous.connecting import ServerConnection
    from arendezvous.law.status import RunStatus

Seconds = Annotated[
    float | None,
    typer.Option(metavar="SECONDS", help="For how long; left out: until it is taken back."),
]
Label = Annotated[bool, typer.Option("--label", help="NODE is a label: it stands for all nodes with it.")]
Target = Annotated[str, typer.Argument(metavar="NODE", help="The node's name; it need not be in the run.")]
AGREED = "agreed"


def close(url: Url, run_id: RunId, reason: Reason = "", json: Json = False, timeout: Timeout = 5.0) -> None:
    """Close a run: no further round will form, and all of its nodes are told.

    Closing a run that is closed already changes nothing, and is no error.
    """
    run_async(_close, url, run_id, reason, json, timeout)


def reopen(url: Url, run_id: RunId, json: Json = False, timeout: Timeout = 5.0) -> None:
    """Open a closed run anew, as its next incarnation; nodes that are still in it are dropped."""
    run_async(_reopen, url, run_id, json, timeout)


def drain(
    url: Url,
    run_id: RunId,
    node: Annotated[str, typer.Argument(metavar="NODE", help="The node's name.")],
    deadline: Annotated[
        float, time_option(0, 1e9, "How long it may take at most; then the node is removed.")
    ] = 30.0,
    reason: Reason = "",
    json: Json = False,
    timeout: Timeout = 5.0,
) -> None:
    """Announce that a member must leave; the others meet without it, and a spare is called up first.

    A node that is not a member of a complete round is removed at once.
    """
    run_async(_drain, url, run_id, node, deadline, reason, json, timeout)


async def _close(url: str, run_id: str, reason: str, json: bool, timeout: float) -> None:

    server = connection(url, timeout)
    before = await server.status(run_id)
    closed = (await server.close(run_id, reason)).closed or before.closed
    data = {
        "run_id": run_id,
        "incarnation": before.incarnation,
        "already": before.closed is not None,
        "by": closed.by if closed else "",
        "reason": closed.reason if closed else "",
    }
    if json:
        write_json(data)
    elif before.closed is not None:
        why = f": {data['reason']}" if data["reason"] else ""
        say(f"run {run_id!r} was closed already, by {data['by'] or 'somebody'}{why}")
    else:
        say(f"run {run_id!r} is closed")


async def _reopen(url: str, run_id: str, json: bool, timeout: float) -> None:
    after = await connection(url, timeout).reopen(run_id)
    if json:
        write_json({"run_id": run_id, "incarnation": after.incarnation})
    else:
        say(f"run {run_id!r} is open again: incarnation {after.incarnation}")


async def _drain(
    url: str, run_id: str, node: str, deadline: float, reason: str, json: bool, timeout: float
) -> None:
    from arendezvous.law.state import Phase

    server = connection(url, timeout)
    before = await server.status(run_id)  # for afterwards a member may be gone already
    await server.drain(run_id, node, deadline, reason)
    member = any(one.desc.name == node and one.phase is Phase.MEMBER for one in before.nodes)
    if json:
        data = {"run_id": run_id, "node": node, "draining": member, "deadline": deadline, "reason": reason}
        write_json(data)
    elif member:
        say(f"{node} is draining, and will be gone within {deadline:g} s")
    else:
        say(f"{node} was not a member of a complete round, and is removed")


def resize(
    url: Url,
    run_id: RunId,
    nodes: Annotated[
        str, typer.Argument(metavar="NODES", help="How many nodes: 4, or 2:8; or agreed, to go back.")
    ],
    role: Annotated[str, typer.Option(metavar="NAME", help="Of this role, in a run with roles.")] = "",
    reason: Reason = "",
    json: Json = False,
    timeout: Timeout = 5.0,
) -> None:
    """Change how many nodes a round has, whatever the nodes agreed on.

    If a complete round has more, its members are told, and meet again: the last of them become spares. If
    rounds may have more nodes now, spares are called up.
    """
    run_async(
        _decide, url, run_id, json, timeout,
        lambda server: server.resize(run_id, *_sizes(nodes), role=role, reason=reason),
        lambda _: f"run {run_id!r} has rounds of as many nodes as they agreed on" if nodes == AGREED
        else f"run {run_id!r} has rounds of {nodes} nodes{f' of role {role}' if role else ''} now",
    )  # fmt: skip


def hold(
    url: Url,
    run_id: RunId,
    seconds: Seconds = None,
    reason: Reason = "",
    json: Json = False,
    timeout: Timeout = 5.0,
) -> None:
    """Have no round complete until the run is released; one that is complete goes on."""
    until = "until it is released" if seconds is None else f"for {seconds:g} s"
    run_async(
        _decide, url, run_id, json, timeout, lambda server: server.hold(run_id, reason, seconds),
        lambda _: f"run {run_id!r} is held {until}",
    )  # fmt: skip


def release(url: Url, run_id: RunId, json: Json = False, timeout: Timeout = 5.0) -> None:
    """End a hold: a round that is due completes. If the run is not held nothing happens."""
    run_async(
        _decide, url, run_id, json, timeout, lambda server: server.release(run_id),
        lambda _: f"run {run_id!r} is not held",
    )  # fmt: skip


def quarantine(
    url: Url,
    run_id: RunId,
    node: Target,
    label: Label = False,
    seconds: Seconds = None,
    reason: Reason = "",
    json: Json = False,
    timeout: Timeout = 5.0,
) -> None:
    """Keep a node, or all nodes with one label, out of a run; who is in it departs at once."""
    until = "until pardoned" if seconds is None else f"for {seconds:g} s"
    run_async(
        _decide, url, run_id, json, timeout,
        lambda server: server.quarantine(run_id, **_named(node, label), seconds=seconds, reason=reason),
        lambda _: f"{'label ' * label}{node} is quarantined {until}",
    )  # fmt: skip


def pardon(
    url: Url,
    run_id: RunId,
    node: Target,
    label: Label = False,
    json: Json = False,
    timeout: Timeout = 5.0,
) -> None:
    """Let a node, or the nodes with one label, in again. If nothing is held against it nothing happens."""
    run_async(
        _decide, url, run_id, json, timeout, lambda server: server.pardon(run_id, **_named(node, label)),
        lambda _: f"{'label ' * label}{node} may come in",
    )  # fmt: skip


async def _decide(
    url: str,
    run_id: str,
    json: bool,
    timeout: float,
    decide: Callable[[ServerConnection], Awaitable[RunStatus]],
    said: Callable[[RunStatus], str],
) -> None:
    after = await decide(connection(url, timeout))
    if json:
        shown = {name: getattr(after, name) for name in ("resized", "held", "quarantined")}
        write_json({"run_id": run_id, **data_of(shown)})
    else:
        say(said(after))


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

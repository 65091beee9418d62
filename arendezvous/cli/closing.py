"""``arendezvous close``, ``reopen`` and ``drain``: steering a run from outside."""

from __future__ import annotations

from typing import Annotated

import typer

from arendezvous.cli.command import time_option
from arendezvous.cli.exits import run_async
from arendezvous.cli.options import Json, Reason, RunId, Timeout, Url, connection
from arendezvous.cli.output import say, write_json


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
    after = await connection(url, timeout).drain(run_id, node, deadline, reason)
    member = any(one.desc.name == node and one.drain_left is not None for one in after.nodes)
    if json:
        data = {"run_id": run_id, "node": node, "draining": member, "deadline": deadline, "reason": reason}
        write_json(data)
    elif member:
        say(f"{node} is draining, and will be gone within {deadline:g} s")
    else:
        say(f"{node} was not a member of a complete round, and is removed")

"""How a node describes itself: its name in the run, and where others may reach it."""

from __future__ import annotations

import itertools
import os
import secrets
import socket

from arendezvous.law.state import NodeDesc

_local_ids = itertools.count()


def describe_node(
    local_addr: str | None = None,
    *,
    name: str | None = None,
    label: str = "",
    rank: int | None = None,
) -> NodeDesc:
    """Describes this node.

    Args:
        local_addr: The address by which other nodes reach it; None: the host's name, and whatever address the
            backend's connection shows.
        name: Its name in the run; None makes one up.
        label: Where it stands in the topology.
        rank: The rank it asks for, with the rank policy ``given``.

    Raises:
        RendezvousSettingsError: A value is not allowed.
    """
    addr = local_addr or socket.gethostname()
    local_id = next(_local_ids)
    return NodeDesc(
        name=name or f"{addr}_{os.getpid()}_{local_id}_{secrets.token_hex(2)}",
        addr=addr,
        pid=os.getpid(),
        local_id=local_id,
        addresses=(local_addr,) if local_addr else (),
        label=label,
        rank=rank,
    )

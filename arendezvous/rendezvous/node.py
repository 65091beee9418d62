"""Describes a node, with what it brings to a round."""

from __future__ import annotations

import itertools
import os
import secrets
import socket
from collections.abc import Mapping

import msgspec

from arendezvous.errors import RendezvousSettingsError, RendezvousTypeError
from arendezvous.law.admission import check_brought
from arendezvous.law.checks import encoded
from arendezvous.law.rules import MAX_DATA, NOTHING, Brought
from arendezvous.law.state import NodeDesc, RunSettings
from arendezvous.rendezvous.options import whole

_local_ids = itertools.count()


def describe_node(
    local_addr: str | None = None, *, name: str | None = None, label: str = "", rank: int | None = None
) -> NodeDesc:
    """Describes this node by its options, which may be left out; see `NodeDesc`, which checks them."""
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


def brought_by(
    desc: NodeDesc, run: RunSettings, role: object, slots: int, data: object, facts: object
) -> NodeDesc:
    """Describes a node with what it brings to the next round, unless the run does not take that."""
    nothing = (role, data, facts) == ("", None, None) and slots == 1 and type(slots) is int
    if nothing and run.rules is None and desc.brings is None:
        return desc
    if not isinstance(role, str):
        raise RendezvousTypeError.of("role", role, "a text, the name of one of the run's roles")
    whole("slots", slots)
    if facts is not None and not isinstance(facts, Mapping):
        raise RendezvousTypeError.of("facts", facts, "a dict: the name of each fact, and its value")
    packed = b"" if data is None else encoded("data", data, MAX_DATA)
    brings = Brought(role, slots, packed, dict(facts or {}))
    described = msgspec.structs.replace(desc, brings=None if brings == NOTHING else brings)
    if run.rules is not None or described.brings is not None:
        check_brought(run, described)
    return described


def check_carried(desc: NodeDesc, backend: str) -> None:
    """Raises `RendezvousSettingsError` if a node brings what rounds at a kind of backend do not carry."""
    if (used := desc.brings) is not None:
        name = next(n for n in used.__struct_fields__ if getattr(used, n) != getattr(NOTHING, n))
        message = f"{name} must be left out for {backend}://: it is an option of tcp, http, etcd and memory"
        raise RendezvousSettingsError(message, name=name, expected="left out")

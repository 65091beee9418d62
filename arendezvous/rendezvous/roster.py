"""Describes a node, with what it brings to a round, and reads who the others are: the roster."""

from __future__ import annotations

import itertools
import os
import secrets
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import msgspec

from arendezvous.errors import RendezvousSettingsError, RendezvousTypeError
from arendezvous.law.admission import check_brought
from arendezvous.law.checks import encoded
from arendezvous.law.lists import is_stand_in
from arendezvous.law.rosters import Member
from arendezvous.law.rules import MAX_DATA, NOTHING, Brought
from arendezvous.law.state import NodeDesc, RunSettings

if TYPE_CHECKING:
    from arendezvous.backends.port import RendezvousBackend


CARRIERS: Final = "tcp, http, etcd and memory"
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


class RosterReader:
    """Reads the roster of one round, and keeps what does not change.

    Its fields:
        _members: The members without a mark on who has gone; None until all of them are known.
    """

    def __init__(self, backend: RendezvousBackend, incarnation: int, round_: int) -> None:
        self._backend = backend
        self._generation = incarnation, round_
        self._members: tuple[Member, ...] | None = None

    async def read(self) -> tuple[Member, ...]:
        """Returns the members, in rank order. Cancellation: safe."""
        if (members := self._members) is None:
            members = await self._backend.roster(*self._generation)
            if not any(is_stand_in(member.name) for member in members):  # else some are not back yet
                self._members = members
        gone = {one.rank: one for one in await self._backend.gone(*self._generation)}
        return tuple(
            msgspec.structs.replace(one, gone=gone[one.rank]) if one.rank in gone else one for one in members
        )


def brought_by(
    desc: NodeDesc, run: RunSettings, role: object, slots: object, data: object, facts: object
) -> NodeDesc:
    """Describes a node with what it brings to the next round, unless the run does not take that."""
    nothing = (role, data, facts) == ("", None, None) and slots == 1 and type(slots) is int
    if nothing and run.rules is None and desc.brings is None:
        return desc
    if not isinstance(role, str):
        raise RendezvousTypeError.of("role", role, "a text, the name of one of the run's roles")
    if not isinstance(slots, int) or isinstance(slots, bool):
        raise RendezvousTypeError.of("slots", slots, "a whole number")
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
    if desc.brings is not None:
        used = desc.brings
        name = next(n for n in used.__struct_fields__ if getattr(used, n) != getattr(NOTHING, n))
        message = f"{name} must be left out for {backend}://: it is an option of {CARRIERS}"
        raise RendezvousSettingsError(message, name=name, expected="left out")

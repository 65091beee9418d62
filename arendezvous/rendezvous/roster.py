"""Describes a node, with what it brings to a round, and reads who the others are: the roster."""

from __future__ import annotations

import itertools
import os
import secrets
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from arendezvous.errors import RendezvousSettingsError, RendezvousTypeError
from arendezvous.law.admission import check_brought
from arendezvous.law.checks import encoded
from arendezvous.law.lists import is_stand_in
from arendezvous.law.rosters import Member, MemberGone
from arendezvous.law.rules import MAX_DATA, NOTHING, Brought
from arendezvous.law.state import NodeDesc, RunSettings

if TYPE_CHECKING:
    from arendezvous.backends.port import RendezvousBackend


CARRIERS: Final = "tcp, http, etcd and memory"
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


class RosterReader:
    """Reads the roster of one round, and keeps what does not change.

    Args:
        roster: Asks for the members of the round.
        gone: Asks who has gone of them.

    Its fields:
        _members: The members without a mark on who has gone; None until all of them are known.
    """

    def __init__(
        self,
        roster: Callable[[], Awaitable[Sequence[Member]]],
        gone: Callable[[], Awaitable[Sequence[MemberGone]]],
    ) -> None:
        self._roster = roster
        self._gone = gone
        self._members: tuple[Member, ...] | None = None

    @classmethod
    def of_round(cls, backend: RendezvousBackend, incarnation: int, round_: int) -> RosterReader:
        """Makes what reads the roster of a round at a backend."""
        return cls(lambda: backend.roster(incarnation, round_), lambda: backend.gone(incarnation, round_))

    async def read(self) -> tuple[Member, ...]:
        """Returns the members, in rank order. Cancellation: safe."""
        members = self._members
        if members is None:
            members = tuple(await self._roster())
            if not any(is_stand_in(member.name) for member in members):  # else some are not back yet
                self._members = members
        gone = {one.rank: one for one in await self._gone()}
        if not gone:
            return members
        return tuple(
            msgspec.structs.replace(one, gone=gone[one.rank]) if one.rank in gone else one for one in members
        )


def brought_by(
    desc: NodeDesc, run: RunSettings, role: object, slots: object, data: object, facts: object
) -> NodeDesc:
    """Describes a node with what it brings to the next round.

    Args:
        desc: The node.
        run: What the nodes of the run agreed on.
        role: Its role.
        slots: For how many processes it has room.
        data: For the other members.
        facts: Name to value.

    Raises:
        RendezvousSettingsError: The run does not take it.
    """
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

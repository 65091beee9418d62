"""Defines what a run may agree on besides numbers of nodes, what a node may bring, and its share of a round.

All of it is optional. A run that uses none of it has no `RoundRules`, a node that brings nothing no
`Brought`, and a member of such a round no `Share`: each is one byte on the wire then, and nothing to the law.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeAlias, get_args

import msgspec

from arendezvous.errors import RendezvousSettingsError
from arendezvous.law.checks import check_encoded, check_seconds, check_size, check_text

MAX_DATA: Final = 4096  # bytes of JSON that a node brings to a round
MAX_SLOTS: Final = 65_536  # of one node
MAX_ROLES: Final = 64
MAX_FACTS: Final = 64
MAX_FACT: Final = 1024  # bytes of JSON of one fact
MAX_UNIT: Final = 65_536

Json: TypeAlias = Annotated[bytes, msgspec.Meta(description="JSON", extra={"json": True})]
Reducer: TypeAlias = Literal["min", "max", "sum", "all", "any", "same"]
REDUCERS: Final[tuple[str, ...]] = get_args(Reducer)


class Role(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How many nodes of one role a round has.

    Attributes:
        min_nodes: A round never completes with fewer of them.
        max_nodes: A round never has more of them; 0: as many as `min_nodes`.
    """

    min_nodes: int
    max_nodes: int = 0

    @property
    def most(self) -> int:
        """How many a round has at most."""
        return self.max_nodes or self.min_nodes


class RoundRules(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Holds what a run agrees on besides numbers of nodes and times; part of `RunSettings`.

    Attributes:
        roles: Name to `Role`, in the order of the ranks: those of a role are one block. Empty: no roles.
        facts: Name to reducer: what each node brings of it is reduced to one value when a round completes.
        node_unit: A round has a multiple of as many nodes, of each role.
        unit_label: Whether the nodes of one unit have one label.
        strikes: After so many failures a node is quarantined for `cooldown` seconds; 0: never.
        cooldown: Seconds.
        stop_after: After so many rounds without progress the run is closed; 0: never.
        stall_timeout: Seconds after which a member whose progress stands still is told of; 0: never.
    """

    roles: dict[str, Role] = {}
    facts: dict[str, Reducer] = {}
    node_unit: int = 1
    unit_label: bool = False
    strikes: int = 0
    cooldown: float = 0.0
    stop_after: int = 0
    stall_timeout: float = 0.0

    def __post_init__(self) -> None:
        if len(self.roles) > MAX_ROLES:
            raise RendezvousSettingsError.of("roles", len(self.roles), f"at most {MAX_ROLES} of them")
        for name, role in self.roles.items():
            check_text("role", name, empty=False)
            if not 0 <= role.min_nodes <= role.most or role.most < 1:
                expected = "a least number, and a greatest one that is not smaller, and at least 1"
                raise RendezvousSettingsError.of(f"role {name!r}", role, expected)
        if len(self.facts) > MAX_FACTS:
            raise RendezvousSettingsError.of("facts", len(self.facts), f"at most {MAX_FACTS} of them")
        for name in self.facts:
            check_text("fact", name, empty=False)
        if not 1 <= self.node_unit <= MAX_UNIT:
            raise RendezvousSettingsError.of("node_unit", self.node_unit, f"from 1 to {MAX_UNIT}")
        for name in ("strikes", "stop_after"):
            if not 0 <= getattr(self, name) <= 1_000_000:
                raise RendezvousSettingsError.of(name, getattr(self, name), "from 0 to 1000000; 0: never")
        for name in ("cooldown", "stall_timeout"):
            check_seconds(name, getattr(self, name), zero=True)
        if bool(self.strikes) != bool(self.cooldown):
            raise RendezvousSettingsError.of("cooldown", self.cooldown, "given with strikes, and only then")

    @property
    def seats(self) -> bool:
        """Whether it takes more to complete a round than a number of nodes."""
        return bool(self.roles) or self.node_unit > 1

    @property
    def sums(self) -> tuple[int, int]:
        """How many nodes a round has at least and at most, as the roles say."""
        roles = self.roles.values()
        return max(1, sum(role.min_nodes for role in roles)), sum(role.most for role in roles)

    def check_numbers(self, least: int, most: int, policy: str) -> None:
        """Raises `RendezvousSettingsError` if a run with these rules cannot have such numbers, or ranks."""
        if self.unit_label and self.node_unit == 1:
            raise RendezvousSettingsError.of("unit_label", True, "left out, or given with node_unit")
        if not self.seats:
            return
        if policy == "given":
            why = "nodes that ask for ranks of their own cannot be put into blocks and whole units"
            expected = f"another one where there are roles, or a node_unit: {why}"
            raise RendezvousSettingsError.of("rank_policy", policy, expected)
        groups = {"nodes": (least, most)}
        if self.roles:
            groups = {f"role {name!r}": (role.min_nodes, role.most) for name, role in self.roles.items()}
            for name, value, needed in zip(("min_nodes", "max_nodes"), (least, most), self.sums, strict=True):
                if value != needed:
                    raise RendezvousSettingsError.of(name, value, f"left out, or {needed}, as the roles say")
        for name, (few, many) in groups.items():
            fewest, greatest = whole_units(few, many, self.node_unit)
            if greatest < max(fewest, 1):
                expected = f"a number of which {few} to {many} of {name} can be a multiple"
                raise RendezvousSettingsError.of("node_unit", self.node_unit, expected)


def whole_units(least: int, most: int, unit: int) -> tuple[int, int]:
    """Rounds numbers of nodes to whole units: the least up, the greatest down."""
    return -(-least // unit) * unit, most // unit * unit


class Brought(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Holds what a node brings to a round; part of its `NodeDesc`.

    Attributes:
        role: Its role; empty where the run has none.
        slots: For how many processes it has room.
        data: For the other members, as JSON; empty: nothing.
        facts: Name to value, for those on which the run agrees.
    """

    role: str = ""
    slots: int = 1
    data: Json = b""
    facts: dict[str, Any] = {}

    def __post_init__(self) -> None:
        check_text("role", self.role)
        if not 1 <= self.slots <= MAX_SLOTS:
            raise RendezvousSettingsError.of("slots", self.slots, f"from 1 to {MAX_SLOTS}")
        if self.data:
            check_encoded(self.data)
        check_size("data", self.data, MAX_DATA)
        if len(self.facts) > MAX_FACTS:
            raise RendezvousSettingsError.of("facts", len(self.facts), f"at most {MAX_FACTS} of them")


class Share(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Says more of a member's place than its rank, where anything but plain ranks is in use.

    Attributes:
        role: The member's role; empty where the run has none.
        role_rank: Its rank within the role.
        role_size: How many members have the role.
        first_slot: How many slots the ranks before it have.
        total_slots: How many slots all members have.
        facts: What the members agreed on.
    """

    role: str
    role_rank: int
    role_size: int
    first_slot: int
    total_slots: int
    facts: dict[str, Any] = {}


NOTHING: Final = Brought()
NO_RULES: Final = RoundRules()

"""Keeps who the members of a complete round were: the roster, and what each has besides its rank.

The roster is as the round was completed. It stays until the next round completes, so that whoever holds a
rank can ask for it; who has gone since is marked. Its *digest* covers the names and their order, and of what
they brought role, slots and data; for nodes that brought nothing it is that of the names alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from arendezvous.law.checks import decoded
from arendezvous.law.facts import reduced
from arendezvous.law.rules import Json, RoundRules, Share
from arendezvous.law.state import Cause, Departure, NodeDesc


class MemberGone(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Says why a member of a round is not in the run any more.

    Attributes:
        rank: The rank that it had.
        cause: Why it went, for programs.
        reason: Why, in its own words or the law's; may be empty.
        age: How many seconds ago that was, when it was asked for.
    """

    rank: int
    cause: Cause
    reason: str
    age: float


class Member(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A member of a round, as the round was completed.

    Attributes:
        name: Its name.
        rank: Its rank.
        role: Its role; empty where the run has none.
        slots: For how many processes it has room.
        addresses: Where it may be reached, the best first; never empty.
        label: Where it stands in the topology.
        packed: What it brought for the others, as JSON; empty: nothing.
        gone: Why it is not in the run any more; None: it is.
    """

    name: str
    rank: int
    role: str
    slots: int
    addresses: tuple[str, ...]
    label: str
    packed: Json = msgspec.field(default=b"", name="data")
    gone: MemberGone | None = None

    @property
    def data(self) -> Any:
        """Returns what it brought for the others; None: nothing."""
        return decoded(self.packed)

    @classmethod
    def of(cls, desc: NodeDesc, rank: int) -> Member:
        """Says who a node is that describes itself so."""
        brought = desc.brought
        addresses = addresses_of(desc)
        return cls(desc.name, rank, brought.role, brought.slots, addresses, desc.label, brought.data)


@dataclass(slots=True, eq=False, weakref_slot=True)
class RoundRoster:
    """The members of one round."""

    generation: tuple[int, int]  # incarnation and number of the round
    descs: list[NodeDesc]  # they, in rank order; stand-ins for those of whom nothing is known
    shares: list[Share | None] | None = None  # what each has besides its rank, if known; None: nothing
    gone: dict[int, Departure] = field(default_factory=dict)  # rank to why its member is not here any more
    learned: int = 0  # how often more has become known of who they are

    @classmethod
    def of(
        cls, generation: tuple[int, int], descs: Sequence[NodeDesc], rules: RoundRules | None
    ) -> RoundRoster:
        """Makes the roster of these members, in rank order. Raises `DisagreementError`."""
        return cls(generation, list(descs), shares_of(rules, descs))

    def learn(self, rank: int, desc: NodeDesc, share: Share | None) -> None:
        """Takes in who has a rank, from that one itself."""
        self.learned += 1
        self.descs[rank] = desc
        self.learn_share(rank, share)

    def learn_share(self, rank: int, share: Share | None) -> None:
        """Takes in what the member of a rank has besides it, from that one itself; None: nothing."""
        if share is not None:
            if self.shares is None:
                self.shares = [None] * len(self.descs)
            self.shares[rank] = share

    def members(self, first: int, count: int) -> tuple[Member, ...]:
        """Says who has the ranks from `first` on, `count` of them at most."""
        descs = self.descs[first : first + count]
        return tuple(Member.of(desc, rank) for rank, desc in enumerate(descs, first))

    def gone_members(self, now: float) -> tuple[MemberGone, ...]:
        """Says who has gone, by rank."""
        gone = sorted(self.gone.items())
        return tuple(MemberGone(rank, one.cause, one.reason, now - one.at) for rank, one in gone)


def addresses_of(desc: NodeDesc) -> tuple[str, ...]:
    """Lists where a node may be reached, the best first; never empty."""
    return desc.addresses or (desc.addr or desc.name,)


def member_digest(incarnation: int, round_: int, descs: Sequence[NodeDesc]) -> str:
    """Makes a short fingerprint of a round's members, in rank order."""
    text = "\n".join([f"{incarnation}.{round_}", *[desc.name for desc in descs]])
    made = hashlib.blake2b(text.encode(), digest_size=8)
    if any([desc.brings is not None for desc in descs]):  # noqa: C419 - a generator is a call for each
        for brought in (desc.brought for desc in descs):
            made.update(f"\n{len(brought.data)} {brought.slots} {brought.role}\n".encode() + brought.data)
    return made.hexdigest()


def facts_of(rules: RoundRules | None, descs: Sequence[NodeDesc]) -> dict[str, Any]:
    """Reduces what members bring to the facts of a round. Raises `DisagreementError` if they differ."""
    if rules is None or not rules.facts:
        return {}
    return reduced(rules.facts, [(desc.name, desc.brought.facts) for desc in descs])


def shares_of(rules: RoundRules | None, descs: Sequence[NodeDesc]) -> list[Share | None] | None:
    """Says what the members of a round have besides their ranks; None: nothing that the ranks do not say."""
    is_plain = rules is None or not (rules.roles or rules.facts)
    if is_plain and all([desc.brings is None or desc.brings.slots == 1 for desc in descs]):  # noqa: C419
        return None
    return list(_shares(descs, facts_of(rules, descs)))


def _shares(descs: Sequence[NodeDesc], facts: dict[str, Any]) -> Iterator[Share]:
    sizes: dict[str, int] = {}
    total = 0
    for desc in descs:
        brought = desc.brought
        sizes[brought.role] = sizes.get(brought.role, 0) + 1
        total += brought.slots
    seen, first = dict.fromkeys(sizes, 0), 0
    for desc in descs:
        role, slots = desc.brought.role, desc.brought.slots
        yield Share(role, seen[role], sizes[role], first, total, facts)
        seen[role] += 1
        first += slots

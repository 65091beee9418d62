"""Keeps what operators, and the law itself, have decided about a run besides closing it.

Statement
=========

* **Resized.** The numbers of nodes that count are those of the latest `Resize` for the role, or for the run
  without roles; without one, those that the nodes agreed on. What a node asks for is compared with what the
  nodes agreed on, as before. Who is over when a round gathers becomes a spare, the newest first, but those
  who were members of the last round last of all. A complete round that has more members than it may have goes
  on, and its members are told: they meet again, and who is over then becomes a spare. A resize is over when
  it is taken back, or when nodes that agreed on something else begin in the empty run.
* **Held.** No round completes, nor is one ready to be recorded. Nodes come and go, and the last call begins
  and runs out, as ever; a round that would have completed meanwhile completes when the hold ends, by
  `Release` or after its seconds. A complete round is not touched.
* **Quarantined.** A node, by its name, or all nodes with one label. Who is in the run departs at once, and
  the others hear of it. Who joins is refused, and who resumes is told that it is gone, until the time is
  over, or it is pardoned.
* **Strikes.** With `RoundRules.strikes` a node that failed, or was lost, as a member so many times is
  quarantined by the law for `RoundRules.cooldown` seconds. Its strikes count from 0 then, and after a pardon.
* **Stopped.** With `RoundRules.stop_after` the law closes the run in place of completing a round if so many
  rounds have completed since a member last told of a step higher than all before in this incarnation.

All of it outlives the closing and the reopening of the run, but for the counts for stopping, which begin
anew; and all of it is part of its image. Cost: a decision looks at each node once; nothing else does more
than a look at a dict.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

if TYPE_CHECKING:
    from arendezvous.law.state import RunSettings

LAW: Final = "the law"  # who decides if no operator does
MAX_QUARANTINES: Final = 1024
MAX_STRUCK: Final = 1024  # nodes whose strikes are counted

K = TypeVar("K")
T = TypeVar("T")


class Sizes(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How many nodes a round has by decision, and not as the nodes agreed.

    Attributes:
        min_nodes: A round never completes with fewer.
        max_nodes: A round never has more.
        role: Of this role; empty in a run without roles.
        by: Who decided so.
        reason: Why; may be empty.
    """

    min_nodes: int
    max_nodes: int
    role: str
    by: str
    reason: str


class Ruling(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Says that no round completes, or that a node, or all nodes with one label, are kept out of the run."""

    by: str  # who decided so
    reason: str  # why; may be empty
    at: float  # when, on the owner's clock
    until: float  # until when; infinite: until it is taken back


class Decisions(msgspec.Struct):
    """Holds the decisions that are in force."""

    sizes: dict[str, Sizes] = {}  # role to its numbers; the role is empty in a run without roles
    min_nodes: int = 0  # of all nodes, by these; 0: as the nodes agreed
    max_nodes: int = 0  # likewise
    held: Ruling | None = None  # why no round completes; None: none is held
    quarantines: dict[tuple[bool, str], Ruling] = {}  # by whether it is a label, and its name; some are over
    strikes: dict[str, int] = {}  # node to its failures since its last quarantine or pardon; the latest ones
    excess: Sizes | None = None  # what the complete round has too many members for; None: it has not
    vain: int = 0  # how many rounds have completed since the last progress
    step: int = -1  # the highest step that a member has told of; -1: none has
    is_known: bool = False  # whether anything was decided here, or told by members, be it over by now

    @property
    def are_any(self) -> bool:
        """Whether anything is in force, or counted."""
        counted = self.strikes or self.vain or self.step >= 0
        return bool(self.sizes or self.held or self.quarantines or counted)

    @property
    def held_until(self) -> float:
        """Until when no round completes; -inf: none is held."""
        return -math.inf if self.held is None else self.held.until

    def copy(self) -> Decisions:
        """Makes an independent copy."""
        return msgspec.structs.replace(
            self, sizes=self.sizes.copy(), quarantines=self.quarantines.copy(), strikes=self.strikes.copy()
        )

    def quarantine_of(self, node: str, label: str, now: float) -> Ruling | None:
        """Finds what keeps a node out, by its name or its label; None: it may come in."""
        for key in ((False, node), (True, label)):
            found = self.quarantines.get(key)
            if found is not None and found.until > now:
                return found
        return None

    def set_quarantine(self, key: tuple[bool, str], quarantine: Ruling) -> bool:
        """Keeps somebody out; False if so many are kept out that no more can be."""
        if key not in self.quarantines and len(self.quarantines) >= MAX_QUARANTINES:
            now = quarantine.at
            self.quarantines = {name: one for name, one in self.quarantines.items() if one.until > now}
            if len(self.quarantines) >= MAX_QUARANTINES:
                return False
        _put_last(self.quarantines, key, quarantine)
        return True

    def strike(self, node: str, most: int) -> bool:
        """Counts that a node has failed as a member; returns whether it has done so `most` times now."""
        count = self.strikes.get(node, 0) + 1
        if count >= most:
            self.strikes.pop(node, None)
            return True
        _put_last(self.strikes, node, count)
        if len(self.strikes) > MAX_STRUCK:
            del self.strikes[next(iter(self.strikes))]
        return False

    def sum_up(self, settings: RunSettings) -> None:
        """Works out the numbers of all nodes from the sizes."""
        sizes = self.sizes.values()
        self.min_nodes, self.max_nodes = total_sizes(settings, sizes) if sizes else (0, 0)


def total_sizes(settings: RunSettings, sizes: Iterable[Sizes]) -> tuple[int, int]:
    """Works out how many nodes there are at least and at most, of which `sizes` have been decided."""
    numbers = {name: (role.min_nodes, role.most) for name, role in settings.agreed.roles.items()}
    numbers |= {one.role: (one.min_nodes, one.max_nodes) for one in sizes}
    return sum(least for least, _ in numbers.values()), sum(most for _, most in numbers.values())


def _put_last(of: dict[K, T], key: K, value: T) -> None:
    of.pop(key, None)
    of[key] = value

"""Counts who could be seated in a round, where a run has roles, or rounds of whole units; and what it lacks.

A *group* is a role; without roles the whole run is one. With ``node_unit=k`` the members of a group are whole
*units* of `k` nodes; with `unit_label` those of a unit have one label. A group takes from `least` to `most`
nodes: what the run agreed on, rounded up and down to whole units.

Of a set of nodes of a group, as many are *usable* as stand in whole units::

    usable = k * sum over labels of floor(count of the label / k)

* A round can complete when for every group ``least <= usable``, and completes at once when for every group
  ``usable >= most``. Without the last call it also completes if there are no newcomers, or none that would
  make a unit more than the members of the last round do by themselves.
* While a round gathers, a node is a participant if ``usable < most`` for its group when it comes, else a
  spare of that group; spares come in by age once ``usable < most``.
* When it completes, its members are chosen of the participants, see `ranking`; who is over becomes a spare.
  So a complete round has whole units alone, from `least` to `most` nodes of each group.
* While it is complete, those count who *stay*: members that do not drain, and the wait list. Spares move to
  the wait list only if that makes a unit whole, all that it lacks at once: first of a label whose nodes that
  stay are no whole units, then of others, each time of the label that could do so first. Until then newcomers
  wait as spares. So members are asked to meet again only if that gives somebody a rank.
* Nothing is known of those for whom there is a stand-in, so no spare moves as long as there is one.

Every change is O(1), but for the search of what can move, which looks at each group that has spares.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from arendezvous.law.rules import RoundRules, whole_units
from arendezvous.law.state import NodeDesc, RunSettings


@dataclass(slots=True)
class Cell:
    """The nodes of one group and label."""

    inside: int = 0  # how many are participants of the round that gathers; or stay, while a round is complete
    old: int = 0  # how many of those that gather were members of the last round
    spares: OrderedDict[str, None] = field(default_factory=OrderedDict)  # the spares, oldest first


@dataclass(slots=True)
class Group:
    """The nodes of one role, or of a run without roles."""

    least: int  # how many a round needs, in whole units
    most: int  # how many it takes, in whole units
    unit: int  # nodes of a unit
    cells: dict[str, Cell] = field(default_factory=dict)  # its nodes by label, or all where units have none
    spares: OrderedDict[str, None] = field(default_factory=OrderedDict)  # all its spares, oldest first
    usable: int = 0  # how many nodes that are inside stand in whole units
    usable_old: int = 0  # the same of the members of the last round alone, while a round gathers
    # labels of which the spares are enough to make a broken unit whole, in that order
    mending: OrderedDict[str, None] = field(default_factory=OrderedDict)
    # labels of which they are enough for a unit, beside whole ones or none
    adding: OrderedDict[str, None] = field(default_factory=OrderedDict)

    def count(self, label: str, change: int, old: int = 0) -> None:
        """Notes that so many nodes more are inside, of which so many are `old`."""
        unit, cell = self.unit, self.cells.get(label)
        if cell is None:
            cell = self.cells[label] = Cell()
        self.usable += (cell.inside + change) // unit * unit - cell.inside // unit * unit
        self.usable_old += (cell.old + old) // unit * unit - cell.old // unit * unit
        cell.inside += change
        cell.old += old
        self._look_at(label, cell)

    def count_spare(self, node: str, label: str, change: int) -> None:
        """Notes that a node has become a spare (1), or is none any more (-1)."""
        cell = self.cells.setdefault(label, Cell())
        for spares in (self.spares, cell.spares):
            if change > 0:
                spares[node] = None
            else:
                del spares[node]
        self._look_at(label, cell)

    def lacks(self, label: str) -> int:
        """Tells how many nodes of a label would make one more unit whole."""
        cell = self.cells.get(label)
        return self.unit - (0 if cell is None else cell.inside % self.unit)

    def next_unit(self) -> list[str]:
        """Lists the spares that are next to make a unit whole; none, if it is full or there are too few."""
        able = self.mending or self.adding
        if not able or self.usable >= self.most:
            return []
        label = next(iter(able))
        spares = iter(self.cells[label].spares)
        return [next(spares) for _ in range(self.lacks(label))]

    def _look_at(self, label: str, cell: Cell) -> None:
        """Files the label by what its spares could do."""
        broken = cell.inside % self.unit
        able = len(cell.spares) >= self.unit - broken
        for labels, fits in ((self.mending, able and broken > 0), (self.adding, able and not broken)):
            if not fits:
                labels.pop(label, None)
            elif label not in labels:
                labels[label] = None
        if not (cell.inside or cell.spares):
            del self.cells[label]


@dataclass(slots=True)
class Seats:
    """All groups of a run."""

    groups: Mapping[str, Group]  # the groups by their roles, in the order of their ranks
    by_label: bool  # whether the nodes of a unit have one label
    strangers: int = 0  # how many members there are of whom nothing is known but their ranks

    @classmethod
    def of(cls, rules: RoundRules | None, least: int, most: int) -> Seats | None:
        """Makes what a run needs that agreed on `rules` and such numbers of nodes; None: nothing."""
        if rules is None or not (rules.roles or rules.node_unit > 1):
            return None
        unit, groups = rules.node_unit, {"": (least, most)}
        if rules.roles:
            groups = {name: (role.min_nodes, role.most) for name, role in rules.roles.items()}
        whole = {name: Group(*whole_units(*numbers, unit), unit) for name, numbers in groups.items()}
        return cls(whole, by_label=rules.unit_label)

    def resize(self, role: str, least: int, most: int) -> None:
        """Has a round take other numbers of a role, or of all nodes of a run without roles."""
        group = self.groups[role]
        group.least, group.most = whole_units(least, most, group.unit)

    @property
    def has_enough(self) -> bool:
        """Whether the round that gathers can complete."""
        groups = self.groups.values()
        return all(group.usable >= group.least for group in groups) and any(one.usable for one in groups)

    @property
    def is_full(self) -> bool:
        """Whether the round that gathers can take nobody else."""
        return all(group.usable >= group.most for group in self.groups.values())

    @property
    def is_as_before(self) -> bool:
        """Whether no newcomer makes a unit more than the members of the last round do."""
        return all(group.usable == group.usable_old for group in self.groups.values())

    def label_of(self, label: str) -> str:
        """Tells under which label a node counts that has this one."""
        return label if self.by_label else ""

    def takes(self, role: str) -> bool:
        """Whether a node of a role that comes while a round gathers is a participant."""
        group = self.groups[role]
        return group.usable < group.most

    def is_wanted(self, role: str, label: str) -> bool:
        """Whether a node that comes while a round is complete makes a unit whole, all by itself."""
        if self.strangers or not self.takes(role):
            return False
        return self.groups[role].lacks(self.label_of(label)) == 1

    def next_unit(self) -> list[str]:
        """Lists the spares that are to move to the wait list next."""
        if not self.strangers:
            for group in self.groups.values():
                if group.spares and (unit := group.next_unit()):
                    return unit
        return []

    def next_spares(self) -> Iterator[str]:
        """Yields spares that come in while a round gathers; the next one once the last has come in."""
        for group in self.groups.values():
            while group.spares and group.usable < group.most:
                yield next(iter(group.spares))

    def round_completes(self) -> None:
        """Forgets who was a member of the last round."""
        for group in self.groups.values():
            group.usable_old = 0
            for cell in group.cells.values():
                cell.old = 0


def lacking(
    settings: RunSettings, participants: Iterable[NodeDesc], resized: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Tells how many more nodes a round needs at least, by role; only of roles of which it needs some.

    `resized` is by role how many it needs by decision.
    """
    rules = settings.agreed
    unit, by_role = rules.node_unit, {role: Counter[str]() for role in rules.roles or ("",)}
    for desc in participants:
        if (counts := by_role.get(desc.brought.role)) is not None:
            counts[desc.label if rules.unit_label else ""] += 1
    found = {}
    for role, counts in by_role.items():
        few = rules.roles[role].min_nodes if role else settings.min_nodes
        few = (resized or {}).get(role, few)
        least, _ = whole_units(few, few, unit)
        here = sum(count // unit * unit for count in counts.values())
        units = max(0, least - here) // unit
        begun = sorted((count % unit for count in counts.values()), reverse=True)
        if units:
            found[role] = units * unit - sum(begun[:units])
    if not found and not any(by_role.values()):
        found[next(iter(by_role))] = 1  # a round has somebody in it
    return found


def lacks_text(lacks: dict[str, int]) -> str:
    """Says what `lacking` tells: ``1 more needed``, or ``role trainer: 1 more needed``."""
    return ", ".join(
        f"{f'role {role}: ' if role else ''}{count} more needed" for role, count in lacks.items()
    )

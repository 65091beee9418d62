"""Rank policies: pure functions from the participants of a round to their order.

A policy gets the records of the participants and the ranks that some of them held in the round before, and
returns the names in rank order. `RANK_POLICIES` has them by the names that `RunSettings.rank_policy` takes.

Where a round has roles or units, `seated` chooses its members of the participants, and puts them in order.
Of each group (see `seats`) as many whole units are chosen as there are, up to its `most`: units are made of
members of the last round first, by rank, then of others by arrival; and of several units those come first
that have the most senior nodes. With labels, what is left of a unit of the last round stays together.

Each role has one block of ranks, in the order of the roles. Within its block the rank policy decides. With
the policy ``sticky`` a node has the rank that it had, where that lies in the block. Nodes of a unit that has
a label stand side by side: a unit of the last round stays where most of it is, and a node where it was in it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Final, TypeAlias

from arendezvous.law.seats import Group, Seats
from arendezvous.law.state import NodeRecord

RankPolicy: TypeAlias = Callable[[Sequence[NodeRecord], Mapping[str, int]], list[str]]
Unit: TypeAlias = list[NodeRecord]

_DIGITS: Final = re.compile(r"(\d+)")


def natural_key(text: str) -> tuple[tuple[int, int, str], ...]:
    """Sorts numbers in `text` by value, so that node2 comes before node10."""
    parts = _DIGITS.split(text)
    return tuple((0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts if part)


def seniority(record: NodeRecord, previous: Mapping[str, int]) -> tuple[bool, int]:
    """Sorts members of the last round by their rank there, then newcomers, the oldest first."""
    rank = previous.get(record.desc.name)
    return (True, record.arrival) if rank is None else (False, rank)


def sticky(
    records: Sequence[NodeRecord],
    previous: Mapping[str, int],
    *,
    seniority_by: Mapping[str, int] | None = None,
) -> list[str]:
    """Leaves whoever had a rank that still exists in it; fills the gaps by seniority, the oldest first.

    `previous` are their ranks in the round before, as far as they count here; `seniority_by` all of them.
    """
    size = len(records)
    order: list[str | None] = [None] * size
    seekers: list[NodeRecord] = []
    for record in records:
        rank = previous.get(record.desc.name, size)
        if rank < size and order[rank] is None:
            order[rank] = record.desc.name
        else:
            seekers.append(record)
    seekers.sort(key=partial(seniority, previous=previous if seniority_by is None else seniority_by))
    waiting: Iterator[NodeRecord] = iter(seekers)
    return [name if name is not None else next(waiting).desc.name for name in order]


def _by(key: Callable[[NodeRecord], tuple[object, ...]]) -> RankPolicy:
    return lambda records, _: [record.desc.name for record in sorted(records, key=key)]


def _origin(record: NodeRecord) -> tuple[object, ...]:
    desc = record.desc
    return (natural_key(desc.addr or desc.name), desc.pid, desc.local_id, natural_key(desc.name))


def _asked(record: NodeRecord) -> tuple[object, ...]:
    rank = record.desc.rank
    return (rank is None, rank or 0, record.arrival)


RANK_POLICIES: Final[Mapping[str, RankPolicy]] = {
    "sticky": sticky,
    "natural": _by(_origin),  # by address, then process id; the same nodes have the same ranks in any round
    "given": _by(_asked),  # closed up to 0..n-1 where some of them are absent
    "topology": _by(lambda record: (natural_key(record.desc.label), _origin(record))),
}


def seated(seats: Seats, records: Iterable[NodeRecord], ranks: Mapping[str, int], policy: str) -> list[str]:
    """Returns who would be members now, in rank order; `ranks` are those of the last round."""
    by_role: dict[str, list[NodeRecord]] = {role: [] for role in seats.groups}
    for record in records:
        by_role[record.desc.brought.role].append(record)
    order: list[str] = []
    for role, group in seats.groups.items():
        nodes = sorted(by_role[role], key=lambda record: seniority(record, ranks))
        if seats.by_label:
            units = _chosen_units(group, nodes, ranks)
            order += _in_units(units, group.unit, ranks, policy, len(order))
        else:
            chosen = nodes[: min(len(nodes) // group.unit * group.unit, group.most)]
            order += _in_block(chosen, ranks, policy, len(order))
    return order


def _in_block(records: Sequence[NodeRecord], ranks: Mapping[str, int], policy: str, first: int) -> list[str]:
    """Orders those who have a block of ranks from `first` on."""
    if policy != "sticky":
        return RANK_POLICIES[policy](records, ranks)
    names = (record.desc.name for record in records)
    within = {name: ranks[name] - first for name in names if ranks.get(name, -1) >= first}
    return sticky(records, within, seniority_by=ranks)


def _chosen_units(group: Group, nodes: Sequence[NodeRecord], ranks: Mapping[str, int]) -> list[Unit]:
    """Chooses units, each of one label, of the nodes of a group, the most senior ones first."""
    by_label: dict[str, Unit] = {}
    for record in nodes:
        by_label.setdefault(record.desc.label, []).append(record)
    units = [unit for some in by_label.values() for unit in _units(some, group.unit, ranks)]
    units.sort(key=lambda unit: sorted(seniority(record, ranks) for record in unit))
    return units[: group.most // group.unit]


def _units(nodes: Sequence[NodeRecord], size: int, ranks: Mapping[str, int]) -> list[Unit]:
    """Makes as many units as there can be of the nodes of one label, which are in order of seniority."""
    pieces: dict[int, Unit] = {}
    rest: Unit = []
    for record in nodes:
        rank = ranks.get(record.desc.name)
        (rest if rank is None else pieces.setdefault(rank // size, [])).append(record)
    kept = sorted(pieces.values(), key=len, reverse=True)  # stable: of equal ones the senior first
    count = len(nodes) // size
    spread = sorted((one for piece in kept[count:] for one in piece), key=lambda one: seniority(one, ranks))
    others = iter(spread + rest)
    units: list[Unit] = [*kept[:count], *([] for _ in range(count - len(kept)))]
    for unit in units:
        unit += [next(others) for _ in range(size - len(unit))]
    return units


def _in_units(
    units: Sequence[Unit], size: int, ranks: Mapping[str, int], policy: str, first: int
) -> list[str]:
    """Orders units that have a block of ranks from `first` on."""
    if policy != "sticky":
        by_label: dict[str, list[str]] = {}
        labels = {record.desc.name: record.desc.label for unit in units for record in unit}
        for name in RANK_POLICIES[policy]([record for unit in units for record in unit], ranks):
            by_label.setdefault(labels[name], []).append(name)
        return [name for names in by_label.values() for name in names]
    places: list[Unit | None] = [None] * len(units)
    seekers: list[Unit] = []
    for unit in units:
        place = _place(unit, size, ranks, first)
        if 0 <= place < len(units) and places[place] is None:
            places[place] = unit
        else:
            seekers.append(unit)
    waiting = iter(seekers)
    order: list[str] = []
    for unit in (one if one is not None else next(waiting) for one in places):
        order += _in_block(unit, ranks, policy, first + len(order))
    return order


def _place(unit: Unit, size: int, ranks: Mapping[str, int], first: int) -> int:
    """Tells at which place of the block most of a unit was in the last round; -1: it was nowhere."""
    was = [ranks[record.desc.name] // size for record in unit if record.desc.name in ranks]
    return max(set(was), key=lambda one: (was.count(one), -one)) - first // size if was else -1

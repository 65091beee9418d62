"""Rank policies: pure functions from the participants of a round to their order.

A policy gets the records of the participants and the ranks that some of them held in the round before, and
returns the names in rank order. `RANK_POLICIES` has them by the names that `RunSettings.rank_policy` takes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Final, TypeAlias

from arendezvous.law.state import NodeDesc, NodeRecord

RankPolicy: TypeAlias = Callable[[Sequence[NodeRecord], Mapping[str, int]], list[str]]

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

    Args:
        records: The nodes.
        previous: Their ranks in the round before, as far as they are to count.
        seniority_by: Those that tell who is senior; None: the same.
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


def _place(desc: NodeDesc) -> tuple[object, ...]:
    return (natural_key(desc.addr or desc.name), desc.pid, desc.local_id, natural_key(desc.name))


def natural(records: Sequence[NodeRecord], previous: Mapping[str, int]) -> list[str]:
    """By address in natural order, then process id; the same nodes get the same ranks in any round."""
    return [desc.name for desc in sorted((record.desc for record in records), key=_place)]


def given(records: Sequence[NodeRecord], previous: Mapping[str, int]) -> list[str]:
    """By the rank each node asked for, closed up to 0..n-1 where some of them are absent."""

    def asked(record: NodeRecord) -> tuple[bool, int, int]:
        rank = record.desc.rank
        return (rank is None, rank or 0, record.arrival)

    return [record.desc.name for record in sorted(records, key=asked)]


def topology(records: Sequence[NodeRecord], previous: Mapping[str, int]) -> list[str]:
    """Nodes with one label stand together; labels and the nodes of each in natural order."""
    return [
        desc.name
        for desc in sorted(
            (record.desc for record in records), key=lambda desc: (natural_key(desc.label), _place(desc))
        )
    ]


RANK_POLICIES: Final[Mapping[str, RankPolicy]] = {
    "sticky": sticky,
    "natural": natural,
    "given": given,
    "topology": topology,
}

"""Tells what a round that gathers lacks: how many nodes, of which roles."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from arendezvous.law.rules import whole_units
from arendezvous.law.state import NodeDesc, RunSettings


def lacking(
    settings: RunSettings, participants: Iterable[NodeDesc], resized: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Tells how many more nodes a round needs at least, by role; only of roles of which it needs some.

    Args:
        settings: What the nodes agreed on.
        participants: Who has come.
        resized: Role to how many a round needs at least by decision.
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

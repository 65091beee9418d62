"""What must hold of roles, units, shares and rosters, counted anew from the lists."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from arendezvous.law import machine
from arendezvous.law.events import LawEvent, NodePromoted, RoundCompleted
from arendezvous.law.facts import Opinions
from arendezvous.law.lists import is_stand_in
from arendezvous.law.rosters import RoundRoster, facts_of
from arendezvous.law.rules import Share
from arendezvous.law.seats import Cell, Group, Seats
from arendezvous.law.state import NodeDesc, Phase, RendezvousState, RunSettings

_OURS: frozenset[Any] = frozenset({Seats, Group, Cell, RoundRoster, Opinions})
_FIELDS = {kind: tuple(name for name in kind.__slots__ if name != "__weakref__") for kind in _OURS}


def form(value: Any) -> Any:
    """What two equal values of ours have in common, for comparing them; others stand for themselves."""
    kind: Any = type(value)
    if kind in _OURS:
        return tuple([form(getattr(value, name)) for name in _FIELDS[kind]])
    if isinstance(value, dict):
        return [(key, form(item)) for key, item in value.items()]
    return value


def copied(value: Any) -> Any:
    """An independent copy of a value of ours; what is frozen is shared."""
    kind: Any = type(value)
    if kind in _OURS:
        twin = kind.__new__(kind)
        for name in _FIELDS[kind]:
            setattr(twin, name, copied(getattr(value, name)))
        return twin
    if isinstance(value, Counter):
        return value.copy()
    if isinstance(value, dict):
        return type(value)((key, copied(item)) for key, item in value.items())
    return list(value) if isinstance(value, list) else value


class Roles:
    """What the roles of a run ask for.

    Args:
        settings: Of the run.
    """

    def __init__(self, settings: RunSettings) -> None:
        rules = settings.agreed
        self.unit, self.by_label = rules.node_unit, rules.unit_label
        numbers = {name: (role.min_nodes, role.most) for name, role in rules.roles.items()}
        numbers = numbers or {"": (settings.min_nodes, settings.max_nodes)}
        self.least = {name: -(-least // self.unit) * self.unit for name, (least, _) in numbers.items()}
        self.most = {name: most // self.unit * self.unit for name, (_, most) in numbers.items()}

    def cell(self, desc: NodeDesc) -> tuple[str, str]:
        """The role and the label under which a node counts."""
        return (desc.brought.role, desc.label if self.by_label else "")

    def usable(self, descs: Iterable[NodeDesc]) -> dict[str, int]:
        """How many of some nodes stand in whole units, by role."""
        usable = dict.fromkeys(self.least, 0)
        for (role, _), count in Counter(map(self.cell, descs)).items():
            usable[role] += count // self.unit * self.unit
        return usable

    def enough(self, descs: Iterable[NodeDesc]) -> bool:
        """Whether a round of some nodes could complete."""
        usable = self.usable(descs)
        return any(usable.values()) and all(usable[role] >= least for role, least in self.least.items())

    def full(self, descs: Iterable[NodeDesc]) -> bool:
        """Whether it could take nobody else."""
        return all(number >= self.most[role] for role, number in self.usable(descs).items())


def check_seats(state: RendezvousState) -> list[str]:
    """Says what is wrong with the counts, and with who is a spare."""
    seats = state.seats
    if seats is None:
        return []
    roles, wrong = Roles(state.settings), []
    descs = {node: record.desc for node, record in state.nodes.items()}
    inside = [node for node in (*state.participants, *state.wait_list) if node not in state.drains]
    known = [node for node in inside if not is_stand_in(node)]
    old = [] if state.complete else [node for node in known if node in state.ranks]
    counts = Counter(roles.cell(descs[node]) for node in known)
    olds = Counter(roles.cell(descs[node]) for node in old)
    spares: dict[tuple[str, str], list[str]] = {}
    for node in state.redundancy_list:
        spares.setdefault(roles.cell(descs[node]), []).append(node)
    found = {
        (role, label): (cell.inside, cell.old, list(cell.spares))
        for role, group in seats.groups.items()
        for label, cell in group.cells.items()
    }
    expected = {
        cell: (counts[cell], olds[cell], spares.get(cell, []))
        for cell in {*counts, *spares}
        if counts[cell] or cell in spares
    }
    if found != expected:
        wrong.append(f"the cells are {found}, expected {expected}")
    if seats.strangers != len(inside) - len(known):
        wrong.append(f"{seats.strangers} stand-ins are counted")
    usable, usable_old = (roles.usable(descs[node] for node in some) for some in (known, old))
    for role, group in seats.groups.items():
        if (group.usable, group.usable_old) != (usable[role], usable_old[role]):
            wrong.append(
                f"usable of {role!r} are {group.usable}, {group.usable_old}, expected {usable[role]}"
            )
        able = [
            label
            for (one, label), some in spares.items()
            if one == role and len(some) + counts[one, label] % roles.unit >= roles.unit
        ]
        if set(able) != {*group.mending, *group.adding}:
            wrong.append(f"labels that can make a unit: {[*group.mending, *group.adding]}, expected {able}")
        if list(group.spares) != [n for n in state.redundancy_list if descs[n].brought.role == role]:
            wrong.append(f"spares of {role!r}: {list(group.spares)}")
        if usable[role] > roles.most[role]:  # no test has a node come back in another role that is full
            wrong.append(f"{usable[role]} of {role!r} hope for {roles.most[role]} places")
        waits_in_vain = able if state.complete else group.spares
        if usable[role] < roles.most[role] and waits_in_vain and state.closed is None and not seats.strangers:
            wrong.append(f"{list(group.spares)} are spares of {role!r}, which has {usable[role]} alone")
    return wrong


def check_round(state: RendezvousState) -> list[str]:
    """Says what is wrong with a round that has just completed."""
    wrong, roles, roster = [], Roles(state.settings), state.roster
    if roster is None:
        return ["a round without a roster"]
    order = [
        state.nodes[node].desc for node in sorted(state.participants, key=state.participants.__getitem__)
    ]
    if roster.descs != order or roster.generation != (state.incarnation, state.round) or roster.gone:
        wrong.append(f"the roster has {[desc.name for desc in roster.descs]}")
    if state.seats is not None:
        wrong += _check_blocks(roles, order)
    return wrong + _check_shares(state, order)


def _check_blocks(roles: Roles, order: list[NodeDesc]) -> list[str]:
    """Says what is wrong with the members of a round, in rank order."""
    wrong = []
    counts = Counter(desc.brought.role for desc in order)
    if not roles.enough(order) or sum(roles.usable(order).values()) != len(order):
        wrong.append(f"a round of {counts} in no whole units")
    if any(counts[role] > most for role, most in roles.most.items()):
        wrong.append(f"a round of {counts}, more than {roles.most}")
    by_block = sorted(order, key=lambda desc: list(roles.most).index(desc.brought.role))
    if by_block != order:
        wrong.append("the ranks of a role are no block")
    units = [order[i : i + roles.unit] for i in range(0, len(order), roles.unit)]
    if roles.by_label and any(len({roles.cell(desc) for desc in unit}) > 1 for unit in units):
        wrong.append("the nodes of a unit do not stand together")
    return wrong


def _check_shares(state: RendezvousState, order: list[NodeDesc]) -> list[str]:
    """Says what is wrong with what the members of a round have besides their ranks."""
    wrong = []
    for name, reducer in state.settings.agreed.facts.items():
        values = [desc.brought.facts[name] for desc in order]
        if reducer == "same" and any(value != values[0] for value in values):
            wrong.append(f"members brought {values} of a fact that must be the same")
    views = [machine.view(state, desc.name, 0.0) for desc in order]
    if any(view.share is None for view in views):
        if any(view.share is not None for view in views):
            wrong.append("some have a share, and others none")
        elif state.settings.agreed.roles or any(desc.brought.slots > 1 for desc in order):
            wrong.append("nobody has a share")
        return wrong
    facts, first, seen = facts_of(state.settings.rules, order), 0, Counter[str]()
    for desc, view in zip(order, views, strict=True):
        role, share = desc.brought.role, view.share
        assert share is not None
        sizes = sum(other.brought.role == role for other in order)
        expected = (role, seen[role], sizes, first, sum(one.brought.slots for one in order), facts)
        if share != Share(*expected):
            wrong.append(f"{desc.name} has {share}, expected {expected}")
        seen[role] += 1
        first += desc.brought.slots
    return wrong


def check_kept(before: RendezvousState, state: RendezvousState, events: list[LawEvent]) -> list[str]:
    """Says what is wrong with who got a rank, and which, given the state before the round completed."""
    done = [event for event in events if isinstance(event, RoundCompleted)]
    if state.seats is None or not done or not state.complete:
        return []
    wrong, roles, ranks = [], Roles(state.settings), before.ranks
    over = [e.node for e in events if isinstance(e, NodePromoted) and e.phase is Phase.REDUNDANT]
    members = {node: state.nodes[node].desc for node in state.participants}
    for node in over:
        if node not in state.redundancy_list or node not in ranks or node not in before.nodes:
            continue
        cell = roles.cell(state.nodes[node].desc)
        newer = [one for one, desc in members.items() if roles.cell(desc) == cell and one not in ranks]
        if newer and before.nodes[node].desc.brought.role == cell[0] and roles.unit == 1:
            wrong.append(f"{newer} have ranks in place of {node}, which had one")
    if state.settings.rank_policy == "sticky" and not roles.by_label:
        blocks, first = {}, 0
        for role in roles.most:
            size = sum(desc.brought.role == role for desc in members.values())
            blocks[role] = range(first, first + size)
            first += size
        for node, rank in state.participants.items():
            if ranks.get(node, -1) in blocks[members[node].brought.role] and ranks[node] != rank:
                wrong.append(f"{node} has the rank {rank}, and had {ranks[node]}, which is in its block")
    return wrong


def check_roster(state: RendezvousState) -> list[str]:
    """Says what is wrong with the roster of the latest round."""
    roster = state.roster
    if roster is None:
        return ["a complete round without a roster"] if state.complete else []
    here = {rank for node, rank in state.ranks.items()}
    gone = set(roster.gone)
    wrong = []
    if here & gone:
        wrong.append(f"who is here is marked as gone: {here & gone}")
    if state.complete and roster.generation == (state.incarnation, state.round):
        if {*here, *gone} != set(range(state.world_size)):
            wrong.append(f"of {state.world_size} members {here} are here and {gone} are gone")
        for node, rank in state.participants.items():
            named = roster.descs[rank].name if rank < len(roster.descs) else "nobody"
            if named != node:
                wrong.append(f"rank {rank} is {named} in the roster, and {node}")
    return wrong


def check_opinions(state: RendezvousState) -> list[str]:
    """Says what is wrong with what participants are counted to bring of facts that must be the same."""
    if state.opinions is None:
        return []
    expected = Opinions(name for name, one in state.settings.agreed.facts.items() if one == "same")
    for node in () if state.complete else state.participants:
        expected.count(state.nodes[node].desc.brought.facts, 1)
    found, counted = dict(state.opinions._held), dict(expected._held)  # in whatever order they came
    return [] if found == counted else [f"{found}, expected {counted}"]

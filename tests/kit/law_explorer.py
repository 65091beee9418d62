"""An exhaustive small-scope explorer: every interleaving, breadth first, of states up to symmetry."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import pytest

from arendezvous.law.rules import Brought
from arendezvous.law.state import RunSettings
from tests.kit import law_invariants as inv
from tests.kit.law_world import Action, World, all_actions, canonical, operation_of

BreakIt: TypeAlias = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Scope:
    """What is explored.

    Attributes:
        name: Of the scope.
        settings: Of the run; small whole numbers of seconds keep the states few.
        kinds: The kinds of actions that may happen.
        depth: How many actions in a row.
        nodes: One letter for each node.
        amnesias: How often the coordinator may forget the run.
        start: Actions that have happened already.
        records: Whether the owner keeps a record.
        bring: What each node brings; None: nothing.
        labels: The label of each; None: none.
    """

    name: str
    settings: RunSettings
    kinds: tuple[str, ...]
    depth: int
    nodes: str = "abc"
    amnesias: int = 0
    start: tuple[Action, ...] = ()
    records: bool = False
    bring: Mapping[str, Brought] | None = None
    labels: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Found:
    """How much was explored: actions in a row, distinct states, actions tried; whether none is left."""

    depth: int
    states: int
    actions: int
    exhausted: bool


def explore(scope: Scope, *, liveness: bool = True) -> Found:
    """Explores `scope`; raises `Broken`, with the shortest way there, where an invariant first breaks."""
    first = World.of(
        scope.nodes,
        scope.settings,
        scope.amnesias,
        records=scope.records,
        bring=scope.bring,
        labels=scope.labels,
    )
    for action in scope.start:
        first.act(action)
    frontier: list[tuple[World, tuple[Action, ...]]] = [(first, scope.start)]
    seen = {canonical(first)}
    tried = depth = 0
    while frontier and depth < scope.depth:
        depth += 1
        following: list[tuple[World, tuple[Action, ...]]] = []
        for world, path in frontier:
            for action in all_actions(world, scope.kinds):
                successor = world.fork()
                tried += 1
                try:
                    done = successor.act(action)
                    if not done or (key := canonical(successor)) in seen:
                        continue
                    seen.add(key)
                    check_new(world, successor, action, liveness)
                except Exception as error:  # a law that is wrong may also fail on its way
                    way = " ".join(f"{a.kind}({a.node})" for a in (*path, action))
                    raise inv.Broken(f"{scope.name}: after {way}: {error}") from error
                following.append((successor, (*path, action)))
        frontier = following
    return Found(depth, len(seen), tried, not frontier)


class Mutants:
    """Ways to break the law, by name.

    Args:
        scopes: Where to look for what is wrong then.

    Its fields:
        _ways: How to break it, and in which scope that is found soonest.
    """

    def __init__(self, scopes: Sequence[Scope]) -> None:
        self._scopes = {scope.name: scope for scope in scopes}
        self._ways: dict[str, tuple[BreakIt, str]] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._ways)

    def __call__(self, name: str, scope: str) -> Callable[[BreakIt], BreakIt]:
        """Registers a way under `name`, with the scope that is to be searched first."""

        def register(break_it: BreakIt) -> BreakIt:
            self._ways[name] = (break_it, scope)
            return break_it

        return register

    def found(self, name: str) -> str | None:
        """Breaks the law, and returns what is found wrong; None if nobody noticed."""
        break_it, scope = self._ways[name]
        with pytest.MonkeyPatch.context() as patch:
            break_it(patch)
            return _found([self._scopes[scope]]) or _found(list(self._scopes.values()))


def _found(scopes: Sequence[Scope]) -> str | None:
    """Finds what is wrong, the shallowest in any scope: most of it needs no deep look."""
    for depth in range(1, max(scope.depth for scope in scopes) + 1):
        for scope in scopes:
            if depth <= scope.depth:
                try:
                    explore(replace(scope, depth=depth))
                except inv.Broken as broken:
                    return str(broken)
    return None


def check_new(before: World, world: World, action: Action, liveness: bool) -> None:
    """Checks what is checked once for each state."""
    inv.check_wake(world.state, world.now)
    world.check_refusals()
    operation = operation_of(before.fork(), action)
    if operation is not None:
        world.repeat(operation)
    if liveness:
        world.fork().check_liveness()

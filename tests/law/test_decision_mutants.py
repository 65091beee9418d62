"""The checkers of decisions are checked: the law is broken in one way after another."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import structs

from arendezvous.law import admission, image, machine, operations, steering
from arendezvous.law.decisions import Decisions
from arendezvous.law.events import Audience, RunResized
from arendezvous.law.lists import Lists
from arendezvous.law.rounds import Rounds
from arendezvous.law.state import Phase, RendezvousState
from tests.kit.law_explorer import Mutants
from tests.law.test_decisions import SCOPES

Patch = pytest.MonkeyPatch
mutant = Mutants([scope for scope, _ in SCOPES])


@mutant("rounds complete while the run is held", "holds and a last call")
def _(patch: Patch) -> None:
    patch.setattr(Decisions, "held_until", property(lambda self: float("-inf")))


@mutant("nobody looks when a hold is over", "holds and a last call")
def _(patch: Patch) -> None:
    original = machine.next_wake

    def next_wake(state: RendezvousState) -> float | None:
        decisions, state.decisions = state.decisions, Decisions()
        due = original(state)
        state.decisions = decisions
        return due

    patch.setattr(machine, "next_wake", next_wake)


@mutant("a round that is ready stays so when the run is held", "a record of decisions besides closing")
def _(patch: Patch) -> None:
    def hold(rounds: Rounds, operation: operations.Hold) -> None:
        ready = rounds.state.ready
        steering.steer(rounds, operation)
        rounds.state.ready = ready

    patch.setitem(_handlers(), operations.Hold, hold)


@mutant("members do not hear that they are too many", "resizes of three that met")
def _(patch: Patch) -> None:
    original = Rounds.fit

    def fit(self: Rounds, *args: str) -> None:
        original(self, *args)
        self.state.decisions.excess = None

    patch.setattr(Rounds, "fit", fit)


@mutant("members are not woken by a resize", "resizes of three that met")
def _(patch: Patch) -> None:
    patch.setattr(RunResized, "audience", Audience.NOBODY)


@mutant("who is over when a round gathers stays in it", "a record of decisions besides closing")
def _(patch: Patch) -> None:
    original = Rounds.fit

    def fit(self: Rounds, *args: str) -> None:
        if self.state.complete:
            original(self, *args)

    patch.setattr(Rounds, "fit", fit)


@mutant("a member that becomes a spare keeps its rank", "resizes of three that met, while they are held")
def _(patch: Patch) -> None:
    original = Lists.enter

    def enter(self: Lists, node: str, phase: Phase) -> None:
        rank = self.state.ranks.get(node)
        original(self, node, phase)
        if rank is not None:
            self.state.ranks[node] = rank

    patch.setattr(Lists, "enter", enter)


@mutant("who is quarantined comes in", "quarantines of a pair and a spare for a given rank")
def _(patch: Patch) -> None:
    patch.setattr(admission, "check_quarantine", lambda *_: None)


@mutant("who is quarantined stays in", "quarantines of a pair and a spare for a given rank")
def _(patch: Patch) -> None:
    patch.setattr(steering, "_expel", lambda *_: None)


@mutant("rounds in vain go on for ever", "rounds in vain")
def _(patch: Patch) -> None:
    patch.setattr(Rounds, "is_in_vain", False)


@mutant("what an operator closed begins anew", "runs that begin anew")
def _(patch: Patch) -> None:
    original = admission.begins_anew

    def begins_anew(state: RendezvousState, join: Any, now: float) -> bool:
        closed = state.closed
        if closed is not None:
            state.closed = structs.replace(closed, by_node=True)
        found = original(state, join, now)
        state.closed = closed
        return found

    patch.setattr(admission, "begins_anew", begins_anew)


@mutant("what was decided is forgotten by whoever is started anew", "a record of decisions besides closing")
def _(patch: Patch) -> None:
    original = image.restore

    def restore(head: Any, *others: Any) -> RendezvousState:
        return original(structs.replace(head, decisions=None), *others)

    patch.setattr(image, "restore", restore)


def _handlers() -> dict[type, Any]:
    handlers = machine._HANDLERS
    assert isinstance(handlers, dict)
    return handlers


@pytest.mark.parametrize("name", list(mutant))
def test_the_search_finds_a_law_in_which(name: str) -> None:
    assert mutant.found(name) is not None, f"nobody noticed that {name}"

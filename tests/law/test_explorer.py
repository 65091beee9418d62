"""Every interleaving of a few nodes, to the depth that runs in seconds.

``ARENDEZVOUS_EXPLORE_MORE=2`` goes two actions deeper, which takes minutes.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from arendezvous.law.rules import RoundRules
from arendezvous.law.state import RunSettings
from tests.kit.law_explorer import Scope, explore
from tests.kit.law_world import Action

MORE = int(os.environ.get("ARENDEZVOUS_EXPLORE_MORE", "0"))
EVERYTHING = ("join", "leave", "drain", "beat", "cut", "look", "close", "reopen", "pass")
RESUMPTION = ("join", "look", "resume", "leave", "pass", "forget")
RESTARTS = (*RESUMPTION[:-1], "restart")
IDENTITY = ("join", "claim", "cut", "beat", "drain", "pass")
RECORDED = ("join", "look", "resume", "leave", "record", "confirm", "crash")
STEPS = (*RECORDED, "pass", "cut", "drain")
MEETING = ("arrive", "hear", "withdraw", "leave", "fail", "join", "pass", "drain")
MET_PAIR = 2 * tuple(Action(kind, node) for kind in ("join", "look") for node in "ab")
MET = tuple(Action(kind, node) for kind in ("join", "look") for node in "abc")  # everybody is in and knows it


MET_AND_RECORDED = (
    *(Action("join", node) for node in "abc"), Action("record"), Action("confirm"),
    *(Action("look", node) for node in "abc"),
)  # fmt: skip


def run(min_nodes: int, max_nodes: int, last_call: float = 1, **others: float) -> RunSettings:
    """Settings with an expiry and a grace of so few seconds that the states stay few."""
    return RunSettings(
        min_nodes, max_nodes, last_call, keep_alive_interval=2, keep_alive_max_attempt=1,
        disconnect_grace=others.get("grace", 1),
    )  # fmt: skip


THREE_NODES = [
    (Scope("a pair and a spare", run(2, 2), EVERYTHING, 6), 800),
    (Scope("two to three", run(2, 3), EVERYTHING, 6), 900),
    (Scope("one to three, no last call", run(1, 3, 0), EVERYTHING, 6), 500),
    (Scope("two to three, no grace", run(2, 3, grace=0), EVERYTHING, 6), 500),
    (Scope("a pair that met, and a spare", run(2, 2), EVERYTHING, 4, start=MET), 1000),
    (Scope("three that met", run(2, 3), EVERYTHING, 4, start=MET), 1400),
    (Scope("an amnesia among two to three", run(2, 3), RESUMPTION, 7, amnesias=1), 900),
    (Scope("an amnesia after all met", run(2, 3), RESUMPTION, 5, amnesias=1, start=MET), 1700),
    (Scope("two amnesias after a pair met", run(1, 2), RESUMPTION, 5, amnesias=2, start=MET), 1300),
    (Scope("a restart among two to three", run(2, 3), RESTARTS, 7, amnesias=1), 2100),
    (Scope("a restart after all met", run(2, 3), RESTARTS, 5, amnesias=1, start=MET), 1800),
    (Scope("a restart after a pair met, with a spare", run(2, 2), RESTARTS, 5, amnesias=1, start=MET), 1100),
    (Scope("two restarts after a pair met", run(1, 2), RESTARTS, 5, amnesias=2, start=MET), 1400),
    (
        Scope("an amnesia of a pair whose run is closed and reopened", run(2, 2, 0),
              ("join", "look", "resume", "close", "reopen", "forget"), 5, nodes="ab", amnesias=1,
              start=2 * tuple(Action(kind, node) for kind in ("join", "look") for node in "ab")),
        100,
    ),
    (Scope("names that are taken over", run(2, 3), IDENTITY, 4, start=MET), 1300),
    (Scope("names that are taken over while they gather", run(2, 3), (*IDENTITY, "leave"), 5), 140),
    (
        Scope("a spare for a given rank", RunSettings(2, 2, 1, 2, 1, 1, "given"), (*IDENTITY, "leave"), 4,
              start=MET),
        1600,
    ),
    (
        Scope("a restart with a spare for a given rank", RunSettings(2, 2, 1, 2, 1, 1, "given"), RESTARTS, 5,
              amnesias=1, start=MET),
        500,
    ),
    (
        Scope("a given rank that is taken", RunSettings(1, 2, 1, 2, 1, 1, "given"), (*EVERYTHING, "claim"),
              4),
        250,
    ),
    (Scope("a record of two to three", run(2, 3, 0), RECORDED, 7, amnesias=1, records=True), 1000),
    (Scope("a record of all that met", run(2, 3), STEPS, 3, amnesias=1, start=MET_AND_RECORDED,
           records=True), 900),
    (Scope("a record of a pair that met, and a spare", run(2, 2), STEPS, 4, amnesias=2,
           start=MET_AND_RECORDED, records=True), 2500),
    (Scope("a record of decisions", run(1, 2, 0), (*RECORDED, "close", "reopen"), 6, nodes="ab", amnesias=1,
           records=True), 500),
    (
        Scope("a record of names that are taken over", run(2, 3), (*IDENTITY, "record", "confirm", "crash"),
              4, amnesias=1, start=MET_AND_RECORDED, records=True),
        1000,
    ),
    (Scope("a barrier of two to three", run(2, 3, 0), MEETING, 5, start=MET[:4]), 700),
    (Scope("a barrier of three, of which some leave", run(2, 3), MEETING, 4, start=MET), 1500),
    (Scope("a barrier of a pair whose coordinator forgets", run(2, 2, 0),
           ("arrive", "hear", "resume", "forget", "pass", "fail"), 6, nodes="ab", amnesias=1, start=MET_PAIR),
     200),
    (
        Scope("progress of a pair", RunSettings(1, 2, 0, 3, 2, 1, rules=RoundRules(stall_timeout=2)),
              ("step", "update", "beat", "pass", "join", "leave", "look"), 5, nodes="ab", start=MET_PAIR),
        500,
    ),
    (
        Scope("given ranks", RunSettings(1, 3, 1, 2, 1, 1, "given"), (*EVERYTHING, *RESUMPTION[2::3]), 3,
              amnesias=1, start=MET),
        800,
    ),
]  # fmt: skip
TWO_NODES = [
    (Scope("one node and a spare", run(1, 1, 0), (*EVERYTHING[:-2], "pass"), 40, nodes="ab"), 4800),
    (Scope("a pair and an amnesia", run(2, 2, 0), RESUMPTION, 40, nodes="ab", amnesias=1), 1500),
]


def _name(value: object) -> str | None:
    return value.name if isinstance(value, Scope) else None


@pytest.mark.parametrize(("scope", "floor"), THREE_NODES, ids=_name)
def test_no_interleaving_of_three_nodes_breaks_an_invariant(
    scope: Scope, floor: int, record_property: Callable[[str, object], None]
) -> None:
    deeper = Scope(**{**vars(scope), "depth": scope.depth + MORE})
    found = explore(deeper)
    record_property("explored", str(found))
    assert found.depth == deeper.depth
    assert found.states >= floor, found


@pytest.mark.parametrize(("scope", "floor"), TWO_NODES, ids=_name)
def test_every_state_that_two_nodes_can_reach_keeps_all_invariants(
    scope: Scope, floor: int, record_property: Callable[[str, object], None]
) -> None:
    found = explore(scope)
    record_property("explored", str(found))
    assert found.exhausted, "the states of this scope are finite"
    assert found.states >= floor, found

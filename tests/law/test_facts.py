"""Facts are reduced to one value, or those who brought something else are named."""

from __future__ import annotations

import math
import sys
from typing import Any

import pytest

from arendezvous.errors import RendezvousSettingsError
from arendezvous.law import machine
from arendezvous.law.checks import decoded, encoded
from arendezvous.law.events import NodeDeparted
from arendezvous.law.facts import DisagreementError, reduced
from arendezvous.law.operations import Join, Leave
from arendezvous.law.rules import Brought, RoundRules
from arendezvous.law.state import Cause, NodeDesc, Phase, RendezvousState, RunSettings

SAME = RunSettings(2, 3, 0.0, rules=RoundRules(facts={"model": "same"}))


def reduce(reducer: str, *values: Any) -> Any:
    return reduced({"f": reducer}, [(f"n{rank}", {"f": value}) for rank, value in enumerate(values)])["f"]


@pytest.mark.parametrize(
    ("reducer", "values", "result"),
    [
        ("min", (3, 1.5, 2), 1.5),
        ("max", (3, -1, 2), 3),
        ("sum", (1, 2, 3), 6),
        ("sum", (1, 0.5), 1.5),
        ("sum", (2**53,) * 2000, float(2**53) * 2000),
        ("sum", (1e308, 1e308), sys.float_info.max),
        ("sum", (-1e308, -1e308), -sys.float_info.max),
        ("all", (True, True), True),
        ("all", (True, False), False),
        ("any", (False, True), True),
        ("any", (False, False), False),
        ("same", ({"a": [1, None]}, {"a": [1, None]}), {"a": [1, None]}),
        ("same", ({"a": 1, "b": 2}, {"b": 2, "a": 1}), {"a": 1, "b": 2}),
    ],
)
def test_what_members_bring_is_reduced_to_one_value(reducer: str, values: Any, result: Any) -> None:
    found = reduce(reducer, *values)
    assert found == result
    assert not isinstance(found, float) or math.isfinite(found)
    assert decoded(encoded("f", found, 4096)) == found, "it can be sent"


def test_who_brought_what_is_named_the_most_frequent_first_and_never_at_length() -> None:
    with pytest.raises(DisagreementError) as caught:
        reduce("same", "x", {"long": "y" * 900}, "x", 1)
    text = str(caught.value)
    assert text.startswith("fact 'f' must be the same at all nodes, but is \"x\" by 2 nodes (n0, n2), ")
    assert "1 by 1 node (n3)" in text
    with pytest.raises(DisagreementError) as caught:
        reduce("same", *range(1000))
    assert "and 994 more" in str(caught.value)
    with pytest.raises(DisagreementError) as caught:
        reduce("same", *({"v": [number] * 200} for number in range(100)))
    assert len(str(caught.value)) < 800


def join(state: RendezvousState, node: str, model: Any, after: tuple[int, int] = (0, -1)) -> list[Any]:
    desc = NodeDesc(node, brings=Brought(facts={"model": model}))
    return machine.apply(state, Join(desc, SAME, after), 0.0)


def test_participants_that_do_not_agree_depart_and_the_next_may_meet() -> None:
    state = RendezvousState(SAME)
    join(state, "a", "x")
    events = join(state, "b", "y")
    gone = [event for event in events if isinstance(event, NodeDeparted)]
    assert {(event.node, event.cause) for event in gone} == {("a", Cause.DISAGREED), ("b", Cause.DISAGREED)}
    view = machine.view(state, "a", 0.0)
    assert view.gone is not None
    assert "'model' must be the same" in view.gone.reason
    join(state, "a", "y")
    join(state, "c", "y")
    share = machine.view(state, "a", 0.0).share
    assert share is not None
    assert share.facts == {"model": "y"}


def test_a_newcomer_that_does_not_agree_ends_the_round_of_those_who_meet_with_it() -> None:
    state = RendezvousState(SAME)
    join(state, "a", "x")
    join(state, "b", "x")
    join(state, "c", "y")
    assert state.phase("c") is Phase.WAITING
    for node in "ab":
        join(state, node, "x", (1, 0))
    assert not state.nodes
    assert "by 2 nodes (a, b)" in state.departed["c"].reason


def test_one_who_leaves_takes_its_opinion_along() -> None:
    settings = RunSettings(2, 3, 5.0, rules=RoundRules(facts={"model": "same"}))
    state = RendezvousState(settings)
    for node, model in (("a", "x"), ("b", "y")):
        desc = NodeDesc(node, brings=Brought(facts={"model": model}))
        machine.apply(state, Join(desc, settings), 0.0)
    machine.apply(state, Leave("b"), 1.0)
    desc = NodeDesc("c", brings=Brought(facts={"model": "x"}))
    machine.apply(state, Join(desc, settings), 1.0)
    machine.apply(state, Join(NodeDesc("d", brings=desc.brings), settings), 1.0)
    assert list(state.participants) == ["a", "c", "d"]
    assert state.complete


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def test_json_is_encoded_alike_and_nesting_is_bounded() -> None:
    assert encoded("x", {"b": (1, None), "a": True}, 100) == b'{"a":true,"b":[1,null]}'
    assert decoded(b"") is None
    encoded("x", deep(32), 100)
    with pytest.raises(RendezvousSettingsError, match="nested less than 32 levels"):
        encoded("x", deep(33), 100)

"""Barriers by example: who is let through, with which value, and what the others are told."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arendezvous.errors import RendezvousSettingsError, RendezvousStateError, RoundOverError
from arendezvous.law.barriers import MAX_MISSING, MAX_OPEN, MAX_PASSED, Met, standing
from arendezvous.law.events import BarrierPassed, LawEvent, RoundBroken
from arendezvous.law.machine import apply
from arendezvous.law.operations import Arrive, Disconnect, Join, Leave, Operation, Tick, Withdraw
from arendezvous.law.rules import Reducer
from arendezvous.law.state import Cause, NodeDesc, RendezvousState, RunSettings
from tests.kit import law_invariants as inv


def met(nodes: str = "abc") -> RendezvousState:
    state, settings = (
        RendezvousState(RunSettings(len(nodes), len(nodes))),
        RunSettings(len(nodes), len(nodes)),
    )
    for node in nodes:
        do(state, Join(NodeDesc(node), settings))
    assert state.complete, "the fixture's nodes have met"
    return state


def do(state: RendezvousState, *operations: Operation, now: float = 0.0) -> list[LawEvent]:
    events = [event for operation in operations for event in apply(state, operation, now)]
    inv.check_state(state, now)
    return events


def arrive(
    node: str, name: str = "x", turn: int = 0, reducer: Reducer | str = "", value: Any = None
) -> Arrive:
    brought = json.dumps(value).encode() if reducer else b""
    return Arrive(node, 1, 0, name, turn, reducer, brought)  # type: ignore[arg-type]  # on purpose, some


def withdraw(node: str, name: str = "x") -> Withdraw:
    return Withdraw(node, 1, 0, name)


def test_a_barrier_passes_once_all_members_have_come() -> None:
    state = met()

    assert do(state, arrive("a"), arrive("b")) == []
    assert standing(state, arrive("a")) == Met(passed=False, missing=("c",))
    assert do(state, arrive("c")) == [BarrierPassed("x", 0)]
    assert standing(state, arrive("a")) == Met(passed=True)


def test_who_arrives_again_is_told_the_same() -> None:
    state = met("ab")
    do(state, arrive("a", reducer="sum", value=1), arrive("a", reducer="sum", value=1))
    do(state, arrive("b", reducer="sum", value=2))

    assert do(state, arrive("a", reducer="sum", value=1)) == []
    assert standing(state, arrive("a")) == Met(passed=True, value=b"3")


def test_a_name_is_used_again_by_its_turn() -> None:
    state = met("ab")
    do(state, arrive("a"), arrive("b"))

    assert do(state, arrive("a", turn=1)) == []
    assert not standing(state, arrive("a", turn=1)).passed
    assert do(state, arrive("b", turn=1)) == [BarrierPassed("x", 1)]


def test_who_has_finished_is_not_waited_for() -> None:
    state = met()
    do(state, arrive("a"), arrive("b"))

    assert BarrierPassed("x", 0) in do(state, Leave("c", "done", Cause.FINISHED))
    assert do(state, arrive("a", "y"), arrive("b", "y")) == [BarrierPassed("y", 0)]


@pytest.mark.parametrize("cause", [Cause.FAILED, Cause.LEFT, Cause.CANCELLED])
def test_who_goes_otherwise_ends_all_barriers_of_the_round(cause: Cause) -> None:
    state = met()
    do(state, arrive("a"), arrive("b", "y"))

    assert RoundBroken(0) in do(state, Leave("c", "boom", cause))
    for operation in (arrive("a"), arrive("b", "y")):
        with pytest.raises(RoundOverError, match=r"round 0 is not whole any more: c .*boom") as caught:
            standing(state, operation)
        assert caught.value.departures == {"c": "boom"}
        assert not caught.value.closed
    with pytest.raises(RoundOverError, match="boom"):
        do(state, arrive("a", "later"))


def test_who_is_lost_ends_all_barriers_of_the_round_after_its_grace() -> None:
    state = met()
    do(state, arrive("a"), Disconnect("c"))

    assert not standing(state, arrive("a")).passed
    assert RoundBroken(0) in do(state, Tick(), now=1.0)
    with pytest.raises(RoundOverError, match="c is lost") as caught:
        standing(state, arrive("a"))
    assert list(caught.value.departures) == ["c"]


def test_who_goes_on_to_the_next_round_ends_all_barriers_of_this_one() -> None:
    state = met()
    do(state, arrive("a"))

    events = do(state, Join(NodeDesc("c"), state.settings, (1, 0)))

    assert RoundBroken(0) in events
    with pytest.raises(RoundOverError, match="c has joined the next round"):
        standing(state, arrive("a"))


def test_a_member_of_an_earlier_round_is_told_that_it_is_over() -> None:
    state = met("ab")
    do(state, *(Join(NodeDesc(node), state.settings, (1, 0)) for node in "ab"))
    assert (state.complete, state.round) == (True, 1)

    with pytest.raises(RoundOverError, match="round 0 is over") as caught:
        do(state, arrive("a"))
    assert caught.value.round == 0


def test_who_is_no_member_cannot_come_and_is_told_why() -> None:
    state = met("ab")
    do(state, Leave("b", "bye"))

    with pytest.raises(RoundOverError, match="b left: bye"):
        do(state, arrive("b"))


def test_who_waits_no_longer_is_told_who_never_came_and_nobody_else() -> None:
    state = met("abcd")
    do(state, arrive("a"), arrive("b"), arrive("c"))

    for count, node in enumerate("abc", 1):
        assert do(state, withdraw(node)) == []
        assert standing(state, withdraw(node)) == Met(passed=False, missing=("d",), withdrawn=count)


def test_who_waits_no_longer_is_waited_for_until_it_comes_again() -> None:
    state = met("ab")
    do(state, arrive("a"), withdraw("a"))

    assert do(state, arrive("b")) == []
    assert do(state, arrive("a")) == [BarrierPassed("x", 0)]


def test_of_many_that_are_missing_some_are_named() -> None:
    names = [f"n{i:02}" for i in range(40)]
    settings = RunSettings(40, 40)
    state = RendezvousState(settings)
    do(state, *(Join(NodeDesc(name), settings) for name in names))
    do(state, arrive("n00"))

    found = standing(state, withdraw("n00"))

    assert found.missing == tuple(names[1 : 1 + MAX_MISSING])
    assert found.others == 39 - MAX_MISSING


@pytest.mark.parametrize(
    ("reducer", "values", "result"),
    [
        ("min", [3, 1.5, 2], 1.5),
        ("max", [3, 1.5, 2], 3),
        ("sum", [3, 1.5, 2], 6.5),
        ("sum", [2**53, 2**53, 2**53], 3 * 2**53),
        ("all", [True, True, False], False),
        ("all", [True, True, True], True),
        ("any", [False, True, False], True),
        ("any", [False, False, False], False),
        ("same", [{"a": 1, "b": [0]}, {"b": [0], "a": 1}, {"a": 1, "b": [0]}], {"a": 1, "b": [0]}),
        ("same", [None, None, None], None),
    ],
)
def test_what_all_bring_is_reduced(reducer: Reducer, values: list[Any], result: Any) -> None:
    state = met()

    do(state, *(arrive(node, "x", 0, reducer, value) for node, value in zip("abc", values, strict=True)))

    agreed = json.loads(standing(state, arrive("a")).value)
    assert agreed == result
    assert type(agreed) is type(result)


def test_what_is_not_the_same_is_told_to_all_with_who_brought_what() -> None:
    state = met()

    do(state, *(arrive(node, "x", 0, "same", value) for node, value in zip("abc", [1, 2, 1], strict=True)))

    for node in "abc":
        found = standing(state, arrive(node))
        assert found.passed
        said = "must be the same at all nodes, but is 1 by 2 nodes (a, c), 2 by 1 node (b)"
        assert found.problem == f"value at barrier 'x' {said}"


def test_a_sum_that_no_number_is_for_is_told_to_all() -> None:
    state = met("ab")

    do(state, *(arrive(node, "x", 0, "sum", 1.7e308) for node in "ab"))

    assert "too large" in standing(state, arrive("a")).problem


@pytest.mark.parametrize(
    ("reducer", "value"),
    [
        ("min", b'"text"'), ("min", b"true"), ("max", b"null"), ("sum", b"[1]"),
        ("sum", b"9007199254740993"),
        ("all", b"1"), ("any", b'"yes"'), ("same", b"NaN"), ("same", b"{"), ("min", b"NaN"),
        ("min", b"1e400"),
        ("same", b"\xff"),
    ],
)  # fmt: skip
def test_a_value_that_does_not_fit_is_refused_and_the_member_has_not_come(
    reducer: Reducer, value: bytes
) -> None:
    state = met("ab")

    with pytest.raises(RendezvousSettingsError, match=r"value is .*, but must be"):
        do(state, Arrive("a", 1, 0, "x", 0, reducer, value))

    assert state.barriers is None or not state.barriers.open


def test_another_reducer_is_refused_and_the_member_has_not_come() -> None:
    state = met("ab")
    do(state, arrive("a", reducer="min", value=1))

    with pytest.raises(RendezvousSettingsError, match="reducer is 'max', but must be 'min'"):
        do(state, arrive("b", reducer="max", value=1))

    assert standing(state, arrive("a")).missing == ("b",)


@pytest.mark.parametrize(
    "fields",
    [
        {"name": ""}, {"name": "x" * 257}, {"name": "a\nb"}, {"turn": -1}, {"round": -1}, {"incarnation": 0},
        {"value": b"1"}, {"reducer": "same", "value": b'"' + b"x" * 1024 + b'"'},
    ],
    ids=repr,
)  # fmt: skip
def test_an_arrival_that_no_state_allows_cannot_be_made(fields: dict[str, Any]) -> None:
    with pytest.raises(RendezvousSettingsError):
        Arrive(**{"node": "a", "incarnation": 1, "round": 0, "name": "x", **fields})


def test_only_so_many_barriers_are_open_and_those_where_nobody_waits_give_way() -> None:
    state = met("ab")
    do(state, *(arrive("a", f"x{i}") for i in range(MAX_OPEN)))

    with pytest.raises(RendezvousStateError, match="wait at 64 barriers"):
        do(state, arrive("a", "one more"))
    do(state, withdraw("a", "x7"))
    assert do(state, arrive("a", "one more"), arrive("b", "one more")) == [BarrierPassed("one more", 0)]


def test_only_so_much_is_brought_to_the_barriers_of_a_round() -> None:
    names = [f"n{i}" for i in range(1100)]
    settings = RunSettings(len(names), len(names))
    state = RendezvousState(settings)
    for name in names:
        apply(state, Join(NodeDesc(name), settings), 0.0)
    for name in names:
        apply(state, arrive(name, "alike", 0, "same", "x" * 1000), 0.0)

    for number, name in enumerate(names[:1026]):
        apply(state, arrive(name, "apart", 0, "same", f"{number:01020}"), 0.0)
    with pytest.raises(RendezvousStateError, match="more than 1048576 bytes"):
        apply(state, arrive(names[-1], "apart", 0, "same", "9" * 1000), 0.0)
    apply(state, arrive(names[-1], "apart", 0, "same", f"{7:01020}"), 0.0)
    inv.check_state(state, 0.0)


def test_the_latest_that_have_passed_are_remembered() -> None:
    state = met("ab")
    for turn in range(MAX_PASSED + 1):
        do(state, arrive("a", turn=turn), arrive("b", turn=turn))

    assert standing(state, arrive("a", turn=1)).passed
    assert not standing(state, arrive("a", turn=0)).passed


@given(st.permutations("abcd"), st.lists(st.integers(-(2**53), 2**53), min_size=4, max_size=4))
def test_in_which_order_members_come_does_not_matter(order: list[str], values: list[int]) -> None:
    state = met("abcd")

    do(state, *(arrive(node, "x", 0, "sum", value) for node, value in zip(order, values, strict=True)))

    assert json.loads(standing(state, arrive("a")).value) == sum(values)

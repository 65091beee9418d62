"""Progress and states by example: who stalls, who hears of it, and what is kept."""

from __future__ import annotations

import pytest

from arendezvous.errors import RendezvousSettingsError
from arendezvous.law.events import LawEvent, MemberStalled, NodeUpdated
from arendezvous.law.machine import apply, next_wake, view
from arendezvous.law.operations import Join, KeepAlive, Leave, Operation, Progress, Tick, Update
from arendezvous.law.rules import RoundRules
from arendezvous.law.state import MAX_NOTICES, Cause, NodeDesc, RendezvousState, RunSettings
from arendezvous.law.status import run_status
from tests.kit import law_invariants as inv


def do(state: RendezvousState, *operations: Operation, now: float = 0.0) -> list[LawEvent]:
    events = [event for operation in operations for event in apply(state, operation, now)]
    inv.check_state(state, now)
    return events


def met(nodes: list[str], timeout: float = 60.0) -> RendezvousState:
    rules = RoundRules(stall_timeout=timeout) if timeout else None
    settings = RunSettings(len(nodes), len(nodes), keep_alive_interval=1000.0, rules=rules)
    state = RendezvousState(settings)
    do(state, *(Join(NodeDesc(node), settings) for node in nodes))
    return state


def test_a_member_whose_step_stands_still_is_told_of_once() -> None:
    state = met(["a", "b"])
    do(state, Progress("a", 1), Progress("b", 1))
    do(state, Progress("b", 2), now=30.0)

    assert next_wake(state) == 60.0
    assert do(state, Tick(), now=60.0) == [MemberStalled("a", 1, 60.0)]
    assert [(one.node, one.step) for one in view(state, "b", 60.0).notices] == [("a", 1)]
    assert next_wake(state) == 90.0
    assert do(state, KeepAlive("a"), Progress("a", 1), now=70.0) == []


def test_a_member_whose_step_rises_again_may_stall_again() -> None:
    state = met(["a", "b"])
    do(state, Progress("a", 1))
    do(state, Tick(), now=60.0)
    do(state, Progress("a", 2), now=100.0)

    assert do(state, Tick(), now=159.0) == []
    assert do(state, Tick(), now=160.0) == [MemberStalled("a", 2, 60.0)]
    assert [one.step for one in state.notices] == [2]


def test_a_member_that_has_not_reported_in_this_round_does_not_stall() -> None:
    state = met(["a", "b"])
    do(state, Progress("a", 7))
    do(state, *(Join(NodeDesc(node), state.settings, (1, 0)) for node in "ab"), now=1.0)

    assert (state.round, state.complete) == (1, True)
    assert do(state, Tick(), now=500.0) == []


def test_who_is_gone_does_not_stall() -> None:
    state = met(["a", "b"])
    do(state, Progress("a", 7), Leave("a"))

    assert do(state, Tick(), now=60.0) == []


def test_without_a_time_out_nobody_stalls_but_the_slowest_is_named() -> None:
    state = met(["a", "b", "c"], timeout=0.0)
    do(state, Progress("a", 7), Progress("b", 3), Progress("c", 9))

    assert do(state, Tick(), now=500.0) == []
    status = run_status("r", state, 500.0)
    assert "progress: steps 3 to 9; slowest: b" in str(status)
    assert [node.step for node in status.nodes] == [7, 3, 9]


def test_who_stalls_is_named_by_explain() -> None:
    state = met(["a", "b"])
    do(state, Progress("a", 7))
    do(state, Tick(), now=61.0)

    assert "a: stalls, at step 7 for 71 s" in str(run_status("r", state, 71.0))


def test_stalls_never_push_out_what_members_have_to_hear() -> None:
    names = [f"n{i}" for i in range(2 * MAX_NOTICES)]
    state = met(names)
    do(state, *(Progress(name, 1) for name in names))
    do(state, *(Leave(name, cause=Cause.FAILED) for name in names[: MAX_NOTICES - 2]))
    do(state, Tick(), now=60.0)
    do(state, Leave(names[-1], cause=Cause.FAILED), Leave(names[-2], cause=Cause.FAILED), now=60.0)

    assert [one.cause for one in state.notices] == [Cause.FAILED] * MAX_NOTICES


@pytest.mark.parametrize("step", [-1, 2**53])
def test_a_step_that_is_no_number_of_a_step_is_refused(step: int) -> None:
    with pytest.raises(RendezvousSettingsError, match="step"):
        Progress("a", step)


def test_a_state_is_kept_and_told_to_those_who_look_on() -> None:
    state = met(["a", "b"])

    assert do(state, Update("a", b'{"b": 1, "a":2}')) == [NodeUpdated("a", b'{"a":2,"b":1}')]
    assert do(state, Update("a", b'{"a":2,"b":1}')) == []
    assert [node.state for node in run_status("r", state, 0.0).nodes] == [b'{"a":2,"b":1}', b""]


def test_a_state_of_nobody_changes_nothing() -> None:
    state = met(["a", "b"])

    assert do(state, Update("x", b"1"), Progress("x", 1)) == []


@pytest.mark.parametrize("said", [b"", b"NaN", b"{", b"\xff"])
def test_a_state_that_is_no_json_is_refused(said: bytes) -> None:
    with pytest.raises(RendezvousSettingsError, match=r"state is .*, but must be JSON"):
        do(met(["a", "b"]), Update("a", said))


def test_a_state_that_is_too_long_is_refused() -> None:
    with pytest.raises(
        RendezvousSettingsError, match="state is '1027 bytes as JSON', but must be at most 1024"
    ):
        Update("a", b'"' + b"x" * 1025 + b'"')

"""A run as rows, and back: what an owner that keeps a record remembers over its end."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from arendezvous.errors import RendezvousStateError
from arendezvous.law import image
from arendezvous.law.events import NodeDeparted
from arendezvous.law.machine import apply, next_wake, view
from arendezvous.law.operations import (
    Close,
    Disconnect,
    Hold,
    Join,
    KeepAlive,
    Leave,
    Operation,
    Progress,
    Record,
    Reopen,
    Resume,
    Tick,
)
from arendezvous.law.rounds import RESTARTED, RESUME_GRACE
from arendezvous.law.rules import Brought, Role, RoundRules
from arendezvous.law.state import Cause, Closure, NodeDesc, Phase, RendezvousState, RunSettings
from arendezvous.law.status import RunStatus, explained, run_status, timeout_text

PAIR = RunSettings(2, 2, 10.0)
TRIO = RunSettings(2, 3, 10.0)
NODES = tuple(NodeDesc(name, addr=f"10.0.0.{i}") for i, name in enumerate("ab"))


def clocks(now: float = 0.0, wall: float = 1000.0, boot: str = "this", uptime: float = 50.0) -> image.Clocks:
    return image.Clocks(now, wall, boot, uptime)


def head(settings: RunSettings = PAIR, **others: Any) -> image.RunHead:
    row = image.RunHead(1, settings, 1, 3, complete=True, world_size=2, digest="d", round_floor=3)
    return msgspec.structs.replace(row, **others)


def departed(cause: Cause = Cause.FINISHED, notice: int = 1) -> image.DepartureRow:
    return image.DepartureRow(cause, "done", 3, notice, 995.0)


def gathering(settings: RunSettings = PAIR, nodes: str = "ab") -> RendezvousState:
    state = RendezvousState(settings, records=True)
    for node in nodes:
        apply(state, Join(NodeDesc(node), settings), 0.0)
    return state


def test_what_is_counted_is_there_again_and_begins_anew_with_an_incarnation() -> None:
    settings = RunSettings(1, 1, 0.0, rules=RoundRules(strikes=3, cooldown=60.0, stop_after=3))
    state = gathering(settings, "a")
    record, _ = image.proposal_of(state, clocks())
    apply(state, record, 0.0)
    apply(state, Progress("a", 41), 0.0)
    apply(state, Leave("a", "", Cause.FAILED), 0.0)
    apply(state, Join(NodeDesc("b"), settings), 0.0)
    _, row = image.proposal_of(state, clocks())
    restored = image.restore(row, [NodeDesc("b")], {}, {}, clocks()).decisions
    assert (restored.strikes, restored.vain, restored.step) == ({"a": 1}, 1, 41)
    closed = msgspec.structs.replace(row, closed=Closure("op", "", 0.0))
    reopened = image.decided(closed, Reopen(1), clocks()).decisions
    assert reopened is not None
    assert (dict(reopened.strikes), reopened.vain, reopened.step) == ({"a": 1}, 0, -1)


def test_a_run_with_roles_that_is_held_is_held_after_a_restart() -> None:
    settings = RunSettings(1, 2, 1.0, rules=RoundRules(roles={"trainer": Role(1, 2)}))
    state = RendezvousState(settings, records=True)
    apply(state, Join(NodeDesc("a", brings=Brought("trainer")), settings), 0.0)
    apply(state, Hold("op", "maintenance"), 0.0)
    restored = image.restore(image.head_of(state, clocks()), [], {}, {}, clocks()).decisions
    assert restored.held == state.decisions.held


def test_a_round_completes_once_it_has_been_recorded() -> None:
    state = gathering()
    assert (state.ready, state.complete, next_wake(state)) == (True, False, 15.0)
    record, row = image.proposal_of(state, clocks())
    apply(state, record, 0.0)
    assert (state.ready, state.complete) == (False, True)
    assert image.head_of(state, clocks()) == row


def test_a_round_that_is_ready_waits_for_nothing_but_its_record() -> None:
    state = gathering(TRIO)
    assert (state.ready, next_wake(state)) == (False, 10.0)
    apply(state, Tick(), 10.0)
    assert (state.ready, next_wake(state)) == (True, 15.0)


def test_nothing_happens_if_another_round_gathers_by_now() -> None:
    state = gathering()
    record, _ = image.proposal_of(state, clocks())
    later = Resume(NodeDesc("x"), PAIR, 1, 7, 0, 2, "d")
    apply(state, Close(), 0.0)
    apply(state, later, 0.0)
    apply(state, Reopen(1), 0.0)
    for node in "ab":
        apply(state, Join(NodeDesc(node), PAIR), 0.0)
    assert apply(state, msgspec.structs.replace(record, arrivals=99), 0.0) == []
    assert state.ready


@pytest.mark.parametrize("operation", [Record(1, 0, ("a",), 2), Record(1, 0, ("a", "x"), 2)])
def test_nothing_happens_if_others_were_recorded(operation: Record) -> None:
    state = gathering()
    assert apply(state, operation, 0.0) == []
    assert not state.complete


def test_members_are_there_by_name_and_nobody_takes_their_place_before_they_had_time_to_come_back() -> None:
    state = image.restore(head(), NODES, {}, {}, clocks())
    assert [view(state, node, 0.0).rank for node in "ab"] == [0, 1]
    assert view(state, "a", 0.0).rank0 == ("10.0.0.0",)
    assert apply(state, Resume(NODES[1], PAIR, 1, 3, 1, 2, "d"), 0.1) == []
    events = apply(state, Tick(), RESUME_GRACE)
    assert [event for event in events if isinstance(event, NodeDeparted)] == [
        NodeDeparted("a", Phase.MEMBER, Cause.CONNECTION_LOST, RESTARTED)
    ]


def test_whoever_comes_back_and_breaks_its_connection_again_has_as_long_as_the_others() -> None:
    settings = RunSettings(2, 2, 10.0, disconnect_grace=0.25)
    state = image.restore(head(settings), NODES, {}, {}, clocks())
    apply(state, KeepAlive("b"), 0.1)
    apply(state, Disconnect("b"), 0.2)
    assert list(state.suspects.items()) == [("a", RESUME_GRACE), ("b", RESUME_GRACE)]


def test_who_has_departed_stays_so_and_is_not_lost_once_more() -> None:
    state = image.restore(head(), NODES, {"a": departed()}, {}, clocks())
    seen = view(state, "b", 0.0)
    assert [(notice.node, notice.cause) for notice in seen.notices] == [("a", Cause.FINISHED)]
    assert (state.unfinished, seen.world_size) == (1, 2)
    gone = view(state, "a", 0.0).gone
    assert gone is not None
    assert (gone.cause, gone.at) == (Cause.FINISHED, -5.0)


def test_a_run_that_had_ended_has_ended() -> None:
    rows = {node: departed(notice=i + 1) for i, node in enumerate("ab")}
    state = image.restore(head(), NODES, rows, {}, clocks())
    assert state.ended
    assert (state.complete, state.round) == (False, 4)


@pytest.mark.parametrize(
    ("boot", "left"), [("this", 20.0), ("another", 30.0)], ids=["the same machine", "another machine"]
)
def test_a_drain_goes_on_with_what_is_known_to_be_left_of_it(boot: str, left: float) -> None:
    drain = image.DrainRow(30.0, "preempted", 1, boot, 40.0)
    state = image.restore(head(TRIO), NODES, {}, {"a": drain}, clocks(now=7.0))
    assert state.drains["a"].until == 7.0 + left
    assert [notice.seconds for notice in state.notices] == [30.0]


def test_a_clock_that_runs_backwards_gives_a_drain_no_more_than_it_had() -> None:
    drain = image.DrainRow(30.0, "", 1, "this", 90.0)
    assert drain.left(clocks()) == 30.0


def test_what_was_closed_is_closed_and_says_since_when() -> None:
    closed = Closure("admin", "enough", 940.0)
    state = image.restore(head(closed=closed), NODES, {}, {}, clocks(now=3.0))
    assert state.closed is not None
    assert (state.closed.by, state.closed.at) == ("admin", -57.0)
    assert view(state, "a", 3.0).rank == 0


@pytest.mark.parametrize("operation", [Close("x", "y"), Close(incarnation=0), Reopen(1), Reopen(0)])
@pytest.mark.parametrize("closed", [False, True])
def test_the_head_that_is_recorded_before_a_decision_is_the_one_after_it(
    operation: Operation, *, closed: bool
) -> None:
    state = gathering()
    if closed:
        apply(state, Close("x", "y"), 0.0)
    elif operation == Reopen(1):
        return  # it is refused
    assert isinstance(operation, Close | Reopen)
    row = image.decided(image.head_of(state, clocks()), operation, clocks())
    apply(state, operation, 0.0)
    assert image.head_of(state, clocks()) == row


def test_rows_of_a_later_version_are_refused_with_what_to_do() -> None:
    image.check_version("job", image.VERSION)
    with pytest.raises(RendezvousStateError, match=r"version 9, .* use the release that wrote"):
        image.check_version("job", 9)


def test_rows_of_a_run_with_rules_are_of_a_version_that_earlier_releases_refuse() -> None:
    ruled = RunSettings(1, 2, rules=RoundRules(node_unit=1, facts={"step": "max"}))
    assert image.head_of(RendezvousState(RunSettings(1, 2)), clocks()).version == 1
    assert image.head_of(RendezvousState(ruled), clocks()).version == image.VERSION == 2


def test_it_is_said_why_a_round_that_has_its_nodes_does_not_complete() -> None:
    status = run_status("job", gathering(), 2.0, obstacle="disk full")
    assert "2 came (enough, but the server cannot record the round: disk full)" in explained(status)[0]
    assert "could not record the round: disk full" in timeout_text(status, NodeDesc("a"), 2, 5.0)
    assert run_status("job", gathering(nodes="a"), 2.0, obstacle="disk full").obstacle == ""
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(status), type=RunStatus) == status

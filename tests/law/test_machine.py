"""The law by example: what the transcripts do not show."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from arendezvous.errors import RendezvousClosedError, RendezvousSettingsError, RendezvousStateError
from arendezvous.law.admission import holder_of
from arendezvous.law.events import (
    Audience,
    LawEvent,
    MemberDraining,
    NodeDeparted,
    NodeJoined,
    NodePromoted,
    RoundCompleted,
    RoundOpened,
    RunClosed,
    RunReopened,
    WaitingChanged,
)
from arendezvous.law.lists import stand_in_name
from arendezvous.law.machine import apply, next_wake, view
from arendezvous.law.operations import (
    Claim,
    Close,
    Disconnect,
    Drain,
    Join,
    KeepAlive,
    Leave,
    Operation,
    Reopen,
    Resume,
    Tick,
)
from arendezvous.law.rounds import EXACT_WAITING, RESUME_GRACE
from arendezvous.law.state import (
    MAX_DEPARTED,
    MAX_NOTICES,
    MAX_WORLD,
    Cause,
    Departure,
    NodeDesc,
    Phase,
    RendezvousState,
    RunSettings,
)
from tests.kit import law_invariants as inv

PAIR = RunSettings(2, 2, 10.0)
GIVEN = RunSettings(1, 3, 10.0, rank_policy="given")


def join(node: str, settings: RunSettings = PAIR, after: tuple[int, int] = (0, -1), **desc: Any) -> Join:
    return Join(NodeDesc(node, **desc), settings, after)


def resume(node: str, rank: int, digest: str, settings: RunSettings = PAIR, **others: Any) -> Resume:
    return Resume(NodeDesc(node, rank=others.get("given")), settings, others.get("incarnation", 1),
                  others.get("round", 0), rank, others.get("world_size", 2), digest)  # fmt: skip


def do(state: RendezvousState, *operations: Operation, now: float = 0.0) -> list[LawEvent]:
    events = [event for operation in operations for event in apply(state, operation, now)]
    inv.check_state(state, now)
    return events


def met(settings: RunSettings = PAIR, nodes: str = "ab") -> RendezvousState:
    state = RendezvousState(settings)
    do(state, *(join(node, settings) for node in nodes))
    assert state.complete, "the fixture's nodes have met"
    return state


def test_only_operations_are_applied() -> None:
    with pytest.raises(RendezvousStateError, match="NodeDesc is not an operation of the rendezvous"):
        apply(RendezvousState(PAIR), NodeDesc("a"), 0.0)  # type: ignore[arg-type]  # on purpose


def test_every_operation_survives_a_wire() -> None:
    operations: list[Operation] = [
        join("a", after=(1, 2)), resume("a", 0, "d"), Leave("a", "x", Cause.FAILED), Drain("a", 1.5),
        KeepAlive("a"), Disconnect("a"), Close("a", "x", 3), Reopen(2, "a"), Tick(), Claim(join("a")),
    ]  # fmt: skip
    decode = msgspec.msgpack.Decoder(Operation).decode
    assert [decode(msgspec.msgpack.encode(operation)) for operation in operations] == operations


def test_the_state_of_nobody_needs_no_clock() -> None:
    assert next_wake(RendezvousState(PAIR)) is None


def test_members_see_each_other_and_rank_0() -> None:
    state = RendezvousState(PAIR)
    do(state, join("a", addr="host-a", addresses=("10.0.0.1", "fe80::1")), join("b", addr="host-b"))
    views = [view(state, node, 3.0) for node in "ab"]
    assert [(v.rank, v.world_size, v.rank0) for v in views] == [
        (0, 2, ("10.0.0.1", "fe80::1")),
        (1, 2, views[0].rank0),
    ]
    assert views[0].digest == views[1].digest != ""
    assert (view(state, "x", 3.0).phase, view(state, "x", 3.0).rank) == (Phase.GONE, -1)


def test_rank_0_goes_by_its_address_or_else_its_name() -> None:
    settings = RunSettings(1, 1)
    for desc, expected in ((NodeDesc("a", "host"), ("host",)), (NodeDesc("a"), ("a",))):
        state = RendezvousState(settings)
        do(state, Join(desc, settings))
        assert view(state, "a", 0.0).rank0 == expected


def test_a_node_with_other_settings_is_told_which_one_differs() -> None:
    state = met()
    with pytest.raises(
        RendezvousSettingsError, match=r"last_call is 5.0, but must be 10.0, as for the nodes"
    ):
        apply(state, join("c", RunSettings(2, 2, 5.0)), 0.0)


def test_an_empty_run_takes_the_settings_of_whoever_comes_first() -> None:
    state = RendezvousState(PAIR)
    do(state, join("a"), Leave("a"), join("b", GIVEN, rank=2))
    assert (state.settings, state.given) == (GIVEN, {2: "b"})


@pytest.mark.parametrize(
    ("rank", "expected"),
    [
        (None, "rank is None, but must be from 0 to 2, as the rank policy is 'given'"),
        (3, "rank is 3, but must be from 0 to 2, as the rank policy is 'given'"),
        (1, "rank is 1, but must be free, but a has it; give each node its own"),
    ],
)
def test_a_given_rank_is_needed_possible_and_free(rank: int | None, expected: str) -> None:
    state = RendezvousState(GIVEN)
    do(state, join("a", GIVEN, rank=1))
    with pytest.raises(RendezvousSettingsError) as caught:
        apply(state, join("b", GIVEN, rank=rank), 0.0)
    assert caught.value.message == expected


def test_a_given_rank_is_free_again_once_its_node_is_gone() -> None:
    state = RendezvousState(GIVEN)
    do(state, join("a", GIVEN, rank=1), Leave("a"), join("b", GIVEN, rank=1))
    assert state.given == {1: "b"}


def test_a_given_rank_means_nothing_to_other_policies() -> None:
    state = RendezvousState(PAIR)
    do(state, join("a", rank=1), join("b", rank=1))
    assert (state.participants, state.given) == ({"a": 0, "b": 1}, {})


def test_the_closed_error_says_who_why_and_when() -> None:
    state = met()
    do(state, Close("admin", "maintenance"), now=2.0)
    with pytest.raises(RendezvousClosedError) as caught:
        apply(state, join("c"), 5.0)
    assert (caught.value.by, caught.value.reason, caught.value.age) == ("admin", "maintenance", 3.0)
    anonymous = RendezvousState(PAIR)
    do(anonymous, Close())
    with pytest.raises(RendezvousClosedError, match=r"^the run was closed 1.0 s ago; use another run id"):
        apply(anonymous, join("c"), 1.0)


def test_closing_twice_keeps_the_first_reason() -> None:
    state = met()
    assert do(state, Close("a", "first"), Close("b", "second")) == [RunClosed("a", "first")]


def test_a_late_repetition_of_a_close_does_not_close_the_reopened_run() -> None:
    state = met()
    close = Close("admin", incarnation=1)
    do(state, close, Reopen(1))
    assert do(state, close) == []
    assert (state.incarnation, state.closed) == (2, None)


def test_a_repeated_reopen_is_harmless_and_one_of_the_future_is_refused() -> None:
    state = met()
    do(state, Close())
    events = do(state, Reopen(1))
    assert events[-2:] == [RunReopened(2, ""), RoundOpened(1)]
    assert do(state, Reopen(1)) == []
    with pytest.raises(RendezvousStateError, match="incarnation 3 is not closed"):
        apply(state, Reopen(3), 0.0)


def test_a_lost_connection_without_grace_is_a_loss_at_once() -> None:
    settings = RunSettings(2, 2, disconnect_grace=0)
    state = met(settings)
    events = do(state, Disconnect("a"))
    reason = "its connection broke and did not come back within 0 s"
    assert events == [NodeDeparted("a", Phase.MEMBER, Cause.CONNECTION_LOST, reason)]


def test_a_second_word_of_a_lost_connection_does_not_lengthen_the_grace() -> None:
    state = met()
    do(state, Disconnect("a"))
    do(state, Disconnect("a"), now=0.5)
    assert next_wake(state) == 1.0


def test_operations_on_unknown_nodes_do_nothing() -> None:
    state = met()
    assert do(state, Leave("x"), Drain("x", 1), KeepAlive("x"), Disconnect("x")) == []


def test_a_drain_of_a_node_that_is_no_member_is_a_departure() -> None:
    state = met(nodes="abc")
    events = do(state, Drain("c", 60, "spot"))
    assert events == [NodeDeparted("c", Phase.REDUNDANT, Cause.DRAINED, "spot")]


def test_a_later_word_on_a_drain_replaces_the_earlier_one() -> None:
    state = met()
    do(state, Drain("a", 60), Drain("a", 5))
    assert do(state, Tick(), now=5.0) == [NodeDeparted("a", Phase.MEMBER, Cause.DRAINED, "")]
    do(state, Drain("b", 1), Drain("b", 5), now=5.0)
    assert do(state, Tick(), now=6.0) == []
    assert next_wake(state) == 10.0


def test_words_on_one_drain_without_end_do_not_fill_the_memory() -> None:
    state = met()
    for number in range(1000):
        do(state, Drain("a", 60 + number))
    assert len(state.drain_queue) <= 20
    assert len(view(state, "b", 0.0).notices) == MAX_NOTICES


def test_departures_without_end_do_not_fill_the_memory_and_the_latest_are_known() -> None:
    state = met()
    for number in range(MAX_DEPARTED + 5):
        do(state, join(f"n{number}"), Leave(f"n{number}"))
    assert len(state.departed) == MAX_DEPARTED
    assert view(state, "n4", 0.0).gone is None
    assert view(state, "n5", 0.0).gone is not None


def test_members_hear_of_a_burst_of_newcomers_a_few_times_only() -> None:
    settings = RunSettings(1, 1000, 0.0)
    state = met(settings, "a")
    told = [
        e.count
        for n in range(900)
        for e in do(state, join(f"n{n}", settings))
        if isinstance(e, WaitingChanged)
    ]
    assert told == [*range(1, EXACT_WAITING + 2), 16, 32, 64, 128, 256, 512]


def test_a_resumption_that_cannot_be_is_refused_with_the_value_that_is_wrong() -> None:
    state = RendezvousState(PAIR)
    for wrong, name in (
        (resume("a", 0, "d", world_size=MAX_WORLD + 1), "world_size"),
        (resume("a", 0, "d", world_size=0), "world_size"),
        (resume("a", 2, "d"), "rank"),
        (resume(stand_in_name(0, 0), 0, "d"), "node name"),
    ):
        with pytest.raises(RendezvousSettingsError) as caught:
            apply(state, wrong, 0.0)
        assert caught.value.name == name


def test_a_member_is_restored_by_the_first_who_resumes_and_repeating_it_is_harmless() -> None:
    digest = met().digest
    state = RendezvousState(RunSettings(1, 9))
    assert do(state, resume("b", 1, digest)) == [NodeJoined("b", Phase.MEMBER)]
    assert do(state, resume("b", 1, digest)) == []
    assert view(state, "b", 0.0).rank0 == ()
    do(state, resume("a", 0, digest))
    assert (state.participants, state.settings) == ({"b": 1, "a": 0}, PAIR)
    assert view(state, "b", 0.0).rank0 == ("a",)


@pytest.mark.parametrize(("node", "rank", "digest"), [("c", 1, "the same"), ("c", 0, "another")])
def test_who_resumes_what_is_not_so_is_told_that_it_is_superseded(node: str, rank: int, digest: str) -> None:
    state = RendezvousState(PAIR)
    do(state, resume("b", 1, "the same"))
    [event] = do(state, resume(node, rank, digest))
    assert isinstance(event, NodeDeparted)
    gone = view(state, node, 0.0).gone
    assert gone is not None
    assert (event.cause, gone.cause) == (Cause.SUPERSEDED, Cause.SUPERSEDED)
    assert do(state, resume(node, rank, digest)) == []


def test_who_resumes_after_its_expiry_is_told_the_first_cause() -> None:
    state = met()
    digest = state.digest
    do(state, Leave("b", "bye"))
    assert do(state, resume("b", 1, digest)) == []
    gone = view(state, "b", 0.0).gone
    assert gone is not None
    assert gone.cause is Cause.LEFT


def test_a_restored_round_has_room_for_no_more_than_max_nodes() -> None:
    state = RendezvousState(PAIR)
    do(state, join("x"))
    events = do(state, resume("a", 0, "d"))
    assert events == [NodePromoted("x", Phase.REDUNDANT), NodeJoined("a", Phase.MEMBER)]


def test_a_restored_round_takes_in_who_came_before_if_there_is_room() -> None:
    settings = RunSettings(2, 3, 10.0)
    state = RendezvousState(settings)
    do(state, join("x", settings))
    do(state, resume("a", 0, "d", settings))
    assert (state.phase("x"), state.told_waiting) == (Phase.WAITING, (False, 1))


def test_who_resumes_under_other_settings_than_those_who_came_before_is_refused() -> None:
    state = RendezvousState(PAIR)
    do(state, join("x"))
    with pytest.raises(RendezvousSettingsError, match="max_nodes is 9"):
        apply(state, resume("a", 0, "d", RunSettings(2, 9, 10.0)), 0.0)


def test_a_member_that_resumes_has_its_given_rank_though_another_came_for_it_meanwhile() -> None:
    state = RendezvousState(GIVEN)
    do(state, resume("a", 0, "d", GIVEN, given=0), join("x", GIVEN, rank=1), join("y", GIVEN, rank=2))
    events = do(state, resume("b", 1, "d", GIVEN, given=1))
    assert events == [
        NodePromoted("x", Phase.REDUNDANT),
        NodeJoined("b", Phase.MEMBER),
        NodePromoted("y", Phase.WAITING),
    ]
    assert (state.given, state.rivals) == ({0: "a", 1: "b", 2: "y"}, {1: {"x": None}})
    do(state, Leave("b"))
    assert state.phase("x") is Phase.WAITING


def test_who_resumes_with_a_given_rank_that_another_member_has_is_refused() -> None:
    state = RendezvousState(GIVEN)
    do(state, resume("a", 0, "d", GIVEN, given=1))
    with pytest.raises(RendezvousSettingsError, match="but a has it"):
        apply(state, resume("b", 1, "d", GIVEN, given=1), 0.0)


def test_a_node_that_knows_a_later_round_is_never_given_an_earlier_one() -> None:
    state = RendezvousState(PAIR)
    do(state, join("a", after=(3, 7)), join("b"))
    events = do(state, Tick(), now=RESUME_GRACE)
    assert events == [RoundOpened(8), RoundCompleted(8, 2)]
    assert view(state, "a", RESUME_GRACE).generation == (3, 8)
    assert do(state, join("a", after=(3, 7)), now=RESUME_GRACE) == []  # a repeated join keeps the rank


# A coordinator that forgot


def test_a_fresh_run_completes_at_once_and_begins_with_round_0() -> None:
    state = RendezvousState(PAIR, first_round=1000)
    assert RoundCompleted(0, 2) in do(state, join("a"), join("b"))


@pytest.mark.parametrize(
    ("told", "completed"),
    [((0, -1), 1000), ((1, -1), 0), ((1, 4), 1000), ((1, 2000), 2001)],
    ids=["nobody knows anything", "there was no round", "there was one", "there was a later one"],
)
def test_a_coordinator_that_follows_another_gives_no_number_again(
    told: tuple[int, int], completed: int
) -> None:
    state = RendezvousState(PAIR, recovery=1.0, first_round=1000)
    assert do(state, join("a", after=told), join("b"))[-1] == NodeJoined("b", Phase.GATHERING)
    assert do(state, Tick(), now=1.0)[-1] == RoundCompleted(completed, 2)


def test_a_recovery_lasts_no_longer_than_a_node_may_be_silent() -> None:
    for settings, seconds in (
        (RunSettings(1, 1, disconnect_grace=0.1), RESUME_GRACE),
        (RunSettings(1, 1, disconnect_grace=3.0), RESUME_GRACE),
        (RunSettings(1, 1, keep_alive_interval=0.1, keep_alive_max_attempt=3), 0.3),
    ):
        state = RendezvousState(settings)
        do(state, join("a", settings, after=(1, 0)))
        assert next_wake(state) == pytest.approx(seconds)


def test_a_spare_that_is_back_first_does_not_make_a_member_superseded() -> None:
    state = RendezvousState(PAIR)
    do(state, join("spare", after=(1, 5)), join("newcomer"))
    events = do(state, resume("a", 0, "d", round=5))
    assert events[-1] == NodeJoined("a", Phase.MEMBER)
    assert [state.phase(node) for node in ("spare", "newcomer")] == [Phase.REDUNDANT] * 2


def test_what_is_complete_after_a_recovery_was_formed_here_and_gives_way_to_nobody() -> None:
    state = RendezvousState(PAIR)
    do(state, join("a", after=(1, 0)), join("b"))
    do(state, Tick(), now=RESUME_GRACE)
    [event] = do(state, resume("x", 0, "d", round=7), now=RESUME_GRACE)
    assert isinstance(event, NodeDeparted)
    assert (event.node, event.cause) == ("x", Cause.SUPERSEDED)


def test_a_later_round_takes_the_place_of_an_older_one_that_was_restored() -> None:
    settings = RunSettings(2, 3, 10.0)
    state = RendezvousState(settings)
    do(state, resume("ghost", 1, "old", settings, round=4), join("newcomer", settings))
    assert state.phase("newcomer") is Phase.WAITING
    do(state, resume("a", 0, "new", settings, round=5))
    assert view(state, "ghost", 0.0).gone == Departure(
        Cause.SUPERSEDED, "round 5, without it, is later than the one it held", 4, 0.0
    )
    assert (view(state, "a", 0.0).rank, state.phase("newcomer")) == (0, Phase.WAITING)
    assert list(state.departed) == ["ghost"]


def test_a_recovery_ends_when_the_run_is_reopened() -> None:
    state = RendezvousState(PAIR, recovery=5.0)
    do(state, Close(), Reopen(1), join("a"), join("b"))
    assert state.complete


# A name is an identity


def claim(node: str, settings: RunSettings = PAIR, **desc: Any) -> Claim:
    return Claim(join(node, settings, **desc))


def test_another_process_may_come_under_a_name_that_nobody_has() -> None:
    state = RendezvousState(PAIR)
    assert do(state, claim("a")) == [NodeJoined("a", Phase.GATHERING)]


def test_a_name_is_refused_to_another_process_while_its_holder_may_be_alive() -> None:
    state = met()
    with pytest.raises(RendezvousStateError, match=r"the node name 'a' is in use"):
        apply(state, claim("a"), 0.0)
    assert holder_of(state, claim("a"), 0.0) == "a"
    assert holder_of(state, join("x"), 0.0) is None


def test_another_process_takes_the_place_of_one_whose_connection_broke() -> None:
    state = met()
    do(state, Disconnect("b"), join("spare"))
    assert holder_of(state, claim("b"), 0.0) is None
    reason = "its connection broke, and another process came under its name"
    assert do(state, claim("b")) == [
        NodeDeparted("b", Phase.MEMBER, Cause.CONNECTION_LOST, reason),
        NodeJoined("b", Phase.WAITING),
        WaitingChanged(1),
    ]
    assert state.phase("spare") is Phase.REDUNDANT
    assert view(state, "a", 0.0).notices[-1].cause is Cause.CONNECTION_LOST
    do(state, join("a", after=(1, 0)))
    assert view(state, "b", 0.0).rank == 1


def test_a_claim_that_is_refused_for_another_reason_leaves_the_holder_alone() -> None:
    state = met()
    do(state, Disconnect("b"))
    for refused in (claim("b", RunSettings(2, 3)), claim(stand_in_name(0, 0))):
        with pytest.raises(RendezvousSettingsError):
            apply(state, refused, 0.0)
        with pytest.raises(RendezvousSettingsError):
            holder_of(state, refused, 0.0)
    do(state, Close())
    with pytest.raises(RendezvousClosedError):
        apply(state, claim("b"), 0.0)
    assert state.phase("b") is Phase.MEMBER


def test_the_only_member_s_place_is_taken_in_a_round_of_its_own() -> None:
    settings = RunSettings(1, 1)
    state = met(settings, "a")
    do(state, Disconnect("a"), claim("a", settings))
    assert (view(state, "a", 0.0).round, view(state, "a", 0.0).phase) == (1, Phase.MEMBER)


def test_a_newcomer_takes_the_given_rank_of_one_whose_connection_broke() -> None:
    state = RendezvousState(GIVEN)
    do(state, join("a", GIVEN, rank=0), join("b", GIVEN, rank=1), Disconnect("b"))
    events = do(state, join("c", GIVEN, rank=1))
    reason = "its connection broke, and another process came for its rank, as c"
    assert events[0] == NodeDeparted("b", Phase.GATHERING, Cause.CONNECTION_LOST, reason)
    assert state.given == {0: "a", 1: "c"}


def test_whoever_asks_for_a_rank_of_a_full_round_is_a_spare_for_that_rank_alone() -> None:
    settings = RunSettings(2, 2, 10.0, rank_policy="given")
    state = RendezvousState(settings)
    do(state, join("a", settings, rank=0), join("b", settings, rank=1))
    do(state, join("c", settings, rank=1), join("d", settings, rank=1), join("e", settings, rank=0))
    assert list(state.redundancy_list) == ["c", "d", "e"]
    do(state, Leave("a"))
    assert list(state.wait_list) == ["e"]
    do(state, Drain("b", 60))
    assert list(state.wait_list) == ["e", "c"]
    do(state, Leave("c"))
    assert list(state.wait_list) == ["e", "d"]
    assert state.rivals == {}


def test_a_spare_for_a_rank_that_goes_is_waited_for_no_more() -> None:
    settings = RunSettings(1, 1, rank_policy="given")
    state = RendezvousState(settings)
    do(state, *(join(node, settings, rank=0) for node in "abc"), Leave("b"), Leave("a"))
    assert view(state, "c", 0.0).rank == 0
    assert (state.given, state.rivals) == ({0: "c"}, {})


# Drained members, and runs that have ended


def test_a_draining_member_that_joins_again_changes_nothing_and_counts_as_alive() -> None:
    state = met()
    do(state, Drain("a", 60))
    assert do(state, join("a", after=(1, 0)), now=10.0) == []
    assert state.last_heartbeats["a"] == 10.0


def test_a_member_that_joins_as_it_has_not_heard_of_its_release_is_not_brought_back() -> None:
    state = met()
    do(state, Drain("a", 1, "power"))
    do(state, Tick(), now=1.0)
    assert do(state, join("a", after=(1, 0)), now=1.0) == []
    gone = view(state, "a", 1.0).gone
    assert gone is not None
    assert (gone.cause, gone.reason) == (Cause.DRAINED, "power")
    assert do(state, join("a"), now=1.0)[0] == NodeJoined("a", Phase.WAITING)  # a new process


def test_a_run_has_ended_once_all_members_of_its_last_round_left_as_finished() -> None:
    state = met()
    ended = [RendezvousState(PAIR).ended, state.ended]
    for operation in (
        Leave("a", cause=Cause.FINISHED),
        Leave("b", cause=Cause.FINISHED),
        join("late"),
        Leave("late", cause=Cause.CANCELLED),
    ):
        do(state, operation)
        ended.append(state.ended)
    assert ended == [False, False, False, True, False, True]


@pytest.mark.parametrize("cause", [Cause.LEFT, Cause.FAILED, Cause.CANCELLED])
def test_a_run_in_which_a_member_did_not_finish_has_not_ended(cause: Cause) -> None:
    state = met()
    do(state, Leave("a", cause=cause), Leave("b", cause=Cause.FINISHED))
    assert not state.ended


def test_members_of_a_closed_run_hear_who_is_gone_and_why() -> None:
    state = met(RunSettings(3, 3), "abc")
    do(state, Close("admin", "enough"), Leave("b", "disk full", Cause.FAILED), Disconnect("c"))
    do(state, Tick(), now=1.0)
    heard = [(notice.node, notice.cause) for notice in view(state, "a", 1.0).notices]
    assert heard == [("b", Cause.FAILED), ("c", Cause.CONNECTION_LOST)]


def test_a_later_round_that_a_node_knows_is_kept_until_the_present_one_is_over() -> None:
    state = met()
    do(state, Leave("b"), join("c", after=(3, 7)))
    assert view(state, "a", 0.0).generation == (1, 0)
    assert view(state, "c", 0.0).generation == (3, 7)
    do(state, join("a", after=(1, 0)))
    assert {view(state, node, 0.0).generation for node in "ac"} == {(3, 8)}


def test_a_closed_run_of_which_a_later_incarnation_is_known_can_be_reopened_by_either() -> None:
    for incarnation in (1, 3):
        state = met()
        do(state, resume("x", 0, "d", incarnation=3, round=7), Close(), Reopen(incarnation))
        assert (state.incarnation, state.round) == (4, 8)


def test_real_nodes_cannot_have_the_name_of_a_stand_in() -> None:
    with pytest.raises(RendezvousSettingsError, match="stand in for absent members"):
        apply(RendezvousState(PAIR), join(stand_in_name(0, 1)), 0.0)


def test_events_say_whose_view_they_change() -> None:
    gone = [NodeDeparted("a", phase, Cause.LEFT, "") for phase in (Phase.MEMBER, Phase.WAITING)]
    events = [
        *gone, MemberDraining("a", 1, ""), NodeJoined("a", Phase.WAITING), NodePromoted("a", Phase.WAITING),
        WaitingChanged(1), RoundOpened(1), RoundCompleted(1, 2), RunClosed("", ""), RunReopened(2, ""),
    ]  # fmt: skip
    nobody, members = Audience.NOBODY, Audience.MEMBERS
    assert [event.audience for event in events] == [
        members, nobody, members, nobody, nobody, members, nobody, members, Audience.EVERYONE, nobody,
    ]  # fmt: skip


def test_the_revision_rises_with_what_somebody_may_see_and_only_then() -> None:
    state = met()
    before = state.revision
    do(state, KeepAlive("a"), Leave("x"))
    assert state.revision == before
    do(state, Leave("a"))
    assert state.revision == before + 1

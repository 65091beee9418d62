"""What operators decide: how large a run may be, whether it is held, who is kept out, and who stops it."""

from __future__ import annotations

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule
from msgspec import structs

from arendezvous.errors import (
    QuarantinedError,
    RendezvousClosedError,
    RendezvousError,
    RendezvousSettingsError,
)
from arendezvous.law import image
from arendezvous.law.decisions import LAW, MAX_QUARANTINES, MAX_STRUCK, Decisions
from arendezvous.law.events import (
    LawEvent,
    NodeDeparted,
    NodePardoned,
    NodePromoted,
    NodeQuarantined,
    RoundCompleted,
    RoundOpened,
    RunClosed,
    RunHeld,
    RunReleased,
    RunReopened,
    RunResized,
)
from arendezvous.law.machine import apply, next_wake, view
from arendezvous.law.operations import (
    Close,
    Hold,
    Join,
    Leave,
    Operation,
    Pardon,
    Progress,
    Quarantine,
    Release,
    Reopen,
    Resize,
    Resume,
    Tick,
)
from arendezvous.law.rules import Brought, Role, RoundRules
from arendezvous.law.state import Cause, NodeDesc, Phase, RankPolicyName, RendezvousState, RunSettings
from arendezvous.law.status import explained, run_status
from tests.kit import EXAMPLES
from tests.kit.law_explorer import Scope, explore
from tests.kit.law_world import Action, World
from tests.law.test_stateful import NODES, SECONDS, Histories

PAIR = RunSettings(2, 2)
TWO_TO_FOUR = RunSettings(2, 4, 1.0)


def do(state: RendezvousState, *operations: Operation, now: float = 0.0) -> list[LawEvent]:
    """Applies operations one after the other."""
    return [event for operation in operations for event in apply(state, operation, now)]


def joins(nodes: str, settings: RunSettings = PAIR, after: tuple[int, int] = (0, -1)) -> list[Operation]:
    """The joins of some nodes, one letter each."""
    return [Join(NodeDesc(node), settings, after) for node in nodes]


def met(nodes: str = "ab", settings: RunSettings = PAIR) -> RendezvousState:
    """A run whose first round is complete."""
    state = RendezvousState(settings)
    do(state, *joins(nodes, settings))
    if not state.complete:
        do(state, Tick(), now=settings.last_call)
    assert state.complete
    return state


# Resizing


def test_a_smaller_size_tells_the_members_and_makes_the_last_of_them_spares_when_they_meet() -> None:
    state = met("abcd", TWO_TO_FOUR)
    [event] = do(state, Resize(2, 3, "", "op", "a rack goes"))
    assert event == RunResized(2, 3, "", "op", "a rack goes")
    seen = view(state, "a", 0.0)
    assert (seen.phase, seen.world_size) == (Phase.MEMBER, 4)
    assert seen.excess is not None
    assert (seen.excess.max_nodes, seen.excess.by, seen.excess.reason) == (3, "op", "a rack goes")
    do(state, *joins("dbca", TWO_TO_FOUR, (1, 0)))
    assert state.participants == {"a": 0, "b": 1, "c": 2}
    assert state.phase("d") is Phase.REDUNDANT
    assert view(state, "a", 0.0).excess is None


def test_a_larger_size_promotes_spares_and_the_members_hear_of_nodes_that_wait() -> None:
    state = met("ab")
    do(state, *joins("cd"))
    assert [state.phase(node) for node in "cd"] == [Phase.REDUNDANT, Phase.REDUNDANT]
    events = do(state, Resize(2, 3, "", "op"))
    assert NodePromoted("c", Phase.WAITING) in events
    assert view(state, "a", 0.0).waiting == 1
    assert state.phase("d") is Phase.REDUNDANT


def test_a_size_that_the_participants_reach_completes_the_round_at_once() -> None:
    state = RendezvousState(TWO_TO_FOUR)
    do(state, *joins("abc", TWO_TO_FOUR))
    assert not state.complete
    assert RoundCompleted(0, 3) in do(state, Resize(2, 3, "", "op"))


def test_newcomers_that_wait_for_a_place_that_will_not_be_free_become_spares() -> None:
    state = met("abc", TWO_TO_FOUR)
    do(state, *joins("d", TWO_TO_FOUR))
    assert state.phase("d") is Phase.WAITING
    assert NodePromoted("d", Phase.REDUNDANT) in do(state, Resize(1, 3, "", "op"))
    assert view(state, "a", 0.0).excess is None


def test_a_resize_is_no_mismatch_for_later_nodes_and_is_taken_back_by_zeros() -> None:
    state = met("ab")
    do(state, Resize(1, 3, "", "op"), *joins("c"))
    assert state.phase("c") is Phase.WAITING
    assert do(state, Resize(0, 0, "", "op2"))[0] == RunResized(0, 0, "", "op2", "")
    assert (state.min_nodes, state.max_nodes) == (2, 2)
    assert state.phase("c") is Phase.REDUNDANT
    assert do(state, Resize(0, 0, "", "op2")) == []


def test_members_that_are_too_many_since_a_resize_was_taken_back_are_told_by_whom() -> None:
    state = met("ab")
    do(state, *joins("c"), Resize(3, 3, "", "op"), *joins("ab", after=(1, 0)))
    assert state.world_size == 3
    do(state, Resize(0, 0, "", "op2", "enough"))
    excess = view(state, "a", 0.0).excess
    assert excess is not None
    assert (excess.max_nodes, excess.by, excess.reason) == (2, "op2", "enough")


def test_a_resize_is_over_when_others_begin_in_the_empty_run() -> None:
    state = met("ab")
    do(state, Resize(1, 3, "", "op"), *(Leave(node) for node in "ab"))
    do(state, *joins("x", RunSettings(4, 5)))
    assert (state.min_nodes, state.max_nodes) == (4, 5)


@pytest.mark.parametrize(("least", "most"), [(0, 1), (3, 2), (1, 0), (1, 1_000_001), (-1, -1)])
def test_a_size_that_no_run_can_have_is_refused(least: int, most: int) -> None:
    with pytest.raises(RendezvousSettingsError, match="nodes"):
        Resize(least, most)


def test_a_resize_names_a_role_of_the_run_and_only_there() -> None:
    with pytest.raises(RendezvousSettingsError, match="the run has no roles"):
        do(met(), Resize(1, 1, "generator"))
    rules = RoundRules(roles={"trainer": Role(1), "generator": Role(2, 8)})
    state = RendezvousState(RunSettings(3, 9, rules=rules))
    do(state, Join(NodeDesc("a", brings=Brought("trainer")), RunSettings(3, 9, rules=rules)))
    with pytest.raises(RendezvousSettingsError, match="trainer, generator"):
        do(state, Resize(1, 1))
    do(state, Resize(0, 4, "generator", "op"))
    assert (state.min_nodes, state.max_nodes) == (1, 5)


# Holding


def test_no_round_completes_while_the_run_is_held_and_it_does_when_it_is_released() -> None:
    state = RendezvousState(PAIR)
    do(state, *joins("a"))
    assert do(state, Hold("op", "wait for storage")) == [RunHeld("op", "wait for storage", None)]
    assert RoundCompleted(0, 2) not in do(state, *joins("b"))
    assert next_wake(state) == PAIR.expiry
    assert do(state, Release("op")) == [RunReleased("op"), RoundCompleted(0, 2)]
    assert do(state, Release("op")) == []


def test_a_hold_ends_by_itself_and_the_last_call_goes_on_meanwhile() -> None:
    settings = RunSettings(2, 4, last_call=2.0)
    state = RendezvousState(settings)
    do(state, *joins("ab", settings), Hold("op", "", 5.0))
    assert next_wake(state) == 5.0
    assert do(state, Tick(), now=4.0) == []
    assert do(state, Tick(), now=5.0) == [RunReleased(""), RoundCompleted(0, 2)]


def test_a_hold_that_ends_before_the_last_call_leaves_it_its_time() -> None:
    settings = RunSettings(2, 4, last_call=9.0)
    state = RendezvousState(settings)
    do(state, *joins("ab", settings), Hold("op", "", 5.0))
    assert do(state, Tick(), now=5.0) == [RunReleased("")]
    assert next_wake(state) == 9.0


def test_a_round_that_is_ready_to_be_recorded_is_not_while_it_is_held() -> None:
    state = RendezvousState(PAIR, records=True)
    do(state, *joins("ab"))
    assert state.ready
    record = image.proposal_of(state, image.Clocks(0.0, 0.0, "", 0.0))[0]
    do(state, Hold("op"))
    assert next_wake(state) == PAIR.expiry
    assert do(state, record) == []
    do(state, Release("op"))
    assert image.proposal_of(state, image.Clocks(0.0, 0.0, "", 0.0))[0] == record
    assert RoundCompleted(0, 2) in do(state, record)


def test_a_complete_round_is_not_touched_by_a_hold() -> None:
    state = met()
    do(state, Hold("op"))
    assert view(state, "a", 0.0).phase is Phase.MEMBER
    do(state, *joins("ab", after=(1, 0)))
    assert not state.complete


# Quarantine


def test_a_quarantined_member_departs_and_is_refused_until_its_time_is_over() -> None:
    state = met()
    events = do(state, Quarantine("b", seconds=60.0, by="op", reason="bad NIC"))
    reason = "bad NIC (op)"
    assert events[:2] == [
        NodeQuarantined("b", False, "op", "bad NIC", 60.0),
        NodeDeparted("b", Phase.MEMBER, Cause.QUARANTINED, reason),
    ]
    assert view(state, "a", 0.0).notices[-1].cause is Cause.QUARANTINED
    with pytest.raises(QuarantinedError, match="for 45 s more") as caught:
        do(state, *joins("b"), now=15.0)
    assert (caught.value.by, caught.value.reason, caught.value.seconds) == ("op", "bad NIC", 45.0)
    do(state, *joins("b"), now=60.0)
    assert state.phase("b") is Phase.WAITING


def test_a_label_keeps_out_all_nodes_with_it() -> None:
    state = RendezvousState(RunSettings(2, 3))
    for node, label in (("a", "x"), ("b", "y"), ("c", "y")):
        do(state, Join(NodeDesc(node, label=label), RunSettings(2, 3)))
    do(state, Quarantine("y", True, by="op"))
    assert list(state.nodes) == ["a"]
    with pytest.raises(QuarantinedError, match="until it is pardoned"):
        do(state, Join(NodeDesc("d", label="y"), RunSettings(2, 3)))
    assert do(state, Pardon("y", True, "op")) == [NodePardoned("y", True, "op")]
    do(state, Join(NodeDesc("d", label="y"), RunSettings(2, 3)))
    assert "d" in state.nodes


def test_a_pardon_of_who_is_free_changes_nothing() -> None:
    assert do(met(), Pardon("a", by="op")) == []


def test_a_quarantined_node_that_resumes_is_told_that_it_is_gone() -> None:
    state = met()
    digest = state.digest
    fresh = RendezvousState(PAIR)
    do(fresh, *joins("x"), Quarantine("b", by="op", reason="bad"))
    do(fresh, Resume(NodeDesc("b"), PAIR, 1, 0, 1, 2, digest))
    gone = view(fresh, "b", 0.0)
    assert gone.phase is Phase.GONE
    assert gone.gone is not None
    assert (gone.gone.cause, gone.gone.reason) == (Cause.QUARANTINED, "bad (op)")


def test_quarantines_are_bounded_and_those_that_are_over_make_room() -> None:
    state = met()
    for number in range(MAX_QUARANTINES):
        do(state, Quarantine(f"n{number}", seconds=10.0))
    with pytest.raises(RendezvousError, match="pardon some"):
        do(state, Quarantine("one more"))
    do(state, Quarantine("one more"), now=11.0)
    assert len(state.decisions.quarantines) == 1


STRIKES = RunSettings(2, 3, 0.0, rules=RoundRules(strikes=2, cooldown=30.0))


def test_a_member_that_fails_too_often_is_quarantined_by_the_law() -> None:
    state = RendezvousState(STRIKES)
    do(state, *joins("ab", STRIKES))
    assert not any(isinstance(event, NodeQuarantined) for event in do(state, Leave("b", "", Cause.FAILED)))
    do(state, *joins("b", STRIKES), *joins("a", STRIKES, (1, 0)))
    assert view(state, "b", 0.0).phase is Phase.MEMBER
    events = do(state, Leave("b", "", Cause.FAILED))
    assert [event for event in events if isinstance(event, NodeQuarantined)] == [
        NodeQuarantined("b", False, LAW, "it failed, or was lost, 2 times", 30.0)
    ]
    with pytest.raises(QuarantinedError):
        do(state, *joins("b", STRIKES), now=29.0)
    do(state, *joins("b", STRIKES), now=30.0)


@pytest.mark.parametrize("cause", [Cause.LEFT, Cause.FINISHED, Cause.CANCELLED])
def test_who_leaves_by_decision_gets_no_strike(cause: Cause) -> None:
    state = RendezvousState(structs.replace(STRIKES, rules=RoundRules(strikes=1, cooldown=30.0)))
    do(state, *joins("ab", state.settings), Leave("a", "", cause))
    do(state, *joins("a", state.settings))
    assert "a" in state.nodes


def test_a_pardon_takes_strikes_away() -> None:
    state = RendezvousState(STRIKES)
    do(state, *joins("ab", STRIKES), Leave("b", "", Cause.FAILED))
    assert do(state, Pardon("b", by="op")) == [NodePardoned("b", False, "op")]
    do(state, *joins("b", STRIKES), *joins("a", STRIKES, (1, 0)))
    do(state, Leave("b", "", Cause.FAILED), *joins("b", STRIKES))
    assert "b" in state.nodes


def test_strikes_are_counted_of_a_bounded_number_of_nodes() -> None:
    decisions = Decisions()
    for number in range(2 * MAX_STRUCK):
        assert not decisions.strike(f"n{number}", 2)
    assert len(decisions.strikes) == MAX_STRUCK


STOPPING = RunSettings(1, 1, 0.0, rules=RoundRules(stop_after=2))


def test_a_run_whose_rounds_bring_no_progress_is_closed_in_place_of_the_next() -> None:
    state = RendezvousState(STOPPING)
    for _ in range(2):
        assert any(isinstance(e, RoundCompleted) for e in do(state, *joins("a", STOPPING)))
        do(state, Leave("a", "", Cause.FAILED))
    assert do(state, *joins("a", STOPPING))[-1] == RunClosed(LAW, "2 rounds without progress")
    with pytest.raises(RendezvousClosedError, match="by the law"):
        do(state, *joins("b", STOPPING))


def test_progress_beyond_the_highest_step_lets_a_run_go_on() -> None:
    state = RendezvousState(STOPPING)
    for step in (5, 5, 6, 6):
        do(state, *joins("a", STOPPING))
        assert state.complete
        do(state, Progress("a", step))
        do(state, Leave("a"))
    do(state, *joins("a", STOPPING))
    assert state.complete


# Runs that are over


def ended() -> RendezvousState:
    """A run whose members have all finished."""
    state = met()
    do(state, *(Leave(node, "", Cause.FINISHED) for node in "ab"))
    assert state.ended
    return state


def anew(how: str, node: str = "c") -> Join:
    """A join that begins a run anew."""
    return structs.replace(Join(NodeDesc(node), PAIR), reopen=how)


def test_who_joins_an_ended_run_may_begin_it_anew_and_the_second_one_joins_that() -> None:
    state = ended()
    events = do(state, anew("ended"))
    assert events[:2] == [RunReopened(2, "c"), RoundOpened(2)]
    do(state, anew("ended", "d"))
    assert (state.incarnation, state.round, state.complete) == (2, 2, True)
    assert not state.ended


def test_who_does_not_ask_for_it_joins_the_next_round_of_an_ended_run() -> None:
    state = ended()
    do(state, Join(NodeDesc("c"), PAIR))
    assert state.incarnation == 1


def test_an_ended_run_that_one_of_its_nodes_closed_begins_anew_with_either() -> None:
    for how in ("ended", "failed"):
        state = met()
        do(state, Close("a", "done", by_node=True), *(Leave(n, "", Cause.FINISHED) for n in "ab"))
        assert RunReopened(2, "c") in do(state, anew(how))


def test_a_failed_run_begins_anew_only_where_that_is_asked_for() -> None:
    state = met()
    do(state, Close("a", "crash", by_node=True), *(Leave(node, "", Cause.FAILED) for node in "ab"))
    with pytest.raises(RendezvousClosedError):
        do(state, anew("ended"))
    assert RunReopened(2, "c") in do(state, anew("failed"))


def test_what_an_operator_closed_stays_closed() -> None:
    state = met()
    do(state, Close("op", "enough"), *(Leave(node, "", Cause.FINISHED) for node in "ab"))
    with pytest.raises(RendezvousClosedError):
        do(state, anew("failed"))


def test_nobody_begins_a_run_anew_in_which_somebody_is() -> None:
    state = met()
    do(state, Close("a", "crash", by_node=True), Leave("a"))
    with pytest.raises(RendezvousClosedError):
        do(state, anew("failed"))


def test_decisions_outlive_a_reopening() -> None:
    state = met()
    do(state, Hold("op"), Quarantine("x", by="op"), Resize(1, 1, "", "op"), Close("op"), Reopen(1, "op"))
    assert state.decisions.held is not None
    assert (state.max_nodes, list(state.decisions.quarantines)) == (1, [(False, "x")])


# As data


def test_decisions_are_in_the_image_and_come_back_with_what_is_left_of_their_time() -> None:
    state = RendezvousState(PAIR, records=True)
    before = image.Clocks(0.0, 1000.0, "boot", 50.0)
    do(state, *joins("ab"))
    do(state, image.proposal_of(state, before)[0])
    do(state, Hold("op", "why", 30.0), Quarantine("x", seconds=20.0, by="op"), Resize(1, 1, "", "op"))
    head = image.head_of(state, before)
    assert head.version == image.VERSION
    roster = (NodeDesc("a"), NodeDesc("b"))
    same = image.restore(head, roster, {}, {}, image.Clocks(7.0, 1010.0, "boot", 60.0))
    assert same.decisions.held is not None
    assert same.decisions.held.until == pytest.approx(27.0)
    assert same.decisions.quarantines[False, "x"].until == pytest.approx(17.0)
    assert same.decisions.excess is not None
    other = image.restore(head, roster, {}, {}, image.Clocks(7.0, 1010.0, "another", 60.0))
    assert other.decisions.held is not None
    assert other.decisions.held.until == pytest.approx(37.0)


def test_a_head_without_decisions_is_one_that_earlier_releases_read() -> None:
    assert image.head_of(met(), image.Clocks(0.0, 0.0, "", 0.0)).version == image.PLAIN


def test_who_was_quarantined_when_its_server_died_is_not_restored() -> None:
    state = RendezvousState(PAIR, records=True)
    clocks = image.Clocks(0.0, 0.0, "boot", 0.0)
    do(state, *joins("ab"))
    do(state, image.proposal_of(state, clocks)[0])
    head = image.decided(image.head_of(state, clocks), Quarantine("b", by="op"), clocks)
    restored = image.restore(head, (NodeDesc("a"), NodeDesc("b")), {}, {}, clocks)
    assert restored.departed["b"].cause is Cause.QUARANTINED


def test_status_says_what_was_decided_by_whom_and_why() -> None:
    state = met()
    do(state, Hold("op", "storage", 90.0), Quarantine("rack7", True, by="op", reason="heat"))
    do(state, Resize(1, 1, "", "op", "budget"))
    text = "\n".join(explained(run_status("r", state, 10.0)))
    assert "the run was held by op 10 s ago, for 80 s: storage" in text
    assert "label rack7 was quarantined by op 10 s ago, until pardoned: heat" in text
    assert "the run was resized by op to 1 node: budget" in text
    assert "round 0 has more members than it may have, who are to meet again" in text


def test_a_round_that_is_held_says_so() -> None:
    state = RendezvousState(PAIR)
    do(state, *joins("a"), Hold("op"), *joins("b"))
    assert "2 came (held): a" in explained(run_status("r", state, 0.0))[0]


# Every interleaving, and random histories

MET = tuple(Action(kind, node) for kind in ("join", "look") for node in "abc")
SMALL = RunSettings(1, 2, 1, 2, 1, 1)
SCOPES = [
    (Scope("holds and a last call", RunSettings(1, 2, 1, 2, 1, 1),
           ("join", "leave", "hold", "hold for ever", "release", "pass"), 5, nodes="ab"), 115),
    (Scope("resizes of three that met", RunSettings(2, 3, 1, 2, 1, 1),
           ("join", "leave", "look", "shrink", "grow", "undo", "drain"), 4, start=MET), 400),
    (Scope("quarantines of a pair and a spare for a given rank", RunSettings(2, 2, 1, 2, 1, 1, "given"),
           ("join", "quarantine", "pardon", "leave", "cut", "claim"), 4, start=MET), 200),
    (Scope("a record of decisions besides closing", SMALL,
           ("join", "record", "confirm", "crash", "hold", "shrink", "quarantine", "pass"), 4, nodes="ab",
           amnesias=1, records=True), 200),
    (Scope("runs that begin anew", RunSettings(1, 1, 0, 2, 1, 1),
           ("join", "join anew", "join after a failure", "leave", "end", "close", "cut"), 6, nodes="ab"), 60),
    (Scope("strikes", RunSettings(1, 2, 0, 2, 1, 1, rules=RoundRules(strikes=2, cooldown=2.0)),
           ("join", "fail", "cut", "pass", "look"), 5, nodes="ab"), 100),
    (Scope("rounds in vain", RunSettings(1, 1, 0, 2, 1, 1, rules=RoundRules(stop_after=1)),
           ("join", "fail", "leave"), 4, nodes="a"), 4),
    (Scope("resizes of three that met, while they are held", RunSettings(2, 3, 1, 2, 1, 1),
           ("join", "shrink", "release"), 4, start=(*MET, Action("hold for ever"))), 20),
]  # fmt: skip


@pytest.mark.parametrize(("scope", "floor"), SCOPES, ids=lambda value: getattr(value, "name", ""))
def test_no_interleaving_of_decisions_breaks_an_invariant(scope: Scope, floor: int) -> None:
    assert explore(scope).states >= floor


class Decided(Histories):
    """Histories with decisions in them."""

    POLICIES: tuple[RankPolicyName, ...] = ("sticky", "natural", "given", "topology")
    LAST_CALLS: tuple[float, ...] = (0.0, 0.5, 30.0)

    @initialize(
        least=st.integers(1, 3), more=st.integers(0, 3), last_call=st.integers(0, 2),
        policy=st.integers(0, 3),
        rules=st.sampled_from([None, RoundRules(strikes=2, cooldown=3.0, stop_after=4)]),
        labels=st.lists(st.sampled_from("xy"), min_size=6, max_size=6), records=st.booleans(),
    )  # fmt: skip
    def open(
        self, least: int, more: int, last_call: int, policy: int, rules: RoundRules | None, labels: list[str],
        *, records: bool,
    ) -> None:  # fmt: skip
        last_calls, policies = self.LAST_CALLS, self.POLICIES
        settings = RunSettings(
            least, least + more, last_calls[last_call % len(last_calls)], 2.5, 3, 1.0,
            policies[policy % len(policies)], rules,
        )  # fmt: skip
        self.world = World.of(NODES, settings, amnesias=1, records=records)
        self.world.descs = {
            node: structs.replace(desc, label=label)
            for (node, desc), label in zip(self.world.descs.items(), labels, strict=True)
        }

    @rule(least=st.integers(1, 4), more=st.integers(0, 3))
    def resize(self, least: int, more: int) -> None:
        self.world.act(Action("resize", nodes=(least, least + more)))

    @rule(kind=st.sampled_from(["hold", "hold for ever", "release", "release", "undo"]), seconds=SECONDS)
    def decide(self, kind: str, seconds: float) -> None:
        self.world.act(Action(kind, seconds=seconds))

    @rule(
        node=st.sampled_from(NODES),
        kind=st.sampled_from(["quarantine", "pardon", "fail", "join anew", "join after a failure"]),
        seconds=SECONDS,
    )
    def decide_of_a_node(self, node: str, kind: str, seconds: float) -> None:
        self.world.act(Action(kind, node, seconds))


class HoldsAndLastCalls(Decided):
    """The last call goes on while a run is held."""

    POLICIES = ("sticky",)
    LAST_CALLS = (0.5, 5.0)


class QuarantinesAndGivenRanks(Decided):
    """The rank of a quarantined node goes to whoever waits for it."""

    POLICIES = ("given",)


class ResizesAndWaitingNodes(Decided):
    """Nodes wait, and become spares, as the size of the run changes."""

    POLICIES = ("sticky", "topology")
    LAST_CALLS = (0.0,)


for _histories in (HoldsAndLastCalls, QuarantinesAndGivenRanks, ResizesAndWaitingNodes):
    _histories.TestCase.settings = hypothesis_settings(
        max_examples=2 * EXAMPLES, stateful_step_count=25, deadline=None, derandomize=True
    )
TestHoldsAndLastCalls = HoldsAndLastCalls.TestCase
TestQuarantinesAndGivenRanks = QuarantinesAndGivenRanks.TestCase
TestResizesAndWaitingNodes = ResizesAndWaitingNodes.TestCase

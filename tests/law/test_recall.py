"""A coordinator that has forgotten a round is told of it by members, in any order and number of parts."""

from __future__ import annotations

import itertools
import random

import pytest
from msgspec import structs

from arendezvous.errors import QuarantinedError, RendezvousSettingsError
from arendezvous.law import image
from arendezvous.law.lists import is_stand_in
from arendezvous.law.machine import apply, view
from arendezvous.law.operations import Close, Hold, Join, Leave, Quarantine, Release, Resume, Tick
from arendezvous.law.recall import recall
from arendezvous.law.state import Cause, NodeDesc, NodeView, Phase, RendezvousState, RunSettings
from tests.kit.law_invariants import check_state

NAMES = ("a", "b", "c", "d", "e")
SETTINGS = RunSettings(3, 8, last_call=0.0)
FINISHED = image.DepartureRow(Cause.FINISHED, "", 0, 1, 90.0)
DRAINS = image.DrainRow(30.0, "preempted", 2, "", 0.0, spent=10.0)


def at(now: float) -> image.Clocks:
    return image.Clocks(now, 100.0 + now, "", now)


def whole(settings: RunSettings = SETTINGS, round_: int = 0) -> image.RunImage:
    """What is kept of a round of all: b has finished since, and c drains."""
    head = image.RunHead(image.VERSION, settings, 1, round_, complete=True, world_size=5, digest="d")
    members = tuple(image.ImageMember(rank, NodeDesc(name)) for rank, name in enumerate(NAMES))
    return image.RunImage(head, members, {"b": FINISHED}, {"c": DRAINS})


def parts(of: image.RunImage) -> list[image.RunImage]:
    """One for each member."""
    return [
        structs.replace(
            of,
            members=(member,),
            departed={n: row for n, row in of.departed.items() if n == member.desc.name},
            drains={n: row for n, row in of.drains.items() if n == member.desc.name},
        )
        for member in of.members
    ]


def resume(name: str, round_: int = 0) -> Resume:
    return Resume(NodeDesc(name), SETTINGS, 1, round_, NAMES.index(name), 5, "d")


def seen(state: RendezvousState, node: str) -> NodeView:
    return view(state, node, 1.0)


def test_whatever_comes_first_the_others_are_members_by_their_names() -> None:
    steps: list[Resume | image.RunImage] = [resume("a"), resume("d"), *parts(whole())]
    rng = random.Random(5)
    for _ in range(200):
        state = RendezvousState(SETTINGS)
        for step in rng.sample(steps, len(steps)):
            if isinstance(step, Resume):
                apply(state, step, 1.0)
            else:
                recall(state, step, at(1.0))
            check_state(state, 1.0)
        assert state.participants == {"a": 0, "c": 2, "d": 3, "e": 4}
        assert state.departed["b"].cause is Cause.FINISHED
        assert [(one.node, one.cause) for one in state.notices] == [("b", Cause.FINISHED), ("c", None)]
        assert (state.unfinished, state.drains["c"].until) == (4, 21.0)


def test_an_image_that_is_told_again_changes_nothing() -> None:
    state = RendezvousState(SETTINGS)
    recall(state, whole(), at(1.0))
    assert recall(state, whole(), at(2.0)) == ([], set(), False)


def test_who_does_not_come_back_is_lost_by_its_name_when_the_grace_is_over() -> None:
    state = RendezvousState(SETTINGS)
    recall(state, whole(), at(1.0))
    apply(state, resume("a"), 1.0)
    apply(state, resume("d"), 1.0)
    apply(state, Tick(), 2.0)
    check_state(state, 2.0)
    lost = [one.node for one in state.notices if one.cause is Cause.CONNECTION_LOST]
    assert sorted(lost) == ["c", "e"]
    assert list(state.participants) == ["a", "d"]


def test_members_that_meet_again_keep_their_ranks_whether_they_come_before_or_after_it() -> None:
    for early in itertools.product((True, False), repeat=2):
        state = RendezvousState(SETTINGS)
        apply(state, resume("e"), 1.0)
        joins = [Join(NodeDesc(name), SETTINGS, (1, 0)) for name in ("a", "d")]
        for join, is_early in zip(joins, early, strict=True):
            if is_early:
                apply(state, join, 1.0)
        recall(state, whole(), at(1.0))
        for join in joins:
            apply(state, join, 1.0)
        check_state(state, 1.0)
        assert {name: state.ranks[name] for name in "ad"} == {"a": 0, "d": 3}
        assert [seen(state, name).phase for name in "ad"] == [Phase.WAITING] * 2
        assert state.returning == 2


def test_a_member_that_has_finished_and_come_again_is_a_newcomer() -> None:
    state = RendezvousState(SETTINGS)
    apply(state, resume("a"), 1.0)
    apply(state, Join(NodeDesc("b"), SETTINGS, (1, 0)), 1.0)
    recall(state, whole(), at(1.0))
    check_state(state, 1.0)
    assert (seen(state, "b").phase, "b" in state.ranks) == (Phase.WAITING, False)


def test_a_member_that_was_away_for_so_long_that_it_was_lost_is_told_so() -> None:
    state = RendezvousState(SETTINGS)
    apply(state, resume("b"), 1.0)
    events, _, changed = recall(state, whole(), at(1.0))
    assert changed
    assert [getattr(event, "node", "") for event in events] == ["b"]
    gone = seen(state, "b").gone
    assert gone is not None
    assert gone.cause is Cause.FINISHED


def test_another_process_under_the_name_of_a_member_takes_its_place() -> None:
    state = RendezvousState(SETTINGS)
    apply(state, resume("a"), 1.0)
    apply(state, Join(NodeDesc("e"), SETTINGS), 1.0)
    recall(state, whole(), at(1.0), lambda member: member.desc.name != "e")
    check_state(state, 1.0)
    assert [one.node for one in state.notices if one.cause is Cause.CONNECTION_LOST] == ["e"]
    assert (seen(state, "e").phase, "e" in state.ranks) == (Phase.WAITING, False)


def test_the_later_of_two_rounds_counts() -> None:
    for order in ((0, 7), (7, 0)):
        state = RendezvousState(SETTINGS)
        for round_ in order:
            recall(state, whole(round_=round_), at(1.0))
            check_state(state, 1.0)
        assert (state.round, list(map(is_stand_in, state.participants))) == (7, [False] * 4)


def test_an_image_of_a_round_that_is_over_changes_nothing() -> None:
    state = RendezvousState(SETTINGS)
    for name in "xyz":
        apply(state, Join(NodeDesc(name), SETTINGS), 1.0)
    apply(state, Tick(), 1.0)
    assert state.complete
    recall(state, whole(), at(1.0))
    assert list(state.participants) == ["x", "y", "z"]


def test_a_run_that_was_closed_before_anybody_told_of_a_round_is_closed_for_its_members() -> None:
    state = RendezvousState(SETTINGS)
    apply(state, Close("ann", "enough"), 1.0)
    recall(state, whole(), at(1.0))
    apply(state, resume("a"), 1.0)
    check_state(state, 1.0)
    assert seen(state, "a").phase is Phase.MEMBER
    assert state.closed is not None


def test_a_member_that_leaves_before_it_is_known_by_name_is_not_lost() -> None:
    state = RendezvousState(SETTINGS)
    apply(state, resume("e"), 1.0)
    apply(state, Join(NodeDesc("a"), SETTINGS, (1, 0)), 1.0)
    apply(state, Leave("a"), 1.0)
    recall(state, whole(), at(1.0))
    apply(state, Tick(), 9.0)
    assert "a" not in {one.node for one in state.notices}


@pytest.mark.parametrize(
    "forged",
    [
        structs.replace(whole(), members=(image.ImageMember(5, NodeDesc("f")),)),
        structs.replace(whole(), members=(image.ImageMember(-1, NodeDesc("f")),)),
        structs.replace(whole(), members=(*whole().members, image.ImageMember(4, NodeDesc("f")))),
        structs.replace(whole(), members=(*whole().members[:4], image.ImageMember(4, NodeDesc("a")))),
        structs.replace(whole(), members=(image.ImageMember(0, NodeDesc("(rank 0 of round 0)")),)),
        structs.replace(whole(), departed={"x": FINISHED}),
        structs.replace(whole(), departed={"b": structs.replace(FINISHED, reason="\n")}),
        structs.replace(whole(), departed={"b": structs.replace(FINISHED, notice=-1)}),
        structs.replace(whole(), drains={"c": structs.replace(DRAINS, seconds=float("nan"))}),
        structs.replace(whole(), head=structs.replace(whole().head, world_size=1_000_001)),
        structs.replace(whole(), head=structs.replace(whole().head, round=-1)),
    ],
)
def test_what_cannot_have_been_agreed_is_refused_and_changes_nothing(forged: image.RunImage) -> None:
    state = RendezvousState(SETTINGS)
    with pytest.raises(RendezvousSettingsError):
        recall(state, forged, at(1.0))
    assert not state.nodes


def test_a_member_that_meets_again_has_its_given_rank_before_who_came_for_it_meanwhile() -> None:
    given = RunSettings(3, 5, last_call=0.0, rank_policy="given")
    head = structs.replace(whole(given).head, settings=given)
    members = [image.ImageMember(rank, NodeDesc(name, rank=rank)) for rank, name in enumerate(NAMES)]
    state = RendezvousState(given)
    apply(state, Resume(members[0].desc, given, 1, 0, 0, 5, "d"), 1.0)
    apply(state, Join(NodeDesc("x", rank=1), given), 1.0)
    apply(state, Join(members[1].desc, given, (1, 0)), 1.0)
    recall(state, image.RunImage(head, tuple(members)), at(1.0))
    check_state(state, 1.0)
    assert (state.given[1], seen(state, "b").phase, seen(state, "x").phase) == (
        "b", Phase.WAITING, Phase.REDUNDANT,
    )  # fmt: skip


def test_what_operators_have_decided_comes_back_with_the_round() -> None:
    before = RendezvousState(SETTINGS)
    apply(before, Quarantine("x", reason="bad memory", by="op"), 0.5)
    apply(before, Hold("op", "storage", 60.0), 0.5)
    head = structs.replace(whole().head, decisions=image.head_of(before, at(0.5)).decisions)
    for first in (True, False):
        state = RendezvousState(SETTINGS)
        if first:
            apply(state, resume("a"), 1.0)
        recall(state, structs.replace(whole(), head=head), at(1.0))
        check_state(state, 1.0)
        assert state.decisions.held is not None
        with pytest.raises(QuarantinedError, match="bad memory"):
            apply(state, Join(NodeDesc("x"), SETTINGS), 2.0)


def test_a_member_that_comes_later_does_not_undo_what_was_decided_meanwhile() -> None:
    before = RendezvousState(SETTINGS)
    apply(before, Hold("op", "storage"), 0.5)
    head = structs.replace(whole().head, decisions=image.head_of(before, at(0.5)).decisions)
    first, *others = parts(structs.replace(whole(), head=head))
    state = RendezvousState(SETTINGS)
    recall(state, first, at(1.0))
    apply(state, Release("op"), 1.0)
    for part in others:
        recall(state, part, at(1.0))
    assert state.decisions.held is None

"""Folding a log: whoever reads it, from any snapshot on, gets the same; and what letters mean."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arendezvous.backends.etcd.fold import MAX_REFUSED, Fold
from arendezvous.backends.etcd.records import (
    Batch,
    Head,
    Intent,
    Keys,
    Ledger,
    Letter,
    Said,
    Spoke,
    Vanished,
    check_speaker,
    decode,
    encode,
    node_of,
)
from arendezvous.backends.etcd.speaker import Speaker, composed
from arendezvous.errors import RendezvousError, RendezvousStateError
from arendezvous.law.operations import (
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
from arendezvous.law.state import Cause, Closure, NodeDesc, NodeView, Notice, Phase, RunSettings
from tests.kit.law_invariants import check_state

SETTINGS = RunSettings(2, 3, last_call=2.0, keep_alive_interval=1.0)
PAIR = RunSettings(2, 2)
NAMES = ("a", "b", "c", "d", "")


def speaker_of(name: str) -> str:
    return f"link/1/{name}"


def operations(name: str) -> st.SearchStrategy[Operation]:
    """What `name` may say; the empty name steers from outside."""
    steering = st.one_of(
        st.builds(Close, st.just(name), st.just("over")),
        st.builds(Reopen, st.integers(1, 3), st.just(name)),
        st.builds(Drain, st.sampled_from(NAMES[:4]), st.sampled_from([0.0, 1.0])),
    )
    if not name:
        return steering
    after = st.tuples(st.integers(0, 2), st.integers(-1, 4))
    joins = st.builds(Join, st.just(NodeDesc(name)), st.just(SETTINGS), after)
    resume = Resume(NodeDesc(name), SETTINGS, 1, 2, 0, 2, "x")
    return st.one_of(joins, joins, joins, st.just(Leave(name)), st.just(resume), steering)


@st.composite
def logs(draw: st.DrawFn) -> list[Batch]:
    """A log as a leader may write it."""
    now, batches = 0.0, []
    numbers = dict.fromkeys(NAMES, 0)
    for _ in range(draw(st.integers(1, 25))):
        now += draw(st.sampled_from([0.0, 0.5, 3.0]))
        inputs: list[Spoke | Vanished] = []
        for _ in range(draw(st.integers(0, 3))):
            name = draw(st.sampled_from(NAMES))
            if draw(st.integers(0, 9)) == 0:
                inputs.append(Vanished(speaker_of(name)))
                continue
            numbers[name] += 1
            said = Said(numbers[name], draw(operations(name)))
            inputs.append(Spoke(speaker_of(name), (said,)))
        batches.append(Batch(now, tuple(inputs)))
    return batches


def folded(batches: list[Batch], fold: Fold | None = None) -> Fold:
    fold = fold or Fold()
    for batch in batches:
        fold.apply(batch)
    return fold


def told(fold: Fold) -> list[object]:
    """All that a leader would tell."""
    return [fold.head(), *(fold.letter(speaker) for speaker in fold.speakers), fold.due()]


@settings(max_examples=60, deadline=None)
@given(logs(), st.integers(0, 25))
def test_a_snapshot_and_the_rest_of_the_log_lead_to_the_same(batches: list[Batch], cut: int) -> None:
    whole = folded(batches)
    log = [decode(b"log", encode(batch), Batch) for batch in batches]
    assert log == batches
    image = folded(log[:cut]).to_bytes()
    rest = folded(log[cut:], Fold.from_bytes(image))
    assert told(rest) == told(whole)
    assert rest.to_bytes() == whole.to_bytes()


@settings(max_examples=60, deadline=None)
@given(logs())
def test_the_law_holds_after_every_entry_and_letters_agree_with_the_head(batches: list[Batch]) -> None:
    fold = Fold()
    for batch in batches:
        fold.apply(batch)
        if fold.state is None:
            continue
        check_state_of(fold)
        letters = [fold.letter(speaker) for speaker in fold.speakers if node_of(speaker)]
        views = [composed(letter, fold.head()) for letter in letters if letter is not None]
        assert None not in views
        members = {view.node: view.rank for view in views if view is not None and view.phase is Phase.MEMBER}
        owned = {n: r for n, r in fold.state.participants.items() if n in fold.owners}
        assert members == (owned if fold.state.complete else {})


def check_state_of(fold: Fold) -> None:
    """Checks the state; nodes with a lease are taken to have been heard of just now."""
    assert fold.state is not None
    beats = fold.state.last_heartbeats
    fold.state.last_heartbeats = type(beats)(
        sorted(((n, min(beat, fold.now)) for n, beat in beats.items()), key=lambda item: item[1])
    )
    try:
        check_state(fold.state, fold.now)
    finally:
        fold.state.last_heartbeats = beats


def join(name: str, number: int = 1, settings: RunSettings = PAIR) -> Spoke:
    return Spoke(speaker_of(name), (Said(number, Join(NodeDesc(name), settings)),))


def test_a_node_with_a_lease_is_never_expired_by_time_alone() -> None:
    fold = folded([Batch(0.0, (join("a"),)), Batch(1e6)])
    assert fold.due() is None
    letter = fold.letter(speaker_of("a"))
    assert letter is not None
    assert letter.view.phase is Phase.GATHERING


def test_what_is_said_twice_counts_once() -> None:
    fold = folded([Batch(0.0, (join("a"),)), Batch(1.0, (join("a"), join("a")))])
    letter = fold.letter(speaker_of("a"))
    assert letter is not None
    assert (letter.answered, letter.refused) == (1, ())


def test_the_latest_refusals_are_told_with_their_numbers() -> None:
    said = tuple(Said(number, Reopen(9)) for number in range(2, 30))
    fold = folded([Batch(0.0, (join("a"), Spoke(speaker_of("a"), said)))])
    letter = fold.letter(speaker_of("a"))
    assert letter is not None
    assert [each.number for each in letter.refused] == list(range(30 - MAX_REFUSED, 30))
    assert {each.kind for each in letter.refused} == {"RendezvousStateError"}


@pytest.mark.parametrize("operation", [Tick(), Disconnect("a"), Join(NodeDesc("b"), PAIR), KeepAlive("b")])
def test_nobody_speaks_for_others_or_for_the_clock(operation: Operation) -> None:
    fold = folded([Batch(0.0, (join("a"), Spoke(speaker_of("a"), (Said(2, operation),))))])
    letter = fold.letter(speaker_of("a"))
    assert letter is not None
    assert [each.number for each in letter.refused] == [2]


def test_a_vanished_intent_is_a_lost_node() -> None:
    fold = folded([Batch(0.0, (join("a"), join("b"))), Batch(1.0, (Vanished(speaker_of("b")),))])
    assert fold.letter(speaker_of("b")) is None
    [notice] = fold.head().notices
    assert (notice.node, notice.cause) == ("b", Cause.NO_HEARTBEAT)
    assert "lease" in notice.reason


def test_letters_of_members_are_small_whatever_happened_to_the_others() -> None:
    settings = RunSettings(40, 40)
    batch = Batch(0.0, tuple(join(f"n{number}", settings=settings) for number in range(40)))
    fold = folded([batch, Batch(1.0, tuple(Vanished(speaker_of(f"n{number}")) for number in range(39)))])
    letter = fold.letter(speaker_of("n39"))
    assert letter is not None
    assert len(encode(letter)) < 250
    assert len(fold.head().notices) == 39
    assert list(fold.touched) == [speaker_of(f"n{number}") for number in range(40)]


MEMBER = NodeView("a", 5, 1, 2, Phase.MEMBER, 1, 3, "d")
HEAD = Head(4, 1, 2, True, 3, "d", ("host",), 1, (Notice(1, "b", None, ""),), Closure("x", "y", 1.0), 9.0)


def test_a_letter_and_its_head_make_up_a_view() -> None:
    view = composed(Letter(1, MEMBER, 4), HEAD)
    assert view is not None
    assert (view.rank, view.rank0, view.waiting, view.now) == (1, ("host",), 1, 9.0)
    assert (view.notices, view.closed) == (HEAD.notices, HEAD.closed)
    waiting = composed(Letter(1, msgspec.structs.replace(MEMBER, phase=Phase.WAITING), 4), HEAD)
    assert waiting is not None
    assert (waiting.closed, waiting.notices) == (HEAD.closed, ())
    gone = msgspec.structs.replace(MEMBER, phase=Phase.GONE)
    assert composed(Letter(1, gone, 4), HEAD) == gone


@pytest.mark.parametrize(
    "change", [{"version": 3}, {"round": 1}, {"incarnation": 2}, {"digest": "e"}, {"complete": False}]
)
def test_nobody_has_a_rank_by_a_letter_that_does_not_agree_with_the_head(change: dict[str, object]) -> None:
    assert composed(Letter(1, MEMBER, 4), msgspec.structs.replace(HEAD, **change)) is None


async def test_letters_from_before_a_lapse_are_not_believed() -> None:
    speaker = Speaker(speaker_of("a"), lambda _: None)
    first = speaker.say(Join(NodeDesc("a"), PAIR), 0.0)
    speaker.lapse("lost", 1.0)
    speaker.hear(Letter(1, MEMBER, 4), HEAD)
    assert speaker.phase is Phase.GONE
    assert not first.done()
    assert speaker.intent is not None
    assert [said.number for said in speaker.intent.said] == [2]
    speaker.hear(Letter(2, MEMBER, 4), HEAD)
    assert (await first).rank == 1


async def test_a_lapsed_member_is_gone_and_what_it_said_for_itself_is_moot() -> None:
    speaker = Speaker(speaker_of("a"), lambda _: None)
    speaker.say(Join(NodeDesc("a"), PAIR), 0.0)
    speaker.hear(Letter(1, MEMBER, 4), HEAD)
    again = speaker.say(Join(NodeDesc("a"), PAIR, (1, 2)), 1.0)
    closing = speaker.say(Close("a", "over"), 1.0)
    speaker.lapse("lost", 2.0)
    view = await again
    assert (view.phase, view.gone and view.gone.reason) == (Phase.GONE, "lost")
    assert speaker.intent is not None
    assert [said.operation for said in speaker.intent.said] == [Close("a", "over")]
    error = RendezvousError("no")
    speaker.fail(error)
    with pytest.raises(RendezvousError, match="no"):
        await closing
    assert speaker.intent is None


async def test_a_speaker_that_waits_is_answered_when_the_head_has_come() -> None:
    speaker = Speaker(speaker_of("a"), lambda _: None)
    joined = speaker.say(Join(NodeDesc("a"), PAIR), 0.0)
    speaker.hear(Letter(1, MEMBER, 4), msgspec.structs.replace(HEAD, version=3))
    await asyncio.sleep(0)
    assert not joined.done()
    speaker.look_again(HEAD)
    assert (await joined).phase is Phase.MEMBER


def test_keys_of_runs_are_apart_and_sort_by_index() -> None:
    keys, other = Keys("/p/", "a"), Keys("/p", "a/log")
    assert keys.base == b"/p/runs/a/"
    assert not other.base.startswith(keys.base)
    assert sorted([keys.log_at(10), keys.log_at(9)]) == [keys.log_at(9), keys.log_at(10)]
    assert node_of("link/1/a/b") == "a/b"
    for bad in ("a", "a/b", "a/b/\n"):
        with pytest.raises(RendezvousStateError, match="no speaker"):
            check_speaker(bad)


def test_damaged_records_are_named() -> None:
    with pytest.raises(RendezvousStateError, match="'k' in etcd holds no Intent"):
        decode(b"k", b"[]", Intent)
    with pytest.raises(RendezvousStateError, match="format 2"):
        decode(b"k", b'{"index": 1, "writer": "", "lease": "", "format": 2}', Ledger)
    with pytest.raises(RendezvousStateError, match="is damaged"):
        Fold.from_bytes(b"\x01")

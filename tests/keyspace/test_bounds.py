"""What a keyspace keeps has limits, and no request costs more than the keys that it names."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arendezvous.errors import StoreError, StoreFullError
from arendezvous.keyspace.host import Caller, KeyspaceHost
from arendezvous.keyspace.keyspace import Keyspace
from arendezvous.keyspace.messages import (
    Add,
    Append,
    Barrier,
    CancelWait,
    Changed,
    Check,
    CompareSet,
    DeleteKey,
    Get,
    Keys,
    ListKeys,
    MultiGet,
    MultiSet,
    Number,
    NumKeys,
    QueueLen,
    QueuePop,
    QueuePush,
    Ready,
    Reply,
    Set,
    Value,
    Values,
    Wait,
    WaitDone,
    WaitQueue,
    Watch,
    whole,
)
from arendezvous.keyspace.regions import KEY, REGION, KeyspaceLimits
from arendezvous.keyspace.values import LOOK, PIECE, Pieces, leading_integer

A, B, C = 1, 2, 3  # clients
DONE = WaitDone()
JOB = b"/arendezvous/job/"
OTHER = b"/arendezvous/jobs/"


def asked(keys: Keyspace, request: Any, client: int = A) -> Reply:
    """The one reply, owed to the asker, as bytes."""
    [(to, reply)] = keys.handle(client, request)
    assert to == client
    return whole(reply)


def limited(**limits: int) -> Keyspace:
    return Keyspace(KeyspaceLimits(**limits))


def settle(keys: Keyspace) -> list[tuple[int, Reply]]:
    """Has the keyspace do all that is left, and returns what is owed for it."""
    owed: list[tuple[int, Reply]] = []
    while keys.later:
        owed += keys.work()
    return owed


# What is kept


WRITES = [
    Set(b"k", b"x" * 100),
    MultiSet([(b"a", b""), (b"k", b"x" * 100)]),
    CompareSet(b"k", b"", b"x" * 100),
    Append(b"k", b"x" * 100),
    Add(b"k", 1),
    Barrier(b"k", 1),
    Barrier(b"k", 2),
    QueuePush(b"k", b"x" * 100),
    Wait([b"k"]),
    WaitQueue(b"k"),
    Watch(b"k", 0),
]


def named(request: Any) -> str:
    return type(request).__name__


@pytest.mark.parametrize("request_", WRITES, ids=named)
def test_what_would_be_too_much_is_refused_and_changes_nothing(request_: Any) -> None:
    keys = limited(max_bytes=500)
    keys.handle(B, Set(b"here", b"v"))
    before = (keys.size, keys.revision, len(keys))
    with pytest.raises(StoreFullError, match=r"more than the 500 bytes.*--limit store.max_bytes=") as caught:
        keys.handle(A, request_)
    settle(keys)
    assert caught.value.limit == 500
    assert (keys.size, keys.revision, len(keys)) == before
    assert keys.waits == 0
    assert asked(keys, MultiGet([b"here", b"k", b"a"])) == Values([b"v", None, None])
    assert asked(keys, QueueLen(b"k")) == Number(0)


@pytest.mark.parametrize("request_", WRITES, ids=named)
def test_a_run_that_is_full_is_named_and_leaves_room_for_others(request_: Any) -> None:
    keys = limited(max_run_bytes=2000)
    keys.handle(A, Set(JOB + b"here", b"v" * 1550))
    with pytest.raises(StoreFullError, match=r"the keys of run 'job'.*--limit store.max_run_bytes="):
        keys.handle(A, _within(JOB, request_))
    for prefix in (OTHER, b"/"):
        keys.handle(B, _within(prefix, request_))


def _within(prefix: bytes, request: Any) -> Any:
    """The same request for keys that begin with `prefix`."""
    fields = [getattr(request, name) for name in request.__struct_fields__]
    if isinstance(request, MultiSet):
        return MultiSet([(prefix + key, value) for key, value in request.items])
    if isinstance(request, Wait):
        return Wait([prefix + key for key in request.keys])
    return type(request)(prefix + fields[0], *fields[1:])


def test_keys_of_no_run_have_the_limit_of_all_alone() -> None:
    keys = limited(max_run_bytes=500)
    keys.handle(A, Set(b"/k", b"x" * 5000))


def test_what_is_taken_away_gives_its_room_back() -> None:
    keys = Keyspace()
    for prefix in (b"/", JOB):
        keys.handle(A, Set(prefix + b"k", b"x" * 1000))
        keys.handle(A, Set(prefix + b"k", b"x"))
        keys.handle(A, Append(prefix + b"k", b"x" * 2 * PIECE))
        keys.handle(A, QueuePush(prefix + b"q", b"x" * 1000))
        keys.handle(A, QueuePush(prefix + b"q", b"x" * 1000))
        keys.handle(B, Wait([prefix + b"late", prefix + b"later"]))
        keys.handle(B, Watch(prefix + b"k", keys.revision_of(prefix + b"k")))
        assert keys.size > 2 * PIECE
        keys.handle(A, DeleteKey(prefix + b"k"))
        keys.handle(A, QueuePop(prefix + b"q"))
        keys.handle(A, QueuePop(prefix + b"q"))
        keys.handle(B, CancelWait())
        settle(keys)
        assert keys.size == 0


def test_a_value_counts_as_long_as_somebody_is_being_sent_it() -> None:
    keys = limited(max_bytes=3000)
    keys.handle(A, Set(b"k", b"x" * 1000))
    sent = asked(keys, Get(b"k"))
    assert isinstance(sent, Value)
    assert sent.value is not None
    keys.entries.begin_reading(sent.value)
    keys.entries.begin_reading(sent.value)
    before = keys.size
    keys.handle(A, Set(b"k", b"y" * 1000))
    assert keys.size == before + 1000
    keys.handle(A, DeleteKey(b"k"))
    assert keys.size == 1000
    with pytest.raises(StoreFullError):
        keys.handle(A, Set(b"k", b"y" * 1800))
    keys.entries.end_reading(sent.value)
    assert keys.size == 1000
    keys.entries.end_reading(sent.value)
    assert keys.size == 0


def test_a_long_value_counts_as_long_as_it_is_being_sent_even_if_it_has_grown_since() -> None:
    keys = Keyspace()
    keys.handle(A, Set(b"k", b"x" * 2 * PIECE))
    [(_, first)] = keys.handle(A, Get(b"k"))
    assert isinstance(first, Value)
    assert first.value is not None
    keys.entries.begin_reading(first.value)
    keys.handle(A, Append(b"k", b"y"))
    [(_, second)] = keys.handle(A, Get(b"k"))
    assert isinstance(second, Value)
    assert isinstance(second.value, Pieces)
    keys.entries.begin_reading(second.value)
    keys.handle(A, Append(b"k", b"z"))
    keys.handle(A, DeleteKey(b"k"))
    assert keys.size >= 2 * (2 * PIECE)
    keys.entries.end_reading(first.value)
    keys.entries.end_reading(second.value)
    assert keys.size == 0


@pytest.mark.parametrize("prefix", [b"/", JOB])
def test_a_value_is_no_longer_than_its_limit_however_it_is_made(prefix: bytes) -> None:
    keys = limited(max_value=100_000)
    for request in (
        Set(prefix + b"k", b"x" * 100_001),
        MultiSet([(prefix + b"k", b"x"), (prefix + b"l", b"x" * 100_001)]),
        CompareSet(prefix + b"k", b"", b"x" * 100_001),
        QueuePush(prefix + b"q", b"x" * 100_001),
        Append(prefix + b"k", b"x" * 100_001),
    ):
        with pytest.raises(StoreError, match="would have 100001 bytes; at most 100000"):
            keys.handle(A, request)
    assert len(keys) == 0
    keys.handle(A, Append(prefix + b"k", b"x" * 60_000))
    keys.handle(A, Append(prefix + b"k", b"x" * 40_000))
    with pytest.raises(StoreError, match="would have 100001 bytes"):
        keys.handle(A, Append(prefix + b"k", b"x"))
    assert asked(keys, Get(prefix + b"k")) == Value(b"x" * 100_000)


def test_several_keys_that_do_not_fit_together_are_refused_together() -> None:
    keys = limited(max_bytes=10_000, max_run_bytes=2500)
    few = [(b"/%d" % number, b"") for number in range(10)]
    keys.handle(A, MultiSet(few))
    keys.handle(A, MultiSet(few))  # they are there: nothing more is needed
    with pytest.raises(StoreFullError, match="all keys"):
        keys.handle(A, MultiSet([(b"/more%d" % number, b"") for number in range(20)]))
    with pytest.raises(StoreFullError, match="run 'job'"):
        keys.handle(A, MultiSet([(JOB + b"%d" % number, b"") for number in range(8)]))
    assert len(keys) == 10


# Numbers


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (b"7" + b" " * 10_000_000, 7),
        (b"0" * (LOOK - 1) + b"7", 7),
        (b"0" * LOOK + b"7", None),
        (b" " * (LOOK - 1) + b"7", 7),
        (b" " * LOOK + b"7", None),
        (b"1" * 10_000_000, None),
    ],
)
def test_a_number_is_looked_for_at_the_start_of_a_value_and_no_further(
    value: bytes, number: int | None
) -> None:
    assert leading_integer(value) == number


def test_one_adds_to_a_value_of_many_pieces_as_to_any() -> None:
    keys = Keyspace()
    keys.handle(A, Append(b"n", b"41x" + b"x" * PIECE))
    keys.handle(A, Append(b"n", b"y"))
    assert asked(keys, Add(b"n", 1)) == Number(42)
    assert asked(keys, Get(b"n")) == Value(b"42")


# Values in pieces


@given(st.lists(st.integers(0, 3 * PIECE), max_size=12), st.lists(st.booleans(), max_size=12))
def test_a_value_that_is_appended_to_reads_as_if_it_were_one(sizes: list[int], reads: list[bool]) -> None:
    keys, expected = Keyspace(), b""
    for number, size in enumerate(sizes):
        piece = bytes([number]) * size
        keys.handle(A, Append(b"k", piece))
        expected += piece
        if number < len(reads) and reads[number]:
            assert asked(keys, Get(b"k")) == Value(expected)
    if sizes:
        assert asked(keys, Get(b"k")) == Value(expected)
        assert keys.size == KEY + 1 + len(expected)
        assert asked(keys, MultiGet([b"k", b"none"])) == Values([expected, None])
        assert asked(keys, CompareSet(b"k", expected + b"x", b"new")) == Value(expected)
        assert asked(keys, CompareSet(b"k", expected, b"new")) == Value(b"new")


def test_what_was_read_of_a_long_value_stays_as_it_was() -> None:
    keys = Keyspace()
    keys.handle(A, Append(b"k", b"a" * PIECE))
    keys.handle(A, Append(b"k", b"b"))
    [(_, one)] = keys.handle(A, Get(b"k"))
    [(_, two)] = keys.handle(A, MultiGet([b"k"]))
    assert isinstance(one, Value)
    assert isinstance(one.value, Pieces)
    assert isinstance(two, Values)
    assert isinstance(two.values[0], Pieces)
    keys.handle(A, Append(b"k", b"c" * 2 * PIECE))
    assert whole(one) == Value(b"a" * PIECE + b"b")
    assert whole(two) == Values([b"a" * PIECE + b"b"])


def test_appending_copies_no_more_than_a_piece_of_the_value() -> None:
    keys = Keyspace()
    keys.handle(A, Set(b"k", b"a" * 10 * PIECE))
    keys.handle(A, Append(b"k", b"b"))
    [(_, first)] = keys.handle(A, Get(b"k"))
    keys.handle(A, Append(b"k", b"c"))
    [(_, second)] = keys.handle(A, Get(b"k"))
    assert isinstance(first, Value)
    assert isinstance(first.value, Pieces)
    assert isinstance(second, Value)
    assert isinstance(second.value, Pieces)
    assert first.value.parts[0] is second.value.parts[0]
    assert sum(map(len, second.value.parts[1:])) <= PIECE


def test_all_who_read_a_long_value_as_bytes_share_one_copy() -> None:
    host = KeyspaceHost()
    callers = [Caller(host), Caller(host)]
    callers[0].ask(Set(b"k", b"a" * PIECE))
    callers[0].ask(Append(b"k", b"b"))
    first, second = (caller.ask(Get(b"k")).value for caller in callers)
    assert first == b"a" * PIECE + b"b"
    assert first is second


# By run


def test_the_keys_of_a_run_are_counted_and_listed_without_those_of_others() -> None:
    keys = Keyspace()
    keys.handle(A, MultiSet([(JOB + b"1.0.x/a", b""), (JOB + b"b", b""), (OTHER + b"a", b""), (b"/c", b"")]))
    assert asked(keys, NumKeys()) == Number(4)
    assert asked(keys, NumKeys(JOB)) == Number(2)
    assert asked(keys, ListKeys(JOB)) == Keys([JOB + b"1.0.x/a", JOB + b"b"])
    assert asked(keys, ListKeys(JOB + b"1")) == Keys([JOB + b"1.0.x/a"])
    assert asked(keys, ListKeys(b"/c")) == Keys([b"/c"])
    assert asked(keys, NumKeys(b"/arendezvous/jo")) == Number(3)
    assert asked(keys, NumKeys(b"/arendezvous/none/")) == Number(0)
    listed = asked(keys, ListKeys())
    assert isinstance(listed, Keys)
    assert sorted(listed.keys) == sorted([JOB + b"1.0.x/a", JOB + b"b", OTHER + b"a", b"/c"])


def test_the_keys_and_queues_of_a_run_are_gone_at_once_and_new_ones_may_come() -> None:
    keys = Keyspace()
    names = [JOB + b"%d" % number for number in range(1000)]
    keys.handle(A, MultiSet([(name, b"old") for name in names]))
    for _ in range(1000):
        keys.handle(A, QueuePush(JOB + b"q", b"old"))
    keys.handle(A, Set(OTHER + b"k", b"stays"))
    assert not keys.delete_run(JOB)
    assert asked(keys, NumKeys()) == Number(1)
    assert asked(keys, Check([names[0]])) == Ready(False)
    assert asked(keys, QueueLen(JOB + b"q")) == Number(0)
    assert asked(keys, DeleteKey(names[0])) == Number(0)
    keys.handle(A, Set(names[1], b"new"))
    keys.handle(A, Append(names[2], b"new"))
    keys.handle(A, QueuePush(JOB + b"q", b"new"))
    settle(keys)
    assert asked(keys, MultiGet([*names[:3], OTHER + b"k"])) == Values([None, b"new", b"new", b"stays"])
    assert asked(keys, NumKeys()) == Number(3)
    assert asked(keys, QueueLen(JOB + b"q")) == Number(1)
    keys.handle(A, QueuePop(JOB + b"q"))
    for name in (names[1], names[2], OTHER + b"k"):
        keys.handle(A, DeleteKey(name))
    assert keys.size == 0


def test_deleting_the_keys_of_a_run_takes_a_few_at_a_time() -> None:
    keys = Keyspace()
    keys.handle(A, MultiSet([(JOB + b"%d" % number, b"x" * 100) for number in range(10_000)]))
    before = keys.size
    keys.delete_run(JOB)
    assert before - keys.size < before / 10
    steps = 0
    while keys.later:
        keys.work()
        steps += 1
    assert steps > 10
    assert keys.size == 0


def test_those_who_watch_and_those_who_wait_in_a_run_that_is_deleted() -> None:
    keys = Keyspace()
    keys.handle(A, Set(JOB + b"k", b"v"))
    keys.handle(B, Watch(JOB + b"k", keys.revision_of(JOB + b"k")))
    keys.handle(C, Wait([JOB + b"late"]))
    assert keys.delete_run(JOB) == [(B, Changed(None, 0))]
    assert keys.waits == 1, "a wait goes on"
    assert [owed for owed in keys.handle(A, Set(JOB + b"late", b"")) if owed[0] == C] == [(C, DONE)]


def test_of_many_who_watch_keys_of_a_run_that_is_deleted_none_is_forgotten() -> None:
    keys = Keyspace()
    for client in range(1, 301):
        key = JOB + b"%d" % client
        keys.handle(client, Set(key, b"v"))
        keys.handle(client, Watch(key, keys.revision_of(key)))
    told = [*keys.delete_run(JOB), *settle(keys)]
    assert sorted(client for client, _ in told) == list(range(1, 301))


def test_a_run_without_keys_takes_nothing() -> None:
    keys = Keyspace()
    for number in range(100):
        keys.handle(A, Set(b"/arendezvous/%d/k" % number, b""))
        keys.handle(A, DeleteKey(b"/arendezvous/%d/k" % number))
        assert keys.size == 0
    keys.handle(A, Set(b"/arendezvous/0/k", b""))
    assert keys.size == KEY + len(b"/arendezvous/0/k") + REGION


# Many who wait


def test_many_who_wait_for_one_key_are_woken_some_at_a_time_and_none_is_forgotten() -> None:
    keys = Keyspace()
    for client in range(1, 1001):
        keys.handle(client, Wait([b"k"]))
    keys.handle(5000, Watch(b"k", 0))
    woken = dict(keys.handle(0, Set(b"k", b"")))
    keys.handle(0, DeleteKey(b"k"))
    keys.drop(7)
    assert len(woken) < 100
    first = keys.work()
    assert 0 < len(first) < 1000
    for client, reply in [*first, *settle(keys)]:
        assert client not in woken
        woken[client] = reply
    assert set(woken) == {*range(1, 1001), 5000} - {7}
    assert (keys.waits, keys.size) == (0, 0)


def test_a_wait_that_is_given_up_while_others_are_being_woken_is_answered_by_the_giving_up_alone() -> None:
    keys = Keyspace()
    for client in range(1, 1001):
        keys.handle(client, Wait([b"k"]))
    keys.handle(0, Set(b"k", b""))
    assert len(keys.handle(900, CancelWait())) == 1
    keys.handle(900, Wait([b"other"]))
    assert 900 not in dict(settle(keys))
    assert keys.handle(0, Set(b"other", b"")) == [(900, DONE)]


def test_a_wait_for_many_keys_that_is_given_up_is_forgotten_a_few_at_a_time() -> None:
    keys = Keyspace()
    names = [b"%d" % number for number in range(10_000)]
    keys.handle(A, Wait(names))
    keys.handle(B, Wait(names[:1]))
    before = keys.size
    keys.drop(A)
    assert keys.waits == 1
    assert keys.size > before / 2
    assert keys.handle(C, Set(names[0], b"")) == [(B, DONE)]
    settle(keys)
    keys.handle(C, DeleteKey(names[0]))
    assert keys.size == 0


def test_a_wait_whose_keys_are_named_in_parts_is_one_wait() -> None:
    keys = Keyspace()
    keys.handle(C, Set(b"a", b""))
    assert not keys.handle(A, Wait([b"a", b"b"], more=True))
    assert not keys.handle(C, Set(b"b", b"")), "not all of its keys are known"
    assert not keys.handle(A, Wait([b"c"], more=True))
    assert not keys.handle(A, Wait([b"d"]))
    assert not keys.handle(C, Set(b"d", b""))
    assert keys.handle(C, Set(b"c", b"")) == [(A, DONE)]
    assert not keys.handle(A, Wait([b"a"], more=True))
    assert keys.handle(A, Wait([b"b"])) == [(A, DONE)]
    assert keys.waits == 0


def test_a_check_whose_keys_are_named_in_parts_is_answered_once() -> None:
    keys = Keyspace()
    keys.handle(C, Set(b"a", b""))
    assert not keys.handle(A, Check([b"b"], more=True))
    assert keys.handle(B, Check([b"a"])) == [(B, Ready(True))]
    assert keys.handle(A, Check([b"a"])) == [(A, Ready(False))]
    assert not keys.handle(A, Check([b"a"], more=True))
    assert keys.handle(A, Check([b"a"])) == [(A, Ready(True))]


def test_waits_count_until_they_are_over() -> None:
    keys = limited(max_bytes=6000)
    keys.handle(A, Wait([b"1", b"2", b"3", b"4", b"5"]))
    with pytest.raises(StoreFullError):
        keys.handle(B, Wait([b"6", b"7"]))
    settle(keys)
    assert keys.waits == 1
    keys.handle(A, CancelWait())
    keys.handle(B, Wait([b"6", b"7"]))


def test_a_queue_that_somebody_was_woken_for_counts_until_he_looks_at_it() -> None:
    keys = Keyspace()
    for number in range(10):
        keys.handle(A, Wait([b"q%d" % number]))
        keys.handle(B, QueuePush(b"q%d" % number, b""))
        keys.handle(B, QueuePop(b"q%d" % number))
    assert keys.size > 0
    keys.drop(A)
    assert keys.size == 0


@given(
    st.lists(
        st.sampled_from([b"/arendezvous/x", b"/arendezvous/", JOB, JOB + b"k", OTHER + b"k", b"/k", b""]),
        max_size=20,
    )
)
def test_every_key_belongs_to_the_run_that_it_names_or_to_none(names: list[bytes]) -> None:
    keys = Keyspace()
    for name in names:
        keys.handle(A, Set(name, b"v"))
    assert asked(keys, NumKeys()) == Number(len(set(names)))
    for run in (JOB, OTHER):
        mine = {name for name in names if name.startswith(run)}
        assert asked(keys, NumKeys(run)) == Number(len(mine))
        keys.delete_run(run)
    settle(keys)
    rest = {name for name in names if not name.startswith((JOB, OTHER))}
    listed = asked(keys, ListKeys())
    assert isinstance(listed, Keys)
    assert set(listed.keys) == rest
    for name in rest:
        keys.handle(A, DeleteKey(name))
    assert keys.size == 0

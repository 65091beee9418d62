"""What a store means: one request at a time, and who is owed what for it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from arendezvous.errors import StoreError
from arendezvous.keyspace.host import KeyspaceHost
from arendezvous.keyspace.keyspace import Keyspace, leading_integer
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
    Popped,
    QueueLen,
    QueuePop,
    QueuePush,
    Ready,
    Reply,
    Set,
    Value,
    Values,
    Wait,
    WaitCancelled,
    WaitDone,
    WaitQueue,
    Watch,
)

A, B, C = 1, 2, 3  # clients
DONE = WaitDone()


@pytest.fixture
def keys() -> Keyspace:
    return Keyspace()


def asked(keys: Keyspace, request: Any, client: int = A) -> Reply:
    """The one reply, owed to the asker."""
    [(to, reply)] = keys.handle(client, request)
    assert to == client
    return reply


def test_a_value_that_was_set_is_read_back(keys: Keyspace) -> None:
    assert not keys.handle(A, Set(b"k", b"v"))
    assert asked(keys, Get(b"k")) == Value(b"v")


def test_reading_an_absent_key_says_so_and_creates_nothing(keys: Keyspace) -> None:
    assert asked(keys, Get(b"k")) == Value(None)
    assert asked(keys, NumKeys()) == Number(0)


@pytest.mark.parametrize(
    ("present", "expected", "reply", "stored"),
    [
        (None, b"", b"new", b"new"),
        (None, b"old", b"old", None),
        (b"old", b"old", b"new", b"new"),
        (b"old", b"other", b"old", b"old"),
        (b"old", b"", b"old", b"old"),
        (b"", b"", b"new", b"new"),
    ],
)
def test_compare_set_stores_only_on_a_match_and_echoes_the_expectation_for_an_absent_key(
    keys: Keyspace, present: bytes | None, expected: bytes, reply: bytes, stored: bytes | None
) -> None:
    if present is not None:
        keys.handle(A, Set(b"k", present))
    assert asked(keys, CompareSet(b"k", expected, b"new")) == Value(reply)
    assert asked(keys, Get(b"k")) == Value(stored)


def test_a_compare_set_that_stores_nothing_wakes_nobody(keys: Keyspace) -> None:
    keys.handle(B, Wait([b"k"]))
    assert keys.handle(A, CompareSet(b"k", b"old", b"new")) == [(A, Value(b"old"))]
    assert keys.handle(A, CompareSet(b"k", b"", b"new")) == [(A, Value(b"new")), (B, DONE)]


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (b"0", 0), (b"12", 12), (b" 12", 12), (b"\t\n 3", 3), (b"+5", 5), (b"-7x", -7), (b"010", 10),
        (b"12abc", 12), (b"0x10", 0), (b"1_0", 1), (b"1\x00", 1), (b"0" * 50 + b"7", 7), (b"000", 0),
        (b"-0", 0),
        (b"9223372036854775807", 2**63 - 1), (b"-9223372036854775808", -(2**63)),
        (b"9223372036854775808", None), (b"-9223372036854775809", None), (b"9" * 10_000, None),
        (b"", None), (b"abc", None), (b"--1", None), (b"- 1", None), (b"+", None), (b"\x003", None),
    ],
)  # fmt: skip
def test_the_leading_integer_of_a_value_is_what_the_stock_server_takes_it_for(
    value: bytes, number: int | None
) -> None:
    assert leading_integer(value) == number


def test_add_counts_from_zero_and_keeps_decimal_text(keys: Keyspace) -> None:
    assert asked(keys, Add(b"n", 5)) == Number(5)
    assert asked(keys, Add(b"n", -7)) == Number(-2)
    assert asked(keys, Get(b"n")) == Value(b"-2")


def test_add_wraps_around_beyond_64_bits(keys: Keyspace) -> None:
    keys.handle(A, Set(b"n", b"9223372036854775807"))
    assert asked(keys, Add(b"n", 1)) == Number(-(2**63))
    assert asked(keys, Add(b"n", -1)) == Number(2**63 - 1)


@pytest.mark.parametrize("request_", [Add(b"n", 1), Barrier(b"n", 2)], ids=["add", "barrier"])
def test_counting_in_a_value_that_is_no_number_raises_and_changes_nothing(
    keys: Keyspace, request_: Add | Barrier
) -> None:
    keys.handle(A, Set(b"n", b"abc"))
    with pytest.raises(StoreError, match=r"key 'n' is b'abc'.*does not start with an integer"):
        keys.handle(A, request_)
    assert asked(keys, Get(b"n")) == Value(b"abc")
    assert keys.waits == 0


def test_append_makes_the_key_and_then_lengthens_it(keys: Keyspace) -> None:
    keys.handle(A, Append(b"k", b"ab"))
    keys.handle(A, Append(b"k", b"cd"))
    assert asked(keys, Get(b"k")) == Value(b"abcd")
    keys.handle(A, Append(b"k", b"e"))
    assert asked(keys, MultiGet([b"k"])) == Values([b"abcde"])
    assert asked(keys, CompareSet(b"k", b"abcde", b"f")) == Value(b"f")


def test_a_value_that_was_read_does_not_change_when_the_key_is_appended_to(keys: Keyspace) -> None:
    keys.handle(A, Append(b"k", b"ab"))
    before = asked(keys, Get(b"k"))
    keys.handle(A, Append(b"k", b"cd"))
    assert before == Value(b"ab")


def test_delete_removes_a_key_once(keys: Keyspace) -> None:
    keys.handle(A, Set(b"k", b""))
    assert asked(keys, DeleteKey(b"k")) == Number(1)
    assert asked(keys, DeleteKey(b"k")) == Number(0)
    assert asked(keys, Check([b"k"])) == Ready(False)


def test_several_keys_are_set_and_read_at_once(keys: Keyspace) -> None:
    keys.handle(A, MultiSet([(b"a", b"1"), (b"b", b"2"), (b"a", b"3")]))
    assert asked(keys, MultiGet([b"b", b"a", b"c"])) == Values([b"2", b"3", None])
    assert asked(keys, ListKeys()) == Keys([b"a", b"b"])
    assert len(keys) == 2


def test_nothing_is_there_and_nothing_is_awaited_in_an_empty_list(keys: Keyspace) -> None:
    assert asked(keys, Check([])) == Ready(True)
    assert asked(keys, Wait([])) == DONE
    assert asked(keys, MultiGet([])) == Values([])


# Waiting


@pytest.mark.parametrize(
    "write",
    [Set(b"k", b""), Add(b"k", 0), Append(b"k", b""), CompareSet(b"k", b"", b""), MultiSet([(b"k", b"")])],
    ids=lambda request: type(request).__name__,
)
def test_every_write_wakes_all_who_wait_for_the_key_once(keys: Keyspace, write: Any) -> None:
    keys.handle(A, Wait([b"k"]))
    keys.handle(B, Wait([b"k"]))
    owed = [(to, reply) for to, reply in keys.handle(C, write) if to != C]
    assert owed == [(A, DONE), (B, DONE)]
    assert [to for to, _ in keys.handle(C, write) if to != C] == []


def test_a_wait_for_several_keys_ends_with_the_last_of_those_missing(keys: Keyspace) -> None:
    keys.handle(C, Set(b"there", b""))
    assert not keys.handle(A, Wait([b"there", b"x", b"y", b"x"]))
    assert not keys.handle(C, Set(b"x", b""))
    assert not keys.handle(C, Set(b"x", b"again"))
    assert keys.handle(C, Set(b"y", b"")) == [(A, DONE)]


def test_a_key_counts_for_a_wait_even_if_it_is_deleted_again(keys: Keyspace) -> None:
    keys.handle(A, Wait([b"x", b"y"]))
    keys.handle(C, Set(b"x", b""))
    keys.handle(C, DeleteKey(b"x"))
    assert keys.handle(C, Set(b"y", b"")) == [(A, DONE)]


def test_one_client_may_wait_for_several_things_at_a_time(keys: Keyspace) -> None:
    keys.handle(A, Wait([b"x"]))
    keys.handle(A, Wait([b"y"]))
    assert keys.handle(C, Set(b"x", b"")) == [(A, DONE)]
    assert keys.handle(C, Set(b"y", b"")) == [(A, DONE)]


def test_a_cancelled_wait_is_answered_once_and_never_woken(keys: Keyspace) -> None:
    keys.handle(A, Wait([b"x", b"y"]))
    assert keys.handle(A, CancelWait()) == [(A, WaitCancelled())]
    assert keys.handle(A, CancelWait()) == [(A, WaitCancelled())]
    assert not keys.handle(C, MultiSet([(b"x", b""), (b"y", b"")]))


def test_a_client_that_is_dropped_leaves_no_wait_behind_and_disturbs_no_other(keys: Keyspace) -> None:
    keys.handle(A, Wait([b"x", b"y"]))
    keys.handle(A, Watch(b"x", 0))
    keys.handle(B, Wait([b"x"]))
    assert not keys.drop(A)
    assert not keys.drop(A)
    assert keys.waits == 1
    assert keys.handle(C, Set(b"x", b"")) == [(B, DONE)]


# Queues


def test_a_queue_gives_its_values_in_order_with_the_length_before_each(keys: Keyspace) -> None:
    keys.handle(A, QueuePush(b"q", b"1"))
    keys.handle(A, QueuePush(b"q", b""))
    assert asked(keys, QueueLen(b"q")) == Number(2)
    assert asked(keys, QueuePop(b"q")) == Popped(2, b"1")
    assert asked(keys, QueuePop(b"q")) == Popped(1, b"")
    assert asked(keys, QueuePop(b"q")) == Popped(0, None)
    assert asked(keys, QueueLen(b"q")) == Number(0)


def test_a_queue_is_no_key_but_is_there_while_it_holds_something(keys: Keyspace) -> None:
    keys.handle(A, QueuePush(b"q", b"1"))
    assert asked(keys, NumKeys()) == Number(0)
    assert asked(keys, ListKeys()) == Keys([])
    assert asked(keys, DeleteKey(b"q")) == Number(0)
    assert asked(keys, Get(b"q")) == Value(None)
    assert asked(keys, Check([b"q"])) == Ready(True)
    assert asked(keys, Wait([b"q"])) == DONE
    keys.handle(A, QueuePop(b"q"))
    assert asked(keys, Check([b"q"])) == Ready(False)


def test_a_key_stands_beside_the_queue_of_the_same_name(keys: Keyspace) -> None:
    keys.handle(A, Set(b"q", b"value"))
    keys.handle(A, QueuePush(b"q", b"1"))
    assert asked(keys, QueuePop(b"q")) == Popped(1, b"1")
    assert asked(keys, Get(b"q")) == Value(b"value")


def test_a_wait_for_a_queue_is_not_over_because_a_key_of_its_name_exists(keys: Keyspace) -> None:
    keys.handle(C, Set(b"q", b"value"))
    assert not keys.handle(A, WaitQueue(b"q"))
    assert keys.handle(C, QueuePush(b"q", b"1")) == [(A, DONE)]
    assert asked(keys, WaitQueue(b"q")) == DONE


def test_one_push_wakes_the_one_who_has_waited_longest(keys: Keyspace) -> None:
    keys.handle(A, Wait([b"q"]))
    keys.handle(B, Wait([b"q"]))
    assert keys.handle(C, QueuePush(b"q", b"1")) == [(A, DONE)]
    assert keys.handle(C, QueuePush(b"q", b"2")) == [(B, DONE)]
    assert not keys.handle(C, QueuePush(b"q", b"3"))


@pytest.mark.parametrize("gone", ["cancel", "drop"])
def test_what_a_client_was_woken_for_and_did_not_take_goes_to_the_next(keys: Keyspace, gone: str) -> None:
    keys.handle(A, Wait([b"q"]))
    keys.handle(B, Wait([b"q"]))
    keys.handle(C, QueuePush(b"q", b"1"))
    owed = keys.drop(A) if gone == "drop" else keys.handle(A, CancelWait())
    assert [to for to, reply in owed if reply == DONE] == [B]


def test_a_client_that_took_its_value_passes_nothing_on(keys: Keyspace) -> None:
    keys.handle(A, Wait([b"q"]))
    keys.handle(B, Wait([b"q"]))
    keys.handle(C, QueuePush(b"q", b"1"))
    keys.handle(A, QueuePop(b"q"))
    assert not keys.drop(A)


def test_a_push_counts_for_a_wait_that_still_misses_a_key(keys: Keyspace) -> None:
    keys.handle(A, Wait([b"q", b"k"]))
    assert not keys.handle(C, QueuePush(b"q", b"1"))
    assert keys.handle(C, Set(b"k", b"")) == [(A, DONE)]


# Barriers


def test_a_barrier_lets_all_pass_when_the_last_arrives_and_everybody_after(keys: Keyspace) -> None:
    assert not keys.handle(A, Barrier(b"b", 3))
    assert not keys.handle(B, Barrier(b"b", 3))
    assert keys.handle(C, Barrier(b"b", 3)) == [(C, DONE), (A, DONE), (B, DONE)]
    assert keys.handle(C, Barrier(b"b", 3)) == [(C, DONE)]
    assert asked(keys, Get(b"b")) == Value(b"4")


def test_who_gave_up_a_barrier_stays_counted_and_is_not_woken(keys: Keyspace) -> None:
    keys.handle(A, Barrier(b"b", 2))
    keys.handle(A, CancelWait())
    assert keys.handle(B, Barrier(b"b", 2)) == [(B, DONE)]


@pytest.mark.parametrize("world_size", [1, 0, -1])
def test_a_barrier_for_at_most_one_lets_it_pass(keys: Keyspace, world_size: int) -> None:
    assert keys.handle(A, Barrier(b"b", world_size)) == [(A, DONE)]


def test_an_arrival_at_a_barrier_wakes_those_who_wait_for_the_key_only_when_it_is_full(
    keys: Keyspace,
) -> None:
    keys.handle(C, Wait([b"b"]))
    assert not keys.handle(A, Barrier(b"b", 2))
    assert keys.handle(B, Barrier(b"b", 2)) == [(B, DONE), (C, DONE), (A, DONE)]


# Revisions


def test_every_change_gives_its_key_a_higher_revision_and_absence_is_revision_zero(keys: Keyspace) -> None:
    keys.handle(A, Set(b"k", b"1"))
    first = keys.revision_of(b"k")
    keys.handle(A, Set(b"other", b""))
    assert keys.revision_of(b"k") == first
    keys.handle(A, Append(b"k", b"2"))
    second = keys.revision_of(b"k")
    assert 0 < first < second
    keys.handle(A, DeleteKey(b"k"))
    assert keys.revision_of(b"k") == 0
    keys.handle(A, Set(b"k", b"3"))
    assert keys.revision_of(b"k") > second


def test_a_watch_is_answered_at_once_if_the_revision_is_another_already(keys: Keyspace) -> None:
    keys.handle(A, Set(b"k", b"v"))
    assert asked(keys, Watch(b"k", 0)) == Changed(b"v", keys.revision_of(b"k"))
    assert asked(keys, Watch(b"absent", 7)) == Changed(None, 0)


@pytest.mark.parametrize(
    "write",
    [Set(b"k", b"x"), DeleteKey(b"k"), Add(b"k", 1), Barrier(b"k", 9)],
    ids=lambda r: type(r).__name__,
)
def test_a_watch_tells_of_the_next_change_and_only_of_that(keys: Keyspace, write: Any) -> None:
    keys.handle(C, Set(b"k", b"1"))
    assert not keys.handle(A, Watch(b"k", keys.revision_of(b"k")))
    keys.handle(C, Set(b"other", b""))
    told = [reply for to, reply in keys.handle(C, write) if to == A]
    now = asked(keys, Get(b"k"))
    assert isinstance(now, Value)
    assert told == [Changed(now.value, keys.revision_of(b"k"))]
    assert [to for to, _ in keys.handle(C, Set(b"k", b"y")) if to == A] == []


# Through the host


class _Box:
    def __init__(self) -> None:
        self.replies: list[Reply] = []

    def deliver(self, reply: Reply) -> None:
        self.replies.append(reply)


def test_the_host_delivers_each_reply_to_whom_it_is_owed_and_forgets_who_was_detached() -> None:
    host, waiter, writer = KeyspaceHost(), _Box(), _Box()
    first, second = host.attach(waiter), host.attach(writer)
    host.ask(first, Wait([b"k"]))
    host.ask(second, Add(b"k", 2))
    assert (waiter.replies, writer.replies) == ([DONE], [Number(2)])
    host.ask(first, Wait([b"x"]))
    host.detach(first)
    host.detach(first)
    host.ask(second, Set(b"x", b""))
    assert waiter.replies == [DONE]
    assert list(host.clients) == [second]


def test_detaching_passes_on_a_value_that_was_not_taken() -> None:
    host, first, second = KeyspaceHost(), _Box(), _Box()
    numbers = [host.attach(first), host.attach(second)]
    for number in numbers:
        host.ask(number, Wait([b"q"]))
    host.ask(host.attach(_Box()), QueuePush(b"q", b"1"))
    host.detach(numbers[0])
    assert second.replies == [DONE]


# Against a model


KEYS = st.sampled_from([b"a", b"b", b"c"])
VALUES = st.sampled_from([b"", b"1", b"x"])
CLIENTS = st.integers(1, 4)


class KeyspaceAgainstAModel(RuleBasedStateMachine):
    """A slow model that looks at everybody after every step wakes the same waits as the indices do."""

    @initialize()
    def start(self) -> None:
        self.keys = Keyspace()
        self.model: dict[bytes, bytes] = {}
        self.queues: dict[bytes, list[bytes]] = {}
        self.missing: list[tuple[int, set[bytes]]] = []

    def woken(self, owed: Any) -> list[int]:
        return sorted(to for to, reply in owed if reply == DONE)

    def expect_written(self, key: bytes) -> list[int]:
        for _, missing in self.missing:
            missing.discard(key)
        woken = sorted(client for client, missing in self.missing if not missing)
        self.missing = [wait for wait in self.missing if wait[1]]
        return woken

    @rule(client=CLIENTS, keys=st.lists(KEYS, max_size=4))
    def wait(self, client: int, keys: list[bytes]) -> None:
        missing = {key for key in keys if key not in self.model and not self.queues.get(key)}
        owed = self.keys.handle(client, Wait(keys))
        assert self.woken(owed) == ([] if missing else [client])
        if missing:
            self.missing.append((client, missing))

    @rule(client=CLIENTS, key=KEYS, value=VALUES)
    def set(self, client: int, key: bytes, value: bytes) -> None:
        self.model[key] = value
        assert self.woken(self.keys.handle(client, Set(key, value))) == self.expect_written(key)

    @rule(client=CLIENTS, key=KEYS)
    def delete(self, client: int, key: bytes) -> None:
        expected = int(self.model.pop(key, None) is not None)
        assert self.keys.handle(client, DeleteKey(key)) == [(client, Number(expected))]

    @rule(client=CLIENTS, key=KEYS, value=VALUES)
    def push(self, client: int, key: bytes, value: bytes) -> None:
        self.queues.setdefault(key, []).append(value)
        woken = self.woken(self.keys.handle(client, QueuePush(key, value)))
        first = next((wait for wait in self.missing if key in wait[1]), None)
        if first is None:
            assert woken == []
            return
        first[1].discard(key)
        assert woken == ([] if first[1] else [first[0]])
        self.missing = [wait for wait in self.missing if wait[1]]

    @rule(client=CLIENTS, key=KEYS)
    def pop(self, client: int, key: bytes) -> None:
        queue = self.queues.get(key, [])
        expected = Popped(len(queue), queue.pop(0) if queue else None)
        assert self.keys.handle(client, QueuePop(key)) == [(client, expected)]

    @invariant()
    def waits_are_those_of_the_model(self) -> None:
        assert self.keys.waits == len({client for client, _ in self.missing})

    @invariant()
    def values_are_those_of_the_model(self) -> None:
        [(_, listed)] = self.keys.handle(0, ListKeys())
        assert isinstance(listed, Keys)
        [(_, read)] = self.keys.handle(0, MultiGet(listed.keys))
        assert isinstance(read, Values)
        assert dict(zip(listed.keys, read.values, strict=True)) == self.model
        assert len(self.keys) == len(self.model)


TestKeyspaceAgainstAModel = KeyspaceAgainstAModel.TestCase


@given(
    st.lists(st.tuples(CLIENTS, st.lists(KEYS, min_size=1, max_size=3)), max_size=20),
    st.permutations([1, 2, 3, 4]),
)
def test_nothing_stays_behind_when_all_clients_are_gone(
    waits: list[tuple[int, list[bytes]]], order: list[int]
) -> None:
    keys = Keyspace()
    for client, names in waits:
        keys.handle(client, Wait(names))
        keys.handle(client, Watch(names[0], 0))
    for client in order:
        keys.drop(client)
    assert (keys.waits, keys.size) == (0, 0)

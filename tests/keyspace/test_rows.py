"""Keys and queues as rows, and back; and replies that wait until what they may tell of is recorded."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arendezvous.coordinator.journal import Batch, Change
from arendezvous.errors import StoreError
from arendezvous.keyspace.host import Caller, KeyspaceHost
from arendezvous.keyspace.keyspace import Keyspace
from arendezvous.keyspace.messages import (
    Add,
    Append,
    DeleteKey,
    Get,
    MultiSet,
    Number,
    Popped,
    QueuePop,
    QueuePush,
    Reply,
    Set,
    Value,
    Wait,
    WaitDone,
    whole,
)
from arendezvous.keyspace.regions import KeyspaceLimits
from arendezvous.keyspace.rows import KEYS, LIFE, PART, PARTS, QUEUES

RUN = b"/arendezvous/job/"
NAMES = (b"a", RUN + b"a", RUN + b"b")


class Rows(dict[bytes, bytes]):
    """The rows that a journal has."""

    def make(self, batch: Batch) -> None:
        for change, key, value in batch.changes:
            if change is Change.PUT:
                self[key] = value
            elif change is Change.DELETE:
                self.pop(key, None)
            else:
                for name in [name for name in self if name.startswith(key)]:
                    del self[name]


class Client:
    """Keeps what it is told."""

    def __init__(self, host: KeyspaceHost) -> None:
        self.told: list[Reply] = []
        self.number = host.attach(self)

    def deliver(self, reply: Reply) -> None:
        self.told.append(whole(reply))


def recording(
    rows: Rows, life: int = 1, limits: KeyspaceLimits | None = None
) -> tuple[KeyspaceHost, list[int]]:
    """A host that records; and how often it has asked for that."""
    asked: list[int] = []
    host = KeyspaceHost(limits)
    host.record(lambda: asked.append(1), life, dict(sorted(rows.items())))
    return host, asked


def commit(host: KeyspaceHost, rows: Rows) -> Batch:
    batch = Batch()
    host.collect(batch)
    rows.make(batch)
    host.recorded()
    return batch


def content(keyspace: Keyspace) -> dict[str, Any]:
    keys = {key: whole(keyspace.handle(0, Get(key))[0][1]) for keys in keyspace.listing() for key in keys}
    queues: dict[bytes, list[bytes]] = {}
    for name in NAMES:
        queue = keyspace._queue(name)
        if queue is not None:
            queues[name] = list(queue.values)
    return {"keys": keys, "queues": queues, "size": keyspace.size}


SIZES = st.sampled_from([0, 1, 100, PART - 1, PART, PART + 1, 3 * PART])
KEY = st.sampled_from(NAMES)
VALUE = st.builds(lambda size, byte: bytes([byte]) * size, SIZES, st.integers(0, 255))
STEP = st.one_of(
    st.builds(Set, KEY, VALUE),
    st.builds(Append, KEY, VALUE),
    st.builds(DeleteKey, KEY),
    st.builds(QueuePush, KEY, VALUE),
    st.builds(QueuePop, KEY),
    st.builds(MultiSet, st.lists(st.tuples(KEY, VALUE), max_size=3)),
    st.sampled_from(["delete the run", "commit", "fail", "fail, though it is made", "tear", "restart"]),
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(STEP, min_size=30, max_size=60))
def test_what_is_loaded_is_what_was_there_at_the_last_commit_whatever_came_before(steps: list[Any]) -> None:
    rows, life = Rows(), 1
    host, _ = recording(rows)
    recorded = content(host.keyspace)
    for step in [*steps, "commit", "restart"]:
        if step == "delete the run":
            host.keyspace.delete_run(RUN)
            while host.keyspace.later:
                host.keyspace.work()
        elif step == "commit":
            commit(host, rows)
            recorded = content(host.keyspace)
        elif step == "tear":
            batch = Batch()
            host.collect(batch)
            after = content(host.keyspace)
            del batch.changes[len(batch.changes) // 2 :]
            rows.make(batch)
            life += 1
            host, _ = recording(rows, life)
            torn = content(host.keyspace)
            for key, value in torn["keys"].items():
                assert value in (recorded["keys"].get(key), after["keys"].get(key))
            recorded = torn
        elif isinstance(step, str) and step.startswith("fail"):
            batch = Batch()
            host.collect(batch)
            if step != "fail":
                rows.make(batch)
                recorded = content(host.keyspace)
            host.failed("disk full")
        elif step == "restart":
            life += 1
            host, _ = recording(rows, life)
            assert content(host.keyspace) == recorded
            assert host.keyspace.revision >> LIFE == life
        else:
            host.keyspace.handle(0, step)


def test_an_append_writes_the_last_part_alone_and_a_pop_one_row() -> None:
    rows = Rows()
    host, _ = recording(rows)
    host.keyspace.handle(0, Set(b"log", b"x" * 10 * PART))
    for number in range(1000):
        host.keyspace.handle(0, QueuePush(b"jobs", b"%d" % number))
    commit(host, rows)
    host.keyspace.handle(0, Append(b"log", b"y"))
    host.keyspace.handle(0, QueuePop(b"jobs"))
    batch = commit(host, rows)
    assert [(change, key[:6], len(value)) for change, key, value in batch.changes] == [
        (Change.PUT, b"part/l", 1),
        (Change.PUT, b"key/lo", 25),
        (Change.DELETE, b"queue/", 0),
    ]


def test_no_row_is_longer_than_a_part() -> None:
    rows = Rows()
    host, _ = recording(rows)
    host.keyspace.handle(0, Set(b"a", b"x" * (5 * PART + 1)))
    host.keyspace.handle(0, Append(b"b", b"x" * PART))
    host.keyspace.handle(0, Append(b"b", b"x" * PART))
    commit(host, rows)
    assert max(map(len, rows.values())) <= PART + 1


def test_marks_take_no_room_for_values_however_long_nothing_can_be_recorded() -> None:
    host, _ = recording(Rows())
    for number in range(100):
        host.keyspace.handle(0, Set(b"a", b"%d" % number * 1000))
        host.collect(Batch())
        host.failed("disk full")
    assert host._rows is not None
    assert host._rows.marks.keys == {b"a": 0}


@pytest.mark.parametrize(
    "prefix", [PARTS + b"a", QUEUES + b"q" + (1).to_bytes(8)], ids=["of a key", "of a queue"]
)
def test_a_row_that_is_missing_is_found(prefix: bytes) -> None:
    rows = Rows()
    host, _ = recording(rows)
    host.keyspace.handle(0, Set(b"a", b"x" * 2 * PART))
    for value in (b"1", b"2", b"3"):
        host.keyspace.handle(0, QueuePush(b"q", value))
    commit(host, rows)
    del rows[next(row for row in rows if row.startswith(prefix))]
    with pytest.raises(StoreError, match="is damaged"):
        recording(rows)


def test_what_is_recorded_and_has_no_room_is_refused() -> None:
    rows = Rows({KEYS + b"a": bytes(10_000)})
    with pytest.raises(StoreError, match="raise its limit"):
        recording(rows, limits=KeyspaceLimits(max_bytes=5000))


def test_a_revision_is_not_used_by_two_lives() -> None:
    rows = Rows()
    host, _ = recording(rows)
    host.keyspace.handle(0, Set(b"a", b"1"))
    commit(host, rows)
    before = host.keyspace.revision_of(b"a")
    host, _ = recording(rows, 2)
    assert host.keyspace.revision_of(b"a") > before


@pytest.mark.virtual
async def test_others_hear_of_a_change_once_it_is_recorded() -> None:
    rows = Rows()
    host, asked = recording(rows)
    one, two = Client(host), Client(host)
    host.ask(two.number, Wait([b"a"]))
    assert not host.holds
    host.ask(one.number, Set(b"a", b"1"))
    assert (two.told, host.holds, asked) == ([], True, [1])
    commit(host, rows)
    assert (two.told, host.holds) == ([WaitDone()], False)


@pytest.mark.virtual
async def test_what_changes_while_a_batch_is_under_way_waits_for_the_next_one() -> None:
    rows = Rows()
    host, _ = recording(rows)
    order: list[str] = []
    host.keyspace.handle(0, Set(b"a", b"1"))
    host.when_recorded(1, lambda: order.append("a"))
    host.collect(Batch())
    host.when_recorded(1, lambda: order.append("a, read"))
    host.keyspace.handle(0, Set(b"b", b"1"))
    host.when_recorded(1, lambda: order.append("b"))
    host.recorded()
    assert (order, host.holds) == (["a", "a, read"], True)
    host.collect(Batch())
    host.failed("disk full")
    host.when_recorded(1, lambda: order.append("b, read"))
    assert (order[2:], host.holds) == ([], True)
    commit(host, rows)
    assert (order[2:], host.holds) == (["b", "b, read"], False)


@pytest.mark.virtual
async def test_a_handler_has_its_own_reply_at_once_and_waits_before_it_sends_it_on() -> None:
    host, _ = recording(Rows())
    caller = Caller(host)
    assert caller.ask(Add(b"n", 1)) == Number(1)
    assert host.holds
    caller.ask(QueuePush(b"q", b"x"))
    assert caller.ask(QueuePop(b"q")) == Popped(1, b"x")


@pytest.mark.virtual
async def test_nothing_is_kept_of_who_gives_up_while_nothing_can_be_recorded() -> None:
    host, _ = recording(Rows())
    host.keyspace.handle(0, Set(b"a", b"1"))
    for _ in range(2):
        with anyio.move_on_after(1):
            await host.settled()
        host.collect(Batch())
        with anyio.move_on_after(1):
            await host.settled()
        client = Client(host)
        host.pass_on(client.number, WaitDone())
        host.failed("disk full")
        host.pass_on(client.number, WaitDone())
        host.detach(client.number)
    assert (host._gathered, host._held) == ({}, {})


def test_a_value_that_became_shorter_in_a_commit_that_failed_leaves_no_part_behind() -> None:
    rows = Rows()
    host, _ = recording(rows)
    host.keyspace.handle(0, Set(b"a", b"x" * 3 * PART))
    commit(host, rows)
    host.keyspace.handle(0, Set(b"a", b"short"))
    host.collect(Batch())
    host.failed("disk full")
    commit(host, rows)
    assert rows == {KEYS + b"a": b"\0short"}


def test_an_append_of_which_only_a_part_was_written_has_not_been_made() -> None:
    rows = Rows()
    host, _ = recording(rows)
    host.keyspace.handle(0, Set(b"a", b"x" * (PART + 10)))
    commit(host, rows)
    host.keyspace.handle(0, Append(b"a", b"y"))
    batch = Batch()
    host.collect(batch)
    del batch.changes[1:]
    rows.make(batch)
    host, _ = recording(rows, 2)
    assert content(host.keyspace)["keys"][b"a"] == Value(b"x" * (PART + 10))

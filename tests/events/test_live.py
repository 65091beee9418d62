"""A stream yields what is recorded in any thread, is bounded, and loses nothing to a cancelled read."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading

import anyio
import pytest

from arendezvous import events
from arendezvous.errors import RendezvousSettingsError
from arendezvous.events import (
    Event,
    EventSource,
    recorder,
)
from tests.kit.events_kit import event, fresh, names, record_rdzv

__all__ = ["fresh"]  # a fixture for every test here, which pytest finds by being in this module


async def test_a_stream_yields_what_is_recorded_after_it_was_made() -> None:
    events.record(event("before"))
    stream = events.stream()
    events.record(event("one"))
    events.record(event("two"))

    assert names([await anext(stream), await anext(stream)]) == ["one", "two"]


async def test_a_waiting_reader_is_woken_from_its_own_loop() -> None:
    got: list[str] = []

    async def read(stream: events.EventStream) -> None:
        async for recorded in stream:
            got.append(recorded.event.name)
            if recorded.event.name == "last":
                return

    with anyio.fail_after(120):
        async with anyio.create_task_group() as group:
            group.start_soon(read, events.stream())
            await anyio.wait_all_tasks_blocked()
            events.record(event("one"))
            await anyio.wait_all_tasks_blocked()
            events.record(event("last"))

    assert got == ["one", "last"]


async def test_a_waiting_reader_is_woken_from_other_threads() -> None:
    threads, count = 4, 200

    def write(writer: int) -> None:
        for number in range(count):
            events.record(event(writer=writer, number=number))

    asyncio.get_running_loop().set_debug(True)  # it then refuses what is not safe from other threads
    stream = events.stream(buffer=threads * count)
    got: list[events.RecordedEvent] = []
    with anyio.fail_after(120):
        async with anyio.create_task_group() as group:
            for writer in range(threads):
                group.start_soon(anyio.to_thread.run_sync, write, writer)
            while len(got) < threads * count:
                got.append(await anext(stream))

    assert [one.number for one in got] == list(range(1, threads * count + 1))
    for writer in range(threads):
        mine = [one.event.metadata for one in got if isinstance(one.event, Event)]
        assert [m["number"] for m in mine if m["writer"] == writer] == list(range(count))


async def test_every_stream_gets_every_event() -> None:
    first, second = events.stream(), events.stream()
    events.record(event("one"))

    assert names([await anext(first), await anext(second)]) == ["one", "one"]


async def test_a_cancelled_read_loses_no_event() -> None:
    stream = events.stream()
    with anyio.move_on_after(0) as scope:
        await anext(stream)
    assert scope.cancelled_caught

    task = asyncio.ensure_future(anext(stream))
    await anyio.wait_all_tasks_blocked()
    events.record(event("one"))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    with anyio.fail_after(120):
        assert names([await anext(stream)]) == ["one"]


async def test_a_read_that_is_cancelled_before_it_begins_takes_no_event() -> None:
    stream = events.stream()
    events.record(event("one"))

    with anyio.CancelScope() as scope:
        scope.cancel()
        await anext(stream)

    assert scope.cancelled_caught
    assert names([await anext(stream)]) == ["one"]


async def test_reading_what_is_ready_lets_other_tasks_run() -> None:
    stream = events.stream()
    turns: list[str] = []

    async def read() -> None:
        for _ in range(3):
            await anext(stream)
            turns.append("reader")

    async def other() -> None:
        turns.append("other")

    for _ in range(3):
        events.record(event())
    async with anyio.create_task_group() as group:
        group.start_soon(read)
        group.start_soon(other)

    assert turns == ["other", "reader", "reader", "reader"]


async def test_a_slow_reader_loses_the_oldest_events_and_can_tell() -> None:
    stream = events.stream(buffer=2)
    for name in "abcd":
        events.record(event(name))

    got = [await anext(stream), await anext(stream)]

    assert names(got) == ["c", "d"]
    assert [one.number for one in got] == [3, 4]
    assert stream.dropped == 2


async def test_a_stream_can_begin_with_the_history() -> None:
    events.set_history_size(3)
    for name in "abcde":
        events.record(event(name))

    resumed, whole, newest = events.stream(after=3), events.stream(after=0), events.stream(after=5)
    events.record(event("f"))

    assert names([await anext(resumed) for _ in range(3)]) == ["d", "e", "f"]
    assert names([await anext(whole) for _ in range(4)]) == ["c", "d", "e", "f"]
    assert names([await anext(newest)]) == ["f"]
    assert (resumed.dropped, whole.dropped, newest.dropped) == (0, 2, 0)


async def test_a_closed_stream_ends_after_what_it_has() -> None:
    async with events.stream() as stream:
        events.record(event("one"))
    events.record(event("too late"))

    assert [recorded.event.name async for recorded in stream] == ["one"]


async def test_closing_a_stream_ends_the_wait_of_its_reader() -> None:
    stream = events.stream()

    async def read() -> None:
        assert [recorded async for recorded in stream] == []

    with anyio.fail_after(120):
        async with anyio.create_task_group() as group:
            group.start_soon(read)
            await anyio.wait_all_tasks_blocked()
            await stream.aclose()


async def test_a_second_reader_of_one_stream_is_refused() -> None:
    stream = events.stream()
    async with anyio.create_task_group() as group:
        group.start_soon(anext, stream)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(anyio.BusyResourceError):
            await anext(stream)
        events.record(event())


async def test_a_stream_that_nobody_holds_costs_nothing() -> None:
    events.set_history_size(0)
    stream = events.stream()
    assert recorder._feed.wanted
    del stream
    gc.collect()

    assert not recorder._feed.wanted


async def test_a_stream_works_without_a_history() -> None:
    events.set_history_size(0)
    stream = events.stream()
    record_rdzv()

    assert names([await anext(stream)]) == ["events_kit.py:record_rdzv"]


def test_recording_goes_on_when_the_readers_loop_is_gone() -> None:
    stream = events.stream()
    loop = asyncio.new_event_loop()
    reader = loop.create_task(stream.__anext__())
    loop.run_until_complete(asyncio.sleep(0))
    loop.run_until_complete(asyncio.sleep(0))
    waiting = stream._waiter
    assert waiting is not None
    loop.close()

    events.record(event("one"))

    assert names(events.history()) == ["one"]
    reader._log_destroy_pending = False  # type: ignore[attr-defined]  # the loop went away on purpose


@pytest.mark.parametrize("wrong", [{"buffer": 0}, {"after": -1}])
def test_a_stream_with_a_bad_setting_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(RendezvousSettingsError, match="but must be"):
        events.stream(**wrong)


def test_an_event_recorded_while_another_is_recorded_does_not_lock_up() -> None:
    class Nested(Event):
        def __copy__(self) -> Event:
            with recorder._feed._lock:  # as a signal handler or a finalizer would find it
                events.record(event("inner"))
            return event("outer")

    done = threading.Thread(target=lambda: events.record(Nested("x", EventSource.AGENT)), daemon=True)
    done.start()
    done.join(10)

    assert names(events.history()) == ["inner", "outer"]


def test_a_forked_child_records_for_itself() -> None:
    script = """
import os
from arendezvous import events
stream = events.stream()
events.record(events.Event("parent", events.EventSource.AGENT))
pid = os.fork()
if pid == 0:
    events.record(events.Event("child", events.EventSource.AGENT))
    print([one.event.name for one in events.history()], len(stream._buffer), flush=True)
    os._exit(0)
os.waitpid(pid, 0)
print([one.event.name for one in events.history()], len(stream._buffer))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines() == ["['parent', 'child'] 1", "['parent'] 1"]

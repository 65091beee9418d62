"""What the driver records: each step of a node, as the events that torch's rendezvous records."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import arendezvous as ar
from arendezvous import events
from arendezvous.events import NodeState, RdzvEvent, recorder
from arendezvous.rendezvous.diary import HISTORY, Diary
from tests.kit.events_kit import Kept, fresh  # noqa: F401 - `fresh` is used by every test, as a fixture

pytestmark = pytest.mark.virtual


def node(name: str, least: int = 1, **settings: Any) -> ar.AsyncRendezvousHandler:
    return ar.open_rendezvous(
        "memory://recording", run_id="job", min_nodes=least, node=name, local_addr="host", **settings
    )


def recorded() -> list[RdzvEvent]:
    return [one.event for one in events.history() if isinstance(one.event, RdzvEvent)]


def steps() -> list[tuple[str, NodeState, int | None]]:
    return [(event.message, event.node_state, event.rank) for event in recorded()]


async def test_joining_the_rank_closing_and_leaving_are_recorded() -> None:
    async with node("a") as a:
        await a.next_rendezvous()
        await a.set_closed("done")
        await a.leave("finished")
    assert steps() == [
        ("a: joining run 'job'", NodeState.RUNNING, None),
        ("a: round 0: rank 0 of 1", NodeState.RUNNING, 0),
        ("a: closed the run: done", NodeState.SUCCEEDED, None),
        ("a: left the run: finished", NodeState.SUCCEEDED, None),
    ]
    assert [event.name for event in recorded()] == [
        f"diary.py:{name}" for name in ("joining", "joined", "closed", "left")
    ]
    assert {(event.run_id, event.hostname, event.error_trace) for event in recorded()} == {
        ("job", "host", "")
    }
    assert all(event.local_id is not None and event.pid for event in recorded())


async def test_leaving_the_block_is_recorded_with_its_cause() -> None:
    async with node("a") as a:
        await a.next_rendezvous()
    assert steps()[-1] == ("a: left the run (left)", NodeState.SUCCEEDED, None)


async def test_a_join_that_fails_is_recorded_with_its_traceback() -> None:
    async with node("a", 2, timeout=ar.RendezvousTimeout(join=1.0)) as a:
        with pytest.raises(ar.RendezvousTimeoutError) as caught:
            await a.next_rendezvous()
    failed = [event for event in recorded() if event.node_state is NodeState.FAILED]
    assert [event.message for event in failed] == [f"a: not joined: {caught.value.message}"]
    assert "RendezvousTimeoutError" in failed[0].error_trace


async def test_a_cancelled_join_is_recorded_but_is_no_failure() -> None:
    async with node("a", 2) as a:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.0):
                await a.next_rendezvous()
    assert ("a: not joined: the join was cancelled", NodeState.RUNNING, None) in steps()


async def test_a_spare_that_is_not_needed_has_succeeded() -> None:
    async with node("a") as a, node("b") as b, asyncio.TaskGroup() as tasks:
        await a.next_rendezvous()

        async def be_spare() -> None:
            with pytest.raises(ar.RendezvousGracefulExitError):
                await b.next_rendezvous()

        tasks.create_task(be_spare())
        await asyncio.sleep(1.0)
        await a.set_closed("done")
    exits = [event for event in recorded() if "was a spare and is not needed" in event.message]
    assert [(event.node_state, event.error_trace) for event in exits] == [(NodeState.SUCCEEDED, "")]


async def test_a_change_that_is_read_is_recorded_by_its_kind() -> None:
    async with node("a", 2) as a, node("b", 2) as b:
        await asyncio.gather(a.next_rendezvous(), b.next_rendezvous())
        await b.leave("bored")
        assert await anext(aiter(a.changes())) == ar.NodeLeft("b", ar.Cause.LEFT, "bored")
    assert ("diary.py:NodeLeft", "a: b left: bored") in [(event.name, event.message) for event in recorded()]


async def test_a_handler_that_is_registered_for_rendezvous_events_gets_their_json() -> None:
    kept = Kept()
    events.register_logging_handler("dynamic_rendezvous", kept)
    async with node("a") as a:
        await a.next_rendezvous()
    assert [RdzvEvent.deserialize(line).message for line in kept.lines[:2]] == [
        "a: joining run 'job'", "a: round 0: rank 0 of 1",
    ]  # fmt: skip


async def test_no_event_is_made_when_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    events.set_history_size(0)
    monkeypatch.setattr(recorder, "RdzvEvent", None)
    async with node("a") as a:
        await a.next_rendezvous()
    assert [entry.what for entry in a.history][:2] == ["joining run 'job'", "round 0: rank 0 of 1"]


def test_a_diary_keeps_its_latest_entries() -> None:
    diary = Diary("job", ar.NodeDesc("a"), "memory://")
    for number in range(HISTORY + 1):
        diary.note(f"step {number}")
    assert (len(diary.entries), diary.entries[0].what) == (HISTORY, "step 1")


def test_an_unforeseen_error_is_named_with_its_type() -> None:
    diary = Diary("job", ar.NodeDesc("a"), "memory://")
    try:
        int("x")
    except ValueError as error:
        why = diary.not_joined(error)
    assert why.startswith("ValueError(")
    assert "ValueError: invalid literal" in recorded()[-1].error_trace

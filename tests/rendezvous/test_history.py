"""What the driver records: each step of a node, as the events that torch's rendezvous records."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

import arendezvous as ar
from arendezvous import events
from arendezvous.backends.memory import LocalBackend
from arendezvous.events import NodeState, RdzvEvent, recorder
from arendezvous.law.state import Departure, NodeView, Phase
from arendezvous.rendezvous.history import HISTORY, NodeHistory
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
        f"history.py:{name}" for name in ("joining", "joined", "closed", "left")
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
    assert ("history.py:NodeLeft", "a: b left: bored") in [
        (event.name, event.message) for event in recorded()
    ]


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


def test_a_history_keeps_its_latest_entries() -> None:
    history = NodeHistory("job", ar.NodeDesc("a"), "memory://")
    for number in range(HISTORY + 1):
        history.note(f"step {number}")
    assert (len(history.entries), history.entries[0].what) == (HISTORY, "step 1")


def test_an_unforeseen_error_is_named_with_its_type() -> None:
    history = NodeHistory("job", ar.NodeDesc("a"), "memory://")
    try:
        int("x")
    except ValueError as error:
        why = history.not_joined(error)
    assert why.startswith("ValueError(")
    assert "ValueError: invalid literal" in recorded()[-1].error_trace


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.name.startswith("arendezvous.rendezvous")]


async def test_the_log_tells_at_info_who_is_missing_every_ten_seconds_and_then_each_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    async with node("a", 2, max_nodes=2) as a, asyncio.TaskGroup() as tasks:
        joining = tasks.create_task(a.next_rendezvous())
        await asyncio.sleep(185.0)
        joining.cancel()
    lines = [line for line in logged(caplog) if "waiting for" in line]
    assert [line.partition(": run")[0] for line in lines] == [
        f"a: waiting for {waited}"
        for waited in ("10 s", "20 s", "30 s", "40 s", "50 s", "60 s", "2 min", "3 min")
    ]
    assert "round 0 gathers 2 nodes, 1 came (1 more needed): a (10 s)" in lines[0]


async def test_in_a_large_run_only_the_first_node_goes_on_to_ask_who_is_missing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    async with asyncio.TaskGroup() as tasks:

        async def wait(name: str) -> None:
            async with node(name, 40) as one:
                await one.next_rendezvous()

        joining = [tasks.create_task(wait(f"n{number:02}")) for number in range(20)]
        await asyncio.sleep(25.0)
        for task in joining:
            task.cancel()
    asked = [line[:3] for line in logged(caplog) if "20 more needed" in line]
    assert (len(asked), asked.count("n00")) == (21, 2)


async def test_joining_the_rank_and_losses_are_in_the_log_at_info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with node("a", 2) as a, node("b", 2) as b:
        await asyncio.gather(a.next_rendezvous(), b.next_rendezvous())
        await b.leave("bored")
        await anext(aiter(a.changes()))
    assert [line for line in logged(caplog) if line.startswith("a:")][:3] == [
        "a: joining run 'job'", "a: round 0: rank 0 of 2", "a: b left: bored",
    ]  # fmt: skip


def block_the_loop(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Has time go by in which the loop ran nothing, as during a long computation in a coroutine."""
    loop = asyncio.get_running_loop()
    before = loop.time
    monkeypatch.setattr(loop, "time", lambda: before() + seconds)


async def test_a_node_whose_loop_was_blocked_for_a_third_of_its_expiry_is_warned(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with node("a") as a:
        await a.next_rendezvous()
        await asyncio.sleep(20.0)
        assert logged(caplog) == []
        block_the_loop(monkeypatch, 9.0)
        await asyncio.sleep(5.0)
    (warning,) = logged(caplog)
    assert warning.startswith("a: its event loop was blocked for ")
    assert "after 15 s of silence it is taken for dead" in warning
    assert "arendezvous.sync, whose heartbeats come from a thread" in warning


async def test_an_eviction_says_that_the_loop_was_blocked(monkeypatch: pytest.MonkeyPatch) -> None:
    async def evicted(_: LocalBackend, name: str, __: int) -> NodeView:
        gone = Departure(ar.Cause.NO_HEARTBEAT, "no heartbeat for 15.0 s", 0, 0.0)
        return NodeView(name, 9, 1, 0, Phase.GONE, gone=gone)

    async with node("a") as a:
        await a.next_rendezvous()
        await asyncio.sleep(20.0)
        block_the_loop(monkeypatch, 20.0)
        monkeypatch.setattr(LocalBackend, "changed", evicted)
        change = await anext(aiter(a.changes()))
    assert isinstance(change, ar.Evicted)
    assert re.fullmatch(r"no heartbeat for 15.0 s; its event loop was blocked for \d+ s", change.reason)

"""Events are kept with what was not said filled in, and cost nothing when nobody listens."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from arendezvous import events
from arendezvous.errors import RendezvousSettingsError
from arendezvous.events import (
    Event,
    NodeState,
    RdzvEvent,
    construct_and_record_rdzv_event,
    recorder,
)
from tests.kit.events_kit import Fragile, event, fresh, last, names, record_rdzv

__all__ = ["fresh"]  # a fixture for every test here, which pytest finds by being in this module


# What an event is


def test_an_event_survives_its_json() -> None:
    given = event("a name", text="ünïcode \ud800 \n", count=1, share=0.5, on=True, nothing=None)

    assert Event.deserialize(given.serialize()) == given
    assert Event.deserialize(given) is given
    assert str(given) == given.serialize()
    assert "\n" not in given.serialize()


def test_a_rendezvous_event_survives_its_json() -> None:
    given = RdzvEvent("f.py:g", "job", "m", "host", 7, NodeState.FAILED, "e:1", 3, 2, "Traceback\n")

    assert RdzvEvent.deserialize(given.serialize()) == given
    assert RdzvEvent.deserialize(given) is given
    assert str(given) == given.serialize()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("{", "the JSON of one Event"),
        ("[" * 100_000, "the JSON of one Event"),
        ("[]", "an object"),
        ('{"source": "AGENT"}', "it has no name"),
        ('{"name": "a", "source": "AGENT", "colour": 1}', "it has an unknown colour"),
        (
            '{"name": "a", "source": "NOBODY"}',
            "source of the event is 'NOBODY', but must be one of AGENT, WORKER",
        ),
        ('{"name": "a", "source": ["AGENT"]}', "source of the event is .* one of AGENT, WORKER"),
        (b"{}", "text with the JSON"),
    ],
)
def test_what_is_not_the_json_of_an_event_is_refused(data: Any, message: str) -> None:
    with pytest.raises(RendezvousSettingsError, match=message):
        Event.deserialize(data)


# History


def test_events_are_kept_in_order_with_a_number_and_a_time() -> None:
    events.record(event("one"))
    events.record_rdzv_event(RdzvEvent("two", "job", "", "", 1, NodeState.INIT))
    record_rdzv(name="three")

    kept = events.history()

    assert names(kept) == ["one", "two", "events_kit.py:three"]
    assert [one.number for one in kept] == [1, 2, 3]
    assert sorted(one.time for one in kept) == [one.time for one in kept]


def test_the_history_keeps_the_last_events_only() -> None:
    events.set_history_size(2)
    for name in "abc":
        events.record(event(name))

    assert names(events.history()) == ["b", "c"]
    events.set_history_size(1)
    assert names(events.history()) == ["c"]


def test_the_history_is_bounded_by_default() -> None:
    for number in range(1001):
        events.record(event(str(number)))

    assert names(events.history()) == [str(number) for number in range(1, 1001)]


def test_a_negative_history_is_refused() -> None:
    with pytest.raises(RendezvousSettingsError, match="size of the event history is -1, but must be 0"):
        events.set_history_size(-1)


def test_what_is_kept_does_not_change_with_the_callers_event() -> None:
    mine = event(count=1)
    events.record(mine)
    mine.name = "other"
    mine.metadata["count"] = 2

    assert events.history()[0].event == event(count=1)


def test_nothing_is_made_into_text_when_nobody_reads_text() -> None:
    events.record_rdzv_event(Fragile("f", "job", "", "", 1, NodeState.INIT))

    assert len(events.history()) == 1


def test_nothing_is_computed_when_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    events.set_history_size(0)
    monkeypatch.setattr(recorder, "RdzvEvent", None)
    monkeypatch.setattr(recorder, "_copy", None)

    record_rdzv()
    events.record(event())
    events.record_rdzv_event(Fragile("f", "job", "", "", 1, NodeState.INIT))

    assert events.history() == []


# What is filled in


def test_the_caller_is_named_by_file_and_function() -> None:
    def joining() -> None:
        record_here("job", "m", NodeState.RUNNING)

    record_here: Callable[..., None] = construct_and_record_rdzv_event
    joining()
    assert last().name == f"{Path(__file__).name}:joining"

    construct_and_record_rdzv_event("job", "m", NodeState.RUNNING, name="Handler.join")
    assert last().name == f"{Path(__file__).name}:Handler.join"


def test_host_and_process_are_filled_in_unless_given() -> None:
    record_rdzv()
    assert (last().hostname, last().pid) == (socket.gethostname(), os.getpid())

    record_rdzv(hostname="node7", pid=42)
    assert (last().hostname, last().pid) == ("node7", 42)


def test_the_rest_is_kept_as_given() -> None:
    record_rdzv("m", NodeState.SUCCEEDED, master_endpoint="host:1", local_id=3, rank=0)

    expected = ("job", "m", NodeState.SUCCEEDED, "host:1", 3, 0, "")
    got = last()
    actual = (
        got.run_id,
        got.message,
        got.node_state,
        got.master_endpoint,
        got.local_id,
        got.rank,
        got.error_trace,
    )
    assert actual == expected


def test_a_failure_has_the_traceback_of_the_exception_that_is_being_handled() -> None:
    nothing: dict[str, str] = {}
    try:
        nothing["the reason"]
    except KeyError:
        record_rdzv(node_state=NodeState.FAILED)
        failed = last().error_trace
        record_rdzv(node_state=NodeState.RUNNING)

    assert failed.startswith("Traceback (most recent call last)")
    assert failed.endswith("KeyError: 'the reason'\n")
    assert last().error_trace == ""

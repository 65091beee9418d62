"""What the tests of events share."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from arendezvous import events
from arendezvous.events import (
    Event,
    EventSource,
    NodeState,
    RdzvEvent,
    construct_and_record_rdzv_event,
    recorder,
)
from arendezvous.events.live import Feed

NAMES = ("null", "console", "dynamic_rendezvous", "mine")


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Gives each test a history and destinations of its own."""
    monkeypatch.setattr(recorder, "_feed", Feed())
    monkeypatch.delenv("ARENDEZVOUS_EVENTS", raising=False)
    monkeypatch.delenv("LOGLEVEL", raising=False)
    recorder._destinations.cache_clear()
    loggers = [logging.getLogger(f"torchelastic-events-{name}") for name in NAMES]
    for logger in loggers:
        logger.propagate = True  # else pytest adds its own handlers to it for the test, and somebody listens
    yield
    recorder._destinations.cache_clear()
    for logger in loggers:
        logger.disabled = False
        for handler in [*logger.handlers]:
            logger.removeHandler(handler)
        for filter_ in [*logger.filters]:
            logger.removeFilter(filter_)


class Kept(logging.Handler):
    """Keeps the text of what it is given."""

    def __init__(self, level: int = logging.NOTSET) -> None:
        super().__init__(level)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


class Broken(logging.Handler):
    """Raises, whatever it is given."""

    def emit(self, record: logging.LogRecord) -> None:
        raise RuntimeError("the collector is down")


class Fragile(RdzvEvent):
    """Fails a test that turns it into text."""

    def serialize(self) -> str:
        raise AssertionError("made into text, though nobody reads text")


def event(name: str = "test", **metadata: Any) -> Event:
    return Event(name, EventSource.AGENT, 12, metadata)


def record_rdzv(message: str = "joined", node_state: NodeState = NodeState.RUNNING, **given: Any) -> None:
    construct_and_record_rdzv_event("job", message, node_state, **given)


def last() -> RdzvEvent:
    recorded = events.history()[-1].event
    assert isinstance(recorded, RdzvEvent)
    return recorded


def names(recorded: list[events.RecordedEvent]) -> list[str]:
    return [one.event.name for one in recorded]

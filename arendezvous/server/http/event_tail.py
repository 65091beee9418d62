"""Keeps what happens to runs in a bounded place, for each stream that tells of it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final, TypeAlias

from aiohttp import web

from arendezvous.coordinator.coordinator import Coordinator
from arendezvous.law.operations import LawEvent

BACKLOG: Final = 4096  # events kept for a reader that is too slow; those beyond are counted


class Gap:
    """Events that are left out.

    Attributes:
        missed: How many; None if nobody knows.
    """

    __slots__ = ("missed",)

    def __init__(self, missed: int | None) -> None:
        self.missed = missed


Entry: TypeAlias = tuple[int, float, LawEvent] | Gap


class EventTail:
    """The events of one run that a stream has still to send, the oldest first.

    Attributes:
        run_id: The run.
        entries: Events with their numbers and times, and gaps where some are left out.
    """

    def __init__(self, coordinator: Coordinator, run_id: str, news: asyncio.Event) -> None:
        self._coordinator = coordinator
        self._news = news
        self.run_id = run_id
        self.entries: deque[Entry] = deque()

    def begin(self, after: int | None) -> None:
        """Puts in what has happened so far.

        Args:
            after: The number of the event that the reader knows already; None if it knows none.
        """
        run = self._coordinator.runs.get(self.run_id)
        latest, history = (0, ()) if run is None else (run.happened, tuple(run.history))
        first = latest - len(history) + 1
        if after is not None and not first - 1 <= after <= latest:
            self.entries.append(Gap(first - 1 - after if 0 <= after < first else None))
            after = None
        for number, (at, event) in enumerate(history, first):
            if after is None or number > after:
                self.entries.append((number, at, event))
        if self.entries:
            self._news.set()

    def push(self, number: int, at: float, event: LawEvent) -> None:
        """Adds an event, or counts it if there are too many."""
        if len(self.entries) < BACKLOG:
            self.entries.append((number, at, event))
        elif isinstance(last := self.entries[-1], Gap) and last.missed is not None:
            last.missed += 1
        else:
            self.entries.append(Gap(1))
        self._news.set()


class RunsTail:
    """The runs that have changed, or are forgotten, since a stream last told of them.

    Args:
        news: Set when there are any.
        only: The one run that matters; None: all of them.
    """

    def __init__(self, news: asyncio.Event, only: str | None = None) -> None:
        self._news = news
        self._only = only
        self.changed: dict[str, None] = {}

    def push(self, run_id: str) -> None:
        """Adds a run."""
        if self._only is not None and run_id != self._only:
            return
        self.changed[run_id] = None
        self._news.set()

    def take(self) -> list[str]:
        """Takes all of them out."""
        changed, self.changed = list(self.changed), {}
        return changed


class EventHub:
    """Hands what happens on to the tails: one observer of the coordinator, and none while nobody listens."""

    def __init__(self, coordinator: Coordinator) -> None:
        self.coordinator = coordinator
        self._by_run: dict[str, set[EventTail]] = {}
        self._runs: set[RunsTail] = set()
        self._stop: tuple[Callable[[], None], ...] = ()

    def follow(self, run_id: str, news: asyncio.Event, after: int | None) -> EventTail:
        """Begins to follow one run; `forget` ends it."""
        tail = EventTail(self.coordinator, run_id, news)
        tail.begin(after)
        self._by_run.setdefault(run_id, set()).add(tail)
        self._observe()
        return tail

    def follow_all(self, news: asyncio.Event, only: str | None = None) -> RunsTail:
        """Begins to follow all runs, or whether the one named changes; `forget` ends it."""
        tail = RunsTail(news, only)
        self._runs.add(tail)
        self._observe()
        return tail

    def forget(self, tail: EventTail | RunsTail) -> None:
        """Ends what `follow` or `follow_all` began."""
        if isinstance(tail, RunsTail):
            self._runs.discard(tail)
        else:
            tails = self._by_run[tail.run_id]
            tails.discard(tail)
            if not tails:
                del self._by_run[tail.run_id]
        if not self._runs and not self._by_run:
            for stop in self._stop:
                stop()
            self._stop = ()

    def _observe(self) -> None:
        if not self._stop:
            coordinator = self.coordinator
            self._stop = (
                coordinator.observe(self._on_event),
                coordinator.observe_forgotten(self._push_run),
            )

    def _on_event(self, run_id: str, now: float, event: LawEvent) -> None:
        for tail in self._by_run.get(run_id, ()):
            tail.push(self.coordinator.runs[run_id].happened, now, event)
        self._push_run(run_id)

    def _push_run(self, run_id: str) -> None:
        for everything in self._runs:
            everything.push(run_id)


HUB: Final = web.AppKey("hub", EventHub)

"""Keeps what happens to runs for the streams that tell of it: once for all of them, and encoded once.

A stream knows how far it has come in what is kept; one that does not read costs nothing more, and is told how
much it has missed once that is kept no longer.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Final, NamedTuple

import msgspec
from aiohttp import web

from arendezvous.coordinator.coordinator import Coordinator
from arendezvous.law.events import LawEvent, NodeDeparted, NodeUpdated
from arendezvous.server.http.stream import event_frame
from arendezvous.server.tcp.answers import run_summary
from arendezvous.wire.http.bodies import STATE, SUMMARY, EventBody, ForgottenBody, ResetBody, StateBody

BACKLOG: Final = 4096  # events of a run that are kept for whoever reads slowly
AT_ONCE: Final = 128  # events that are sent in one piece
FRESH: Final = 0.05  # seconds for which a piece is good for others, too: it says how long ago all of it was
BATCHES: Final = 16  # sets of runs that have changed, kept for whoever reads slowly
UPDATE_INTERVAL: Final = 0.1  # seconds between two of them, however much happens
_AGE: Final = b'"age":0.0,'  # where the time goes that has passed; no text has quotes that are not escaped


@dataclass(slots=True)
class _Entry:
    """One event, by its number in its run, and when it happened.

    `parts` are how it is sent, before and after its age; None before the first who is told of it.
    """

    number: int
    at: float
    event: LawEvent
    parts: tuple[bytes, bytes] | None = None

    def frame(self, run_id: str, server: str, now: float) -> bytes:
        if self.parts is None:
            body = EventBody.of(run_id, self.number, self.at, self.at, self.event)
            frame = event_frame("happened", msgspec.json.encode(body), f"{server}.{self.number}")
            before, _, after = frame.partition(_AGE)
            self.parts = before, after
        return b'%b"age":%.6f,%b' % (self.parts[0], now - self.at, self.parts[1])


class RunEvents:
    """The latest events of a run that somebody follows.

    Attributes:
        entries: The events, the oldest first.
        end: How many there have been.
        followers: How many streams there are.
        idle: What to set at the next event: of streams that have been told everything.
        said: How often a node has said what its state is.
        _states: What each node has said last, as it is sent, with its number; the latest is last.
        _piece: What was sent last: from which event to which, when, and the bytes.
    """

    def __init__(self, hub: EventHub, run_id: str) -> None:
        self.run_id = run_id
        self.entries: deque[_Entry] = deque(maxlen=BACKLOG)
        self.end = 0
        self.followers = 0
        self.idle: set[asyncio.Event] = set()
        self.said = 0
        self._states: OrderedDict[str, tuple[int, bytes]] = OrderedDict()
        self._hub = hub
        self._piece = (0, 0, 0.0, b"")
        run = hub.coordinator.runs.get(run_id)
        if run is not None:
            for node, record in run.state.nodes.items():
                if record.state:
                    self.say(node, record.state)
            for number, (at, event) in enumerate(run.history, run.happened - len(run.history) + 1):
                self.add(number, at, event)

    def add(self, number: int, at: float, event: LawEvent) -> None:
        """Takes in an event."""
        self.entries.append(_Entry(number, at, event))
        self.end += 1
        if isinstance(event, NodeDeparted):
            self._states.pop(event.node, None)
        self._wake()

    def say(self, node: str, state: bytes) -> None:
        """Takes in what a node says of its state."""
        self.said += 1
        body = STATE.encode(StateBody(run_id=self.run_id, node=node, state=state))
        self._states[node] = (self.said, event_frame("state", body))
        self._states.move_to_end(node)
        self._wake()

    def states(self, known: int) -> bytes:
        """Lists what nodes have said since, as it is sent: of each the latest."""
        frames = []
        for number, frame in reversed(self._states.values()):
            if number <= known:
                break
            frames.append(frame)
        return b"".join(reversed(frames))

    def _wake(self) -> None:
        for news in self.idle:
            news.set()
        self.idle.clear()

    def piece(self, first: int, last: int) -> bytes:
        """The events from `first` on, before `last`, as they are sent."""
        now = self._hub.coordinator.clock()
        began, ended, at, piece = self._piece
        if (began, ended) != (first, last) or not at <= now < at + FRESH:
            start = first - (self.end - len(self.entries))
            some = islice(self.entries, start, start + last - first)
            server = self._hub.server_id
            piece = b"".join([entry.frame(self.run_id, server, now) for entry in some])
            self._piece = first, last, now, piece
        return piece


class Known(NamedTuple):
    """Tells what a reader has seen last of a run."""

    number: int  # of the event
    is_elsewhere: bool  # whether another server, or an earlier start of this one, told of it


class RunFollower:
    """How far a stream has come with the events of a run, of which the reader knows those up to `seen`."""

    def __init__(
        self, events: RunEvents, coordinator: Coordinator, news: asyncio.Event, seen: Known | None
    ) -> None:
        self.events = events
        self.news = news
        self._reset: ResetBody | None = None
        run = coordinator.runs.get(events.run_id)
        latest, known = (0, 0) if run is None else (run.happened, len(run.history))
        first = latest - known + 1
        after = None if seen is None else seen.number
        if seen is not None and seen.is_elsewhere:  # that knew no later ones than were recorded
            self._reset = ResetBody(missed=None)
            after = min(seen.number, 0 if run is None else run.recalled)
        if after is not None and not first - 1 <= after <= latest:
            self._reset = self._reset or ResetBody(missed=first - 1 - after if after < first else None)
            after = None
        self._next = events.end - (known if after is None else latest - after)
        self._said = 0
        if self._reset is not None or self._next < events.end or events.said:
            news.set()
        else:
            events.idle.add(news)

    def take(self) -> bytes:
        """Takes some of what the stream is to send next; empty if it has everything."""
        events = self.events
        oldest = events.end - len(events.entries)
        if self._next < oldest:
            self._reset, self._next = ResetBody(missed=oldest - self._next), oldest
        frames = b""
        if self._reset is not None:  # and what comes then, before that is gone as well
            frames, self._reset = event_frame("reset", msgspec.json.encode(self._reset)), None
        if self._next < events.end:
            first, self._next = self._next, min(events.end, self._next + AT_ONCE)
            frames += events.piece(first, self._next)
        if self._said < events.said:
            frames += events.states(self._said)
            self._said = events.said
        if not frames:
            events.idle.add(self.news)
        return frames


class ChangedRuns:
    """Runs that have changed, or are forgotten, in a short while, by their `names`."""

    def __init__(self, names: dict[str, None], coordinator: Coordinator) -> None:
        self.names = names
        self._coordinator = coordinator
        self._frames: dict[str, bytes] = {}

    def frame(self, run_id: str) -> bytes:
        """One of the runs as it is when the first asks, as it is sent."""
        if run_id not in self._frames:
            self._frames[run_id] = self._made(run_id)
        return self._frames[run_id]

    def _made(self, run_id: str) -> bytes:
        run = self._coordinator.runs.get(run_id)
        if run is None:
            return event_frame("forgotten", msgspec.json.encode(ForgottenBody(run_id=run_id)))
        return event_frame("run", SUMMARY.encode(run_summary(run, self._coordinator.clock())))


class ServerFollower:
    """How far a stream has come with the runs that change; `news` is set when some do."""

    def __init__(self, hub: EventHub, news: asyncio.Event) -> None:
        self._hub = hub
        self._news = news
        self._next = hub.batched
        hub.idle.add(news)

    def has_missed(self) -> bool:
        """Whether changes have been missed, that are not missed any more if all runs are told of anew."""
        if self._next >= self._hub.batched - len(self._hub.batches):
            return False
        self._next = self._hub.batched
        return True

    def take(self) -> ChangedRuns | None:
        """Takes the next runs that have changed; None if the stream has everything, or has missed some."""
        hub = self._hub
        if self._next == hub.batched:
            hub.idle.add(self._news)
            return None
        if self._next < hub.batched - len(hub.batches):
            self._news.set()
            return None
        batch = hub.batches[self._next - hub.batched]
        self._next += 1
        return batch


class EventHub:
    """Hands what happens on to those who follow it; observes the coordinator as long as anybody does.

    Attributes:
        server_id: Names this start of the server.
        batches: The latest sets of runs that have changed.
        batched: How many there have been.
        idle: What to set at the next one: of streams of all runs that have been told everything.
        _runs: The runs that are followed one by one.
        _everything: Who follows all runs.
        _changed: The runs that have changed since the last batch.
        _timer: Makes the next batch; None while nothing has changed.
        _batched_at: When the last one was made, by the loop's clock.
        _stop: Ends the observation of the coordinator.
    """

    def __init__(self, coordinator: Coordinator, server_id: str) -> None:
        self.coordinator = coordinator
        self.server_id = server_id
        self.batches: deque[ChangedRuns] = deque(maxlen=BATCHES)
        self.batched = 0
        self.idle: set[asyncio.Event] = set()
        self._runs: dict[str, RunEvents] = {}
        self._everything: set[ServerFollower] = set()
        self._changed: dict[str, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._batched_at = 0.0
        self._stop: tuple[Callable[[], None], ...] = ()

    @contextmanager
    def follow(self, run_id: str, news: asyncio.Event, seen: Known | None) -> Iterator[RunFollower]:
        """Follows one run while the block runs; its reader knows the events up to `seen`."""
        events = self._runs.get(run_id) or self._runs.setdefault(run_id, RunEvents(self, run_id))
        events.followers += 1
        self._observe()
        try:
            yield RunFollower(events, self.coordinator, news, seen)
        finally:
            events.idle.discard(news)
            events.followers -= 1
            if not events.followers:
                del self._runs[run_id]
            self._rest()

    @contextmanager
    def follow_all(self, news: asyncio.Event) -> Iterator[ServerFollower]:
        """Follows all runs while the block runs."""
        follower = ServerFollower(self, news)
        self._everything.add(follower)
        self._observe()
        try:
            yield follower
        finally:
            self._everything.discard(follower)
            self._rest()

    def _rest(self) -> None:
        """Keeps nothing, and observes nothing, that nobody follows."""
        if not self._everything:
            self.batches.clear()
            self.idle.clear()
            self._changed.clear()
        if not self._everything and not self._runs:
            self.close()

    def close(self) -> None:
        """Stops the timer, and the observation of the coordinator."""
        for stop in self._stop:
            stop()
        self._stop = ()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _observe(self) -> None:
        if not self._stop:
            coordinator = self.coordinator
            self._stop = (
                coordinator.observe(self._on_event),
                coordinator.observe(self._on_update, NodeUpdated),
                coordinator.retention.observe(self._push_run),
            )

    def _on_event(self, run_id: str, now: float, event: LawEvent) -> None:
        events = self._runs.get(run_id)
        if events is not None:
            events.add(self.coordinator.runs[run_id].happened, now, event)
        self._push_run(run_id)

    def _on_update(self, run_id: str, _: float, event: LawEvent) -> None:
        events = self._runs.get(run_id)
        if events is not None and isinstance(event, NodeUpdated):
            events.say(event.node, event.state)

    def _push_run(self, run_id: str) -> None:
        if not self._everything:
            return
        self._changed[run_id] = None
        if self._timer is None:
            loop = asyncio.get_running_loop()
            due = max(loop.time(), self._batched_at + UPDATE_INTERVAL)
            self._timer = loop.call_at(due, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        changed, self._changed = self._changed, {}
        self._batched_at = asyncio.get_running_loop().time()
        self.batches.append(ChangedRuns(changed, self.coordinator))
        self.batched += 1
        for news in self.idle:
            news.set()
        self.idle.clear()


HUB: Final = web.AppKey("hub", EventHub)

"""Group commit: what changes in one turn of the event loop is recorded in one batch of the journal.

Whoever has something to record is a `Recorder`. It says that there is something (`Commits.note`) and is asked
for it when the turn is over, all of it at once; what comes while a batch is under way goes into the next one.
A commit that fails is made again, with whatever is to be recorded by then, until it succeeds.
"""

from __future__ import annotations

import logging
import time
from asyncio import AbstractEventLoop, Event, Handle, TimerHandle
from collections.abc import Callable
from typing import Final, Protocol, TypeAlias

import anyio

from arendezvous.coordinator.journal import Batch, Journal
from arendezvous.net.backoff import Backoff

logger = logging.getLogger(__name__)

Callback: TypeAlias = Callable[[], None]

BACKOFF: Final = Backoff(first=0.05, last=2.0)
CLOSING: Final = 2.0  # seconds for what is still to be recorded when a server ends


class Recorder(Protocol):
    """Has something to record. None of its methods may raise."""

    def collect(self, batch: Batch) -> None:
        """Adds all that is not known to be recorded, as it is now."""

    def recorded(self) -> None:
        """Notes that what it added last is recorded."""

    def failed(self, why: str) -> None:
        """Notes that what it added last may not be recorded; it is to be added again."""


class Commits:
    """The commits of one server to its journal, which is open, one after the other.

    Attributes:
        obstacle: Why the latest commit has failed; empty if it has not.
        failing_since: Since when commits fail, in seconds of the wall clock; None if they do not.

    Its other fields:
        _recorders: Who has something to record.
        _next: The commit that is to come; None: there is none, or it comes after the one under way.
        _gathers: Whether something has changed that is in no batch yet.
        _is_under_way: Whether a batch is being committed.
        _waiting: What to call, in order, once the batch that gathers is recorded.
        _sent: The same for the batch under way.
        _is_closed: Whether nobody is told any more.
    """

    def __init__(self, journal: Journal, loop: AbstractEventLoop) -> None:
        self.obstacle = ""
        self.failing_since: float | None = None
        self._journal = journal
        self._loop = loop
        self._recorders: list[Recorder] = []
        self._pauses = BACKOFF.start()
        self._next: Handle | None = None
        self._gathers = False
        self._is_under_way = False
        self._is_closed = False
        self._waiting: dict[Callback, None] = {}
        self._sent: dict[Callback, None] = {}

    def add(self, recorder: Recorder) -> None:
        """Asks `recorder` from now on, after those that are there."""
        self._recorders.append(recorder)

    def note(self) -> None:
        """Has what is to be recorded committed when this turn of the event loop is over."""
        if not self._gathers and not self._is_closed:
            self._gathers = True
            if not self._is_under_way and self._next is None:
                self._next = self._loop.call_soon(self._commit)

    def hurry(self) -> None:
        """Begins the commit that is to come with this turn of the event loop, if there is one."""
        if self._next is not None and not isinstance(self._next, TimerHandle):
            self._next.cancel()
            self._commit()

    @property
    def is_clean(self) -> bool:
        """Whether all that was noted is recorded."""
        return not (self._gathers or self._is_under_way)

    @property
    def is_recording(self) -> bool:
        """Whether something is being recorded right now, and nothing has kept it from that."""
        return not (self.is_clean or self.obstacle)

    def when_recorded(self, callback: Callback) -> None:
        """Calls `callback` once all that was noted up to now is recorded; at once, if it is."""
        if self._gathers:
            self._waiting[callback] = None
        elif self._is_under_way:
            self._sent[callback] = None
        else:
            callback()

    def settle(self, callback: Callable[[bool], None], within: float) -> None:
        """Calls `callback` once with whether all that was noted up to now is recorded.

        That is as soon as it is, or after `within` seconds if it is not; nothing is kept of it from then on.
        """
        if self.is_clean:
            callback(True)
            return

        def on_recorded() -> None:
            timer.cancel()
            callback(True)

        def on_timer() -> None:
            for waiting in (self._waiting, self._sent):
                waiting.pop(on_recorded, None)
            callback(False)

        timer = self._loop.call_later(within, on_timer)
        self.when_recorded(on_recorded)

    async def recorded(self) -> None:
        """Returns once all that was noted up to now is recorded. Cancellation: safe."""
        event = Event()
        self.when_recorded(event.set)
        await event.wait()

    async def finish(self) -> None:
        """Waits until all is recorded, `CLOSING` seconds at most, and commits no more then.

        Cancellation: commits no more.
        """
        try:
            with anyio.move_on_after(CLOSING):
                await self.recorded()
        finally:
            self.close()

    def close(self) -> None:
        """Commits no more; what is under way may still be made."""
        self._is_closed = True
        if self._next is not None:
            self._next.cancel()

    def _commit(self) -> None:
        self._next = None
        self._gathers, self._is_under_way = False, True
        self._sent, self._waiting = self._waiting, {}
        batch = Batch()
        for recorder in self._recorders:
            recorder.collect(batch)
        if batch.changes:
            self._journal.commit(batch, self._done)
        else:
            self._done(None)

    def _done(self, error: Exception | None) -> None:
        if self._is_closed:
            return
        if error is not None:
            self._is_under_way = False
            self._fail(str(error))
            return
        if self.obstacle:
            logger.warning("%s: records again", self._journal.name)
            self.obstacle, self.failing_since = "", None
            self._pauses.reset()
        for recorder in self._recorders:  # what they note goes into the next batch
            recorder.recorded()
        self._is_under_way = False
        sent, self._sent = self._sent, {}
        for callback in sent:
            try:
                callback()
            except Exception:
                logger.exception("%s: telling of what is recorded failed", self._journal.name)
        if self._gathers and self._next is None:
            self._next = self._loop.call_soon(self._commit)

    def _fail(self, why: str) -> None:
        if not self.obstacle:
            logger.error("%s; what is agreed is told once it is recorded, which is tried again", why)
            self.failing_since = time.time()
        self.obstacle = why
        self._waiting, self._sent = self._sent | self._waiting, {}
        self._gathers = True  # so that whatever is noted now waits for the next attempt, too
        for recorder in self._recorders:
            recorder.failed(why)
        self._next = self._loop.call_later(self._pauses.next(), self._commit)

"""Events as data: the bounded history, and streams of what is recorded now.

Events may be recorded in any thread. A stream is read in one event loop and is woken by it, never polls.
"""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, suppress

import anyio
import anyio.lowlevel

from arendezvous.errors import RendezvousSettingsError
from arendezvous.events.api import AnyEvent, RecordedEvent

HISTORY_SIZE = 1000
BUFFER_SIZE = 1000


class EventStream(AsyncIterator[RecordedEvent], AbstractAsyncContextManager["EventStream"]):
    """Events as they are recorded, from the moment the stream was made; see `stream`.

    Iterate over it, alone or inside ``async with``. It takes no more events once it is closed, or dropped.

    Attributes:
        dropped: How many events this stream has missed because its reader was too slow, or because the
            history no longer had them; the gaps in `RecordedEvent.number` show where.
    """

    def __init__(self, lock: threading.RLock, buffer: int) -> None:
        self._lock = lock
        self._buffer: deque[RecordedEvent] = deque(maxlen=buffer)
        self._waiter: asyncio.Future[None] | None = None
        self._closed = False
        self.dropped = 0

    async def __anext__(self) -> RecordedEvent:
        """Waits for the next event; cancel-safe: a cancelled call takes no event out of the stream.

        Raises:
            anyio.BusyResourceError: Another task is waiting on this stream; give each task its own.
        """
        await anyio.lowlevel.checkpoint()
        while True:
            with self._lock:
                if self._buffer:
                    return self._buffer.popleft()
                if self._closed:
                    raise StopAsyncIteration
                if self._waiter is not None:
                    raise anyio.BusyResourceError("waiting on")
                waiter = self._waiter = asyncio.get_running_loop().create_future()
            try:
                await waiter
            finally:
                self._waiter = None

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Ends the stream; what is in the buffer can still be read. Never waits, so cannot be cancelled."""
        with self._lock:
            self._closed = True
            self._wake()

    def push(self, events: Iterable[RecordedEvent]) -> None:
        """Adds events, dropping the oldest when the buffer is full. The lock must be held."""
        if self._closed:
            return
        for event in events:
            self.dropped += len(self._buffer) == self._buffer.maxlen
            self._buffer.append(event)
        self._wake()

    def _wake(self) -> None:
        if (waiter := self._waiter) is not None and not waiter.done():
            # Also from the loop's own thread, which may be in a signal handler while the loop sleeps.
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                waiter.get_loop().call_soon_threadsafe(_finish, waiter)


def _finish(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class Feed:
    """Keeps what was recorded, and tells whoever follows."""

    def __init__(self, size: int = HISTORY_SIZE) -> None:
        # Reentrant: a signal handler or a finalizer may record an event while its thread is in here.
        self._lock = threading.RLock()
        self._history: deque[RecordedEvent] = deque(maxlen=size)
        self._streams: tuple[weakref.ref[EventStream], ...] = ()
        self._number = 0

    @property
    def wanted(self) -> bool:
        """Whether anything is kept: there is a history, or a stream."""
        return bool(self._streams or self._history.maxlen)

    def publish(self, event: AnyEvent) -> None:
        """Keeps `event` and hands it to every stream."""
        with self._lock:
            self._number += 1
            recorded = RecordedEvent(self._number, time.time(), event)
            self._history.append(recorded)
            for reference in self._streams:
                if (stream := reference()) is not None:
                    stream.push((recorded,))

    def history(self) -> list[RecordedEvent]:
        """Returns the events that are kept, oldest first."""
        with self._lock:
            return list(self._history)

    def resize(self, size: int) -> None:
        """Keeps the last `size` events from now on."""
        if size < 0:
            raise RendezvousSettingsError.of("size of the event history", size, "0 or a positive integer")
        with self._lock:
            self._history = deque(self._history, maxlen=size)

    def stream(self, buffer: int, after: int | None) -> EventStream:
        """Makes a stream, filled with the part of the history that follows number `after`."""
        if buffer < 1:
            raise RendezvousSettingsError.of("buffer of an event stream", buffer, "a positive integer")
        if after is not None and after < 0:
            raise RendezvousSettingsError.of("after", after, "the number of an event, 0 for all, or None")
        stream = EventStream(self._lock, buffer)
        with self._lock:
            if after is not None:
                past = [recorded for recorded in self._history if recorded.number > after]
                first = past[0].number if past else self._number + 1
                stream.dropped = max(0, first - after - 1)
                stream.push(past)
            self._streams += (weakref.ref(stream, self._forget),)
        return stream

    def _forget(self, reference: weakref.ref[EventStream]) -> None:
        with self._lock:
            self._streams = tuple(other for other in self._streams if other is not reference)

    def after_fork(self) -> None:
        """Drops in a forked child what belongs to the parent's threads and loops."""
        self._lock = threading.RLock()
        self._streams = ()

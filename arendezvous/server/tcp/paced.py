"""A connection that takes turns with others, and is not read while its peer does not read."""

from __future__ import annotations

import abc
import asyncio
from typing import cast

from arendezvous.net.shared_buffer import SharedBufferProtocol
from arendezvous.server.access.admission import ProtocolCounts
from arendezvous.server.tcp.outlet import Outlet
from arendezvous.server.tcp.sharing import SHARE, Shared


class PacedConnection(SharedBufferProtocol, abc.ABC):
    """One connection of a server, whatever it speaks.

    What comes is served at once, up to a limit; what is left, and what is to be sent of a long answer, by
    turns. Meanwhile nothing is read, so that nothing piles up; nor as long as the peer does not read.

    Attributes:
        traffic: Where the bytes that are sent are counted; to be set before the connection is made.

    Its other fields:
        _peer: The other end, for the log.
        _transport: None before the connection is made, and once it is over or given up.
        _outlet: What the peer is sent; made with the connection.
        _timeout: Seconds that the peer has to greet.
        _deadline: When that is over; None once it has greeted, or is gone.
        _is_queued: Whether it waits for its turn.
        _is_paused: Whether nothing is read.
    """

    def __init__(self, shared: Shared, peer: str, timeout: float) -> None:
        self.traffic = ProtocolCounts()
        self._shared = shared
        self._peer = peer
        self._transport: asyncio.Transport | None = None
        self._outlet: Outlet
        self._timeout = timeout
        self._deadline: asyncio.TimerHandle | None = None
        self._is_queued = False
        self._is_paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begins to serve."""
        self._transport = cast(asyncio.Transport, transport)
        self._outlet = Outlet(self._transport, self.traffic)
        self._deadline = asyncio.get_running_loop().call_later(self._timeout, self._too_late)
        self._transport.set_write_buffer_limits(1, 0)  # so that it tells whenever something is left
        if self._transport.get_write_buffer_size() > 1:  # of a handshake or a login; it may have told of that
            self.pause_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends."""
        self._transport = None
        self._has_greeted()
        self._outlet.close()
        self._shared.unread.free(self)

    def pause_writing(self) -> None:
        """The peer does not read: it is not read either."""
        self._outlet.stall()
        self._shared.unread.keep(self, self._outlet.kept)
        self._hold()

    def resume_writing(self) -> None:
        """The peer has read everything: goes on when it is its turn."""
        self._outlet.flow()
        self._shared.unread.free(self)
        self._queue()

    def drop(self, why: str) -> None:
        """Breaks off the connection, for which too much is kept; somebody else may be being served."""
        self._shared.throttle.dropped(self._peer, why)
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()  # and `connection_lost` follows

    def work(self) -> int:
        """Goes on with a long answer, and then with what has come."""
        self._is_queued = False
        outlet, units = self._outlet, 0
        if self._transport is None or outlet.is_stalled or outlet.held is not None:
            return 0
        if not outlet.is_free:
            units = outlet.pump()
        if not outlet.is_free:
            self._queue()
            return units
        return units + self._serve(SHARE)

    @abc.abstractmethod
    def _serve(self, most: int) -> int:
        """Serves what has come, unless the outlet is busy: about `most` units of work; returns how many.

        Must call `_queue` if there is more, or a long answer was begun, else `_read_on`.
        """

    @abc.abstractmethod
    def _too_late(self) -> None:
        """Is called if the peer has not greeted in time."""

    def _has_greeted(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _write(self, data: bytes) -> None:
        """Sends what is short, whether the peer reads or not."""
        if self._transport is not None:
            self._outlet.write(data)
            if self._outlet.is_stalled:
                self._shared.unread.keep(self, self._outlet.kept)

    def _may_read(self) -> bool:
        """Whether nothing else is in the way of reading on."""
        return True

    def _hold(self) -> None:
        """Reads no more for now."""
        if self._transport is not None and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()

    def _queue(self) -> None:
        """Reads no more until its next turn."""
        if self._transport is not None and not self._is_queued:
            self._hold()
            self._is_queued = True
            self._shared.turns.queue(self.work)

    def _read_on(self) -> None:
        """Reads again, unless something is in the way."""
        free = self._outlet.is_free and not self._is_queued
        if self._transport is not None and self._is_paused and free and self._may_read():
            self._is_paused = False
            self._transport.resume_reading()

    def _end(self) -> None:
        """Closes the connection, once the peer has what was sent, if it reads."""
        transport, self._transport = self._transport, None
        if transport is not None:
            if self._outlet.is_free:
                transport.close()
            else:
                transport.abort()
            self._outlet.close()

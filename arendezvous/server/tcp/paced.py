"""A connection that takes turns with others, and is not read while its peer does not read."""

from __future__ import annotations

import abc
import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, cast

from arendezvous.keyspace.values import PIECE, Pieces
from arendezvous.net.shared_buffer import SharedBufferProtocol
from arendezvous.server.access.admission import ProtocolCounts
from arendezvous.server.binding import peer_name
from arendezvous.server.tcp.sharing import SHARE, Shared

UNIT: Final = 8192  # bytes that cost about as much to send as the simplest request

Buffer = bytes | memoryview


@dataclass(slots=True)
class LongAnswer:
    """Keeps what is left of a long answer that is under way."""

    pieces: Iterator[Buffer]  # an empty one says that the next one takes its time to make
    size: int  # bytes that it takes, besides what it shares with the store
    units: int = 0  # of work that it takes to make one piece
    end: Callable[[], None] = lambda: None  # is called when it is over, or given up
    after: list[bytes] = field(default_factory=list)  # what is to be sent after it


class Outlet:
    """Sends what goes out on one connection, in order.

    As soon as the kernel does not take any more, the connection is stalled: no more requests of this peer
    should be read.

    Attributes:
        held: What waits to be sent until it may be; None: nothing has to wait.
        is_free: Whether something can be sent at once, and the peer reads what it is sent.
        is_stalled: Whether the peer has to read before more can be sent.
        _long: The long answer that is under way; None: there is none.
        _traffic: Where the bytes are counted.
    """

    __slots__ = ("_long", "_traffic", "_transport", "held", "is_free", "is_stalled")

    def __init__(self, transport: asyncio.Transport, traffic: ProtocolCounts) -> None:
        self.held: list[bytes | LongAnswer] | None = None
        self.is_free = True
        self.is_stalled = False
        self._traffic = traffic
        self._transport = transport
        self._long: LongAnswer | None = None

    def write(self, data: bytes) -> None:
        """Sends something short, after the long answer that is under way, if there is one."""
        if self.held is not None:
            self.held.append(data)
            return
        if self._long is not None:
            self._long.after.append(data)
            return
        self._traffic.sent += len(data)
        self._transport.write(data)

    def begin(self, answer: LongAnswer) -> None:
        """Begins a long answer, which `pump` sends; there must be none under way."""
        self.is_free = False
        if self.held is not None:
            self.held.append(answer)
        else:
            self._long = answer

    def hold(self) -> None:
        """Sends nothing before `release`; there must be no long answer under way."""
        self.held, self.is_free = [], False

    def release(self) -> None:
        """Sends what was held, in order."""
        held, self.held = self.held or [], None
        self.is_free = not self.is_stalled
        for one in held:
            if isinstance(one, LongAnswer):
                self.begin(one)
            else:
                self.write(one)

    def pump(self) -> int:
        """Sends some of the long answer, if there is one; returns how many units of work that was."""
        answer = self._long
        if answer is None:
            return 0
        units, each = 0, 1 + answer.units
        for piece in answer.pieces:
            units += each + len(piece) // UNIT
            self._traffic.sent += len(piece)
            self._transport.write(piece)
            if self.is_stalled or units >= SHARE:
                break
        else:
            self._long, self.is_free = None, not self.is_stalled
            answer.end()
            if answer.after:
                self.write(b"".join(answer.after))
        return units

    def stall(self) -> None:
        """Takes in that the peer does not read any more."""
        self.is_stalled, self.is_free = True, False

    def flow(self) -> None:
        """Takes in that the peer has read all that was written."""
        self.is_stalled, self.is_free = False, self._long is None and self.held is None

    def close(self) -> None:
        """Gives up whatever is under way, as the connection is over; may be called again."""
        under_way = (self._long, *(self.held or ()))
        self.is_free, self._long, self.held = False, None, None
        for one in under_way:
            if isinstance(one, LongAnswer):
                one.end()

    @property
    def kept(self) -> int:
        """The bytes that are kept until the peer has read them."""
        kept = self._transport.get_write_buffer_size()
        if self._long is not None:
            kept += self._long.size + sum(map(len, self._long.after))
        return kept


def cut(value: bytes | Pieces, size: int = PIECE) -> Iterator[memoryview]:
    """Cuts a value into pieces of at most `size` bytes, without copying it."""
    for part in (value,) if isinstance(value, bytes) else value.parts:
        view = memoryview(part)
        for start in range(0, len(view), size):
            yield view[start : start + size]


class PacedConnection(SharedBufferProtocol, abc.ABC):
    """One connection of a server, whatever it speaks.

    What comes is served at once, up to a limit; what is left, and what is to be sent of a long answer, by
    turns. Meanwhile nothing is read, so that nothing piles up; nor as long as the peer does not read.

    Attributes:
        traffic: Where the bytes that are sent are counted; to be set before the connection is made.
        _peer: The other end, for the log.
        _transport: None before the connection is made, and once it is over or given up.
        _outlet: What the peer is sent; made with the connection.
        _timeout: Seconds that the peer has to greet.
        _deadline: When that is over; None once it has greeted, or is gone.
        _is_queued: Whether it waits for its turn.
        _is_paused: Whether nothing is read.
    """

    def __init__(self, shared: Shared, timeout: float) -> None:
        self.traffic = ProtocolCounts()
        self._shared = shared
        self._peer = "?"
        self._transport: asyncio.Transport | None = None
        self._outlet: Outlet
        self._timeout = timeout
        self._deadline: asyncio.TimerHandle | None = None
        self._is_queued = False
        self._is_paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begins to serve."""
        self._transport = cast(asyncio.Transport, transport)
        self._peer = peer_name(transport)
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

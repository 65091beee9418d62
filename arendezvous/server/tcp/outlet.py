"""The way out of one connection: what is short at once, what is long piece by piece, as the peer reads it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from arendezvous.keyspace.values import PIECE, Pieces
from arendezvous.server.access.admission import ProtocolCounts
from arendezvous.server.tcp.sharing import SHARE

UNIT: Final = 8192  # bytes that cost about as much to send as the simplest request

Buffer = bytes | memoryview


@dataclass(slots=True)
class LongAnswer:
    """Keeps what is left of a long answer that is under way.

    Attributes:
        pieces: The answer; an empty piece says that the next one takes its time to make.
        size: Bytes that it takes, besides what it shares with the store.
        units: Of work that it takes to make one piece.
        end: Is called when it is over, or given up.
        after: What is to be sent after it.
    """

    pieces: Iterator[Buffer]
    size: int
    units: int = 0
    end: Callable[[], None] | None = None
    after: list[bytes] = field(default_factory=list)


class Outlet:
    """Sends what goes out on one connection, in order.

    As soon as the kernel does not take any more, the connection is stalled: no more requests of this peer
    should be read.

    Attributes:
        held: What waits to be sent until it may be; None: nothing has to wait.
        is_free: Whether something can be sent at once, and the peer reads what it is sent.
        is_stalled: Whether the peer has to read before more can be sent.

    Its other fields:
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
        if self._long is None:
            return 0
        units, each = 0, 1 + self._long.units
        for piece in self._long.pieces:
            units += each + len(piece) // UNIT
            self._traffic.sent += len(piece)
            self._transport.write(piece)
            if self.is_stalled or units >= SHARE:
                break
        else:
            self._finish()
        return units

    def stall(self) -> None:
        """The peer does not read any more."""
        self.is_stalled, self.is_free = True, False

    def flow(self) -> None:
        """The peer has read all that was written."""
        self.is_stalled, self.is_free = False, self._long is None and self.held is None

    def close(self) -> None:
        """The connection is over, whatever is under way; may be called again."""
        self.is_free = False
        answer, self._long = self._long, None
        if answer is not None and answer.end is not None:
            answer.end()
        for one in self.held or ():
            if isinstance(one, LongAnswer) and one.end is not None:
                one.end()
        self.held = None

    def _finish(self) -> None:
        answer, self._long = self._long, None
        self.is_free = not self.is_stalled
        if answer is not None and answer.end is not None:
            answer.end()
        if answer is not None and answer.after:
            self.write(b"".join(answer.after))

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

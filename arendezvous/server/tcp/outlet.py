"""The way out of one connection: what is short at once, what is long piece by piece, as the peer reads it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from arendezvous.server.access.ledger import Account, Debtor
from arendezvous.server.counts import DoorCounts

PIECE: Final = 64 * 1024  # bytes; what is longer is sent in pieces of that size
ROOM: Final = 256 * 1024  # bytes of a long answer that are written before others get their turn
UNIT: Final = 4096  # bytes that cost about as much as the simplest request
LEAST: Final = 256  # bytes that a piece counts for at least

Buffer = bytes | memoryview


@dataclass(slots=True)
class LongAnswer:
    """What is left of a long answer that is under way.

    Attributes:
        pieces: The answer; an empty piece says that the next one takes its time to make.
        size: Bytes that it takes, besides what it shares with the store.
        end: Is called when it is over, or given up.
        after: What is to be sent after it.
    """

    pieces: Iterator[Buffer]
    size: int
    end: Callable[[], None]
    after: list[bytes] = field(default_factory=list)


class Outlet:
    """What is sent on one connection, in order.

    As soon as the kernel does not take any more, the connection is stalled: nothing more should be asked of
    the server by this peer, and what is kept for it is noted in the ledger.

    Args:
        transport: The connection.
        unread: Where it is noted what is kept for those who do not read.
        debtor: Whom the ledger drops.
        traffic: Where the bytes are counted.

    Attributes:
        held: What waits to be sent until it may be; None: nothing has to wait.
        is_free: Whether something can be sent at once, and the peer reads what it is sent.
        is_stalled: Whether the peer has to read before more can be sent.

    Its other fields:
        _long: The long answer that is under way; None: there is none.
    """

    __slots__ = ("_debtor", "_long", "_transport", "_unread", "held", "is_free", "is_stalled", "traffic")

    def __init__(
        self, transport: asyncio.Transport, unread: Account, debtor: Debtor, traffic: DoorCounts
    ) -> None:
        transport.set_write_buffer_limits(1, 0)  # so that it tells whenever something is left
        self.held: list[bytes | LongAnswer] | None = None
        self.is_free = True
        self.is_stalled = False
        self.traffic = traffic
        self._transport = transport
        self._unread = unread
        self._debtor = debtor
        self._long: LongAnswer | None = None

    def write(self, data: bytes) -> None:
        """Sends something short, after the long answer that is under way, if there is one."""
        if self.held is not None:
            self.held.append(data)
            return
        if self._long is not None:
            self._long.after.append(data)
            return
        self.traffic.sent += len(data)
        self._transport.write(data)
        if self.is_stalled:
            self._note()

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
        room = ROOM
        for piece in self._long.pieces:
            room -= max(len(piece), LEAST)
            self.traffic.sent += len(piece)
            self._transport.write(piece)
            if self.is_stalled or room <= 0:
                break
        else:
            self._finish()
        return 1 + (ROOM - room) // UNIT

    def stall(self) -> None:
        """The peer does not read any more."""
        self.is_stalled, self.is_free = True, False
        self._note()

    def flow(self) -> None:
        """The peer has read all that was written."""
        self.is_stalled, self.is_free = False, self._long is None and self.held is None
        self._unread.free(self._debtor)

    def close(self) -> None:
        """The connection is over, whatever is under way; may be called again."""
        self.is_free = False
        self._unread.free(self._debtor)
        answer, self._long = self._long, None
        if answer is not None:
            answer.end()
        for one in self.held or ():
            if isinstance(one, LongAnswer):
                one.end()
        self.held = None

    def _finish(self) -> None:
        answer, self._long = self._long, None
        self.is_free = not self.is_stalled
        if answer is not None:
            answer.end()
            if answer.after:
                self.write(b"".join(answer.after))

    def _note(self) -> None:
        kept = self._transport.get_write_buffer_size()
        if self._long is not None:
            kept += self._long.size + sum(map(len, self._long.after))
        self._unread.keep(self._debtor, kept)

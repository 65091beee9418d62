"""The reader's side of server-sent events, see https://html.spec.whatwg.org/multipage/server-sent-events.html."""

from __future__ import annotations

from typing import Final

import msgspec

from arendezvous.wire.native.messages import FrameError

MAX_EVENT: Final = 16 * 1024 * 1024  # bytes: a list of 1000 runs is far smaller


class ServerEvent(msgspec.Struct, frozen=True):
    """One event."""

    name: str  # its kind; ``message`` if it says none
    data: bytes  # its data
    id: str  # the id that was sent last, with this event or an earlier one


class EventParser:
    """Cuts a stream of bytes into events of at most `limit` bytes, however they are cut; sans-I/O."""

    def __init__(self, limit: int = MAX_EVENT) -> None:
        self._limit = limit
        self._buffer = bytearray()  # what has come of a line that is not complete
        self._name = ""  # the name of the event that is not complete; empty: it has said none
        self._data: list[bytes] = []  # the lines of its data
        self._size = 0  # how many bytes they have
        self._id = ""  # the id that was sent last

    def feed(self, data: bytes) -> list[ServerEvent]:
        """Takes bytes; returns the events that are complete now; comments are none.

        Raises `FrameError` if one is too long; the parser must not be fed any more.
        """
        end = data.rfind(b"\n") + 1  # what came before it is known to hold no end of a line
        kept = len(self._buffer)
        self._buffer += data
        if len(self._buffer) + self._size > self._limit:
            raise FrameError(f"an event of more than {self._limit} bytes")
        if not end:
            return []
        rest = data[end:]
        del self._buffer[kept + end :]
        lines = bytes(self._buffer).split(b"\n")
        self._buffer = bytearray(rest)
        found = (self._take(line.removesuffix(b"\r")) for line in lines[:-1])
        return [event for event in found if event is not None]

    def _take(self, line: bytes) -> ServerEvent | None:
        if not line:
            found = (
                ServerEvent(self._name or "message", b"\n".join(self._data), self._id) if self._data else None
            )
            self._name, self._data, self._size = "", [], 0
            return found
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
            self._size += len(line)
        elif field == b"event":
            self._name = value.decode(errors="replace")
        elif field == b"id":
            self._id = value.decode(errors="replace")
        return None

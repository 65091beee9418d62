"""Counts what a server's connections carry: frames, bytes, reads and writes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec

from arendezvous.wire.native.messages import HEADER, PREFACE


class TrafficCounts(msgspec.Struct):
    """Holds what went over all connections of a server, as the server sees it.

    Attributes:
        frames_in: Messages received.
        frames_out: Messages sent.
        bytes_in: Bytes received.
        bytes_out: Bytes sent.
        reads: Times that bytes came.
        writes: Times that bytes were handed to a transport.
    """

    frames_in: int = 0
    frames_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    reads: int = 0
    writes: int = 0

    def __sub__(self, other: TrafficCounts) -> TrafficCounts:
        mine, theirs = msgspec.structs.astuple(self), msgspec.structs.astuple(other)
        return TrafficCounts(*(a - b for a, b in zip(mine, theirs, strict=True)))


class FrameCount:
    """Counts the frames that begin in a stream of the native protocol.

    Args:
        skip: Bytes before the first frame.
    """

    __slots__ = ("_header", "_skip")

    def __init__(self, skip: int = 0) -> None:
        self._skip = skip
        self._header = b""

    def count(self, data: bytes) -> int:
        """Takes the bytes that come next; returns how many frames began in it."""
        position, end, frames = 0, len(data), 0
        while position < end:
            if self._skip:
                step = min(self._skip, end - position)
                self._skip -= step
                position += step
                continue
            missing = HEADER - len(self._header)
            self._header += data[position : position + missing]
            position += missing
            if len(self._header) == HEADER:
                self._skip = int.from_bytes(self._header, "big")
                self._header = b""
                frames += 1
        return frames


class CountingTransport(asyncio.Transport):
    """Counts what is written to a transport, and passes everything on to it: `inner`."""

    def __init__(self, inner: asyncio.Transport, counts: TrafficCounts) -> None:
        super().__init__()
        self._inner = inner
        self._counts = counts
        self._frames = FrameCount()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Counts `data` and writes it."""
        self._counts.writes += 1
        self._counts.bytes_out += len(data)
        self._counts.frames_out += self._frames.count(bytes(data))
        self._inner.write(data)

    def writelines(self, list_of_data: Any) -> None:
        """Counts it as one write."""
        self.write(b"".join(list_of_data))

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Asks `inner`."""
        return self._inner.get_extra_info(name, default)

    def is_closing(self) -> bool:
        """Asks `inner`."""
        return self._inner.is_closing()

    def close(self) -> None:
        """Closes `inner`."""
        self._inner.close()

    def abort(self) -> None:
        """Aborts `inner`."""
        self._inner.abort()

    def pause_reading(self) -> None:
        """Tells `inner`."""
        self._inner.pause_reading()

    def resume_reading(self) -> None:
        """Tells `inner`."""
        self._inner.resume_reading()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Tells `inner`."""
        self._inner.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        """Asks `inner`."""
        return self._inner.get_write_buffer_size()


class CountingProtocol(asyncio.Protocol):
    """Counts what a connection receives, and passes everything on to its protocol: `inner`."""

    def __init__(self, inner: asyncio.BaseProtocol, counts: TrafficCounts) -> None:
        self._inner = inner
        self._counts = counts
        self._frames = FrameCount(len(PREFACE))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Puts a counting transport between."""
        assert isinstance(transport, asyncio.Transport)
        self._inner.connection_made(CountingTransport(transport, self._counts))

    def data_received(self, data: bytes) -> None:
        """Counts `data` and hands it on, into the protocol's own buffer if it has one."""
        self._counts.reads += 1
        self._counts.bytes_in += len(data)
        self._counts.frames_in += self._frames.count(data)
        deliver(self._inner, data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Passes it on."""
        self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        """Passes it on."""
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """Passes it on."""
        self._inner.resume_writing()


def deliver(protocol: asyncio.BaseProtocol, data: bytes) -> None:
    """Hands `data` to a protocol as a transport does."""
    if isinstance(protocol, asyncio.Protocol):
        protocol.data_received(data)
        return
    assert isinstance(protocol, asyncio.BufferedProtocol)
    while data:
        buffer = memoryview(protocol.get_buffer(len(data))).cast("B")
        size = min(len(buffer), len(data))
        buffer[:size] = data[:size]
        protocol.buffer_updated(size)
        data = data[size:]


class CountingLoop(asyncio.SelectorEventLoop):
    """Runs an event loop that counts what the connections of its servers carry.

    Attributes:
        counts: So far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts = TrafficCounts()

    async def create_server(
        self, protocol_factory: Callable[[], asyncio.BaseProtocol], *args: Any, **options: Any
    ) -> asyncio.Server:
        """Makes a server whose connections are counted."""
        return await super().create_server(
            lambda: CountingProtocol(protocol_factory(), self.counts), *args, **options
        )

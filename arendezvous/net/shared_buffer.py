"""Reading from sockets into one buffer for all connections, instead of a fresh one of 256 KiB each time."""

from __future__ import annotations

import asyncio
import threading
from typing import Final

_SIZE: Final = 64 * 1024  # bytes: what one connection is read of at once, before others get their turn


class _Buffers(threading.local):
    """One buffer for each thread, as each may run a loop of its own."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(_SIZE))


_BUFFERS = _Buffers()


class SharedBufferProtocol(asyncio.BufferedProtocol):
    """An `asyncio.Protocol` whose transport allocates nothing but what has come.

    For a plain protocol the standard loop asks for 256 KiB before each read, and gives back what is not
    used; where the allocator takes that from the kernel each time, it costs more than all the rest of a read.
    A loop fills the buffer and empties it before it turns to another connection, so one is enough for all.
    """

    def get_buffer(self, sizehint: int) -> memoryview:
        """The thread's buffer."""
        return _BUFFERS.view

    def buffer_updated(self, nbytes: int) -> None:
        """Passes on what has come."""
        self.data_received(bytes(_BUFFERS.view[:nbytes]))

    def data_received(self, data: bytes) -> None:
        """Takes the next bytes of the connection."""
        raise NotImplementedError

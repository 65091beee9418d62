"""Virtual time in which clients and a server have each other's bytes in memory, without sockets."""

from __future__ import annotations

import asyncio
from typing import Any

from benchmarks.counting import deliver
from benchmarks.simulated import SimulatedLoop


class WiredLoop(SimulatedLoop):
    """Connects whoever asks for a connection to the server that was made last."""

    async def create_connection(
        self, protocol_factory: Any, *args: Any, **options: Any
    ) -> tuple[asyncio.Transport, Any]:
        """Makes both ends of a connection."""
        if self.factory is None:
            raise ConnectionRefusedError("nobody serves")
        ours, theirs = _End(), _End()
        ours.other, theirs.other = theirs, ours
        ours.protocol, theirs.protocol = protocol_factory(), self.factory()
        theirs.protocol.connection_made(theirs)
        ours.protocol.connection_made(ours)
        return ours, ours.protocol


class _End(asyncio.Transport):
    """One end of a connection; what is written comes out at the other in a later turn."""

    other: _End
    protocol: Any

    def __init__(self) -> None:
        super().__init__()
        self._closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._closed:
            asyncio.get_running_loop().call_soon(self.other._take, bytes(data))

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            loop = asyncio.get_running_loop()
            loop.call_soon(self.protocol.connection_lost, None)
            loop.call_soon(self.other._lost)

    def abort(self) -> None:
        self.close()

    def is_closing(self) -> bool:
        return self._closed

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 1) if name in ("peername", "sockname") else default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Nothing is ever left in the buffer."""

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        """Nothing is held back."""

    def resume_reading(self) -> None:
        """Nothing was held back."""

    def _take(self, data: bytes) -> None:
        if not self._closed:
            deliver(self.protocol, data)

    def _lost(self) -> None:
        if not self._closed:
            self._closed = True
            self.protocol.connection_lost(ConnectionResetError("the other end was closed"))

"""Runs the real server without sockets, in virtual time: its law, wire encoding and sessions over memory.

`SimulatedLoop` is an event loop whose servers listen nowhere: a `SimulatedConnection` is made with a protocol
of the server, and is handed frames; `SimulatedNodes` are many of them. Time jumps to the next timer, so an
hour of heartbeats takes as long as the work in it. What is left out is the kernel: sockets, system calls, and
waiting for them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio.lowlevel

from arendezvous.coordinator.budget import CoordinatorLimits
from arendezvous.coordinator.telling import AT_ONCE
from arendezvous.law.operations import Join, KeepAlive
from arendezvous.law.state import MAX_WORLD, NodeDesc, NodeView, RunSettings
from arendezvous.server.access.limits import ServerLimits
from arendezvous.server.serve import serve
from arendezvous.testing.virtual_time import Ready, VirtualTimeLoop
from arendezvous.wire.native.messages import (
    HEADER,
    PREFACE,
    VERSION,
    Hello,
    Propose,
    View,
    decode_server,
    encode,
)
from benchmarks.counting import CountingProtocol, TrafficCounts, deliver

BATCH: Final = 256  # connections that have something to say in one turn of the loop
LIMITS: Final = ServerLimits(
    max_connections=2 * MAX_WORLD, coordinator=CoordinatorLimits(max_nodes=MAX_WORLD)
)


class SimulatedLoop(VirtualTimeLoop):
    """Keeps virtual time, makes servers without sockets, and counts what it is asked for.

    Attributes:
        factory: Makes the protocol of a connection; of the server that was made last.
        timers: How many timers were set.
        callbacks: How many callbacks were to be called soon.
        longest_turn: The processor's seconds of the longest turn since `time_turns`: for as long the server
            heard nobody.
    """

    def __init__(self) -> None:
        super().__init__()
        self.factory: Callable[[], asyncio.BaseProtocol] | None = None
        self.timers = 0
        self.callbacks = 0
        self.time_turns()

    def time_turns(self) -> None:
        """Looks for the longest turn anew, as if this one began now."""
        self.longest_turn = 0.0
        self._turn_began = time.process_time()

    async def create_server(  # type: ignore[override]  # it listens nowhere
        self, protocol_factory: Callable[[], asyncio.BaseProtocol], *args: Any, **options: Any
    ) -> _NoListener:
        """Makes a server to which only `factory` leads."""
        self.factory = protocol_factory
        return _NoListener()

    def call_at(  # type: ignore[override]  # any callback, whatever its arguments
        self, when: float, callback: Any, *args: Any, **options: Any
    ) -> asyncio.TimerHandle:
        """Sets a timer and counts it; `call_later` comes here, too."""
        self.timers += 1
        return super().call_at(when, callback, *args, **options)

    def call_soon(  # type: ignore[override]  # any callback, whatever its arguments
        self, callback: Any, *args: Any, **options: Any
    ) -> asyncio.Handle:
        """Has something called in the next turn of the loop, and counts it."""
        self.callbacks += 1
        return super().call_soon(callback, *args, **options)

    def _wait(self, select: Callable[[float | None], list[Ready]], timeout: float | None) -> list[Ready]:
        """Looks for what is ready, as every turn does once; takes the time of the turn that is over."""
        self.longest_turn = max(self.longest_turn, time.process_time() - self._turn_began)
        events = super()._wait(select, timeout)
        self._turn_began = time.process_time()
        return events


class _NoListener:
    """Stands for the `asyncio.Server`, which nothing needs to listen."""

    def __init__(self) -> None:
        self.sockets = (self,)

    def getsockname(self) -> tuple[str, int]:
        return ("127.0.0.1", 1)

    def fileno(self) -> int:
        return 2**20  # more than any descriptor that the loop may watch

    def is_serving(self) -> bool:
        return True

    async def start_serving(self) -> None:
        """It serves already."""

    def close(self) -> None:
        """There is nothing to close."""


class SimulatedConnection(asyncio.Transport):
    """Carries what one node and the server tell each other, in memory.

    Attributes:
        protocol: The server's side.
        last_write: The bytes of the server's latest write; empty before the first.
    """

    __slots__ = ("last_write", "protocol")

    def __init__(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol
        self.last_write = b""
        protocol.connection_made(self)

    def send(self, data: bytes) -> None:
        """Sends `data` to the server."""
        deliver(self.protocol, data)

    def last_view(self) -> NodeView:
        """Returns the last view that the server sent.

        Raises:
            ValueError: The last that it sent was something else.
        """
        position, view = 0, None
        while position < len(self.last_write):
            size = int.from_bytes(self.last_write[position : position + HEADER], "big")
            message = decode_server(self.last_write[position + HEADER : position + HEADER + size])
            view = message.view if isinstance(message, View) else None
            position += HEADER + size
        if view is None:
            raise ValueError(f"the server's last message is no view: {self.last_write!r}")
        return view

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Takes what the server sends."""
        self.last_write = bytes(data)

    def writelines(self, list_of_data: Any) -> None:
        """Takes what the server sends."""
        self.write(b"".join(list_of_data))

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Knows nothing of a socket."""
        return default

    def is_closing(self) -> bool:
        """It is never closed from this end."""
        return False

    def close(self) -> None:
        """Ends the connection from the server's side."""
        asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    def abort(self) -> None:
        """Ends the connection from the server's side."""
        self.close()

    def pause_reading(self) -> None:
        """Nothing is held back: a node says what it says."""

    def resume_reading(self) -> None:
        """Nothing was held back."""

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Nothing is ever left in the buffer."""

    def get_write_buffer_size(self) -> int:
        """Nothing is ever left in the buffer."""
        return 0


class SimulatedNodes:
    """Speaks for `nodes` nodes, each with a connection of its own to the server of `simulated_server`.

    Args:
        loop: The loop that runs the server.
        nodes: How many; a round needs all of them, or all but one.
        counts: Where what the connections carry is counted; None: it is not.
    """

    def __init__(self, loop: SimulatedLoop, nodes: int, counts: TrafficCounts | None = None) -> None:
        self._loop = loop
        self._counts = counts
        self._settings = RunSettings(max(1, nodes - 1), nodes)
        self._request = 1
        self.nodes = nodes
        self.connections: list[SimulatedConnection] = []

    async def connect(self, hellos: Sequence[bytes]) -> None:
        """Has every node connect and say hello."""
        factory = self._loop.factory
        assert factory is not None
        for number, hello in enumerate(hellos):
            protocol = factory()
            if self._counts is not None:
                protocol = CountingProtocol(protocol, self._counts)
            self.connections.append(SimulatedConnection(protocol))
            self.connections[-1].send(hello)
            if number % BATCH == BATCH - 1:
                await anyio.lowlevel.checkpoint()
        await self._settled()

    async def send(self, frames: Sequence[bytes]) -> None:
        """Has the first nodes each send one of `frames`, and the server answer."""
        for number, frame in enumerate(frames):
            self.connections[number].send(frame)
            if number % BATCH == BATCH - 1:
                await anyio.lowlevel.checkpoint()
        await self._settled()

    def hellos(self) -> list[bytes]:
        """Makes what nodes send first; beforehand, so that it is not taken for the server's work."""
        return [
            PREFACE + encode(Hello(VERSION, "run", number.to_bytes(16, "big")))
            for number in range(self.nodes)
        ]

    def joins(self, nodes: int, after: tuple[int, int] = (0, -1)) -> list[bytes]:
        """Makes what the first `nodes` nodes send to join the round after the one that they know."""
        return self._proposals(nodes, lambda desc: Join(desc, self._settings, after))

    def heartbeats(self) -> list[bytes]:
        """Makes what every node sends to stay."""
        return self._proposals(self.nodes, lambda desc: KeepAlive(desc.name))

    async def lose(self, number: int) -> None:
        """Breaks a node's connection, and lets its grace pass."""
        self.connections[number].protocol.connection_lost(ConnectionResetError("its process is gone"))
        await anyio.sleep(1.5 * self._settings.disconnect_grace)

    def ranks(self, nodes: int) -> list[int]:
        """Returns the ranks that the first `nodes` nodes have been told."""
        return [connection.last_view().rank for connection in self.connections[:nodes]]

    def _proposals(self, nodes: int, operation: Callable[[NodeDesc], Join | KeepAlive]) -> list[bytes]:
        self._request += 1
        return [encode(Propose(self._request, operation(_desc(number)))) for number in range(nodes)]

    async def _settled(self) -> None:
        """Waits until the server has told everybody."""
        for _ in range(3 + self.nodes // AT_ONCE):
            await anyio.lowlevel.checkpoint()


def _desc(number: int) -> NodeDesc:
    return NodeDesc(f"node{number:07d}", addr=f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")


@asynccontextmanager
async def simulated_server() -> AsyncIterator[SimulatedLoop]:
    """Runs the real server in the running `SimulatedLoop`, which it yields."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, SimulatedLoop)
    async with serve("127.0.0.1:0", limits=LIMITS):
        yield loop

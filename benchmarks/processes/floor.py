"""Measures the floor: a bare asyncio exchange of the shape of a rendezvous, and nothing else.

N connections; each sends one framed MessagePack value, and when all N have come, each is sent its rank.
No validation, no law, no heartbeats: what is left is what the loop, the sockets and the kernel cost.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from typing import cast

import msgspec

from benchmarks.processes.child import (
    Answer,
    announce,
    raise_open_files,
    runner,
    serve_requests,
    tune_collector,
)

encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder().decode


def frame(value: object) -> bytes:
    """Encodes a value as MessagePack, after its length."""
    payload = encode(value)
    return len(payload).to_bytes(4, "big") + payload


class Framed(asyncio.Protocol):
    """Calls `receive` with itself and each value that comes."""

    def __init__(self, receive: Callable[[Framed, object], None]) -> None:
        self._receive = receive
        self._buffer = b""
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the transport."""
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Cuts what has come into values."""
        data = self._buffer + data if self._buffer else data
        while len(data) >= 4 and len(data) >= (end := 4 + int.from_bytes(data[:4], "big")):
            self._receive(self, decode(data[4:end]))
            data = data[end:]
        self._buffer = data

    def send(self, data: bytes) -> None:
        """Sends `data`."""
        if self.transport is not None:
            self.transport.write(data)


class Meeting:
    """Collects the callers, on the server's side, and once all are there gives each its rank."""

    def __init__(self) -> None:
        self._here: list[Framed] = []

    def receive(self, caller: Framed, value: object) -> None:
        """Takes a join, which says how many are to come."""
        self._here.append(caller)
        if len(self._here) == cast(dict[str, int], value)["nodes"]:
            here, self._here = self._here, []
            for rank, known in enumerate(here):
                known.send(frame({"rank": rank, "world_size": len(here), "round": 1}))


async def serve() -> None:
    """Serves meetings until stdin ends."""
    meeting = Meeting()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Framed(meeting.receive), "127.0.0.1", 0, backlog=4096)
    async with server:
        announce(port=server.sockets[0].getsockname()[1])
        await loop.run_in_executor(None, sys.stdin.read)


async def meet(port: int, nodes: int) -> Answer:
    """Lets `nodes` connections be made, meet, and meet again; returns the seconds of each."""
    loop = asyncio.get_running_loop()
    missing = 0
    done = loop.create_future()

    def receive(caller: Framed, value: object) -> None:
        nonlocal missing
        missing -= 1
        if missing == 0:
            done.set_result(time.perf_counter())

    began = time.perf_counter()
    connections = await asyncio.gather(
        *(loop.create_connection(lambda: Framed(receive), "127.0.0.1", port) for _ in range(nodes))
    )
    seconds = [time.perf_counter() - began]
    for _ in range(2):
        missing, done = nodes, loop.create_future()
        began = time.perf_counter()
        for number, (_, member) in enumerate(connections):
            member.send(frame({"node": f"node{number}", "nodes": nodes}))
        seconds.append(await done - began)
    for transport, _ in connections:
        transport.close()
    await asyncio.sleep(0.01)
    return dict(zip(("connect", "meet", "again"), seconds, strict=True))


def main() -> None:
    """Does what the arguments say: the event loop; then the server's port, or nothing to be the server."""
    raise_open_files()
    with runner(sys.argv[1]) as loop_runner:
        if len(sys.argv) == 2:
            tune_collector()  # as every server in Python
            loop_runner.run(serve())
            return
        port = int(sys.argv[2])
        serve_requests(lambda request: loop_runner.run(meet(port, request["nodes"])))


if __name__ == "__main__":
    main()

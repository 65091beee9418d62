"""Connections whose peers do not read: what is left of what came before is waited for, too."""

from __future__ import annotations

import asyncio

import pytest

from arendezvous.keyspace.host import KeyspaceHost
from arendezvous.keyspace.messages import Ping, Validate
from arendezvous.server.access.admission import FailureThrottle
from arendezvous.server.access.limits import ServerLimits
from arendezvous.server.tcp.c10d import C10dConnection
from arendezvous.server.tcp.sharing import Shared
from arendezvous.wire.c10d.protocol import MAGIC
from arendezvous.wire.c10d.requests import encode_request


class Wire(asyncio.Transport):
    """A transport on which something is left that was written before, a ticket of TLS for example.

    Attributes:
        left: Bytes that the peer has not read.
        tells: Whether it tells its protocol so at once, as that of TLS does, or has told another before.
        written: What is written to it.
        is_read: Whether it is read.
    """

    def __init__(self, left: int, *, tells: bool) -> None:
        super().__init__()
        self.left = left
        self.tells = tells
        self.written = b""
        self.is_read = True
        self.protocol: asyncio.BaseProtocol | None = None

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        if self.tells and self.protocol is not None:
            self.protocol.pause_writing()

    def get_write_buffer_size(self) -> int:
        return self.left

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    def pause_reading(self) -> None:
        self.is_read = False

    def resume_reading(self) -> None:
        self.is_read = True


@pytest.mark.parametrize("tells", [True, False])
async def test_a_peer_that_has_not_read_what_came_before_is_not_read_until_it_has(tells: bool) -> None:
    shared = Shared(ServerLimits(), FailureThrottle())
    connection = C10dConnection(KeyspaceHost(), shared)
    wire = Wire(255, tells=tells)
    wire.protocol = connection
    connection.connection_made(wire)
    read_before = wire.is_read
    wire.left = 0
    connection.resume_writing()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert (read_before, wire.is_read) == (False, True)
    connection.data_received(encode_request(Validate(MAGIC)) + encode_request(Ping(7)))
    assert wire.written == (7).to_bytes(4, "little")
    connection.connection_lost(None)
    shared.close()

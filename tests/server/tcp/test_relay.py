"""Clients that wait at a server which knows nobody who leads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

import msgspec
import pytest
import uvloop

from arendezvous.coordinator.coordinator import Coordinator
from arendezvous.directory.port import Leader
from arendezvous.keyspace.host import KeyspaceHost
from arendezvous.server.access.admission import FailureThrottle
from arendezvous.server.access.limits import DEFAULT_LIMITS
from arendezvous.server.context import ServerContext
from arendezvous.server.leadership import Leadership
from arendezvous.server.tcp.relay import RelayListener
from arendezvous.server.tcp.sharing import Shared
from arendezvous.wire.native.messages import PREFACE, VERSION, GetRuns, Hello, encode, moved
from tests.kit.waiting import until

LIMITS = msgspec.structs.replace(DEFAULT_LIMITS, max_greetings=10_000)
HELLO = PREFACE + encode(Hello(VERSION, "job", lost="tcp://10.0.0.1:29400"))


def listener_of(shared: Shared, leadership: Leadership) -> RelayListener:
    coordinator = Coordinator(asyncio.get_running_loop())
    context = ServerContext(coordinator, KeyspaceHost(), shared, leadership=leadership)
    return RelayListener(context, "tcp", knows_clients=True)


async def test_those_who_wait_are_told_of_the_next_leader_and_keep_a_bounded_number_of_bytes() -> None:
    leadership = Leadership()
    listener = listener_of(Shared(LIMITS, FailureThrottle()), leadership)
    host, port = await listener.start("127.0.0.1", 0)
    waiting = [await asyncio.open_connection(host, port) for _ in range(5)]
    try:
        for _, writer in waiting[:3]:
            writer.write(HELLO + 500 * encode(GetRuns(1)))  # which is left aside: it will go elsewhere
        await until(lambda: len(listener.ends) == 5)
        waiting[3][1].write(b"\x03" * 2_000)  # which is kept until there is somebody to pass it on to
        waiting[4][1].write(b"\x03" * 20_000)
        async with asyncio.timeout(60):
            with suppress(ConnectionResetError):
                assert await waiting[4][0].read() == b"", "more than an address may keep"
            leadership.leader = Leader("tcp://10.0.0.1:29400", "")  # whom they could not reach
            leadership.leader = Leader("tcp://10.0.0.2:29400", "")
            told = encode(moved("tcp://10.0.0.2:29400"))
            for reader, _ in waiting[:3]:
                assert await reader.readexactly(len(told)) == told
    finally:
        for _, writer in waiting:
            writer.close()
        await listener.stop()


async def test_a_client_is_sent_to_the_leader_it_could_not_reach_only_if_that_was_elected_since(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It may have been deposed and elected again, or did not listen yet; else it is dead, however new."""
    monkeypatch.setattr("arendezvous.server.leadership.BEGINNING", 0.0)
    monkeypatch.setattr("arendezvous.server.leadership.REPLACED", 3600.0)
    leadership = Leadership()
    leadership.leader = Leader("tcp://10.0.0.2:29400", "", term=1)
    listener = listener_of(Shared(LIMITS, FailureThrottle()), leadership)
    host, port = await listener.start("127.0.0.1", 0)
    async with asyncio.timeout(60):
        leadership.leader = lost = Leader("tcp://10.0.0.1:29400", "", term=2)
        told = encode(moved(lost.tcp))
        was_served, one = await asyncio.open_connection(host, port)
        one.write(HELLO)
        await until(lambda: listener.ends)
        was_not, other = await asyncio.open_connection(host, port)
        other.write(PREFACE + encode(Hello(VERSION, "job", lost=lost.tcp, without=3600.0)))
        assert await was_not.readexactly(len(told)) == told
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(was_served.readexactly(1), 0)
        leadership.leader = None
        leadership.leader = msgspec.structs.replace(lost, term=3)
        assert await was_served.readexactly(len(told)) == told
        one.close()
        other.close()
    await listener.stop()


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_a_client_whose_time_is_over_before_there_is_a_leader_is_told_nothing(
    run: Callable[..., None],
) -> None:
    async def main() -> None:
        leadership = Leadership()
        shared = Shared(msgspec.structs.replace(LIMITS, handshake_timeout=0.01), FailureThrottle())
        listener = listener_of(shared, leadership)
        reader, writer = await asyncio.open_connection(*await listener.start("127.0.0.1", 0))
        async with asyncio.timeout(20):
            with suppress(ConnectionResetError):
                writer.write(HELLO)
                assert await reader.read() == b""
        leadership.leader = Leader("tcp://10.0.0.2:29400", "")
        for _ in range(5):
            await asyncio.sleep(0)
        assert listener.background.error is None
        writer.close()
        await listener.stop()

    run(main())

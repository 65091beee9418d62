"""The proxy passes everything on, and does each of its faults when told to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import anyio
import pytest

from arendezvous.testing import FaultProxy
from tests.kit.waiting import until


class Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


@asynccontextmanager
async def echo() -> AsyncIterator[FaultProxy]:
    server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", 0)
    try:
        async with FaultProxy("127.0.0.1", server.sockets[0].getsockname()[1]) as proxy:
            yield proxy
    finally:
        server.close()


@asynccontextmanager
async def client(proxy: FaultProxy) -> AsyncIterator[anyio.abc.SocketStream]:
    async with await anyio.connect_tcp("127.0.0.1", proxy.port) as stream:
        with anyio.fail_after(120):
            yield stream


async def answer(stream: anyio.abc.SocketStream, data: bytes) -> bytes:
    await stream.send(data)
    got = b""
    while len(got) < len(data):
        got += await stream.receive()
    return got


async def test_without_faults_bytes_pass_in_both_directions() -> None:
    async with echo() as proxy, client(proxy) as one, client(proxy) as two:
        assert await answer(one, b"hello" * 50_000) == b"hello" * 50_000
        assert await answer(two, b"you") == b"you"
        assert (proxy.passed, proxy.open_links) == (2, 2)
        assert proxy.address == f"127.0.0.1:{proxy.port}"


async def test_cut_resets_all_connections_and_new_ones_pass() -> None:
    async with echo() as proxy, client(proxy) as one:
        await answer(one, b"x")
        proxy.cut()
        with pytest.raises((anyio.BrokenResourceError, anyio.EndOfStream)):
            await one.receive()
        async with client(proxy) as two:
            assert await answer(two, b"y") == b"y"


async def test_a_frozen_proxy_holds_bytes_until_it_thaws() -> None:
    async with echo() as proxy, client(proxy) as one:
        await answer(one, b"x")
        proxy.freeze()
        proxy.freeze()
        await one.send(b"held")
        with anyio.move_on_after(0.05) as scope:
            await one.receive()
        assert scope.cancelled_caught
        proxy.thaw()
        proxy.thaw()
        assert await one.receive() == b"held"


async def test_refusing_closes_new_connections_and_keeps_the_old() -> None:
    async with echo() as proxy, client(proxy) as one:
        await answer(one, b"x")
        proxy.refusing = True
        async with client(proxy) as two:
            with pytest.raises((anyio.BrokenResourceError, anyio.EndOfStream)):
                await two.receive()
        assert await answer(one, b"y") == b"y"


@pytest.mark.parametrize("count", [0, 1, 3, 5])
async def test_a_connection_is_cut_after_exactly_so_many_bytes_and_the_next_is_not(count: int) -> None:
    async with echo() as proxy:
        proxy.to_client.cut_after = count
        async with client(proxy) as one:
            got = b""
            await one.send(b"hello")
            with suppress(anyio.BrokenResourceError):
                async for piece in one:
                    got += piece
            assert b"hello"[:count].startswith(got)
        async with client(proxy) as two:
            assert await answer(two, b"hello") == b"hello"


async def test_one_byte_is_corrupted_once() -> None:
    async with echo() as proxy, client(proxy) as one:
        proxy.to_server.corrupt_at = 7
        assert await answer(one, b"01234") == b"01234"
        assert await answer(one, b"56789") == b"56" + bytes([ord("7") ^ 0xFF]) + b"89"
        async with client(proxy) as two:
            assert await answer(two, b"0123456789") == b"0123456789"


async def test_bytes_come_one_by_one_and_late() -> None:
    async with echo() as proxy, client(proxy) as one:
        proxy.to_server.single_bytes = proxy.to_client.single_bytes = True
        proxy.to_server.delay = 0.01
        begin = asyncio.get_running_loop().time()
        assert await answer(one, b"0123456789") == b"0123456789"
        assert asyncio.get_running_loop().time() - begin >= 0.01


async def test_a_server_that_is_not_there_closes_the_client(free_port: int) -> None:
    async with FaultProxy("127.0.0.1", free_port) as proxy, client(proxy) as one:
        with pytest.raises((anyio.BrokenResourceError, anyio.EndOfStream)):
            await one.receive()
        assert proxy.passed == 0


async def test_when_the_client_is_done_the_connection_to_the_server_ends() -> None:
    async with echo() as proxy:
        async with client(proxy) as one:
            await answer(one, b"x")
        await until(lambda: not proxy.open_links)

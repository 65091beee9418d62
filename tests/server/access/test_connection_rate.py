"""How many new connections one address may make: counted over both listeners, and by default not at all."""

from __future__ import annotations

import asyncio
import inspect
from pathlib import Path

import aiohttp
import pytest

import arendezvous as ar
from arendezvous.cli.serve import serve as serve_command
from arendezvous.keyspace.grants import EVERYTHING
from arendezvous.server.access.admission import Allowance
from arendezvous.server.access.authority import Authority
from arendezvous.server.access.limits import DEFAULT_LIMITS, ServerLimits
from arendezvous.wire.native.messages import PREFACE, VERSION, Hello, encode
from tests.kit.cli_kit import running
from tests.kit.http_kit import http_port, served

TWO = ServerLimits(connection_rate=1e-6, connection_burst=2)  # and no other for days
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
PATIENCE = 120.0


async def status_of(port: int) -> str:
    """Makes a connection to an HTTP listener, asks for its health, and returns the status."""
    async with asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(HEALTH)
            return (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[0].partition(" ")[2]
        finally:
            writer.close()


async def is_refused(port: int) -> bool:
    """Makes a connection, begins a native session, and tells whether the connection ends without a word."""
    async with asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(PREFACE + encode(Hello(VERSION)))
            return not await reader.read(1)
        except ConnectionError:
            return True
        finally:
            writer.close()


@pytest.mark.parametrize(("burst", "rate"), [(1, 0.5), (3, 1.0), (10, 4.0)])
def test_an_address_may_do_a_burst_and_then_so_much_a_second(burst: int, rate: float) -> None:
    now = 0.0
    allowance = Allowance(burst, rate, clock=lambda: now)
    assert [allowance.take(f"10.0.0.1:{port}") for port in range(burst + 1)] == [True] * burst + [False]
    for _ in range(20):
        now += 1 / rate
        assert [allowance.take("10.0.0.1:9"), allowance.take("10.0.0.1:9")] == [True, False]
    now += 1000.0
    assert sum(allowance.take("10.0.0.1:9") for _ in range(2 * burst)) == burst, (
        "no more than a burst is saved"
    )


def test_addresses_do_not_use_up_each_others_and_a_network_of_ipv6_is_one() -> None:
    allowance = Allowance(1, 1.0, clock=lambda: 0.0)
    peers = ["10.0.0.1:1", "10.0.0.2:1", "[2001:db8::1]:1", "[2001:db8::2]:1", "[2001:db8:0:1::1]:1"]
    assert [allowance.take(peer) for peer in peers] == [True, True, True, False, True]


def test_a_fleet_behind_one_address_may_start_at_once_even_where_there_is_a_limit() -> None:
    allowance = Allowance(DEFAULT_LIMITS.connection_burst, 1.0, clock=lambda: 0.0)
    assert all(allowance.take(f"10.0.0.1:{port}") for port in range(3 * 4096))


async def test_both_listeners_count_together_and_refuse_who_makes_too_many() -> None:
    async with served(limits=TWO) as (server, _):
        tcp, http = int(server.tcp_url.rsplit(":", 1)[1]), http_port(server)
        assert await status_of(http) == "200 OK"
        async with ar.open_rendezvous(server.tcp_url, run_id="job", min_nodes=1) as node:
            await node.next_rendezvous()
            assert await status_of(http) == "503 Service Unavailable"
            assert await is_refused(tcp)
            assert not await node.is_closed(), "whoever is in is left alone"


async def test_over_tls_connections_are_counted_before_their_handshake(tmp_path: Path) -> None:
    from tests.kit.tls_kit import make_pki

    pki = make_pki(tmp_path)
    limits = ServerLimits(connection_rate=1e-6, connection_burst=1)
    async with ar.serve("127.0.0.1:0", http="127.0.0.1:0", limits=limits, tls=pki.server()) as server:
        assert server.http_url is not None
        tls = pki.client().ssl_context() or True
        connector = aiohttp.TCPConnector(force_close=True)  # a connection for each request
        async with aiohttp.ClientSession(server.http_url, connector=connector) as client:
            async with client.get("/healthz", ssl=tls) as answer:
                assert answer.status == 200
            with pytest.raises(aiohttp.ClientError):
                await client.get("/healthz", ssl=tls, timeout=aiohttp.ClientTimeout(PATIENCE))


async def test_by_default_one_address_may_make_any_number() -> None:
    async with served() as (server, _):
        assert not await is_refused(int(server.tcp_url.rsplit(":", 1)[1]))
        found = await asyncio.gather(*(status_of(http_port(server)) for _ in range(200)))
    assert set(found) == {"200 OK"}


def test_the_command_and_a_server_in_a_program_have_the_same_limit_by_default() -> None:
    options = inspect.signature(serve_command).parameters
    expected = (DEFAULT_LIMITS.connection_rate, DEFAULT_LIMITS.connection_burst)
    assert (options["connection_rate"].default, options["connection_burst"].default) == expected


async def test_the_options_of_serve_set_the_limit() -> None:
    options = ("--connection-rate", "0.001", "--connection-burst", "1")
    async with running("serve", "--port", "0", "--http-port", "0", *options) as server:
        port = int((await server.line()).rsplit(":", 1)[1])
        assert await status_of(port) == "200 OK"
        assert await status_of(port) == "503 Service Unavailable"


async def test_too_many_wrong_tokens_end_the_connection() -> None:
    async with (
        served(authority=Authority([("t" * 32, EVERYTHING)])) as (server, _),
        asyncio.timeout(PATIENCE),
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", http_port(server))
        asked = b"GET /v1/runs HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer wrong\r\n\r\n"
        writer.write(asked * 40)
        said = (await reader.read(-1)).decode()  # up to the end of the connection
        writer.close()
    assert (said.count("HTTP/1.1 401 "), said.count("HTTP/1.1 429 ")) == (20, 1)
    assert "connection: close\r\n" in said.lower()

"""Whatever one HTTP client does, the listener stands: memory and time are bounded, others notice nothing."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import arendezvous as ar
from arendezvous.law.operations import Close, Reopen
from arendezvous.server.http.bodies import BODY_RATE, BUDGET
from arendezvous.server.http.connection import HttpConnection
from arendezvous.testing.virtual_time import run_virtual
from tests.kit.cli_kit import running
from tests.kit.listener_kit import PATIENCE, Raw, Serving, client_of, http_server, raw
from tests.kit.waiting import until

GET = b"GET /v1/kv/k HTTP/1.1\r\nHost: x\r\n\r\n"
BEGINNINGS = [b"", b"G", b"GET /v1/kv/k", b"GET /v1/kv/k HTTP/1.1\r\nHost: x\r\n", GET[:-1]]


async def works(serving: Serving) -> None:
    """Somebody else uses the listener as if nothing was."""
    assert (await serving.client.put("/v1/kv/calm", "v")).status in (201, 204)
    assert (await serving.client.get("/v1/kv/calm")).body == b"v"


# What is no request


@pytest.mark.parametrize(
    "garbage",
    [
        b"garbage\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
        b"PUT /v1/kv/k HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"PUT /v1/kv/k HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET /" + b"k" * 40_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 10_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: a\r\n" * 100 + b"\r\n",
    ],
)
async def test_what_is_no_request_is_400_and_the_connection_ends_and_one_line_of_the_log_says_so(
    garbage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", logger="arendezvous.server")
    async with http_server() as serving, raw(serving.port) as connection:
        connection.send(garbage)
        reply = await connection.reply()
        assert reply.status == 400
        assert await connection.rest() == b""
        await works(serving)
    said = [record for record in caplog.records if record.name.startswith("arendezvous.server")]
    assert [(record.levelno, record.exc_info) for record in said] == [(logging.WARNING, None)]
    assert said[0].getMessage().startswith("127.0.0.1: dropped: not a request of HTTP: ")
    assert "\n" not in said[0].getMessage()


async def test_a_request_may_come_byte_by_byte() -> None:
    async with http_server() as serving, raw(serving.port) as connection:
        for byte in b"PUT /v1/kv/%FF HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nab":
            connection.send(bytes([byte]))
            await asyncio.sleep(0)
        assert (await connection.reply()).status == 201
        assert (await serving.client.get("/v1/kv/%FF")).body == b"ab"


async def test_a_request_may_name_the_server_as_proxies_do() -> None:
    async with http_server() as serving, raw(serving.port) as connection:
        await serving.client.put("/v1/kv/k", "v")
        connection.send(b"GET http://somewhere/v1/kv/k?wait=1 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await connection.reply()).body == b"v"


async def test_requests_that_are_sent_ahead_are_answered_in_order() -> None:
    async with http_server() as serving, raw(serving.port) as connection:
        add = b"POST /v1/kv/n?op=add HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n1"
        connection.send(add * 100)
        assert [(await connection.reply()).json for _ in range(100)] == list(range(1, 101))


# What takes too long


@pytest.mark.parametrize("beginning", BEGINNINGS)
async def test_headers_that_are_not_complete_in_time_end_the_connection(beginning: bytes) -> None:
    async with http_server(handshake_timeout=1.0) as serving, raw(serving.port) as connection:
        connection.send(beginning)
        assert await connection.rest() == b""
        assert serving.listener.connections == set()
        await works(serving)


async def test_headers_that_trickle_are_late_although_something_always_comes() -> None:
    async with http_server(handshake_timeout=1.0) as serving, raw(serving.port) as connection:
        connection.send(b"GET / HTTP/1.1\r\n")
        ended = b"something"
        with anyio.fail_after(120):
            while ended:
                connection.send(b"a")
                with anyio.move_on_after(0.01):
                    ended = await connection.rest()
        assert ended == b""


async def test_headers_of_a_later_request_have_to_be_in_time_too_but_an_idle_connection_may_rest() -> None:
    async with http_server(handshake_timeout=1.0) as serving, raw(serving.port) as connection:
        connection.send(GET)
        assert (await connection.reply()).status == 404
        with anyio.move_on_after(1.5) as rested:
            await connection.rest()
        assert rested.cancelled_caught, "an idle connection was ended"
        connection.send(GET[:20])
        assert await connection.rest() == b""


def test_a_request_that_is_sent_ahead_may_wait_until_the_answer_before_it_is_read() -> None:
    async def run() -> None:
        async with http_server(handshake_timeout=1.0) as serving, raw(serving.port) as connection:
            await serving.client.put("/v1/kv/big", b"x" * 32_000_000)
            connection.send(b"GET /v1/kv/big HTTP/1.1\r\nHost: x\r\n\r\n")
            await until(lambda: any(unread(open_) for open_ in serving.listener.connections))
            connection.send(GET[:20])
            await asyncio.sleep(5)
            connection.send(GET[20:])
            assert len((await connection.reply()).body) == 32_000_000
            assert (await connection.reply()).status == 404

    run_virtual(run, patience=0.02)


async def test_an_idle_connection_ends_after_its_time() -> None:
    async with http_server(idle_timeout=1.0) as serving, raw(serving.port) as connection:
        connection.send(GET)
        assert (await connection.reply()).status == 404
        assert await connection.rest() == b""


async def test_a_long_poll_may_take_longer_than_headers_may() -> None:
    async with http_server(handshake_timeout=1.0, idle_timeout=1.0) as serving:
        assert (await serving.client.get("/v1/kv/k?wait=1.5")).status == 404


@pytest.mark.parametrize(
    "headers", [b"Content-Length: 10\r\n\r\nab", b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n"]
)
async def test_a_body_that_never_ends_is_late(headers: bytes) -> None:
    async with http_server(handshake_timeout=1.0) as serving, raw(serving.port) as connection:
        connection.send(b"PUT /v1/kv/k HTTP/1.1\r\nHost: x\r\n" + headers)
        reply = await connection.reply()
        assert (reply.status, reply.kind) == (408, "slow-body")
        assert await connection.rest() == b""
        assert (await serving.client.get("/v1/kv/k")).status == 404


def test_a_body_that_comes_steadily_may_take_longer_but_not_for_ever() -> None:
    async def run() -> None:
        async with http_server(handshake_timeout=10.0) as serving, raw(serving.port) as connection:
            length = 21 * BODY_RATE
            head = f"PUT /v1/kv/k HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n"
            connection.send(head.encode() + b"x" * 20 * BODY_RATE)
            with anyio.move_on_after(29) as waited:
                await connection.reply()
            assert waited.cancelled_caught, "it was refused too early"
            began = anyio.current_time()
            reply = await connection.reply()
            assert (reply.status, reply.kind, anyio.current_time() - began < 2) == (408, "slow-body", True)

    run_virtual(run, patience=0.02)


def test_a_body_that_has_come_has_no_deadline_any_more() -> None:
    async def run() -> None:
        async with http_server(handshake_timeout=10.0) as serving:
            reply = await serving.client.form("/v1/kv?op=check&wait=20", "key=k")
            assert (reply.status, reply.json["ready"]) == (200, False)

    run_virtual(run, patience=0.02)


def test_a_body_that_nobody_wants_is_not_waited_for() -> None:
    async def run() -> None:
        async with http_server() as serving, raw(serving.port) as connection:
            connection.send(b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nab")
            reply = await connection.reply()
            assert (reply.status, reply.kind) == (404, "no-such-resource")
            began = anyio.current_time()
            assert await connection.rest() == b""
            assert anyio.current_time() - began < 3

    run_virtual(run, patience=0.02)


# What is too much


async def test_a_body_that_says_how_long_it_is_is_refused_before_it_comes() -> None:
    async with http_server(max_body=1000) as serving, raw(serving.port) as connection:
        connection.send(b"PUT /v1/kv/k HTTP/1.1\r\nHost: x\r\nContent-Length: 1001\r\n\r\n")
        reply = await connection.reply()
        assert (reply.status, reply.kind) == (413, "too-long")
        await works(serving)


async def test_a_body_that_grows_without_end_is_refused_at_the_limit() -> None:
    async with http_server(max_body=100_000) as serving, raw(serving.port) as connection:
        connection.send(b"PUT /v1/kv/k HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(30):
            connection.send(b"1000\r\n" + b"x" * 0x1000 + b"\r\n")
        reply = await connection.reply()
        assert (reply.status, reply.kind) == (413, "too-long")


async def test_a_body_that_is_malformed_is_told() -> None:
    async with http_server() as serving, raw(serving.port) as connection:
        connection.send(b"PUT /v1/kv/k HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        connection.send(b"2\r\nab\r\nzz\r\n")
        assert (await connection.reply()).status == 400
        assert (await serving.client.get("/v1/kv/k")).status == 404


async def test_bodies_that_are_too_long_together_are_refused_until_others_are_done() -> None:
    async with http_server(max_bodies=1000) as serving:
        async with raw(serving.port) as slow:
            slow.send(b"PUT /v1/kv/k HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\n" + b"x" * 800)
            await until(lambda: held(serving) == 800)
            refused = await serving.client.put("/v1/kv/other", b"y" * 300)
            assert (refused.status, refused.kind, refused.headers["Retry-After"]) == (503, "busy", "1")
            await works(serving)
        await until(lambda: held(serving) == 0)
        assert (await serving.client.put("/v1/kv/other", b"y" * 300)).status == 201


def held(serving: Serving) -> int:
    """The bytes of bodies that are under way."""
    return serving.listener.app[BUDGET].held


async def test_connections_are_counted_over_both_listeners_and_refused_at_the_limit() -> None:
    async with http_server(max_connections=3) as serving, AsyncExitStack() as stack:
        await stack.enter_async_context(raw(serving.server.port))
        tcp = await stack.enter_async_context(raw(serving.server.port))
        http = await stack.enter_async_context(raw(serving.port))
        http.send(GET)
        assert (await http.reply()).status == 404
        async with raw(serving.port) as refused:
            assert (await refused.reply()).status == 503
            assert await refused.rest() == b""
        tcp.writer.transport.abort()
        async with client_of(serving.client.url) as client:
            with anyio.fail_after(120):
                while (await client.get("/v1/kv/k")).status != 404:
                    continue


async def test_many_idle_long_polls_keep_nobody_from_anything_and_leave_nothing() -> None:
    async with http_server() as serving:
        async with AsyncExitStack() as stack:
            polls: list[Raw] = []
            for number in range(300):
                polls.append(await stack.enter_async_context(raw(serving.port)))
                polls[-1].send(b"GET /v1/kv/p%d?wait=600 HTTP/1.1\r\nHost: x\r\n\r\n" % (number % 10))
            await until(lambda: serving.waits == 300)
            await works(serving)
            await serving.client.put("/v1/kv/p3", "woken")
            assert [(await poll.reply()).body for poll in polls[3::10]] == [b"woken"] * 30
            assert serving.waits == 270
        await until(lambda: not serving.waits)
        assert serving.listener.context.keys.clients == {}


async def test_a_reader_that_stops_reading_holds_little_and_is_dropped() -> None:
    value = b"x" * 32_000_000
    async with http_server(write_timeout=1.0) as serving, AsyncExitStack() as stack:
        await serving.client.put("/v1/kv/big", value)
        for _ in range(4):
            stuck = await stack.enter_async_context(raw(serving.port))
            stuck.send(b"GET /v1/kv/big HTTP/1.1\r\nHost: x\r\n\r\n")
            await stuck.reader.readexactly(100)
        unsent = [unread(connection) for connection in serving.listener.connections]
        assert max(unsent) < 1_000_000, f"{unsent} bytes are held for those who do not read"
        await works(serving)
        await until(lambda: len(serving.listener.connections) <= 1)


async def test_a_reader_that_stops_reading_a_stream_of_events_holds_little_and_is_dropped() -> None:
    async with http_server(write_timeout=1.0) as serving, AsyncExitStack() as stack:
        coordinator = serving.server.coordinator
        stuck = await stack.enter_async_context(raw(serving.port))
        stuck.send(b"GET /v1/runs/job/events HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n")
        coordinator.steer("job", Close("x"))
        await stuck.reader.readexactly(100)
        stream = next(iter(serving.listener.connections))
        most = 0
        with anyio.fail_after(PATIENCE):
            while stream in serving.listener.connections:
                for _ in range(50):
                    incarnation = coordinator.runs["job"].state.incarnation
                    coordinator.steer("job", Reopen(incarnation, "y" * 250))
                    coordinator.steer("job", Close("x" * 250, "z" * 250))
                most = max(most, unread(stream))
                await asyncio.sleep(0)
        assert most < 2_000_000, f"{most} bytes were held for one who does not read"
        await works(serving)


def unread(connection: HttpConnection) -> int:
    """The bytes of answers that the server holds for a peer."""
    transport = connection._transport
    return 0 if transport is None else transport.get_write_buffer_size()


# As a whole

PIECES = [
    b"GET", b"PUT", b"POST", b"DELETE", b" ", b"/v1/kv", b"/v1/kv/k", b"/v1/queues/q", b"?", b"&", b"op=add",
    b"op=pop", b"op=compare-set", b"op=multi-get", b"op=check", b"wait=0", b"limit=1", b"%ff", b"%", b"\x00",
    b" HTTP/1.1\r\n", b"Host: x\r\n", b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n",
    b'If-Match: "a"\r\n', b"If-None-Match: *\r\n", b"Idempotency-Key: k\r\n", b"Expect: 100-continue\r\n",
    b"Content-Type: application/json\r\n", b"Content-Type: application/x-www-form-urlencoded\r\n",
    b"Connection: Upgrade\r\nUpgrade: h2c\r\n", b"\r\n", b"\r\n\r\n", b"{}", b"123", b"3\r\nabc\r\n",
    b"0\r\n\r\n", b"key=a&key=b", b'{"keys":["a"]}', b"\xff\xfe",
]  # fmt: skip
REQUESTS = st.lists(
    st.one_of(
        st.sampled_from(PIECES),
        st.binary(max_size=20),
        st.builds(
            lambda method, path, headers, body: (
                method + b" " + path + b" HTTP/1.1\r\n" + headers + b"\r\n" + body
            ),
            st.sampled_from([b"GET", b"PUT", b"POST", b"DELETE", b"HEAD", b"OPTIONS", b"BREW"]),
            st.lists(st.sampled_from(PIECES[5:20]), min_size=1).map(b"".join),
            st.lists(st.sampled_from(PIECES[21:31])).map(b"".join),
            st.sampled_from([b"", b"abc", b"3\r\nabc\r\n0\r\n\r\n"]),
        ),
    ),
    max_size=12,
).map(b"".join)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.lists(REQUESTS, min_size=1, max_size=8))
def test_no_bytes_make_the_server_fail(data: list[bytes]) -> None:
    async def run() -> None:
        async with http_server() as serving:
            for each in data:
                async with raw(serving.port) as connection:
                    connection.send(each)
                    connection.writer.write_eof()
                    assert b"HTTP/1.1 5" not in await connection.rest()
            await works(serving)
            await until(lambda: not serving.waits)

    asyncio.run(run())


async def test_an_http_address_that_is_not_loopback_is_refused() -> None:
    with pytest.raises(ar.RendezvousSettingsError, match=r"http is '0\.0\.0\.0:0'"):
        async with ar.serve("127.0.0.1:0", http="0.0.0.0:0"):
            pass


async def test_an_http_address_in_use_is_told_and_the_other_listener_is_closed(free_port: int) -> None:
    async with http_server() as serving:
        with pytest.raises(ar.RendezvousConnectionError, match="it is in use"):
            async with ar.serve(f"127.0.0.1:{free_port}", http=f"127.0.0.1:{serving.port}"):
                pass
        async with ar.serve(f"127.0.0.1:{free_port}"):
            await works(serving)


async def test_serve_tells_both_addresses_in_its_first_line() -> None:
    async with running("serve", "--port", "0", "--http-port", "0") as server:
        word, tcp, http = (await server.line()).split()
        assert (word, tcp.partition(":")[0], http.partition(":")[0]) == ("serving", "tcp", "http")
        async with client_of(http) as client:
            assert (await client.get("/v1/kv")).json["total"] == 0

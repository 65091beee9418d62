"""Whatever is sent, the server answers what is wrong, tells of no error of its own, and goes on."""

from __future__ import annotations

import asyncio
import logging

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.kit.listener_kit import Serving, http_server, raw

NAMES = (
    "Accept", "Authorization", "Content-Encoding", "Content-Length", "Content-Type", "Cookie", "Expect",
    "Host", "Idempotency-Key", "If-Match", "If-None-Match", "Last-Event-ID", "Origin", "Range",
    "Arendezvous-Server",
    "Arendezvous-Session", "Transfer-Encoding", "Upgrade", "Connection", "X-Forwarded-For",
)  # fmt: skip
PATHS = (
    "/", "*", "//", "/healthz", "/metrics", "/openapi.json", "/none", "/v1/kv", "/v1/kv/k", "/v1/kv/k?op=add",
    "/v1/kv/k?op=append", "/v1/kv/k?op=barrier&world_size=1", "/v1/kv?op=check", "/v1/kv?op=multi-set",
    "/v1/kv/%ff?op=compare-set", "/v1/kv/k%zz", "/v1/queues/q?op=push", "/v1/queues/q?op=pop",
    "/v1/queues/q?op=give-back", "/v1/runs", "/v1/runs/job", "/v1/runs/%ff%00", "/v1/runs/job/members",
    "/v1/runs/job/members/a", "/v1/runs/job/members/%ff", "/v1/runs/job/members/a/keep-alive",
    "/v1/runs/job/members/a/drain", "/v1/runs/job/members/a/view", "/v1/runs/job/close",
    "/v1/runs/job/reopen", "http://[/", "http://x:y/v1/kv", "/v1/kv?limit=\xff", "/v1/kv/\xff",
    "/page/../../etc/passwd",
)  # fmt: skip
METHODS = ("GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS", "PATCH", "CONNECT", "TRACE", "X")
BODIES = (
    b"", b"1", b"{}", b"[]", b"\xff",
    b'{"node": {"name": "a"}, "settings": {"min_nodes": 1, "max_nodes": 1}}',
    b'{"keys": ["\\ud800"]}', b"[" * 5000, b"key=%", b'{"keys": ["%zz"]}',
)  # fmt: skip
VALUES = st.one_of(
    st.sampled_from([
        b"http://[", b"\xff", b"null", b"100-continue", b"application/json", b"text/event-stream", b"chunked",
        b"application/x-www-form-urlencoded", b'"', b'W/"', b"bytes=0-", b"Bearer \xff", b"h2c", b"*", b"-1",
        b"[::1", b"http://[::1]:x", b"a" * 2000, b"localhost",
    ]),
    st.binary(max_size=40).map(lambda value: bytes(byte for byte in value if byte not in b"\r\n\0")),
)  # fmt: skip
REQUESTS = st.tuples(
    st.sampled_from(METHODS),
    st.sampled_from(PATHS),
    st.lists(st.tuples(st.sampled_from(NAMES), VALUES), max_size=4),
    st.sampled_from(BODIES),
)
KNOWN = [
    ("GET", "/v1/kv", [("Origin", b"http://[")], b""),
    ("PUT", "/v1/kv/k", [("Origin", b"http://[")], b"1"),
    ("PUT", "/v1/kv/k", [("Origin", b"\xff")], b"1"),
    ("PUT", "/v1/kv/k", [("Expect", b"\xff")], b"1"),
    ("GET", "/none", [("Expect", b"\xff")], b""),
    ("OPTIONS", "*", [("Expect", b"\xff")], b""),
    ("CONNECT", "/none", [("Expect", b"\xff")], b""),
    ("POST", "/v1/runs/job/members", [("Idempotency-Key", b"\xff" * 20)], BODIES[5]),
    ("POST", "/v1/runs/job/members", [("Idempotency-Key", b"\xfe" * 20)], BODIES[5]),
    ("POST", "/v1/runs/job/members/a/keep-alive", [("Arendezvous-Session", b"\xff")], b"{}"),
    ("POST", "/v1/kv/k?op=add", [("Idempotency-Key", b"\xff")], b"1"),
    ("GET", "/v1/kv/k", [("If-None-Match", b'"\xff"')], b""),
    ("GET", "/v1/runs/job/events", [("Last-Event-ID", b"\xff")], b""),
    ("GET", "/healthz", [("Host", b"\xff")], b""),
]
Request = tuple[str, str, list[tuple[str, bytes]], bytes]


def encoded(request: Request) -> bytes:
    """The request as it is sent, on a connection that it ends."""
    method, path, headers, body = request
    lines = [f"{method} {path} HTTP/1.1".encode("latin-1"), b"Connection: close"]
    lines += [name.encode() + b": " + value for name, value in headers]
    names = {name for name, _ in headers}
    if not names & {"Content-Length", "Transfer-Encoding"}:
        lines.append(b"Content-Length: %d" % len(body))
    if "Host" not in names:
        lines.append(b"Host: localhost")
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


async def status_of(serving: Serving, request: Request) -> int:
    """Sends the request; returns the status of the answer, 0 if none came soon."""
    async with raw(serving.port) as connection:
        connection.send(encoded(request))
        with anyio.move_on_after(0.05):  # it may be a stream, or wait for the rest of a body
            head = await connection.reader.readline()
            while head.startswith(b"HTTP/1.1 100"):
                await connection.reader.readline()
                head = await connection.reader.readline()
            return int(head.split()[1]) if head else 0
    return 0


async def play(requests: list[Request]) -> list[int]:
    async with http_server() as serving:
        statuses = [await status_of(serving, request) for request in requests]
        assert (await serving.client.put("/v1/kv/after", b"1")).status == 201
        return statuses


def is_error(record: logging.LogRecord) -> bool:
    return record.exc_info is not None or record.levelno >= logging.ERROR


async def test_what_was_found_to_be_an_error_of_the_server_is_one_of_the_client(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    statuses = await play(KNOWN)
    assert 500 not in statuses, dict(zip(map(str, KNOWN), statuses, strict=True))
    assert not [record.getMessage() for record in caplog.records if is_error(record)]


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(REQUESTS, min_size=1, max_size=20))
def test_no_request_is_answered_by_an_error_of_the_server(
    caplog: pytest.LogCaptureFixture, requests: list[Request]
) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.clear()
    statuses = asyncio.run(play(requests))
    failed = [
        request for request, status in zip(requests, statuses, strict=True) if status in (500, 501, 502)
    ]
    assert not failed
    assert not [record.getMessage() for record in caplog.records if is_error(record)]

"""What answers look like to clients of HTTP/1.0 and 1.1."""

from __future__ import annotations

import asyncio
from email.utils import parsedate_to_datetime

import anyio
import pytest

from tests.kit.http_kit import http_port, served


async def asked(port: int, request: str, until: bytes) -> tuple[str, dict[str, str], bytes, bool]:
    """Sends a request; the status line, the header, the body up to `until`, and whether that is the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        with anyio.fail_after(10):
            writer.write(request.encode())
            status, *fields = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[:-2]
            body = await reader.readuntil(until)
            is_over = "close" in request and not await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()
    return status, dict(field.split(": ", 1) for field in fields), body, is_over


@pytest.mark.parametrize(
    ("version", "connection", "expected"),
    [
        ("1.1", "keep-alive", None),
        ("1.1", "close", "close"),
        ("1.0", "keep-alive", "keep-alive"),
        ("1.0", "close", None),
    ],
)
async def test_an_answer_says_what_becomes_of_the_connection(
    version: str, connection: str, expected: str | None
) -> None:
    async with served() as (server, _):
        request = f"GET /v1/runs HTTP/{version}\r\nHost: localhost\r\nConnection: {connection}\r\n\r\n"
        status, header, body, is_over = await asked(http_port(server), request, b"}")
        assert status == f"HTTP/{version} 200 OK"
        assert header.get("Connection") == expected
        assert header["Content-Length"] == str(len(body))
        assert header["Content-Type"] == "application/json"
        assert header["Cache-Control"] == "no-store"
        assert (header["Server"], len(header["Arendezvous-Server"])) == ("arendezvous", 16)
        assert parsedate_to_datetime(header["Date"]).tzinfo is not None
        assert is_over is (connection == "close")


async def test_the_answer_to_head_has_the_length_and_no_body() -> None:
    async with served() as (_, client), client.get("/v1/runs") as whole, client.head("/v1/runs") as head:
        assert head.headers["Content-Length"] == str(len(await whole.read()))
        assert (head.status, await head.read()) == (200, b"")


@pytest.mark.parametrize(("version", "framing"), [("1.1", "chunked"), ("1.0", None)])
async def test_a_stream_comes_in_chunks_where_the_client_knows_them(
    version: str, framing: str | None
) -> None:
    async with served() as (server, _):
        request = f"GET /v1/events HTTP/{version}\r\nHost: localhost\r\n\r\n"
        status, header, body, _over = await asked(http_port(server), request, b"\n\n")
        assert status == f"HTTP/{version} 200 OK"
        assert header.get("Transfer-Encoding") == framing
        assert header["Content-Type"] == "text/event-stream"
        assert "Content-Length" not in header
        assert body.startswith(b"event: runs\n") is (framing is None), body

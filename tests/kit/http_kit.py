"""What the tests of the rendezvous over HTTP share: a server, a client without sugar, and joins."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

import arendezvous as ar
from arendezvous.backends.http.backend import HttpBackend
from arendezvous.wire.http.sse import EventParser, ServerEvent

PAIR = {"min_nodes": 2, "max_nodes": 2}
SESSION = "Arendezvous-Session"


def http_port(server: ar.Server) -> int:
    """The port of a server's HTTP listener."""
    assert server.http_url is not None
    return int(server.http_url.rsplit(":", 1)[1])


def backend_at(server: ar.Server, run_id: str = "job", *, read_timeout: float = 60.0) -> HttpBackend:
    """A backend, not entered yet."""
    return HttpBackend("127.0.0.1", http_port(server), run_id, read_timeout=read_timeout)


@asynccontextmanager
async def served(**options: Any) -> AsyncIterator[tuple[ar.Server, aiohttp.ClientSession]]:
    """Runs a server, and a client of its HTTP listener."""
    async with ar.serve("127.0.0.1:0", http="127.0.0.1:0", **options) as server:
        assert server.http_url is not None
        async with aiohttp.ClientSession(server.http_url) as client:
            yield server, client


async def join(client: aiohttp.ClientSession, node: str, run_id: str = "job", **settings: Any) -> Any:
    """Joins a run of two nodes; returns the body of the answer."""
    body = {"node": {"name": node}, "settings": {**PAIR, **settings}}
    async with client.post(f"/v1/runs/{run_id}/members", json=body) as answer:
        assert answer.status == 201, await answer.text()
        return await answer.json()


async def problem_of(answer: aiohttp.ClientResponse) -> tuple[int, str]:
    """The status of an answer and the kind of its problem, which must say what to do, too."""
    assert answer.content_type == "application/problem+json", await answer.text()
    body = await answer.json()
    assert body["status"] == answer.status
    assert len(body["detail"]) > 20, body
    return answer.status, body["type"].rpartition(":")[2]


class Events:
    """The events of a stream that is open, one after the other."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self._answer = answer
        self._parser = EventParser()
        self._events: list[ServerEvent] = []

    async def next(self) -> ServerEvent:
        """Waits for the next event.

        Raises:
            EOFError: The stream is over.
        """
        while not self._events:
            data = await self._answer.content.readany()
            if not data:
                raise EOFError
            self._events += self._parser.feed(data)
        return self._events.pop(0)


@asynccontextmanager
async def following(
    client: aiohttp.ClientSession, path: str, headers: dict[str, str] | None = None
) -> AsyncIterator[Events]:
    """Opens a stream of events."""
    async with client.get(path, headers={"Accept": "text/event-stream", **(headers or {})}) as answer:
        assert answer.status == 200, await answer.text()
        assert answer.content_type == "text/event-stream"
        yield Events(answer)


class Script:
    """A server that says what it was told to say, whatever is asked.

    Attributes:
        port: Where it listens, on 127.0.0.1.
        heads: The heads of the requests, in their order.
    """

    def __init__(self, answers: tuple[bytes, ...], *, hold: bool) -> None:
        self.port = 0
        self.heads: list[bytes] = []
        self._answers = list(answers)
        self._hold = hold
        self._serving: dict[asyncio.Task[None] | None, asyncio.StreamWriter] = {}

    @property
    def url(self) -> str:
        """Its base URL."""
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers the requests of one connection, until there are no more answers or requests."""
        self._serving[asyncio.current_task()] = writer
        try:
            while self._answers or self._hold or not self.heads:
                head = await reader.readuntil(b"\r\n\r\n")
                self.heads.append(head)
                length = re.search(rb"Content-Length: (\d+)", head)
                await reader.readexactly(int(length[1]) if length else 0)
                writer.write(self._answers.pop(0))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, IndexError):
            pass
        finally:
            writer.close()

    async def end(self) -> None:
        """Closes all connections."""
        for task, writer in self._serving.items():
            writer.close()
            if task is not None:
                await asyncio.wait([task])


@asynccontextmanager
async def scripted(*answers: bytes, hold: bool = False) -> AsyncIterator[Script]:
    """Runs a server that gives `answers`, one for each request.

    After the last one it closes connections, or holds those open that are.
    """
    script = Script(answers, hold=hold)
    server = await asyncio.start_server(script.serve, "127.0.0.1", 0)
    async with server:
        script.port = server.sockets[0].getsockname()[1]
        try:
            yield script
        finally:
            await script.end()


def ours(status: str = "200 OK", *fields: str, body: bytes | None = b"") -> bytes:
    """An answer as of an arendezvous server; with a `body` of None, one that is still to come."""
    lines = [f"HTTP/1.1 {status}", "Arendezvous-Server: it", *fields]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + (body or b"")

"""What the tests of the rendezvous over HTTP share: a server, a client without sugar, and joins."""

from __future__ import annotations

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

"""A server with an HTTP listener, and two ways to speak to it: with aiohttp, and byte by byte."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import anyio
import msgspec
from yarl import URL

import arendezvous as ar
from arendezvous.server.http.listener import HttpListener
from arendezvous.server.tls import ServerTls

PATIENCE = 60.0


@dataclass
class Reply:
    """What the server answered."""

    status: int
    headers: Any
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    @property
    def kind(self) -> str:
        """The kind of the problem; the answer has to be one, and complete."""
        assert self.headers["Content-Type"] == "application/problem+json", self
        problem = self.json
        assert (problem["status"], bool(problem["title"]), bool(problem["detail"])) == (
            self.status,
            True,
            True,
        )
        return str(problem["type"]).removeprefix("urn:arendezvous:problem:")

    @property
    def etag(self) -> str:
        return str(self.headers["ETag"])


class Client:
    """Asks one server; paths are sent as they are written."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url = url
        self.session = session

    async def ask(self, method: str, path: str, body: bytes | str = b"", **headers: str) -> Reply:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        data = io.BytesIO(body.encode() if isinstance(body, str) else body) if body else None
        with anyio.fail_after(PATIENCE):
            async with self.session.request(
                method, URL(self.url + path, encoded=True), data=data, headers=named
            ) as response:
                return Reply(response.status, response.headers, await response.read())

    async def get(self, path: str, **headers: str) -> Reply:
        return await self.ask("GET", path, **headers)

    async def put(self, path: str, body: bytes | str, **headers: str) -> Reply:
        return await self.ask("PUT", path, body, **headers)

    async def post(self, path: str, body: bytes | str = b"", **headers: str) -> Reply:
        return await self.ask("POST", path, body, **headers)

    async def form(self, path: str, body: str, **headers: str) -> Reply:
        return await self.ask("POST", path, body, Content_Type="application/x-www-form-urlencoded", **headers)

    async def delete(self, path: str, **headers: str) -> Reply:
        return await self.ask("DELETE", path, **headers)


@asynccontextmanager
async def client_of(url: str) -> AsyncIterator[Client]:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        yield Client(url, session)


@dataclass
class Serving:
    """A server, the client of its HTTP listener, and that listener."""

    server: ar.Server
    client: Client
    listener: HttpListener

    @property
    def port(self) -> int:
        return int(self.client.url.rpartition(":")[2])

    @property
    def waits(self) -> int:
        """How many clients wait for something in the store."""
        return self.listener.context.keys.keyspace.waits


@asynccontextmanager
async def http_server(**limits: Any) -> AsyncIterator[Serving]:
    """A whole server with both listeners."""
    listeners: list[HttpListener] = []
    begin = HttpListener.start

    async def start(
        self: HttpListener, host: str, port: int, tls: ServerTls | None = None
    ) -> tuple[str, int]:
        listeners.append(self)
        return await begin(self, host, port, tls)

    HttpListener.start = start  # type: ignore[method-assign]  # to get hold of the listener
    try:
        serving = ar.serve("127.0.0.1:0", http="127.0.0.1:0", limits=ar.ServerLimits(**limits))
        async with serving as server:
            assert server.http_url is not None
            async with client_of(server.http_url) as client:
                yield Serving(server, client, listeners[0])
    finally:
        HttpListener.start = begin  # type: ignore[method-assign]


class Raw:
    """A connection that is sent whatever a test likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def reply(self) -> Reply:
        """Reads one answer."""
        with anyio.fail_after(PATIENCE):
            head = await self.reader.readuntil(b"\r\n\r\n")
            lines = head.decode("latin-1").split("\r\n")
            headers = {
                name.title(): value.strip()
                for name, _, value in (line.partition(":") for line in lines[1:] if line)
            }
            body = await self.reader.readexactly(int(headers.get("Content-Length", 0)))
        return Reply(int(lines[0].split()[1]), headers, body)

    async def rest(self) -> bytes:
        """Reads all that comes until the server closes the connection."""
        with anyio.fail_after(PATIENCE):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""


@asynccontextmanager
async def raw(port: int) -> AsyncIterator[Raw]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Raw(reader, writer)
    finally:
        writer.transport.abort()

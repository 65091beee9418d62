"""Targets that are a server of ours: what strangers send ends in an answer or a closed connection.

After each input an honest client sets a value, gets it, and looks at a run.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

from hypothesis import strategies as st

import arendezvous as ar
from arendezvous.server.http.resources import RESOURCES
from arendezvous.server.http.routes import routes_of
from arendezvous.wire.native.login import encode_login
from arendezvous.wire.native.messages import PREFACE
from tests.fuzz.parsers import CLIENT, requests
from tests.fuzz.runner import Check, Target
from tests.fuzz.strategies import broken, in_pieces, joined, json_bytes, one_of_these

QUIET: Final = 0.02  # seconds after which no more of an answer is waited for
"""Most inputs are answered at once; what waits is left waiting, and its connection is closed."""


class Honest:
    """A client that must be served whatever others do."""

    def __init__(self, server: ar.Server, store: ar.TcpStore) -> None:
        self._server = server
        self._store = store
        self._count = 0

    async def require_service(self) -> None:
        self._count += 1
        value = b"%d" % self._count
        await self._store.set("honest", value)
        assert await self._store.get("honest") == value


@asynccontextmanager
async def honest() -> AsyncIterator[tuple[ar.Server, Honest]]:
    async with ar.serve("127.0.0.1:0", http="127.0.0.1:0") as server:
        port = int(server.tcp_url.rpartition(":")[2])
        async with ar.TcpStore("127.0.0.1", port, timeout=5, read_timeout=5) as store:
            yield server, Honest(server, store)


async def exchange(port: int, pieces: list[bytes]) -> bytes:
    """Sends pieces on a connection of their own; returns what is answered until nothing more comes."""
    heard = b""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        with suppress(ConnectionError):
            for piece in pieces[:64]:
                writer.write(piece)
                await asyncio.sleep(0)
            writer.write(b"".join(pieces[64:]))
            with suppress(TimeoutError):
                async with asyncio.timeout(QUIET):
                    while data := await reader.read(65536):
                        heard += data
    finally:
        writer.transport.abort()
    return heard


@asynccontextmanager
async def tcp_listener() -> AsyncIterator[Check]:
    async with honest() as (server, client):
        port = int(server.tcp_url.rpartition(":")[2])

        async def feed(pieces: list[bytes]) -> None:
            await exchange(port, pieces)
            await client.require_service()

        yield feed


@asynccontextmanager
async def http_listener() -> AsyncIterator[Check]:
    async with honest() as (server, client):
        assert server.http_url is not None
        port = int(server.http_url.rpartition(":")[2])

        async def feed(pieces: list[bytes]) -> None:
            heard = await exchange(port, pieces)
            statuses = {part.split(b" ", 1)[0] for part in heard.split(b"HTTP/1.1 ")[1:]}
            assert b"500" not in statuses, heard[:2000]
            await client.require_service()

        yield feed


# What is nearly a request of HTTP


PATHS: Final = sorted({route.template for route in routes_of(RESOURCES)})
NAMES: Final = (
    "job",
    "a",
    "%2e%2e",
    "..",
    "a%2Fb",
    "%",
    "%zz",
    "%ff",
    "\xe9",
    "x" * 300,
    "a b",
    "",
    "{run_id}",
)
QUERIES: Final = (
    "", "wait=0.01", "wait=nan", "wait=1e999", "op=add", "op=append", "op=compare-set", "op=push", "op=pop",
    "op=barrier&world_size=2", "op=barrier&world_size=" + "9" * 5000, "op=multi-get", "op=multi-set",
    "op=check", "limit=-1", "limit=9999999999999999999999", "after=%ff", "prefix=%", "a=b&" * 200,
    "incarnation=1&round=x", "seconds=1", "limit=\xb2", "op=give-back", "reason=%0a",
)  # fmt: skip
HEADERS: Final = {
    "Host": ("127.0.0.1", "x.example", "[", "[::1", "\xff", ""),
    "Content-Type": ("application/json", "application/x-www-form-urlencoded", "text/\xff", "a/b; charset=x"),
    "Content-Length": ("0", "5", "-1", "99999999999999999999", "x", "1, 2"),
    "Transfer-Encoding": ("chunked", "gzip", "chunked, chunked"),
    "Content-Encoding": ("gzip", "deflate", "br", "identity"),
    "Idempotency-Key": ("k", "\xff\xfe", "x" * 200, ""),
    "Arendezvous-Session": ("x", "\xff", "x" * 5000),
    "Arendezvous-Server": ("x", "\xff"),
    "Authorization": ("Bearer x", "Bearer \xff", "Basic eDp5", "Bearer"),
    "Origin": ("http://[", "\xff", "null", "http://127.0.0.1"),
    "Expect": ("100-continue", "\xff", "200-ok"),
    "If-None-Match": ("*", '"1-x"', "W/", '"' * 50, "\xff", ", " * 500),
    "If-Match": ("*", '"1-x"', "x", '"1-'),
    "Last-Event-ID": ("1", "x-1", "9" * 5000, "\xb2", "-1"),
    "Accept": ("text/event-stream", "*/*", "\xff", ";q=x"),
    "Accept-Encoding": ("gzip;q=x", "identity", "\xff"),
    "Connection": ("close", "upgrade", "keep-alive, \xff"),
    "Upgrade": ("websocket", "h2c"),
    "Range": ("bytes=0-", "x"),
    "Cookie": ("a=b", "\xff=;;"),
}  # fmt: skip
BODIES: Final = st.sampled_from((
    {"node": {"name": "a"}, "settings": {"min_nodes": 1, "max_nodes": 2}},
    {"node": {"name": "a"}, "settings": {"min_nodes": 1, "max_nodes": 2},
     "after": {"incarnation": 1, "round": 0},
     "held": {"incarnation": 1, "round": 0, "rank": 0, "world_size": 1, "digest": "x"}},
    {"by": "me", "reason": "x"}, {"incarnation": 1}, {"seconds": 3.0, "reason": "x"}, {},
    {"expected": "", "desired": "AAAA"}, {"keys": ["a", "b"]}, {"items": [["a", "AAAA"]]}, 5,
))  # fmt: skip


@st.composite
def http_requests(draw: st.DrawFn) -> bytes:
    method = draw(
        st.sampled_from(("GET", "HEAD", "PUT", "POST", "DELETE", "PATCH", "OPTIONS", "\x00", "get"))
    )
    path = draw(st.sampled_from(PATHS))
    for part in ("{run_id}", "{node}", "{key}", "{queue}", "{name}"):
        path = path.replace(part, draw(st.sampled_from(NAMES)))
    query = draw(st.sampled_from(QUERIES))
    body = draw(st.one_of(json_bytes(BODIES), st.just(b""), st.just(b"a=b&c=d"), st.binary(max_size=40)))
    given = draw(st.dictionaries(st.sampled_from(sorted(HEADERS)), st.integers(0, 5), max_size=4))
    headers = {"Host": "127.0.0.1", "Content-Length": str(len(body))}
    headers |= {name: HEADERS[name][at % len(HEADERS[name])] for name, at in given.items()}
    lines = [f"{method} {path}{'?' if query else ''}{query} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace") + body


native: Final = joined(CLIENT).map(lambda data: PREFACE + CLIENT[0] + data)
login: Final = requests.map(lambda data: encode_login("t" * 20) + data)
curl: Final = st.lists(http_requests(), min_size=1, max_size=2).map(b"".join)
TARGETS: Final[tuple[Target, ...]] = (
    Target("tcp-listener", in_pieces(
        broken(native | requests | login | one_of_these(b"GET / HTTP/1.1\r\n\r\n"),
               most=3)), tcp_listener),
    Target("http-listener", in_pieces(st.one_of(curl, curl, broken(curl))), http_listener),
)  # fmt: skip

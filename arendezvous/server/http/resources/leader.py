"""Everything else, at a server that does not lead: the leader answers, and the answer is passed on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

import aiohttp
import anyio
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from arendezvous.server.http.responses import Problem
from arendezvous.server.http.routes import CONTEXT, Answer, Needs, Resource, Route

CONNECT_TIMEOUT: Final = 5.0  # seconds that a connection to the leader may take
PATIENCE: Final = 2.0  # seconds that a request waits for a leader while there is none
_OF_A_CONNECTION: Final = frozenset({
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "trailers",
    "transfer-encoding", "upgrade",
})  # fmt: skip
"""Header fields that are about one connection, and not about what it carries (RFC 9110, 7.6.1)."""
_SESSION: Final = web.AppKey("session", aiohttp.ClientSession)


async def _pass_on(request: web.Request) -> web.StreamResponse:
    """Passes the request on to the leader, and its answer back, as it comes."""
    leadership = request.app[CONTEXT].leadership
    leader = None
    if leadership is not None:
        with anyio.move_on_after(PATIENCE):
            leader = await leadership.other_than("")
    if leader is None or not leader.http:
        raise _nobody("no server leads at the moment" if leader is None else f"{leader.tcp} has no HTTP port")
    try:
        answer = await request.app[_SESSION].request(
            request.method,
            URL(leader.http + request.raw_path, encoded=True),
            headers=_carried(request.headers),
            data=request.content if request.can_read_body else None,
            allow_redirects=False,
        )
    except (aiohttp.ClientError, OSError) as error:
        why = getattr(error, "strerror", None) or error
        raise _nobody(f"{leader.http}, which leads, cannot be reached: {why}") from error
    async with answer:
        response = web.StreamResponse(
            status=answer.status, reason=answer.reason, headers=_carried(answer.headers)
        )
        await response.prepare(request)
        try:
            async for piece in answer.content.iter_any():
                await response.write(piece)
        except (aiohttp.ClientError, OSError):  # the client must not take it for the end of the answer
            if request.transport is not None:
                request.transport.abort()
        return response


def _carried(headers: aiohttp.typedefs.LooseHeaders) -> CIMultiDict[str]:
    """The header fields that are not about one connection."""
    named = CIMultiDict(headers)
    dropped = {name.strip().lower() for name in named.get("Connection", "").split(",")} | _OF_A_CONNECTION
    return CIMultiDict((name, value) for name, value in named.items() if name.lower() not in dropped)


def _nobody(said: str) -> Problem:
    return Problem(503, f"{said}; try again, here or at another server", "no-leader", {"Retry-After": "1"})


async def _shared(app: web.Application) -> AsyncIterator[None]:
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),  # streams of events are open for long
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT),
        auto_decompress=False,
        skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
        cookie_jar=aiohttp.DummyCookieJar(),
    ) as session:
        app[_SESSION] = session
        yield


RESOURCE: Final = Resource((
    Route(
        "*", "/{path:.*}", "leader", _pass_on, "server", {200: Answer("The leader's answer.")},
        needs=Needs.NOTHING,  # the leader asks for what it takes
    ),
), _shared)  # fmt: skip

"""Server-sent events: an answer that goes on (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import HttpVersion11, web

from arendezvous.server.http.responses import NO_STORE
from arendezvous.server.http.routes import EVENTS

PING: Final = 15.0  # seconds of silence after which a comment is sent: proxies cut off what is silent for 60
_FIELDS: Final = {
    "Content-Type": EVENTS,
    "X-Accel-Buffering": "no",  # nginx would keep small events back
    **NO_STORE,
}
_COMMENT: Final = b": still here\n\n"


class EventResponse:
    """An answer of events, one after the other, for as long as the client listens.

    Whoever sends reads what is to be sent from a place of bounded size, whenever `news` says that there is
    something: a client that does not read costs no memory beyond that and the transport's buffer.

    Attributes:
        response: What the handler returns when it is over.
        news: To be set when there is something to send.
        _ping: Has a comment sent after some silence; None before the stream was silent for the first time.
        _due: Whether such a comment is to be sent.
    """

    def __init__(self, request: web.Request, status: int = 200) -> None:
        self.response = web.StreamResponse(status=status, headers=_FIELDS)
        self.news = asyncio.Event()
        self._request = request
        self._loop = asyncio.get_running_loop()
        self._ping: asyncio.TimerHandle | None = None
        self._due = False

    def __enter__(self) -> EventResponse:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        """Ends the stream; that the client is gone is no error of the block."""
        if self._ping is not None:
            self._ping.cancel()
        return kind is not None and issubclass(kind, ConnectionResetError)

    async def send(self, event: str, data: bytes, id_: str = "") -> None:
        """Sends one event, whose data is JSON; waits while the client does not read. Fails if it is gone."""
        await self.write(event_frame(event, data, id_))

    async def more(self) -> None:
        """Waits for news, but no longer than the connection may be silent, which it then is not any more."""
        if not self.response.prepared:
            await self.write(_COMMENT)
        if self._ping is None:  # not before, as while a crowd joins there is more urgent work
            self._arm()
        await self.news.wait()
        self.news.clear()
        if self._due:
            self._due = False
            await self.write(_COMMENT)

    async def write(self, data: bytes) -> None:
        """Sends some frames, as `send` does one."""
        if not self.response.prepared:
            if self._request.version < HttpVersion11:
                self.response.force_close()  # what has no length ends with the connection
            await self.response.prepare(self._request)
        await self.response.write(data)

    def _arm(self) -> None:
        self._ping = self._loop.call_later(PING, self._on_timer)

    def _on_timer(self) -> None:
        self._due = True
        self.news.set()
        self._arm()


def event_frame(event: str, data: bytes, id_: str = "") -> bytes:
    """One event as it is sent; its data is JSON."""
    mark = f"id: {id_}\n" if id_ else ""
    return b"%b%b\n\n" % (f"event: {event}\n{mark}data: ".encode(), data)


def wants_stream(request: web.Request) -> bool:
    """Whether the client asks for events rather than one answer."""
    return EVENTS in request.headers.get("Accept", "")

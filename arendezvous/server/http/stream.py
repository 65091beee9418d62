"""Server-sent events: an answer that goes on (https://html.spec.whatwg.org/multipage/server-sent-events.html).

Each event is one chunk (RFC 9112, section 7.1) and one write, the first together with the head.
"""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import HttpVersion11, web

from arendezvous.server.http.exchange import NO_STORE
from arendezvous.server.http.written import Written, head_of, write

CONTENT_TYPE: Final = "text/event-stream"
PING: Final = 15.0  # seconds of silence after which a comment is sent: proxies cut off what is silent for 60
_FIELDS: Final = {
    "Content-Type": CONTENT_TYPE,
    "X-Accel-Buffering": "no",  # nginx would keep small events back
    **NO_STORE,
}
_CHUNKS: Final = {**_FIELDS, "Transfer-Encoding": "chunked"}
_COMMENT: Final = b": still here\n\n"


class EventStream:
    """An answer of events, one after the other, for as long as the client listens.

    Whoever sends reads what is to be sent from a place of bounded size, whenever `news` says that there is
    something: a client that does not read costs no memory beyond that and the transport's buffer.

    Args:
        request: What is answered.
        status: The status of the answer.

    Attributes:
        news: To be set when there is something to send.
    """

    def __init__(self, request: web.Request, status: int = 200) -> None:
        self._request = request
        self._status = status
        self._chunked = request.version >= HttpVersion11
        self._reusable = self._chunked and request.keep_alive
        self._loop = asyncio.get_running_loop()
        self._ping: asyncio.TimerHandle | None = None
        self._due = False
        self._begun = False
        self.news = asyncio.Event()

    @property
    def response(self) -> web.StreamResponse:
        """What the handler returns when it is over."""
        end = b"0\r\n\r\n" if self._chunked else b""
        return Written(self._status, end, keep_alive=self._reusable)

    async def __aenter__(self) -> EventStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._ping is not None:
            self._ping.cancel()

    async def send(self, event: str, data: bytes, id_: str = "") -> None:
        """Sends one event, whose data is JSON; waits while the client does not read.

        Raises:
            ConnectionError: The client is gone.
        """
        mark = f"id: {id_}\n" if id_ else ""
        await self._write(b"%b%b\n\n" % (f"event: {event}\n{mark}data: ".encode(), data))

    async def more(self) -> None:
        """Waits for news, but no longer than the connection may be silent, which it then is not any more.

        Raises:
            ConnectionError: The client is gone.
        """
        if not self._begun:
            await self._write(_COMMENT)
        if self._ping is None:  # not before, as while a crowd joins there is more urgent work
            self._arm()
        await self.news.wait()
        self.news.clear()
        if self._due:
            self._due = False
            await self._write(_COMMENT)

    async def _write(self, data: bytes) -> None:
        if self._chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        if not self._begun:
            self._begun = True
            fields = _CHUNKS if self._chunked else _FIELDS
            data = head_of(self._request, self._status, fields, keep_alive=self._reusable) + data
        await write(self._request, data)

    def _arm(self) -> None:
        self._ping = self._loop.call_later(PING, self._on_timer)

    def _on_timer(self) -> None:
        self._due = True
        self.news.set()
        self._arm()


def wants_stream(request: web.Request) -> bool:
    """Whether the client asks for events rather than one answer."""
    return CONTENT_TYPE in request.headers.get("Accept", "")

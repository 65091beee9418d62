"""One connection of the HTTP door: aiohttp's, with a deadline for each thing that it may be waited for.

aiohttp bounds the sizes of a request's line and header fields, and closes what is idle. What it does not
bound is here: how long the whole header block of a request may take, how slowly a body may come, and for how
long a peer may leave an answer unread.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from http import HTTPStatus
from typing import Final, cast

from aiohttp import StreamReader, web

from arendezvous.server.access.admission import Admission
from arendezvous.server.access.limits import ServerLimits
from arendezvous.server.http.counting import CountedTransport
from arendezvous.server.http.problem import Problem
from arendezvous.server.tcp.listener import peer_name

logger = logging.getLogger(__name__)

MAX_LINE: Final = 32 * 1024  # the longest key, every byte of it percent-encoded, and a query
MAX_FIELD: Final = 8 * 1024
MAX_HEADERS: Final = 64
LINGERING: Final = 2.0  # seconds for the rest of a body that nobody wants
BODY_RATE: Final = 64 * 1024  # bytes a second below which a body is too slow, after a start

_REFUSAL: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"
)


class SlowBodyError(Problem, TimeoutError):
    """A body did not come in time; as a `TimeoutError` it ends aiohttp's wait for the rest, too."""


class HttpConnection(web.RequestHandler):
    """One connection, counted together with those of the other doors.

    Args:
        server: aiohttp's server, which knows the application.
        admission: Says whether there is room.
        limits: What the server takes on.
        known: Where it is entered for as long as it lives.
        counted: Whether it has been counted already.
    """

    def __init__(
        self,
        server: web.Server,
        admission: Admission,
        limits: ServerLimits,
        known: set[HttpConnection],
        *,
        counted: bool = False,
    ) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=limits.idle_timeout,
            access_log=None,  # type: ignore[arg-type]  # aiohttp checks for it, but does not say so
            logger=logger,
            max_line_size=MAX_LINE,
            max_field_size=MAX_FIELD,
            max_headers=MAX_HEADERS,
            lingering_time=LINGERING,
            auto_decompress=False,
        )
        self._admission = admission
        self._limits = limits
        self._known = known
        self._counted = counted
        self._admitted = False
        self._peer = "?"
        self._busy = False
        self._headers_due: float | None = None
        self._headers_timer: asyncio.TimerHandle | None = None
        self._reading_due: asyncio.TimerHandle | None = None
        self._wire: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Counts the connection, or refuses it."""
        wire = self._wire = cast(asyncio.Transport, transport)
        self._peer = peer_name(transport)
        if not (self._counted or self._admission.enter(self._peer)):
            wire.write(_REFUSAL)
            wire.close()
            return
        self._admitted = True
        self._known.add(self)
        self._admission.traffic.http.opened += 1
        counted = CountedTransport(wire, self._admission.traffic.http)
        super().connection_made(cast(asyncio.Transport, counted))
        self._expect_headers()

    def data_received(self, data: bytes) -> None:
        """Takes what has come; from the first byte of a request its headers have to be there in time."""
        if self._admitted:
            self._admission.traffic.http.received += len(data)
            if data and not self._busy:
                self._expect_headers()
            super().data_received(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forgets the connection; the request under way is cancelled."""
        self._cancel("_headers_timer")
        self._cancel("_reading_due")
        if self._admitted:
            self._admitted = False
            self._admission.leave()
            self._admission.traffic.http.closed += 1
            self._known.discard(self)
            super().connection_lost(exc)
        self._wire = None

    def pause_writing(self) -> None:
        """The peer leaves an answer unread: it may not for ever."""
        super().pause_writing()
        self._reading_due = self._later(self._limits.write_timeout, self._unread)

    def resume_writing(self) -> None:
        """The peer reads again."""
        self._cancel("_reading_due")
        super().resume_writing()

    def abort(self) -> None:
        """Breaks the connection off at once."""
        if self._wire is not None:
            self._wire.abort()

    @property
    def unsent(self) -> int:
        """Bytes of answers that are waiting to be read by the peer."""
        return 0 if self._wire is None else self._wire.get_write_buffer_size()

    def request_begins(self, request: web.Request) -> None:
        """The headers of a request have come: now its body has to."""
        self._busy = True
        self._headers_due = None
        if not request.content.is_eof():
            BodyDeadline(request.content, self._limits.handshake_timeout)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Sends the answer; then the connection is idle."""
        try:
            return await super().finish_response(request, resp, start_time)
        finally:
            self._busy = False

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answers what is no request of HTTP, and ends the connection."""
        self._busy = True
        self._headers_due = None
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            logger.error("%s: a request failed", self._peer, exc_info=exc)
            problem = Problem(status, "an error of the server itself; its log says more", "internal")
        else:
            logger.info("%s: not a request of HTTP: %s", self._peer, message)
            said = (message or "").partition("\n")[0].rstrip(":")
            detail = f"this is not a request of HTTP that can be understood: {said or exc}"
            problem = Problem(status, detail, "bad-request")
        response = problem.response()
        response.force_close()
        return response

    def _expect_headers(self) -> None:
        if self._headers_due is None:
            loop = asyncio.get_running_loop()
            self._headers_due = loop.time() + self._limits.handshake_timeout
            if self._headers_timer is None:  # else it looks again: cheaper than a timer for each request
                self._headers_timer = loop.call_at(self._headers_due, self._look_for_headers)

    def _look_for_headers(self) -> None:
        self._headers_timer = None
        if self._headers_due is None:
            return
        loop = asyncio.get_running_loop()
        if loop.time() < self._headers_due:
            self._headers_timer = loop.call_at(self._headers_due, self._look_for_headers)
            return
        logger.info(
            "%s: dropped: the headers of a request were not complete after %g s",
            self._peer,
            self._limits.handshake_timeout,
        )
        self.abort()

    def _unread(self) -> None:
        logger.warning(
            "%s: dropped: it has left an answer unread for %g s", self._peer, self._limits.write_timeout
        )
        self.abort()

    def _later(self, seconds: float, do: Callable[[], None]) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(seconds, do)

    def _cancel(self, name: str) -> None:
        timer: asyncio.TimerHandle | None = getattr(self, name)
        if timer is not None:
            timer.cancel()
            setattr(self, name, None)


class BodyDeadline:
    """Ends the body of a request that comes too slowly: whoever reads it gets `SlowBodyError`.

    Args:
        content: The body.
        grace: Seconds that it has in any case; each 64 KiB that have come give it one more.
    """

    def __init__(self, content: StreamReader, grace: float) -> None:
        self._content = content
        self._grace = grace
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._timer = self._loop.call_later(grace, self._look)
        self._content.on_eof(self._timer_off)

    def _timer_off(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        came = self._content.total_bytes
        due = self._began + self._grace + came / BODY_RATE
        if self._content.is_eof() or self._content.exception() is not None:
            return
        if self._loop.time() < due:
            self._timer = self._loop.call_at(due, self._look)
            return
        self._content.set_exception(
            SlowBodyError(
                408,
                f"of the body only {came} bytes have come in {self._loop.time() - self._began:.3g} s;"
                f" after {self._grace:g} s at least {BODY_RATE} bytes a second are expected",
                "slow-body",
                {"Connection": "close"},
            )
        )


def begin(request: web.Request) -> None:
    """Tells the connection that a request has begun."""
    if isinstance(request.protocol, HttpConnection):
        request.protocol.request_begins(request)

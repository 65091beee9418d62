"""The HTTP listener: accepts connections, and has their requests answered by the resources."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import Final

import anyio
from aiohttp import web

from arendezvous.server.access.admission import FailureThrottle
from arendezvous.server.context import ServerContext
from arendezvous.server.http.access import authorize
from arendezvous.server.http.bodies import BUDGET, BodyBudget
from arendezvous.server.http.connection import HttpConnection, HttpConnections, connection_of
from arendezvous.server.http.pieces import send_in_pieces
from arendezvous.server.http.repeats import REPEATS, Repeats
from arendezvous.server.http.resources import RESOURCES
from arendezvous.server.http.responses import answer_to
from arendezvous.server.http.routes import CONTEXT, Handler, Resource, add_resources
from arendezvous.server.http.store_access import once_recorded
from arendezvous.server.listening import ServerListener
from arendezvous.server.tls import ServerTls
from arendezvous.wire.http.names import PROTOCOL_HEADER, SERVER_HEADER
from arendezvous.wire.native.messages import VERSION

MAX_LINE: Final = 32 * 1024  # the longest key, every byte of it percent-encoded, and a query
MAX_FIELD: Final = 8 * 1024
MAX_HEADERS: Final = 64
LINGERING: Final = 2.0  # seconds for the rest of a body that nobody wants
SOFTWARE: Final = "arendezvous"  # in the header ``Server`` of every answer
_SHUTDOWN: Final = 1.0  # seconds for requests under way, once their connections are broken off
_INTERNAL: Final = 500

logger = logging.getLogger(__name__)


class HttpListener(ServerListener):
    """Serves HTTP/1.1.

    Attributes:
        app: What answers.
        connections: Those that are open.
    """

    def __init__(self, context: ServerContext, resources: tuple[Resource, ...] = RESOURCES) -> None:
        super().__init__(context, "http")
        self.app = make_app(context, resources)
        self._connections = HttpConnections(context)
        self.connections = self._connections.open
        self._runner = web.AppRunner(
            self.app,
            handler_cancellation=True,
            shutdown_timeout=_SHUTDOWN,
            access_log=None,
            logger=_protocol_logger(context.shared.throttle),
            keepalive_timeout=context.limits.idle_timeout,
            max_line_size=MAX_LINE,
            max_field_size=MAX_FIELD,
            max_headers=MAX_HEADERS,
            lingering_time=LINGERING,
            auto_decompress=False,
        )

    async def start(self, host: str, port: int, tls: ServerTls | None = None) -> tuple[str, int]:
        """See `ServerListener.start`."""
        await self._runner.setup()
        return await super().start(host, port, tls)

    def dismiss(self) -> None:
        """Drops those whose tokens have been withdrawn."""
        for connection in list(self.connections):
            connection.dismiss()

    def drop(self) -> None:
        """Breaks all connections off."""
        for connection in list(self.connections):
            connection.abort()

    def _connection(self, *, counted: bool = False) -> HttpConnection:
        make_protocol = self._runner.server
        assert make_protocol is not None  # noqa: S101 - it has been set up
        return HttpConnection(self._connections, make_protocol, counted=counted)

    async def _end(self) -> None:
        self._connections.close()
        self.drop()
        if self._runner.server is not None:  # it has been set up, and not been stopped already
            with anyio.move_on_after(2 * _SHUTDOWN + 1):
                await asyncio.sleep(0)  # lets the transports tell their protocols
                await self._runner.cleanup()


def make_app(context: ServerContext, resources: tuple[Resource, ...] = RESOURCES) -> web.Application:
    """Makes the application over the server's own objects."""
    app = web.Application(middlewares=[_handle], client_max_size=context.limits.max_body)
    app[CONTEXT] = context
    app[BUDGET] = BodyBudget(context.limits)
    app[REPEATS] = Repeats()
    app.on_response_prepare.append(_sign)
    add_resources(app, resources)
    return app


@web.middleware
async def _handle(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Checks who asks, has the request handled, turns errors into answers, and answers.

    One middleware for all of that, as each of several would be a wait of its own. It sends the answer, for
    the connection to know when that is over.
    """
    connection = connection_of(request)
    try:
        try:
            if connection is not None:
                await connection.request_begins()
            grant = authorize(request)
            if connection is not None:
                connection.grant = grant
            response = await handler(request)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is answered
            response = answer_to(request, error)
        if request.app[CONTEXT].keys.holds:
            response = await once_recorded(request, response)
        if connection is not None and isinstance(response, web.Response):
            connection.answer_begins(send_in_pieces(request, response))
        with suppress(ConnectionResetError):  # the client is gone
            await response.prepare(request)
            await response.write_eof()
        return response
    finally:
        request.app[BUDGET].give_back(request)
        if connection is not None:
            connection.request_ends()


async def _sign(request: web.Request, response: web.StreamResponse) -> None:
    """Has every answer say which start of which server it is from."""
    response.headers["Server"] = SOFTWARE
    response.headers.setdefault(PROTOCOL_HEADER, str(VERSION))
    response.headers.setdefault(SERVER_HEADER, request.app[CONTEXT].server_id)  # an answer passed on has one


def _protocol_logger(throttle: FailureThrottle) -> logging.Logger:
    """Makes the logger of aiohttp's protocol, to which it tells who sends what is no request of HTTP.

    That is the client's error, not ours: it is told of without a stack trace, as at the other listeners.
    """

    def is_ours(record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if error is None or getattr(error, "code", _INTERNAL) >= _INTERNAL:
            return True
        said = getattr(error, "message", str(error)).partition("\n")[0].rstrip(":")
        peer = str(record.args[0]) if isinstance(record.args, tuple) and record.args else "a peer"
        throttle.dropped(peer, f"not a request of HTTP: {said}")
        return False

    protocol = logging.Logger(f"{__name__}.protocol")  # of this listener alone
    protocol.parent = logger
    protocol.addFilter(is_ours)
    return protocol

"""The HTTP door: listens, and hands each connection to the application."""

from __future__ import annotations

import asyncio

import anyio
from aiohttp import web

from arendezvous.server.access.admission import Admission
from arendezvous.server.binding import listen, stop_listening
from arendezvous.server.http.app import make_app
from arendezvous.server.http.connection import HttpConnection
from arendezvous.server.http.context import HttpContext
from arendezvous.server.http.guard import dismiss
from arendezvous.server.tls import ServerTls, TlsDoor

_SHUTDOWN = 1.0  # seconds for requests under way, once their connections are broken off


class HttpDoor:
    """Serves HTTP/1.1 on one address.

    Args:
        context: The objects behind it.
        admission: Counts connections together with the other doors.

    Attributes:
        context: The objects behind it.
        app: What answers.
        connections: Those that are open.
    """

    def __init__(self, context: HttpContext, admission: Admission) -> None:
        self.connections: set[HttpConnection] = set()
        self.context = context
        self.app = make_app(context)
        self._admission = admission
        self._runner: web.AppRunner | None = None
        self._server: asyncio.Server | TlsDoor | None = None

    async def start(self, host: str, port: int, tls: ServerTls | None = None) -> tuple[str, int]:
        """Listens on `host` and `port` (0 picks one) and returns the address.

        Args:
            host: The address to listen on.
            port: The port.
            tls: The settings of TLS; None serves without.

        Raises:
            RendezvousConnectionError: The address cannot be bound; its cause tells why.
        """
        runner = self._runner = web.AppRunner(self.app, handler_cancellation=True, shutdown_timeout=_SHUTDOWN)
        await runner.setup()
        manager = runner.server
        assert manager is not None  # noqa: S101 - it has just been set up

        limits = self.context.limits

        def connection(*, counted: bool = False) -> HttpConnection:
            return HttpConnection(manager, self._admission, limits, self.connections, counted=counted)

        if tls is None:
            self._server = await listen(connection, host, port)
        else:
            self._server = TlsDoor(tls, self._admission, limits, lambda: connection(counted=True))
            await self._server.open(host, port)
        self._admission.doors["http"] = self._server.is_serving
        bound = self._server.sockets[0].getsockname()
        return bound[0], bound[1]

    def dismiss(self) -> None:
        """Drops those whose tokens have been withdrawn."""
        dismiss(self.app)

    async def stop(self) -> None:
        """Stops accepting, and breaks all connections off; requests under way are cancelled."""
        try:
            if isinstance(self._server, TlsDoor):
                await self._server.close()
            elif self._server is not None:
                await stop_listening(self._server)
        finally:
            for connection in list(self.connections):
                connection.abort()
        runner, self._runner = self._runner, None
        if runner is not None:
            with anyio.move_on_after(2 * _SHUTDOWN + 1):
                await asyncio.sleep(0)  # lets the transports tell their protocols
                await runner.cleanup()

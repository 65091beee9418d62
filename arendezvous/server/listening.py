"""Listens at one address of a server, with or without TLS, whatever is spoken there."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from functools import partial

from arendezvous.server.binding import listen, stop_listening
from arendezvous.server.context import ServerContext
from arendezvous.server.tls import ServerTls, TlsListener


class ServerListener(ABC):
    """Accepts connections at one address."""

    def __init__(self, context: ServerContext, name: str) -> None:
        self.context = context
        self._name = name
        self._server: asyncio.Server | TlsListener | None = None

    async def start(self, host: str, port: int, tls: ServerTls | None = None) -> tuple[str, int]:
        """Listens on `host` and `port` (0 picks one) and returns the address; without `tls` in the clear.

        Raises:
            RendezvousConnectionError: The address cannot be bound; its cause tells why.
        """
        if tls is None:
            self._server = await listen(self._connection, host, port)
        else:
            self._server = TlsListener(tls, self.context, partial(self._connection, counted=True))
            await self._server.open(host, port)
        self.context.admission.listeners[self._name] = self._server.is_serving
        bound = self._server.sockets[0].getsockname()
        self.context.listeners.ports[self._name] = bound[1]
        return bound[0], bound[1]

    async def stop(self) -> None:
        """Stops accepting, and breaks off all connections; what a peer has not read by then is lost."""
        try:
            if isinstance(self._server, TlsListener):
                await self._server.close()
            elif self._server is not None:
                await stop_listening(self._server)
        finally:
            await self._end()
        await asyncio.sleep(0)  # lets the transports tell their protocols

    @abstractmethod
    def _connection(self, *, counted: bool = False) -> asyncio.BaseProtocol:
        """Makes the protocol of a connection, which may have been counted already."""

    @abstractmethod
    async def _end(self) -> None:
        """Breaks off all connections."""

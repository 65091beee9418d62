"""``tcp://`` with the embedded default: the node that the endpoint names serves it, if nobody else does."""

from __future__ import annotations

import errno
import logging
import socket
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

import anyio

from arendezvous.backends.session import SessionBackend
from arendezvous.endpoint import join_host_port
from arendezvous.errors import RendezvousConnectionError
from arendezvous.server.serve import Server, serve

logger = logging.getLogger(__name__)

RESOLVE_TIMEOUT = 5.0


class EmbeddedBackend(SessionBackend):
    """A run at our server, which this process hosts if the endpoint is its to host.

    Whether it is, is settled by binding: an address that cannot be bound here belongs to another machine, and
    one that is in use is served already. So of two processes that start at once, the one that binds serves,
    and the other connects to it.

    Args:
        host: Where the server is, or will be.
        port: Its port.
        run_id: The run.
        read_timeout: See `SessionBackend`.
        join_timeout: See `SessionBackend`.
        token: See `SessionBackend`.
        is_host: False never serves; True serves even at an address that is not of this machine (a service
            address, say), on all interfaces; None serves if the address is one of this machine.
    """

    def __init__(
        self,
        host: str,
        port: int,
        run_id: str,
        *,
        read_timeout: float = 60.0,
        join_timeout: float = 600.0,
        token: str = "",
        is_host: bool | None = None,
    ) -> None:
        super().__init__(
            host, port, run_id, read_timeout=read_timeout, join_timeout=join_timeout, token=token
        )
        self._is_host = is_host
        self._resources = AsyncExitStack()
        self.server: Server | None = None

    async def __aenter__(self) -> Self:
        """Serves the endpoint if nobody does and it is this node's to serve; then connects."""
        if self._is_host is not False:
            self.server = await self._host_server()
        try:
            return await super().__aenter__()
        except BaseException:
            await self._resources.aclose()
            raise

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the connection, and the server if it is ours."""
        try:
            await super().__aexit__(kind, error, trace)
        finally:
            await self._resources.aclose()

    async def _host_server(self) -> Server | None:
        for address in await self._resolve():
            try:
                return await self._serve(address)
            except RendezvousConnectionError as error:
                number = error.__cause__.errno if isinstance(error.__cause__, OSError) else None
                if number == errno.EADDRINUSE:
                    return None
                if number not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
        if not self._is_host:
            return None
        try:
            return await self._serve("::" if socket.has_dualstack_ipv6() else "0.0.0.0")  # noqa: S104 - asked for
        except RendezvousConnectionError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EADDRINUSE:
                return None
            raise

    async def _serve(self, address: str) -> Server:
        where = join_host_port(address, self._port)
        server = await self._resources.enter_async_context(serve(where, insecure=True))
        logger.info("serving %s in this process", server.tcp_url)
        return server

    async def _resolve(self) -> list[str]:
        """The addresses that the endpoint's host stands for; none if that cannot be found out in time."""
        found: list[str] = []
        try:
            with anyio.move_on_after(min(RESOLVE_TIMEOUT, self._read_timeout)):
                infos = await anyio.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
                found = list(dict.fromkeys(info[4][0] for info in infos))
        except OSError as error:
            logger.info("%s: the name cannot be resolved: %s", self.endpoint, error)
        return found

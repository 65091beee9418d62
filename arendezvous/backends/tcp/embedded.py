"""``tcp://`` with the embedded default: the node that the endpoint names serves it, if nobody else does."""

from __future__ import annotations

import logging

from arendezvous.backends.hosting import host_server
from arendezvous.backends.tcp.session import SessionBackend
from arendezvous.errors import RendezvousConnectionError, RendezvousSettingsError
from arendezvous.net.credentials import NO_CREDENTIALS, Credentials
from arendezvous.net.servers import Servers
from arendezvous.server.serve import Server

logger = logging.getLogger(__name__)


class EmbeddedBackend(SessionBackend):
    """A run at our server, which this process hosts if the endpoint is its to host.

    Whether it is, is settled by binding: an address that cannot be bound here belongs to another machine, and
    one that is in use is served already. So of two processes that start at once, the one that binds serves,
    and the other connects to it. If the node that serves ends, another one at the same address takes over,
    and the members tell it the round that they hold.

    Args:
        host: Where the server is, or will be.
        port: Its port; 0 if this node is to serve it on a free one.
        run_id: The run.
        read_timeout: See `SessionBackend`, as for `join_timeout`.
        credentials: Also what a server that this process hosts asks for, and speaks TLS with.
        is_host: See `hosting.host_server`.
    """

    def __init__(
        self,
        host: str,
        port: int,
        run_id: str,
        *,
        read_timeout: float = 60.0,
        join_timeout: float = 600.0,
        credentials: Credentials = NO_CREDENTIALS,
        is_host: bool | None = None,
    ) -> None:
        super().__init__(
            host, port, run_id, read_timeout=read_timeout, join_timeout=join_timeout, credentials=credentials
        )
        self._home = (host, port)  # what this node may serve
        self._is_host = is_host
        self.server: Server | None = None

    async def _open(self) -> None:
        """Serves the endpoint if nobody does and it is this node's to serve; then connects."""
        self.server = await self._host_server()
        if self._home[1] == 0 and self.server is None:
            expected = "a URL with a port, as this node does not serve it; only the server may pick one"
            raise RendezvousSettingsError.of("endpoint", self.endpoint, f"{expected} by port 0")
        await super()._open()

    async def _replace_server(self) -> None:
        """Hosts the server anew, after the node that did is gone; the members bring the state with them."""
        if self.server is not None and self.server.is_serving:
            return
        try:
            self.server = await self._host_server()
        except RendezvousConnectionError as error:
            said = "%s: this node cannot serve in place of the one that is gone: %s"
            logger.warning(said, self.endpoint, error)

    async def _host_server(self) -> Server | None:
        server = await host_server(
            *self._home,
            self._resources,
            is_host=self._is_host,
            timeout=self._read_timeout,
            credentials=self.credentials,
            follows=bool(self.server_id),
        )
        if server is not None and self._home[1] == 0:
            self._home = (self._home[0], server.port)
            self._servers = Servers([self._home])
            self._check_open().name = self.endpoint
        return server

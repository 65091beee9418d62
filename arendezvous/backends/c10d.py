"""``c10d://``: a rendezvous in a TCPStore, torch's or ours, shared with stock torchrun agents."""

from __future__ import annotations

import logging
import socket
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

import anyio

from arendezvous.backends.compare_and_set import CompareAndSetBackend
from arendezvous.backends.hosting import host_server
from arendezvous.backends.tokens import StoreTokens
from arendezvous.endpoint import join_host_port
from arendezvous.errors import RendezvousSettingsError
from arendezvous.server.serve import Server
from arendezvous.stores.tcp import TcpStore

logger = logging.getLogger(__name__)


class C10dBackend(CompareAndSetBackend):
    """A run in a TCPStore, which this process hosts if the endpoint is its to host, as stock agents do.

    Args:
        host: Where the store is, or will be.
        port: Its port; not 0, because stock agents could not find it.
        run_id: The run; stock calls it the ``--rdzv-id``.
        read_timeout: Seconds that a request, or connecting, may take before `RendezvousConnectionError`.
        token: Must be empty: a TCPStore asks for none.
        is_host: See `hosting.host_server`.

    Raises:
        RendezvousSettingsError: There is a token, or no port.
    """

    def __init__(
        self,
        host: str,
        port: int,
        run_id: str,
        *,
        read_timeout: float = 60.0,
        token: str = "",
        is_host: bool | None = None,
    ) -> None:
        if token:
            expected = "empty for c10d://, because a TCPStore takes none; use tcp:// with a token"
            raise RendezvousSettingsError(f"token must be {expected}", name="token", expected=expected)
        if not port:
            raise RendezvousSettingsError.of("port", port, "the port of a TCPStore, from 1 to 65535")
        tcp = TcpStore(host, port, read_timeout=read_timeout, connect_timeout=read_timeout)
        self._host = host
        self._port = port
        super().__init__(StoreTokens(tcp, run_id), run_id, store=tcp)
        self._read_timeout = read_timeout
        self._is_host = is_host
        self._tcp = tcp
        self._resources = AsyncExitStack()
        self._address = ""
        self.server: Server | None = None

    @property
    def endpoint(self) -> str:
        """The store's URL."""
        return f"c10d://{join_host_port(self._host, self._port)}"

    def addresses(self) -> tuple[str, ...]:
        """The address from which this machine reaches the store."""
        return (self._address,) if self._address else ()

    async def __aenter__(self) -> Self:
        """Hosts the store if it is this node's to host; then connects, and reads the state."""
        try:
            self.server = await host_server(
                self._host, self._port, self._resources, is_host=self._is_host, timeout=self._read_timeout
            )
            await self._resources.enter_async_context(self._tcp)
            self._address = await self._own_address()
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
        """Closes the connections, and the store's server if it is ours."""
        try:
            await super().__aexit__(kind, error, trace)
        finally:
            await self._resources.aclose()

    async def _own_address(self) -> str:
        """The address that packets to the store would carry; none are sent to find out."""
        try:
            infos = await anyio.getaddrinfo(self._host, self._port, type=socket.SOCK_DGRAM)
            for family, kind, protocol, _, where in infos:
                with socket.socket(family, kind, protocol) as probe:
                    probe.connect(where)
                    return str(probe.getsockname()[0])
        except OSError as error:
            logger.info("%s: this machine's address on the way there is unknown: %s", self.endpoint, error)
        return ""

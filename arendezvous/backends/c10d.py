"""``c10d://``: a rendezvous in a TCPStore, torch's or ours, shared with stock torchrun agents."""

from __future__ import annotations

from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from arendezvous.backends.compare_and_set import CompareAndSetBackend
from arendezvous.backends.hosting import host_server
from arendezvous.backends.routes import own_address
from arendezvous.backends.tokens import StoreTokens
from arendezvous.endpoint import join_host_port
from arendezvous.errors import RendezvousSettingsError
from arendezvous.server.serve import Server
from arendezvous.stores.tcp import TcpStore


class C10dBackend(CompareAndSetBackend):
    """A run in a TCPStore, which this process hosts if the endpoint is its to host, as stock agents do.

    Args:
        host: Where the store is, or will be.
        port: Its port; not 0, because stock agents could not find it.
        run_id: The run; stock calls it the ``--rdzv-id``.
        read_timeout: Seconds that a request, or connecting, may take before `RendezvousConnectionError`.
        is_host: See `hosting.host_server`.

    Raises:
        RendezvousSettingsError: There is no port.
    """

    def __init__(
        self,
        host: str,
        port: int,
        run_id: str,
        *,
        read_timeout: float = 60.0,
        is_host: bool | None = None,
    ) -> None:
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

    @property
    def tcp_store_address(self) -> tuple[str, int] | None:
        """See `RendezvousBackend.tcp_store_address`."""
        return self._host, self._port

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
            self._address = await own_address(self._host, self._port)
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

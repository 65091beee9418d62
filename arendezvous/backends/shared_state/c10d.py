"""``c10d://``: a rendezvous in a TCPStore, torch's or ours, shared with stock torchrun agents."""

from __future__ import annotations

from arendezvous.backends.hosting import host_server
from arendezvous.backends.shared_state.compare_and_set import CompareAndSetBackend
from arendezvous.backends.shared_state.fenced_value import FencedKey
from arendezvous.errors import RendezvousSettingsError
from arendezvous.net.addresses import own_address
from arendezvous.net.endpoint import join_host_port
from arendezvous.net.reach import Reach
from arendezvous.server.serve import Server
from arendezvous.stores.tcp.store import TcpStore


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
        self, host: str, port: int, run_id: str, *, read_timeout: float = 60.0, is_host: bool | None = None
    ) -> None:
        if not port:
            raise RendezvousSettingsError.of("port", port, "the port of a TCPStore, from 1 to 65535")
        tcp = TcpStore(host, port, read_timeout=read_timeout, connect_timeout=read_timeout)
        self._where = (host, port)
        super().__init__(FencedKey(tcp, run_id), run_id, store=tcp)
        self._read_timeout = read_timeout
        self._is_host = is_host
        self._tcp = tcp
        self.server: Server | None = None

    @property
    def endpoint(self) -> str:
        return f"c10d://{join_host_port(*self._where)}"

    @property
    def reach(self) -> Reach:
        return self._tcp.reach

    async def _open(self) -> None:
        timeout, is_host = self._read_timeout, self._is_host
        self.server = await host_server(*self._where, self._resources, is_host=is_host, timeout=timeout)
        await self._resources.enter_async_context(self._tcp)
        self._address = await own_address(*self._where)
        await super()._open()

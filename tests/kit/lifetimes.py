"""Everything that is opened and closed, each at a place of its own: handlers, stores and servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import arendezvous as ar
from arendezvous.rendezvous.option_groups import RendezvousTimeout
from arendezvous.server.store_server import serve_store
from arendezvous.stores.etcd.v2 import EtcdV2Store
from arendezvous.stores.etcd.v3 import EtcdStore
from arendezvous.stores.http.store import HttpStore
from arendezvous.stores.memory import MemoryStore
from arendezvous.stores.port import Store
from arendezvous.stores.tcp.store import TcpStore
from arendezvous.testing.fault_proxy import FaultProxy
from tests.kit.ports import held_ports
from tests.kit.tls_kit import Pki

Thing: TypeAlias = AbstractAsyncContextManager[Any]


@dataclass(frozen=True)
class Place:
    """Where things of one kind are opened.

    Attributes:
        make: Makes the thing of a name, not open yet; there may be several of different names at a time.
        use: Uses one that is open.
        is_gone: Tells whether nothing is known there any more of the thing of a name.
    """

    make: Callable[[str], Thing]
    use: Callable[[Any], Awaitable[object]]
    is_gone: Callable[[str], Awaitable[bool]]


@dataclass(frozen=True)
class Around:
    """What the places need.

    Attributes:
        etcd: The URL of a member of etcd that has the v2 API too.
        pki: Certificates.
    """

    etcd: str
    pki: Pki


async def gone(_: str) -> bool:
    return True


# Handlers

PATIENT: Final[dict[str, Any]] = {
    "keep_alive_interval": 20.0, "disconnect_grace": 50.0, "timeout": RendezvousTimeout(last_call=0.0),
}  # fmt: skip
"""Nobody is dropped for silence while a test runs: who is gone has left."""


def rendezvous(url: str, **options: Any) -> Place:
    """Handlers at what is there already; each is alone in a run of its own."""

    def make(name: str) -> ar.AsyncRendezvousHandler:
        settings = {**PATIENT, **options}
        return ar.open_rendezvous(url, run_id=name, min_nodes=1, node=name, **settings)

    async def is_gone(name: str) -> bool:
        async with ar.open_rendezvous(url, run_id=name, min_nodes=1, **{**PATIENT, **options}) as observer:
            return not (await observer.explain()).nodes

    return Place(make, lambda handler: handler.next_rendezvous(), is_gone)


@asynccontextmanager
async def memory(_: Around) -> AsyncIterator[Place]:
    async with ar.open_rendezvous("memory://lifetimes", run_id="other", min_nodes=1):
        yield rendezvous("memory://lifetimes")


@asynccontextmanager
async def tcp(_: Around) -> AsyncIterator[Place]:
    async with ar.serve("127.0.0.1:0") as server:
        yield rendezvous(server.tcp_url, is_host=False)


@asynccontextmanager
async def embedded(_: Around) -> AsyncIterator[Place]:
    with held_ports(1) as [port]:
        handlers = rendezvous(f"tcp://127.0.0.1:{port}")
        yield Place(handlers.make, handlers.use, gone)


@asynccontextmanager
async def tcp_tls(around: Around) -> AsyncIterator[Place]:
    async with ar.serve("127.0.0.1:0", tls=around.pki.server()) as server:
        yield rendezvous(server.tcp_url, is_host=False, tls_ca=around.pki.ca)


@asynccontextmanager
async def embedded_tls(around: Around) -> AsyncIterator[Place]:
    pki = around.pki
    with held_ports(1) as [port]:
        files = {"tls_ca": pki.ca, "tls_cert": pki.cert, "tls_key": pki.key}
        handlers = rendezvous(f"tcp://127.0.0.1:{port}", **files)
        yield Place(handlers.make, handlers.use, gone)


@asynccontextmanager
async def http(_: Around) -> AsyncIterator[Place]:
    async with ar.serve("127.0.0.1:0", http="127.0.0.1:0") as server:
        assert server.http_url is not None
        yield rendezvous(server.http_url)


@asynccontextmanager
async def https(around: Around) -> AsyncIterator[Place]:
    async with ar.serve("127.0.0.1:0", http="127.0.0.1:0", tls=around.pki.server()) as server:
        assert server.http_url is not None
        yield rendezvous(server.http_url, tls_ca=around.pki.ca)


@asynccontextmanager
async def c10d(_: Around) -> AsyncIterator[Place]:
    async with serve_store() as server:
        yield rendezvous(f"c10d://127.0.0.1:{server.port}", is_host=False)


@asynccontextmanager
async def c10d_hosted(_: Around) -> AsyncIterator[Place]:
    with held_ports(1) as [port]:
        brief = RendezvousTimeout(last_call=0.0, close=0.2)  # who hosts may go before the others leave
        handlers = rendezvous(f"c10d://127.0.0.1:{port}", timeout=brief)
        yield Place(handlers.make, handlers.use, gone)


@asynccontextmanager
async def etcd(around: Around) -> AsyncIterator[Place]:
    yield rendezvous(around.etcd.replace("http://", "etcd://"))


@asynccontextmanager
async def etcd_v2(around: Around) -> AsyncIterator[Place]:
    yield rendezvous(around.etcd.replace("http://", "etcd-v2://"))


@asynccontextmanager
async def static(_: Around) -> AsyncIterator[Place]:
    with held_ports(4) as ports:
        port_of: dict[str, int] = {}

        def make(name: str) -> ar.AsyncRendezvousHandler:
            port = port_of.setdefault(name, ports[len(port_of)])
            return ar.open_rendezvous(f"static://127.0.0.1:{port}", run_id=name, min_nodes=1, rank=0)

        yield Place(make, lambda handler: handler.next_rendezvous(), gone)


# Stores


async def set_and_get(store: Store) -> None:
    await store.set("key", "value")
    assert await store.get("key") == b"value"
    assert await store.multi_get(["key"]) == [b"value"]


@asynccontextmanager
async def memory_store(_: Around) -> AsyncIterator[Place]:
    yield Place(lambda _: MemoryStore(), set_and_get, gone)


@asynccontextmanager
async def tcp_store(_: Around) -> AsyncIterator[Place]:
    async with serve_store() as server:
        yield Place(lambda _: TcpStore("127.0.0.1", server.port), set_and_get, gone)


@asynccontextmanager
async def tcp_store_tls(around: Around) -> AsyncIterator[Place]:
    async with ar.serve("127.0.0.1:0", tls=around.pki.server()) as server:
        credentials = around.pki.client()
        yield Place(lambda _: TcpStore("127.0.0.1", server.port, credentials=credentials), set_and_get, gone)


@asynccontextmanager
async def http_store(_: Around) -> AsyncIterator[Place]:
    async with ar.serve("127.0.0.1:0", http="127.0.0.1:0") as server:
        assert server.http_url is not None
        url = server.http_url
        yield Place(lambda _: HttpStore(url), set_and_get, gone)


@asynccontextmanager
async def etcd_store(around: Around) -> AsyncIterator[Place]:
    yield Place(lambda name: EtcdStore(around.etcd, prefix=f"/{name}/"), set_and_get, gone)


@asynccontextmanager
async def etcd_v2_store(around: Around) -> AsyncIterator[Place]:
    yield Place(lambda name: EtcdV2Store(around.etcd, prefix=f"/{name}"), set_and_get, gone)


# Servers


async def connect_to(port: int) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.transport.abort()


async def connect_to_all(server: ar.Server) -> None:
    await connect_to(server.port)
    if server.http_url is not None:
        await connect_to(int(server.http_url.rpartition(":")[2]))


@asynccontextmanager
async def servers(*, http: bool, pki: Pki | None = None) -> AsyncIterator[Place]:
    """Servers at addresses that stay the same: what is not given back cannot be bound again."""
    with held_ports(8) as ports:
        of: dict[str, tuple[int, int]] = {}

        def make(name: str) -> AbstractAsyncContextManager[ar.Server]:
            tcp_port, http_port = of.setdefault(name, (ports[2 * len(of)], ports[2 * len(of) + 1]))
            return ar.serve(
                f"127.0.0.1:{tcp_port}",
                http=f"127.0.0.1:{http_port}" if http else None,
                tls=None if pki is None else pki.server(),
            )

        yield Place(make, connect_to_all, gone)


@asynccontextmanager
async def store_server(_: Around) -> AsyncIterator[Place]:
    with held_ports(4) as ports:
        port_of: dict[str, int] = {}

        def make(name: str) -> Thing:
            return serve_store("127.0.0.1", port_of.setdefault(name, ports[len(port_of)]))

        yield Place(make, lambda server: connect_to(server.port), gone)


@asynccontextmanager
async def fault_proxy(_: Around) -> AsyncIterator[Place]:
    async with serve_store() as server:
        yield Place(
            lambda _: FaultProxy("127.0.0.1", server.port), lambda proxy: connect_to(proxy.port), gone
        )


HANDLERS: Final[dict[str, Callable[[Around], AbstractAsyncContextManager[Place]]]] = {
    "memory": memory,
    "tcp": tcp,
    "embedded": embedded,
    "tcp with TLS": tcp_tls,
    "embedded with TLS": embedded_tls,
    "http": http,
    "https": https,
    "c10d": c10d,
    "hosted c10d": c10d_hosted,
    "etcd": etcd,
    "etcd-v2": etcd_v2,
    "static": static,
}
STORES: Final[dict[str, Callable[[Around], AbstractAsyncContextManager[Place]]]] = {
    "memory store": memory_store,
    "tcp store": tcp_store,
    "tcp store with TLS": tcp_store_tls,
    "http store": http_store,
    "etcd store": etcd_store,
    "etcd-v2 store": etcd_v2_store,
}
SERVERS: Final[dict[str, Callable[[Around], AbstractAsyncContextManager[Place]]]] = {
    "server": lambda _: servers(http=False),
    "server with HTTP": lambda _: servers(http=True),
    "server with TLS": lambda around: servers(http=True, pki=around.pki),
    "store server": store_server,
    "fault proxy": fault_proxy,
}
EVERYTHING: Final = {**HANDLERS, **STORES, **SERVERS}

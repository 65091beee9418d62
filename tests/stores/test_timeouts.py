"""A time-out that the caller gave bounds the whole operation, of every store, with nobody there to answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio
import pytest

from arendezvous.errors import RendezvousConnectionError
from arendezvous.stores.etcd.v2 import EtcdV2Store
from arendezvous.stores.etcd.v3 import EtcdStore
from arendezvous.stores.port import PrefixStore, Store
from arendezvous.stores.tcp.store import TcpStore

AGES = 3600.0

STORES: dict[str, Callable[[int], Store]] = {
    "tcp": lambda port: TcpStore("127.0.0.1", port, read_timeout=AGES),
    "etcd": lambda port: EtcdStore(f"http://127.0.0.1:{port}", read_timeout=AGES),
    "etcd-v2": lambda port: EtcdV2Store(f"http://127.0.0.1:{port}", read_timeout=AGES),
    "prefix": lambda port: PrefixStore("of", TcpStore("127.0.0.1", port, read_timeout=AGES)),
}

WAITING: dict[str, Callable[[Store], Awaitable[object]]] = {
    "get": lambda store: store.get("k", timeout=0.1),
    "multi_get": lambda store: store.multi_get(["k"], timeout=0.1),
    "wait": lambda store: store.wait(["k"], 0.1),
    "queue_pop": lambda store: store.queue_pop("k", timeout=0.1),
    "barrier": lambda store: store.barrier("k", 2, 0.1),
}


@pytest.mark.parametrize("kind", STORES)
async def test_an_operation_that_waits_fails_soon_after_its_time_out_though_nobody_answers(
    kind: str, free_port: int
) -> None:
    store = STORES[kind](free_port)
    failed: dict[str, str] = {}

    async def run(name: str, operation: Callable[[Store], Awaitable[object]]) -> None:
        with pytest.raises(RendezvousConnectionError) as caught:
            await operation(store)
        failed[name] = str(caught.value)

    try:
        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                for name, operation in WAITING.items():
                    tasks.start_soon(run, name, operation)
    finally:
        await store.close()
        if isinstance(store, PrefixStore):
            await store.underlying_store.close()
    key = "of/k" if kind == "prefix" else "k"
    assert failed == {
        name: f"{name} of '{key}' has not been answered within 2.1 s, 2 s more than its time-out: is the"
        " store out of reach?"
        for name in WAITING
    }

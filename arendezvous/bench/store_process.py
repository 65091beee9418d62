"""The processes of the store's measurements: torch's server and ours, torch's client and ours.

Arguments: ``serve`` or ``call``, then ``stock`` or ``ours``; for ``call`` the server's port, too.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from arendezvous.bench.child import Answer, all_at_once, announce, serve_requests, skip
from arendezvous.bench.loops import runner

KEY, VALUE = "key", b"v" * 32


def serve_stock() -> None:
    """Torch's server, until stdin ends."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # its stubs forget it

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    announce(port=store.port)
    sys.stdin.read()


def serve_ours() -> None:
    """Our server, until stdin ends."""
    import asyncio

    from arendezvous.server.store_server import serve_store

    async def main() -> None:
        async with serve_store() as server:
            announce(port=server.port)
            await asyncio.to_thread(sys.stdin.read)

    with runner("asyncio") as loop:
        loop.run(main())


def call_stock(port: int) -> None:
    """Torch's client: blocking, so several operations in flight are several threads."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # its stubs forget it

    store = TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False)
    store.set(KEY, VALUE.decode())

    def measure(request: Answer) -> Answer:
        each = request["operations"] // request["in_flight"]

        def work(_: int) -> None:
            for _ in range(each):
                store.get(KEY)

        seconds = all_at_once(request["in_flight"], work)
        return {"seconds": seconds / (each * request["in_flight"])}

    serve_requests(measure, ("torch",))


def call_ours(port: int) -> None:
    """Our client, on one connection."""
    import anyio

    from arendezvous.stores.tcp.store import TcpStore

    with runner("asyncio") as loop:
        store = TcpStore("127.0.0.1", port)
        loop.run(store.set(KEY, VALUE))

        async def work(count: int) -> None:
            for _ in range(count):
                await store.get(KEY)

        async def measure(request: Answer) -> Answer:
            each = request["operations"] // request["in_flight"]
            begin = time.perf_counter()
            async with anyio.create_task_group() as tasks:
                for _ in range(request["in_flight"]):
                    tasks.start_soon(work, each)
            seconds = time.perf_counter() - begin
            return {"seconds": seconds / (each * request["in_flight"])}

        serve_requests(lambda request: loop.run(measure(request)))
        loop.run(store.close())


def main() -> None:
    """Does what the arguments say."""
    side, whose, *port = sys.argv[1:]
    works: dict[tuple[str, str], Callable[..., Any]] = {
        ("serve", "stock"): serve_stock,
        ("serve", "ours"): serve_ours,
        ("call", "stock"): call_stock,
        ("call", "ours"): call_ours,
    }
    try:
        works[side, whose](*map(int, port))
    except ImportError:
        skip("torch is not installed")


if __name__ == "__main__":
    main()

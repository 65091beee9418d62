"""Measures torch's TCPStore: its server, or its client.

Arguments: none for the server; for the client the server's port.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

from benchmarks.processes.child import Answer, all_at_once, announce, serve_requests, skip

KEY, VALUE = "key", "v" * 32


def call(store: Any, request: Answer) -> Answer:
    """Gets 32 bytes many times; returns the seconds of one ``get``, for each of the ``kinds``.

    The client is blocking, so as many in flight are as many threads.
    """
    seconds = {}
    for kind, (_, in_flight) in request["kinds"].items():
        each = max(1, request["operations"] // in_flight)
        took = all_at_once(in_flight, partial(get_often, store, each))
        seconds[kind] = took / (each * in_flight)
    return seconds


def get_often(store: Any, count: int, _: int) -> None:
    """Gets the key, again and again."""
    for _ in range(count):
        store.get(KEY)


def main() -> None:
    """Does what the arguments say."""
    try:
        from torch.distributed import TCPStore  # type: ignore[attr-defined]  # its stubs forget it
    except ImportError:
        skip("torch is not installed")
        return
    if len(sys.argv) == 1:
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        announce(port=store.port)
        sys.stdin.read()
        return
    store = TCPStore("127.0.0.1", int(sys.argv[1]), is_master=False, wait_for_workers=False)
    store.set(KEY, VALUE)
    serve_requests(lambda request: call(store, request), ("torch",))


if __name__ == "__main__":
    main()

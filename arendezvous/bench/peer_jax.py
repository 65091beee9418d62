"""The peer JAX: N tasks connect to its coordination service (C++, gRPC) and meet at a barrier, in N threads.

The service and its callers have a process each. A barrier gives no ranks: the tasks come with theirs.
"""

from __future__ import annotations

import importlib
import os
import signal
import socket
import time
from functools import partial
from typing import Any

from arendezvous.bench.child import Answer, all_at_once, forked, raise_open_files, serve_requests, skip
from arendezvous.cli.collector import tune_collector

LIMIT = 600


def load() -> Any:
    """Imports what is needed of jaxlib; None if it is not installed."""
    for name in ("jaxlib._jax", "jaxlib.xla_extension"):  # the latter until jaxlib 0.6
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    return None


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on at the moment."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def until_listening(port: int) -> None:
    """Waits until somebody accepts connections on `port`."""
    for _ in range(2000):
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.005)
    raise RuntimeError("the service does not listen")


def meet(jaxlib: Any, nodes: int) -> Answer:
    """One service; `nodes` clients connect to it and meet at two barriers."""
    address = f"127.0.0.1:{free_port()}"
    pid = os.fork()
    if pid == 0:
        service = jaxlib.get_distributed_runtime_service(address, nodes)
        while service is not None:  # it is killed, after its clients have ended: they take it badly
            signal.pause()
    try:
        return forked(lambda: call(jaxlib, address, nodes))
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def call(jaxlib: Any, address: str, nodes: int) -> Answer:
    """The callers' process: a fork that has run nothing yet, so they meet once before it counts."""
    until_listening(int(address.rpartition(":")[2]))
    clients = [
        jaxlib.get_distributed_runtime_client(
            address, number, init_timeout=LIMIT, shutdown_on_destruction=False
        )
        for number in range(nodes)
    ]

    def barrier(name: str, number: int) -> None:
        clients[number].wait_at_barrier(name, LIMIT * 1000)

    seconds = [all_at_once(nodes, lambda number: clients[number].connect())]
    _, *rest = [all_at_once(nodes, partial(barrier, name)) for name in ("warm", "first", "second")]
    seconds += rest
    return dict(zip(("connect", "meet", "again"), seconds, strict=True))


def main() -> None:
    """Answers requests until stdin ends."""
    raise_open_files()
    tune_collector()
    jaxlib = load()
    if jaxlib is None:
        skip("jaxlib is not installed")
        return
    serve_requests(lambda request: meet(jaxlib, request["nodes"]), ("jaxlib",))


if __name__ == "__main__":
    main()

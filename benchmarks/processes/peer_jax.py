"""Measures JAX: N tasks connect to its coordination service (C++, gRPC) and meet at a barrier, in N threads.

The service and its callers have a process each. A barrier gives no ranks: the tasks come with theirs.
"""

from __future__ import annotations

import importlib
import os
import signal
from functools import partial
from typing import Any

from benchmarks.processes.child import Answer, all_at_once, forked, raise_open_files, serve_requests, skip
from benchmarks.processes.ports import HOST, held_port, until_listening

LIMIT = 600


def load() -> Any:
    """Imports what is needed of jaxlib; None if it is not installed."""
    for name in ("jaxlib._jax", "jaxlib.xla_extension"):  # the latter until jaxlib 0.6
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    return None


def meet(jaxlib: Any, nodes: int) -> Answer:
    """One service; `nodes` clients connect to it and meet at two barriers."""
    with held_port() as port:  # the service would pick one, but not tell which
        pid = os.fork()
        if pid == 0:
            service = jaxlib.get_distributed_runtime_service(f"{HOST}:{port}", nodes)
            while service is not None:  # it is killed, after its clients have ended: they take it badly
                signal.pause()
        try:
            return forked(lambda: call(jaxlib, port, nodes))
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def call(jaxlib: Any, port: int, nodes: int) -> Answer:
    """The callers' process: a fork that has run nothing yet, so they meet once before it counts."""
    until_listening(port)
    clients = [
        jaxlib.get_distributed_runtime_client(
            f"{HOST}:{port}", number, init_timeout=LIMIT, shutdown_on_destruction=False
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
    jaxlib = load()
    if jaxlib is None:
        skip("jaxlib is not installed")
        return
    serve_requests(lambda request: meet(jaxlib, request["nodes"]), ("jaxlib",))


if __name__ == "__main__":
    main()

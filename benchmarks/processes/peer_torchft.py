"""Measures torchft: one quorum of N replicas at its lighthouse (Rust, gRPC), asked for by N threads.

The lighthouse and its callers have a process each. Of the package only the extension module is loaded: the
package itself imports torch, which is no part of what is measured.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import signal
from datetime import timedelta
from functools import partial
from typing import Any

from benchmarks.processes.child import Answer, all_at_once, forked, raise_open_files, serve_requests, skip

LIMIT = timedelta(seconds=600)


def load() -> Any:
    """Loads the extension module; None if it is not installed."""
    package = importlib.util.find_spec("torchft")
    for directory in (package.submodule_search_locations or ()) if package is not None else ():
        for suffix in importlib.machinery.EXTENSION_SUFFIXES:
            path = os.path.join(directory, f"_torchft{suffix}")
            if os.path.exists(path):
                spec = importlib.util.spec_from_file_location("_torchft", path)
                assert spec is not None and spec.loader is not None  # noqa: PT018 - it is a file
                module = importlib.util.module_from_spec(spec)
                spec.loader.exec_module(module)
                return module
    return None


def meet(torchft: Any, nodes: int) -> Answer:
    """One lighthouse; `nodes` clients connect and ask it for a quorum, twice."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        server = torchft.LighthouseServer(
            bind="127.0.0.1:0", min_replicas=nodes, join_timeout_ms=600_000, heartbeat_timeout_ms=600_000
        )
        os.write(writing, server.address().rpartition(":")[2].encode() + b"\n")
        os.close(writing)
        while server is not None:  # it is killed
            signal.pause()
    os.close(writing)
    try:
        with os.fdopen(reading) as pipe:
            port = int(pipe.readline())
        return forked(lambda: call(torchft, f"http://127.0.0.1:{port}", nodes))
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def call(torchft: Any, address: str, nodes: int) -> Answer:
    """The callers' process: a fork that has run nothing yet, so they meet once before it counts."""
    clients: list[Any] = [None] * nodes

    def connect(number: int) -> None:
        clients[number] = torchft.LighthouseClient(address, LIMIT)

    def quorum(step: int, number: int) -> None:
        found = clients[number].quorum(f"node{number}", LIMIT, f"127.0.0.1:{number}", "", step, 1)
        if len(found.participants) != nodes:
            raise RuntimeError(f"a quorum of {len(found.participants)}; expected {nodes}")

    seconds = [all_at_once(nodes, connect)]
    _, *rest = [all_at_once(nodes, partial(quorum, step)) for step in range(3)]
    seconds += rest
    return dict(zip(("connect", "meet", "again"), seconds, strict=True))


def main() -> None:
    """Answers requests until stdin ends."""
    raise_open_files()
    torchft = load()
    if torchft is None:
        skip("torchft is not installed")
        return
    serve_requests(lambda request: meet(torchft, request["nodes"]), ("torchft",))


if __name__ == "__main__":
    main()

"""Measures torch's rendezvous, c10d or etcd-v2: one process for each node, forked after importing torch.

With c10d the store has a process of its own, as torchrun's first agent has on a cluster; with etcd-v2 it is
an etcd that runs already. Arguments: ``c10d``; or ``etcd-v2`` and where etcd is, as ``host:port``.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final

from benchmarks.processes.child import Answer, forked, raise_open_files, serve_requests, skip

LAST_CALL: Final = 1  # seconds; stock's default is 30
NEEDS: Final = {"c10d": {"torch": "torch"}, "etcd-v2": {"torch": "torch", "python-etcd": "etcd"}}
SHARED: Final = {  # what is imported before the processes fork
    "c10d": "torch.distributed.elastic.rendezvous.dynamic_rendezvous",
    "etcd-v2": "torch.distributed.elastic.rendezvous.etcd_rendezvous",
}


@contextmanager
def c10d_store() -> Iterator[str]:
    """Runs the store of c10d in a fork while the block runs; yields where it is."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # its stubs forget it

    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        os.write(writing, f"{store.port}\n".encode())
        os.close(writing)
        signal.pause()
        os._exit(0)
    os.close(writing)
    try:
        with os.fdopen(reading) as pipe:
            port = int(pipe.readline())
        yield f"127.0.0.1:{port}"
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@contextmanager
def etcd_store() -> Iterator[str]:
    """Yields where the etcd of the arguments is."""
    yield sys.argv[2]


def open_handler(endpoint: str, nodes: tuple[int, int], run_id: str) -> Any:
    """Opens torch's handler for one node."""
    from torch.distributed.elastic.rendezvous import RendezvousParameters

    if sys.argv[1] == "etcd-v2":
        from torch.distributed.elastic.rendezvous.etcd_rendezvous import create_rdzv_handler

        return create_rdzv_handler(RendezvousParameters("etcd-v2", endpoint, run_id, *nodes, "127.0.0.1"))
    from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import create_backend
    from torch.distributed.elastic.rendezvous.dynamic_rendezvous import create_handler

    options: dict[str, Any] = {"is_host": False, "store_type": "tcp", "last_call_timeout": LAST_CALL}
    parameters = RendezvousParameters("c10d", endpoint, run_id, *nodes, "127.0.0.1", **options)
    backend, store = create_backend(parameters)
    return create_handler(store, backend, parameters)


def node(
    endpoint: str, nodes: tuple[int, int], run_id: str, barrier: Any, results: Any, again: tuple[int, int]
) -> None:
    """Connects, meets the others, and once more when the pipe `again` is closed: a node's process."""
    handler = open_handler(endpoint, nodes, run_id)
    os.close(again[1])
    barrier.wait()
    for _ in range(2):
        start = time.monotonic()
        info = handler.next_rendezvous()
        results.put((os.getpid(), start, time.monotonic(), info.world_size))
        os.read(again[0], 1)
    results.close()
    results.join_thread()
    os._exit(0)  # not through torch's clean-up, which waits for the store


def meet(nodes: int) -> Answer:
    """All `nodes` meet once."""
    times, _ = _run((nodes, nodes), lambda pids: None)
    return {"meet": max(end for _, _, end, _ in times) - min(start for _, start, _, _ in times)}


def lose_one(nodes: int) -> Answer:
    """One is killed, and the survivors, whom nobody tells, are made to meet again at once."""
    killed = 0.0

    def kill(pids: list[int]) -> None:
        nonlocal killed
        killed = time.monotonic()
        os.kill(pids[0], signal.SIGKILL)

    _, times = _run((nodes - 1, nodes), kill, survivors=nodes - 1)
    return {"again": max(end for _, _, end, _ in times) - killed}


def _run(
    nodes: tuple[int, int], between: Callable[[list[int]], None], survivors: int = 0
) -> tuple[list[Any], list[Any]]:
    context = multiprocessing.get_context("fork")
    count, run_id = nodes[1], f"run-{os.getpid()}"
    barrier: Any = context.Barrier(count)
    results: Any = context.Queue()
    again = os.pipe()  # not an Event, which a killed waiter would keep from being set
    with (etcd_store if sys.argv[1] == "etcd-v2" else c10d_store)() as endpoint:
        arguments = (endpoint, nodes, run_id, barrier, results, again)
        children = [context.Process(target=node, args=arguments) for _ in range(count)]
        for child in children:
            child.start()
        try:
            first = [results.get() for _ in range(count)]
            between([result[0] for result in first])
            os.close(again[1])
            return first, [results.get() for _ in range(survivors)]
        finally:
            for child in children:
                child.kill()
            for child in children:
                child.join()


def answer(request: Answer) -> Answer:
    """Does one run in a fork, whose processes end with it."""
    work = lose_one if request["do"] == "lose" else meet
    return forked(lambda: work(request["nodes"]))


def main() -> None:
    """Answers requests until stdin ends."""
    raise_open_files()
    backend = sys.argv[1]
    for package, module in NEEDS[backend].items():
        if find_spec(module) is None:
            skip(f"{package} is not installed")
            return
    import_module(SHARED[backend])
    serve_requests(answer, ("torch", "python-etcd"))


if __name__ == "__main__":
    main()

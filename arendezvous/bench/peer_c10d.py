"""The peer torch: its c10d dynamic rendezvous, one process per node, forked after importing torch.

The store has a process of its own, as torchrun's first agent has on a cluster.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from typing import Any

from arendezvous.bench.child import Answer, forked, raise_open_files, serve_requests, skip

LAST_CALL = 1  # seconds; stock's default is 30


def start_store() -> tuple[int, int]:
    """Forks the store's process; returns its process id and port."""
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
    with os.fdopen(reading) as pipe:
        return pid, int(pipe.readline())


def node(port: int, nodes: tuple[int, int], barrier: Any, results: Any, again: tuple[int, int]) -> None:
    """A node's process: connects, meets the others, and once more when the pipe `again` is closed."""
    import time

    from torch.distributed.elastic.rendezvous import RendezvousParameters
    from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import create_backend
    from torch.distributed.elastic.rendezvous.dynamic_rendezvous import create_handler

    options: dict[str, Any] = {"is_host": False, "store_type": "tcp", "last_call_timeout": LAST_CALL}
    parameters = RendezvousParameters("c10d", f"127.0.0.1:{port}", "run", *nodes, "127.0.0.1", **options)
    backend, store = create_backend(parameters)
    handler = create_handler(store, backend, parameters)
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
    import time

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
    store, port = start_store()
    count = nodes[1]
    barrier: Any = context.Barrier(count)
    results: Any = context.Queue()
    again = os.pipe()  # not an Event, which a killed waiter would keep from being set
    children = [
        context.Process(target=node, args=(port, nodes, barrier, results, again)) for _ in range(count)
    ]
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
        os.kill(store, signal.SIGKILL)
        os.waitpid(store, 0)


def answer(request: Answer) -> Answer:
    """Does one run in a fork, whose processes end with it."""
    work = lose_one if request["do"] == "lose" else meet
    return forked(lambda: work(request["nodes"]))


def main() -> None:
    """Answers requests until stdin ends."""
    raise_open_files()
    try:
        import torch.distributed.elastic.rendezvous.dynamic_rendezvous as stock  # what the forks share
    except ImportError:
        skip("torch is not installed")
        return
    serve_requests(answer, (stock.__name__.partition(".")[0],))


if __name__ == "__main__":
    main()

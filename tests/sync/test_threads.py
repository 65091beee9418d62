"""One handler in many threads, interrupts at any moment, the death of the loop, the end of the process."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import pytest

import arendezvous as ar
from arendezvous import sync
from arendezvous.backends.memory import LocalBackend
from arendezvous.backends.tcp.session import SessionBackend
from arendezvous.rendezvous.driver import DynamicRendezvousHandler
from arendezvous.sync.loop_thread import loop_thread
from tests.kit.script_kit import script

PATIENCE = 60.0

INTERRUPTS = """
import signal, sys
from arendezvous.sync import open_rendezvous

left = 0

def stop(number, frame):
    global left
    left -= 1
    if left <= 0:
        signal.setitimer(signal.ITIMER_REAL, 0)
    raise KeyboardInterrupt

def interrupted(call, times, delay):
    global left
    left = times
    try:
        signal.setitimer(signal.ITIMER_REAL, delay, 0.0003)
        call()
    except KeyboardInterrupt:
        pass
    finally:
        left = 0
        signal.setitimer(signal.ITIMER_REAL, 0)

signal.signal(signal.SIGALRM, stop)
names = {"run_id": "job", "min_nodes": 1, "max_nodes": 2, "last_call_timeout": 0.001}
rdzv = open_rendezvous(sys.argv[1], node="a", **names)
other = open_rendezvous(sys.argv[1], node="b", **{**names, "run_id": "other"})
for number in range(1, 100):
    try:
        rdzv.next_rendezvous()
        interrupted(rdzv.shutdown if number % 2 else rdzv.close, 1 + number % 3, number % 20 / 4000 + 0.00005)
        assert not rdzv.is_closed()
        assert not other.is_closed()
    except KeyboardInterrupt:  # the last of them came late
        pass
print("lived through them", flush=True)
"""


def opened(run_id: str, node: str, min_nodes: int = 1) -> sync.RendezvousHandler:
    return sync.open_rendezvous("memory://threads", run_id=run_id, min_nodes=min_nodes, node=node)


class Counted(DynamicRendezvousHandler):
    """Counts how often it is open."""

    openings = 0

    async def __aenter__(self) -> Self:
        self.openings += 1
        await asyncio.sleep(0)
        return await super().__aenter__()


def test_threads_that_use_a_fresh_handler_at_the_same_time_open_it_once() -> None:
    below = Counted.from_backend("fresh", LocalBackend("fresh"), 1, 1)
    handler = sync.RendezvousHandler(below)
    start = threading.Barrier(4)

    def use() -> bool:
        start.wait(PATIENCE)
        return handler.is_closed()

    with ThreadPoolExecutor(4) as pool:
        assert [one.result(PATIENCE) for one in [pool.submit(use) for _ in range(4)]] == [False] * 4
    handler.close()
    assert below.openings == 1


def test_threads_may_close_a_handler_that_another_one_uses() -> None:
    handler = opened("closing", "a")

    def use(number: int) -> bool:
        if number % 2:
            handler.close()
            return False
        return handler.next_rendezvous().world_size == 1 if number == 0 else handler.is_closed()

    with ThreadPoolExecutor(4) as pool:
        for one in [pool.submit(use, number) for number in range(40)]:
            error = one.exception(PATIENCE)
            assert error is None or isinstance(error, ar.RendezvousStateError)
    assert not handler.is_closed()
    handler.close()


async def test_what_was_interrupted_while_it_closed_has_ended_before_the_next_call_begins() -> None:
    async with ar.serve("127.0.0.1:0") as server, script("-c", INTERRUPTS, server.tcp_url) as process:
        assert await process.end() == 0, process.output
    # what is interrupted in a callback of a weak reference, the interpreter says that it passes it over
    assert "lived through them\n" in process.said


def test_a_loop_that_died_is_replaced_and_what_was_open_in_it_says_why() -> None:
    lost = opened("lost", "a")
    info = lost.next_rendezvous()

    async def die() -> None:
        def leave() -> None:
            raise SystemExit("out of memory")

        asyncio.get_running_loop().call_soon(leave)
        await asyncio.Event().wait()

    with pytest.raises(RuntimeError, match=r"has ended: SystemExit\('out of memory'\); open another one"):
        loop_thread().run(None, die)
    for call in (lost.is_closed, lost.next_rendezvous, lost.explain, info.members, lambda: info.store):
        with pytest.raises(RuntimeError, match="out of memory"):
            call()
    lost.close()
    with opened("lost", "b") as another:
        assert another.next_rendezvous().world_size >= 1


def test_an_exit_that_is_raised_in_a_call_is_its_callers_and_not_the_loops() -> None:
    async def leave() -> None:
        raise SystemExit(3)

    with opened("kept", "a") as handler:
        with pytest.raises(SystemExit):
            loop_thread().run(None, leave)
        assert not handler.is_closed()


THE_END = """
import atexit, sys, threading
from arendezvous.sync import open_rendezvous

class Last:
    def __del__(self):
        try:
            self.store.set("key", "value")
        except RuntimeError as error:
            print("finalizer:", error, flush=True)

def poll():
    while True:
        try:
            rdzv.is_closed()
        except Exception as error:
            print("thread:", error, flush=True)
            return

polling = threading.Thread(target=poll, daemon=True)
if sys.argv[2] == "poll":
    atexit.register(polling.join)  # called last; if Python cuts it off, nothing that it sees is finalized
rdzv = open_rendezvous(sys.argv[1], run_id="job", min_nodes=1, node="a")
last = Last()
last.store = rdzv.next_rendezvous().store
if sys.argv[2] == "poll":
    polling.start()
"""

TOGETHER = """
import asyncio
from arendezvous import sync
from arendezvous.backends.memory import LocalBackend
from arendezvous.rendezvous.driver import DynamicRendezvousHandler

all_close = asyncio.Barrier(3)

class Slow(DynamicRendezvousHandler):
    async def __aexit__(self, *error):
        await all_close.wait()
        await super().__aexit__(*error)
        print("closed", flush=True)

for number in range(3):
    below = Slow.from_backend("job", LocalBackend("job"), 1, 3)
    sync.RendezvousHandler(below).is_closed()
"""

WORKER = """
import multiprocessing, sys
from arendezvous.sync import open_rendezvous

def work(url):
    rdzv = open_rendezvous(url, run_id="job", min_nodes=2, node="worker")
    rdzv.next_rendezvous()

if __name__ == "__main__":
    worker = multiprocessing.get_context(sys.argv[2]).Process(target=work, args=(sys.argv[1],))
    worker.start()
    worker.join()
    sys.exit(worker.exitcode)
"""


@pytest.mark.parametrize("mode", ["alone", "poll"])
async def test_what_is_called_while_the_process_ends_raises_at_once_and_opens_nothing(mode: str) -> None:
    async with (
        ar.serve("127.0.0.1:0") as server,
        SessionBackend(server.host, server.port, "job") as observer,
        script("-c", THE_END, server.tcp_url, mode) as process,
    ):
        assert await process.end() == 0, process.output
        status = await observer.status()
        assert (len(status.nodes), [gone.cause for gone in status.departed]) == (0, [ar.Cause.LEFT])
    callers = ["thread", "finalizer"] if mode == "poll" else ["finalizer"]
    told = "this process is ending, and arendezvous.sync has been closed: nothing can be called any more"
    assert process.output.splitlines() == [f"{caller}: {told}" for caller in callers]


async def test_handlers_that_are_open_when_the_process_ends_are_closed_at_the_same_time() -> None:
    async with script("-c", TOGETHER) as process:
        assert await process.end() == 0, process.output
    assert process.output == "closed\n" * 3


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
async def test_a_worker_of_multiprocessing_that_ends_leaves_the_run(method: str, tmp_path: Path) -> None:
    program = tmp_path / "worker.py"
    program.write_text(WORKER)
    async with (
        ar.serve("127.0.0.1:0") as server,
        script("-W", "ignore::DeprecationWarning", str(program), server.tcp_url, method) as process,
        ar.open_rendezvous(server.tcp_url, run_id="job", min_nodes=2) as rdzv,
    ):
        async with asyncio.timeout(PATIENCE):
            await rdzv.next_rendezvous()
            change = await anext(aiter(rdzv.changes()))
        assert change == ar.NodeLeft("worker", ar.Cause.LEFT, "")
        assert await process.end() == 0, process.output

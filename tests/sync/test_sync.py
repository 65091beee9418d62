"""The synchronous API, in real threads and real processes."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import arendezvous as ar
from arendezvous import sync
from arendezvous.backends.tcp.session import SessionBackend
from arendezvous.law.state import Phase
from arendezvous.rendezvous.parameters import RendezvousParameters
from tests.kit.script_kit import script
from tests.kit.waiting import until_seen

PATIENCE = 120.0

THREADS = """
import sys, threading
from concurrent.futures import ThreadPoolExecutor
from arendezvous.sync import open_rendezvous
assert "torch" not in sys.modules
handlers = [open_rendezvous("memory://", run_id="job", min_nodes=2, node=name) for name in "ab"]
print("before first use", threading.active_count())
with ThreadPoolExecutor(2) as pool:
    ranks = sorted(info.rank for info in pool.map(lambda handler: handler.next_rendezvous(), handlers))
print("in use", threading.active_count(), [thread.name for thread in threading.enumerate()][1:], ranks)
for handler in handlers:
    handler.close()
"""

INTERRUPTED = """
import signal, sys
from arendezvous.sync import open_rendezvous

def stop(number, frame):
    raise SystemExit(3)

signal.signal(signal.SIGTERM, stop)
with open_rendezvous(sys.argv[1], run_id="job", min_nodes=2, node="a") as rdzv:
    try:
        rdzv.next_rendezvous()
    except (KeyboardInterrupt, SystemExit) as error:
        print(type(error).__name__, rdzv.history[-1].what, flush=True)
        sys.stdin.readline()
        raise
"""

MEMBER = """
import os, sys
from arendezvous.sync import open_rendezvous
rdzv = open_rendezvous(sys.argv[1], run_id="job", min_nodes=2, node="child")
rdzv.next_rendezvous()
"""

FORK = """
import os, sys, threading
from arendezvous.sync import open_rendezvous
rdzv = open_rendezvous("tcp://127.0.0.1:0", run_id="job", min_nodes=1, node="parent")
assert rdzv.next_rendezvous().rank == 0
child = os.fork()
if child == 0:
    try:
        rdzv.is_closed()
    except RuntimeError as error:
        print("refused:", error)
    rdzv.close()
    with open_rendezvous(rdzv.endpoint, run_id="other", min_nodes=1) as own:
        info = own.next_rendezvous()
        info.store.set("key", "value")
        print("own:", info.world_size, info.store.get("key").decode(), threading.active_count(), flush=True)
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
print("parent:", [node.desc.name for node in rdzv.explain().nodes], rdzv.num_nodes_waiting())
"""

SIGNALLED_CHILD = """
import os, signal, sys
from arendezvous.torch.signals import leave_on_signals
from arendezvous.sync import open_rendezvous
rdzv = open_rendezvous(sys.argv[1], run_id="job", min_nodes=1, node="parent")
rdzv.next_rendezvous()
leave_on_signals(rdzv)
signal.signal(signal.SIGTERM, lambda *_: None)
child = os.fork()
if child == 0:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    print("ready", flush=True)
    while True:
        signal.pause()
print(os.waitpid(child, 0)[1], [len(rdzv.explain().nodes) for _ in range(5)], flush=True)
sys.stdin.readline()
"""


def opened(run_id: str, node: str, **settings: Any) -> sync.RendezvousHandler:
    return sync.open_rendezvous("memory://sync", run_id=run_id, min_nodes=2, node=node, **settings)


def meet(*handlers: sync.RendezvousHandler) -> list[sync.RendezvousInfo]:
    """Joins with all handlers at once, and returns what each of them got."""
    with ThreadPoolExecutor(len(handlers)) as pool:
        return list(pool.map(lambda handler: handler.next_rendezvous(), handlers, timeout=PATIENCE))


async def test_a_process_has_one_thread_for_all_handlers_and_none_before_it_uses_one() -> None:
    async with script("-c", THREADS) as process:
        assert await process.end() == 0, process.output
    assert process.said[:2] == ["before first use 1\n", "in use 2 ['arendezvous'] [0, 1]\n"]


@pytest.mark.parametrize(
    ("number", "error", "status"),
    [(signal.SIGINT, "KeyboardInterrupt", -signal.SIGINT), (signal.SIGTERM, "SystemExit", 3)],
)
async def test_an_interrupted_join_is_withdrawn_before_the_call_raises(
    number: signal.Signals, error: str, status: int
) -> None:
    async with (
        ar.serve("127.0.0.1:0") as server,
        SessionBackend(server.host, server.port, "job") as observer,
        script("-c", INTERRUPTED, server.tcp_url) as process,
    ):
        await until_seen(observer.status, lambda status: len(status.nodes) == 1)
        process.send_signal(number)
        assert await process.line() == f"{error} not joined: the join was cancelled"
        seen = await observer.status()
        assert (seen.nodes, [(one.node, one.cause) for one in seen.departed]) == (
            (),
            [("a", ar.Cause.CANCELLED)],
        )
        process.go_on()
        assert await process.end() == status


async def test_a_call_inside_a_running_loop_is_refused_and_names_the_async_api() -> None:
    handler = opened("loop", "a")
    for call in (handler.next_rendezvous, handler.is_closed, handler.__enter__):
        with pytest.raises(RuntimeError, match=r"'async with arendezvous.open_rendezvous\(...\)'"):
            call()


async def test_a_forked_child_gets_a_loop_of_its_own_and_must_not_use_its_parents_handlers() -> None:
    async with script("-W", "ignore::DeprecationWarning", "-c", FORK) as process:
        assert await process.end() == 0, process.output
    assert process.output.splitlines() == [
        "refused: this rendezvous belongs to the process that forked; open one of its own here",
        "own: 1 value 2",
        "parent: ['parent'] 0",
    ]


async def test_a_signal_to_a_forked_child_is_not_taken_for_one_to_its_parent() -> None:
    async with (
        ar.serve("127.0.0.1:0") as server,
        SessionBackend(server.host, server.port, "job") as observer,
        script("-W", "ignore::DeprecationWarning", "-c", SIGNALLED_CHILD, server.tcp_url) as process,
    ):
        assert await process.line() == "ready"
        os.kill(child_of(process.process.pid), signal.SIGTERM)
        assert await process.line() == "0 [1, 1, 1, 1, 1]"
        process.send_signal(signal.SIGTERM)
        status = await until_seen(observer.status, lambda status: status.departed)
        assert status.departed[-1].reason == "its process received SIGTERM"


def child_of(pid: int) -> int:
    """The one process that `pid` has forked."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text())


@pytest.mark.parametrize(
    ("ending", "kind", "status"),
    [("sys.exit(0)", ar.NodeLeft, 0), ("1 / 0", ar.NodeLeft, 1), ("os._exit(0)", ar.NodeLost, 0)],
)
async def test_a_process_that_ends_without_closing_leaves_the_run_unless_it_is_broken_off(
    ending: str, kind: type[ar.Change], status: int
) -> None:
    async with (
        ar.serve("127.0.0.1:0") as server,
        script("-c", MEMBER + ending, server.tcp_url) as process,
        ar.open_rendezvous(server.tcp_url, run_id="job", min_nodes=2, disconnect_grace=1.0) as rdzv,
    ):
        async with asyncio.timeout(PATIENCE):
            await rdzv.next_rendezvous()
            change = await anext(aiter(rdzv.changes()))
        assert (type(change), change.node) == (kind, "child")  # type: ignore[union-attr]  # both have one
        assert await process.end() == status


def test_changes_come_as_an_iterator_that_ends_with_the_run() -> None:
    with opened("changes", "a") as a, opened("changes", "b") as b:
        assert sorted(info.rank for info in meet(a, b)) == [0, 1]
        changes = a.changes()
        b.leave("had enough")
        assert next(changes) == ar.NodeLeft("b", ar.Cause.LEFT, "had enough")
        assert a.outlook().departed
        a.set_closed("the end")
        assert list(changes) == [ar.Closed("a", "the end")]
        assert (a.is_closed(), b.is_closed()) == (True, True)


def test_a_block_that_is_left_by_an_error_tells_the_peers_that_the_node_failed() -> None:
    with opened("failing", "a") as a:

        def fail() -> None:
            with opened("failing", "b") as b:
                meet(a, b)
                raise KeyError("lost")

        with pytest.raises(KeyError, match="lost"):
            fail()
        assert next(a.changes()) == ar.NodeLeft("b", ar.Cause.FAILED, "KeyError")


def test_a_closed_handler_opens_again_when_it_is_used_and_close_may_be_repeated() -> None:
    handler = sync.open_rendezvous("memory://sync", run_id="again", min_nodes=1)
    assert handler.shutdown()
    assert handler.next_rendezvous().round == 0
    handler.close()
    handler.close()
    assert handler.next_rendezvous().round == 1
    assert handler.shutdown()


def test_a_member_announces_that_it_drains_and_is_asked_who_else_is_there() -> None:
    with opened("drain", "a") as a, opened("drain", "b") as b:
        infos = meet(a, b)
        assert {tuple(node.name for node in info.members()) for info in infos} == {
            tuple(sorted("ab", key=lambda name: infos["ab".index(name)].rank))
        }
        b.drain(20.0, "preempted")
        assert next(a.changes()) == ar.NodeDraining("b", 20.0, "preempted")
        assert [node.phase for node in a.explain().nodes] == [Phase.MEMBER] * 2


def test_what_the_async_api_raises_comes_out_of_the_call() -> None:
    with opened("late", "a", timeout=ar.RendezvousTimeout(join=0.05)) as handler:
        with pytest.raises(
            ar.RendezvousTimeoutError, match=r"only 1 of at least 2 nodes came within 0\.05 s"
        ):
            handler.next_rendezvous()
        handler.set_closed("no more")
        with pytest.raises(ar.RendezvousClosedError, match="no more"):
            handler.next_rendezvous()


def test_the_members_of_a_round_share_a_blocking_store() -> None:
    with sync.open_rendezvous("tcp://127.0.0.1:0", run_id="job", min_nodes=1, max_nodes=1) as alone:
        store = alone.next_rendezvous().store
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(store.get, "later", timeout=PATIENCE)
            store.set("later", "now")
            assert waiting.result(PATIENCE) == b"now"
        assert store.add("count", 2) + store.add("count", 3) == 7
        assert store.compare_set("later", "now", "then") == b"then"
        store.append("later", "!")
        store.multi_set(["x", "y"], ["1", "2"])
        assert store.multi_get(["x", "y", "later"]) == [b"1", b"2", b"then!"]
        store.wait(["x", "y"], PATIENCE)
        assert (store.check(["x", "nothing"]), store.num_keys() >= 4) == (False, True)
        assert (store.delete_key("x"), store.delete_key("x")) == (True, False)
        store.queue_push("queue", "first")
        assert (store.queue_len("queue"), store.queue_pop("queue"), store.queue_len("queue")) == (
            1,
            b"first",
            0,
        )
        store.barrier("all", 1, PATIENCE)
        assert {"y", "later", "count"} <= set(store.list_keys())
        store.timeout = 0.01
        with pytest.raises(TimeoutError, match="nothing"):
            store.get("nothing")


def test_the_workers_of_a_round_are_told_where_rank_0_serves_their_store() -> None:
    url = "tcp://127.0.0.1:0"
    with sync.open_rendezvous(url, run_id="job", min_nodes=1, local_addr="127.0.0.1") as rdzv:
        info = rdzv.next_rendezvous()
        where = info.bootstrap_store_info()
        assert where == info.bootstrap_store_info()
        assert (where.master_addr, where.master_port > 0) == ("127.0.0.1", True)


@pytest.mark.parametrize(("backend", "endpoint"), [("tcp", "127.0.0.1:0"), ("memory", "sync")])
def test_the_registry_makes_blocking_handlers(backend: str, endpoint: str) -> None:
    params = RendezvousParameters(backend, endpoint, "registry", 1, 1, last_call_timeout="0.5")
    with sync.get_rendezvous_handler(params) as handler:
        assert (handler.get_backend(), handler.get_run_id()) == (backend, "registry")
        assert handler.node == handler.asynchronous.node
        assert handler.settings.timeout.last_call == 0.5
        assert handler.next_rendezvous().world_size == 1


def test_a_misspelt_option_is_named_with_the_one_that_was_meant() -> None:
    params = RendezvousParameters("tcp", "127.0.0.1", "job", 1, 1, last_call_timout=3)
    with pytest.raises(ValueError, match=r"'last_call_timout'.*did you mean 'last_call_timeout'"):
        sync.get_rendezvous_handler(params)


def test_an_endpoint_that_nobody_serves_is_reported_from_entering_the_block(free_port: int) -> None:
    url = f"tcp://127.0.0.1:{free_port}"
    handler = sync.open_rendezvous(url, run_id="job", min_nodes=1, is_host=False, read_timeout=0.2)
    with pytest.raises(ar.RendezvousConnectionError, match=r"could not be reached for 0\.2 s"):
        handler.__enter__()
    assert handler.shutdown()


def test_handlers_of_many_threads_are_served_by_the_one_loop() -> None:
    handlers = [
        sync.open_rendezvous("memory://sync", run_id="many", min_nodes=8, node=f"n{number}")
        for number in range(8)
    ]
    assert sorted(info.rank for info in meet(*handlers)) == list(range(8))
    assert [thread.name for thread in threading.enumerate()].count("arendezvous") == 1
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda handler: handler.shutdown(), handlers)) == [True] * 8


def test_members_meet_agree_and_tell_what_they_are_doing() -> None:
    url = "memory://sync-meeting"
    handlers = [
        sync.open_rendezvous(url, run_id="job", min_nodes=2, node=name, stall_timeout=60) for name in "ab"
    ]
    with handlers[0] as a, handlers[1] as b, ThreadPoolExecutor(2) as pool:
        infos = list(pool.map(lambda handler: handler.next_rendezvous(), (a, b)))
        assert list(pool.map(lambda info: info.barrier("loaded", 60), infos)) == [None, None]
        assert list(pool.map(lambda info: info.agree("step", info.rank, "max"), infos)) == [1, 1]
        assert [info.fence for info in infos] == ["11.10", "11.10"]
        with pytest.raises(ar.RendezvousTimeoutError, match="did not come: b"):
            infos[0].barrier("alone", timeout=0.05)
        a.update({"version": 1})
        a.progress(3)
        status = b.explain()
        assert (status.nodes[0].state, status.nodes[0].step) == (b'{"version":1}', 3)
        change = next(b.changes(states=True))
        assert change == ar.StateChanged("a", {"version": 1})
        infos[0].store.outlive = True
        waiting = pool.submit(infos[1].barrier, "never")
        a.leave("boom", cause=ar.Cause.FAILED)
        with pytest.raises(ar.RoundOverError, match="a failed: boom"):
            waiting.result(PATIENCE)
        with pytest.raises(ar.RoundOverError):
            infos[1].store.get("never")


def test_rounds_go_on_until_the_work_is_done() -> None:
    url = "memory://sync-rounds"

    def work(name: str) -> list[tuple[int, int]]:
        found = []
        with sync.open_rendezvous(url, run_id="job", nnodes="1:2", last_call_timeout=0, node=name) as rdzv:
            for round in rdzv.rounds():  # noqa: A001 - as it is written in the documents
                found.append((round.rank, round.world_size))
                assert round.info.round == round.round
                if name == "a" and round.world_size == 1:
                    started.set()
                    assert round.over(timeout=PATIENCE)
                    assert isinstance(round.changes[-1], ar.NodesWaiting)
                else:
                    round.barrier("both are here")
                    assert not round.over()
        return found

    started = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(work, "a")
        assert started.wait(PATIENCE)
        second = pool.submit(work, "b")
        assert first.result(PATIENCE) == [(0, 1), (0, 2)]
        assert second.result(PATIENCE) == [(1, 2)]


def test_a_program_that_blocks_looks_on_and_steers(free_port: int) -> None:
    url = f"tcp://127.0.0.1:{free_port}"
    with (
        sync.open_rendezvous(url, run_id="job", node="a", min_nodes=1) as node,
        sync.connect(url, by="op") as operator,
        sync.observe(url, run_id="job") as run,
    ):
        node.next_rendezvous()
        assert operator.hold("job", "storage", 60).held is not None
        assert operator.release("job").held is None
        assert [one.target for one in operator.quarantine("job", "b", seconds=5).quarantined] == ["b"]
        assert not operator.pardon("job", "b").quarantined
        assert operator.resize("job", 1, 3).sizes == (1, 3)
        assert [one.run_id for one in operator.runs()] == ["job"]
        seen = []
        for event in run:
            seen.append(type(event).__name__)
            if seen[-1] == "RunResized":
                break
        assert seen[-5:] == ["RunHeld", "RunReleased", "NodeQuarantined", "NodePardoned", "RunResized"]
        assert run.status.sizes == (1, 3)
        assert operator.close("job", "done").closed is not None

"""Unmodified torch clients, in processes of their own, use our server as their store."""

from __future__ import annotations

import asyncio
import logging

import anyio
import pytest

from arendezvous.server.store_server import serve_store
from arendezvous.stores.tcp.store import TcpStore
from tests.kit.torch_process import run_torch

PRELUDE = """
import sys, threading, time
from datetime import timedelta
import torch.distributed as dist

port = int(sys.argv[1])

def client(seconds=30, **options):
    options = {"wait_for_workers": False, **options}
    return dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=seconds), **options)

def refused(kind, text, call):
    try:
        result = call()
    except kind as error:
        assert text in str(error), str(error)
    else:
        raise AssertionError(f"{call} returned {result!r}")

store = client()
"""

KEYS_AND_VALUES = """
for value in (b"one", b"", b"\\x00\\xff\\n", bytes(range(256)) * 100, "text"):
    store.set("k", value)
    assert store.get("k") == (value.encode() if isinstance(value, str) else value)
store.set(b"\\xff\\x00k", b"odd")
assert store.get(b"\\xff\\x00k") == b"odd"
assert store.delete_key(b"\\xff\\x00k")
assert not store.delete_key(b"\\xff\\x00k")
store.set("x" * 8191, "long")
assert store.get("x" * 8191) == b"long"
assert store.delete_key("x" * 8191)

assert store.compare_set("cs", "expected", "new") == b"expected"
assert not store.check(["cs"])
assert store.compare_set("cs", "", "1") == b"1"
assert store.compare_set("cs", "other", "2") == b"1"
assert store.compare_set("cs", "1", "2") == b"2"

assert store.add("n", 5) == 5
assert store.add("n", -7) == -2
assert store.get("n") == b"-2"
store.set("lenient", " 12abc")
assert store.add("lenient", 1) == 13

store.append("a", "x")
store.append("a", "yz")
assert store.get("a") == b"xyz"
store.multi_set(["m1", "m2"], [b"1", b"\\x00"])
assert store.multi_get(["m2", "m1", "m2"]) == [b"\\x00", b"1", b"\\x00"]
store.multi_set([], [])
assert store.multi_get([]) == []
assert store.check([])
assert store.check(["m1", "m2"])
assert not store.check(["m1", "absent"])
assert sorted(store.list_keys()) == ["a", "cs", "k", "lenient", "m1", "m2", "n"]
assert store.num_keys() == 7

store.queue_push("q", b"1")
store.queue_push("q", b"")
assert store.queue_len("q") == 2
assert store.num_keys() == 7
assert [store.queue_pop("q"), store.queue_pop("q", False)] == [b"1", b""]
refused(dist.QueueEmptyError, "queue is empty", lambda: store.queue_pop("q", False))
store.queue_push("k", b"beside")
assert store.queue_pop("k") == b"beside"
assert store.get("k") == b"text"

store.barrier("one", 1)
assert store.get("one") == b"1"
assert store.has_extended_api()
"""

BIG = """
big = b"ab" * (4 * 1024 * 1024)
store.set("big", big)
assert store.get("big") == big
store.append("big", "tail")
assert store.get("big") == big + b"tail"
store.multi_set(["b1", "b2", "b3"], [big, big, b""])
assert store.multi_get(["b3", "b2", "b1"]) == [b"", big, big]
store.queue_push("bq", big)
assert store.queue_pop("bq") == big
"""

WAITS = """
def hasty():  # a time-out that is given at the start holds for connecting, too, which may take longer
    hasty = client()
    hasty.set_timeout(timedelta(milliseconds=10))
    return hasty

for _ in range(3):
    for call in (
        lambda: store.wait(["absent"], timedelta(milliseconds=10)),
        lambda: hasty().get("absent"),
        lambda: hasty().multi_get(["absent", "k"]),
        lambda: hasty().queue_pop("queue"),
    ):
        refused(dist.DistStoreError, "wait timeout", call)
    short = timedelta(milliseconds=10)
    refused(dist.DistStoreError, "barrier timeout", lambda: store.barrier("lonely", 99, short))
    store.set("after", "usable")
    assert store.get("after") == b"usable"

# Time-outs that cross what was waited for
for number in range(200):
    key = f"race{number}"
    setter = threading.Thread(target=client().set, args=(key, "v"))
    setter.start()
    try:
        store.wait([key], timedelta(milliseconds=1 + number % 3))
    except dist.DistStoreError:
        pass
    setter.join()
    assert store.get(key) == b"v"

results = []

def eight(operation):
    return [threading.Thread(target=lambda c=client(): results.append(operation(c))) for _ in range(8)]

waiters = eight(lambda c: c.get("late")) + eight(lambda c: c.queue_pop("lateq"))
waiters += eight(lambda c: c.barrier("all", 8))
for waiter in waiters:
    waiter.start()
store.set("late", "v")
for number in range(8):
    store.queue_push("lateq", str(number))
for waiter in waiters:
    waiter.join()
expected = [b"v"] * 8 + [str(number).encode() for number in range(8)] + [None] * 8
assert sorted(results, key=str) == sorted(expected, key=str), results
"""

WRAPPERS = """
prefixed = dist.PrefixStore("in", dist.PrefixStore("out", store))
prefixed.set("k", "v")
assert store.get("out/in/k") == b"v"
assert prefixed.get("k") == b"v"
assert prefixed.list_keys() == ["k"]
assert prefixed.add("n", 2) == 2
prefixed.wait(["k", "n"], timedelta(seconds=5))
prefixed.queue_push("q", "v")
assert store.queue_pop("out/in/q") == b"v"
prefixed.barrier("b", 1)
copy = prefixed.clone()
copy.set("copied", "yes")
assert prefixed.get("copied") == b"yes"
other = store.clone()
assert other.get("out/in/copied") == b"yes"
other.set("mine", "m")
assert store.get("mine") == b"m"
"""

MANY_CLIENTS = """
start = threading.Barrier(64)
errors = []

def work(number):
    try:
        mine = client()
        start.wait()
        for step in range(20):
            mine.set(f"{number}/{step}", str(step))
            assert mine.get(f"{(number + 1) % 64}/{step}") == str(step).encode()
            mine.add("sum", 1)
        mine.barrier("end", 64)
    except BaseException as error:
        errors.append(error)
        raise

threads = [threading.Thread(target=work, args=(number,)) for number in range(64)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert not errors
assert store.add("sum", 0) == 64 * 20
assert store.num_keys() == 64 * 20 + 2
"""


@pytest.mark.parametrize(
    "script",
    [KEYS_AND_VALUES, BIG, WAITS, WRAPPERS, MANY_CLIENTS],
    ids=["keys and values", "8 MiB", "waits", "prefix and clone", "64 clients"],
)
async def test_torchs_client_finds_what_it_expects(script: str, caplog: pytest.LogCaptureFixture) -> None:
    async with serve_store() as server:
        await run_torch(PRELUDE + script, server.port)
        while server.keys.clients:
            await anyio.lowlevel.checkpoint()
        assert server.keys.keyspace.waits == 0
    ours = [record for record in caplog.records if record.name.startswith("arendezvous")]
    assert [record.getMessage() for record in ours if record.levelno >= logging.WARNING] == []


async def test_a_torch_client_that_asks_too_much_is_told_by_a_broken_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    script = """
refused(dist.DistNetworkError, "", lambda: store.get("x" * 8192))
store = client()
store.set("n", "text")
refused(dist.DistNetworkError, "", lambda: store.add("n", 1))
assert client().get("n") == b"text"
"""
    async with serve_store() as server:
        await run_torch(PRELUDE + script, server.port)
    assert "GET with a key of 8193 bytes" in caplog.text or "WAIT with a key of 8193 bytes" in caplog.text
    assert "on a value that does not start with an integer" in caplog.text
    assert "b'text'" not in caplog.text


async def test_torch_and_we_share_keys_and_wake_each_other() -> None:
    script = """
assert store.get("from us") == b"hello"
store.set("from torch", b"\\x00bytes")
assert store.queue_pop("work") == b"job"
store.barrier("both", 2)
assert sorted(store.list_keys()) == ["both", "from torch", "from us"]
dist.PrefixStore("p", store).set("k", "v")
"""
    async with serve_store() as server, TcpStore(server.host, server.port) as store:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run_torch, PRELUDE + script, server.port)
            await store.set("from us", "hello")
            assert await store.get("from torch") == b"\x00bytes"
            await store.queue_push("work", "job")
            await store.barrier("both", 2)
        assert await store.get("p/k") == b"v"


async def test_torchs_workers_are_counted_with_ours() -> None:
    script = """
workers = [client(world_size=3, wait_for_workers=True) for _ in range(2)]
"""
    async with serve_store() as server, TcpStore(server.host, server.port, timeout=60) as store:
        with anyio.fail_after(120):
            await asyncio.gather(run_torch(PRELUDE + script, server.port), store.wait_for_workers(3))


PROCESS_GROUP = """
import os, sys
import torch, torch.distributed as dist
from datetime import timedelta

port, world_size, how = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]

def member(rank):
    wait = timedelta(seconds=60)
    if how == "env":
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), MASTER_ADDR="127.0.0.1",
                          MASTER_PORT=str(port), TORCHELASTIC_USE_AGENT_STORE="True")
        dist.init_process_group("gloo", init_method="env://", timeout=wait)
    else:
        store = dist.TCPStore("127.0.0.1", port, world_size, False, timeout=wait, wait_for_workers=False)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=wait)
    tensor = torch.full((1000,), float(rank + 1))
    dist.all_reduce(tensor)
    assert tensor.tolist() == [world_size * (world_size + 1) / 2] * 1000
    gathered = [torch.zeros(1) for _ in range(world_size)]
    dist.all_gather(gathered, torch.tensor([float(rank)]))
    assert [tensor.item() for tensor in gathered] == list(range(world_size))
    dist.barrier()
    dist.destroy_process_group()

children = []
for rank in range(world_size):
    child = os.fork()
    if child == 0:
        try:
            member(rank)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    children.append(child)
assert [os.waitpid(child, 0)[1] for child in children] == [0] * world_size
"""


@pytest.mark.parametrize(("world_size", "how"), [(2, "store"), (4, "store"), (3, "env")])
async def test_a_process_group_of_torch_meets_and_reduces(world_size: int, how: str) -> None:
    async with serve_store() as server:
        await run_torch(PROCESS_GROUP, server.port, world_size, how, GLOO_SOCKET_IFNAME="lo")

"""The store that torch gets over ours: each operation as torch has it, and real collectives over it."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager

import pytest

from tests.kit import torch_python
from tests.kit.etcd_server import serve_etcd
from tests.kit.script_kit import Script, script

pytest.importorskip("torch", reason="it is a subclass of torch's Store")

SAME_AS_TORCHS = """
import sys
from datetime import timedelta

from torch.distributed import DistStoreError, HashStore, PrefixStore, QueueEmptyError, Store

from arendezvous.sync import open_rendezvous
from arendezvous.torch import TorchStore

SHORT = timedelta(milliseconds=50)


def outcome(operation):
    try:
        return operation()
    except QueueEmptyError:
        return "QueueEmptyError"
    except DistStoreError:
        return "DistStoreError"


def steps(store, queues):
    store.set_timeout(SHORT)
    before = store.num_keys()
    yield "timeout", lambda: store.timeout
    yield "get absent", lambda: store.get("absent")
    yield "set", lambda: store.set("k", "v")
    yield "get", lambda: store.get("k")
    yield "compare_set lost", lambda: store.compare_set("k", "x", "y")
    yield "compare_set", lambda: store.compare_set("k", "v", "w")
    yield "compare_set absent", lambda: store.compare_set("new", "", "n")
    yield "add", lambda: (store.add("n", 2), store.add("n", -5), store.get("n"))
    yield "check", lambda: (store.check(["k", "n"]), store.check(["k", "absent"]))
    yield "wait", lambda: (store.wait(["k"]), store.wait(["n"], SHORT))
    yield "wait absent", lambda: store.wait(["absent"], SHORT)
    yield "append", lambda: (store.append("k", "+"), store.append("a", "1"), store.get("k"))
    yield "multi_set", lambda: store.multi_set(["m1", "m2"], ["1", "2"])
    yield "multi_get", lambda: store.multi_get(["m2", "m1"])
    yield "num_keys", lambda: store.num_keys() - before
    yield "delete_key", lambda: (store.delete_key("m1"), store.delete_key("m1"), store.num_keys() - before)
    yield "clone", lambda: store.clone().get("m2")
    yield "extended", lambda: store.has_extended_api()
    if queues:
        yield "push", lambda: (store.queue_push("q", "1"), store.queue_push("q", "2"), store.queue_len("q"))
        yield "pop", lambda: (store.queue_pop("q"), store.queue_pop("q", False), store.queue_len("q"))
        yield "pop nothing", lambda: store.queue_pop("q", False)
        yield "pop absent", lambda: store.queue_pop("q")
        yield "list_keys", lambda: sorted(store.list_keys())
        yield "barrier", lambda: store.barrier("b", 1, SHORT)
        yield "barrier alone", lambda: store.barrier("c", 2, SHORT)


with open_rendezvous(sys.argv[1], run_id="job", min_nodes=1, timeout=None) as rdzv:
    ours = TorchStore(rdzv.next_rendezvous().store)
    theirs = HashStore()
    assert isinstance(ours, Store)
    pairs = [(True, ours, theirs), (False, PrefixStore("p", ours), PrefixStore("p", theirs))]
    for queues, mine, reference in pairs:
        for (name, mine_does), (_, reference_does) in zip(steps(mine, queues), steps(reference, queues)):
            actual, expected = outcome(mine_does), outcome(reference_does)
            if actual != expected:
                print(f"{name}: {actual!r}, but torch's HashStore {expected!r}", flush=True)
print("done")
"""

ALL_REDUCE = """
import sys

import torch
import torch.distributed as dist

from arendezvous.sync import open_rendezvous
from arendezvous.torch import TorchStore

with open_rendezvous(sys.argv[1], run_id="job", min_nodes=2) as rdzv:
    info = rdzv.next_rendezvous()
    store = TorchStore(info.store)
    dist.init_process_group("gloo", store=store, rank=info.rank, world_size=info.world_size)
    total = torch.tensor([info.rank + 1.0])
    dist.all_reduce(total)
    group = dist.new_group([0, 1])
    dist.barrier(group)
    print(f"the sum is {total.item():g}", flush=True)
    dist.destroy_process_group()
"""


def running(program: str, url: str) -> AbstractAsyncContextManager[Script]:
    return script("-c", program, url, python=torch_python.command())


@pytest.mark.parametrize("scheme", ["etcd", "etcd-v2"])
async def test_every_operation_does_what_torchs_own_store_does(scheme: str) -> None:
    async with serve_etcd(options=["--enable-v2"]) as etcd:
        async with running(SAME_AS_TORCHS, etcd.urls[0].replace("http", scheme)) as process:
            assert await process.end() == 0, process.output
        assert process.output.splitlines() == ["done"]


@pytest.mark.parametrize("scheme", ["etcd", "etcd-v2"])
async def test_two_processes_all_reduce_with_gloo_over_it(scheme: str) -> None:
    async with serve_etcd(options=["--enable-v2"]) as etcd:
        url = etcd.urls[0].replace("http", scheme)

        async def end(process: Script) -> None:
            assert await process.end() == 0, process.output
            assert "the sum is 3" in process.output

        async with running(ALL_REDUCE, url) as one, running(ALL_REDUCE, url) as two:
            await asyncio.gather(end(one), end(two))

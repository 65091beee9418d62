"""One state machine drives every store, and each step must give the same on all of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from typing import ClassVar

import anyio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from arendezvous.errors import StoreError
from arendezvous.keyspace.host import KeyspaceHost
from arendezvous.keyspace.keyspace import leading_integer
from arendezvous.keyspace.messages import Get, Value
from arendezvous.server.serve import serve
from arendezvous.server.store_server import serve_store
from arendezvous.stores.arguments import key_to_bytes
from arendezvous.stores.etcd.v2 import EtcdV2Store
from arendezvous.stores.etcd.v3 import EtcdStore
from arendezvous.stores.http.store import HttpStore
from arendezvous.stores.memory import MemoryStore
from arendezvous.stores.port import PrefixStore, Store
from arendezvous.stores.tcp.store import TcpStore
from tests.kit.etcd_server import serve_etcd
from tests.kit.torch_process import torch_store_server

KEYS = st.sampled_from(["a", "b", "c/d", "\udcff"])
ONLY_KEYS = st.sampled_from(["b", "c/d"])  # never queues: a queue of its name ends a wait for a key
VALUES = st.sampled_from([b"", b"0", b"7", b" -3x", b"text", b"\x00\xff", b"x" * 5000])
QUEUES = st.sampled_from(["a", "q", "r"])
MANY = st.lists(KEYS, max_size=4)
PATIENCE = 120.0


@asynccontextmanager
async def http_url() -> AsyncIterator[str]:
    async with serve("127.0.0.1:0", http="127.0.0.1:0") as server:
        assert server.http_url is not None
        yield server.http_url


async def outcome(operation: Awaitable[object]) -> object:
    """What an operation returns, or the kind of error that it raises."""
    try:
        return await operation
    except StoreError as error:
        return type(error)


class Agreement(RuleBasedStateMachine):
    """A memory store, a prefix, and our clients of our server, torch's, HTTP and etcd: they agree."""

    runner: ClassVar[asyncio.Runner]
    shared: ClassVar[dict[str, Store]]  # the same for all runs: torch's server is slow at taking connections

    def __init__(self) -> None:
        super().__init__()
        self.stack = AsyncExitStack()
        self.stores: dict[str, Store] = {}
        self.broken = 0
        self.host = KeyspaceHost()
        self.keys = self.host.keyspace

    @initialize()
    def connect(self) -> None:
        self.runner.run(self._connect())

    async def _connect(self) -> None:
        enter = self.stack.enter_async_context
        server = await enter(serve_store())
        self.stores = {
            "memory": await enter(MemoryStore(self.host)),
            "our server": await enter(TcpStore(server.host, server.port)),
            "over HTTP": await enter(HttpStore(await enter(http_url()))),
            **self.shared,
            "prefix": PrefixStore("p", await enter(MemoryStore())),
        }

    def teardown(self) -> None:
        self.runner.run(self._clear())

    async def _clear(self) -> None:
        for store in self.stores.values():
            for key in await store.list_keys():
                await store.delete_key(key)
            for queue in ("a", "q", "r"):
                while await store.queue_len(queue):
                    await store.queue_pop(queue)
            assert await store.num_keys() == 0
        await self.stack.aclose()

    def agree(self, operation: Callable[[Store], Awaitable[object]], *, but: Collection[str] = ()) -> object:
        """Does the same on every store, and compares what comes of it, but for some stores."""
        outcomes = self.runner.run(self._each(operation, but))
        first = outcomes["memory"]
        assert outcomes == dict.fromkeys(outcomes, first)
        return first

    async def _each(
        self, operation: Callable[[Store], Awaitable[object]], but: Collection[str]
    ) -> dict[str, object]:
        stores = {name: store for name, store in self.stores.items() if name not in but}
        return {name: await outcome(operation(store)) for name, store in stores.items()}

    def who_differs(self, *keys: str) -> Collection[str]:
        """A TCPStore takes a queue for a key that is empty if there is no other; etcd knows it better."""
        queue = self.runner.run(self.stores["memory"].queue_len("a"))
        return ("etcd", "etcd v2") if queue and "a" in keys else ()

    @rule(key=KEYS, value=VALUES)
    def set(self, key: str, value: bytes) -> None:
        self.agree(lambda store: store.set(key, value))

    @rule(key=KEYS)
    def get(self, key: str) -> None:
        self.agree(lambda store: store.get(key, timeout=0), but=self.who_differs(key))

    @rule(key=KEYS, expected=VALUES, desired=VALUES)
    def compare_set(self, key: str, expected: bytes, desired: bytes) -> None:
        self.agree(lambda store: store.compare_set(key, expected, desired))

    @rule(key=KEYS, desired=VALUES)
    def compare_set_to_what_is_there(self, key: str, desired: bytes) -> None:
        async def step(store: Store) -> object:
            present = await store.get(key, timeout=0) if key in await store.list_keys() else b""
            return await store.compare_set(key, present, desired)

        self.agree(step)

    @precondition(
        lambda self: self.broken < 3
    )  # each costs torch's server a connection, and it is slow at that
    @rule(key=KEYS, delta=st.sampled_from([0, 1, -12, 2**63 - 1, -(2**63)]))
    def add(self, key: str, delta: int) -> None:
        self.broken += self.agree(lambda store: store.add(key, delta)) is StoreError

    @rule(keys=MANY)
    def check(self, keys: list[str]) -> None:
        self.agree(lambda store: store.check([*keys, "q"][: len(keys)]))

    @rule(keys=MANY, queue=QUEUES)
    def wait(self, keys: list[str], queue: str) -> None:
        self.agree(lambda store: store.wait([*keys, queue], 0))

    @rule(key=KEYS)
    def delete_key(self, key: str) -> None:
        self.agree(lambda store: store.delete_key(key))

    @rule()
    def count_and_list(self) -> None:
        async def both(store: Store) -> object:
            return await store.num_keys(), sorted(await store.list_keys())

        self.agree(both)

    @rule(key=KEYS, value=VALUES)
    def append(self, key: str, value: bytes) -> None:
        self.agree(lambda store: store.append(key, value))

    @rule(keys=MANY)
    def multi_get(self, keys: list[str]) -> None:
        self.agree(lambda store: store.multi_get(keys, timeout=0), but=self.who_differs(*keys))

    @rule(items=st.lists(st.tuples(KEYS, VALUES), max_size=4))
    def multi_set(self, items: list[tuple[str, bytes]]) -> None:
        self.agree(lambda store: store.multi_set([key for key, _ in items], [value for _, value in items]))

    @rule(queue=QUEUES, value=VALUES)
    def queue_push(self, queue: str, value: bytes) -> None:
        self.agree(lambda store: store.queue_push(queue, value))

    @rule(queue=QUEUES, block=st.booleans())
    def queue_pop(self, queue: str, block: bool) -> None:
        self.agree(lambda store: store.queue_pop(queue, block, timeout=0))

    @rule(queue=QUEUES)
    def queue_len(self, queue: str) -> None:
        self.agree(lambda store: store.queue_len(queue))

    @precondition(lambda self: self.broken < 2)
    @rule(key=KEYS, world_size=st.integers(-1, 3))
    def barrier(self, key: str, world_size: int) -> None:
        [(_, present)] = self.keys.handle(0, Get(key_to_bytes(key)))
        assert isinstance(present, Value)
        assert isinstance(present.value, bytes | None)
        number = leading_integer(b"0" if present.value is None else present.value)
        if number == 2**63 - 1:
            return  # torch wraps the count around and waits for ever; ours passes
        blocks = number is not None and number + 1 < world_size
        patience = 0 if blocks else PATIENCE
        self.broken += self.agree(lambda store: store.barrier(key, world_size, patience)) is StoreError

    @rule(
        key=ONLY_KEYS,
        value=VALUES,
        write=st.sampled_from(["set", "append", "compare_set", "add", "multi_set"]),
    )
    def wait_for_a_write(self, key: str, value: bytes, write: str) -> None:
        async def step(store: Store) -> object:
            await store.delete_key(key)
            got: list[object] = []

            async def read() -> None:
                got.append(await store.get(key, timeout=PATIENCE))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(read)
                tasks.start_soon(store.wait, [key, key], PATIENCE)
                await store.check([key])
                writes: dict[str, Callable[[], Awaitable[object]]] = {
                    "set": lambda: store.set(key, value),
                    "append": lambda: store.append(key, value),
                    "compare_set": lambda: store.compare_set(key, "", value),
                    "add": lambda: store.add(key, 3),
                    "multi_set": lambda: store.multi_set([key, key], [b"first", value]),
                }
                await writes[write]()
            return got

        self.agree(step)

    @rule(queue=QUEUES, values=st.lists(VALUES, min_size=1, max_size=3))
    def wait_for_pushes(self, queue: str, values: list[bytes]) -> None:
        async def step(store: Store) -> object:
            got: list[bytes] = []

            async def pop() -> None:
                got.append(await store.queue_pop(queue, timeout=PATIENCE))

            async with anyio.create_task_group() as tasks:
                for _ in values:
                    tasks.start_soon(pop)
                await store.check([queue])
                for value in values:
                    await store.queue_push(queue, value)
            return sorted(got)

        self.agree(step)

    @rule(key=KEYS, queue=QUEUES)
    def give_up_waiting(self, key: str, queue: str) -> None:
        async def step(store: Store) -> object:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(store.wait, [key, "never"])
                tasks.start_soon(store.get, "never")
                await store.check([queue])
                tasks.cancel_scope.cancel()
            return await store.check([key])

        self.agree(step)


async def open_shared(stack: AsyncExitStack, torch_port: int) -> dict[str, Store]:
    enter = stack.enter_async_context
    etcd = await enter(serve_etcd(options=["--enable-v2"]))
    return {
        "torch's server": await enter(TcpStore("127.0.0.1", torch_port)),
        "etcd": await enter(EtcdStore(etcd.urls)),
        "etcd v2": await enter(EtcdV2Store(etcd.urls)),
    }


def test_all_stores_agree_on_every_operation() -> None:
    with torch_store_server() as port, asyncio.Runner() as runner:
        stack = AsyncExitStack()
        try:
            shared = runner.run(open_shared(stack, port))
            machine = type("AgreementHere", (Agreement,), {"runner": runner, "shared": shared})
            run_state_machine_as_test(
                machine, settings=settings(max_examples=25, stateful_step_count=40, deadline=None)
            )
        finally:
            runner.run(stack.aclose())

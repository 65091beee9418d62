"""The stores: every one keeps the contract of `Store`; and what is particular to each."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

import anyio
import pytest

from arendezvous.errors import RendezvousConnectionError, StoreError, StoreTimeoutError
from arendezvous.keyspace.host import KeyspaceHost
from arendezvous.keyspace.messages import Set
from arendezvous.server.access.limits import ServerLimits
from arendezvous.server.store_server import StoreServer, serve_store
from arendezvous.server.tcp.c10d import C10dSettings
from arendezvous.stores.memory import MemoryStore
from arendezvous.stores.port import PrefixStore, Store
from arendezvous.stores.tcp.store import TcpStore
from arendezvous.testing.store_checks import STORE_CHECKS, StoreCheck, check_store
from arendezvous.wire.c10d.protocol import MAGIC, Limits
from tests.kit.process_kit import ended, signal_child
from tests.kit.torch_process import torch_store_server
from tests.kit.waiting import until_said

MakeStore = Callable[[], AbstractAsyncContextManager[Store]]


@pytest.fixture(scope="session")
def torch_port() -> Iterator[int]:
    with torch_store_server() as port:
        yield port


@asynccontextmanager
async def memory() -> AsyncIterator[Store]:
    async with MemoryStore() as store:
        yield store


@asynccontextmanager
async def ours() -> AsyncIterator[Store]:
    async with serve_store() as server, TcpStore(server.host, server.port) as store:
        yield store


@asynccontextmanager
async def prefixed() -> AsyncIterator[Store]:
    async with MemoryStore() as below, PrefixStore("p", below) as store:
        yield store


@pytest.fixture(params=["memory", "tcp", "tcp-torch", "prefix"])
def make_store(request: pytest.FixtureRequest) -> MakeStore:
    makers: dict[str, MakeStore] = {"memory": memory, "tcp": ours, "prefix": prefixed}
    if request.param in makers:
        return makers[request.param]
    port: int = request.getfixturevalue("torch_port")

    @asynccontextmanager
    async def torchs() -> AsyncIterator[Store]:
        async with TcpStore("127.0.0.1", port) as store:
            yield store

    return torchs


@pytest.mark.parametrize("check", STORE_CHECKS, ids=lambda check: check.__name__)
async def test_the_store_keeps_the_contract(check: StoreCheck, make_store: MakeStore) -> None:
    async with make_store() as store:
        if isinstance(store, PrefixStore) and check.__name__ == "check_close":
            return  # closing a prefix leaves the store below open, see below
        await check(store)


async def test_check_store_names_the_check_that_fails() -> None:
    class Forgetful(MemoryStore):
        async def append(self, key: str, value: bytes | str) -> None:
            await self.set(key, value)

    with pytest.raises(AssertionError, match="check_append"):
        await check_store(Forgetful)


async def test_check_store_passes_a_store_that_keeps_the_contract() -> None:
    await check_store(memory)


async def test_memory_stores_of_one_host_see_the_same_keys() -> None:
    host = KeyspaceHost()
    async with MemoryStore(host) as one, MemoryStore(host) as two, anyio.create_task_group() as tasks:
        tasks.start_soon(two.set, "k", "v")
        assert await one.get("k") == b"v"
    assert not host.clients


async def test_closing_a_prefix_leaves_the_store_below_open() -> None:
    async with MemoryStore(timeout=7) as below:
        async with PrefixStore("p", below) as store:
            assert store.timeout == 7
            store.timeout = 1
        await below.set("k", "v")
        assert below.timeout == 7
        assert repr(store) == "PrefixStore('p', MemoryStore(1 keys))"


# Connections


async def test_two_clients_of_one_server_see_the_same_keys() -> None:
    async with serve_store() as server, TcpStore(server.host, server.port) as one:
        two = TcpStore(server.host, server.port)
        async with two, anyio.create_task_group() as tasks:
            tasks.start_soon(one.barrier, "b", 2)
            await two.barrier("b", 2)
            await one.set("k", "v")
            assert await two.list_keys() == ["b", "k"]


async def test_hundreds_of_gets_of_one_key_share_one_connection() -> None:
    async with serve_store() as server, TcpStore("127.0.0.1", server.port) as store:
        values: list[bytes] = []

        async def read() -> None:
            values.append(await store.get("leader", timeout=60))

        async with anyio.create_task_group() as tasks:
            for _ in range(500):
                tasks.start_soon(read)
            while not server.keys.keyspace.waits:
                await store.check(["leader"])
            assert len(server.keys.clients) == 2
            await store.set("leader", "node7")
        assert values == [b"node7"] * 500


async def test_the_connection_of_a_wait_serves_the_next_wait() -> None:
    async with serve_store() as server, TcpStore("127.0.0.1", server.port) as store:
        for number in range(20):
            with pytest.raises(StoreTimeoutError):
                await store.wait([f"k{number}"], 0.001)
            await store.check([])
        assert len(server.keys.clients) <= 3
        assert server.keys.keyspace.waits == 0


async def test_connections_that_are_not_needed_any_more_are_closed() -> None:
    async with serve_store() as server, TcpStore("127.0.0.1", server.port) as store:
        async with anyio.create_task_group() as tasks:
            for number in range(40):
                tasks.start_soon(store.get, f"k{number}")
            while server.keys.keyspace.waits < 40:
                await store.check([])
            await store.multi_set([f"k{number}" for number in range(40)], ["v"] * 40)
        while len(server.keys.clients) > 20:
            await store.check([])
    assert not server.keys.clients


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="there is no IPv6 here")
async def test_a_store_that_is_served_at_all_addresses_is_reached_over_ipv4_and_ipv6() -> None:
    async with serve_store("::") as server:
        for host in ("127.0.0.1", "::1"):
            async with TcpStore(host, server.port) as store:
                await store.set("k", host)


async def test_nobody_listening_raises_with_host_port_and_what_was_done(free_port: int) -> None:
    store = TcpStore("127.0.0.1", free_port, read_timeout=0.1)
    with pytest.raises(RendezvousConnectionError) as caught:
        await store.get("leader")
    assert caught.value.endpoint == f"127.0.0.1:{free_port}"
    assert caught.value.doing == "get of 'leader'"
    assert f"get of 'leader' at 127.0.0.1:{free_port} failed after 0.1 s" in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)
    with pytest.raises(RendezvousConnectionError, match="wait of 'a', 'b'"):
        await store.wait(["a", "b"])
    with pytest.raises(RendezvousConnectionError, match="connect at"):
        await TcpStore("127.0.0.1", free_port, connect_timeout=0.1).__aenter__()


async def test_a_client_may_be_started_before_its_server(free_port: int) -> None:
    async with anyio.create_task_group() as tasks:
        store = TcpStore("127.0.0.1", free_port, connect_timeout=60)
        tasks.start_soon(store.__aenter__)
        await anyio.wait_all_tasks_blocked()
        async with serve_store(port=free_port):
            await store.set("k", "v")
            await store.close()


async def test_who_reads_does_not_notice_that_the_server_was_restarted(free_port: int) -> None:
    async with AsyncExitStack() as later, anyio.create_task_group() as tasks:
        async with serve_store(port=free_port) as server:
            store = await later.enter_async_context(TcpStore("127.0.0.1", free_port))
            await store.set("gone", "v")
            tasks.start_soon(store.get, "k")
            tasks.start_soon(store.wait, ["k", "l"])
            tasks.start_soon(store.queue_pop, "q")
            while server.keys.keyspace.waits < 3:
                await store.check([])
        await later.enter_async_context(serve_store(port=free_port))
        assert not await store.check(["gone"])
        await store.multi_set(["k", "l"], ["v", ""])
        await store.queue_push("q", "v")


@asynccontextmanager
async def server_process(read_timeout: float) -> AsyncIterator[tuple[int, TcpStore]]:
    """Our server in a process of its own, which may be killed or stopped; and a client that is connected."""
    script = "import asyncio, sys\nfrom arendezvous.server.store_server import serve_store\n"
    script += "async def main():\n  async with serve_store() as server:\n"
    script += "    print(server.port, flush=True)\n    await asyncio.get_running_loop().create_future()\n"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script + "asyncio.run(main())", stdout=subprocess.PIPE
    )
    async with ended(process):
        assert process.stdout is not None
        port = int(await process.stdout.readline())
        async with TcpStore("127.0.0.1", port, read_timeout=read_timeout, connect_timeout=60) as store:
            yield process.pid, store


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_every_operation_raises_soon_after_the_server_was_killed_or_hangs(how: signal.Signals) -> None:
    async with server_process(read_timeout=0.3) as (pid, store):
        signal_child(pid, how)
        with anyio.fail_after(120):
            for operation, doing in [
                (store.get("k"), "get of 'k'"),
                (store.set("k", ""), "set of 'k'"),
                (store.add("n", 1), "add of 'n'"),
                (store.check(["a", "b"]), "check of 'a', 'b'"),
                (store.multi_set(["a"] * 9, ["b"] * 9), "multi_set of 'a', 'a', 'a', 'a', ..."),
                (store.queue_pop("q"), "queue_pop of 'q'"),
                (store.barrier("b", 2), "barrier of 'b'"),
                (store.list_keys(), "list_keys"),
            ]:
                with pytest.raises(RendezvousConnectionError) as caught:
                    await operation
                assert caught.value.doing == doing
                assert caught.value.endpoint == f"127.0.0.1:{store.port}"


async def test_pending_waits_raise_when_the_server_was_killed() -> None:
    errors: list[RendezvousConnectionError] = []

    async def expect_error(operation: Callable[[], object]) -> None:
        with pytest.raises(RendezvousConnectionError) as caught:
            await operation()  # type: ignore[misc]  # it is an operation of a store
        errors.append(caught.value)

    async with server_process(read_timeout=3.0) as (pid, store):
        with anyio.fail_after(120):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(expect_error, lambda: store.get("k"))
                tasks.start_soon(expect_error, lambda: store.get("k"))
                tasks.start_soon(expect_error, lambda: store.wait(["k"], None))
                tasks.start_soon(expect_error, lambda: store.queue_pop("q"))
                tasks.start_soon(expect_error, lambda: store.barrier("b", 2))
                while await store.num_keys() < 1:
                    pass
                os.kill(pid, signal.SIGKILL)
    assert len(errors) == 5


class _Scripted(asyncio.Protocol):
    """A server that greets, then breaks off at the next request (or answers with rubbish)."""

    def __init__(self, requests: list[bytes], answer: bytes | None) -> None:
        self.requests = requests
        self.answer = answer
        self.data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.data += data
        if len(self.data) >= 10 and self.data[5:6] == b"\x0d":
            self.transport.write(self.data[6:10])
            self.data = self.data[:5] + self.data[10:]
        elif len(self.data) > 5:
            self.requests.append(self.data[5:])
            if self.answer is None:
                self.transport.abort()
            else:
                self.transport.write(self.answer)


@asynccontextmanager
async def scripted(
    answer: bytes | None = None, *, read_timeout: float = 60.0
) -> AsyncIterator[tuple[TcpStore, list[bytes]]]:
    requests: list[bytes] = []
    server = await asyncio.get_running_loop().create_server(
        lambda: _Scripted(requests, answer), "127.0.0.1", 0
    )
    try:
        port = server.sockets[0].getsockname()[1]
        async with TcpStore("127.0.0.1", port, read_timeout=read_timeout, connect_timeout=60) as store:
            yield store, requests
    finally:
        server.close()


@pytest.mark.parametrize(
    ("operation", "opcode"),
    [
        (lambda store: store.set("k", "v"), 1),
        (lambda store: store.compare_set("k", "", "v"), 2),
        (lambda store: store.delete_key("k"), 8),
        (lambda store: store.append("k", "v"), 9),
        (lambda store: store.multi_set(["k"], ["v"]), 11),
        (lambda store: store.queue_push("k", "v"), 14),
        (lambda store: store.queue_pop("k"), 15),
    ],
)  # fmt: skip
async def test_what_changes_something_is_not_sent_again_when_the_connection_breaks(
    operation: Callable[[TcpStore], AbstractAsyncContextManager[None]], opcode: int
) -> None:
    async with scripted() as (store, requests):
        with pytest.raises(RendezvousConnectionError, match="may have been carried out or not"):
            await operation(store)  # type: ignore[misc]  # it is an operation of a store
        assert [request[0] for request in requests] == [opcode]


@pytest.mark.parametrize(
    ("operation", "opcode"),
    [(lambda store: store.add("k", 1), 4), (lambda store: store.barrier("k", 2), 18)],
    ids=["add", "barrier"],
)
async def test_what_counts_is_not_sent_again_but_the_value_is_looked_at(
    operation: Callable[[TcpStore], object], opcode: int
) -> None:
    async with scripted(read_timeout=2.0) as (store, requests):
        with pytest.raises(RendezvousConnectionError, match="may have been carried out or not"):
            await operation(store)  # type: ignore[misc]  # it is an operation of a store
        sent = [request[0] for request in requests]
        assert (sent[0], set(sent[1:])) == (opcode, {5})


async def test_what_reads_is_sent_again_until_the_time_is_over() -> None:
    async with scripted(read_timeout=2.0) as (store, requests):
        with pytest.raises(RendezvousConnectionError, match="get of 'k'"):
            await store.get("k")
        assert len(requests) > 1
        assert {request[0] for request in requests} == {3}


async def test_an_answer_that_is_not_of_the_protocol_is_an_error_that_says_so() -> None:
    async with scripted(answer=b"\x07", read_timeout=0.3) as (store, _):
        with pytest.raises(RendezvousConnectionError) as caught:
            await store.check(["k"])
        assert "check of 'k'" in str(caught.value)


async def test_a_server_that_speaks_something_else_is_told_apart() -> None:
    class Closing(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            transport.close()

    server = await asyncio.get_running_loop().create_server(Closing, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    await until_said(
        lambda s: TcpStore("127.0.0.1", port, connect_timeout=s).__aenter__(),
        "the server closed the connection|connection broke",
    )
    server.close()


async def test_a_server_that_does_not_give_the_nonce_back_is_told_apart() -> None:
    class Counting(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            transport.write(b"1234")

    server = await asyncio.get_running_loop().create_server(Counting, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    await until_said(
        lambda s: TcpStore("127.0.0.1", port, connect_timeout=s).__aenter__(),
        r"not a TCPStore\?|nobody has asked for",
    )
    server.close()


async def test_a_value_that_comes_in_the_tick_of_the_cancellation_goes_back_to_its_queue() -> None:
    async with serve_store() as server, TcpStore(server.host, server.port) as store:
        link = store._links._main
        assert link is not None
        task = asyncio.ensure_future(store.queue_pop("q"))
        await asyncio.sleep(0)
        assert link.busy
        link._outgoing.clear()  # the reply below is not the server's
        link.data_received(struct.pack("=q", 1) + text(b"v"))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await store.queue_pop("q", timeout=60) == b"v"


async def test_a_count_of_workers_that_somebody_overwrites_is_shown() -> None:
    async with serve_store() as server, TcpStore(server.host, server.port) as store:
        task = asyncio.ensure_future(store.wait_for_workers(9))
        while await store.num_keys() == 0:
            pass
        server.keys.keyspace.handle(0, Set(b"init/", b"a few"))
        with pytest.raises(StoreError, match="key 'init/' holds b'a few'"):
            await task


async def test_what_is_over_the_limits_is_refused_and_nothing_is_sent() -> None:
    async with serve_store() as server, TcpStore("127.0.0.1", server.port) as store:
        with pytest.raises(StoreError, match="8193 bytes, but a c10d store takes at most 8192"):
            await store.get("k" * 8192)
        with pytest.raises(StoreError, match="at most 8388608"):
            await store.set("k", b"x" * (8 * 1024 * 1024 + 1))
        assert await store.num_keys() == 0
        assert len(server.keys.clients) == 1


async def test_many_big_values_pass_in_both_directions() -> None:
    async with serve_store() as server, TcpStore("127.0.0.1", server.port) as store:
        keys = [f"k{number}" for number in range(6)]
        values = [bytes([number]) * (8 * 1024 * 1024) for number in range(6)]
        await store.multi_set(keys, values)
        assert await store.multi_get(keys) == values


async def test_workers_are_counted_as_torch_counts_them() -> None:
    async with serve_store() as server, TcpStore("127.0.0.1", server.port, timeout=60) as store:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(store.wait_for_workers, 3)
            tasks.start_soon(store.wait_for_workers, 3)
            await store.wait_for_workers(3)
        assert await store.num_keys() == 1
        assert await store.list_keys() == []
        with pytest.raises(StoreTimeoutError, match="waiting for 9 workers"):
            await store.wait_for_workers(9, timeout=0.05)


# The server's side of a connection


class Raw:
    """A client that sends what it likes."""

    def __init__(self, server: StoreServer) -> None:
        self._server = server

    async def __aenter__(self) -> Raw:
        self.reader, self.writer = await asyncio.open_connection(self._server.host, self._server.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()
        await asyncio.gather(self.writer.wait_closed(), return_exceptions=True)

    async def read(self, size: int) -> bytes:
        async with asyncio.timeout(120):
            return await self.reader.readexactly(size)

    async def closed(self) -> bytes:
        """What still came before the server closed the connection."""
        async with asyncio.timeout(120):
            return await self.reader.read()


GREETING = b"\x00" + struct.pack("=I", MAGIC)


def text(value: bytes) -> bytes:
    return struct.pack("=Q", len(value)) + value


async def test_a_client_may_send_byte_by_byte_its_greeting_too() -> None:
    async with serve_store() as server, Raw(server) as raw:
        raw.writer.transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in GREETING + b"\x01" + text(b"k") + text(b"v") + b"\x03" + text(b"k"):
            raw.writer.write(bytes([byte]))
            await raw.writer.drain()
            await asyncio.sleep(0)
        assert await raw.read(9) == text(b"v")


@pytest.mark.parametrize(
    ("sent", "answered", "reason"),
    [
        (b"\x00\x01\x02\x03\x04", b"", "magic number 0x4030201"),
        (GREETING + b"\x07\x63", bytes(8), "unknown opcode 99"),
        (GREETING + b"\x01" + text(b"n") + text(b"x") + b"\x04" + text(b"n") + bytes(8), b"", "on a value"),
        (GREETING + b"\x07\x03" + struct.pack("=Q", 9000), bytes(8), "key of 9000 bytes; the limit is 8192"),
        (GREETING + b"\x06" + struct.pack("=Q", 131073), b"", "131073 keys, but the most in one request is"),
    ],
)  # fmt: skip
async def test_a_client_that_breaks_the_rules_is_dropped_with_its_name_and_the_reason_in_the_log(
    sent: bytes, answered: bytes, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve_store() as server, TcpStore(server.host, server.port) as other, Raw(server) as raw:
        raw.writer.write(sent)
        assert await raw.closed() == answered
        name = "{}:{}".format(*raw.writer.get_extra_info("sockname"))
        [line] = [record.getMessage() for record in caplog.records if record.name.startswith("arendezvous")]
        assert line.startswith(f"{name}: dropped: ")
        assert reason in line
        assert await other.check([])
        assert len(server.keys.clients) == 1


async def test_a_client_that_does_not_greet_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    settings = C10dSettings(handshake_timeout=1.0)
    async with serve_store(settings=settings) as server, Raw(server) as raw, Raw(server) as good:
        raw.writer.write(GREETING[:3])
        good.writer.write(GREETING)
        assert await raw.closed() == b""
        assert "its greeting was not complete after 1 s" in caplog.text
        good.writer.write(b"\x07")
        assert await good.read(8) == bytes(8)


async def test_a_client_that_does_not_read_is_not_served_further_and_others_are() -> None:
    size, count = 1 << 20, 64
    async with serve_store() as server, TcpStore(server.host, server.port) as other, Raw(server) as slow:
        await other.set("big", b"x" * size)
        get = b"\x03" + text(b"/big")
        slow.writer.write(GREETING + get * count + b"\x04" + text(b"done") + struct.pack("=q", 1))
        for _ in range(50):
            await other.set("k", "v")
        assert await other.num_keys() == 2, "requests behind unread replies were handled"
        for _ in range(count):
            assert len(await slow.read(8 + size)) == 8 + size
        assert await slow.read(8) == struct.pack("=q", 1)


async def test_the_one_that_has_not_read_for_the_longest_is_dropped_when_too_much_is_unread(
    caplog: pytest.LogCaptureFixture,
) -> None:
    limits = ServerLimits(max_unread=64 * 1024)  # what one connection alone leaves at most: one piece
    size = 8 << 20
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(serve_store(limits=limits))
        other = await stack.enter_async_context(TcpStore(server.host, server.port))
        await other.set("big", b"x" * size)
        raws: list[Raw] = []
        while not (lines := [record for record in caplog.records if "dropped" in record.getMessage()]):
            assert len(raws) < 64
            raws.append(await stack.enter_async_context(Raw(server)))
            raws[-1].writer.write(GREETING + b"\x03" + text(b"/big"))
            for _ in range(200):
                await other.check([])
        assert len(await raws[0].closed()) < size
        assert len(await raws[-1].read(8 + size)) == 8 + size
        name = "{}:{}".format(*raws[0].writer.get_extra_info("sockname"))
    assert lines[0].getMessage().startswith(f"{name}: dropped: it has left ")
    assert lines[0].getMessage().endswith("bytes of answers unread; all connections together may leave 65536")


@pytest.mark.parametrize("what", ["reads", "ends its request"])
async def test_a_client_that_keeps_the_server_waiting_is_dropped_when_its_time_is_over(
    what: str, caplog: pytest.LogCaptureFixture
) -> None:
    limits = ServerLimits(write_timeout=0.5, request_timeout=0.5)
    async with (
        serve_store(limits=limits) as server,
        TcpStore(server.host, server.port) as other,
        Raw(server) as raw,
    ):
        await other.set("big", b"x" * (8 << 20))
        raw.writer.write(
            GREETING + (b"\x03" + text(b"/big") if what == "reads" else b"\x03" + text(b"/big")[:-1])
        )
        while len(server.keys.clients) > 1:
            await other.check([])
    assert "for 0.5 s" in caplog.text


async def test_a_flood_of_requests_of_one_client_does_not_hold_up_another() -> None:
    async with serve_store() as server, TcpStore(server.host, server.port) as other, Raw(server) as flood:
        count = 20_000
        flood.writer.write(GREETING + b"\x07" * count)
        await other.set("k", "v")
        answered = await flood.read(8 * count)
        assert answered[:8] == bytes(8), "the first request was handled after a later one of another client"
        assert answered[-8:] == struct.pack("=q", 1), "the others had to wait for the whole flood"


async def test_hundreds_of_clients_are_served_and_woken() -> None:
    async with serve_store() as server, TcpStore(server.host, server.port) as store:

        async def wait() -> None:
            async with TcpStore(server.host, server.port) as client:
                assert await client.get("go", timeout=60) == b"now"

        async with anyio.create_task_group() as tasks:
            for _ in range(250):
                tasks.start_soon(wait)
            while server.keys.keyspace.waits < 250:
                await store.check([])
            assert len(server.keys.clients) == 501
            await store.set("go", "now")


async def test_the_limits_of_a_server_are_its_own() -> None:
    settings = C10dSettings(limits=Limits(value=10))
    async with serve_store(settings=settings) as server, TcpStore(server.host, server.port) as store:
        await store.set("k", b"x" * 10)
        with pytest.raises(RendezvousConnectionError, match="may have been carried out"):
            await store.set("k", b"x" * 11)
        assert await store.get("k") == b"x" * 10

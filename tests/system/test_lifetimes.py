"""All that is opened is closed in any order, by any task, under any scope; cancelled, it leaves nothing."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio
import pytest
import pytest_asyncio
from anyio.from_thread import start_blocking_portal

import arendezvous as ar
from arendezvous.server import serve
from arendezvous.server.store_server import serve_store
from arendezvous.stores.memory import MemoryStore
from arendezvous.stores.tcp.store import TcpStore
from arendezvous.testing.fault_proxy import FaultProxy
from tests.kit.cancelling import WAYS, cancelled_at, nothing_left
from tests.kit.etcd_server import serve_etcd
from tests.kit.lifetimes import EVERYTHING, HANDLERS, STORES, Around, Place, Thing
from tests.kit.script_kit import script
from tests.kit.tls_kit import make_pki
from tests.kit.waiting import until_seen

NAMES = ("a", "b", "c")
ORDERS = ([0, 1, 2], [2, 1, 0], [1, 2, 0])


@pytest.fixture(scope="module")
def around(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Around]:
    """What the places need, etcd above all, which is slow to start: once for all tests here."""
    pki = make_pki(tmp_path_factory.mktemp("pki"))
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(serve_etcd(options=("--enable-v2",))) as cluster,
    ):
        yield Around(cluster.urls[0], pki)


@pytest_asyncio.fixture(params=EVERYTHING)
async def place(
    request: pytest.FixtureRequest, around: Around, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Place]:
    monkeypatch.setattr(serve, "SETTLE", 0.01)  # a node that hosts would wait a second for others
    async with EVERYTHING[request.param](around) as place, nothing_left():
        yield place


async def close(thing: Thing) -> None:
    await thing.__aexit__(None, None, None)


@pytest.mark.parametrize("order", ORDERS, ids=str)
async def test_they_are_closed_in_any_order(place: Place, order: list[int]) -> None:
    things = [place.make(name) for name in NAMES]
    for thing in things:
        await place.use(await thing.__aenter__())
    for number in order:
        await close(things[number])
    await asyncio.sleep(0)  # this task is not cancelled


async def test_they_are_opened_at_the_same_time_and_closed_at_the_same_time_in_tasks_of_their_own(
    place: Place,
) -> None:
    things = [place.make(name) for name in NAMES]
    opened = await asyncio.gather(*(thing.__aenter__() for thing in things))
    for one in opened:
        await place.use(one)
    await asyncio.gather(*(close(thing) for thing in things))


async def test_they_are_opened_under_scopes_and_time_outs_that_end_before_they_are_closed(
    place: Place,
) -> None:
    one, two, three = (place.make(name) for name in NAMES)
    opened: list[Any] = []
    with anyio.fail_after(60):
        opened.append(await one.__aenter__())
    opened.append(await asyncio.wait_for(two.__aenter__(), 60))
    async with anyio.create_task_group() as tasks:
        opened.append(await three.__aenter__())
        tasks.cancel_scope.cancel()
    for each in opened:
        await place.use(each)
    async with asyncio.timeout(60):
        await close(one)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(close, two)
    await close(three)


@pytest.mark.parametrize("kind", [*HANDLERS, *STORES])
async def test_handlers_and_stores_are_opened_again(
    kind: str, around: Around, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "SETTLE", 0.01)
    async with EVERYTHING[kind](around) as place, nothing_left():
        thing = place.make("a")
        for _ in range(3):
            async with thing as opened:
                await place.use(opened)


@pytest_asyncio.fixture
async def opened(place: Place) -> AsyncIterator[Any]:
    async with place.make("a") as thing:
        yield thing


async def test_a_fixture_yields_them(opened: Any, place: Place) -> None:
    await place.use(opened)


@pytest.mark.parametrize("way", WAYS)
async def test_cancelled_anywhere_while_they_are_opened_they_leave_nothing(place: Place, way: str) -> None:
    step, struck = 0, True
    while struck:
        async with nothing_left():
            thing = place.make("a")
            opening = await cancelled_at(step, way, thing.__aenter__())
            if not opening.cut:
                await close(thing)
        step, struck = step + 1, opening.struck
    async with place.make("a") as again:
        await place.use(again)


@pytest.mark.parametrize("way", WAYS)
async def test_cancelled_anywhere_while_they_are_closed_they_leave_nothing(place: Place, way: str) -> None:
    step, struck = 0, True
    while struck:
        async with nothing_left():
            thing = place.make("a")
            await place.use(await thing.__aenter__())
            closing = await cancelled_at(step, way, close(thing))
            await until_seen(lambda: place.is_gone("a"), bool)
        step, struck = step + 1, closing.struck


URLS = (
    "memory://", "tcp://127.0.0.1:1", "http://127.0.0.1:1", "c10d://127.0.0.1:1", "etcd://127.0.0.1:1",
    "etcd-v2://127.0.0.1:1",
)  # fmt: skip


@pytest.mark.parametrize(
    ("make", "what"),
    [*((lambda url=url: ar.open_rendezvous(url, run_id="job", min_nodes=1), "rendezvous") for url in URLS),
     (lambda: ar.open_rendezvous("static://127.0.0.1:1", run_id="job", min_nodes=1, rank=0), "rendezvous"),
     (lambda: TcpStore("127.0.0.1", 1), "store"), (MemoryStore, "store"), (ar.serve, "server"),
     (serve_store, "server"), (lambda: FaultProxy("127.0.0.1", 1), "proxy")],
)  # fmt: skip
def test_without_a_loop_of_asyncio_opening_is_refused(make: Callable[[], Thing], what: str) -> None:
    """Under trio there is none, either; no other library's loop is looked for."""
    with pytest.raises(
        RuntimeError, match=f"^a {what} needs a running event loop of asyncio, and there is none"
    ):
        make().__aenter__().__await__().__next__()


# All at once


MANY = 50


@pytest.mark.parametrize("kind", ["memory", "tcp", "embedded", "http", "etcd"])
async def test_fifty_are_closed_in_the_order_in_which_they_were_opened_while_others_join(
    kind: str, around: Around, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "SETTLE", 0.01)
    async with HANDLERS[kind](around) as place, nothing_left():
        example = place.make("example")
        assert isinstance(example, ar.AsyncRendezvousHandler)
        url = example.endpoint

        def make(name: str) -> ar.AsyncRendezvousHandler:
            return ar.open_rendezvous(url, run_id="fifty", min_nodes=MANY, node=name)

        first = [make(f"first{number}") for number in range(MANY)]
        for handler in first:
            await handler.__aenter__()
        await asyncio.gather(*(handler.next_rendezvous() for handler in first))
        digests: list[str] = []

        async def visit(name: str) -> None:
            async with make(name) as handler:
                info = await handler.next_rendezvous()
                assert info.world_size == MANY
                digests.append(info.digest)

        async with anyio.create_task_group() as tasks:
            for number in range(MANY):
                tasks.start_soon(visit, f"second{number}")
            for handler in first:
                await close(handler)
        assert digests == digests[:1] * MANY


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
async def test_it_is_closed_while_it_connects_again(around: Around, secure: bool, way: str) -> None:
    tls = around.pki.server() if secure else None
    ca = around.pki.ca if secure else ""
    brief = ar.RendezvousTimeout(last_call=0.0, close=0.05)
    async with ar.serve("127.0.0.1:0", tls=tls) as server, FaultProxy("127.0.0.1", server.port) as proxy:
        step, struck = 0, True
        while struck:
            async with nothing_left():
                handler = ar.open_rendezvous(
                    f"tcp://{proxy.address}", run_id=f"job{step}", min_nodes=1, is_host=False, tls_ca=ca,
                    timeout=brief,
                )  # fmt: skip
                await handler.__aenter__()
                await handler.next_rendezvous()
                proxy.refusing = True
                proxy.cut()
                closing = await cancelled_at(step, way, close(handler))
                proxy.refusing = False
            step, struck = step + 1, closing.struck
        assert step > 2


# The end of the loop

LEFT_OPEN = """
import asyncio, gc, sys
import arendezvous as ar

async def main(endpoint, served):
    kept = []
    if served:
        kept.append(ar.serve("127.0.0.1:0", http="127.0.0.1:0"))
        server = await kept[0].__aenter__()
        endpoint = server.tcp_url if served == "tcp" else server.http_url
    options = {"rank": 0} if endpoint.startswith("static") else {}
    for run in "ab"[:2 - len(options)]:
        handler = ar.open_rendezvous(endpoint, run_id=run, min_nodes=1, **options)
        await handler.__aenter__()
        await handler.next_rendezvous()
        kept += [handler, asyncio.create_task(anext(aiter(handler.changes())))]
    await asyncio.sleep(0)
    return kept

kept = asyncio.run(main(*sys.argv[1:]))
del kept
gc.collect()
print("the end")
"""


@pytest.mark.parametrize(
    ("endpoint", "served"),
    [("memory://", ""), ("", "tcp"), ("", "http"), ("tcp://127.0.0.1:{}", ""), ("c10d://127.0.0.1:{}", ""),
     ("static://127.0.0.1:{}", "")],
)  # fmt: skip
async def test_a_loop_that_ends_with_handlers_open_says_nothing(
    endpoint: str, served: str, free_port: int
) -> None:
    async with script("-c", LEFT_OPEN, endpoint.format(free_port), served) as process:
        assert await process.end() == 0, process.output
    assert process.output == "the end\n"


INTERRUPTED = """
import asyncio, sys
import arendezvous as ar

async def main():
    async with ar.open_rendezvous(sys.argv[1], run_id="job", min_nodes=1, node="a", is_host=False) as rdzv:
        info = await rdzv.next_rendezvous()
        print("a member", flush=True)
        await info.store.get("never there")

asyncio.run(main())
"""


async def test_an_interrupted_program_leaves_the_run_and_says_nothing_else() -> None:
    async with (
        ar.serve("127.0.0.1:0") as server,
        ar.open_rendezvous(server.tcp_url, run_id="job", min_nodes=1, is_host=False) as observer,
        script("-c", INTERRUPTED, server.tcp_url) as process,
    ):
        assert await process.line() == "a member"
        process.send_signal(signal.SIGINT)
        status = await until_seen(observer.explain, lambda status: status.departed)
        assert [(one.node, one.cause, one.reason) for one in status.departed] == [
            ("a", ar.Cause.CANCELLED, "its task was cancelled")
        ]
        await process.end()
    said = process.output.splitlines()
    assert said[-1] == "KeyboardInterrupt"
    assert [line for line in said if "Task" in line or "never" in line or "unclosed" in line] == []

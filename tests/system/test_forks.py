"""A child that was forked holds none of our sockets, and is told that what it inherited is its parent's."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

import arendezvous as ar
from arendezvous.law.events import LawEvent, NodeDeparted
from arendezvous.law.state import Cause
from tests.kit.etcd_server import serve_etcd
from tests.kit.script_kit import script
from tests.kit.waiting import until_seen

FORKING = """
import asyncio, os, sys, time
import arendezvous as ar
from arendezvous import sync

async def take_part(url, how):
    async with ar.open_rendezvous(url, run_id="job", node="a", nnodes="1", keep_alive_interval=60) as node:
        info = await node.next_rendezvous()
        if info.store is not None:
            await info.store.set("k", "v")
        fork(node.endpoint)
        await asyncio.sleep(600)

def take_part_blocking(url, how):
    with sync.open_rendezvous(url, run_id="job", node="a", nnodes="1", keep_alive_interval=60) as node:
        node.next_rendezvous()
        fork(node.endpoint)
        time.sleep(600)

def fork(endpoint):
    if not os.fork():
        print("forked", endpoint, flush=True)
        time.sleep(600)
        os._exit(0)

url, how = sys.argv[1:]
asyncio.run(take_part(url, how)) if how == "async" else take_part_blocking(url, how)
"""

ASKING = """
import asyncio, os, sys
import arendezvous as ar

async def refused(name, call):
    try:
        async with asyncio.timeout(20):
            await call()
    except RuntimeError as error:
        own = "which forked this one; open one of its own here" in str(error)
        print(name, "refused" if own else f"raises {error}", flush=True)
    except BaseException as error:
        print(name, "raises", repr(error), flush=True)
    else:
        print(name, "works", flush=True)

async def in_the_child(node, info, changes, store):
    calls = {
        "next_rendezvous": node.next_rendezvous,
        "is_closed": node.is_closed,
        "set_closed": node.set_closed,
        "leave": node.leave,
        "outlook": node.outlook,
        "explain": node.explain,
        "num_nodes_waiting": node.num_nodes_waiting,
        "members": info.members,
        "change": changes.__anext__,
        "shutdown": node.shutdown,
    }
    if store is not None:
        calls |= {
            "set": lambda: store.set("k", "w"),
            "get": lambda: store.get("k"),
            "wait": lambda: store.wait(["missing"]),
            "pop": lambda: store.queue_pop("q"),
            "barrier": lambda: store.barrier("b", 2),
        }
    for name, call in calls.items():
        await refused(name, call)
    await node.__aexit__(None, None, None)

async def main(url):
    async with ar.open_rendezvous(url, run_id="job", nnodes="1", last_call_timeout=0.1) as node:
        info = await node.next_rendezvous()
        changes, store = node.changes(), info.store
        if store is not None:
            await store.set("k", "v")
        child = os.fork()
        if not child:
            try:
                asyncio.run(in_the_child(node, info, changes, store))
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        async with asyncio.timeout(20):
            if store is not None:
                assert await store.get("k") == b"v"
            assert len(await info.members()) == 1
            assert not await node.is_closed()
        print("the parent goes on", flush=True)

asyncio.run(main(sys.argv[1]))
"""


@asynccontextmanager
async def place(way: str) -> AsyncIterator[str]:
    """A place to meet, as a URL."""
    if way == "memory":
        yield "memory://forks"
    elif way.startswith("etcd"):
        async with serve_etcd(options=["--enable-v2"] if way == "etcd-v2" else []) as etcd:
            yield f"{way}://{etcd.urls[0].removeprefix('http://')}"
    else:
        async with ar.serve("127.0.0.1:0", http="127.0.0.1:0") as server:
            urls = {"http": server.http_url or "", "c10d": f"c10d://127.0.0.1:{server.port}"}
            yield urls.get(way, server.tcp_url)


@pytest.mark.parametrize("how", ["async", "sync"])
@pytest.mark.parametrize("way", ["tcp", "http"])
async def test_a_killed_parent_of_a_living_child_is_lost_for_its_connection(way: str, how: str) -> None:
    async with ar.serve("127.0.0.1:0", http="127.0.0.1:0") as server:
        departed: asyncio.Queue[LawEvent] = asyncio.Queue()
        server.coordinator.observe(lambda _, now, event: departed.put_nowait(event), NodeDeparted)
        url = server.tcp_url if way == "tcp" else server.http_url
        async with script("-c", FORKING, str(url), how) as parent:
            await parent.line_with("forked")
            parent.send_signal(signal.SIGKILL)
            with anyio.fail_after(60):
                event = await departed.get()
    assert isinstance(event, NodeDeparted)
    assert (event.node, event.cause) == ("a", Cause.CONNECTION_LOST)


@pytest.mark.parametrize("how", ["async", "sync"])
@pytest.mark.parametrize("scheme", ["tcp", "c10d"])
async def test_the_port_of_a_killed_host_is_free_though_its_child_lives(
    free_port: int, scheme: str, how: str
) -> None:
    url = f"{scheme}://127.0.0.1:{free_port}"

    async def can_be_served() -> bool:
        try:
            async with ar.serve(f"127.0.0.1:{free_port}"):
                return True
        except ar.RendezvousConnectionError:
            return False

    script_text = FORKING if scheme == "tcp" else FORKING.replace('node="a", ', "")
    async with script("-c", script_text, url, how) as parent:
        await parent.line_with("forked")
        parent.send_signal(signal.SIGKILL)
        await until_seen(can_be_served, bool)


@pytest.mark.parametrize("way", ["tcp", "http", "etcd", "etcd-v2", "c10d", "memory"])
async def test_what_a_child_has_inherited_says_so_at_once_and_does_not_hold_up_the_parent(way: str) -> None:
    async with place(way) as url, script("-W", "ignore", "-c", ASKING, url) as process:
        assert await process.end() == 0, process.output
    *said, last = process.output.splitlines()
    assert last == "the parent goes on"
    assert [line for line in said if not line.endswith("refused")] == []
    assert len(said) >= 10

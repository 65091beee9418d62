"""A server that is killed or frozen holds nobody up for longer than the time-outs say, over every backend."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import pytest

import arendezvous as ar
from tests.kit.etcd_server import serve_etcd
from tests.kit.ports import held_ports
from tests.kit.process_kit import signal_child
from tests.kit.script_kit import script

WAYS = ("tcp", "http", "etcd", "c10d", "etcd-v2")
SAID = "does not answer|the server could not record the round"
BOUND = 15.0  # seconds for what should take 5 at most; without a bound of its own it takes 30 or 60

each_fault = pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
each_way = pytest.mark.parametrize("way", WAYS)


@asynccontextmanager
async def place(way: str) -> AsyncIterator[tuple[str, Callable[[int], None]]]:
    """A place to meet, by its URL, in a process of its own; and what sends that a signal."""
    if way.startswith("etcd"):
        async with serve_etcd(options=["--enable-v2"] if way == "etcd-v2" else []) as etcd:
            member = etcd.members[0]
            yield f"{way}://{member.url.removeprefix('http://')}", partial(signal_child, member.pid)
        return
    with held_ports(2) as (tcp, http):
        serve = ("serve", "--port", str(tcp), "--http-port", str(http))
        async with script("-m", "arendezvous", *serve) as server:
            await server.line_with("serving")
            yield f"{way}://127.0.0.1:{http if way == 'http' else tcp}", server.send_signal


def node_at(url: str, **options: Any) -> ar.AsyncRendezvousHandler:
    """A node that does not serve, however the server fares."""
    if url.startswith(("tcp", "c10d")):
        options["is_host"] = False
    return ar.open_rendezvous(url, run_id="job", nnodes="1", last_call_timeout=0.1, **options)


@each_fault
@each_way
async def test_a_member_whose_task_is_cancelled_ends_soon(way: str, fault: int) -> None:
    async with place(way) as (url, send_signal):
        joined = asyncio.Event()

        async def take_part() -> None:
            async with node_at(url) as rendezvous:
                await rendezvous.next_rendezvous()
                joined.set()
                await anyio.sleep_forever()

        node = asyncio.create_task(take_part())
        await asyncio.wait([asyncio.create_task(joined.wait()), node], return_when=asyncio.FIRST_COMPLETED)
        send_signal(fault)
        node.cancel()
        await asyncio.wait([node], timeout=BOUND)
        assert node.cancelled()


@each_fault
@each_way
async def test_a_read_a_closing_and_a_goodbye_take_no_longer_than_their_time_outs(
    way: str, fault: int
) -> None:
    async with place(way) as (url, send_signal):
        node = node_at(url, close_timeout=1.0)
        await node.__aenter__()
        info = await node.next_rendezvous()
        send_signal(fault)
        with anyio.fail_after(BOUND), pytest.raises(ar.RendezvousConnectionError):
            await info.store.get("missing", timeout=1.0)
        with anyio.fail_after(BOUND), pytest.raises(ar.RendezvousConnectionError):
            await node.set_closed("over")
        with anyio.fail_after(BOUND):
            await node.__aexit__(None, None, None)


@each_fault
@each_way
async def test_a_join_and_connecting_take_no_longer_than_the_time_out_for_joining(
    way: str, fault: int
) -> None:
    async with place(way) as (url, send_signal):
        async with node_at(url, join_timeout=1.0) as node:
            send_signal(fault)
            with anyio.fail_after(BOUND), pytest.raises(ar.RendezvousTimeoutError, match=SAID):
                await node.next_rendezvous()
        with anyio.fail_after(BOUND), pytest.raises(ar.RendezvousConnectionError):
            await node_at(url, join_timeout=1.0).__aenter__()

"""Barriers over each place where a run may be kept, and what becomes of them when something breaks."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import pytest

import arendezvous as ar
from arendezvous.testing.fault_proxy import FaultProxy
from tests.kit.etcd_server import serve_etcd
from tests.kit.ports import held_ports

N = 5


@asynccontextmanager
async def opened(
    scheme: str, count: int = N, **options: Any
) -> AsyncIterator[list[ar.AsyncRendezvousHandler]]:
    """So many nodes, n0, n1..., of one run."""
    async with AsyncExitStack() as stack:
        url = "memory://system-meeting"
        if scheme == "etcd":
            url = (await stack.enter_async_context(serve_etcd())).urls[0].replace("http://", "etcd://")
        elif scheme != "memory":
            server = await stack.enter_async_context(ar.serve("127.0.0.1:0", http="127.0.0.1:0"))
            url = server.tcp_url if scheme == "tcp" else str(server.http_url)
        yield [
            await stack.enter_async_context(
                ar.open_rendezvous(url, run_id="job", min_nodes=count, node=f"n{i}", **options)
            )
            for i in range(count)
        ]


@asynccontextmanager
async def met(scheme: str, count: int = N, **options: Any) -> AsyncIterator[Any]:
    async with opened(scheme, count, **options) as nodes:
        yield nodes, await asyncio.gather(*(node.next_rendezvous() for node in nodes))


everywhere = pytest.mark.parametrize("scheme", ["memory", "tcp", "http", "etcd"])


@everywhere
async def test_all_agree(scheme: str) -> None:
    async with met(scheme) as (_, infos):
        for turn in range(3):
            found = await asyncio.gather(*(info.agree("a/b c?", info.rank + turn, "sum") for info in infos))
            assert found == [sum(range(N)) + N * turn] * N
        assert await asyncio.gather(*(info.barrier("plain") for info in infos)) == [None] * N
        assert await asyncio.gather(*(info.agree("none", None) for info in infos)) == [None] * N


@everywhere
async def test_who_does_not_come_is_named_and_nobody_else(scheme: str) -> None:
    async with met(scheme) as (_, infos):
        errors = await asyncio.gather(
            *(info.barrier("x", timeout=0.3) for info in infos[1:]), return_exceptions=True
        )
        assert [getattr(error, "missing", error) for error in errors] == [("n0",)] * (N - 1)


@everywhere
async def test_who_fails_is_named_to_all_who_wait(scheme: str) -> None:
    async with met(scheme) as (nodes, infos):
        waits = [asyncio.ensure_future(info.barrier("x")) for info in infos[1:]]
        waits += [asyncio.ensure_future(infos[1].store.get("never"))]
        await asyncio.sleep(0.1)
        await nodes[0].leave("boom", cause=ar.Cause.FAILED)
        for error in await asyncio.gather(*waits, return_exceptions=True):
            assert isinstance(error, ar.RoundOverError)
            assert error.departures == {"n0": "boom"}
            assert "n0 failed: boom" in str(error)


@everywhere
async def test_who_differs_is_named_to_all(scheme: str) -> None:
    async with met(scheme) as (_, infos):
        errors = await asyncio.gather(
            *(info.agree("plan", number == 2) for number, info in enumerate(infos)), return_exceptions=True
        )
        for error in errors:
            assert isinstance(error, ar.RendezvousStateError)
            assert "is false by 4 nodes (n0, n1, n3, n4), true by 1 node (n2)" in str(error)


@everywhere
async def test_states_and_progress_are_shown(scheme: str) -> None:
    async with met(scheme) as (nodes, _):
        await nodes[0].update({"version": 43, "at": [1.5, None]})
        await nodes[1].progress(7)
        shown = {node.desc.name: node for node in (await nodes[2].explain()).nodes}
        assert json.loads(shown["n0"].state) == {"version": 43, "at": [1.5, None]}
        assert {name: node.step for name, node in shown.items() if node.step is not None} == {"n1": 7}


@everywhere
async def test_states_are_told_to_who_asks_for_them(scheme: str) -> None:
    async with met(scheme) as (nodes, _):
        await nodes[0].update("before")
        changes = nodes[1].changes(states=True)
        with anyio.fail_after(20):
            assert await anext(changes) == ar.StateChanged("n0", "before")
            await nodes[2].update({"version": 1})
            assert await anext(changes) == ar.StateChanged("n2", {"version": 1})
            await nodes[3].leave("bye")
            assert await anext(changes) == ar.NodeLeft("n3", ar.Cause.LEFT, "bye")


@everywhere
async def test_a_member_that_stalls_is_told_of(scheme: str) -> None:
    async with met(scheme, stall_timeout=0.2) as (nodes, _):
        await nodes[0].progress(3)
        with anyio.fail_after(20):
            change = await anext(nodes[1].changes())
        assert isinstance(change, ar.NodeStalled)
        assert (change.node, change.step) == ("n0", 3)


@pytest.mark.parametrize("scheme", ["tcp", "http"])
async def test_members_say_again_what_a_server_has_forgotten(scheme: str) -> None:
    async with AsyncExitStack() as stack:
        port, http = stack.enter_context(held_ports(2))
        server = AsyncExitStack()
        await server.enter_async_context(ar.serve(f"127.0.0.1:{port}", http=f"127.0.0.1:{http}"))
        url = f"tcp://127.0.0.1:{port}" if scheme == "tcp" else f"http://127.0.0.1:{http}"
        options: dict[str, Any] = {"is_host": False} if scheme == "tcp" else {}
        nodes = [
            await stack.enter_async_context(
                ar.open_rendezvous(url, run_id="job", min_nodes=3, node=f"n{i}", **options)
            )
            for i in range(3)
        ]
        infos = await asyncio.gather(*(node.next_rendezvous() for node in nodes))
        await asyncio.gather(*(info.barrier("x") for info in infos))
        await nodes[0].update("warm")
        await nodes[0].progress(5)
        waits = [asyncio.ensure_future(info.agree("y", info.rank, "max")) for info in infos[:2]]
        await asyncio.sleep(0.1)
        await server.aclose()
        again = ar.serve(f"127.0.0.1:{port}", http=f"127.0.0.1:{http}", follows=True)
        await server.enter_async_context(again)
        await asyncio.sleep(0.2)
        with anyio.fail_after(20):
            assert await infos[2].agree("y", 2, "max") == 2
            assert await asyncio.gather(*waits) == [2, 2]
            [shown] = [node for node in (await nodes[2].explain()).nodes if node.desc.name == "n0"]
            assert (shown.state, shown.step) == (b'"warm"', 5)
        await stack.aclose()
        await server.aclose()


@pytest.mark.parametrize("scheme", ["tcp", "http"])
async def test_a_connection_that_breaks_loses_nobody_at_a_barrier(scheme: str) -> None:
    async with ar.serve("127.0.0.1:0", http="127.0.0.1:0") as server, AsyncExitStack() as stack:
        port = server.port if scheme == "tcp" else int(str(server.http_url).rpartition(":")[2])
        proxy = await stack.enter_async_context(FaultProxy("127.0.0.1", port))
        nodes = [
            await stack.enter_async_context(
                ar.open_rendezvous(f"{scheme}://127.0.0.1:{at}", run_id="job", min_nodes=2, node=name)
            )
            for at, name in ((proxy.port, "a"), (port, "b"))
        ]
        infos = await asyncio.gather(*(node.next_rendezvous() for node in nodes))
        with anyio.fail_after(60):
            for turn in range(5):
                wait = asyncio.ensure_future(infos[0].agree("x", turn, "max"))
                await asyncio.sleep(0.02)
                proxy.cut()  # before the answer, or with it
                assert await infos[1].agree("x", turn, "max") == turn
                proxy.cut()
                assert await wait == turn


@pytest.mark.parametrize("scheme", ["tcp", "http"])
async def test_who_waits_while_the_server_is_out_of_reach_is_told_so(scheme: str) -> None:
    async with AsyncExitStack() as stack:
        server = AsyncExitStack()
        at = await server.enter_async_context(ar.serve("127.0.0.1:0", http="127.0.0.1:0"))
        url = at.tcp_url if scheme == "tcp" else str(at.http_url)
        options: dict[str, Any] = {"read_timeout": 0.5, "close_timeout": 0.1}
        nodes = [
            await stack.enter_async_context(
                ar.open_rendezvous(url, run_id="job", min_nodes=2, node=name, **options)
            )
            for name in "ab"
        ]
        infos = await asyncio.gather(*(node.next_rendezvous() for node in nodes))
        wait = asyncio.ensure_future(infos[0].barrier("x"))
        await asyncio.sleep(0.1)
        await server.aclose()
        with anyio.fail_after(60), pytest.raises(ar.RendezvousConnectionError):
            await wait


MEMBER = """
import asyncio, sys, time
import arendezvous as ar

async def main(url, name, count):
    async with ar.open_rendezvous(url, run_id="job", min_nodes=int(count), node=name) as rdzv:
        info = await rdzv.next_rendezvous()
        await info.barrier("first")
        print("met", flush=True)
        if name == "n3":
            await asyncio.sleep(60)
        try:
            await info.barrier("second")
        except ar.RoundOverError as error:
            print(time.time(), error.departures, flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("count", [8])
async def test_the_others_hear_of_a_killed_member_within_its_grace(count: int) -> None:
    async with ar.serve("127.0.0.1:0") as server, AsyncExitStack() as stack:
        members = []
        for i in range(count):
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-c",
                MEMBER,
                server.tcp_url,
                f"n{i}",
                str(count),
                stdout=asyncio.subprocess.PIPE,
            )
            stack.callback(_kill, process)
            members.append(process)
        with anyio.fail_after(60):
            for process in members:
                assert process.stdout is not None
                assert await process.stdout.readline() == b"met\n"
            await asyncio.sleep(0.2)
            killed = time.time()
            os.kill(members[3].pid, signal.SIGKILL)
            for process in members[:3] + members[4:]:
                assert process.stdout is not None
                told, _, departures = (await process.stdout.readline()).decode().partition(" ")
                assert list(eval(departures)) == ["n3"]
                assert float(told) - killed < 1.0 + 2.0  # its grace, and a machine that is busy
                await process.wait()
            await members[3].wait()


def _kill(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()


@pytest.mark.parametrize("scheme", ["c10d", "static"])
async def test_who_shares_a_state_with_stock_nodes_refuses_and_says_so(scheme: str) -> None:
    async with AsyncExitStack() as stack:
        [port] = stack.enter_context(held_ports(1))
        options: dict[str, Any] = {"rank": 0} if scheme == "static" else {"is_host": True}
        url = f"{scheme}://127.0.0.1:{port}"
        node = await stack.enter_async_context(
            ar.open_rendezvous(url, run_id="job", min_nodes=1, local_addr="127.0.0.1", **options)
        )
        info = await node.next_rendezvous()
        assert info.fence == "11.10"
        for call in (
            info.barrier("x"),
            info.agree("x", 1),
            node.update("fine"),
            node.progress(1),
            anext(node.changes(states=True)),
        ):
            with pytest.raises(ar.RendezvousStateError, match="tcp://"):
                await call
        with pytest.raises(ar.RendezvousSettingsError, match=f"stall_timeout must be left out for {scheme}"):
            ar.open_rendezvous(url, run_id="job", min_nodes=1, stall_timeout=1, **options)

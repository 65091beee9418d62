"""A name is an identity: whoever comes back under it takes its place, over every way to the server."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import pytest

import arendezvous as ar
from arendezvous.law import rounds
from arendezvous.law.state import Phase
from arendezvous.testing.fault_proxy import FaultProxy
from tests.kit.waiting import until_seen
from tests.system.test_processes import QUICK_NODE, node, sizes

WAYS = ("tcp", "http")
Node = ar.AsyncRendezvousHandler


@asynccontextmanager
async def served(way: str, port: int = 0) -> AsyncIterator[tuple[str, ar.Server]]:
    """A server, and its URL."""
    tcp, http = ("127.0.0.1:0", f"127.0.0.1:{port}") if way == "http" else (f"127.0.0.1:{port}", None)
    async with ar.serve(tcp, http=http) as server:
        yield (server.http_url if way == "http" else server.tcp_url) or "", server


@pytest.mark.parametrize("way", WAYS)
async def test_a_process_that_is_killed_and_started_again_takes_its_place_at_once(way: str) -> None:
    shape = {"min": 2, "max": 2, "grace": 60.0, **QUICK_NODE, "attempts": 100}
    async with served(way) as (url, _), node(url, "a", **shape) as a, node(url, "b", **shape) as b:
        assert await sizes(a, b) == {(0, 2)}
        b.signal(signal.SIGKILL)
        async with node(url, "b", **shape) as again:
            lost = await a.says("NodeLost")
            assert (lost["node"], lost["cause"]) == ("b", "Cause.CONNECTION_LOST")
            assert lost["text"] == "b is lost: its connection broke, and another process came under its name"
            assert await sizes(a, again) == {(1, 2)}


@pytest.mark.parametrize("way", WAYS)
async def test_a_process_that_is_frozen_keeps_its_name_no_longer_than_its_place(way: str) -> None:
    async with (
        served(way) as (url, _),
        node(url, "a", **QUICK_NODE) as a,
        node(url, "b", **QUICK_NODE) as b,
    ):
        assert await sizes(a, b) == {(0, 2)}
        b.signal(signal.SIGSTOP)
        async with node(url, "b", **QUICK_NODE) as again:
            lost = await a.says("NodeLost")
            assert (lost["node"], lost["cause"]) == ("b", "Cause.NO_HEARTBEAT")
            assert await sizes(a, again) == {(1, 2)}
            b.signal(signal.SIGCONT)
            assert (await b.says("Evicted"))["what"] == "Evicted"
            assert await b.status() == 1  # it joins again under a name that another has, and is refused
            assert not [one for one in (*a.said, *again.said) if one["what"] == "Evicted"]


@pytest.mark.parametrize("way", WAYS)
async def test_a_second_process_under_a_name_in_use_is_refused_when_the_first_is_heard_of(way: str) -> None:
    quick: dict[str, Any] = {"run_id": "job", "min_nodes": 2, "keep_alive_interval": 0.2}
    async with (
        served(way) as (url, _),
        ar.open_rendezvous(url, node="a", local_addr="here", **quick) as first,
        ar.open_rendezvous(url, node="a", **quick) as second,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(first.next_rendezvous)
        await until_seen(second.explain, lambda status: status.nodes)
        with pytest.raises(ar.RendezvousStateError, match=r"'a' is in use in run 'job': process \d+ at here"):
            await second.next_rendezvous()
        assert [one.desc.addr for one in (await second.explain()).nodes] == ["here"]
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("way", WAYS)
async def test_a_second_process_says_who_has_the_name_when_its_join_times_out(way: str) -> None:
    slow: dict[str, Any] = {"run_id": "job", "min_nodes": 2, "keep_alive_interval": 600.0}
    async with (
        served(way) as (url, _),
        ar.open_rendezvous(url, node="a", **slow) as first,
        ar.open_rendezvous(url, node="a", timeout=ar.RendezvousTimeout(join=0.5), **slow) as second,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(first.next_rendezvous)
        await until_seen(second.explain, lambda status: status.nodes)
        with pytest.raises(ar.RendezvousTimeoutError, match=r"the name 'a' was not given up within 0\.5 s"):
            await second.next_rendezvous()
        status = await first.explain()
        assert [(one.desc.name, one.phase) for one in status.nodes] == [("a", Phase.GATHERING)]
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("way", WAYS)
async def test_a_spare_for_a_given_rank_waits_for_that_rank(way: str) -> None:
    given: dict[str, Any] = {"run_id": "job", "min_nodes": 2, "rank_policy": "given"}
    ranks: dict[str, int] = {}

    async def join(handler: Node) -> None:
        ranks[handler.node] = (await handler.next_rendezvous()).rank

    async with served(way) as (url, _), AsyncExitStack() as stack:
        a, b, spare = [
            await stack.enter_async_context(ar.open_rendezvous(url, node=name, rank=rank, **given))
            for name, rank in (("a", 0), ("b", 1), ("spare", 0))
        ]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(join, a)
            tasks.start_soon(join, b)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(join, spare)
            await until_seen(b.explain, lambda status: status.of_phase(Phase.REDUNDANT))
            await a.leave("out of memory", cause=ar.Cause.FAILED)
            await join(b)
        assert ranks == {"a": 0, "b": 1, "spare": 0}


# The server is started again


@asynccontextmanager
async def restartable(way: str, port: int) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """A server, and what starts it again with an empty memory; the last one is there until the end."""
    async with AsyncExitStack() as last:
        running = await last.enter_async_context(AsyncExitStack())
        await running.enter_async_context(served(way, port))

        async def restart() -> None:
            await running.aclose()
            await running.enter_async_context(served(way, port))

        yield restart


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("others", ["spares", "newcomers"])
async def test_whoever_is_back_before_the_members_does_not_take_over_a_round_that_lives(
    way: str, others: str, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "RESUME_GRACE", 60.0)  # for a machine that is busy
    shape: dict[str, Any] = {"run_id": "job", "min_nodes": 2, "is_host": False if way == "tcp" else None}
    shape |= {"timeout": ar.RendezvousTimeout(last_call=0), "disconnect_grace": 60.0}
    async with (
        FaultProxy("127.0.0.1", free_port) as proxy,
        restartable(way, free_port) as restart,
        AsyncExitStack() as stack,
    ):

        async def opened(name: str, port: int) -> Node:
            handler = ar.open_rendezvous(f"{way}://127.0.0.1:{port}", node=name, **shape)
            return await stack.enter_async_context(handler)

        a, b, x, y = [
            await opened(name, port)
            for name, port in (("a", proxy.port), ("b", proxy.port), ("x", free_port), ("y", free_port))
        ]
        infos = await met([a, b])
        async with anyio.create_task_group() as tasks:
            if others == "spares":
                await waiting(tasks.start_soon, [x, y], a, Phase.REDUNDANT)
            proxy.refusing = True
            await restart()
            if others == "newcomers":
                await waiting(tasks.start_soon, [x, y], x, Phase.GATHERING)
            else:
                await until_seen(x.explain, lambda status: len(status.nodes) == 2)
            proxy.refusing = False
            proxy.cut()
            names = {"a", "b", "x", "y"}
            status = await until_seen(x.explain, lambda now: {one.desc.name for one in now.nodes} == names)
            assert (status.incarnation, status.round, status.digest) == (1, 0, infos[0].digest)
            ranks = {one.desc.name: one.rank for one in status.of_phase(Phase.MEMBER)}
            assert ranks == {"a": infos[0].rank, "b": infos[1].rank}
            assert {one.desc.name for one in status.of_phase(Phase.REDUNDANT)} == {"x", "y"}
            await a.set_closed("enough")


async def join_as_spare(handler: Node) -> None:
    """Joins a run that is closed before there is a place."""
    with pytest.raises(ar.RendezvousGracefulExitError):
        await handler.next_rendezvous()


async def met(members: list[Node]) -> list[ar.RendezvousInfo]:
    """Has the members meet."""
    infos: dict[str, ar.RendezvousInfo] = {}

    async def join(handler: Node) -> None:
        infos[handler.node] = await handler.next_rendezvous()

    async with anyio.create_task_group() as tasks:
        for handler in members:
            tasks.start_soon(join, handler)
    return [infos[handler.node] for handler in members]


async def waiting(start: Callable[..., Any], nodes: list[Node], looker: Node, phase: Phase) -> None:
    """Has nodes join, and waits until all of them stand in `phase`."""
    for handler in nodes:
        start(join_as_spare, handler)
    await until_seen(looker.explain, lambda status: len(status.of_phase(phase)) == len(nodes))

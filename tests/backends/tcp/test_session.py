"""A session outlives its connections: cut, frozen or refused, nobody loses a rank within the grace."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeVar

import anyio
import pytest

import arendezvous as ar
from arendezvous.backends.tcp.embedded import EmbeddedBackend
from arendezvous.backends.tcp.session import SessionBackend
from arendezvous.law.events import NodeDeparted
from arendezvous.law.operations import Join, KeepAlive, Leave
from arendezvous.law.state import Cause, NodeDesc, NodeView, Phase, RunSettings
from arendezvous.net.servers import Servers
from arendezvous.rendezvous import driver as rendezvous
from arendezvous.rendezvous.bootstrap import RendezvousStoreInfo
from arendezvous.testing.fault_proxy import FaultProxy, Faults
from arendezvous.wire.native.messages import (
    PREFACE,
    Ack,
    ClientMessage,
    Failed,
    FrameParser,
    GetStatus,
    Hello,
    ServerMessage,
    Status,
    View,
    Welcome,
    decode_client,
    encode,
)
from tests.kit.waiting import until, until_said, until_seen

QUICK = {"keep_alive_interval": 0.2, "keep_alive_max_attempt": 300, "disconnect_grace": 30.0}

T = TypeVar("T")

Node = ar.DynamicRendezvousHandler


def node(url: str, name: str, least: int = 2, **options: Any) -> Node:
    settings = {**QUICK, "read_timeout": 60.0, "is_host": False, **options}
    opened = ar.open_rendezvous(url, run_id="job", min_nodes=least, node=name, **settings)
    assert isinstance(opened, Node)
    return opened


async def meet(*nodes: Node) -> list[ar.RendezvousInfo]:
    infos: dict[str, ar.RendezvousInfo] = {}

    async def join(one: Node) -> None:
        infos[one.node] = await one.next_rendezvous()

    with anyio.fail_after(120):
        async with anyio.create_task_group() as tasks:
            for one in nodes:
                tasks.start_soon(join, one)
    return [infos[one.node] for one in nodes]


async def next_change(handler: Node) -> ar.Change:
    with anyio.fail_after(120):
        return await anext(aiter(handler.changes()))


@asynccontextmanager
async def proxied() -> AsyncIterator[tuple[ar.Server, FaultProxy]]:
    """A server, and a proxy in front of it."""
    async with (
        ar.serve("127.0.0.1:0") as server,
        FaultProxy(server.host, server.port) as proxy,
    ):
        yield server, proxy


def departures(server: ar.Server) -> list[tuple[str, Cause]]:
    history = server.coordinator.runs["job"].history
    return [(event.node, event.cause) for _, event in history if isinstance(event, NodeDeparted)]


def used_up(faults: Faults) -> bool:
    return faults.cut_after is None and faults.corrupt_at is None


async def fails_to_open(
    opening: AbstractAsyncContextManager[object],
    match: str,
    kind: type[ar.RendezvousError] = ar.RendezvousConnectionError,
) -> ar.RendezvousError:
    with pytest.raises(kind, match=match) as caught, anyio.fail_after(120):
        await opening.__aenter__()
    return caught.value


def impatient(backend: object, seconds: float) -> None:
    """Lets a backend wait so long from now on, after what had to be done before the test's point."""
    assert isinstance(backend, SessionBackend)
    backend._read_timeout = backend._requests.patience = backend._requests.answer_timeout = seconds


async def until_passed(proxy: FaultProxy, count: int) -> None:
    await until(lambda: proxy.passed >= count)


# Cut


async def exchange(url: str, other: Node, name: str) -> None:
    """A whole visit: join, meet twice, look around, leave."""
    async with node(url, name) as one:
        first, _ = await meet(one, other)
        second, _ = await meet(one, other)
        assert (first.round + 1, first.rank) == (second.round, second.rank)
        assert len(await second.members()) == 2
        await one.explain()
        await one.leave("done")


async def test_an_exchange_survives_a_cut_at_any_byte_of_either_direction() -> None:
    async with proxied() as (server, proxy), node(server.tcp_url, "stays") as stays:
        url = f"tcp://{proxy.address}"
        for faults in (proxy.to_server, proxy.to_client):
            at = 0
            while True:
                passed, faults.cut_after = proxy.passed, at
                await exchange(url, stays, "cut")
                if not used_up(faults):  # the whole exchange was shorter
                    break
                assert proxy.passed >= passed + 1
                at += 1 if at < 150 else 5
            faults.cut_after = None
            assert at > 200
        lost = [cause for _, cause in departures(server) if cause.is_loss]
        assert lost == []


async def test_a_member_whose_connection_is_cut_keeps_its_rank_and_nobody_notices() -> None:
    async with (
        proxied() as (server, proxy),
        node(server.tcp_url, "a") as a,
        node(f"tcp://{proxy.address}", "b") as b,
    ):
        before = await meet(a, b)
        for number in range(5):
            proxy.cut()
            await until_passed(proxy, number + 2)
            assert await b.is_closed() is False
        members = await before[0].members()
        by_rank = {info.rank: name for info, name in zip(before, (a.node, b.node), strict=True)}
        assert [desc.name for desc in members] == [by_rank[0], by_rank[1]]
        assert departures(server) == []
        after = await meet(a, b)
        assert [info.rank for info in after] == [info.rank for info in before]


async def test_whoever_waits_for_a_round_waits_on_over_a_cut() -> None:
    async with (
        proxied() as (server, proxy),
        node(server.tcp_url, "a") as a,
        node(f"tcp://{proxy.address}", "b") as b,
    ):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(b.next_rendezvous)
            await until_seen(a.explain, lambda status: status.nodes)
            proxy.cut()
            await until_passed(proxy, 2)
            await a.next_rendezvous()
        assert departures(server) == []


async def test_what_happened_during_the_break_is_told_after_it() -> None:
    async with (
        proxied() as (server, proxy),
        node(server.tcp_url, "a", 3) as a,
        node(f"tcp://{proxy.address}", "b", 3) as b,
        node(server.tcp_url, "c", 3) as c,
    ):
        await meet(a, b, c)
        proxy.refusing = True
        proxy.cut()
        await c.leave("while b was away")
        assert await next_change(a) == ar.NodeLeft("c", Cause.LEFT, "while b was away")
        proxy.refusing = False
        assert await next_change(b) == ar.NodeLeft("c", Cause.LEFT, "while b was away")


async def test_after_the_grace_the_node_is_lost_to_the_others_and_told_when_it_comes_back() -> None:
    async with proxied() as (server, proxy):
        quick: dict[str, Any] = {"disconnect_grace": 0.05}
        async with node(server.tcp_url, "a", **quick) as a, node(f"tcp://{proxy.address}", "b", **quick) as b:
            await meet(a, b)
            proxy.refusing = True
            proxy.cut()
            lost = await next_change(a)
            assert isinstance(lost, ar.NodeLost)
            assert (lost.node, lost.cause) == ("b", Cause.CONNECTION_LOST)
            assert "its connection broke and did not come back within 0.05 s" in str(lost)
            proxy.refusing = False
            evicted = await next_change(b)
            assert isinstance(evicted, ar.Evicted)
            assert evicted.cause is Cause.CONNECTION_LOST
            again = await meet(a, b)
            assert [info.world_size for info in again] == [2, 2]


async def test_a_leave_while_the_connection_is_being_made_again_is_a_leave() -> None:
    async with (
        proxied() as (server, proxy),
        node(server.tcp_url, "a") as a,
        node(f"tcp://{proxy.address}", "b") as b,
    ):
        await meet(a, b)
        proxy.refusing = True
        proxy.cut()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(b.leave, "off")
            assert isinstance(b._backend, SessionBackend)
            await until(b._backend._requests.pending)
            proxy.refusing = False
        assert await next_change(a) == ar.NodeLeft("b", Cause.LEFT, "off")
        assert departures(server) == [("b", Cause.LEFT)]


async def test_a_join_cancelled_while_there_is_no_connection_leaves_nobody_behind() -> None:
    async with (
        proxied() as (server, proxy),
        node(server.tcp_url, "a", disconnect_grace=0.05) as a,
        node(f"tcp://{proxy.address}", "b", disconnect_grace=0.05) as b,
    ):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(b.next_rendezvous)
            await until_seen(a.explain, lambda status: status.nodes)
            tasks.cancel_scope.cancel()
        assert (await a.explain()).nodes == ()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(b.next_rendezvous)
            await until_seen(a.explain, lambda status: status.nodes)
            proxy.refusing = True
            proxy.cut()
            tasks.cancel_scope.cancel()
        proxy.refusing = False
        with anyio.fail_after(120):
            await until_seen(a.explain, lambda status: not status.nodes)


async def test_a_join_that_is_not_answered_times_out_and_leaves_nobody_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rendezvous, "WITHDRAW_TIMEOUT", 0.1)
    async with (
        proxied() as (server, proxy),
        node(server.tcp_url, "a") as a,
        node(f"tcp://{proxy.address}", "b", timeout=ar.RendezvousTimeout(join=0.1)) as b,
    ):
        proxy.freeze()
        with pytest.raises(ar.RendezvousTimeoutError, match=r"within 0\.1 s, and tcp://.* does not answer"):
            await b.next_rendezvous()
        proxy.thaw()
        assert (await b.explain()).nodes == ()  # the leave was sent before
        assert (await a.explain()).nodes == ()


async def test_the_workers_store_of_a_join_that_was_cancelled_is_gone_after_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with ar.serve("127.0.0.1:0") as server, node(server.tcp_url, "a", 1) as a:
        published: list[RendezvousStoreInfo] = []
        build = RendezvousStoreInfo.build

        async def build_and_wait(*args: Any) -> RendezvousStoreInfo:
            published.append(await build(*args))
            await anyio.sleep_forever()
            raise AssertionError

        with monkeypatch.context() as patched:
            patched.setattr(a._backend, "awaits_bootstrap", lambda view: True)
            patched.setattr(RendezvousStoreInfo, "build", build_and_wait)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(a.next_rendezvous)
                await until(lambda: published)
                tasks.cancel_scope.cancel()
        await a.next_rendezvous()
        [stale] = published
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(stale.master_addr, stale.master_port)


async def test_a_corrupt_byte_costs_a_connection_and_not_the_rank() -> None:
    async with (
        proxied() as (server, proxy),
        node(server.tcp_url, "a") as a,
        node(f"tcp://{proxy.address}", "b") as b,
    ):
        before = await meet(a, b)
        proxy.cut()
        await until_passed(proxy, 2)
        proxy.to_client.corrupt_at = 0  # the length of the first frame
        proxy.cut()
        await until_passed(proxy, 4)
        assert used_up(proxy.to_client)
        after = await meet(a, b)
        assert [info.rank for info in after] == [info.rank for info in before]
        assert departures(server) == []


async def test_single_bytes_in_both_directions_make_no_difference() -> None:
    async with proxied() as (server, proxy):
        proxy.to_server.single_bytes = proxy.to_client.single_bytes = True
        async with node(server.tcp_url, "a") as a:
            await exchange(f"tcp://{proxy.address}", a, "b")
        assert departures(server) == [("b", Cause.LEFT), ("a", Cause.LEFT)]


async def test_a_slow_network_makes_no_difference() -> None:
    async with proxied() as (server, proxy):
        proxy.to_server.delay = proxy.to_client.delay = 0.01
        async with node(server.tcp_url, "a") as a:
            await exchange(f"tcp://{proxy.address}", a, "b")


# Frozen


async def test_a_frozen_connection_is_noticed_and_made_again() -> None:
    frozen: dict[str, Any] = {
        "keep_alive_interval": 0.2,
        "keep_alive_max_attempt": 10,
        "disconnect_grace": 0.1,
    }
    async with (
        proxied() as (server, proxy),
        node(server.tcp_url, "a", **frozen) as a,
        node(f"tcp://{proxy.address}", "b", **frozen) as b,
    ):
        b.settings.timeout.heartbeat = 0.05  # less than the answer may take
        await meet(a, b)
        proxy.freeze()
        lost = await next_change(a)
        assert isinstance(lost, ar.NodeLost)
        assert (lost.node, lost.cause) == ("b", Cause.NO_HEARTBEAT)
        await until(lambda: proxy.passed > 1)  # it has given the frozen connection up
        proxy.cut()
        proxy.thaw()
        evicted = await next_change(b)
        assert isinstance(evicted, ar.Evicted)


async def test_a_frozen_server_is_no_connection_at_all() -> None:
    async with proxied() as (_, proxy):
        proxy.freeze()
        backend = SessionBackend("127.0.0.1", proxy.port, "job", read_timeout=0.3)
        await fails_to_open(backend, r"could not be reached for 0\.3 s")


async def test_a_request_without_an_answer_fails_after_the_read_time_out() -> None:
    async with proxied() as (_, proxy), SessionBackend("127.0.0.1", proxy.port, "job") as backend:
        await backend.status()
        impatient(backend, 0.3)
        proxy.freeze()
        with pytest.raises(ar.RendezvousConnectionError, match=r"could not be reached for 0\.3 s"):
            with anyio.fail_after(120):
                await backend.status()
        impatient(backend, 60)
        proxy.cut()
        proxy.thaw()
        assert (await backend.status()).settings is None


async def test_requests_fail_in_time_even_behind_presentations_that_nobody_answers() -> None:
    settings = RunSettings(2, 2, keep_alive_interval=0.1, keep_alive_max_attempt=2)
    async with proxied() as (_, proxy), SessionBackend("127.0.0.1", proxy.port, "job") as backend:
        await backend.propose(Join(NodeDesc("b"), settings))
        proxy.freeze()
        proxy.cut()
        await until_passed(proxy, 2)
        await until(lambda: backend._requests._requests)
        impatient(backend, 0.4)
        proxy.refusing = True
        proxy.cut()
        for _ in range(2):
            with pytest.raises(ar.RendezvousConnectionError), anyio.fail_after(120):
                await backend.status()
        impatient(backend, 60)
        proxy.refusing = False
        proxy.thaw()
        assert (await backend.status()).settings == settings


async def test_presentations_that_were_lost_with_their_connection_are_not_waited_for() -> None:
    settings = RunSettings(2, 2)
    async with (
        proxied() as (_, proxy),
        SessionBackend("127.0.0.1", proxy.port, "job") as backend,
    ):
        await backend.propose(Join(NodeDesc("b"), settings))
        proxy.freeze()
        proxy.cut()
        await until_passed(proxy, 2)
        await until(lambda: len(backend._requests._requests) == 1)
        proxy.cut()
        proxy.thaw()
        assert (await backend.status()).settings == settings
        await until(lambda: backend._requests._requests == {})


async def test_a_connection_attempt_that_times_out_leaves_no_presentation_behind() -> None:
    settings = RunSettings(2, 2)
    async with proxied() as (_, proxy), SessionBackend("127.0.0.1", proxy.port, "job") as backend:
        await backend.propose(Join(NodeDesc("b"), settings))
        impatient(backend, 0.2)
        proxy.freeze()
        proxy.cut()
        await until_passed(proxy, 2)
        proxy.refusing = True
        with pytest.raises(ar.RendezvousConnectionError):
            await backend.status()
        await until(lambda: backend._requests._requests == {})


async def test_a_wait_that_failed_for_want_of_a_server_waits_again_once_there_is_one() -> None:
    async with proxied() as (_, proxy), SessionBackend("127.0.0.1", proxy.port, "job") as backend:
        await backend.propose(Join(NodeDesc("b"), RunSettings(2, 2)))
        gone = await backend.propose(Leave("b"))
        backend._join_timeout = 0.1
        impatient(backend, 0.1)
        proxy.refusing = True
        proxy.cut()
        with pytest.raises(ar.RendezvousConnectionError), anyio.fail_after(120):
            await backend.changed("b", gone.revision)
        impatient(backend, 60)
        proxy.refusing = False
        await until_passed(proxy, 2)
        assert (await backend.status()).run_id == "job"
        with anyio.move_on_after(0.05) as scope:
            await backend.changed("b", gone.revision)
        assert scope.cancelled_caught


async def test_waits_for_changes_fail_without_a_server_and_work_again_with_one() -> None:
    async with (
        proxied() as (server, proxy),
        node(server.tcp_url, "a", disconnect_grace=30) as a,
        node(f"tcp://{proxy.address}", "b", disconnect_grace=30) as b,
    ):
        await meet(a, b)
        impatient(b._backend, 0.3)
        proxy.refusing = True
        proxy.cut()
        for _ in range(2):
            with pytest.raises(ar.RendezvousConnectionError, match="could not be reached"):
                await next_change(b)
        proxy.refusing = False
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(a.leave, "bye")
            with anyio.fail_after(120):
                while True:
                    try:
                        change = await next_change(b)
                    except ar.RendezvousConnectionError:
                        await asyncio.sleep(0.01)
                    else:
                        break
        assert change == ar.NodeLeft("a", Cause.LEFT, "bye")


async def test_a_joining_node_endures_an_outage_longer_than_the_read_time_out() -> None:
    async with (
        proxied() as (server, proxy),
        node(server.tcp_url, "a", disconnect_grace=0.1) as a,
        node(f"tcp://{proxy.address}", "b", disconnect_grace=0.1) as b,
        anyio.create_task_group() as tasks,
    ):
        impatient(b._backend, 0.2)
        tasks.start_soon(b.next_rendezvous)
        await until_seen(a.explain, lambda status: status.nodes)
        proxy.refusing = True
        proxy.cut()
        await until_seen(a.explain, lambda status: not status.nodes)
        with pytest.raises(ar.RendezvousConnectionError, match=r"for 0\.2 s"):
            await b.explain()
        impatient(b._backend, 60)
        proxy.refusing = False
        with anyio.fail_after(120):
            assert (await a.next_rendezvous()).world_size == 2


# The server is started again


class Restartable:
    """A server that can be stopped, and started again at the same address with an empty memory."""

    def __init__(self, port: int, tasks: anyio.abc.TaskGroup) -> None:
        self.address = f"127.0.0.1:{port}"
        self.url = f"tcp://{self.address}"
        self._tasks = tasks
        self._stop = anyio.Event()
        self._stopped = anyio.Event()

    async def start(self) -> ar.Server:
        self._stop, self._stopped = anyio.Event(), anyio.Event()
        server: ar.Server = await self._tasks.start(self._run)
        return server

    async def stop(self) -> None:
        self._stop.set()
        await self._stopped.wait()

    async def _run(self, *, task_status: anyio.abc.TaskStatus[ar.Server]) -> None:
        async with ar.serve(self.address) as server:
            task_status.started(server)
            await self._stop.wait()
        self._stopped.set()


@asynccontextmanager
async def restartable(port: int) -> AsyncIterator[Restartable]:
    async with anyio.create_task_group() as tasks:
        server = Restartable(port, tasks)
        await server.start()
        yield server
        await server.stop()


async def until_inside(looker: Node, names: set[str]) -> ar.RunStatus:
    """Waits until exactly these nodes are in the run."""
    return await until_seen(looker.explain, lambda status: {one.desc.name for one in status.nodes} == names)


async def test_members_keep_their_ranks_when_the_server_is_started_again(free_port: int) -> None:
    async with restartable(free_port) as server:
        url = server.url
        async with node(url, "a", 3) as a, node(url, "b", 3) as b, node(url, "c", 3) as c:
            before = await meet(a, b, c)
            await server.stop()
            restarted = await server.start()
            status = await until_inside(a, {"a", "b", "c"})
            assert (status.round, status.complete, status.digest) == (0, True, before[0].digest)
            ranks = {one.node: info.rank for one, info in zip((a, b, c), before, strict=True)}
            assert {one.desc.name: one.rank for one in status.nodes} == ranks
            await c.leave("after all")
            assert await next_change(a) == ar.NodeLeft("c", Cause.LEFT, "after all")
            assert departures(restarted) == [("c", Cause.LEFT)]


async def test_a_closed_run_stays_closed_when_the_server_is_started_again(free_port: int) -> None:
    async with (
        restartable(free_port) as server,
        node(server.url, "a") as a,
        node(server.url, "b") as b,
        node(server.url, "late") as late,
    ):
        await meet(a, b)
        await a.set_closed("enough")
        assert await next_change(b) == ar.Closed("a", "enough")
        await server.stop()
        await server.start()
        await until_seen(late.explain, lambda status: status.closed is not None)
        with pytest.raises(ar.RendezvousClosedError, match=r"closed by a .* enough"):
            await late.next_rendezvous()


async def test_a_loss_after_a_restart_is_told_although_the_notices_are_counted_anew(free_port: int) -> None:
    async with restartable(free_port) as server:
        url = server.url
        async with (
            node(url, "a", 4) as a,
            node(url, "b", 4) as b,
            node(url, "c", 4) as c,
            node(url, "d", 4) as d,
        ):
            await meet(a, b, c, d)
            changes = aiter(a.changes())
            await c.leave("first")
            assert await anext(changes) == ar.NodeLeft("c", Cause.LEFT, "first")
            await server.stop()
            await server.start()
            await until_inside(a, {"a", "b", "d"})
            await d.leave("second")
            with anyio.fail_after(120):
                assert await anext(changes) == ar.NodeLeft("d", Cause.LEFT, "second")


async def test_joins_in_flight_survive_a_restart_of_the_server(free_port: int) -> None:
    async with restartable(free_port) as server, node(server.url, "a") as a, node(server.url, "b") as b:
        async with anyio.create_task_group() as joins:
            joins.start_soon(a.next_rendezvous)
            await until_inside(b, {"a"})
            await server.stop()
            await server.start()
            info = await b.next_rendezvous()
        assert info.world_size == 2


async def test_a_join_that_begins_while_the_server_is_away_is_heard_by_the_next_one(free_port: int) -> None:
    async with restartable(free_port) as server, node(server.url, "a") as a, node(server.url, "b") as b:
        await server.stop()
        async with anyio.create_task_group() as joins:
            joins.start_soon(a.next_rendezvous)
            joins.start_soon(b.next_rendezvous)
            await anyio.wait_all_tasks_blocked()
            await server.start()
            with anyio.fail_after(120):
                await until_inside(a, {"a", "b"})


async def test_leaving_while_the_server_is_away_takes_no_longer_than_the_time_out_for_closing(
    free_port: int,
) -> None:
    async with restartable(free_port) as server:
        quick: dict[str, Any] = {"timeout": ar.RendezvousTimeout(close=0.2), "read_timeout": 600.0}
        with anyio.fail_after(25):  # less than the default time-out
            async with node(server.url, "a", **quick) as a, node(server.url, "b", **quick) as b:
                await meet(a, b)
                await server.stop()
        await server.start()


# Nobody there, or somebody else


async def test_nobody_listening_is_an_error_within_the_read_time_out(free_port: int) -> None:
    url = f"tcp://127.0.0.1:{free_port}"
    error = await fails_to_open(node(url, "a", read_timeout=0.3), r"could not be reached for 0\.3 s")
    assert isinstance(error, ar.RendezvousConnectionError)
    assert error.endpoint == url
    text = await until_said(lambda s: node(url, "a", read_timeout=s).__aenter__(), "Connect call failed")
    assert f"{url} could not be reached for " in text
    assert "check that a server listens there" in text


async def test_a_name_that_does_not_exist_is_named_in_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(host: str, *args: object, **options: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)

    async def named(is_host: bool | None) -> None:
        def opening(seconds: float) -> Node:
            return node("tcp://nowhere.invalid:1", "a", read_timeout=seconds, is_host=is_host)

        text = await until_said(lambda seconds: opening(seconds).__aenter__(), "Name or service not known")
        assert "tcp://nowhere.invalid:1 could not be reached" in text

    await named(is_host=False)
    await named(is_host=None)


async def test_a_plain_tcpstore_is_recognised_and_the_right_scheme_named() -> None:
    class ClosesAtOnce(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            self.transport.close()

    store = await asyncio.get_running_loop().create_server(ClosesAtOnce, "127.0.0.1", 0)
    port = store.sockets[0].getsockname()[1]
    url = f"tcp://127.0.0.1:{port}"
    await until_said(lambda s: node(url, "a", read_timeout=s).__aenter__(), "plain TCPStore, use c10d://")
    store.close()


async def test_a_peer_that_speaks_something_else_is_told_apart() -> None:
    class Web(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            transport.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    web = await asyncio.get_running_loop().create_server(Web, "127.0.0.1", 0)
    port = web.sockets[0].getsockname()[1]
    url = f"tcp://127.0.0.1:{port}"
    await until_said(lambda s: node(url, "a", read_timeout=s).__aenter__(), "it speaks HTTP: use http://")
    web.close()


async def test_a_server_that_resets_every_connection_is_tried_until_the_read_time_out() -> None:
    async with proxied() as (_, proxy):
        proxy.refusing = True
        await fails_to_open(node(f"tcp://{proxy.address}", "a", read_timeout=0.3), r"for 0\.3 s")


async def test_a_server_that_comes_late_is_waited_for(free_port: int) -> None:
    address = f"127.0.0.1:{free_port}"
    async with anyio.create_task_group() as tasks:
        backend, done = SessionBackend("127.0.0.1", free_port, "job"), anyio.Event()

        async def late() -> None:
            await until(lambda: "Connect call failed" in backend._reason)
            async with ar.serve(address):
                await done.wait()

        tasks.start_soon(late)
        async with backend:
            assert (await backend.status()).settings is None
        done.set()


async def test_a_refusal_by_the_server_is_an_error_at_once() -> None:
    async with ar.serve("127.0.0.1:0") as server:
        backend = SessionBackend(server.host, server.port, "r" * 300)
        await fails_to_open(backend, "run id", ar.RendezvousError)


# A server that is not ours


class Odd(asyncio.Protocol):
    """A server that welcomes everybody, and answers as it is told."""

    answers: Callable[[ClientMessage], ServerMessage | None]
    refusal: Failed | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.parser = FrameParser(2**20)
        self.began = False

    def data_received(self, data: bytes) -> None:
        if not self.began:
            self.began, data = True, data[len(PREFACE) :]
        for frame in self.parser.feed(data):
            message = decode_client(frame)
            if isinstance(message, Hello):
                self.transport.write(encode(type(self).refusal or Welcome(1, "odd")))
                if type(self).refusal:
                    self.transport.close()
                    return
            elif (answer := type(self).answers(message)) is not None:
                self.transport.write(encode(answer))


@asynccontextmanager
async def odd_server(
    answers: Callable[[ClientMessage], ServerMessage | None],
) -> AsyncIterator[tuple[type[Odd], int]]:
    kind = type("Odd", (Odd,), {"answers": staticmethod(answers)})
    server = await asyncio.get_running_loop().create_server(kind, "127.0.0.1", 0)
    try:
        yield kind, server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def test_an_answer_of_the_wrong_kind_is_an_error_that_names_it() -> None:
    def answers(message: ClientMessage) -> ServerMessage:
        assert not isinstance(message, Hello)
        return Ack(message.id)

    async with odd_server(answers) as (_, port), SessionBackend("127.0.0.1", port, "job") as backend:
        with pytest.raises(ar.RendezvousConnectionError, match="answered Ack, expected Status"):
            await backend.status()
        with pytest.raises(ar.RendezvousConnectionError, match="answered Ack to KeepAlive"):
            await backend.propose(KeepAlive("a"))


async def test_answers_that_nobody_asked_for_are_ignored() -> None:
    def answers(message: ClientMessage) -> ServerMessage:
        return View(999, NodeView("stranger", 1, 1, 1, Phase.GONE))

    async with odd_server(answers) as (_, port), SessionBackend("127.0.0.1", port, "job") as backend:
        impatient(backend, 0.2)
        with pytest.raises(ar.RendezvousConnectionError, match="could not be reached"):
            await backend.status()


async def test_a_refusal_after_a_break_ends_all_waits_and_a_later_welcome_mends_it() -> None:
    def answers(message: ClientMessage) -> ServerMessage | None:
        if isinstance(message, GetStatus):
            return Status(message.id, ar.RunStatus("job"))
        assert not isinstance(message, Hello)
        return View(message.id, NodeView("a", 1, 1, 0, Phase.GATHERING))

    async with (
        odd_server(answers) as (kind, port),
        FaultProxy("127.0.0.1", port) as proxy,
        SessionBackend("127.0.0.1", proxy.port, "job") as backend,
    ):
        view = await backend.propose(Join(NodeDesc("a"), RunSettings(2, 2)))
        kind.refusal = Failed(0, "RendezvousStateError", "go away")
        async with anyio.create_task_group() as tasks:
            ended: list[str] = []

            async def wait() -> None:
                with pytest.raises(ar.RendezvousStateError, match="go away"):
                    await backend.changed("a", view.revision)
                ended.append("a")

            tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            proxy.cut()
        assert ended == ["a"]
        kind.refusal = None
        assert (await backend.status()).run_id == "job"
        assert (await backend.changed("a", view.revision)).phase is Phase.GATHERING


async def test_a_node_whose_place_is_refused_after_a_restart_is_told_why(free_port: int) -> None:
    async with restartable(free_port) as server, node(server.url, "a") as a, node(server.url, "b") as b:
        await meet(a, b)
        await server.stop()
        restarted = await server.start()
        stranger = restarted.coordinator.attach("job", "x", b"x", lambda view: None)
        restarted.coordinator.propose(stranger, Join(NodeDesc("x"), RunSettings(3, 3)))
        with pytest.raises(ar.RendezvousSettingsError, match="min_nodes is 2, but must be 3"):
            await next_change(a)


async def test_a_connection_that_is_lost_while_it_is_made_is_made_again_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class ClosesAtOnce(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            transport.close()

    loop = asyncio.get_running_loop()
    real = loop.create_connection

    async def slow(*args: Any, **options: Any) -> Any:
        made = await real(*args, **options)
        await asyncio.sleep(0.02)
        return made

    server = await loop.create_server(ClosesAtOnce, "127.0.0.1", 0)
    monkeypatch.setattr(loop, "create_connection", slow)
    port = server.sockets[0].getsockname()[1]
    said = "the server closed the connection; if that is a plain TCPStore"
    await until_said(lambda s: SessionBackend("127.0.0.1", port, "job", read_timeout=s).__aenter__(), said)
    server.close()


async def test_whoever_waits_for_a_round_gives_up_after_the_join_time_out_without_a_server() -> None:
    async with proxied() as (_, proxy), SessionBackend("127.0.0.1", proxy.port, "job") as backend:
        view = await backend.propose(Join(NodeDesc("a"), RunSettings(2, 2)))
        backend._join_timeout = 0.3
        impatient(backend, 0.1)
        proxy.refusing = True
        proxy.cut()
        begin = asyncio.get_running_loop().time()
        with pytest.raises(ar.RendezvousConnectionError, match=r"for 0\.3 s"), anyio.fail_after(120):
            await backend.changed("a", view.revision)
        assert asyncio.get_running_loop().time() - begin >= 0.25


async def test_requests_that_were_cancelled_are_not_kept() -> None:
    async with proxied() as (_, proxy), SessionBackend("127.0.0.1", proxy.port, "job") as backend:
        proxy.freeze()
        for _ in range(100):
            with anyio.move_on_after(0):
                await backend.status()
        proxy.thaw()
        await backend.status()
        assert backend._requests._requests == {}


# The backend itself


async def test_leaving_the_backend_ends_every_wait() -> None:
    async with ar.serve("127.0.0.1:0") as server:
        async with anyio.create_task_group() as tasks:
            ended: list[str] = []

            async def wait() -> None:
                with pytest.raises(ar.RendezvousStateError, match="was closed meanwhile"):
                    await backend.changed("x", -1)
                ended.append("changed")

            backend = SessionBackend(server.host, server.port, "job")
            async with backend:
                tasks.start_soon(wait)
                await anyio.wait_all_tasks_blocked()
        assert ended == ["changed"]


async def test_runs_are_listed() -> None:
    async with (
        ar.serve("127.0.0.1:0") as server,
        SessionBackend(server.host, server.port, "job") as backend,
    ):
        await backend.propose(Join(NodeDesc("x"), RunSettings(2, 2)))
        assert [run.run_id for run in await backend.runs()] == ["job"]
        assert backend.server_id
        assert backend.endpoint == server.tcp_url


async def test_hundreds_of_requests_at_once_are_answered_each_by_its_own() -> None:
    views: list[NodeView] = []

    async def visit(backend: SessionBackend, number: int) -> None:
        name = f"n{number}"
        await backend.propose(Join(NodeDesc(name), RunSettings(400, 400)))
        views.append(await backend.propose(KeepAlive(name)))
        gone = await backend.propose(Leave(name))
        assert (gone.node, gone.phase) == (name, Phase.GONE)

    async with (
        ar.serve("127.0.0.1:0") as server,
        SessionBackend(server.host, server.port, "job") as backend,
        anyio.create_task_group() as tasks,
    ):
        for number in range(300):
            tasks.start_soon(visit, backend, number)
    assert {view.node for view in views} == {f"n{number}" for number in range(300)}


# The embedded server


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> str:
    """An address that is not of this machine, and to which not a single packet is sent."""
    real = asyncio.SelectorEventLoop.create_connection

    async def create_connection(self: Any, protocol: Any, host: str, *args: Any, **options: Any) -> Any:
        if host == "192.0.2.1":
            raise OSError(errno.ENETUNREACH, "Network is unreachable")
        return await real(self, protocol, host, *args, **options)

    monkeypatch.setattr(asyncio.SelectorEventLoop, "create_connection", create_connection)
    return "192.0.2.1"


async def test_the_first_of_two_hosts_the_server_and_the_other_connects(free_port: int) -> None:
    url = f"tcp://127.0.0.1:{free_port}"
    async with node(url, "a", is_host=None) as a, node(url, "b", is_host=None) as b:
        infos = await meet(a, b)
        assert [info.world_size for info in infos] == [2, 2]
        assert [one._backend.server is not None for one in (a, b)] == [True, False]  # type: ignore[attr-defined]


async def test_a_host_may_pick_a_free_port() -> None:
    async with EmbeddedBackend("127.0.0.1", 0, "job") as backend:
        assert backend.server is not None
        assert backend.endpoint == f"tcp://127.0.0.1:{backend.server.port}"
        assert (await backend.status()).settings is None


async def test_port_0_is_refused_for_whoever_does_not_host() -> None:
    with pytest.raises(ar.RendezvousSettingsError, match="only the server may pick one by port 0"):
        async with EmbeddedBackend("127.0.0.1", 0, "job", is_host=False):
            pass


async def test_an_address_of_another_machine_is_not_hosted(elsewhere: str) -> None:
    text = await until_said(
        lambda s: EmbeddedBackend(elsewhere, 1, "job", read_timeout=s).__aenter__(),
        "Network is unreachable",
    )
    assert "could not be reached" in text


async def test_a_host_by_order_serves_all_interfaces_at_an_address_that_is_not_its_own(
    elsewhere: str, free_port: int
) -> None:
    def host(read_timeout: float) -> EmbeddedBackend:
        return EmbeddedBackend(elsewhere, free_port, "job", read_timeout=read_timeout, is_host=True)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(host(600).__aenter__)  # it cannot connect to itself
        for address in ("127.0.0.1", "::1"):
            async with SessionBackend(address, free_port, "job") as backend:
                assert (await backend.status()).settings is None
        await fails_to_open(host(0.1), "could not be reached")  # it is served already
        tasks.cancel_scope.cancel()


async def test_an_ipv6_endpoint_is_hosted_and_joined(free_port: int) -> None:
    url = f"tcp://[::1]:{free_port}"
    async with node(url, "a", is_host=None) as a, node(url, "b") as b:
        infos = await meet(a, b)
        assert infos[0].rank0_addresses[0] == "::1"


@pytest.mark.parametrize(("servers", "seconds"), [(1, 15.0), (2, 7.5)])
async def test_a_silent_leader_is_left_before_the_next_one_gives_its_members_up(
    servers: int, seconds: float
) -> None:
    async with ar.serve("127.0.0.1:0") as server:
        place = (server.host, server.port)
        async with SessionBackend(*place, "job", servers=Servers([place] * servers)) as backend:
            await backend.propose(Join(NodeDesc("a"), RunSettings(1, 1)))
            assert backend._requests.answer_timeout == seconds

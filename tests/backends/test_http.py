"""The backend over HTTP: it keeps the contract, and survives what happens on the way to a server."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

import arendezvous as ar
from arendezvous.backends.http.backend import HttpBackend
from arendezvous.errors import (
    RendezvousConnectionError,
    RendezvousPermissionError,
    RendezvousStateError,
)
from arendezvous.keyspace.grants import Grant, Scope
from arendezvous.law.operations import Close, Drain, Join, KeepAlive, Leave
from arendezvous.law.state import Cause, NodeDesc, Phase, RunSettings
from arendezvous.net import http_client
from arendezvous.net.credentials import Credentials
from arendezvous.server.access.authority import Authority
from arendezvous.server.tls import ServerTls
from arendezvous.testing.backend_checks import run_check
from arendezvous.testing.check_tools import BackendCheck, join_until_member, view_where
from arendezvous.testing.fault_proxy import FaultProxy
from tests.backends.test_backends import every_check
from tests.kit.http_kit import backend_at, http_port, served
from tests.kit.tls_kit import make_pki
from tests.kit.waiting import until, until_said

PAIR = RunSettings(2, 2)
PATIENT = RunSettings(2, 2, disconnect_grace=30.0)


@every_check
async def test_http(check: BackendCheck) -> None:
    async with served() as (server, _):
        await run_check(check, lambda run_id: backend_at(server, run_id))


@every_check
async def test_http_byte_by_byte(check: BackendCheck) -> None:
    async with served() as (server, _), FaultProxy("127.0.0.1", http_port(server)) as proxy:
        proxy.to_client.single_bytes = True
        await run_check(check, lambda run_id: HttpBackend("127.0.0.1", proxy.port, run_id, read_timeout=60))


@asynccontextmanager
async def a_pair(
    port: int, server: ar.Server, settings: RunSettings = PATIENT
) -> AsyncIterator[tuple[HttpBackend, HttpBackend]]:
    """Two members of a round: ``a`` by way of `port`, ``b`` directly."""
    one = HttpBackend("127.0.0.1", port, "job", read_timeout=60)
    async with one, backend_at(server) as two:
        await one.propose(Join(NodeDesc("a"), settings))
        await join_until_member(two, Join(NodeDesc("b"), settings))
        await view_where(one, await one.changed("a", -1), lambda view: view.phase is Phase.MEMBER)
        yield one, two


async def test_a_stream_that_breaks_is_opened_again_and_nothing_is_missed() -> None:
    async with (
        asyncio.timeout(120),
        served() as (server, _),
        FaultProxy("127.0.0.1", http_port(server)) as proxy,
        a_pair(proxy.port, server) as (one, two),
    ):
        before = await one.changed("a", -1)
        proxy.cut()
        await two.propose(Leave("b", "done", Cause.FINISHED))
        after = await view_where(one, before, lambda view: view.notices)
        assert (after.phase, after.rank) == (Phase.MEMBER, before.rank)
        assert after.notices[-1].reason == "done"
        kept = await one.propose(KeepAlive("a"))
        assert kept.phase is Phase.MEMBER
        assert server.coordinator.status("job").nodes[0].grace_left is None


async def test_a_member_that_does_not_come_back_within_the_grace_is_told_so() -> None:
    settings = RunSettings(2, 2, disconnect_grace=0.0)
    async with (
        asyncio.timeout(120),
        served() as (server, _),
        FaultProxy("127.0.0.1", http_port(server)) as proxy,
        a_pair(proxy.port, server, settings) as (one, two),
    ):
        before = await two.changed("b", -1)
        proxy.cut()
        lost = await view_where(two, before, lambda view: view.notices)
        assert (lost.notices[-1].node, lost.notices[-1].cause) == ("a", Cause.CONNECTION_LOST)
        gone = await view_where(one, await one.changed("a", -1), lambda view: view.phase is Phase.GONE)
        assert gone.gone is not None
        assert gone.gone.cause is Cause.CONNECTION_LOST


async def test_members_keep_their_ranks_when_the_server_is_started_anew(free_port: int) -> None:
    async with asyncio.timeout(120), AsyncExitStack() as stack:
        first = AsyncExitStack()
        server = await first.enter_async_context(ar.serve("127.0.0.1:0", http=f"127.0.0.1:{free_port}"))
        one, two = await stack.enter_async_context(a_pair(free_port, server))
        ranks = {name: (await one.changed("a", -1)).rank for name in "a"}
        await first.aclose()
        again = await stack.enter_async_context(ar.serve("127.0.0.1:0", http=f"127.0.0.1:{free_port}"))
        views = [await one.propose(KeepAlive("a")), await two.propose(KeepAlive("b"))]
        assert [view.phase for view in views] == [Phase.MEMBER] * 2
        assert views[0].rank == ranks["a"]
        status = again.coordinator.status("job")
        assert [node.desc.name for node in status.nodes if node.desc.name in "ab"] == ["a", "b"]
        told = await one.changed("a", -1)
        await two.propose(Leave("b", "done"))
        later = await view_where(one, told, lambda view: view.notices)
        assert later.notices[-1].node == "b"


async def test_a_node_that_waits_joins_again_when_the_server_is_started_anew(free_port: int) -> None:
    async with asyncio.timeout(120), AsyncExitStack() as stack:
        first = AsyncExitStack()
        server = await first.enter_async_context(ar.serve("127.0.0.1:0", http=f"127.0.0.1:{free_port}"))
        one = await stack.enter_async_context(backend_at(server))
        waiting = await one.propose(Join(NodeDesc("a"), PAIR))
        await first.aclose()
        again = await stack.enter_async_context(ar.serve("127.0.0.1:0", http=f"127.0.0.1:{free_port}"))
        two = await stack.enter_async_context(backend_at(again))
        await two.propose(Join(NodeDesc("b"), PAIR))
        member = await view_where(one, waiting, lambda view: view.phase is Phase.MEMBER)
        assert member.world_size == 2


async def test_a_join_whose_answer_is_lost_is_repeated_and_the_node_is_there_once() -> None:
    async with (
        asyncio.timeout(120),
        served() as (server, _),
        FaultProxy("127.0.0.1", http_port(server)) as proxy,
    ):
        backend = HttpBackend("127.0.0.1", proxy.port, "job", read_timeout=60)
        async with backend:
            proxy.to_client.cut_after = 400  # the connection's second answer is cut off in its middle
            view = await backend.propose(Join(NodeDesc("a"), PATIENT))
            assert view.phase is Phase.GATHERING
            nodes = server.coordinator.status("job").nodes
            assert [node.desc.name for node in nodes] == ["a"]
            assert (await backend.propose(Leave("a"))).phase is Phase.GONE


async def test_a_leave_after_a_join_without_an_answer_leaves_nobody_behind() -> None:
    async with (
        asyncio.timeout(120),
        served() as (server, _),
        FaultProxy("127.0.0.1", http_port(server)) as proxy,
        HttpBackend("127.0.0.1", proxy.port, "job", read_timeout=60) as backend,
    ):
        joined = asyncio.Event()
        server.coordinator.observe(lambda *_: joined.set())
        proxy.to_client.delay = 60.0
        joining = asyncio.create_task(backend.propose(Join(NodeDesc("a"), PATIENT)))
        await joined.wait()
        joining.cancel()
        proxy.to_client.delay = 0.0
        proxy.cut()
        assert (await backend.propose(Leave("a", "never mind"))).phase is Phase.GONE
        assert server.coordinator.status("job").nodes == ()
        assert server.coordinator.status("job").departed[-1].reason == "never mind"


async def test_a_server_that_falls_silent_is_noticed_by_its_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "SILENCE", 0.1)
    async with (
        asyncio.timeout(120),
        served() as (server, _),
        FaultProxy("127.0.0.1", http_port(server)) as proxy,
        a_pair(proxy.port, server) as (one, two),
    ):
        before = await one.changed("a", -1)
        proxy.freeze()
        leaving = asyncio.create_task(two.propose(Leave("b", "done")))
        await leaving
        monkeypatch.setattr(http_client, "SILENCE", 45.0)
        proxy.cut()
        proxy.thaw()
        assert (await view_where(one, before, lambda view: view.notices)).notices[-1].node == "b"


@pytest.mark.parametrize("how", ["waiting", "asking"])
async def test_who_waits_or_asks_hears_that_the_server_is_gone_for_good(how: str) -> None:
    async def endured(seconds: float) -> None:
        async with AsyncExitStack() as stack:
            first = AsyncExitStack()
            server = await first.enter_async_context(ar.serve("127.0.0.1:0", http="127.0.0.1:0"))
            backend = await stack.enter_async_context(backend_at(server, read_timeout=seconds))
            view = await join_until_member(backend, Join(NodeDesc("a"), RunSettings(1, 1)))
            await first.aclose()
            await (
                backend.changed("a", view.revision) if how == "waiting" else backend.propose(KeepAlive("a"))
            )

    async with asyncio.timeout(120):
        await until_said(endured, r"could not be reached for [\d.]+ s: .*; check that a server listens there")


async def test_who_is_no_arendezvous_server_is_told_from_one() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async with asyncio.timeout(120), await asyncio.start_server(answer, "127.0.0.1", 0) as other:
        port = other.sockets[0].getsockname()[1]
        await until_said(
            lambda s: HttpBackend("127.0.0.1", port, "job", read_timeout=s).__aenter__(),
            "that is no arendezvous server",
        )


async def test_nobody_listening_is_said_within_the_read_time_out(free_port: int) -> None:
    with pytest.raises(RendezvousConnectionError, match=f"http://127.0.0.1:{free_port} could not be reached"):
        async with asyncio.timeout(120), HttpBackend("127.0.0.1", free_port, "job", read_timeout=0.1):
            pass


async def test_a_wrong_token_is_refused_at_once_and_a_good_one_is_not_shown() -> None:
    good, wrong = "0123456789abcdef-good", "0123456789abcdef-wrong"
    reading = "0123456789abcdef-read"
    authority = Authority([(good, Grant(Scope.RUN, "job")), (reading, Grant(Scope.READ))])
    async with asyncio.timeout(120), served(authority=authority) as (server, _):
        where = ("127.0.0.1", http_port(server), "job")
        for token, said in ((wrong, "does not know the token"), ("", "none was given")):
            with pytest.raises(RendezvousPermissionError, match=said) as raised:
                async with HttpBackend(*where, credentials=Credentials(token=token)):
                    pass
            assert not raised.value.authenticated
        async with HttpBackend(*where, credentials=Credentials(token=good)) as backend:
            assert (await backend.propose(Join(NodeDesc("a"), PAIR))).phase is Phase.GATHERING
        async with HttpBackend(*where, credentials=Credentials(token=reading)) as backend:
            assert (await backend.status()).settings == PAIR
            with pytest.raises(RendezvousPermissionError, match="may look at") as raised:
                await backend.propose(Join(NodeDesc("b"), PAIR))
            assert raised.value.authenticated


async def test_names_of_any_characters_come_through() -> None:
    run_id, node = "a/b c?&#%2Fé", "node/1 %?#é"
    async with asyncio.timeout(120), served() as (server, _), backend_at(server, run_id) as backend:
        view = await join_until_member(backend, Join(NodeDesc(node), RunSettings(1, 1)))
        assert view.node == node
        assert [desc.name for desc in await backend.roster(*view.generation)] == [node]
        assert [run.run_id for run in await backend.runs()] == [run_id]
        assert (await backend.propose(Leave(node, "é & so on?"))).gone is not None


async def test_a_node_needs_no_more_than_one_connection_at_a_time() -> None:
    links: list[int] = []
    async with (
        asyncio.timeout(120),
        served() as (server, _),
        FaultProxy("127.0.0.1", http_port(server)) as proxy,
    ):

        async def node() -> None:
            url = f"http://127.0.0.1:{proxy.port}"
            async with ar.open_rendezvous(url, run_id="job", min_nodes=8, keep_alive_interval=600) as rdzv:
                assert (await rdzv.next_rendezvous()).world_size == 8
                links.append(proxy.open_links)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(8):
                tasks.create_task(node())
    assert len(links) == 8
    assert links[0] <= 8


async def test_a_proxy_that_the_environment_names_is_asked_for_the_whole_url(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heads: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nArendezvous-Server: it\r\nConnection: close\r\n\r\n")
        writer.close()

    async with asyncio.timeout(120), await asyncio.start_server(answer, "127.0.0.1", 0) as proxy:
        port = proxy.sockets[0].getsockname()[1]
        monkeypatch.setenv("http_proxy", f"http://user:secret@127.0.0.1:{port}")
        monkeypatch.setenv("no_proxy", "")
        async with HttpBackend("server.invalid", 80, "job", read_timeout=60) as backend:
            assert backend.server_id == "it"
    assert heads[0].startswith(b"HEAD http://server.invalid/v1/runs/job HTTP/1.1\r\n")
    assert b"Host: server.invalid\r\n" in heads[0]
    assert b"Proxy-Authorization: Basic dXNlcjpzZWNyZXQ=\r\n" in heads[0]


async def test_a_proxy_is_asked_for_a_tunnel_where_tls_is_spoken(monkeypatch: pytest.MonkeyPatch) -> None:
    heads: list[bytes] = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async with asyncio.timeout(120), await asyncio.start_server(refuse, "127.0.0.1", 0) as proxy:
        port = proxy.sockets[0].getsockname()[1]
        monkeypatch.setenv("https_proxy", f"127.0.0.1:{port}")
        monkeypatch.setenv("no_proxy", "")
        await until_said(
            lambda seconds: HttpBackend(
                "server.invalid", 443, "job", tls=True, read_timeout=seconds
            ).__aenter__(),
            "the proxy answers CONNECT with the status 407",
        )
    assert heads[0].startswith(b"CONNECT server.invalid:443 HTTP/1.1\r\n")


async def test_an_answer_that_is_not_understood_is_an_error_of_ours_and_ends_nothing() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        body = b"" if head.startswith(b"HEAD") else b"[1]"
        lines = f"HTTP/1.1 200 OK\r\nArendezvous-Server: it\r\nContent-Length: {len(body)}\r\n"
        writer.write(lines.encode() + b"Connection: close\r\n\r\n" + body)
        writer.close()

    async with (
        asyncio.timeout(120),
        await asyncio.start_server(answer, "127.0.0.1", 0) as other,
        HttpBackend("127.0.0.1", other.sockets[0].getsockname()[1], "job", read_timeout=3.0) as backend,
    ):
        for _ in range(2):
            with pytest.raises(RendezvousConnectionError, match="is not understood"):
                await backend.status()
            with pytest.raises(RendezvousConnectionError, match="is not understood"):
                await backend.propose(Close("me"))
            with pytest.raises(RendezvousConnectionError, match="status 200"):
                await backend.propose(Join(NodeDesc("a"), PAIR))


async def test_a_member_presents_itself_to_a_server_that_does_not_know_it_however_often_that_takes() -> None:
    async with (
        asyncio.timeout(120),
        served() as (first, _),
        served() as (second, _),
        FaultProxy("127.0.0.1", http_port(first)) as proxy,
        HttpBackend("127.0.0.1", proxy.port, "job", read_timeout=60) as backend,
    ):
        alone = RunSettings(1, 1, disconnect_grace=60.0)
        held = await join_until_member(backend, Join(NodeDesc("a"), alone))
        proxy.port_of_server = http_port(second)
        proxy.to_client.cut_after = 600  # in the middle of the answer to the first attempt
        proxy.cut()
        await until(lambda: proxy.to_client.cut_after is None)
        await until(lambda: second.coordinator.status("job").nodes)
        (node,) = second.coordinator.status("job").nodes
        assert (node.desc.name, node.phase, node.rank) == ("a", Phase.MEMBER, held.rank)
        assert (await backend.propose(KeepAlive("a"))).phase is Phase.MEMBER


async def test_what_members_ask_of_a_server_that_was_started_anew_is_done_for_members(free_port: int) -> None:
    async with asyncio.timeout(120), AsyncExitStack() as stack:
        first = AsyncExitStack()
        server = await first.enter_async_context(ar.serve("127.0.0.1:0", http=f"127.0.0.1:{free_port}"))
        one, two = await stack.enter_async_context(a_pair(free_port, server))
        held = await one.changed("a", -1)
        await first.aclose()
        again = await stack.enter_async_context(ar.serve("127.0.0.1:0", http=f"127.0.0.1:{free_port}"))
        assert (await one.propose(Drain("a", 600.0, "soon"))).phase is Phase.MEMBER
        assert {node.desc.name: node.drain_reason for node in again.coordinator.status("job").nodes}[
            "a"
        ] == "soon"
        await one.propose(Leave("a", "done"))
        joins = [Join(NodeDesc(name), PATIENT, held.generation) for name in "ab"]
        views = await asyncio.gather(join_until_member(one, joins[0]), join_until_member(two, joins[1]))
        assert {view.generation > held.generation for view in views} == {True}


async def test_a_run_that_was_closed_is_closed_at_a_server_that_was_started_anew(free_port: int) -> None:
    async with asyncio.timeout(120), AsyncExitStack() as stack:
        first = AsyncExitStack()
        server = await first.enter_async_context(ar.serve("127.0.0.1:0", http=f"127.0.0.1:{free_port}"))
        one, _ = await stack.enter_async_context(a_pair(free_port, server))
        await one.propose(Close("a", "enough"))
        await first.aclose()
        again = await stack.enter_async_context(ar.serve("127.0.0.1:0", http=f"127.0.0.1:{free_port}"))
        await until(lambda: again.coordinator.status("job").closed)
        closed = again.coordinator.status("job").closed
        assert closed is not None
        assert (closed.by, closed.reason) == ("a", "enough")


async def test_backends_are_closed_in_any_order_by_any_task_and_end_what_is_under_way() -> None:
    async with (
        asyncio.timeout(120),
        served() as (server, _),
        FaultProxy("127.0.0.1", http_port(server)) as proxy,
    ):
        backends = [HttpBackend("127.0.0.1", proxy.port, f"job{n}", read_timeout=60) for n in range(3)]
        await asyncio.gather(*(backend.__aenter__() for backend in backends))
        for backend in backends:
            await join_until_member(backend, Join(NodeDesc("a"), RunSettings(1, 1)))
        proxy.freeze()
        under_way = [
            asyncio.ensure_future(waiting)
            for backend in backends
            for waiting in (backend.propose(KeepAlive("a")), backend.status(), backend.changed("a", 10**9))
        ]
        await asyncio.sleep(0)
        for backend in backends:
            await asyncio.create_task(backend.__aexit__(None, None, None))
        for waiting in under_way:
            with pytest.raises(RendezvousStateError, match="closed meanwhile"):
                await waiting
        with pytest.raises(RuntimeError, match="outside of its 'async with' block"):
            await backends[0].status()


async def test_the_session_and_its_store_share_their_connections() -> None:
    async with (
        asyncio.timeout(120),
        served() as (server, _),
        FaultProxy("127.0.0.1", http_port(server)) as proxy,
        HttpBackend("127.0.0.1", proxy.port, "job", read_timeout=60) as backend,
    ):
        await join_until_member(backend, Join(NodeDesc("a"), RunSettings(1, 1)))
        store = backend.store
        assert store is not None
        for number in range(5):
            await store.set(f"k{number}", "v")
            await backend.propose(KeepAlive("a"))
        assert proxy.passed == 2  # one is the stream's


async def test_certificates_that_are_replaced_count_for_the_session_and_its_store(
    free_port: int, tmp_path: Path
) -> None:
    pki, ca = make_pki(tmp_path), tmp_path / "trusted.pem"
    shutil.copy(pki.ca, ca)
    where = f"127.0.0.1:{free_port}"
    async with asyncio.timeout(120), AsyncExitStack() as stack:
        first = AsyncExitStack()
        await first.enter_async_context(ar.serve("127.0.0.1:0", http=where, tls=pki.server()))
        credentials = Credentials(ca=str(ca))
        backend = await stack.enter_async_context(
            HttpBackend("127.0.0.1", free_port, "job", tls=True, read_timeout=60, credentials=credentials)
        )
        await join_until_member(backend, Join(NodeDesc("a"), RunSettings(1, 1)))
        store = backend.store
        assert store is not None
        await store.set("k", "old")
        await first.aclose()
        shutil.copy(pki.foreign_ca, ca)
        other = ServerTls(pki.foreign_cert, pki.foreign_key)
        await stack.enter_async_context(ar.serve("127.0.0.1:0", http=where, tls=other))
        await store.set("k", "new")
        assert (await backend.propose(KeepAlive("a"))).phase is Phase.MEMBER

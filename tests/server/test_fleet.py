"""Any server of a fleet serves everybody, and when the one that leads is gone another does."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import aiohttp
import anyio
import pytest
import pytest_asyncio

import arendezvous as ar
from arendezvous.backends.tcp.watching import RunWatch, watch_server
from arendezvous.directory.etcd import EtcdDirectory
from arendezvous.law.operations import Join
from arendezvous.law.state import NodeDesc, RunSettings
from arendezvous.law.status import RunStatus
from arendezvous.net.servers import Servers
from arendezvous.server.fleet import FleetServer, serve_fleet
from arendezvous.wire.native.messages import (
    PREFACE,
    VERSION,
    Failed,
    FrameParser,
    Hello,
    Propose,
    decode_server,
    encode,
)
from tests.kit.etcd_server import RealEtcd, serve_etcd, text64
from tests.kit.script_kit import Script, script
from tests.kit.tls_kit import Pki, make_pki
from tests.kit.waiting import until, until_seen

ANY = "127.0.0.1:0"
PAIR: dict[str, Any] = {"run_id": "job", "min_nodes": 2, "max_nodes": 2}


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return make_pki(tmp_path_factory.mktemp("pki"))


@pytest_asyncio.fixture
async def etcd() -> AsyncIterator[RealEtcd]:
    async with serve_etcd() as cluster:
        yield cluster


@asynccontextmanager
async def fleet(etcd: RealEtcd, size: int = 3, **options: Any) -> AsyncIterator[list[FleetServer]]:
    """So many servers, the first of which leads, once all know it."""
    async with AsyncExitStack() as stack:
        servers: list[FleetServer] = []
        for _ in range(size):
            serving = serve_fleet(EtcdDirectory(etcd.urls), ANY, http=ANY, **options)
            servers.append(await stack.enter_async_context(serving))
            await until(lambda: servers[0].leadership.is_own)
        await until(lambda: all(server.leadership.leader for server in servers))
        yield servers


def tcp_of(servers: list[FleetServer]) -> str:
    return "tcp://" + ",".join(server.tcp_url.removeprefix("tcp://") for server in servers)


def http_of(servers: list[FleetServer]) -> str:
    scheme = str(servers[0].http_url).partition("://")[0]
    return f"{scheme}://" + ",".join(str(server.http_url).partition("://")[2] for server in servers)


def port_of(server: FleetServer) -> int:
    return int(server.tcp_url.rpartition(":")[2])


async def meet(*urls: str, **options: Any) -> list[int]:
    """Has a node at each URL join; returns their ranks."""
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(ar.open_rendezvous(url, **PAIR, **options)) for url in urls]
        return [info.rank for info in await asyncio.gather(*(node.next_rendezvous() for node in nodes))]


async def test_nodes_meet_whichever_server_they_name(etcd: RealEtcd) -> None:
    async with fleet(etcd) as servers:
        leader, one, other = servers
        for urls in (
            (tcp_of([one]), tcp_of([other])),
            (tcp_of([leader]), http_of([one])),
            (http_of([other]), http_of([leader])),
            (tcp_of(servers), http_of(servers)),
        ):
            with anyio.fail_after(120):
                assert sorted(await meet(*urls)) == [0, 1]


async def test_a_server_that_cannot_be_reached_makes_place_for_the_next(
    etcd: RealEtcd, free_port: int
) -> None:
    async with fleet(etcd) as servers:
        dead = f"127.0.0.1:{free_port}"
        rest = "//" + dead + ","
        urls = (tcp_of(servers).replace("//", rest), http_of(servers).replace("//", rest))
        with anyio.fail_after(120):
            assert sorted(await meet(*urls)) == [0, 1]


async def test_a_client_that_knows_nothing_of_fleets_is_told_who_leads(etcd: RealEtcd) -> None:
    async with fleet(etcd, 2) as (leader, follower):
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(follower))
        writer.write(PREFACE + encode(Hello(VERSION, "job", b"secret of this test")))
        size = int.from_bytes(await reader.readexactly(4), "big")
        said = decode_server(await reader.readexactly(size))
        assert isinstance(said, Failed)
        assert said.message == f"this server does not lead: connect to {leader.tcp_url}, which does"
        writer.close()


async def test_clients_of_a_tcp_store_are_passed_on(etcd: RealEtcd) -> None:
    async with (
        fleet(etcd) as servers,
        ar.TcpStore("127.0.0.1", port_of(servers[1])) as one,
        ar.TcpStore("127.0.0.1", port_of(servers[2])) as other,
    ):
        waiting = asyncio.create_task(one.get("key"))
        large = bytes(range(256)) * 30_000
        await other.set("key", large)
        assert await waiting == large
        await one.queue_push("queue", "v")
        assert await other.queue_pop("queue") == b"v"


async def test_http_is_passed_on_with_streams_of_events_and_the_page(etcd: RealEtcd) -> None:
    async with fleet(etcd) as servers, aiohttp.ClientSession() as session:
        leader, follower, _ = (str(server.http_url) for server in servers)
        async with session.get(
            f"{follower}/v1/runs/job/events", headers={"Accept": "text/event-stream"}
        ) as stream:
            assert stream.status == 200
            await meet(tcp_of(servers), http_of(servers))
            with anyio.fail_after(60):
                while b"RoundCompleted" not in await stream.content.readline():
                    pass
        answers = []
        for server in (leader, follower):
            async with session.get(f"{server}/") as page, session.get(f"{server}/v1/runs") as runs:
                server_id = runs.headers["Arendezvous-Server"]
                answers.append((page.status, await page.read(), await runs.json(), server_id))
            async with session.get(f"{server}/nothing") as nothing:
                assert nothing.status == 404
        assert answers[0] == answers[1]
        async with session.put(f"{follower}/v1/kv/key", data=b"value" * 50_000) as put:
            assert put.status < 300
        async with session.get(f"{leader}/v1/kv/key") as got:
            assert await got.read() == b"value" * 50_000


async def test_readiness_and_metrics_say_who_leads(etcd: RealEtcd) -> None:
    async with fleet(etcd, 2) as servers, aiohttp.ClientSession() as session:
        leader, follower = servers
        seen = []
        for server in servers:
            json = {"Accept": "application/json"}
            async with session.get(f"{server.http_url}/readyz", headers=json) as ready:
                body = await ready.json()
                seen.append((ready.status, body["role"], body["leader"]))
            async with session.get(f"{server.http_url}/metrics") as metrics:
                text = await metrics.text()
            assert f'tcp="{leader.tcp_url}"' in text
            assert f"arendezvous_leading {float(server is leader)}" in text
            assert "arendezvous_leader_since_seconds 1" in text
        assert seen == [(200, "leader", leader.tcp_url), (200, "follower", leader.tcp_url)]
        assert follower.leadership.leader == leader.leadership.leader


async def test_without_a_leader_a_server_is_not_ready(etcd: RealEtcd) -> None:
    await etcd.post("kv/put", {"key": text64("/arendezvous/leader"), "value": text64("nonsense")})
    async with (
        serve_fleet(EtcdDirectory(etcd.urls), ANY, http=ANY) as server,
        aiohttp.ClientSession() as session,
    ):
        async with session.get(f"{server.http_url}/readyz") as ready:
            assert (ready.status, await ready.text()) == (503, "nobody leads\n")
        async with session.get(f"{server.http_url}/v1/runs") as runs:
            assert runs.status == 503
            assert "no server leads at the moment" in await runs.text()
        await etcd.post("kv/deleterange", {"key": text64("/arendezvous/leader")})
        await until(lambda: server.leadership.is_own)


@pytest.mark.parametrize("url_of", [tcp_of, http_of])
async def test_a_round_survives_a_leader_that_ends_in_order(etcd: RealEtcd, url_of: Any) -> None:
    async with AsyncExitStack() as first:
        serving = serve_fleet(EtcdDirectory(etcd.urls), ANY, http=ANY)
        old = await first.enter_async_context(serving)
        await until(lambda: old.leadership.is_own)
        async with (
            serve_fleet(EtcdDirectory(etcd.urls), ANY, http=ANY) as new,
            ar.open_rendezvous(url_of([old, new]), **PAIR, node="a", disconnect_grace=30.0) as a,
            ar.open_rendezvous(url_of([old, new]), **PAIR, node="b", disconnect_grace=30.0) as b,
        ):
            info, _ = await asyncio.gather(a.next_rendezvous(), b.next_rendezvous())
            await first.aclose()
            await until(lambda: new.leadership.is_own)
            status = await until_seen(a.explain, lambda seen: len(seen.nodes) == 2 and seen.complete)
            assert (status.round, status.complete) == (info.round, True)
            assert not (await a.outlook()).departed


async def test_a_leader_that_was_deposed_sends_its_nodes_to_the_next(etcd: RealEtcd) -> None:
    async with fleet(etcd, 2) as servers:
        before = servers[0].leadership.leader
        async with ar.open_rendezvous(
            tcp_of(servers), run_id="job", min_nodes=1, disconnect_grace=30.0
        ) as node:
            await node.next_rendezvous()
            await etcd.post("kv/deleterange", {"key": text64("/arendezvous/leader")})
            await until(lambda: servers[0].leadership.leader not in (before, None))
            await until(lambda: servers[1].leadership.leader == servers[0].leadership.leader)
            await until(lambda: sum(server.leadership.is_own for server in servers) == 1)
            status = await until_seen(
                node.explain, lambda seen: [one.grace_left for one in seen.nodes] == [None]
            )
            assert status.complete


async def test_a_run_is_watched_at_the_leader(etcd: RealEtcd) -> None:
    async with fleet(etcd, 2) as servers:
        places = [("127.0.0.1", port_of(server)) for server in reversed(servers)]
        async with watch_server(Servers(places), RunWatch, "job", timeout=60) as news:
            assert isinstance(await anext(news), RunStatus)


async def test_tokens_and_tls_are_between_the_client_and_the_leader(etcd: RealEtcd, pki: Pki) -> None:
    options = {"authority": ar.Authority.of("a-token-of-this-test"), "tls": pki.server()}
    async with fleet(etcd, 2, **options) as (_, follower):
        client = {"token": "a-token-of-this-test", "tls_ca": pki.ca}
        with anyio.fail_after(120):
            assert sorted(await meet(tcp_of([follower]), http_of([follower]), **client)) == [0, 1]
        with pytest.raises(ar.RendezvousPermissionError):
            await meet(
                tcp_of([follower]), http_of([follower]), **{**client, "token": "another-token-of-this-test"}
            )


async def serve(stack: AsyncExitStack, etcd: RealEtcd) -> tuple[Script, str, str]:
    """Runs a server of the command line in a process of its own."""
    hosts = ",".join(url.removeprefix("http://") for url in etcd.urls)
    command = ("-m", "arendezvous", "serve", "--port", "0", "--http-port", "0", "--etcd", hosts)
    process = await stack.enter_async_context(script(*command))
    _, tcp, http = (await process.line_with("serving")).split()
    return process, tcp, http


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_when_the_process_of_the_leader_ends_the_nodes_meet_again(
    etcd: RealEtcd, how: signal.Signals
) -> None:
    async with AsyncExitStack() as stack, EtcdDirectory(etcd.urls) as directory:
        servers = [await serve(stack, etcd) for _ in range(2)]
        leader = await directory.changed(None)
        assert leader is not None
        url = "tcp://" + ",".join(tcp.removeprefix("tcp://") for _, tcp, _ in servers)
        [process] = [process for process, tcp, _ in servers if tcp == leader.tcp]
        a = await stack.enter_async_context(ar.open_rendezvous(url, **PAIR, node="a"))
        b = await stack.enter_async_context(ar.open_rendezvous(url, **PAIR, node="b"))
        before, _ = await asyncio.gather(a.next_rendezvous(), b.next_rendezvous())
        process.send_signal(how)
        with anyio.fail_after(120):
            assert (await directory.changed(leader)) != leader
            after, _ = await asyncio.gather(a.next_rendezvous(), b.next_rendezvous())
        assert after.round > before.round


async def test_the_command_line_looks_at_a_fleet(etcd: RealEtcd) -> None:
    async with fleet(etcd, 2) as servers:
        for url in (tcp_of(servers[::-1]), http_of(servers[::-1])):
            async with script("-m", "arendezvous", "status", url) as process:
                assert await process.end() == 0, process.output
            async with script("-m", "arendezvous", "doctor", url) as process:
                assert await process.end() == 0, process.output


async def test_a_leader_that_was_frozen_and_deposed_answers_nobody_when_it_goes_on(etcd: RealEtcd) -> None:
    async with AsyncExitStack() as stack, EtcdDirectory(etcd.urls) as directory:
        process, tcp, http = await serve(stack, etcd)
        leader = await directory.changed(None)
        await until_seen(lambda: readiness(http), lambda said: said == "ready: leads\n")
        native = await asyncio.open_connection("127.0.0.1", int(tcp.rpartition(":")[2]))
        native[1].write(PREFACE + encode(Hello(VERSION, "job", b"secret of this test")))
        await native[0].readexactly(1)  # of the welcome
        store = await asyncio.open_connection("127.0.0.1", int(http.rpartition(":")[2]))
        store[1].write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await store[0].readuntil(b"ok\n")
        process.send_signal(signal.SIGSTOP)
        native[1].write(encode(Propose(1, Join(NodeDesc("a"), RunSettings(1, 1)))))
        store[1].write(b"PUT /v1/kv/key HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\nv")
        assert await directory.changed(leader) is None
        process.send_signal(signal.SIGCONT)
        with anyio.fail_after(60):
            rest = FrameParser(2**20).feed(b"\0" + await read_all(native[0]))
            assert await read_all(store[0]) == b""
        assert len(rest) == 1, "more came than the welcome"
        for _, writer in (native, store):
            writer.close()


async def readiness(http: str) -> str:
    """Asks a server what it does; empty while it does not listen."""
    async with aiohttp.ClientSession() as session:
        try:
            async with session.get(f"{http}/readyz") as answer:
                return await answer.text()
        except aiohttp.ClientError:
            return ""


async def read_all(reader: asyncio.StreamReader) -> bytes:
    """Reads until the other end closes, in whatever way."""
    read = b""
    with suppress(ConnectionError):
        while data := await reader.read(65_536):
            read += data
    return read

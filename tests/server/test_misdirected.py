"""Whoever comes to the wrong port is told at once which is the right one, and the log has one line of it."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

import arendezvous as ar
from arendezvous.net.credentials import Credentials
from arendezvous.stores.http.store import HttpStore
from arendezvous.stores.tcp.store import TcpStore
from tests.kit.http_kit import http_port
from tests.kit.listener_kit import Reply, client_of, raw
from tests.kit.tls_kit import make_pki
from tests.kit.torch_process import run_torch

PATIENCE = 30.0  # seconds: half of the time for which each would try again
TOKEN = "a-token-of-24-characters"
NO_TLS = "does not speak TLS on this port: leave TLS out"
WITH_TLS = "it answers with TLS: give tls_ca"
NO_ETCD = "is an arendezvous server and no etcd: "


@asynccontextmanager
async def served(tmp_path: Path, *, tls: bool) -> AsyncIterator[tuple[dict[str, int], str]]:
    """A server's ports, and the file of the authority that signs for it, if it speaks TLS."""
    pki = make_pki(tmp_path)
    async with ar.serve("127.0.0.1:0", http="127.0.0.1:0", tls=pki.server() if tls else None) as server:
        yield {"tcp": server.port, "http": http_port(server)}, pki.ca


@pytest.mark.parametrize(
    ("serves_tls", "endpoint", "uses_tls", "said"),
    [
        (False, "tcp://127.0.0.1:{http}", False, "use http://127.0.0.1:{http}, or tcp://127.0.0.1:{tcp}"),
        (False, "tcp://127.0.0.1:{http}", True, NO_TLS),
        (False, "tcp://127.0.0.1:{tcp}", True, NO_TLS),
        (False, "http://127.0.0.1:{tcp}", False, "for HTTP use http://127.0.0.1:{http}"),
        (False, "https://127.0.0.1:{tcp}", True, NO_TLS),
        (False, "https://127.0.0.1:{http}", True, NO_TLS),
        (False, "c10d://127.0.0.1:{http}", False, "speaks HTTP: use http://"),
        (False, "etcd://127.0.0.1:{http}", False, NO_ETCD + "as an endpoint it is http://127.0.0.1:{http}"),
        (False, "etcd://127.0.0.1:{tcp}", False, NO_ETCD + ".* such as tcp://127.0.0.1:{tcp}"),
        (False, "etcd-v2://127.0.0.1:{http}", False, NO_ETCD),
        (False, "etcd-v2://127.0.0.1:{tcp}", False, NO_ETCD),
        (True, "tcp://127.0.0.1:{http}", False, WITH_TLS),
        (True, "tcp://127.0.0.1:{http}", True, "use https://127.0.0.1:{http}, or tcp://127.0.0.1:{tcp}"),
        (True, "tcp://127.0.0.1:{tcp}", False, WITH_TLS),
        (True, "http://127.0.0.1:{http}", False, "this port speaks TLS: use https://"),
        (True, "http://127.0.0.1:{tcp}", False, "this port speaks TLS"),
        (True, "https://127.0.0.1:{tcp}", True, "for HTTP use https://127.0.0.1:{http}"),
        (True, "c10d://127.0.0.1:{tcp}", False, WITH_TLS),
        (True, "etcd://127.0.0.1:{http}", False, NO_ETCD),
    ],
)
async def test_a_node_is_told_at_once_that_it_is_at_the_wrong_port(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    serves_tls: bool,
    endpoint: str,
    uses_tls: bool,
    said: str,
) -> None:
    async with served(tmp_path, tls=serves_tls) as (ports, ca):
        url, match = endpoint.format(**ports), said.format(**ports)
        ca_file = ca if uses_tls else None
        node = ar.open_rendezvous(url, run_id="job", nnodes="1", read_timeout=60, tls_ca=ca_file)
        with anyio.fail_after(PATIENCE), pytest.raises(ar.RendezvousConnectionError, match=match):
            await node.__aenter__()
    assert len([record for record in caplog.records if "throttle" in record.name]) <= 1


async def test_stores_are_told_at_once(tmp_path: Path) -> None:
    async with served(tmp_path, tls=False) as (ports, ca):
        stores = (
            (TcpStore("127.0.0.1", ports["http"]), "speaks HTTP: use http://"),
            (
                TcpStore("127.0.0.1", ports["http"], credentials=Credentials(token=TOKEN)),
                "the HTTP port; use",
            ),
            (TcpStore("127.0.0.1", ports["tcp"], credentials=Credentials(ca=ca)), NO_TLS),
            (HttpStore(f"http://127.0.0.1:{ports['tcp']}"), f"for HTTP use http://127.0.0.1:{ports['http']}"),
        )
        for store, said in stores:
            with anyio.fail_after(PATIENCE), pytest.raises(ar.RendezvousConnectionError, match=said):
                await store.__aenter__()


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
async def test_browsers_and_curl_are_shown_the_right_port(tmp_path: Path, method: str) -> None:
    async with served(tmp_path, tls=False) as (ports, _):
        async with client_of(f"http://127.0.0.1:{ports['tcp']}") as client:
            reply: Reply = await client.ask(method, "/", b"x" * 200_000 if method == "POST" else b"")
        assert (reply.status, reply.headers["Content-Type"]) == (400, "text/plain; charset=utf-8")
        shown = f"for HTTP use http://127.0.0.1:{ports['http']}\n"
        assert reply.body.decode().endswith(shown) is (method != "HEAD")


async def test_a_server_without_a_listener_for_http_says_how_to_have_one() -> None:
    async with ar.serve("127.0.0.1:0") as server, client_of(f"http://127.0.0.1:{server.port}") as client:
        assert b"start it with --http-port" in (await client.get("/")).body


@pytest.mark.parametrize("first", [b"\x00<\x85\xf7\x2d", b"\x16\x03\x01\x02\x00", b"\xa4A", b"\xa5A"])
async def test_the_log_says_once_what_came_to_the_http_port(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, first: bytes
) -> None:
    async with served(tmp_path, tls=False) as (ports, _), raw(ports["http"]) as connection:
        connection.send(first)
        with anyio.fail_after(PATIENCE):
            assert await connection.reader.read(1)
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "refused: it " in record.getMessage()


async def test_a_stock_client_of_a_store_at_the_http_port_is_told_of_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("torch", reason="the stock client comes with torch")
    async with served(tmp_path, tls=False) as (ports, _):
        script = f"""
from datetime import timedelta
from torch.distributed import TCPStore
try:
    TCPStore("127.0.0.1", {ports["http"]}, is_master=False, timeout=timedelta(seconds=2))
except Exception as error:
    print("refused:", type(error).__name__)
"""
        with anyio.fail_after(4 * PATIENCE):
            assert "refused: " in await run_torch(script)
    assert f"use http://127.0.0.1:{ports['http']}, or tcp://127.0.0.1:{ports['tcp']}" in caplog.text

"""TLS at both listeners: what is protected, what is refused, and that whoever is refused is told why."""

from __future__ import annotations

import asyncio
import logging
import re
import shutil
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
import uvloop

import arendezvous as ar
from arendezvous.backends.tcp.session import SessionBackend
from arendezvous.backends.tcp.watching import RunWatch, watch_server
from arendezvous.law.status import RunStatus
from arendezvous.net.credentials import Credentials
from arendezvous.net.servers import Servers
from arendezvous.net.tls import COMMAND_NAMES, TlsFiles, explain
from arendezvous.server.access.authority import Authority
from arendezvous.server.access.limits import ServerLimits
from arendezvous.server.tls import ServerTls
from tests.kit.tls_kit import OTHER, TOKEN, Pki, make_pki
from tests.kit.torch_process import run_torch
from tests.kit.waiting import until, until_said


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return make_pki(tmp_path_factory.mktemp("pki"))


@asynccontextmanager
async def server(tls: ServerTls | None, **options: Any) -> AsyncIterator[ar.Server]:
    async with ar.serve("127.0.0.1:0", tls=tls, **options) as running:
        yield running


def backend(at: ar.Server, credentials: Credentials, seconds: float = 60) -> SessionBackend:
    return SessionBackend("127.0.0.1", at.port, "job", read_timeout=seconds, credentials=credentials)


def at_place(at: ar.Server) -> Servers:
    return Servers([("127.0.0.1", at.port)])


def store(at: ar.Server, credentials: Credentials, seconds: float = 60) -> ar.TcpStore:
    return ar.TcpStore(
        "127.0.0.1", at.port, read_timeout=seconds, connect_timeout=seconds, credentials=credentials
    )


async def _ended(reader: asyncio.StreamReader) -> None:
    """Returns once the server has closed the connection, in whatever way; it has to say nothing before."""
    with suppress(ConnectionError):
        assert await reader.read() == b""


async def _meet(node: ar.AsyncRendezvousHandler, infos: list[ar.RendezvousInfo]) -> None:
    infos.append(await node.next_rendezvous())


# What works


@pytest.mark.parametrize("scheme", ["tcp", "https"])
@pytest.mark.parametrize("mutual", [False, True])
async def test_nodes_meet_over_tls_with_a_token(pki: Pki, scheme: str, mutual: bool) -> None:
    tls = pki.server(mutual=mutual)
    cert = {"tls_cert": pki.cert, "tls_key": pki.key} if mutual else {}
    async with server(tls, authority=Authority.of(TOKEN), http="127.0.0.1:0") as at:
        assert at.http_url is not None
        url = at.tcp_url if scheme == "tcp" else at.http_url
        options: dict[str, Any] = {"token": TOKEN, "tls_ca": pki.ca, **cert}
        if scheme == "tcp":
            options["is_host"] = False
        nodes = [ar.open_rendezvous(url, run_id="job", min_nodes=3, node=name, **options) for name in "abc"]
        infos: list[ar.RendezvousInfo] = []
        async with nodes[0], nodes[1], nodes[2]:
            async with anyio.create_task_group() as tasks:
                for node in nodes:
                    tasks.start_soon(_meet, node, infos)
            assert sorted(info.rank for info in infos) == [0, 1, 2]
            await infos[0].store.set("k", b"v" * 3_000_000)
            assert await infos[1].store.get("k") == b"v" * 3_000_000


async def test_the_node_that_hosts_serves_tls_with_its_own_certificate(pki: Pki, free_port: int) -> None:
    def node(name: str, **options: Any) -> ar.AsyncRendezvousHandler:
        url = f"tcp://127.0.0.1:{free_port}"
        return ar.open_rendezvous(url, run_id="job", min_nodes=2, node=name, **options)

    own = {"token": TOKEN, "tls_ca": pki.ca, "tls_cert": pki.cert, "tls_key": pki.key}
    infos: list[ar.RendezvousInfo] = []
    async with node("a", **own) as first, node("b", **own) as second, anyio.create_task_group() as tasks:
        tasks.start_soon(_meet, first, infos)
        tasks.start_soon(_meet, second, infos)
    assert sorted(info.rank for info in infos) == [0, 1]
    with pytest.raises(ar.RendezvousSettingsError, match=r"tls_cert .* as this node is to serve TLS"):
        async with node("c", token=TOKEN, tls_ca=pki.ca, is_host=True):
            pass


async def test_a_node_without_a_certificate_does_not_host_over_tls(pki: Pki, free_port: int) -> None:
    url = f"tcp://127.0.0.1:{free_port}"
    with pytest.raises(ar.RendezvousConnectionError, match="could not be reached"):
        async with ar.open_rendezvous(url, run_id="job", min_nodes=1, tls_ca=pki.ca, read_timeout=0.1):
            pass


async def test_a_run_is_watched_over_tls(pki: Pki) -> None:
    async with server(pki.server(), authority=Authority.of(TOKEN)) as at:
        credentials = pki.client(token=TOKEN)
        async with watch_server(at_place(at), RunWatch, "job", credentials=credentials) as news:
            assert isinstance(await anext(news), RunStatus)
        with pytest.raises(ar.RendezvousConnectionError, match="is not trusted"):
            async with watch_server(
                at_place(at), RunWatch, "job", credentials=Credentials(ca=pki.foreign_ca)
            ):
                pass
        with pytest.raises(ar.RendezvousPermissionError, match="does not know the token"):
            async with watch_server(
                at_place(at), RunWatch, "job", credentials=pki.client(token=OTHER)
            ) as news:
                await anext(news)


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_both_event_loops_speak_tls(pki: Pki, run: Callable[[Coroutine[Any, Any, None]], None]) -> None:
    async def main() -> None:
        async with server(pki.server(mutual=True), authority=Authority.of(TOKEN)) as at:
            credentials = pki.client(token=TOKEN, certificate=True)
            async with backend(at, credentials) as node, store(at, credentials) as keys:
                assert (await node.status()).run_id == "job"
                await keys.set("k", b"v" * 1_000_000)
                assert await keys.get("k") == b"v" * 1_000_000

    run(main())


async def test_a_certificate_that_is_replaced_is_shown_in_the_next_handshake(
    pki: Pki, tmp_path: Path
) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    shutil.copy(pki.expired_cert, cert)
    shutil.copy(pki.expired_key, key)
    async with server(ServerTls(str(cert), str(key))) as at:
        with pytest.raises(ar.RendezvousConnectionError, match="has expired"):
            async with backend(at, pki.client()):
                pass
        shutil.copy(pki.cert, cert)
        shutil.copy(pki.key, key)
        assert at.reload()
        async with backend(at, pki.client()) as node:
            assert (await node.status()).run_id == "job"


async def test_a_replaced_certificate_is_noticed_without_being_told_and_a_bad_one_ignored(
    pki: Pki, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    shutil.copy(pki.cert, cert)
    shutil.copy(pki.key, key)
    async with server(ServerTls(str(cert), str(key))) as at:
        cert.write_text("no certificate")
        for _ in range(2):
            async with backend(at, pki.client()) as node:
                assert (await node.status()).run_id == "job"
        assert caplog.text.count("the TLS settings stay as they are: tls_cert is ") == 1
        shutil.copy(pki.expired_cert, cert)
        shutil.copy(pki.expired_key, key)
        with pytest.raises(ar.RendezvousConnectionError, match="has expired"):
            async with backend(at, pki.client()):
                pass


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_an_authority_that_is_taken_away_or_added_at_the_server_counts_from_the_next_handshake_on(
    pki: Pki, tmp_path: Path, run: Callable[[Coroutine[Any, Any, None]], None]
) -> None:
    ca = tmp_path / "ca.pem"
    shutil.copy(pki.ca, ca)
    ours = pki.client(certificate=True)
    foreign = Credentials(ca=pki.ca, cert=pki.foreign_cert, key=pki.foreign_key)

    async def main() -> None:
        async with server(ServerTls(pki.cert, pki.key, str(ca))) as at:
            async with backend(at, ours) as node:
                shutil.copy(pki.foreign_ca, ca)
                assert (await node.status()).run_id == "job"  # what is connected stays so
            await until_said(
                lambda seconds: backend(at, ours, seconds).__aenter__(), "certificate of this end"
            )
            async with backend(at, foreign) as node:
                assert (await node.status()).run_id == "job"

    run(main())


async def test_a_client_follows_its_files(pki: Pki, tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    shutil.copy(pki.foreign_ca, ca)
    fresh = Credentials(ca=str(ca)).fresh_context()
    assert fresh is not None
    assert Credentials(ca=str(ca)).fresh_context() is fresh
    first = fresh.get()
    assert fresh.get() is first
    ca.write_text("no certificate")
    assert fresh.get() is first
    shutil.copy(pki.ca, ca)
    assert fresh.get() is not first


# What is refused, and how

WRONG: dict[str, tuple[Callable[[Pki], ServerTls | None], Callable[[Pki], Credentials], str]] = {
    "another authority": (
        lambda pki: pki.server(),
        lambda pki: Credentials(ca=pki.foreign_ca),
        "is not trusted",
    ),
    "the system's authorities": (
        lambda pki: pki.server(),
        lambda pki: Credentials(tls=True),
        "is not trusted",
    ),
    "expired": (
        lambda pki: ServerTls(pki.expired_cert, pki.expired_key),
        lambda pki: pki.client(),
        "has expired: it must be renewed",
    ),
    "another name": (
        lambda pki: ServerTls(pki.other_name_cert, pki.other_name_key),
        lambda pki: pki.client(),
        "is for another name",
    ),
    "no TLS at the server": (lambda pki: None, lambda pki: pki.client(), "does not speak TLS on this port"),
    "no TLS at the client": (
        lambda pki: pki.server(),
        lambda pki: Credentials(),
        "it answers with TLS: give tls_ca",
    ),
    "no certificate at the client": (
        lambda pki: pki.server(mutual=True),
        lambda pki: pki.client(),
        "certificate of this end: give tls_cert and tls_key",
    ),
    "a certificate of another authority at the client": (
        lambda pki: pki.server(mutual=True),
        lambda pki: Credentials(ca=pki.ca, cert=pki.foreign_cert, key=pki.foreign_key),
        "certificate of this end",
    ),
}


@pytest.mark.parametrize("case", WRONG)
async def test_a_node_is_told_what_is_wrong_with_tls(
    pki: Pki, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    tls, credentials, said = WRONG[case]
    async with server(tls(pki)) as at:
        await until_said(lambda seconds: backend(at, credentials(pki), seconds).__aenter__(), re.escape(said))
        with pytest.raises(ar.RendezvousConnectionError):
            async with store(at, credentials(pki), seconds=0.5):
                pass
    logged = {
        "no TLS at the server": "it begins to speak TLS, and this port does not",
        "no TLS at the client": "it does not speak TLS, and this port expects it",
        "no certificate at the client": "the client has shown no certificate",
    }
    assert logged.get(case, "") in caplog.text


async def test_another_name_may_be_expected(pki: Pki) -> None:
    async with server(ServerTls(pki.other_name_cert, pki.other_name_key)) as at:
        credentials = pki.client(server_name="elsewhere.example")
        async with backend(at, credentials) as node, store(at, credentials) as keys:
            assert (await node.status()).run_id == "job"
            assert await keys.num_keys() == 0
        async with watch_server(at_place(at), RunWatch, "job", credentials=credentials) as news:
            assert isinstance(await anext(news), RunStatus)


async def test_what_is_not_to_be_trusted_is_refused_at_once(pki: Pki) -> None:
    async with server(pki.server()) as at:
        credentials = Credentials(ca=pki.foreign_ca)
        with anyio.fail_after(120):
            with pytest.raises(ar.RendezvousConnectionError, match="cannot be trusted"):
                async with backend(at, credentials, seconds=600):
                    pass
            with pytest.raises(ar.RendezvousConnectionError, match="cannot be trusted"):
                async with store(at, credentials, seconds=600):
                    pass


async def test_client_certificates_let_a_server_listen_where_others_reach_it(pki: Pki) -> None:
    with pytest.raises(ar.RendezvousSettingsError, match="--tls-ca"):
        async with ar.serve("0.0.0.0:0", tls=pki.server()):
            pass
    credentials = pki.client(certificate=True)
    async with ar.serve("0.0.0.0:0", tls=pki.server(mutual=True)) as at, backend(at, credentials) as node:
        assert (await node.status()).run_id == "job"


def test_old_versions_of_tls_are_refused_by_both_ends(pki: Pki) -> None:
    context = pki.client().ssl_context()
    assert context is not None
    assert pki.server().context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname


# What a handshake may cost


@pytest.mark.parametrize("listener", ["tcp", "http"])
async def test_a_handshake_that_does_not_come_to_its_end_is_bounded_and_disturbs_nobody(
    pki: Pki, caplog: pytest.LogCaptureFixture, listener: str
) -> None:
    limits = ServerLimits(handshake_timeout=0.2, max_connections=4)
    async with server(pki.server(), limits=limits, http="127.0.0.1:0") as at:
        port = at.port if listener == "tcp" else int(str(at.http_url).rpartition(":")[2])
        streams = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        streams[1][1].write(b"\x16\x03\x01\x02\x00")
        try:
            async with backend(at, pki.client()) as node:
                assert (await node.status()).run_id == "job"
            with anyio.fail_after(120):
                for reader, _ in streams:
                    await _ended(reader)
        finally:
            for _, writer in streams:
                writer.transport.abort()
        assert caplog.text.count("its TLS handshake was not done after 0.2 s") >= 3
        for _ in range(5):  # what the dropped ones held has been given back
            async with backend(at, pki.client()) as node:
                assert (await node.status()).run_id == "job"


async def test_handshakes_count_among_the_connections(pki: Pki, caplog: pytest.LogCaptureFixture) -> None:
    limits = ServerLimits(handshake_timeout=600, max_connections=1)
    async with server(pki.server(), limits=limits) as at:
        _, first = await asyncio.open_connection("127.0.0.1", at.port)
        reader, second = await asyncio.open_connection("127.0.0.1", at.port)
        try:
            with anyio.fail_after(120):
                await _ended(reader)
        finally:
            first.transport.abort()
            second.transport.abort()
        assert "1 connections are open" in caplog.text
        async with backend(at, pki.client()) as node:
            assert (await node.status()).run_id == "job"


async def test_a_server_that_stops_breaks_off_handshakes(pki: Pki) -> None:
    async with server(pki.server(), limits=ServerLimits(handshake_timeout=600)) as at:
        reader, writer = await asyncio.open_connection("127.0.0.1", at.port)
        async with backend(at, pki.client()):
            pass  # that one has been accepted, so the other has been, too
    try:
        with anyio.fail_after(120):
            await _ended(reader)
    finally:
        writer.transport.abort()


async def test_a_member_whose_connection_breaks_is_noticed_over_tls(pki: Pki) -> None:
    async with server(pki.server(), authority=Authority.of(TOKEN)) as at:

        def node(name: str) -> ar.AsyncRendezvousHandler:
            return ar.open_rendezvous(
                at.tcp_url,
                run_id="job",
                min_nodes=2,
                node=name,
                token=TOKEN,
                tls_ca=pki.ca,
                is_host=False,
                disconnect_grace=0.0,
            )

        infos: list[ar.RendezvousInfo] = []
        async with node("a") as first, node("b") as second:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_meet, first, infos)
                tasks.start_soon(_meet, second, infos)
            assert isinstance(second, ar.DynamicRendezvousHandler)
            lost = second._backend
            assert isinstance(lost, SessionBackend)
            assert lost._connection is not None
            lost._connection.abort("broken")
            with anyio.fail_after(120):
                async for change in first.changes():
                    if isinstance(change, ar.NodeLost):
                        assert change.node == "b"
                        break


TORCHRUN_AGENT = """
import sys
from torch.distributed.elastic.rendezvous import RendezvousParameters
from arendezvous.torch import create_handler
port, ca, cert, key, token_file = sys.argv[1:]
given = {"token_file": token_file, "tls_ca": ca, "tls_cert": cert, "tls_key": key}
handler = create_handler(RendezvousParameters("arendezvous", f"127.0.0.1:{port}", "job", 1, 1, **given))
info = handler.next_rendezvous()
info.store.set("k", "v")
print(info.rank, info.world_size, info.store.get("k").decode())
handler.shutdown()
"""


async def test_an_agent_of_torchrun_meets_and_stores_over_tls_with_a_token(pki: Pki, tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    token_file.write_text(TOKEN)
    async with server(pki.server(mutual=True), authority=Authority.of(TOKEN)) as at:
        out = await run_torch(TORCHRUN_AGENT, at.port, pki.ca, pki.cert, pki.key, token_file)
    assert out.split() == ["0", "1", "v"]


# Files


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda pki, bad: ServerTls(f"{pki.cert}.absent", pki.key),
            "tls_cert is .* cannot be read: No such file",
        ),
        (
            lambda pki, bad: ServerTls(pki.cert, f"{pki.key}.absent"),
            "tls_key is .* cannot be read: No such file",
        ),
        (
            lambda pki, bad: ServerTls(pki.cert, pki.expired_key),
            "tls_key is .*, but the key in it belongs to another certificate; expected the key, in PEM",
        ),
        (lambda pki, bad: ServerTls(pki.cert, bad), "tls_key is .*, but the key in it cannot be used"),
        (lambda pki, bad: ServerTls(pki.cert), "tls_cert is .*, but the key in it cannot be used"),
        (lambda pki, bad: ServerTls(bad, pki.key), "tls_cert is .* a file with certificates in PEM"),
        (lambda pki, bad: ServerTls(pki.cert, pki.key, bad), "tls_ca is .* a file with certificates in PEM"),
        (lambda pki, bad: Credentials(ca=bad).ssl_context(), "tls_ca is .* a file with certificates in PEM"),
        (lambda pki, bad: Credentials(key=pki.key), "tls_cert is ''"),
        (
            lambda pki, bad: Credentials.of(environ={"ARENDEZVOUS_TLS_CA": bad}).ssl_context(),
            "^ARENDEZVOUS_TLS_CA is .* a file with certificates in PEM",
        ),
        (
            lambda pki, bad: Credentials.of(
                cert=bad, names=COMMAND_NAMES, environ={"ARENDEZVOUS_TLS_CA": pki.ca}
            ).ssl_context(),
            "^--tls-cert is .* a file with certificates in PEM",
        ),
        (
            lambda pki, bad: Credentials.of(environ={"ARENDEZVOUS_TLS_KEY": bad}),
            "^ARENDEZVOUS_TLS_CERT is '', but must be the certificate to the key in ARENDEZVOUS_TLS_KEY",
        ),
        (lambda pki, bad: TlsFiles(ca="a\0b").client_context(), "tls_ca is .* cannot be read"),
        (lambda pki, bad: SessionBackend("h", 1, "job", credentials=Credentials(ca=bad)), "tls_ca"),
    ],
)
def test_files_that_are_of_no_use_are_named(
    pki: Pki, tmp_path: Path, make: Callable[[Pki, str], object], said: str
) -> None:
    bad = tmp_path / "bad.pem"
    bad.write_text("-----BEGIN CERTIFICATE-----\nbm9uZQ==\n-----END CERTIFICATE-----\n")
    with pytest.raises(ar.RendezvousSettingsError, match=said):
        make(pki, str(bad))


def test_an_encrypted_key_is_refused_instead_of_asking_for_its_password(pki: Pki, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(Path(pki.key).read_bytes(), None)
    file = tmp_path / "encrypted.pem"
    file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"password"),
        )
    )
    with pytest.raises(ar.RendezvousSettingsError, match="in PEM and not encrypted"):
        ServerTls(pki.cert, str(file))


def test_what_is_no_trouble_with_tls_is_not_explained_as_such() -> None:
    assert explain(ConnectionRefusedError()) == ""


async def test_the_log_of_a_server_names_the_peer(pki: Pki, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    async with server(pki.server()) as at:
        reader, writer = await asyncio.open_connection("127.0.0.1", at.port)
        name = "{}:{}".format(*writer.get_extra_info("sockname"))
        writer.write(b"\xa4AR1" + bytes(60))
        try:
            with anyio.fail_after(120):
                await reader.read()
        except ConnectionError:
            pass
        finally:
            writer.transport.abort()
        await until(lambda: f"{name}: dropped: in the TLS handshake" in caplog.text)

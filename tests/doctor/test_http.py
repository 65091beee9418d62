"""``arendezvous doctor`` examines an HTTP listener as a node would meet it, whatever is in front of it."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.utils import formatdate
from pathlib import Path

import pytest

import arendezvous as ar
from arendezvous.cli.contact import Contact
from arendezvous.doctor import checks as doctor_checks
from arendezvous.doctor import http as doctor_http
from arendezvous.doctor import tcp as doctor_tcp
from arendezvous.doctor.checks import Finding, Level, check_run
from arendezvous.doctor.http import check_clock, examine_http
from arendezvous.keyspace.grants import EVERYTHING, Grant, Scope
from arendezvous.net.credentials import NO_CREDENTIALS, Credentials
from arendezvous.schemes import parse_endpoint
from arendezvous.server.access.authority import Authority
from arendezvous.server.store_server import serve_store
from tests.kit.cli_kit import run_apart, run_here
from tests.kit.http_kit import http_port, join, served
from tests.kit.tls_kit import OTHER, TOKEN, Pki, make_pki

OURS = "Arendezvous-Server: abc\r\n"
LENGTH_0 = "Content-Length: 0\r\n"
RUN_TOKEN = "a-token-of-one-run-0123456789"


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return make_pki(tmp_path_factory.mktemp("pki"))


@asynccontextmanager
async def saying(*answers: str) -> AsyncIterator[int]:
    """Answers the first request of each connection with the next of `answers`; yields the port."""
    left = list(answers)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(left.pop(0).encode() if left else b"")
            await writer.drain()
            await reader.read()
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def examined(
    port: int, credentials: Credentials = NO_CREDENTIALS, scheme: str = "http"
) -> dict[str, Finding]:
    """The checks of a port of this machine, by their names."""
    async with asyncio.timeout(120):
        checks = await examine_http(parse_endpoint(f"{scheme}://127.0.0.1:{port}"), credentials)
    return {check.name: check for check in checks}


def lines(head: str, *fields: str) -> str:
    """An answer without a body."""
    return f"HTTP/1.1 {head}\r\n{''.join(fields)}\r\n"


async def test_a_node_can_join_where_our_server_answers_over_http() -> None:
    async with served() as (server, client):
        await join(client, "a")
        url = str(server.http_url)
        result, other = await asyncio.gather(
            run_apart("doctor", url, "job"), run_apart("doctor", url, "--json")
        )
    shown = result.out.splitlines()
    assert (result.code, shown[-1]) == (0, "a node here could join"), result
    assert any(line.startswith("ok       server     an arendezvous server, started as ") for line in shown)
    assert "ok       stream     events come as they happen" in shown
    assert "ok       clock      the server keeps the only clock; no others are compared" in shown
    assert any("run        run 'job': round 0 gathers 2 nodes, 1 came" in line for line in shown)
    assert [check["name"] for check in other.data["checks"]] == [
        "name", "port", "server", "stream", "clock", "host", "address", "own name", "open files",
    ]  # fmt: skip


async def test_the_run_is_looked_at_too_if_it_is_named() -> None:
    async with served() as (server, client):
        for node in ("a", "b", "c"):
            await join(client, node)
        full = await run_apart("doctor", server.tcp_url, "job")
        async with client.post("/v1/runs/job/close", json={"by": "me", "reason": "enough"}) as answer:
            assert answer.status == 200
        closed = await run_apart("doctor", str(server.http_url), "job")
    assert (full.code, "round 0 is complete with 2 nodes; in it: a, b, c" in full.out) == (0, True)
    assert (closed.code, closed.out.splitlines()[-1]) == (1, "a node here could not join: run")
    assert "run 'job': the run was closed by me " in closed.out
    assert "enough; no further round will form; open it again with 'arendezvous reopen'" in closed.out


@pytest.mark.parametrize(
    ("token", "said"),
    [
        ("", "an arendezvous server that refuses us (this server asks for a token, and none was given"),
        (OTHER, "an arendezvous server that refuses us (this server does not know the token"),
        (RUN_TOKEN, "an arendezvous server, started as "),
    ],
)
async def test_the_token_is_tried(token: str, said: str) -> None:
    authority = Authority([(TOKEN, EVERYTHING), (RUN_TOKEN, Grant(Scope.RUN, "job"))])
    async with served(authority=authority) as (server, _):
        checks = await examined(http_port(server), Credentials(token=token))
    assert said in checks["server"].found
    assert (checks["server"].level is Level.OK) == (token == RUN_TOKEN) == ("stream" in checks)


async def test_a_token_of_another_run_does_not_do(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(RUN_TOKEN)
    async with served(authority=Authority([(RUN_TOKEN, Grant(Scope.RUN, "job"))])) as (server, _):
        url = str(server.http_url)
        mine, other = await asyncio.gather(
            *(run_apart("doctor", url, run_id, "--token-file", str(file)) for run_id in ("job", "other"))
        )
    assert (mine.code, "run 'job': nobody has joined it yet" in mine.out) == (0, True)
    assert other.out.splitlines()[-1] == "a node here could not join: run"
    assert "is good for run 'job'" in other.out


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (lines("502 Bad Gateway", "Server: nginx/1.22\r\n", LENGTH_0),
         "the status 502 by nginx/1.22: a proxy that does not get through to the server"),
        (lines("503 Service Unavailable", LENGTH_0),
         "the status 503: a proxy that does not get through to the server, or the server is full"),
        (lines("401 Unauthorized", LENGTH_0), "the status 401, which is no arendezvous server"),
        (lines("301 Moved", "Location: http://there.example/\r\n", LENGTH_0),
         "an HTTP server that sends us on to http://there.example/"),
        (lines("404 Not Found", "Server: Apache\r\n", LENGTH_0),
         "an HTTP server that is no arendezvous server (status 404 by Apache)"),
        (lines("200 OK", "Server: x\x1b[31my\r\n", LENGTH_0), None),
        ("220 mail.example ready\r\n", "there is no answer: what comes is not HTTP"),
        ("", "there is no answer: nothing has come within 0.2 s"),
    ],
)  # fmt: skip
async def test_whoever_else_answers_is_told_by_what_they_say(
    monkeypatch: pytest.MonkeyPatch, answer: str, found: str | None
) -> None:
    monkeypatch.setattr(doctor_http, "CHECK_TIMEOUT", 0.2)
    monkeypatch.setattr(doctor_tcp, "PROBE_TIMEOUT", 0.02)
    async with saying(answer) as port:
        server = (await examined(port))["server"]
    assert server.level is Level.FAILED
    assert server.advice
    assert "\x1b" not in server.found
    if found is not None:
        assert server.found == found


async def test_a_port_that_is_the_tcp_listener_is_told() -> None:
    async with ar.serve("127.0.0.1:0") as server:
        check = (await examined(int(server.tcp_url.rsplit(":", 1)[1])))["server"]
    assert (check.level, check.found) == (
        Level.FAILED,
        "an arendezvous server, but its port for tcp://",
    )


async def test_a_plain_store_is_told() -> None:
    async with serve_store("127.0.0.1") as store:
        check = (await examined(store.port))["server"]
    assert check.found == "a TCPStore that is no arendezvous server"
    assert check.advice == "give the URL of an arendezvous server, or another port"


async def test_a_name_that_cannot_be_resolved_is_all_that_can_be_told_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(doctor_checks, "_resolve", resolve)
    checks = await examine_http(parse_endpoint("http://nowhere.example"), NO_CREDENTIALS)
    assert [check.name for check in checks] == ["name", "own name", "open files"]
    assert checks[0].level is Level.FAILED


async def test_an_address_of_the_name_that_does_not_answer_is_warned_about(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        return ["127.0.0.1", "127.9.9.9"]

    monkeypatch.setattr(doctor_checks, "_resolve", resolve)
    async with served() as (server, _):
        checks = await examined(http_port(server))
    assert checks["port"].level is Level.WARNING
    assert checks["port"].found.startswith(f"127.9.9.9:{http_port(server)}: ")
    assert checks["server"].level is Level.OK


@pytest.mark.parametrize("nodes", [3, 12])
async def test_a_run_is_told_with_the_names_of_some_of_its_nodes(nodes: int) -> None:
    names = [f"n{number:02}" for number in range(nodes)]
    async with served() as (server, client):
        for name in names:
            await join(client, name)
        check = await check_run(Contact(str(server.http_url), NO_CREDENTIALS).session("job"))
    listed = "n00, n01, n02" if nodes == 3 else f"{', '.join(names[:8])} and 4 more"
    assert check == Finding("run", Level.OK, f"run 'job': round 0 is complete with 2 nodes; in it: {listed}")


async def test_a_run_that_cannot_be_looked_at_says_why(free_port: int) -> None:
    contact = Contact(f"http://127.0.0.1:{free_port}", NO_CREDENTIALS, timeout=0.1)
    check = await check_run(contact.session("job"))
    assert (check.level, "could not be reached" in check.found) == (Level.FAILED, True)


async def test_nobody_there_is_told_with_how_to_start_a_server(free_port: int) -> None:
    checks = await examined(free_port)
    assert checks["port"].level is Level.FAILED
    assert f"start 'arendezvous serve --http-port {free_port}' there" in checks["port"].advice
    assert "server" not in checks


async def test_tls_is_examined_and_left_out_tls_is_noticed(pki: Pki) -> None:
    async with ar.serve("127.0.0.1:0", http="127.0.0.1:0", tls=pki.server()) as server:
        port = http_port(server)
        good = await examined(port, pki.client(), "https")
        foreign = await examined(port, Credentials(ca=pki.foreign_ca), "https")
        system = await examined(port, NO_CREDENTIALS, "https")
        plain = await examined(port)
    assert (good["tls"].level, good["server"].level, good["stream"].level) == (Level.OK,) * 3
    assert good["tls"].found.startswith("TLSv1.3; the certificate is trusted")
    for checks in (foreign, system):
        assert checks["tls"].found.startswith("the certificate there is not trusted")
        assert "server" not in checks
    assert plain["server"].found == "somebody who expects TLS"
    assert plain["server"].advice == "begin the URL with https://"


def test_options_of_tls_with_a_url_without_it_are_wrong_usage(pki: Pki) -> None:
    result = run_here("doctor", "http://127.0.0.1:1", "--tls-ca", pki.ca)
    assert (result.code, result.out) == (2, "")
    assert "https://..., because TLS is asked for" in result.err


@pytest.mark.parametrize(
    ("stream", "said"),
    [
        (lines("200 OK", OURS, "Content-Type: text/event-stream\r\n"), "nothing has come within 0.2 s"),
        (lines("200 OK", OURS, "Content-Type: text/event-stream\r\n", LENGTH_0),
         "the server ended the stream"),
        (lines("200 OK", OURS, "Content-Type: text/html\r\n", LENGTH_0),
         "the answer has the status 200 and the type text/html"),
        (lines("504 Gateway Timeout", LENGTH_0), "the answer has the status 504"),
    ],
)  # fmt: skip
async def test_a_proxy_that_holds_back_or_cuts_off_events_is_found_out(
    monkeypatch: pytest.MonkeyPatch, stream: str, said: str
) -> None:
    monkeypatch.setattr(doctor_http, "CHECK_TIMEOUT", 0.2)
    runs = lines("200 OK", OURS, LENGTH_0)
    async with saying(runs, stream) as port:
        checks = await examined(port)
    assert (checks["server"].level, checks["stream"].level) == (Level.OK, Level.FAILED)
    assert said in checks["stream"].found
    assert "proxy_buffering off" in checks["stream"].advice


@pytest.mark.parametrize(
    ("date", "level", "found"),
    [
        (formatdate(0, usegmt=True), Level.WARNING, "ahead of the server's"),
        (formatdate(1e10, usegmt=True), Level.WARNING, "behind the server's"),
        ("once", Level.OK, "the server keeps the only clock"),
    ],
)
async def test_a_clock_that_is_far_off_is_warned_about(date: str, level: Level, found: str) -> None:
    async with saying(lines("200 OK", OURS, f"Date: {date}\r\n", LENGTH_0), lines("204 No")) as port:
        clock = (await examined(port))["clock"]
    assert (clock.level, found in clock.found) == (level, True), clock
    assert check_clock(formatdate(time.time() + 58, usegmt=True)).level is Level.OK


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (lines("407 Who", LENGTH_0), "the proxy asks who we are"),
        (
            lines("502 No", "Server: squid\r\n", LENGTH_0),
            "the status 502 by squid: a proxy that does not get",
        ),
    ],
)
async def test_a_proxy_of_the_environment_is_gone_through_and_examined(
    monkeypatch: pytest.MonkeyPatch, answer: str, found: str
) -> None:
    async with saying(answer) as port:
        monkeypatch.setenv("http_proxy", f"http://me:secret@127.0.0.1:{port}")
        monkeypatch.setenv("no_proxy", "")
        checks = await examine_http(parse_endpoint("http://rdzv.example:29401"), NO_CREDENTIALS)
    named = {check.name: check for check in checks}
    assert f"requests go through 127.0.0.1:{port}, as the environment says" in named["proxy"].found
    assert named["name"].found.startswith("127.0.0.1 is 127.0.0.1")
    assert found in named["server"].found
    assert "secret" not in "".join(map(str, checks))


async def test_a_proxy_that_cannot_be_used_or_reached_is_told(
    monkeypatch: pytest.MonkeyPatch, free_port: int
) -> None:
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("http_proxy", "socks5://127.0.0.1:1080")
    checks = await examine_http(parse_endpoint("http://rdzv.example"), NO_CREDENTIALS)
    assert [(check.name, check.level) for check in checks] == [("proxy", Level.FAILED)]
    assert "http://host:3128" in checks[0].found
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port}")
    checks = await examine_http(parse_endpoint("http://rdzv.example"), NO_CREDENTIALS)
    port = next(check for check in checks if check.name == "port")
    assert (port.level, port.advice) == (Level.FAILED, "check the proxy's address")

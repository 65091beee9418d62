"""``arendezvous doctor`` finds what would stop a node from joining, and says what to do."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from arendezvous.cli import looking
from arendezvous.cli.contact import Contact
from arendezvous.doctor import checks as doctor_checks
from arendezvous.doctor import tcp as doctor_tcp
from arendezvous.doctor.checks import Level, PortReach, check_name, judge_open_files
from arendezvous.doctor.tcp import Kind, ProbeResult, check_host, check_port, check_server, probe
from arendezvous.net.credentials import NO_CREDENTIALS
from arendezvous.server.store_server import serve_store
from arendezvous.wire.native.messages import Failed, encode
from tests.kit.cli_kit import a_server, run, run_here

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def test_a_node_can_join_where_our_server_answers() -> None:
    async with a_server() as (url, _):
        result = await run("doctor", url)
        data = (await run("doctor", url, "--json")).data
    lines = result.out.splitlines()
    assert (result.code, lines[-1]) == (0, "a node here could join")
    assert "ok       server     an arendezvous server (protocol version 2, ours is 2)" in lines
    assert data["joinable"] is True
    assert [check["name"] for check in data["checks"]] == [
        "name", "port", "server", "host", "address", "own name", "clock", "open files",
    ]  # fmt: skip


def test_a_node_can_join_where_it_would_host_the_server_itself(free_port: int) -> None:
    result = run_here("doctor", f"tcp://127.0.0.1:{free_port}")
    assert (result.code, "the first node here will host the server" in result.out) == (0, True)


async def test_a_node_cannot_join_where_something_else_answers() -> None:
    async with serve_store("127.0.0.1") as store:
        result = await run("doctor", f"tcp://127.0.0.1:{store.port}")
    assert result.code == 1
    assert "failed   server     a TCPStore that is no arendezvous server; give the URL of" in result.out
    assert result.out.splitlines()[-1] == "a node here could not join: server"


async def test_a_name_that_cannot_be_resolved_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(doctor_checks, "_resolve", resolve)
    check, addresses = await check_name("nowhere.example", 1)
    assert (check.level, addresses) == (Level.FAILED, [])
    assert "nowhere.example cannot be resolved" in check.found
    assert await looking.doctor(Contact("tcp://nowhere.example:1", NO_CREDENTIALS)) == 1
    out = capsys.readouterr().out
    assert "warning  own name" in out
    assert out.endswith("a node here could not join: name\n")


async def test_a_name_that_takes_long_is_warned_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_checks, "SLOW", 0.0)
    check, addresses = await check_name("127.0.0.1", 1)
    assert (check.level, addresses) == (Level.WARNING, ["127.0.0.1"])


@asynccontextmanager
async def answering(handler: Handler) -> AsyncIterator[int]:
    """Runs a server that treats every connection with `handler`; yields its port."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def answer_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)
    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")


async def answer_only_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    if await reader.read(3) == b"GET":
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")


async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"220 mail.example ready\r\n")


async def refuse(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(encode(Failed(0, "RendezvousStateError", "a token is needed")))


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)


@pytest.mark.parametrize(
    ("handler", "expected"),
    [
        (answer_http, ProbeResult(Kind.HTTP)),
        (answer_only_http, ProbeResult(Kind.HTTP)),
        (greet, ProbeResult(Kind.OTHER, "it said b'220 mail.example'")),
        (refuse, ProbeResult(Kind.REFUSED, "a token is needed")),
        (hang_up, ProbeResult(Kind.SILENT)),
    ],
)
async def test_whoever_answers_is_told_by_what_they_say(
    handler: Handler, expected: ProbeResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_tcp, "PROBE_TIMEOUT", 60.0)
    async with answering(handler) as port:
        assert await probe("127.0.0.1", port) == expected


async def test_somebody_who_says_nothing_does_not_hold_up_the_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_tcp, "PROBE_TIMEOUT", 0.02)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        check = await check_server("127.0.0.1", listener.getsockname()[1])
    assert (check.level, check.found) == (Level.FAILED, "somebody who says nothing")


async def test_a_server_that_ends_in_between_fails(free_port: int) -> None:
    check = await check_server("127.0.0.1", free_port)
    assert (check.level, "it has stopped to answer" in check.found) == (Level.FAILED, True)


def test_the_port_check_tells_who_accepts_connections_and_what_to_do_if_nobody_does(free_port: int) -> None:
    some = check_port(PortReach(1, {"10.0.0.1": "", "10.0.0.2": "refused"}))
    assert (some.level, some.found) == (Level.WARNING, "10.0.0.2:1: refused")
    nobody = check_port(PortReach(1, {"192.0.2.1": "refused"}))
    assert (nobody.level, "start 'arendezvous serve' there" in nobody.advice) == (Level.FAILED, True)
    ours = check_port(PortReach(free_port, {"127.0.0.1": "refused"}))
    assert ours.level is Level.OK
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        held = check_port(PortReach(holder.getsockname()[1], {"127.0.0.1": "refused"}))
    assert (held.level, held.found.endswith("it is in use")) == (Level.FAILED, True)


def test_the_host_check_tells_whose_server_it_would_be(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_host(PortReach(1, {"127.0.0.1": "", "::1": "refused"})).level is Level.WARNING
    assert "never host" in check_host(PortReach(1, {"192.0.2.1": ""})).found
    monkeypatch.setattr(doctor_tcp, "why_not_bindable", lambda address, port: None)
    ours = check_host(PortReach(1, {"192.0.2.1": "refused"}))
    assert (ours.level, ours.found.endswith("hosts the server")) == (Level.OK, True)
    assert "should that server end" in check_host(PortReach(1, {"192.0.2.1": ""})).found


def test_few_open_files_are_warned_about() -> None:
    assert judge_open_files(256, 1024).level is Level.WARNING
    assert judge_open_files(1024, 65536).level is Level.OK

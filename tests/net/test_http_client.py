"""The HTTP client: what it bears of a server, what it never does by itself, and what went wrong in words."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import arendezvous as ar
from arendezvous.net import http_client
from arendezvous.net.credentials import Credentials
from arendezvous.net.http_client import HttpClient, UnansweredError
from arendezvous.net.proxies import proxy_of
from arendezvous.wire.http.answers import HttpAnswer
from arendezvous.wire.native.messages import VERSION
from tests.kit.http_kit import Script, ours, scripted
from tests.kit.tls_kit import TOKEN, Pki, make_pki

CHUNKED = "Transfer-Encoding: chunked"
EVENTS = "Content-Type: text/event-stream"


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return make_pki(tmp_path_factory.mktemp("pki"))


async def answer_to(
    script: Script, method: str = "GET", credentials: Credentials | None = None
) -> HttpAnswer:
    """Asks a scripted server once."""
    client = HttpClient(script.url, credentials or Credentials())
    try:
        async with asyncio.timeout(120):
            return await client.request(method, "/path", limit=60)
    finally:
        await client.close()


async def trouble(script: Script, method: str = "GET") -> UnansweredError:
    """Asks a scripted server once, which must be of no use."""
    with pytest.raises(UnansweredError) as caught:
        await answer_to(script, method)
    return caught.value


async def test_what_is_shown_to_a_server_is_the_token_and_little_else() -> None:
    async with scripted(ours(body=b"hello")) as script:
        answer = await answer_to(script, credentials=Credentials(token=TOKEN))
    assert (answer.status, answer.server, answer.body) == (200, "it", b"hello")
    lines = script.heads[0].decode().split("\r\n")
    assert lines[0] == "GET /path HTTP/1.1"
    assert sorted(filter(None, lines[1:])) == [
        "Accept-Encoding: identity",
        f"Arendezvous-Protocol: {VERSION}",
        f"Authorization: Bearer {TOKEN}",
        f"Host: 127.0.0.1:{script.port}",
        "User-Agent: arendezvous",
    ]


# What a server may not do

LENGTH = ours(body=b"x" * 2000)
PIECES = ours("200 OK", CHUNKED, body=None) + b"400\r\n%b\r\n" % (b"x" * 1024) * 2 + b"0\r\n\r\n"


@pytest.mark.parametrize("answer", [LENGTH, PIECES], ids=["known", "unknown"])
async def test_an_answer_that_is_too_long_is_not_taken_to_its_end(
    answer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_client, "MAX_ANSWER", 1000)
    async with scripted(answer) as script:
        assert "the answer has more than 1000 bytes" in str(await trouble(script))


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"SSH-2.0-OpenSSH\r\n\r\n", "what comes is not HTTP"),
        (b"HTTP/1.1 2x0 OK\r\n\r\n", "what comes is not HTTP"),
        (ours("200 OK", "Content-Length: -5", body=None), "what comes is not HTTP"),
        (ours("200 OK", "X: " + "y" * 10_000), "what comes is not HTTP"),
        (ours("200 OK", *[f"X{number}: y" for number in range(200)]), "what comes is not HTTP"),
        (ours("200 OK", CHUNKED, body=None) + b"zz\r\n", "what comes is not HTTP"),
        (ours("200 OK", CHUNKED, body=None) + b"1\r\nabc\r\n", "what comes is not HTTP"),
        (ours("200 OK", "Content-Length: 5", body=None) + b"abc", "the answer was broken off"),
        (b"", "the connection was closed instead"),
    ],
)
async def test_what_is_no_answer_is_refused_and_named(answer: bytes, said: str) -> None:
    async with scripted(*filter(None, [answer])) as script:
        error = await trouble(script, "POST")
    assert said in str(error)
    assert error.sent


async def test_a_redirect_is_not_followed() -> None:
    async with (
        scripted() as other,
        scripted(f"HTTP/1.1 307 Go\r\nLocation: {other.url}\r\nContent-Length: 0\r\n\r\n".encode()) as script,
    ):
        error = await trouble(script)
        assert "something answers (status 307) that is no arendezvous server" in str(error)
        assert (error.foreign, other.heads) == (True, [])


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
async def test_a_change_whose_connection_breaks_is_not_sent_again_by_itself(method: str) -> None:
    async with scripted() as script:
        assert (await trouble(script, method)).sent
    assert len(script.heads) == 1


async def test_a_header_field_cannot_smuggle_another_one_in() -> None:
    async with scripted() as script:
        client = HttpClient(script.url)
        with pytest.raises(UnansweredError):
            await client.request("GET", "/", b"", {"Arendezvous-Session": "s\r\nX: y"}, limit=60)
        await client.close()
    assert script.heads == []


async def test_a_cookie_is_not_kept_and_a_body_that_nobody_asked_to_pack_is_not_unpacked() -> None:
    answer = ours("200 OK", "Set-Cookie: a=b", "Content-Encoding: gzip", body=b"no gzip")
    async with scripted(answer, ours()) as script:
        client = HttpClient(script.url)
        assert (await client.request("GET", "/", limit=60)).body == b"no gzip"
        await client.request("GET", "/", limit=60)
        await client.close()
    assert b"Cookie" not in script.heads[1]


async def test_a_server_that_cannot_answer_now_is_not_taken_at_its_word() -> None:
    body = b'{"detail": "too much to do"}'
    async with scripted(
        ours("503 Busy", body=body), b"HTTP/1.1 502 No\r\nContent-Length: 0\r\n\r\n"
    ) as script:
        assert str(await trouble(script)) == "the answer has the status 503: too much to do"
        assert str(await trouble(script)) == "the answer has the status 502"


# What is under way when the client is closed


async def test_what_is_under_way_is_broken_off_when_the_client_is_closed_and_it_can_be_used_again() -> None:
    silent = asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        silent.set()
        with suppress(ConnectionError):
            await reader.read(-1)
        writer.close()

    async with (
        asyncio.timeout(120),
        await asyncio.start_server(say_nothing, "127.0.0.1", 0) as server,
        scripted(ours(body=b"again")) as script,
    ):
        client = HttpClient(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        asking = asyncio.create_task(client.request("GET", "/", limit=600))
        await silent.wait()
        await client.close()
        with pytest.raises(UnansweredError):
            await asking
        client.url = script.url
        assert (await client.request("GET", "/", limit=60)).body == b"again"
        await client.close()
        await client.close()


async def test_the_address_of_this_machine_is_known_while_there_is_a_connection() -> None:
    async with scripted(ours()) as script:
        client = HttpClient(script.url)
        assert client.address == ""
        await client.request("GET", "/", limit=60)
        assert client.address == "127.0.0.1"
        await client.close()
        assert client.address == ""


# Streams


async def opened(script: Script) -> tuple[HttpClient, Any]:
    """A stream from a scripted server, and its client."""
    client = HttpClient(script.url)
    source = await client.stream("GET", "/", limit=60)
    assert not isinstance(source, HttpAnswer)
    return client, source


@pytest.mark.parametrize(
    ("events", "said"),
    [
        (b": nothing more", "the server said nothing for 0.5 s"),
        (b"data: " + b"x" * 2000, "an event of more than 1000 bytes"),
    ],
)
async def test_a_stream_is_over_when_it_is_silent_or_has_no_end(
    events: bytes, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_client, "SILENCE", 0.5)
    monkeypatch.setattr(http_client, "MAX_EVENT", 1000)
    async with (
        asyncio.timeout(120),
        scripted(ours("200 OK", EVENTS, body=None) + events, hold=True) as script,
    ):
        client, source = await opened(script)
        with pytest.raises(UnansweredError, match=said):
            await anext(source)
        source.close()
        await client.close()


async def test_whoever_waits_for_an_event_is_told_when_the_stream_ends_or_is_closed() -> None:
    head = ours("200 OK", EVENTS, CHUNKED, body=None)
    one = head + b"9\r\ndata: x\n\n\r\n0\r\n\r\n"
    async with asyncio.timeout(120), scripted(one, head, hold=True) as script:
        client, source = await opened(script)
        assert [event.data for event in [await anext(source)]] == [b"x"]
        with pytest.raises(UnansweredError, match="the server ended the stream"):
            await anext(source)
        source.close()
        other, second = await opened(script)
        waiting = asyncio.create_task(anext(second))
        await asyncio.sleep(0)
        second.close()
        second.close()
        with pytest.raises(UnansweredError):
            await waiting
        await client.close()
        await other.close()


async def test_where_there_is_no_stream_the_answer_says_why() -> None:
    async with scripted(
        ours("404 No", body=b'{"type": "urn:x:no-such-run"}'), ours("200 OK", EVENTS)
    ) as script:
        client = HttpClient(script.url)
        answer = await client.stream("GET", "/", limit=60)
        assert isinstance(answer, HttpAnswer)
        assert (answer.status, answer.kind) == (404, "no-such-run")
        await client.close()
    assert b"Accept: text/event-stream\r\n" in script.heads[0]


# TLS and proxies


async def test_a_certificate_that_is_replaced_counts_for_the_next_connection(
    pki: Pki, tmp_path: Path
) -> None:
    ca, cert, key = (str(tmp_path / name) for name in ("ca.pem", "cert.pem", "key.pem"))
    shutil.copy(pki.foreign_ca, ca)
    shutil.copy(pki.foreign_cert, cert)
    shutil.copy(pki.foreign_key, key)
    serving = ar.serve("127.0.0.1:0", http="127.0.0.1:0", tls=pki.server(mutual=True))
    async with asyncio.timeout(120), serving as server:
        client = HttpClient(str(server.http_url), Credentials(ca=ca, cert=cert, key=key))
        with pytest.raises(UnansweredError, match="the certificate there is not trusted") as caught:
            await client.request("GET", "/v1/runs", limit=60)
        assert caught.value.distrusted
        shutil.copy(pki.ca, ca)
        with pytest.raises(UnansweredError):
            await client.request("GET", "/v1/runs", limit=60)
        shutil.copy(pki.cert, cert)
        shutil.copy(pki.key, key)
        assert (await client.request("GET", "/v1/runs", limit=60)).is_good
        await client.close()


async def test_tls_goes_through_a_proxy_from_end_to_end(pki: Pki) -> None:
    asked: list[bytes] = []

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def tunnel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        host, port = asked[-1].split()[1].decode().split(":")
        there = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
        await asyncio.gather(pass_on(reader, there[1]), pass_on(there[0], writer))

    serving = ar.serve("127.0.0.1:0", http="127.0.0.1:0", tls=pki.server())
    async with (
        asyncio.timeout(120),
        serving as server,
        await asyncio.start_server(tunnel, "127.0.0.1", 0) as proxy,
    ):
        way = f"http://me:secret@127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
        client = HttpClient(str(server.http_url), pki.client(token=TOKEN), proxy=way)
        for _ in range(2):
            assert (await client.request("GET", "/v1/runs", limit=60)).is_good
        await client.close()
    assert len(asked) == 1
    assert b"Proxy-Authorization: Basic bWU6c2VjcmV0\r\n" in asked[0]
    assert TOKEN.encode() not in asked[0]


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1", "http://", "https://host:1"])
def test_a_proxy_that_is_none_is_refused_without_showing_its_user(proxy: str) -> None:
    shown = proxy.replace("://", "://me:secret@")
    with pytest.raises(ar.RendezvousSettingsError, match=r"proxy is .*http://host:3128") as caught:
        HttpClient("http://127.0.0.1", proxy=shown)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("no_proxy", "host", "is_asked"),
    [
        ("", "10.1.2.3", True),
        ("10.0.0.0/8", "10.1.2.3", False),
        ("example.com, 10.1.2.9/24 ,x", "10.1.2.3", False),
        ("10.0.0.0/8", "11.1.2.3", True),
        ("fd00::/8", "[fd12::1]", False),
        ("fd00::/8", "10.1.2.3", True),
        ("0.0.0.0/0", "server.invalid", True),
        ("10.0.0.0/99,nonsense/8", "10.1.2.3", True),
        (".invalid", "server.invalid", False),
        ("server.invalid:29401", "server.invalid", False),
        ("server.invalid:80", "server.invalid", True),
        ("*", "10.1.2.3", False),
    ],
)
def test_no_proxy_names_hosts_domains_and_networks(
    monkeypatch: pytest.MonkeyPatch, no_proxy: str, host: str, is_asked: bool
) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy.invalid:3128")
    monkeypatch.setenv("no_proxy", no_proxy)
    assert bool(proxy_of(f"http://{host}:29401")) is is_asked


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n", "has the status 503"),
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", r"\(status 403\) is no arendezvous server"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", r"\(status 200\) that is no arendezvous server"),
        (b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n", "asks who we are"),
    ],
)
async def test_an_error_says_which_proxy_was_asked_without_its_password(answer: bytes, said: str) -> None:
    async with scripted(answer) as script:
        way = f"http://me:secret@127.0.0.1:{script.port}"
        client = HttpClient("http://server.invalid:29401", proxy=way)
        with pytest.raises(UnansweredError, match=said) as caught:
            await client.request("GET", "/path", limit=60)
        await client.close()
    assert str(caught.value).endswith(f"the way there is by the proxy http://127.0.0.1:{script.port}")


async def test_a_proxy_that_lets_nobody_through_is_told_of_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async with scripted(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n") as script:
        monkeypatch.setenv("http_proxy", f"http://me:secret@127.0.0.1:{script.port}")
        monkeypatch.setenv("no_proxy", "")
        node = ar.open_rendezvous("http://server.invalid:29401", run_id="job", nnodes="1", read_timeout=600)
        async with asyncio.timeout(120):
            with pytest.raises(ar.RendezvousConnectionError, match=r"lets nobody through; .* by the proxy"):
                await node.__aenter__()


async def test_a_request_that_its_asker_gives_up_after_long_goes_to_another_server_the_next_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A heartbeat is given up before it is known to be unanswered, and the leader's machine may be dead."""
    monkeypatch.setattr(http_client, "SLOW", 0.0)
    silent = asyncio.Event()

    def hold(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        silent.set()

    writers: list[asyncio.StreamWriter] = []
    async with await asyncio.start_server(hold, "127.0.0.1", 0) as server, scripted(ours(body=b"a")) as other:
        dead = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        client = HttpClient(dead, others=[other.url])
        asking = asyncio.create_task(client.request("POST", "/path", limit=60))
        async with asyncio.timeout(60):
            await silent.wait()
            asking.cancel()
            await asyncio.wait([asking])
            assert (await client.request("POST", "/path", limit=60)).body == b"a"
            await client.close()
        for writer in writers:
            writer.close()

"""No HTTP client, whatever it asks for and does not read, stops or fills the server for the others."""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import msgspec
import pytest

import arendezvous as ar
from arendezvous.errors import StoreFullError
from arendezvous.keyspace.grants import Grant, Scope
from arendezvous.keyspace.regions import KeyspaceLimits
from arendezvous.keyspace.values import LongValue
from arendezvous.law.operations import Close, Reopen
from arendezvous.net.credentials import Credentials
from arendezvous.server.access import authority
from arendezvous.server.access.authority import Authority
from arendezvous.server.http.access import Requester
from arendezvous.server.http.bodies import MAX_FORM, MAX_KEYS
from arendezvous.server.http.repeats import Outcome, Repeats
from arendezvous.stores.http.store import HttpStore
from arendezvous.stores.tcp.store import TcpStore
from tests.kit.http_kit import following
from tests.kit.listener_kit import Client, client_of, http_server, raw
from tests.kit.tls_kit import TOKEN
from tests.kit.waiting import until

OTHER = "another-token-0123456789abcdef"
READER = "a-token-for-looking-0123456789"
JSON = "application/json"
MIB = 1024 * 1024
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def json(**members: Any) -> bytes:
    """A body of JSON."""
    return msgspec.json.encode(members)


def put_of(length: int, token: str = "", more: str = "") -> bytes:
    """The head of a request to set a value."""
    bearer = f"Authorization: Bearer {token}\r\n" if token else ""
    return f"PUT /v1/kv/k HTTP/1.1\r\nHost: x\r\n{bearer}{more}Content-Length: {length}\r\n\r\n".encode()


@asynccontextmanager
async def guarded(**limits: Any) -> AsyncIterator[Client]:
    """A server with tokens, and a client of it that shows none."""
    tokens = [(TOKEN, Grant(Scope.SERVER)), (OTHER, Grant(Scope.SERVER)), (READER, Grant(Scope.READ))]
    serving = ar.serve(
        "127.0.0.1:0",
        http="127.0.0.1:0",
        authority=Authority(tokens),
        limits=ar.ServerLimits(**limits),
    )
    async with serving as server, client_of(str(server.http_url)) as client:
        yield client


def port_of(client: Client) -> int:
    return int(client.url.rpartition(":")[2])


# A store that is full


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PUT", "/v1/kv/new", b"x" * 20_000),
        ("POST", "/v1/kv/new?op=append", b"x" * 20_000),
        ("POST", "/v1/kv/there?op=append", b"x" * 20_000),
        (
            "POST",
            "/v1/kv/new?op=compare-set",
            msgspec.json.encode({"expected": b"", "desired": b"x" * 20_000}),
        ),
        ("POST", "/v1/kv?op=multi-set", json(items=[["new", b"x" * 20_000]])),
        ("POST", "/v1/queues/q?op=push", b"x" * 20_000),
        ("POST", f"/v1/kv/{'new' * 2500}?op=add", b"1"),
        ("POST", f"/v1/kv/{'new' * 2500}?op=barrier&world_size=2", b""),
        ("POST", "/v1/kv?op=multi-set", json(items=[[f"k{n}", b"x"] for n in range(2000)])),
        ("POST", "/v1/kv?op=check&wait=60", json(keys=[f"k{n}" for n in range(20)])),
        ("POST", "/v1/kv?op=multi-get&wait=60", json(keys=[f"k{n}" for n in range(20)])),
    ],
)
async def test_what_a_full_store_cannot_take_is_a_507_that_says_so_and_changes_nothing(
    method: str, path: str, body: bytes
) -> None:
    async with http_server(store=KeyspaceLimits(max_bytes=10_000)) as serving:
        ask = serving.client
        assert (await ask.put("/v1/kv/there", b"1")).status == 201
        assert (await ask.post("/v1/queues/there?op=push", b"x" * 2000)).status == 204
        before = serving.listener.context.keys.keyspace.size
        full = await ask.ask(method, path, body, Content_Type=JSON)
        assert (full.status, full.kind) == (507, "store-full")
        assert (full.json["error"], full.json["data"]) == ("StoreFullError", {"limit": 10_000})
        assert "10000 bytes" in full.json["detail"]
        await until(lambda: serving.listener.context.keys.keyspace.size == before)
        assert (await ask.get("/v1/kv/there")).body == b"1"


async def test_a_client_of_the_store_is_told_which_limit_would_be_passed() -> None:
    async with (
        ar.serve(
            "127.0.0.1:0", http="127.0.0.1:0", limits=ar.ServerLimits(store=KeyspaceLimits(max_bytes=10_000))
        ) as server,
        HttpStore(str(server.http_url)) as store,
    ):
        with pytest.raises(StoreFullError, match="would take more than the 10000 bytes") as caught:
            await store.set("k", b"x" * 20_000)
        assert caught.value.limit == 10_000


async def test_a_value_that_grows_over_the_limit_is_a_507_too() -> None:
    async with http_server(store=KeyspaceLimits(max_value=1000)) as serving:
        ask = serving.client
        assert (await ask.put("/v1/kv/k", b"x" * 900)).status == 201
        full = await ask.post("/v1/kv/k?op=append", b"x" * 900)
        assert (full.status, full.kind) == (507, "store-full")
        assert (await ask.get("/v1/kv/k")).body == b"x" * 900


# Bodies


@pytest.mark.parametrize(
    "path",
    [
        "/v1/kv/k?op=append",
        "/v1/kv/k?op=add",
        "/v1/kv/k?op=compare-set",
        "/v1/kv?op=multi-set",
        "/v1/queues/q?op=push",
    ],
)
async def test_who_may_only_look_is_refused_before_its_body_has_come(path: str) -> None:
    async with guarded() as client, raw(port_of(client)) as reader:
        head = put_of(64 * MIB, READER).replace(b"PUT /v1/kv/k ", f"POST {path} ".encode())
        reader.send(head + b"x" * 100)
        refused = await reader.reply()
        assert (refused.status, refused.kind) == (403, "forbidden")


async def test_bodies_of_who_may_only_look_keep_nobody_from_writing() -> None:
    async with guarded(max_bodies=1000) as client, AsyncExitStack() as stack:
        for _ in range(4):
            reader = await stack.enter_async_context(raw(port_of(client)))
            reader.send(put_of(900, READER) + b"x" * 800)
            assert (await reader.reply()).status == 403
        stored = await client.put("/v1/kv/k", b"y" * 900, Authorization=f"Bearer {TOKEN}")
        assert stored.status == 201


async def test_a_body_is_asked_for_once_it_is_known_that_it_may_come() -> None:
    expect = "Expect: 100-continue\r\n"
    async with guarded() as client, raw(port_of(client)) as good, raw(port_of(client)) as bad:
        bad.send(put_of(3, READER, expect))
        assert (await bad.reply()).status == 403
        good.send(put_of(3, TOKEN, expect))
        assert await good.reader.readexactly(len(CONTINUE)) == CONTINUE
        good.send(b"abc")
        assert (await good.reply()).status == 201


async def test_one_client_that_does_not_end_its_bodies_makes_room_for_another() -> None:
    async with guarded(max_bodies=1000) as client, raw(port_of(client)) as slow:
        slow.send(put_of(900, OTHER) + b"x" * 800)
        await until_taken(client, 800)
        stored = await client.put("/v1/kv/k", b"y" * 300, Authorization=f"Bearer {TOKEN}")
        assert stored.status == 201
        assert await slow.rest() == b"", "the one with the most is dropped"


async def test_one_client_has_no_more_than_its_share_for_its_bodies() -> None:
    async with guarded(max_client_bodies=1000) as client, raw(port_of(client)) as slow:
        slow.send(put_of(900, OTHER) + b"x" * 800)
        await until_taken(client, 800)
        refused = await client.put("/v1/kv/other", b"y" * 300, Authorization=f"Bearer {OTHER}")
        assert (refused.status, refused.kind, refused.headers["Retry-After"]) == (503, "busy", "1")
        stored = await client.put("/v1/kv/k", b"y" * 300, Authorization=f"Bearer {TOKEN}")
        assert stored.status == 201


async def until_taken(client: Client, size: int) -> None:
    """Waits until so many bytes have come at the server, by its own figures."""

    async def received() -> int:
        text = (await client.get("/metrics", Authorization=f"Bearer {TOKEN}")).body.decode()
        line = next(line for line in text.splitlines() if 'received_bytes_total{protocol="http"}' in line)
        return int(float(line.split()[1]))

    with anyio.fail_after(60):
        while await received() < size:
            pass


async def test_strings_in_json_are_counted_before_any_of_them_is_made() -> None:
    body = b'{"keys": [' + b'"a",' * (2 * MAX_KEYS + 100)  # which is no JSON, as the decoder would find
    async with http_server() as serving:
        refused = await serving.client.post("/v1/kv?op=check", body, Content_Type=JSON)
        assert (refused.status, refused.kind) == (400, "bad-body")
        assert f"at most {MAX_KEYS} keys" in refused.json["detail"]


async def test_the_most_keys_of_one_request_are_set_checked_and_read() -> None:
    keys = [f"k{number}" for number in range(MAX_KEYS)]
    async with http_server() as serving:
        ask = serving.client
        items = msgspec.json.encode({"items": [(key, key.encode()) for key in keys]})
        assert (await ask.post("/v1/kv?op=multi-set", items, Content_Type=JSON)).status == 204
        named = json(keys=keys)
        there = await ask.post("/v1/kv?op=check&wait=60", named, Content_Type=JSON)
        assert there.json == {"ready": True, "missing": []}
        read = await ask.post("/v1/kv?op=multi-get", named, Content_Type=JSON)
        values = [base64.b64decode(value).decode() for value in read.json["values"]]
        assert (values == keys, read.json["ready"]) == (True, True)


async def test_a_form_that_is_too_long_to_decode_at_once_is_refused() -> None:
    async with http_server() as serving:
        refused = await serving.client.form("/v1/kv?op=multi-set", "a=" + "%41" * (MAX_FORM // 3 + 1))
        assert (refused.status, refused.kind) == (413, "too-long")


# Heads, and what comes ahead


async def test_heads_that_do_not_end_are_kept_up_to_a_limit_for_one_address(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with http_server(max_greetings=100_000) as serving, AsyncExitStack() as stack:
        for _ in range(10):
            connection = await stack.enter_async_context(raw(serving.port))
            connection.send(
                b"GET / HTTP/1.1\r\nHost: x\r\n" + b"".join(b"A: %b\r\n" % (b"a" * 7000) for _ in range(3))
            )
        await until(lambda: "too many requests whose heads are not complete" in caplog.text)
        await until(lambda: len(serving.listener.connections) == 4)
        assert (await serving.client.put("/v1/kv/k", b"1")).status == 201


async def test_what_comes_behind_a_request_that_is_not_answered_yet_is_kept_up_to_a_limit(
    caplog: pytest.LogCaptureFixture,
) -> None:
    get = b"GET /v1/kv/none?wait=60 HTTP/1.1\r\nHost: x\r\n\r\n"
    async with http_server(max_unfinished=MIB) as serving, AsyncExitStack() as stack:
        for _ in range(8):
            connection = await stack.enter_async_context(raw(serving.port))
            connection.send(get)
            await until(lambda: serving.waits)
            connection.send(put_of(10 * MIB) + b"x" * (10 * MIB))
        await until(lambda: "of a request without its end" in caplog.text)
        assert (await serving.client.put("/v1/kv/k", b"1" * (10 * MIB))).status == 201


# Long values and long lists


@pytest.fixture
def uncopied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has it fail to copy a value that was appended to."""
    monkeypatch.delattr(LongValue, "whole")


@pytest.mark.usefixtures("uncopied")
@pytest.mark.parametrize("size", [64 * 1024 + 1, 1_000_001])
async def test_a_long_value_that_was_appended_to_is_sent_whole_and_never_copied(size: int) -> None:
    value = bytes(number % 251 for number in range(size))
    async with http_server() as serving:
        ask = serving.client
        for start in range(0, size, 100_000):
            assert (await ask.post("/v1/kv/k?op=append", value[start : start + 100_000])).status == 204
        assert (await ask.get("/v1/kv/k")).body == value
        head = await ask.ask("HEAD", "/v1/kv/k")
        assert (head.headers["Content-Length"], head.headers["ETag"]) == (str(size), head.etag)
        news = await ask.get("/v1/kv/k?wait=60", If_None_Match='"0-x"')
        assert news.body == value
        named = json(keys=["k", "none", "k"])
        many = await ask.post("/v1/kv?op=multi-get", named, Content_Type=JSON)
        shown = base64.b64encode(value).decode()
        assert many.json == {"values": [shown, None, shown], "ready": False}
        pair = msgspec.json.encode({"expected": b"x", "desired": b"y"})
        differs = await ask.post("/v1/kv/k?op=compare-set", pair, Content_Type=JSON)
        assert (differs.status, differs.kind, differs.json["present"]) == (412, "compare-failed", shown)


async def test_long_keys_are_listed_a_page_at_a_time() -> None:
    keys = sorted(f"{number:03}" + "%" * 8000 for number in range(100))
    async with http_server() as serving:
        ask = serving.client
        for key in keys:
            await ask.put(f"/v1/kv/{key.replace('%', '%25')}", b"")
        pages = [(await ask.get("/v1/kv?limit=1000")).json]
        while (after := pages[-1]["next"]) is not None:
            pages.append((await ask.get(f"/v1/kv?limit=1000&after={after}")).json)
        found = [key for page in pages for key in page["keys"]]
        assert found == [key.replace("%", "%25") for key in keys]
        assert [page["total"] for page in pages] == [100, 100, 100]


async def test_an_answer_that_nobody_reads_is_dropped_when_there_are_too_many(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with http_server(max_unread=40 * 1024) as serving, raw(serving.port) as unread:
        await serving.client.put("/v1/kv/k", b"x" * (20 * MIB))
        unread.send(b"GET /v1/kv/k HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(lambda: "of answers unread; all connections together may leave 40960" in caplog.text)
        await until(lambda: len(serving.listener.connections) == 1)
        assert (await serving.client.ask("HEAD", "/v1/kv/k")).status == 200


async def test_an_event_stream_that_nobody_reads_is_dropped_after_a_while(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with http_server(write_timeout=0.1) as serving, raw(serving.port) as unread:
        unread.send(b"GET /v1/runs/job/events HTTP/1.1\r\nHost: x\r\n\r\n")
        coordinator = serving.server.coordinator

        def turn() -> bool:
            coordinator.steer("job", Close("me", "x" * 200))
            coordinator.steer("job", Reopen(coordinator.runs["job"].state.incarnation, "me"))
            return "of answers unread for 0.1 s" in caplog.text

        await until(turn)


async def test_requests_that_come_at_once_are_answered_by_turns_and_in_order() -> None:
    async with http_server() as serving, raw(serving.port) as many, raw(serving.port) as one:
        for number in range(200):
            await serving.client.put(f"/v1/kv/{number}", str(number))
        order: list[str] = []

        async def read(connection: Any, count: int, name: str) -> None:
            for number in range(count):
                assert (await connection.reply()).body == str(number).encode()
                order.append(name)

        many.send(b"".join(b"GET /v1/kv/%d HTTP/1.1\r\nHost: x\r\n\r\n" % number for number in range(200)))
        one.send(b"GET /v1/kv/0 HTTP/1.1\r\nHost: x\r\n\r\n")
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(read(many, 200, "many"))
            tasks.create_task(read(one, 1, "one"))
        assert order.index("one") < 100


# What came of requests


@pytest.mark.virtual
async def test_one_client_pushes_out_what_came_of_its_own_requests_alone() -> None:
    by_count, by_bytes = Repeats(max_count=100), Repeats(max_bytes=100_000)
    honest, hostile = Requester(b"a", "10.0.0.1"), Requester(b"b", "10.0.0.1")
    by_count.keep((b"a", "mine"), b"", Outcome(204), honest)
    by_bytes.keep((b"a", "mine"), b"", Outcome(200, b"x" * 1000), honest)
    for number in range(1000):
        by_count.keep((b"b", str(number)), b"", Outcome(204), hostile)
        by_bytes.keep((b"b", str(number)), b"", Outcome(200, b"x" * 5000), hostile)
    assert len(by_count) <= 100
    for kept in (by_count, by_bytes):
        assert kept.end((b"a", "mine"), b"", Outcome(204), honest) is not None


async def test_tokens_of_the_same_scope_share_no_idempotency_keys() -> None:
    async with guarded() as client:
        for token, total in ((TOKEN, "1"), (OTHER, "2"), (TOKEN, "1"), (OTHER, "2")):
            added = await client.post(
                "/v1/kv/n?op=add", "1", Authorization=f"Bearer {token}", Idempotency_Key="the same"
            )
            assert added.body.decode() == total


# Tokens and logs


async def test_a_token_that_is_withdrawn_ends_what_its_bearer_has_open_without_being_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(authority, "FRESH_INTERVAL", 0.01)
    monkeypatch.setattr(authority, "LOOK_INTERVAL", 0.0)
    file = tmp_path / "tokens"
    file.write_text(f"{TOKEN}\n{OTHER}\n")
    file.chmod(0o600)
    tokens = Authority.from_file(file)
    bearer = {"Authorization": f"Bearer {OTHER}"}
    async with (
        ar.serve("127.0.0.1:0", http="127.0.0.1:0", authority=tokens) as server,
        client_of(str(server.http_url)) as client,
        TcpStore(server.host, server.port, credentials=Credentials(token=OTHER)) as store,
        following(client.session, f"{client.url}/v1/events", bearer) as events,
    ):
        await events.next()
        waiting = asyncio.create_task(store.wait(["none"], timeout=60))
        file.write_text(f"{TOKEN}\n# without the other one\n")
        with anyio.fail_after(60):
            with pytest.raises(aiohttp.ClientPayloadError):
                await events.next()
            with pytest.raises(ar.RendezvousPermissionError):
                await waiting


async def test_what_is_refused_and_dropped_again_and_again_does_not_fill_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    async with http_server(handshake_timeout=0.05) as serving, AsyncExitStack() as stack:
        for _ in range(60):
            connection = await stack.enter_async_context(raw(serving.port))
            connection.send(b"GET /v1/kv/secret HTTP/1.1\r\n")
        await until(lambda: not serving.listener.connections)
    lines = [record.getMessage() for record in caplog.records if "dropped" in record.getMessage()]
    assert 20 <= len(lines) <= 30
    assert "secret" not in caplog.text

"""The key-value store as resources of HTTP: what curl users, proxies and torch's clients can count on."""

from __future__ import annotations

import asyncio
import base64
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Awaitable, Callable
from urllib.parse import urlencode

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

import arendezvous as ar
from arendezvous.keyspace.host import Caller
from arendezvous.keyspace.messages import Changed, Watch
from arendezvous.keyspace.regions import KeyspaceLimits
from arendezvous.server.http.access import Requester
from arendezvous.server.http.repeats import Outcome, Repeats
from arendezvous.stores.tcp.store import TcpStore
from arendezvous.wire.http.names import parse_pairs, quote_key, unquote
from tests.kit import ROOT
from tests.kit.listener_kit import Client, Reply, client_of, http_server, raw
from tests.kit.torch_process import run_torch
from tests.kit.waiting import until

ODD_KEYS = [
    b"",
    b"a",
    b"a/b",
    b"/",
    b"//a",
    b"a//",
    b"a/../b",
    b"..",
    b".",
    b"a b+c%2F?#&=",
    b"\n",
    b"\x00\xff",
    "ä€".encode(),
    b"k" * 8191,
]


async def both(first: Callable[[], Awaitable[Reply]], then: Callable[[], Awaitable[object]]) -> Reply:
    """Runs `then` while the request of `first` is under way, and returns the latter's answer."""
    replies: list[Reply] = []

    async def run() -> None:
        replies.append(await first())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        await then()
    return replies[0]


# Values


async def test_a_value_is_put_read_and_deleted() -> None:
    async with http_server() as serving:
        ask = serving.client
        assert (await ask.get("/v1/kv/k")).kind == "no-such-key"
        created = await ask.put("/v1/kv/k", b"\x00one\xff")
        replaced = await ask.put("/v1/kv/k", b"two")
        assert (created.status, replaced.status) == (201, 204)
        assert created.etag != replaced.etag
        read = await ask.get("/v1/kv/k")
        assert (read.status, read.body, read.etag) == (200, b"two", replaced.etag)
        assert read.headers["Content-Type"] == "application/octet-stream"
        head = await ask.ask("HEAD", "/v1/kv/k")
        assert (head.status, head.headers["Content-Length"], head.etag) == (200, "3", read.etag)
        assert [(await ask.delete("/v1/kv/k")).status, (await ask.delete("/v1/kv/k")).status] == [204, 404]


@pytest.mark.parametrize("value", [b"", b"x" * 65_537, bytes(range(256)) * 20_000])
async def test_a_value_of_any_length_comes_back_whole(value: bytes) -> None:
    async with http_server() as serving:
        await serving.client.put("/v1/kv/k", value)
        read = await serving.client.get("/v1/kv/k")
        head = await serving.client.ask("HEAD", "/v1/kv/k")
        assert read.body == value
        assert (head.headers["Content-Length"], head.body) == (str(len(value)), b"")


@pytest.mark.parametrize("key", ODD_KEYS)
async def test_a_key_may_be_any_bytes_and_is_the_one_that_tcp_clients_see(key: bytes) -> None:
    async with http_server() as serving, TcpStore("127.0.0.1", serving.server.port) as store:
        path = f"/v1/kv/{quote_key(key)}"
        assert (await serving.client.put(path, b"v")).status == 201
        name = key.decode("utf-8", "surrogateescape")
        assert await store.list_keys() == [name]
        assert await store.get(name) == b"v"
        assert (await serving.client.get("/v1/kv")).json["keys"] == [quote_key(key)]


@pytest.mark.parametrize(
    ("path", "key"), [("/a%2fb", "a/b"), ("/a/b", "a/b"), ("/../x", "../x"), ("/%61", "a"), ("/+", "+")]
)
async def test_a_key_is_understood_however_it_is_encoded(path: str, key: str) -> None:
    async with http_server() as serving, TcpStore("127.0.0.1", serving.server.port) as store:
        await store.set(key, b"v")
        assert (await serving.client.get(f"/v1/kv{path}")).body == b"v"


@given(key=st.binary(max_size=40))
def test_a_quoted_key_is_unquoted_to_itself_and_has_nothing_that_a_proxy_would_take_out(key: bytes) -> None:
    quoted = quote_key(key)
    assert unquote(quoted.encode()) == key
    assert quoted.isascii()
    assert not {"", ".", ".."} & set(quoted.split("/")[1:])


@given(pairs=st.lists(st.tuples(st.binary(max_size=9), st.binary(max_size=9)), min_size=1, max_size=5))
def test_a_form_is_read_as_it_was_written(pairs: list[tuple[bytes, bytes]]) -> None:

    assert parse_pairs(urlencode(pairs).encode(), len(pairs)) == pairs


async def test_torch_and_http_clients_share_their_keys() -> None:
    script = """
import sys
from datetime import timedelta
from torch.distributed import TCPStore
store = TCPStore("127.0.0.1", int(sys.argv[1]), is_master=False, wait_for_workers=False,
                 timeout=timedelta(seconds=60))
print(store.get("from http").decode(), store.add("n", 2), flush=True)
store.set("from torch", "hello")
"""
    async with http_server() as serving:
        ask = serving.client
        await ask.put("/v1/kv/from%20http", "greetings")
        await ask.post("/v1/kv/n?op=add", "40")
        printed: list[str] = []

        async def torch() -> None:
            printed.append(await run_torch(script, serving.server.port))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(torch)
            with anyio.fail_after(120):
                while (waited := await ask.get("/v1/kv/from%20torch?wait=20")).status == 404:
                    continue
        assert waited.body == b"hello"
        assert printed == ["greetings 42\n"]


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
async def test_curl_shows_what_the_page_says() -> None:
    page = (ROOT / "docs" / "reference" / "http.md").read_text().partition("## A rendezvous")[0]
    blocks = re.findall(r"^```console\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    script, expected = [], []
    for line in "".join(blocks).splitlines():
        if line.startswith("$ "):
            shown = line.replace("URL=http://127.0.0.1:29401", "URL=$URL")
            script += [f"echo {shlex.quote(line)}", shown[2:]]
        expected.append(line)
    async with http_server() as serving:
        process = await asyncio.create_subprocess_exec(
            "bash",
            "-c",
            "\n".join(script),
            stdout=subprocess.PIPE,
            env={**os.environ, "URL": serving.client.url, "no_proxy": "*"},
        )
        with anyio.fail_after(120):
            out, _ = await process.communicate()
    assert (len(expected) > 40, out.decode().splitlines()) == (True, expected)


# Conditions


async def test_a_tag_is_a_compare_and_set() -> None:
    async with http_server() as serving:
        ask = serving.client
        first = await ask.put("/v1/kv/k", "1", If_None_Match="*")
        again = await ask.put("/v1/kv/k", "2", If_None_Match="*")
        assert (first.status, again.status, again.kind, again.etag) == (
            201,
            412,
            "condition-failed",
            first.etag,
        )
        second = await ask.put("/v1/kv/k", "2", If_Match=f'"other", {first.etag}')
        stale = await ask.put("/v1/kv/k", "3", If_Match=first.etag)
        assert (second.status, stale.status, stale.etag) == (204, 412, second.etag)
        assert (await ask.delete("/v1/kv/k", If_Match=first.etag)).status == 412
        assert (await ask.post("/v1/kv/k?op=append", "x", If_Match=first.etag)).status == 412
        assert (await ask.get("/v1/kv/k")).body == b"2"
        assert (await ask.delete("/v1/kv/k", If_Match=second.etag)).status == 204
        absent = await ask.put("/v1/kv/k", "4", If_Match="*")
        assert (absent.status, "ETag" in absent.headers) == (412, False)


async def test_a_key_that_was_deleted_and_made_again_has_another_tag() -> None:
    async with http_server() as serving:
        ask = serving.client
        before = await ask.put("/v1/kv/k", "same")
        await ask.delete("/v1/kv/k")
        after = await ask.put("/v1/kv/k", "same")
        assert after.etag != before.etag


async def test_a_tag_of_an_earlier_server_matches_nothing() -> None:
    async with http_server() as one, http_server() as other:
        first = await one.client.put("/v1/kv/k", "v")
        second = await other.client.put("/v1/kv/k", "v")
        assert first.etag != second.etag
        assert (await other.client.put("/v1/kv/k", "w", If_Match=first.etag)).status == 412


async def test_a_weak_tag_is_good_for_reading_alone() -> None:
    async with http_server() as serving:
        tag = (await serving.client.put("/v1/kv/k", "v")).etag
        assert (await serving.client.get("/v1/kv/k", If_None_Match=f"W/{tag}")).status == 304
        assert (await serving.client.put("/v1/kv/k", "w", If_Match=f"W/{tag}")).status == 412
        assert (await serving.client.get("/v1/kv/k", If_Match='"other"')).status == 412


# Waiting


async def test_a_long_poll_returns_when_the_key_is_written() -> None:
    async with http_server() as serving:
        ask = serving.client

        async def write() -> None:
            await until(lambda: serving.waits)
            await ask.put("/v1/kv/k", "v")

        waited = await both(lambda: ask.get("/v1/kv/k?wait=60"), write)
        assert (waited.status, waited.body) == (200, b"v")


async def test_a_long_poll_for_a_change_returns_the_new_value_or_304() -> None:
    async with http_server() as serving, TcpStore("127.0.0.1", serving.server.port) as store:
        ask = serving.client
        tag = (await ask.put("/v1/kv/k", "old")).etag

        async def write() -> None:
            await until(lambda: serving.waits)
            await store.set("k", b"new")

        changed = await both(lambda: ask.get("/v1/kv/k?wait=60", If_None_Match=tag), write)
        assert (changed.status, changed.body) == (200, b"new")
        same = await ask.get("/v1/kv/k?wait=0.01", If_None_Match=changed.etag)
        assert (same.status, same.body, same.etag) == (304, b"", changed.etag)


@pytest.mark.parametrize("how", ["delete", "tidy"])
async def test_a_long_poll_for_a_change_is_told_that_the_key_has_gone(how: str) -> None:
    async with http_server() as serving:
        ask = serving.client
        path = "/v1/kv/arendezvous/run/k"
        tag = (await ask.put(path, "v")).etag

        async def remove() -> None:
            await until(lambda: serving.waits)
            if how == "delete":
                await ask.delete(path)
            else:
                serving.listener.context.keys.delete_run(b"/arendezvous/run/")

        gone = await both(lambda: ask.get(f"{path}?wait=60", If_None_Match=tag), remove)
        assert (gone.status, gone.kind) == (404, "no-such-key")


async def test_deleting_the_keys_of_a_run_tells_those_who_watch_and_leaves_the_rest() -> None:
    async with http_server() as serving:
        host = serving.listener.context.keys
        for key in ("arendezvous/a/1", "arendezvous/a/2", "arendezvous/ab/1", "b"):
            await serving.client.put(f"/v1/kv/{key}", "v")
        watcher, other = Caller(host), Caller(host)
        first = b"/arendezvous/a/1"
        watcher.ask(Watch(first, host.keyspace.revision_of(first)))
        other.ask(Watch(b"/b", host.keyspace.revision_of(b"/b")))
        host.delete_run(b"/arendezvous/a/")
        assert len(host.keyspace) == 2
        assert (await watcher.delivered(), host.keyspace.awaited(other.number)) == (Changed(None, 0), {b"/b"})
        for caller in (watcher, other):
            host.detach(caller.number)


async def test_a_long_poll_ends_with_404_when_its_time_is_over() -> None:
    async with http_server() as serving:
        missing = await serving.client.get("/v1/kv/k?wait=0.01")
        assert (missing.status, missing.kind) == (404, "no-such-key")
        assert serving.waits == 0


@pytest.mark.parametrize(
    "request_line",
    [
        "GET /v1/kv/k?wait=60",
        "POST /v1/queues/q?op=pop&wait=60",
        "POST /v1/kv/b?op=barrier&world_size=2&wait=60",
    ],
)
async def test_a_long_poll_of_a_client_that_has_gone_is_dropped(request_line: str) -> None:
    async with http_server() as serving:
        async with raw(serving.port) as connection:
            connection.send(f"{request_line} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
            await until(lambda: serving.waits)
        await until(lambda: not serving.waits)
        assert serving.listener.context.keys.clients == {}


# Operations


async def test_add_counts_and_append_lengthens() -> None:
    async with http_server() as serving:
        ask = serving.client
        assert [(await ask.post("/v1/kv/n?op=add", text)).json for text in ("5", "-7", "+1")] == [5, -2, -1]
        assert (await ask.get("/v1/kv/n")).body == b"-1"
        await ask.post("/v1/kv/t?op=append", "ab")
        assert (await ask.post("/v1/kv/t?op=append", "c")).status == 204
        assert (await ask.get("/v1/kv/t")).body == b"abc"
        refused = await ask.post("/v1/kv/t?op=add", "1")
        assert (refused.status, refused.kind, "b'abc'" in refused.json["detail"]) == (
            409,
            "not-a-number",
            True,
        )


async def test_compare_set_takes_a_form_from_people_and_json_from_programs() -> None:
    async with http_server() as serving:
        ask, path = serving.client, "/v1/kv/k?op=compare-set"
        assert (await ask.form(path, "expected=&desired=a%00b")).status == 204
        pair = {"expected": base64.b64encode(b"a\x00b").decode(), "desired": base64.b64encode(b"c").decode()}
        body = str(pair).replace("'", '"')
        stored = await ask.post(path, body, Content_Type="application/json")
        lost = await ask.post(path, body, Content_Type="application/json")
        assert (stored.status, lost.status, lost.kind) == (204, 412, "compare-failed")
        assert (base64.b64decode(lost.json["present"]), lost.etag) == (b"c", stored.etag)
        assert (await ask.form("/v1/kv/none?op=compare-set", "expected=x&desired=y")).json["present"] is None


async def test_a_barrier_holds_until_it_is_full_for_tcp_and_http_clients_alike() -> None:
    async with http_server() as serving, TcpStore("127.0.0.1", serving.server.port) as store:
        path = "/v1/kv/b?op=barrier&world_size=3"
        early = await serving.client.post(path)
        assert (early.status, early.json) == (202, {"arrived": 1, "world_size": 3})

        async def others() -> None:
            await until(lambda: serving.waits)
            await store.barrier("b", 3, 60)

        passed = await both(lambda: serving.client.post(f"{path}&wait=60"), others)
        assert passed.status == 204


async def test_who_repeats_an_arrival_is_counted_once() -> None:
    async with http_server() as serving:
        path = "/v1/kv/b?op=barrier&world_size=2"
        for wait in ("", "&wait=0.01"):
            reply = await serving.client.post(f"{path}{wait}", Idempotency_Key="me")
            assert (reply.status, reply.json["arrived"]) == (202, 1)
        assert (await serving.client.post(path)).status == 204
        assert (await serving.client.post(f"{path}&wait=60", Idempotency_Key="me")).status == 204


async def test_a_queue_gives_each_value_once_in_order() -> None:
    async with http_server() as serving:
        ask = serving.client
        for value in ("1", "", "3"):
            assert (await ask.post("/v1/queues/q?op=push", value)).status == 204
        assert (await ask.get("/v1/queues/q")).json == {"length": 3}
        popped = [await ask.post("/v1/queues/q?op=pop") for _ in range(3)]
        assert [(reply.status, reply.body) for reply in popped] == [(200, b"1"), (200, b""), (200, b"3")]
        empty = await ask.post("/v1/queues/q?op=pop")
        assert (empty.status, empty.kind) == (404, "queue-empty")


async def test_a_pop_waits_for_a_push() -> None:
    async with http_server() as serving, TcpStore("127.0.0.1", serving.server.port) as store:

        async def push() -> None:
            await until(lambda: serving.waits)
            await store.queue_push("q", b"v")

        popped = await both(lambda: serving.client.post("/v1/queues/q?op=pop&wait=60"), push)
        assert (popped.status, popped.body) == (200, b"v")
        assert (await serving.client.post("/v1/queues/q?op=pop&wait=0.01")).kind == "queue-empty"


async def test_a_push_goes_to_who_still_waits_when_the_first_has_gone() -> None:
    async with http_server() as serving:
        async with raw(serving.port) as gone:
            gone.send(b"POST /v1/queues/q?op=pop&wait=60 HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
            await until(lambda: serving.waits)

        async def push() -> None:
            await until(lambda: serving.waits)
            await serving.client.post("/v1/queues/q?op=push", "v")

        await until(lambda: not serving.waits)
        popped = await both(lambda: serving.client.post("/v1/queues/q?op=pop&wait=60"), push)
        assert popped.body == b"v"


# Many keys


async def test_keys_are_listed_in_order_by_prefix_page_after_page() -> None:
    async with http_server() as serving:
        ask = serving.client
        for key in ("b/3", "a", "b/1", "b/%FF", "c", "b/2"):
            await ask.put(f"/v1/kv/{key}", "v")
        first = (await ask.get("/v1/kv?prefix=b/&limit=2")).json
        assert first == {"keys": ["b/1", "b/2"], "next": "b/2", "total": 6}
        rest = (await ask.get(f"/v1/kv?prefix=b%2F&limit=2&after={first['next']}")).json
        assert (rest["keys"], rest["next"]) == (["b/3", "b/%FF"], None)
        assert (await ask.get("/v1/kv?limit=0")).json == {"keys": [], "next": None, "total": 6}


async def test_many_keys_are_set_read_and_awaited_at_once() -> None:
    async with http_server() as serving:
        ask = serving.client
        assert (await ask.form("/v1/kv?op=multi-set", "a=1&b%2F%FF=2&empty=")).status == 204
        read = await ask.form("/v1/kv?op=multi-get", "key=b%2F%FF&key=a&key=none")
        assert read.json == {"values": ["Mg==", "MQ==", None], "ready": False}
        some = await ask.form("/v1/kv?op=check&wait=0.01", "key=a&key=x%2Fy&key=none")
        assert some.json == {"ready": False, "missing": ["x/y", "none"]}

        async def write() -> None:
            await until(lambda: serving.waits)
            await ask.post(
                "/v1/kv?op=multi-set",
                '{"items": [["none", "MA=="], ["x/y", ""]]}',
                Content_Type="application/json",
            )

        all_there = await both(lambda: ask.form("/v1/kv?op=check&wait=60", "key=a&key=none&key=x%2Fy"), write)
        assert all_there.json == {"ready": True, "missing": []}
        body = '{"keys": ["none", "x%2Fy"]}'
        values = await ask.post("/v1/kv?op=multi-get&wait=9", body, Content_Type="application/json")
        assert values.json == {"values": ["MA==", ""], "ready": True}


async def test_values_that_are_too_long_together_are_refused() -> None:
    async with http_server(max_body=1000) as serving:
        await serving.client.put("/v1/kv/k", b"x" * 600)
        refused = await serving.client.form("/v1/kv?op=multi-get", "key=k&key=k")
        assert (refused.status, refused.kind) == (413, "too-long")


# Repetitions


async def repeated(ask: Client, method: str, path: str, body: str = "", key: str = "one") -> list[Reply]:
    return [await ask.ask(method, path, body, Idempotency_Key=key) for _ in range(2)]


async def test_a_repetition_gets_the_same_answer_and_changes_nothing() -> None:
    async with http_server() as serving:
        ask = serving.client
        replies = await repeated(ask, "POST", "/v1/kv/n?op=add", "5")
        assert [(reply.body, reply.etag) for reply in replies] == [(b"5", replies[0].etag)] * 2
        await repeated(ask, "POST", "/v1/kv/t?op=append", "x", key="two")
        await repeated(ask, "POST", "/v1/queues/q?op=push", "v", key="three")
        assert (await ask.get("/v1/kv/t")).body == b"x"
        assert (await ask.get("/v1/queues/q")).json == {"length": 1}
        popped = await repeated(ask, "POST", "/v1/queues/q?op=pop", key="four")
        assert [reply.body for reply in popped] == [b"v", b"v"]
        deleted = await repeated(ask, "DELETE", "/v1/kv/t", key="five")
        assert [reply.status for reply in deleted] == [204, 204]


async def test_a_repetition_of_what_failed_is_tried_again() -> None:
    async with http_server() as serving:
        ask = serving.client
        assert (await ask.post("/v1/queues/q?op=pop", Idempotency_Key="one")).status == 404
        await ask.post("/v1/queues/q?op=push", "v")
        assert (await ask.post("/v1/queues/q?op=pop", Idempotency_Key="one")).body == b"v"


async def test_a_key_that_was_used_for_another_request_is_refused() -> None:
    async with http_server() as serving:
        ask = serving.client
        await ask.post("/v1/kv/n?op=add", "5", Idempotency_Key="one")
        for path, body in (("/v1/kv/n?op=add", "6"), ("/v1/kv/m?op=add", "5"), ("/v1/kv/n?op=append", "5")):
            other = await ask.post(path, body, Idempotency_Key="one")
            assert (other.status, other.kind) == (422, "repeat-differs")
        assert (await ask.post("/v1/queues/n?op=give-back", Idempotency_Key="one")).status == 422


async def test_repetitions_that_come_at_the_same_time_share_one_value() -> None:
    async with http_server() as serving:
        ask = serving.client
        bodies: list[bytes] = []

        async def pop() -> None:
            reply = await ask.post("/v1/queues/q?op=pop&wait=60", Idempotency_Key="one")
            bodies.append(reply.body)

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(pop)
            await until(lambda: len(serving.listener.context.keys.clients) == 3)
            await ask.post("/v1/queues/q?op=push", "first")
            await ask.post("/v1/queues/q?op=push", "second")
        assert bodies == [b"first"] * 3
        assert (await ask.get("/v1/queues/q")).json == {"length": 1}


async def test_when_the_first_of_them_goes_away_another_takes_its_place() -> None:
    async with http_server() as serving:
        ask = serving.client
        request = b"POST /v1/queues/q?op=pop&wait=60 HTTP/1.1\r\nHost: x\r\nIdempotency-Key: one\r\n\r\n"

        async def leave_and_push() -> None:
            await until(lambda: len(serving.listener.context.keys.clients) == 2)
            leader.writer.transport.abort()
            await until(lambda: len(serving.listener.context.keys.clients) == 1)
            await ask.post("/v1/queues/q?op=push", "v")

        async with raw(serving.port) as leader:
            leader.send(request)
            await until(lambda: serving.waits)
            second = await both(
                lambda: ask.post("/v1/queues/q?op=pop&wait=60", Idempotency_Key="one"), leave_and_push
            )
        assert second.body == b"v"


async def test_a_repetition_waits_for_the_first_no_longer_than_it_would_itself() -> None:
    async with http_server() as serving:
        ask = serving.client

        async def repeat() -> None:
            await until(lambda: serving.waits)
            impatient = await ask.post("/v1/queues/q?op=pop&wait=0.05", Idempotency_Key="one")
            assert (impatient.status, impatient.kind) == (404, "queue-empty")
            await ask.post("/v1/queues/q?op=push", "v")

        first = await both(lambda: ask.post("/v1/queues/q?op=pop&wait=60", Idempotency_Key="one"), repeat)
        assert first.body == b"v"


async def test_a_pop_is_given_back_once_and_is_over_then() -> None:
    async with http_server() as serving:
        ask = serving.client
        await ask.post("/v1/queues/q?op=push", "v")
        assert (await ask.post("/v1/queues/q?op=pop", Idempotency_Key="one")).body == b"v"
        for _ in range(2):
            assert (await ask.post("/v1/queues/q?op=give-back", Idempotency_Key="one")).status == 204
        assert (await ask.get("/v1/queues/q")).json == {"length": 1}
        late = await ask.post("/v1/queues/q?op=pop", Idempotency_Key="one")
        assert (late.status, late.kind) == (409, "given-up")
        assert (await ask.get("/v1/queues/q")).json == {"length": 1}


async def test_giving_back_ends_a_pop_that_still_waits() -> None:
    async with http_server() as serving:
        ask = serving.client

        async def give_back() -> None:
            await until(lambda: serving.waits)
            await ask.post("/v1/queues/q?op=give-back", Idempotency_Key="one")

        ended = await both(lambda: ask.post("/v1/queues/q?op=pop&wait=60", Idempotency_Key="one"), give_back)
        assert (ended.status, ended.kind, serving.waits) == (404, "queue-empty", 0)


async def test_a_pop_that_is_given_back_in_the_turn_in_which_its_value_comes_does_not_take_it() -> None:
    async with http_server() as serving:
        ask = serving.client
        head = "HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n"
        for turn in range(10):
            named = f"{head}Idempotency-Key: {turn}\r\n\r\n".encode()
            async with (
                raw(serving.port) as popping,
                raw(serving.port) as pushing,
                raw(serving.port) as giving,
            ):
                popping.send(b"POST /v1/queues/q?op=pop&wait=60 " + named)
                await until(lambda: serving.waits)
                pushing.send(b"POST /v1/queues/q?op=push HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nv")
                giving.send(b"POST /v1/queues/q?op=give-back " + named)
                assert (await pushing.reply()).status == (await giving.reply()).status == 204
                assert (await popping.reply()).kind == "queue-empty"
            assert (await ask.get("/v1/queues/q")).json == {"length": 1}
            assert (await ask.post("/v1/queues/q?op=pop")).body == b"v"


async def test_what_cannot_be_given_back_for_want_of_room_is_still_that_of_its_pop() -> None:
    async with http_server(store=KeyspaceLimits(max_bytes=4000)) as serving:
        ask = serving.client
        await ask.post("/v1/queues/q?op=push", "v" * 1000)
        first = await ask.post("/v1/queues/q?op=pop", Idempotency_Key="one")
        await ask.put("/v1/kv/k", "x" * 3000)
        assert (await ask.post("/v1/queues/q?op=give-back", Idempotency_Key="one")).status == 507
        assert (await ask.post("/v1/queues/q?op=pop", Idempotency_Key="one")).body == first.body
        await ask.delete("/v1/kv/k")
        assert (await ask.post("/v1/queues/q?op=give-back", Idempotency_Key="one")).status == 204
        assert (await ask.get("/v1/queues/q")).json == {"length": 1}


async def test_a_repetition_for_a_server_that_has_ended_is_refused() -> None:
    async with http_server() as serving:
        ask = serving.client
        server = (await ask.get("/v1/kv")).headers["Arendezvous-Server"]
        meant = {"Idempotency_Key": "one", "Arendezvous_Server": server}
        assert (await ask.post("/v1/kv/n?op=add", "1", **meant)).status == 200
        other = await ask.post("/v1/kv/n?op=add", "1", **{**meant, "Arendezvous_Server": "another"})
        assert (other.status, other.kind) == (409, "other-server")


@pytest.mark.virtual
async def test_what_is_kept_for_repetitions_is_bounded_in_count_bytes_and_age() -> None:
    token, client = b"", Requester(b"", "10.0.0.1")
    by_count, by_bytes, by_age = Repeats(max_count=3), Repeats(max_bytes=10_000), Repeats(max_age=60)
    for number in range(10):
        by_count.keep((token, str(number)), b"", Outcome(204), client)
        by_bytes.keep((token, str(number)), b"", Outcome(200, b"x" * 4000), client)
        await anyio.sleep(20)
        by_age.keep((token, str(number)), b"", Outcome(204), client)
    assert (len(by_count), len(by_bytes), len(by_age)) == (3, 2, 4)
    by_bytes.keep((token, "huge"), b"", Outcome(200, b"x" * 20_000), client)
    assert len(by_bytes) == 1, "the latest is kept, however long it is"


# Errors


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "kind"),
    [
        ("GET", "/v1/kv/%zz", {}, 400, "bad-key"),
        ("GET", "/v1/kv/" + "k" * 8192, {}, 400, "bad-key"),
        ("GET", "/v1/kv/k?wiat=5", {}, 400, "bad-query"),
        ("GET", "/v1/kv/k?wait=5&wait=6", {}, 400, "bad-query"),
        ("GET", "/v1/kv/k?wait=soon", {}, 400, "bad-query"),
        ("GET", "/v1/kv/k?wait=nan", {}, 400, "bad-query"),
        ("GET", "/v1/kv/k?wait=-1", {}, 400, "bad-query"),
        ("GET", "/v1/kv/k?wait=1e9", {}, 400, "bad-query"),
        ("GET", "/v1/kv/k?%=5", {}, 400, "bad-query"),
        ("GET", "/v1/kv/k", {"If-None-Match": "bare"}, 400, "bad-condition"),
        ("PUT", "/v1/kv/k", {"If-Match": '"a" "b"'}, 400, "bad-condition"),
        ("PUT", "/v1/kv/k", {"Idempotency-Key": "x" * 200}, 400, "bad-repeat"),
        ("PUT", "/v1/kv/k", {"Content-Encoding": "gzip"}, 415, "bad-body"),
        ("POST", "/v1/kv/k", {}, 400, "bad-query"),
        ("POST", "/v1/kv/k?op=fly", {}, 400, "bad-query"),
        ("POST", "/v1/kv/k?op=add", {}, 400, "bad-body"),
        ("POST", "/v1/kv/k?op=add&wait=1", {}, 400, "bad-query"),
        ("POST", "/v1/kv/k?op=barrier", {}, 400, "bad-query"),
        ("POST", "/v1/kv/k?op=barrier&world_size=many", {}, 400, "bad-query"),
        ("POST", "/v1/kv/k?op=compare-set", {"Content-Type": "text/plain"}, 415, "bad-body"),
        ("POST", "/v1/kv/k?op=compare-set", {"Content-Type": "application/json"}, 400, "bad-body"),
        ("POST", "/v1/kv?op=fly", {}, 400, "bad-query"),
        ("GET", "/v1/kv?limit=100000", {}, 400, "bad-query"),
        ("POST", "/v1/queues/q?op=fly", {}, 400, "bad-query"),
        ("POST", "/v1/queues/q?op=give-back", {}, 400, "bad-repeat"),
        ("PATCH", "/v1/kv/k", {}, 405, "bad-request"),
        ("GET", "/v1/%6bv/k", {}, 404, "no-such-resource"),
    ],
)
async def test_what_is_wrong_is_told_and_changes_nothing(
    method: str, path: str, headers: dict[str, str], status: int, kind: str
) -> None:
    async with http_server() as serving:
        reply = await serving.client.ask(method, path, b"", **headers)
        assert (reply.status, reply.kind) == (status, kind)
        assert (await serving.client.get("/v1/kv")).json["total"] == 0


@pytest.mark.parametrize(
    "form",
    ["expected=a", "expected=a&desired=b&more=c", "expected=a&expected=a&desired=b", "expected=%&desired="],
)
async def test_a_form_with_other_fields_is_refused(form: str) -> None:
    async with http_server() as serving:
        reply = await serving.client.form("/v1/kv/k?op=compare-set", form)
        assert (reply.status, reply.kind) == (400, "bad-body")


async def test_the_url_of_a_server_without_http_is_none() -> None:
    async with ar.serve("127.0.0.1:0") as server:
        assert server.http_url is None


async def test_http_and_tcp_listeners_close_together() -> None:
    async with http_server() as serving:
        url, ask = serving.client.url, serving.client
        async with raw(serving.port) as waiting:
            waiting.send(b"GET /v1/kv/never?wait=600 HTTP/1.1\r\nHost: x\r\n\r\n")
            await until(lambda: serving.waits)
            await serving.listener.stop()
            assert await waiting.rest() == b""
        assert serving.waits == 0
    async with client_of(url) as ask:
        with pytest.raises(OSError, match=r"Cannot connect"):
            await ask.get("/v1/kv")

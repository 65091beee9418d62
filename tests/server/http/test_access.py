"""Who may ask the HTTP listener, and for what."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import pytest

import arendezvous as ar
from arendezvous.keyspace.grants import Grant, Scope, run_prefix
from arendezvous.server.access import admission
from arendezvous.server.access.authority import Authority
from tests.kit.listener_kit import Client, Reply, client_of
from tests.kit.tls_kit import OTHER, TOKEN

RUN_TOKEN = "a-token-of-run-job-0123456789"
READ_TOKEN = "a-token-for-looking-0123456789"
READ_RUN_TOKEN = "a-token-for-looking-at-job-0123"
TOKENS = {
    TOKEN: Grant(Scope.SERVER),
    RUN_TOKEN: Grant(Scope.RUN, "job"),
    READ_TOKEN: Grant(Scope.READ),
    READ_RUN_TOKEN: Grant(Scope.READ, "job"),
}
OPEN = ("/", "/page/style.css", "/healthz", "/readyz", "/openapi.json")
KEY = f"/v1/kv/{run_prefix('job')}/k"
OTHER_KEY = f"/v1/kv/{run_prefix('other')}/k"
QUEUE = f"/v1/queues/{run_prefix('job')}/q"

# Method, path, and the tokens with which it is not forbidden; all others get 403.
EVERY = set(TOKENS)
SERVER_WIDE = {TOKEN, READ_TOKEN}
OPERATIONS: list[tuple[str, str, set[str]]] = [
    ("GET", "/v1/runs", EVERY),
    ("GET", "/v1/runs/job", EVERY),
    ("GET", "/v1/runs/other", SERVER_WIDE),
    ("GET", "/v1/runs/job/members", EVERY),
    ("GET", "/v1/runs/other/members", SERVER_WIDE),
    ("POST", "/v1/runs/job/members", {TOKEN, RUN_TOKEN}),
    ("POST", "/v1/runs/other/members", {TOKEN}),
    ("POST", "/v1/runs/job/close", {TOKEN, RUN_TOKEN}),
    ("POST", "/v1/runs/other/close", {TOKEN}),
    ("POST", "/v1/runs/job/reopen", {TOKEN, RUN_TOKEN}),
    ("POST", "/v1/runs/job/members/a/drain", {TOKEN, RUN_TOKEN}),
    ("POST", "/v1/runs/job/members/a/keep-alive", {TOKEN, RUN_TOKEN}),
    ("DELETE", "/v1/runs/job/members/a", {TOKEN, RUN_TOKEN}),
    ("GET", "/metrics", SERVER_WIDE),
    ("GET", KEY, EVERY),
    ("PUT", KEY, {TOKEN, RUN_TOKEN}),
    ("DELETE", KEY, {TOKEN, RUN_TOKEN}),
    ("GET", OTHER_KEY, SERVER_WIDE),
    ("PUT", OTHER_KEY, {TOKEN}),
    ("DELETE", OTHER_KEY, {TOKEN}),
    ("PUT", "/v1/kv/of-no-run", {TOKEN}),
    ("GET", "/v1/kv", EVERY),
    ("GET", QUEUE, EVERY),
    ("POST", f"{QUEUE}?op=push", {TOKEN, RUN_TOKEN}),
    ("POST", f"{QUEUE}?op=pop", {TOKEN, RUN_TOKEN}),
    ("GET", "/v1/events", EVERY),
]


@asynccontextmanager
async def served(
    authority: Authority | None = None, **options: Any
) -> AsyncIterator[tuple[ar.Server, Client]]:
    authority = Authority(TOKENS.items()) if authority is None else authority
    async with ar.serve("127.0.0.1:0", http="127.0.0.1:0", authority=authority, **options) as server:
        assert server.http_url is not None
        async with client_of(server.http_url) as client:
            yield server, client


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.mark.parametrize(("method", "path", "good"), OPERATIONS)
async def test_a_token_is_good_for_its_scope(method: str, path: str, good: set[str]) -> None:
    async with served() as (_, client):
        forbidden = set()
        for token in TOKENS:
            status = await _status(client, method, path, token)
            assert status not in (401, 500), (token, status)
            if status == 403:
                forbidden.add(token)
        assert forbidden == set(TOKENS) - good
        for token in ("", OTHER):
            assert await _status(client, method, path, token) == 401


async def _status(client: Client, method: str, path: str, token: str) -> int:
    """The status alone: some answers never end."""
    with anyio.fail_after(120):
        headers = bearer(token) if token else {}
        async with client.session.request(method, client.url + path, data=b"", headers=headers) as response:
            return int(response.status)


async def _is_broken_off(stream: aiohttp.ClientResponse) -> bool:
    """Reads until the stream ends, and tells whether it was broken off rather than finished."""
    try:
        while await stream.content.readany():
            pass
    except (aiohttp.ClientError, OSError):
        return True
    return False


async def test_a_list_of_runs_shows_a_token_of_one_run_no_other() -> None:
    async with served() as (server, client):
        for run_id in ("job", "other"):
            async with ar.open_rendezvous(server.tcp_url, run_id=run_id, min_nodes=1, token=TOKEN) as node:
                await node.next_rendezvous()
        seen = {
            token: [run["run_id"] for run in (await client.get("/v1/runs", **bearer(token))).json["runs"]]
            for token in TOKENS
        }
    expected = {token: ["job"] if grant.run_id else ["job", "other"] for token, grant in TOKENS.items()}
    assert {token: sorted(runs) for token, runs in seen.items()} == expected


@pytest.mark.parametrize("path", OPEN)
async def test_the_page_and_the_probes_are_open_to_everybody(path: str) -> None:
    async with served() as (_, client):
        assert (await client.get(path)).status == 200


@pytest.mark.parametrize(
    ("header", "kind", "challenge"),
    [
        (None, "unauthorized", 'Bearer realm="arendezvous"'),
        (f"Bearer {OTHER}", "unauthorized", 'Bearer realm="arendezvous", error="invalid_token"'),
        ("Bearer", "unauthorized", 'Bearer realm="arendezvous"'),
        (f"Basic {TOKEN}", "unauthorized", 'Bearer realm="arendezvous"'),
        (TOKEN, "unauthorized", 'Bearer realm="arendezvous"'),
    ],
)
async def test_a_missing_or_wrong_token_is_answered_with_what_to_do(
    header: str | None, kind: str, challenge: str
) -> None:
    async with served() as (_, client):
        reply = await client.get("/v1/runs", **({} if header is None else {"Authorization": header}))
    assert (reply.status, reply.kind, reply.headers["WWW-Authenticate"]) == (401, kind, challenge)
    assert "token" in reply.json["detail"]
    assert not {TOKEN, OTHER} & set(reply.json["detail"].split())


async def test_the_word_bearer_may_be_written_in_any_way_and_a_token_in_the_url_does_not_count() -> None:
    async with served() as (_, client):
        assert (await client.get("/v1/runs", Authorization=f"bEARER {TOKEN}")).status == 200
        assert (await client.get(f"/v1/runs?token={TOKEN}&access_token={TOKEN}")).status == 401


async def test_too_many_wrong_tokens_are_told_so_and_a_good_one_from_the_same_address_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(admission, "RATE", 0.0)  # however long the test takes
    async with served() as (_, client):
        replies: list[Reply] = [await client.get("/v1/runs", **bearer(OTHER)) for _ in range(40)]
        assert {reply.status for reply in replies[:20]} == {401}
        assert (replies[-1].status, replies[-1].kind) == (429, "too-many-attempts")
        assert replies[-1].headers["Retry-After"] == "1"
        assert (await client.get("/v1/runs", **bearer(TOKEN))).status == 200


@pytest.mark.parametrize(
    ("origin", "headers", "status"),
    [
        ("http://elsewhere.example", {}, 403),
        ("null", {}, 403),
        ("", {}, 204),
        ("SAME", {}, 204),
    ],
)
async def test_where_no_token_is_asked_for_a_page_of_another_site_changes_nothing(
    origin: str, headers: dict[str, str], status: int
) -> None:
    async with served(Authority()) as (_, client):
        if origin:
            headers = {"Origin": client.url if origin == "SAME" else origin}
        reply = await client.put("/v1/kv/k", "v", **headers)
        assert (reply.status < 300) == (status < 300)
        if status == 403:
            assert reply.kind == "cross-origin"
            assert (await client.get("/v1/kv/k")).status == 404


@pytest.mark.parametrize("origin", ["http://elsewhere.example", "null", "http://[", "\xff"])
async def test_a_page_of_another_site_changes_nothing_even_with_a_good_token(origin: str) -> None:
    async with served() as (_, client):
        reply = await client.put("/v1/kv/k", "v", **bearer(TOKEN), Origin=origin)
        assert (reply.status, reply.kind) == (403, "cross-origin")
        assert (await client.put("/v1/kv/k", "v", **bearer(TOKEN), Origin=client.url)).status < 300


async def test_nobody_keeps_a_value_or_guesses_its_type() -> None:
    async with served() as (_, client):
        await client.put(KEY, "<script>", **bearer(TOKEN))
        await client.post(f"{QUEUE}?op=push", "<script>", **bearer(TOKEN))
        answers = [
            await client.get(KEY, **bearer(TOKEN)),
            await client.post(f"{QUEUE}?op=pop", "", **bearer(TOKEN)),
            await client.get("/v1/kv/absent", **bearer(TOKEN)),
            await client.get("/v1/runs", **bearer(TOKEN)),
            await client.get("/v1/runs"),
            await client.get("/metrics", **bearer(TOKEN)),
            *[
                await client.post(
                    f"{KEY}?op=compare-set", pair, **bearer(TOKEN), Content_Type="application/json"
                )
                for pair in (
                    '{"expected":"eA==","desired":"eQ=="}',
                    '{"expected":"PHNjcmlwdD4=","desired":"MQ=="}',
                )
            ],
            *[
                await client.post(f"{KEY}?op=add", "1", **bearer(TOKEN), Idempotency_Key="once")
                for _ in ("at first", "again")
            ],
        ]
        assert [answer.status for answer in answers[-4:]] == [412, 204, 200, 200]
        for answer in answers:
            assert answer.headers["Cache-Control"] == "no-store", answer
            assert answer.headers["X-Content-Type-Options"] == "nosniff", answer


async def test_without_tokens_everybody_may_do_everything() -> None:
    async with served(Authority()) as (_, client):
        assert (await client.put("/v1/kv/k", "v")).status < 300
        assert (await client.get("/v1/kv/k", **bearer(OTHER))).body == b"v"


async def test_answers_that_never_end_end_once_their_token_is_withdrawn(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"{TOKEN}\n{READ_TOKEN} read-only\n")
    file.chmod(0o600)
    async with served(Authority.from_file(file)) as (server, client):
        request = client.session.get(client.url + "/v1/events", headers=bearer(READ_TOKEN))
        with anyio.fail_after(120):
            async with request as stream:
                assert stream.status == 200
                file.write_text(f"{TOKEN}\n")
                assert server.reload()
                assert await _is_broken_off(stream)
        assert (await client.get("/v1/runs", **bearer(READ_TOKEN))).status == 401
        assert (await client.get("/v1/runs", **bearer(TOKEN))).status == 200

"""The runs of a server as resources: the list, one run, closing and reopening it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import arendezvous as ar
from arendezvous.law.status import RunStatus
from arendezvous.wire.http.bodies import RUN
from tests.kit.http_kit import join, problem_of, served


async def test_runs_are_listed_by_their_ids_page_by_page() -> None:
    async with asyncio.timeout(120), served() as (_, client):
        for run_id in ("c", "a", "d", "b"):
            await join(client, "node", run_id)
        pages = []
        after = ""
        for _ in range(3):
            async with client.get("/v1/runs", params={"limit": 2, "after": after}) as answer:
                page = await answer.json()
            pages.append([run["run_id"] for run in page["runs"]])
            if page["next"] is None:
                break
            after = page["next"]
    assert pages == [["a", "b"], ["c", "d"]]


async def test_a_run_is_shown_with_its_nodes_and_in_words() -> None:
    async with asyncio.timeout(120), served() as (server, client):
        await join(client, "a", keep_alive_interval=7.0)
        async with client.get("/v1/runs/job") as answer:
            run = await answer.json()
        status = server.coordinator.status("job")
    assert (run["run_id"], run["complete"], run["closed"]) == ("job", False, None)
    assert run["settings"]["keep_alive_interval"] == 7.0
    assert [(node["desc"]["name"], node["phase"]) for node in run["nodes"]] == [("a", "gathering")]
    assert run["explain"][0].startswith("run 'job': round 0 gathers 2 nodes, 1 came (1 more needed)")
    assert run["last_event"].endswith(".1")
    assert status.settings is not None


async def test_a_status_is_the_same_after_the_way_over_http() -> None:
    async with asyncio.timeout(120), served() as (_, client):
        for node in ("a", "b", "c"):
            await join(client, node)
        async with client.get("/v1/runs/job") as answer:
            body = RUN.decode(await answer.read())
    status = body.status
    assert isinstance(status, RunStatus)
    assert [(node.desc.name, node.phase.value, node.rank) for node in status.nodes] == [
        ("a", "member", 0),
        ("b", "member", 1),
        ("c", "spare", -1),
    ]
    assert str(status).splitlines() == list(body.explain)


async def test_head_tells_whether_there_is_a_run() -> None:
    async with asyncio.timeout(120), served() as (_, client):
        await join(client, "a")
        async with client.head("/v1/runs/job") as found, client.head("/v1/runs/none") as missing:
            assert (found.status, missing.status) == (200, 404)
            assert found.headers["Arendezvous-Server"] == missing.headers["Arendezvous-Server"]


async def test_an_unknown_run_is_404_and_says_so() -> None:
    async with asyncio.timeout(120), served() as (_, client):
        for path in ("/v1/runs/none", "/v1/runs/none/members", "/v1/runs/none/members/a"):
            async with client.get(path) as answer:
                assert await problem_of(answer) == (404, "no-such-run"), path
        async with client.post("/v1/runs/none/reopen", json={"incarnation": 1}) as answer:
            assert await problem_of(answer) == (404, "no-such-run")


async def test_a_run_is_closed_for_everybody_and_opened_again() -> None:
    async with asyncio.timeout(120), served() as (_, client):
        await join(client, "a")
        async with client.post("/v1/runs/job/close", json={"by": "me", "reason": "over"}) as answer:
            told = await answer.json()
        async with client.get("/v1/runs/job") as answer:
            seen = await answer.json()
        assert (told["closed"].pop("by"), told["closed"].pop("reason")) == ("me", "over")
        assert told.keys() == seen.keys()
        assert [told[key] for key in ("run_id", "incarnation")] == ["job", 1]
        assert [node["desc"]["name"] for node in told["nodes"]] == ["a"]
        assert told["last_event"] == seen["last_event"]
        assert "closed by me" in told["explain"][1]
        body = {"node": {"name": "b"}, "settings": {"min_nodes": 2, "max_nodes": 2}}
        async with client.post("/v1/runs/job/members", json=body) as answer:
            assert await problem_of(answer) == (409, "run-closed")
            assert "over" in (await answer.json())["detail"]
        async with client.post("/v1/runs/job/reopen", json={"incarnation": 1, "by": "me"}) as answer:
            told = await answer.json()
        assert (told["run_id"], told["incarnation"], told["closed"], told["nodes"]) == ("job", 2, None, [])
        async with client.post("/v1/runs/job/reopen", json={"incarnation": 2}) as answer:
            assert await problem_of(answer) == (409, "conflict")


@pytest.mark.parametrize(
    ("method", "path", "body", "said"),
    [
        ("POST", "/v1/runs/job/close", '{"reasn": "x"}', "reasn"),
        ("POST", "/v1/runs/job/close", '{"reason": 5}', "$.reason"),
        ("POST", "/v1/runs/job/close", "{", "truncated"),
        ("POST", "/v1/runs/job/close", '{"reason": "\\n"}', "reason is"),
        ("POST", "/v1/runs/job/reopen", "{}", "incarnation"),
        ("POST", "/v1/runs/job/members", "{}", "node"),
        ("POST", "/v1/runs/job/members", '{"node": {"name": "a", "x": 1}}', "$.node"),
        ("POST", "/v1/runs/job/members",
         '{"node": {"name": ""}, "settings": {"min_nodes": 1, "max_nodes": 1}}', "node name"),
        ("POST", "/v1/runs/job/members",
         '{"node": {"name": "a"}, "settings": {"min_nodes": 3, "max_nodes": 1}}', "max_nodes"),
        ("GET", "/v1/runs?limt=5", "", "limt"),
        ("GET", "/v1/runs?limit=many", "", "many"),
        ("GET", "/v1/runs/job/events?after=x", "", "'x'"),
    ],
)  # fmt: skip
async def test_a_bad_request_is_400_and_names_what_is_wrong(
    method: str, path: str, body: str, said: str
) -> None:
    async with (
        asyncio.timeout(120),
        served() as (_, client),
        client.request(method, path, data=body) as answer,
    ):
        assert (await problem_of(answer))[0] == 400
        assert said in (await answer.json())["detail"]


async def test_a_body_that_is_too_long_is_413() -> None:
    async with (
        asyncio.timeout(120),
        served() as (_, client),
        client.post("/v1/runs/job/close", data=b" " * 70_000) as answer,
    ):
        assert (await problem_of(answer))[0] == 413


async def test_a_token_of_one_run_is_good_for_that_run_alone() -> None:
    from arendezvous.keyspace.grants import EVERYTHING, Grant, Scope
    from arendezvous.server.access.authority import Authority

    token = "0123456789abcdef-one"
    authority = Authority([("0123456789abcdef-all", EVERYTHING), (token, Grant(Scope.RUN, "job"))])
    async with asyncio.timeout(120), served(authority=authority) as (_, client):
        async with client.get("/v1/runs") as answer:
            assert await problem_of(answer) == (401, "unauthorized")
        everything = {"Authorization": "Bearer 0123456789abcdef-all"}
        for run_id in ("job", "other"):
            async with client.post(f"/v1/runs/{run_id}/close", headers=everything) as answer:
                assert answer.status == 200
        one = {"Authorization": f"Bearer {token}"}
        async with client.get("/v1/runs", headers=one) as answer:
            listed: Any = await answer.json()
        assert [run["run_id"] for run in listed["runs"]] == ["job"]
        async with client.get("/v1/runs/job", headers=one) as answer:
            assert answer.status == 200
        async with client.get("/v1/runs/other", headers=one) as answer:
            assert (await problem_of(answer))[0] == 403


async def test_members_over_tcp_and_over_http_meet_in_one_run() -> None:
    async with asyncio.timeout(120), served() as (server, _):
        urls = (server.tcp_url, server.http_url, server.tcp_url, server.http_url)
        found: list[tuple[int, int, str]] = []

        async def node(url: str | None) -> None:
            assert url is not None
            async with ar.open_rendezvous(url, run_id="job", min_nodes=4) as rendezvous:
                info = await rendezvous.next_rendezvous()
                store = info.store
                assert store is not None
                await store.barrier("here", 4)
                found.append((info.rank, info.world_size, info.digest))
                await store.barrier("there", 4)

        async with asyncio.TaskGroup() as tasks:
            for url in urls:
                tasks.create_task(node(url))
    assert sorted(rank for rank, _, _ in found) == [0, 1, 2, 3]
    assert {size for _, size, _ in found} == {4}
    assert len({digest for _, _, digest in found}) == 1

"""Barriers, states and progress with plain requests."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest

from tests.kit.http_kit import SESSION, join, problem_of, served

A = "/v1/runs/job/members/a"
B = "/v1/runs/job/members/b"
AT = {"incarnation": 1, "round": 0}


async def pair(client: aiohttp.ClientSession) -> tuple[dict[str, str], dict[str, str]]:
    """The headers of two members of a round."""
    a = await join(client, "a")
    b = await join(client, "b")
    return {SESSION: a["session"]}, {SESSION: b["session"]}


async def put(client: aiohttp.ClientSession, path: str, body: Any, headers: dict[str, str]) -> Any:
    async with client.put(path, json=body, headers=headers) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.json()


async def test_a_member_that_comes_is_told_who_is_missing_and_may_ask_again() -> None:
    async with asyncio.timeout(120), served() as (_, client):
        a, b = await pair(client)
        path = "/barriers/load%2Fed"
        met = await put(client, A + path, AT, a)
        assert (met["passed"], met["missing"]) == (False, ["b"])
        waiting = asyncio.create_task(put(client, A + path + "?wait=50", AT, a))
        assert (await put(client, B + path, AT, b))["passed"]
        assert (await waiting)["passed"]
        assert (await put(client, A + path, AT, a))["passed"]
        met = await put(client, A + path, {**AT, "turn": 1}, a)
        assert (met["passed"], met["missing"]) == (False, ["b"])


async def test_a_member_that_withdraws_has_not_come() -> None:
    async with asyncio.timeout(120), served() as (_, client):
        a, b = await pair(client)
        await put(client, f"{A}/barriers/x", AT, a)
        async with client.delete(f"{A}/barriers/x?incarnation=1&round=0", headers=a) as answer:
            met = await answer.json()
        assert (met["passed"], met["missing"], met["withdrawn"]) == (False, ["b"], 1)
        assert not (await put(client, f"{B}/barriers/x", AT, b))["passed"]


async def test_who_waits_is_told_that_the_other_one_is_gone() -> None:
    async with asyncio.timeout(120), served() as (_, client):
        a, b = await pair(client)
        waiting = asyncio.create_task(client.put(f"{A}/barriers/x?wait=50", json=AT, headers=a))
        await asyncio.sleep(0.05)
        async with client.delete(f"{B}?cause=failed&reason=boom", headers=b) as answer:
            assert answer.status == 200
        async with await waiting as answer:
            assert await problem_of(answer) == (409, "round-over")
            body = await answer.json()
        assert (body["error"], body["data"]["departures"]) == ("RoundOverError", {"b": "boom"})


@pytest.mark.parametrize(
    ("method", "path", "body", "expected"),
    [
        ("PUT", "barriers/x", {}, (400, "bad-body")),
        ("PUT", "barriers/x", {**AT, "round": -1}, (400, "bad-body")),
        ("PUT", "barriers/x", {**AT, "reducer": "median"}, (400, "bad-body")),
        ("PUT", "barriers/x", {**AT, "unheard_of": 1}, (400, "bad-body")),
        ("PUT", "barriers/" + "x" * 300, AT, (400, "bad-body")),
        ("PUT", "barriers/x?wait=-1", AT, (400, "bad-query")),
        ("PUT", "barriers/x", {"incarnation": 9, "round": 9}, (409, "round-over")),
        ("DELETE", "barriers/x", None, (400, "bad-query")),
        ("DELETE", "barriers/x?incarnation=one&round=0", None, (400, "bad-query")),
        ("PUT", "state", {}, (400, "bad-body")),
        ("POST", "progress", {"step": -1}, (400, "bad-body")),
        ("POST", "progress", {"step": "7th"}, (400, "bad-body")),
    ],
)
async def test_what_is_not_to_be_understood_is_refused_and_says_why(
    method: str, path: str, body: Any, expected: tuple[int, str]
) -> None:
    async with asyncio.timeout(120), served() as (_, client):
        a, _ = await pair(client)
        async with client.request(method, f"{A}/{path}", json=body, headers=a) as answer:
            assert await problem_of(answer) == expected


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PUT", "barriers/x", AT), ("DELETE", "barriers/x?incarnation=1&round=0", None),
        ("PUT", "state", {"state": None}), ("POST", "progress", {"step": 1}),
    ],
)  # fmt: skip
async def test_only_the_node_itself_speaks_for_it(method: str, path: str, body: Any) -> None:
    async with asyncio.timeout(120), served() as (_, client):
        _, b = await pair(client)
        async with client.request(method, f"{A}/{path}", json=body, headers=b) as answer:
            assert await problem_of(answer) == (403, "not-your-session")


async def test_progress_is_shown_in_the_run() -> None:
    async with asyncio.timeout(120), served() as (_, client):
        a, _ = await pair(client)
        async with client.post(f"{A}/progress", json={"step": 7}, headers=a) as answer:
            assert (await answer.json())["phase"] == "member"
        async with client.get("/v1/runs/job") as answer:
            assert [node["step"] for node in (await answer.json())["nodes"]] == [7, None]

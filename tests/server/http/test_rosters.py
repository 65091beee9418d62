"""The roster of a round as a resource: who its members were, what they brought, and who has gone since."""

from __future__ import annotations

import json
from typing import Any

from tests.kit.listener_kit import Serving, http_server

MEMBERS, ROSTER = "/v1/runs/job/members", "/v1/runs/job/roster"
RULES = {"roles": {"trainer": {"min_nodes": 1}, "generator": {"min_nodes": 1, "max_nodes": 2}}}
SETTINGS = {"min_nodes": 2, "max_nodes": 3, "last_call": 0, "rules": {**RULES, "facts": {"step": "max"}}}


async def join(serving: Serving, name: str, settings: Any = SETTINGS, **brings: Any) -> Any:
    body = {"node": {"name": name, "addr": f"{name}.example", "brings": brings}, "settings": settings}
    return await serving.client.post(MEMBERS, json.dumps(body))


async def test_the_roster_has_what_members_brought_and_who_has_gone() -> None:
    async with http_server() as serving:
        data = {"url": "http://g", "list": [1, None, 2.5]}
        first = await join(serving, "g", role="generator", slots=4, data=data, facts={"step": 3})
        second = await join(serving, "t", role="trainer", facts={"step": 9})
        assert (first.status, second.status) == (201, 201)
        share = second.json["view"]["share"]
        assert (share["role"], share["first_slot"], share["total_slots"]) == ("trainer", 0, 5)
        assert share["facts"] == {"step": 9}
        shown = (await serving.client.get(ROSTER)).json
        assert (shown["incarnation"], shown["round"], shown["world_size"]) == (1, 0, 2)
        assert (shown["first"], shown["next"], shown["gone"]) == (0, None, [])
        trainer, generator = shown["members"]
        assert (trainer["name"], trainer["rank"], trainer["data"]) == ("t", 0, None)
        assert (generator["data"], generator["slots"], generator["role"]) == (data, 4, "generator")
        assert generator["addresses"] == ["g.example"]
        gone = {"Arendezvous_Session": first.json["session"]}
        await serving.client.delete(f"{MEMBERS}/g?reason=enough&cause=finished", **gone)
        for path in (f"{ROSTER}?incarnation=1&round=0", f"{ROSTER}/gone"):
            [left] = (await serving.client.get(path)).json["gone"]
            assert (left["rank"], left["cause"], left["reason"]) == (1, "finished", "enough")


async def test_a_page_that_there_is_none_of_and_a_round_that_is_over_are_refused() -> None:
    async with http_server() as serving:
        assert (await serving.client.get(ROSTER)).status == 404
        settings = {"min_nodes": 2, "max_nodes": 2}
        await join(serving, "a", settings)
        assert (await serving.client.get(ROSTER)).status == 409
        await join(serving, "b", settings)
        for query, status in (("first=1", 400), ("first=56", 400), ("round=1", 409), ("rank=1", 400)):
            assert (await serving.client.get(f"{ROSTER}?{query}")).status == status, query
        assert (await serving.client.get(f"{ROSTER}/gone?round=7")).status == 409


async def test_what_does_not_fit_the_run_is_refused_in_words() -> None:
    async with http_server() as serving:
        bad: list[tuple[dict[str, Any], str]] = [
            ({"role": "cook", "facts": {"step": 1}}, "must be one of trainer, generator"),
            ({"role": "trainer", "facts": {"step": "one"}}, "a finite number"),
            ({"role": "trainer"}, "facts['step'] is 'missing'"),
            ({"role": "trainer", "facts": {"step": 1}, "slots": 0}, "slots is 0"),
            ({"role": "trainer", "facts": {"step": 1}, "data": "x" * 5000}, "5002 bytes as JSON"),
            ({"role": "trainer", "fact": {"step": 1}}, "fact"),
        ]
        for brings, said in bad:
            reply = await join(serving, "a", **brings)
            assert reply.status in (400, 409, 422), (brings, reply.status)
            assert said in reply.json["detail"], reply.json
        unlike = {**SETTINGS, "rules": {**RULES, "node_unit": 3}}
        reply = await join(serving, "a", unlike, role="trainer")
        assert "node_unit is 3" in reply.json["detail"]

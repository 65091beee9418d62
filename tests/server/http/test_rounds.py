"""The latest rounds of a run: how long each gathered, who came last, and what ended it."""

from __future__ import annotations

import asyncio

from arendezvous.law.operations import Join, Leave
from arendezvous.law.state import Cause, NodeDesc, RunSettings
from tests.kit.http_kit import problem_of, served

PAIR = RunSettings(2, 2, keep_alive_interval=3600.0)


async def test_rounds_are_listed_with_who_came_last_what_ended_them_and_the_one_that_gathers() -> None:
    async with asyncio.timeout(120), served() as (server, client):
        coordinator, now = server.coordinator, [1000.0]
        coordinator.clock = lambda: now[0]

        def join(node: str, after: tuple[int, int] = (0, -1), run: str = "job") -> None:
            attachment = coordinator.attach(run, node, node.encode(), lambda _: None)
            coordinator.propose(attachment, Join(NodeDesc(node), PAIR, after))

        join("a")
        now[0] += 3
        join("b")
        now[0] += 10
        coordinator.propose(
            coordinator.runs["job"].attachments["b"], Leave("b", "out of memory", Cause.FAILED)
        )
        async with client.get("/v1/runs") as answer:
            (line,) = (await answer.json())["runs"]
        join("a", after=(1, 0))
        now[0] += 4
        async with client.get("/v1/runs") as answer:
            (gathering,) = (await answer.json())["runs"]
        async with client.get("/v1/runs/job/rounds") as answer:
            first, second = (await answer.json())["rounds"]
        join("c", run="other")
        join("d", run="other")
        for node in ("c", "d"):
            attachment = coordinator.runs["other"].attachments[node]
            coordinator.propose(attachment, Leave(node, "", Cause.FINISHED))
        async with client.get("/v1/runs/other/rounds") as answer:
            (done,) = (await answer.json())["rounds"]
        async with client.get("/v1/runs/none/rounds") as answer:
            assert await problem_of(answer) == (404, "no-such-run")
    assert done["why"] == "its nodes finished their work"
    assert (line["lost"], line["waited"], gathering["lost"], gathering["waited"]) == (1, 0.0, 0, 4.0)
    assert (first["began"], first["completed"], first["ended"]) == (17.0, 14.0, 4.0)
    assert (first["world_size"], first["late"]) == (2, [{"node": "b", "after": 3.0}])
    assert first["why"] == "b failed: out of memory"
    assert (second["round"], second["began"], second["completed"], second["late"]) == (1, 4.0, None, [])

"""The commands that look at a server and steer a run do so over HTTP, too."""

from __future__ import annotations

import asyncio

from arendezvous.cli.exits import ExitCode
from tests.kit.cli_kit import run
from tests.kit.http_kit import join, served


async def test_a_run_is_shown_and_steered_over_http() -> None:
    async with asyncio.timeout(120), served() as (server, client):
        url = server.http_url
        assert url is not None
        await join(client, "a", keep_alive_interval=60.0)
        await join(client, "b", keep_alive_interval=60.0)
        runs, nodes, words, unknown, drained = await asyncio.gather(
            run("status", url),
            run("status", url, "job"),
            run("explain", url, "job"),
            run("explain", url, "jab"),
            run("drain", url, "job", "b", "--deadline", "50"),
        )
        closed = await run("close", url, "job", "--reason", "over")
        reopened = await run("reopen", url, "job")
        status = server.coordinator.status("job")
    assert runs.out.startswith(f"{url} keeps 1 run\n")
    assert "\na     member  0 " in nodes.out
    assert "run 'job': round 0 is complete with 2 nodes" in words.out
    assert (unknown.code, "did you mean job?" in unknown.err) == (ExitCode.NOT_FOUND, True)
    assert drained.out == "b is draining, and will be gone within 50 s\n"
    assert closed.out == "run 'job' is closed\n"
    assert reopened.out == "run 'job' is open again: incarnation 2\n"
    assert status.incarnation == 2

"""nginx in front of the server: long-polls and streams outlive its idle limit."""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import arendezvous as ar
from arendezvous.backends.http.backend import HttpBackend
from arendezvous.law.events import NodeDeparted
from arendezvous.law.operations import Join
from arendezvous.law.state import NodeDesc, Phase, RunSettings
from arendezvous.server.http import stream
from arendezvous.server.http.resources import members
from arendezvous.testing.check_tools import join_until_member, view_where
from tests.kit.http_kit import PAIR, SESSION, Events, backend_at, http_port, join, served
from tests.kit.process_kit import ended, send_signal
from tests.kit.waiting import until

IDLE = 4  # seconds after which nginx cuts off what is silent, in place of its 60
CONFIGURATION = """
daemon off;
pid {directory}/nginx.pid;
error_log stderr;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {directory}; proxy_temp_path {directory}; fastcgi_temp_path {directory};
    uwsgi_temp_path {directory}; scgi_temp_path {directory};
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://127.0.0.1:{server};
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_read_timeout {idle}s;
            send_timeout {idle}s;
        }}
    }}
}}
"""
pytestmark = pytest.mark.skipif(shutil.which("nginx") is None, reason="there is no nginx here")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limits of the server in the same proportion to those of nginx as they are in earnest."""
    assert stream.PING * 4 <= 60
    assert members.LONGEST_WAIT < 60
    monkeypatch.setattr(stream, "PING", IDLE * stream.PING / 60)
    monkeypatch.setattr(members, "LONGEST_WAIT", IDLE * 0.3)


@asynccontextmanager
async def nginx(directory: Path, port: int, server: ar.Server) -> AsyncIterator[str]:
    """Runs nginx in front of `server`; its URL."""
    text = CONFIGURATION.format(directory=directory, port=port, server=http_port(server), idle=IDLE)
    (directory / "nginx.conf").write_text(text)
    process = await asyncio.create_subprocess_exec(
        "nginx", "-c", f"{directory}/nginx.conf", "-p", f"{directory}"
    )
    async with ended(process):
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            send_signal(process, signal.SIGTERM)  # it ends its workers, which SIGKILL would leave
            await process.wait()


async def test_a_stream_and_a_long_poll_outlive_the_idle_limit(tmp_path: Path, free_port: int) -> None:
    async with (
        asyncio.timeout(120),
        served() as (server, client),
        nginx(tmp_path, free_port, server) as url,
        HttpBackend("127.0.0.1", free_port, "other", read_timeout=60) as backend,
    ):
        await backend.status()  # nginx answers
        body = {"node": {"name": "a"}, "settings": PAIR}
        accept = {"Accept": "text/event-stream"}
        async with client.post(f"{url}/v1/runs/job/members", json=body, headers=accept) as answer:
            events = Events(answer)
            joined = await events.next()
            waiting = await join(client, "w", "third")
            path = f"{url}/v1/runs/third/members/w/view"
            query = {"since": waiting["view"]["revision"], "wait": "600"}
            polls = []
            for _ in range(4):  # together longer than the limit
                async with client.get(path, params=query, headers={SESSION: waiting["session"]}) as poll:
                    polls.append(poll.status)
            await join(client, "b")
            view = await events.next()
        assert joined.name == "joined"
        assert b'"phase":"member"' in view.data
        assert polls == [304] * 4


async def test_nobody_is_lost_who_comes_back_while_nginx_is_restarted_again_and_again(
    tmp_path: Path, free_port: int
) -> None:
    """The grace ends when the streams are opened again; the next heartbeats are a minute away."""
    departed: list[str] = []

    async def take_part(name: str) -> None:
        url = f"http://127.0.0.1:{free_port}"
        async with ar.open_rendezvous(
            url, run_id="job", nnodes="3", node=name, keep_alive_interval=60, disconnect_grace=10
        ) as rendezvous:
            await rendezvous.next_rendezvous()
            async for change in rendezvous.changes():
                departed.append(f"{name} was told of {change}")

    async with asyncio.timeout(120), served() as (server, _), asyncio.TaskGroup() as tasks:
        server.coordinator.observe(lambda _, now, event: departed.append(str(event)), NodeDeparted)
        async with nginx(tmp_path, free_port, server):
            nodes = [tasks.create_task(take_part(name)) for name in "abc"]
            await until(lambda: "job" in server.coordinator.runs)
            state = server.coordinator.runs["job"].state
            await until(lambda: len(state.participants) == 3)
        for _ in range(4):
            await until(lambda: len(state.suspects) == 3)
            async with nginx(tmp_path, free_port, server):
                await until(lambda: not state.suspects)
                assert departed == []
        for node in nodes:
            node.cancel()


async def test_members_through_nginx_and_past_it_meet(tmp_path: Path, free_port: int) -> None:
    settings = RunSettings(2, 2, disconnect_grace=0.0)
    async with (
        asyncio.timeout(120),
        served() as (server, _),
        nginx(tmp_path, free_port, server),
        HttpBackend("127.0.0.1", free_port, "job", read_timeout=60) as one,
        backend_at(server) as two,
    ):
        waiting = await one.propose(Join(NodeDesc("a"), settings))
        await join_until_member(two, Join(NodeDesc("b"), settings))
        member = await view_where(one, waiting, lambda view: view.phase is Phase.MEMBER)
        assert (member.rank, member.world_size) == (0, 2)

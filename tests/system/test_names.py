"""Runs and nodes may have any printable name, which means the same at every listener and on every surface."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from yarl import URL

import arendezvous as ar
from tests.kit.cli_kit import a_server, run
from tests.kit.etcd_server import serve_etcd
from tests.kit.http_kit import served

ODD = [
    "job-{id}", "worker-{0}", "{", "{}", "...", "../x", "x/..", "a/b", "a//b", "/", "a%2Fb", "%", "%zz",
    "%2e%2E", "é", "e\u0301", "日本", "😀", " ", "a b", "+", "?", "a?b=c&d", "#", ";", "\\", '"', "'", "<b>",
    "[red]", "*", "--help", "-", "close", "events", "members", "view", "n" * 256,
]  # fmt: skip
NAMES = st.text(st.characters(exclude_categories=["Cs"]).filter(str.isprintable), min_size=1, max_size=256)


async def take_part(url: str, run_id: str, node: str) -> None:
    """Does all that a node does under these names."""
    async with ar.open_rendezvous(
        url, run_id=run_id, node=node, nnodes="1", keep_alive_interval=0.2, keep_alive_max_attempt=100
    ) as rendezvous:
        info = await rendezvous.next_rendezvous()
        assert [member.name for member in await info.members()] == [node]
        await info.store.set(node, run_id)
        assert await info.store.get(node) == run_id.encode()
        await rendezvous.drain(60, "to see")
        status = await rendezvous.explain()
        assert (status.run_id, [one.desc.name for one in status.nodes]) == (run_id, [node])
        assert status.nodes[0].drain_left
        await rendezvous.leave(cause=ar.Cause.FINISHED)
        await rendezvous.set_closed("done")
        assert await rendezvous.is_closed()


async def look_by_http(client: aiohttp.ClientSession, run_id: str, node: str) -> None:
    """Asks for all that the page and curl may ask, of a run that was there."""
    path = f"/v1/runs/{quote(run_id, safe='')}"
    async with client.get(URL(f"{path}/events", encoded=True)) as stream:
        assert stream.status == 200, await stream.text()
    for more in ("", "/members", f"/members/{quote(node, safe='')}"):
        async with client.get(URL(path + more, encoded=True)) as answer:
            assert answer.status == (409 if more == "/members" else 200), await answer.text()
            found: dict[str, Any] = await answer.json()
    assert found["node"] == node
    async with client.post(URL(f"{path}/close", encoded=True), json={"by": "me"}) as answer:
        assert answer.status == 200, await answer.text()
    async with client.post(URL(f"{path}/reopen", encoded=True), json={"incarnation": 1}) as answer:
        assert answer.status == 200, await answer.text()


@settings(max_examples=10)
@given(names=st.lists(NAMES.filter(lambda name: name not in (".", "..")), min_size=1, max_size=5))
@example(names=ODD)
def test_every_printable_name_works_at_both_listeners(names: list[str]) -> None:
    async def check() -> None:
        async with served() as (server, client):
            for at, name in enumerate(names):
                for url in (server.tcp_url, server.http_url or ""):
                    node = f"{url[:4]}{at}"
                    for run_id, named in ((name, node), (node, name)):
                        await take_part(url, run_id, named)
                        await look_by_http(client, run_id, named)

    asyncio.run(check())


async def test_odd_names_work_over_etcd_and_in_memory() -> None:
    async with serve_etcd() as etcd:
        for url in (f"etcd://{etcd.urls[0].removeprefix('http://')}", "memory://names"):
            for at, name in enumerate(ODD):
                await take_part(url, f"run{at}", name)
                await take_part(url, name, f"node{at}")


@pytest.mark.parametrize("name", [".", ".."])
@pytest.mark.parametrize("scheme", ["tcp", "http", "etcd", "memory", "c10d"])
def test_a_name_that_a_url_cannot_have_is_refused_before_anything_is_done(scheme: str, name: str) -> None:
    url = f"{scheme}://127.0.0.1:1" if scheme != "memory" else "memory://"
    with pytest.raises(ar.RendezvousSettingsError, match=r"run_id is '.+', but must be another name"):
        ar.open_rendezvous(url, run_id=name, nnodes="1")
    if scheme != "c10d":
        with pytest.raises(ar.RendezvousSettingsError, match=r"node name is '.+', but must be another name"):
            ar.open_rendezvous(url, run_id="job", nnodes="1", node=name)


@pytest.mark.parametrize("name", ["job-{id}", "a/b %2F", "--help", "[red]é"])
async def test_odd_names_are_arguments_and_shown_as_they_are(name: str) -> None:
    async with a_server() as (url, _), ar.open_rendezvous(url, run_id=name, node=name, nnodes="1") as node:
        await node.next_rendezvous()
        status = await run("status", "--json", "--", url, name)
        assert [one["desc"]["name"] for one in status.data["nodes"]] == [name]
        for command in ("status", "explain"):
            shown = await run(command, "--", url, name)
            assert (shown.code, name in shown.out) == (0, True), shown
        assert (await run("drain", "--", url, name, name)).code == 0
        closed = await run("close", "--", url, name)
        assert (closed.code, closed.out) == (0, f"run {name!r} is closed\n")

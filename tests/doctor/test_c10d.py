"""``arendezvous doctor c10d://``: who answers as a TCPStore, and whose clocks are off."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

import arendezvous as ar
from arendezvous.backends.shared_state.compare_and_set import CompareAndSetBackend
from arendezvous.cli.exits import ExitCode
from arendezvous.doctor.checks import STAMPS, Level
from arendezvous.doctor.tcp import check_clocks
from arendezvous.law.operations import Join
from arendezvous.law.state import NodeDesc, RunSettings
from arendezvous.server.store_server import serve_store
from arendezvous.wire.native.messages import VERSION
from tests.kit.cli_kit import a_server, run, run_here


async def test_a_node_can_join_where_our_server_lets_everybody_in() -> None:
    async with a_server() as (url, _):
        where = url.replace("tcp://", "c10d://")
        result = await run("doctor", where)
        data = (await run("doctor", where, "--json")).data
    assert (result.code, result.out.splitlines()[-1]) == (ExitCode.OK, "a node here could join")
    said = f"an arendezvous server (protocol version {VERSION}, ours is {VERSION}); it speaks"
    assert f"ok       server     {said}" in result.out
    assert [check["name"] for check in data["checks"]] == [
        "name", "port", "server", "host", "address", "own name", "clock", "open files",
    ]  # fmt: skip


async def test_a_node_can_join_at_a_store_of_anybody_and_is_told_who_is_in_the_run() -> None:
    async with serve_store("127.0.0.1") as store:
        where = f"c10d://127.0.0.1:{store.port}"
        async with ar.open_rendezvous(where, run_id="job", nnodes="1", node="n0") as node:
            await node.next_rendezvous()
            result = await run("doctor", where, "job")
    assert result.code == ExitCode.OK
    assert "a TCPStore that is no arendezvous server; it speaks the protocol of TCPStore" in result.out
    assert "of 1 nodes in run 'job', none is seen to have a clock that is off" in result.out
    assert "in it: n0" in result.out


async def test_a_server_that_asks_for_a_token_is_none_for_c10d() -> None:
    async with ar.serve("127.0.0.1:0", authority=ar.Authority.of("t" * 32)) as server:
        result = await run("doctor", f"c10d://127.0.0.1:{server.port}")
    assert result.code == ExitCode.FAILED
    assert "c10d:// shows no token: use tcp://, or start the server with --allow-plain-stores" in result.out


def test_nobody_there_yet_is_what_a_first_node_finds(free_port: int) -> None:
    result = run_here("doctor", f"c10d://127.0.0.1:{free_port}")
    assert (result.code, "the first node here will host the server" in result.out) == (ExitCode.OK, True)
    assert str(STAMPS) in result.out


@pytest.mark.parametrize(("ahead", "level"), [(0.0, Level.OK), (60.0, Level.WARNING)])
async def test_a_clock_that_is_off_is_named_with_what_to_do(ahead: float, level: Level) -> None:
    async with ar.MemoryStore() as store:

        def wall() -> datetime:
            return datetime.now(UTC) + timedelta(seconds=ahead)

        key = CompareAndSetBackend.over(store, "job")
        async with CompareAndSetBackend(key._fenced, "job", store=store, wall=wall) as backend:
            await backend.propose(Join(NodeDesc("n0"), RunSettings(1, 1)))
            check = await check_clocks(CompareAndSetBackend.over(store, "job"))
    assert (check.name, check.level) == ("clock", level)
    if level is Level.WARNING:
        assert "n0 by +6" in check.found or "n0 by +5" in check.found
        assert "set them" in check.advice

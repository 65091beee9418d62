"""The commands, on runs that are kept in etcd and not at a server of ours."""

from __future__ import annotations

import asyncio

import pytest

import arendezvous as ar
from arendezvous.cli.exits import ExitCode
from arendezvous.law.state import Cause
from tests.kit.cli_kit import run, run_here, running
from tests.kit.etcd_server import serve_etcd

SCHEMES = ["etcd", "etcd-v2"]
V2 = ("--enable-v2",)


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_run_in_etcd_is_shown_explained_and_closed(scheme: str) -> None:
    async with serve_etcd(options=V2) as etcd:
        url = etcd.urls[0].replace("http", scheme)
        async with ar.open_rendezvous(url, run_id="job", min_nodes=1, node="alpha") as handler:
            await handler.next_rendezvous()
            status, explained, absent = await asyncio.gather(
                run("status", url, "job"), run("explain", url, "job", "--json"), run("status", url, "other")
            )
            assert (status.code, absent.code) == (ExitCode.OK, ExitCode.NOT_FOUND)
            assert status.out.splitlines()[0] == "run 'job': round 0 is complete with 1 node"
            assert "alpha" in status.out
            assert explained.data["nodes"][0]["desc"]["name"] == "alpha"
            assert f"there is no run 'other' at {url}" in absent.err

            closing = await run("close", url, "job", "--reason", "maintenance")
            assert (closing.code, closing.out) == (ExitCode.OK, "run 'job' is closed\n")
            assert [str(change) async for change in handler.changes()][-1].endswith("maintenance")
            again = await run("close", url, "job")
            assert "was closed already, by " in again.out


async def test_a_run_in_etcd_is_drained_and_reopened() -> None:
    async with serve_etcd() as etcd:
        url = etcd.urls[0].replace("http", "etcd")
        async with ar.open_rendezvous(url, run_id="job", min_nodes=1, node="alpha") as handler:
            await handler.next_rendezvous()
            drained = await run("drain", url, "job", "alpha", "--reason", "maintenance")
            assert (drained.code, drained.err) == (ExitCode.OK, "")
            assert "alpha is draining" in drained.out
            await handler.set_closed("done")
            reopened = await run("reopen", url, "job")
            assert (reopened.code, reopened.out) == (
                ExitCode.OK,
                "run 'job' is open again: incarnation 2\n",
            )


async def test_what_the_format_of_stock_agents_has_no_place_for_is_refused() -> None:
    async with serve_etcd(options=V2) as etcd:
        url = etcd.urls[0].replace("http", "etcd-v2")
        async with ar.open_rendezvous(url, run_id="job", min_nodes=1, node="alpha") as handler:
            await handler.next_rendezvous()
            drained = await run("drain", url, "job", "alpha")
            assert (drained.code, drained.out) == (ExitCode.FAILED, "")
            assert "in the format of stock agents" in drained.err
            await handler.leave(cause=Cause.FINISHED)


async def test_runs_in_etcd_are_listed_and_watched_as_those_of_any_server() -> None:
    async with serve_etcd() as etcd:
        url = etcd.urls[0].replace("http", "etcd")
        nobody = await run("status", url, "--timeout", "1")
        assert (nobody.code, nobody.out) == (ExitCode.UNREACHABLE, "")
        assert "nobody serves at the moment" in nobody.err
        async with (
            ar.open_rendezvous(url, run_id="job", min_nodes=1, node="alpha") as handler,
            running("watch", url, "job", "--json") as watching,
        ):
            await handler.next_rendezvous()
            assert "job" in (await run("status", url)).out
            await watching.line()  # the status with which it begins
            await handler.set_closed("done")
            await watching.report("RunClosed")


async def test_what_needs_a_server_of_ours_says_so() -> None:
    results = await asyncio.gather(run("status", "etcd-v2://h"), run("watch", "etcd-v2://h", "job"))
    for result in results:
        assert (result.code, result.out) == (ExitCode.USAGE, "")
        assert (
            "must be a URL that begins with tcp://, http://, https:// or etcd://; in a store, 'status' with a"
            " RUN_ID" in result.err
        )


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_file_that_is_of_no_use_is_told_of_by_the_command_lines_own_option(scheme: str) -> None:
    result = run_here("status", f"{scheme}://h", "job", "--tls-ca", "absent")
    assert (result.code, result.out) == (ExitCode.USAGE, "")
    assert result.err.startswith("error: --tls-ca is 'absent', which cannot be read: No such file")


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_the_doctor_examines_a_cluster(scheme: str, free_port: int) -> None:
    async with serve_etcd(options=V2) as etcd:
        url = etcd.urls[0].replace("http", scheme)
        result = await run("doctor", f"{url},127.0.0.1:{free_port}")
    lines = result.out.splitlines()
    assert (result.code, lines[-1]) == (ExitCode.OK, "a node here could join")
    assert f"ok       cluster    {url},127.0.0.1:{free_port} answers, and lets this node" in result.out
    assert f"warning  port       127.0.0.1:{free_port}: " in result.out  # one that is away stops nobody
    assert "warning  members    2 members are named; name all members of a cluster of three" in result.out


async def test_the_doctor_tells_what_answers_in_place_of_the_api_that_is_wanted(free_port: int) -> None:
    async with serve_etcd() as etcd:
        other, nobody = await asyncio.gather(
            run("doctor", etcd.urls[0].replace("http", "etcd-v2")),
            run("doctor", f"etcd-v2://127.0.0.1:{free_port}"),
        )
    assert (other.code, nobody.code) == (ExitCode.FAILED, ExitCode.FAILED)
    assert "which does not serve the v2 API: use etcd://" in other.out
    assert other.out.splitlines()[-1] == "a node here could not join: cluster"
    assert nobody.out.splitlines()[-1] == "a node here could not join: port, cluster"

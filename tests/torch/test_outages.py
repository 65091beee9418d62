"""Torchrun agents whose server is killed, started again, or gone for good."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from tests.kit.script_kit import script
from tests.kit.torchrun_kit import a_gate, agent

pytest.importorskip("torch", reason="torchrun comes with torch")


class Servers:
    """One server at a time at one address, each in a process of its own."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"tcp://127.0.0.1:{port}"
        self._running = AsyncExitStack()

    async def start(self) -> None:
        serve = ("-m", "arendezvous", "serve", "--port", str(self.port))
        server = await self._running.enter_async_context(script(*serve))
        await server.line_with("serving")

    async def kill(self) -> None:
        await self._running.aclose()


@asynccontextmanager
async def a_server(port: int) -> AsyncIterator[Servers]:
    servers = Servers(port)
    try:
        await servers.start()
        yield servers
    finally:
        await servers.kill()


@pytest.mark.parametrize("unshared", ["0", "1"])
async def test_a_worker_is_restarted_after_the_server_was_killed_and_started_again(
    free_port: int, unshared: str
) -> None:
    options = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": unshared}
    async with (
        a_server(free_port) as server,
        a_gate() as gate,
        agent("a", server.url, "2", "--max-restarts=1", gate=gate.port, **options) as a,
        agent("b", server.url, "2", "--max-restarts=1", gate=gate.port, mode="fail-once", **options) as b,
    ):
        await gate.arrived("a 2", "b 2")
        await server.kill()
        await server.start()
        gate.open("b")
        await gate.arrived("a 2", "b 2")
        gate.open("a", "b")
        assert [*await asyncio.gather(a.end(), b.end())] == [0, 0], a.output + b.output


async def test_a_worker_that_dies_while_there_is_no_server_is_restarted_once_there_is(
    free_port: int,
) -> None:
    async with (
        a_server(free_port) as server,
        a_gate() as gate,
        agent("a", server.url, "2", "--max-restarts=1", gate=gate.port) as a,
        agent("b", server.url, "2", "--max-restarts=1", gate=gate.port, mode="fail-once") as b,
    ):
        await gate.arrived("a 2", "b 2")
        await server.kill()
        gate.open("b")
        await b.line_with("exitcode: 7")
        await server.start()
        await gate.arrived("a 2", "b 2")
        gate.open("a", "b")
        assert [*await asyncio.gather(a.end(), b.end())] == [0, 0], a.output + b.output


async def test_agents_that_have_succeeded_end_well_though_the_server_is_gone(free_port: int) -> None:
    async with (
        a_server(free_port) as server,
        a_gate() as gate,
        agent("a", server.url, "2", gate=gate.port) as a,
        agent("b", server.url, "2", gate=gate.port) as b,
    ):
        await gate.arrived("a 2", "b 2")
        await server.kill()
        gate.open("a", "b")
        assert [*await asyncio.gather(a.end(), b.end())] == [0, 0], a.output + b.output
    for output in (a.output, b.output):
        assert "Traceback" not in output, output
        assert "not waiting for the other agents any more" in output


async def test_an_agent_that_waits_in_the_exit_barrier_ends_well_when_the_server_is_killed(
    free_port: int,
) -> None:
    async with (
        a_server(free_port) as server,
        a_gate() as gate,
        agent("a", server.url, "2", gate=gate.port, LOGLEVEL="INFO") as a,
        agent("b", server.url, "2", gate=gate.port) as b,
    ):
        await gate.arrived("a 2", "b 2")
        gate.open("a")
        await a.line_with("for other agents to finish")
        await server.kill()
        assert await a.end() == 0, a.output
        gate.open("b")
        assert await b.end() == 0, b.output
        assert "Traceback" not in a.output + b.output


async def test_agents_leave_the_exit_barrier_together_though_the_server_forgot_who_was_there(
    free_port: int,
) -> None:
    patient = "last_call_timeout=0.1,disconnect_grace=20"  # whoever comes back late is not taken for lost
    async with (
        a_server(free_port) as server,
        a_gate() as gate,
        agent("a", server.url, "2", gate=gate.port, conf=patient, LOGLEVEL="INFO") as a,
        agent("b", server.url, "2", gate=gate.port, conf=patient, LOGLEVEL="INFO") as b,
    ):
        await gate.arrived("a 2", "b 2")
        gate.open("a")
        await a.line_with("for other agents to finish")
        await server.kill()
        await server.start()
        gate.open("b")
        assert [*await asyncio.gather(a.end(), b.end())] == [0, 0], a.output + b.output
    for output in (a.output, b.output):
        assert "Traceback" not in output, output


async def test_an_agent_that_is_terminated_while_there_is_no_server_ends_soon(free_port: int) -> None:
    async with (
        a_server(free_port) as server,
        a_gate() as gate,
        agent("a", server.url, "1", gate=gate.port) as a,
    ):
        await gate.arrived("a 1")
        await server.kill()
        a.send_signal(signal.SIGTERM)
        async with asyncio.timeout(20):
            assert await a.end() != 0


@pytest.mark.parametrize("host", ["ours", "stock"])
async def test_an_agent_of_a_mixed_job_ends_well_when_the_host_of_the_store_has_ended_first(
    free_port: int, host: str
) -> None:
    endpoint = f"127.0.0.1:{free_port}"
    mixed = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    kinds = {"ours": "arendezvous-c10d", "stock": "c10d"}
    async with (
        a_gate() as gate,
        agent(
            "a", endpoint, "2", f"--rdzv-backend={kinds[host]}", gate=gate.port, conf="is_host=true", **mixed
        ) as a,
        agent(
            "b", endpoint, "2", "--rdzv-backend=arendezvous-c10d", gate=gate.port, conf="is_host=false"
        ) as b,
    ):
        await gate.arrived("a 2", "b 2")
        a.kill()
        gate.open("b")
        async with asyncio.timeout(30):
            assert await b.end() == 0, b.output
        assert "Traceback" not in b.output

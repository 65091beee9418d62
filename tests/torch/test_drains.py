"""Torchrun agents that are drained, and agents whose peer closed the run and left."""

from __future__ import annotations

import pytest

import arendezvous as ar
from arendezvous.backends.tcp.session import SessionBackend
from arendezvous.law.operations import Drain
from tests.kit.torchrun_kit import a_gate, agent

pytest.importorskip("torch", reason="torchrun comes with torch")


async def test_a_drained_agent_ends_with_0_and_the_others_go_on_without_it_after_one_restart() -> None:
    async with (
        ar.serve("127.0.0.1:0") as server,
        SessionBackend(server.host, server.port, "job") as operator,
        a_gate() as gate,
        agent("a", server.tcp_url, "1:2", gate=gate.port, conf="last_call_timeout=3") as a,
        agent("b", server.tcp_url, "1:2", gate=gate.port, conf="last_call_timeout=3") as b,
    ):
        await gate.arrived("a 2", "b 2")
        drained = next(node.desc.name for node in (await operator.status()).nodes if node.rank == 1)
        await operator.propose(Drain(drained, 60.0, "maintenance"))
        last, size = await gate.next()
        assert size == 1
        stays, goes = (a, b) if last == "a" else (b, a)
        assert await goes.end() == 0, goes.output
        assert "Traceback" not in goes.output
        status = await operator.status()
        assert [(gone.node, gone.cause) for gone in status.departed] == [(drained, ar.Cause.DRAINED)]
        gate.open(last)
        assert await stays.end() == 0, stays.output
        assert (stays.output + goes.output).count(": rank ") == 3


async def test_a_survivor_of_a_run_that_a_peer_closed_as_it_failed_ends_and_says_why() -> None:
    async with (
        ar.serve("127.0.0.1:0") as server,
        a_gate() as gate,
        agent("a", server.tcp_url, "2:2", gate=gate.port) as a,
        agent("b", server.tcp_url, "2:2", gate=gate.port, mode="fail") as b,
    ):
        await gate.arrived("a 2", "b 2")
        gate.open("b")
        assert await b.end() == 1
        assert await a.end() == 1
        assert "its workers failed: ChildFailedError" in a.output
        assert "RendezvousStateError" in a.output

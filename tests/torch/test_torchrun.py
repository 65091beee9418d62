"""Real torchrun agents with ``--rdzv-backend=arendezvous``, and workers that check an all_reduce."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AbstractAsyncContextManager

import pytest

import arendezvous as ar
from arendezvous.backends.tcp.session import SessionBackend
from arendezvous.law.state import Phase
from tests.kit import torch_python
from tests.kit.etcd_server import serve_etcd
from tests.kit.script_kit import Script, script
from tests.kit.torchrun_kit import QUICK, QUICK_DNS, a_gate, agent
from tests.kit.waiting import until_seen

pytest.importorskip("torch", reason="torchrun comes with torch")

ONE_NODE = """
import sys
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler
try:
    raise ValueError("an earlier attempt")
except ValueError:
    params = RendezvousParameters("arendezvous", sys.argv[1], "job", 1, 1, last_call_timeout=0.1)
    handler = get_rendezvous_handler(params)
    store = handler.next_rendezvous().store
    store.set("key", "value")
    print("key" in store.list_keys(), store.queue_len("queue"), handler.shutdown())
"""


def one_node(endpoint: str) -> AbstractAsyncContextManager[Script]:
    return script("-c", ONE_NODE, endpoint, python=torch_python.command(), **QUICK_DNS)


async def test_an_elastic_job_admits_a_late_agent_and_outlives_killed_and_terminated_ones() -> None:
    async with (
        ar.serve("127.0.0.1:0") as server,
        SessionBackend(server.host, server.port, "job") as observer,
        a_gate() as gate,
        agent("a", server.tcp_url, "1:2", gate=gate.port) as a,
    ):
        await gate.arrived("a 1")
        async with agent("b", server.tcp_url, "1:2", gate=gate.port) as b:
            await gate.arrived("a 2", "b 2")
            b.kill()
            await gate.arrived("a 1")
        async with agent("c", server.tcp_url, "1:2", gate=gate.port) as c:
            await gate.arrived("a 2", "c 2")
            before = await observer.status()
            c.send_signal(signal.SIGTERM)
            await gate.arrived("a 1")
            after = await observer.status()
            assert after.departed[-1].reason == "its process received SIGTERM"
            assert (before.world_size, after.world_size, after.closed) == (2, 1, None)
            assert await c.end() != 0
        gate.open("a")
        assert await a.end() == 0, a.output
        async with agent("late", server.tcp_url, "1:2") as late:
            assert await late.end() == 1
            assert "the run was closed by" in late.output
            assert "finished: its work succeeded" in late.output
            assert "RendezvousClosedError" in late.output


async def test_a_signal_that_torchrun_was_told_to_handle_is_told_to_the_peers_with_its_name() -> None:
    async with (
        ar.serve("127.0.0.1:0") as server,
        SessionBackend(server.host, server.port, "job") as observer,
        a_gate() as gate,
        agent("a", server.tcp_url, "1", "--signals-to-handle=SIGTERM, SIGUSR1", gate=gate.port) as a,
    ):
        await gate.arrived("a 1")
        a.send_signal(signal.SIGUSR1)
        status = await until_seen(observer.status, lambda status: status.departed)
        assert status.departed[-1].reason == "its process received SIGUSR1"
        assert await a.end() != 0


async def test_a_worker_that_fails_once_is_restarted_on_all_nodes_beside_another_run(free_port: int) -> None:
    endpoint = f"127.0.0.1:{free_port}"
    async with (
        a_gate() as gate,
        agent("a", endpoint, "2", "--max-restarts=1", gate=gate.port) as a,
        agent("b", endpoint, "2", "--max-restarts=1", gate=gate.port, mode="fail-once") as b,
        agent("other", endpoint, "1", run_id="another") as other,
    ):
        assert await other.line_with("other: ") == "other: rank 0 of 1 in another, restarts 0"
        await gate.arrived("a 2", "b 2")
        gate.open("b")
        await gate.arrived("a 2", "b 2")
        gate.open("a", "b")
        assert [*await asyncio.gather(a.end(), b.end(), other.end())] == [0, 0, 0], a.output + b.output
    assert "of 2 in job, restarts 1" in b.output


async def test_a_spare_takes_the_place_of_a_killed_agent_and_the_next_one_exits_cleanly() -> None:
    async with (
        ar.serve("127.0.0.1:0") as server,
        SessionBackend(server.host, server.port, "job") as observer,
        a_gate() as gate,
        agent("a", server.tcp_url, "2", gate=gate.port) as a,
        agent("b", server.tcp_url, "2", gate=gate.port) as b,
    ):
        await gate.arrived("a 2", "b 2")
        async with agent("c", server.tcp_url, "2", gate=gate.port) as c:
            await spares(observer, 1)
            async with agent("d", server.tcp_url, "2", gate=gate.port) as d:
                await spares(observer, 2)
                b.kill()
                await gate.arrived("a 2", "c 2")
                gate.open("a", "c")
                assert [*await asyncio.gather(a.end(), c.end(), d.end())] == [0, 0, 0], d.output
                assert "Traceback" not in d.output


async def spares(observer: SessionBackend, count: int) -> None:
    """Waits until so many nodes are spares."""
    await until_seen(observer.status, lambda status: len(status.of_phase(Phase.REDUNDANT)) == count)


async def test_a_job_ends_well_over_ipv6_without_a_shared_store_when_its_host_goes_first(
    free_port: int,
) -> None:
    endpoint = f"[::1]:{free_port}"
    conf = f"{QUICK},read_timeout=60"
    async with (
        agent(
            "a",
            endpoint,
            "2",
            "--local-addr=::1",
            conf=f"{conf},is_host=true",
            TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1",
        ) as a,
        agent(
            "b",
            endpoint,
            "2",
            "--local-addr=::1",
            conf=f"{conf},is_host=false",
            TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1",
        ) as b,
    ):
        assert [*await asyncio.gather(a.end(), b.end())] == [0, 0], a.output + b.output
    assert [" of 2 in job" in line.output for line in (a, b)] == [True, True]


async def test_an_agent_that_fails_for_good_leaves_the_run_to_the_others() -> None:
    async with (
        ar.serve("127.0.0.1:0") as server,
        SessionBackend(server.host, server.port, "job") as observer,
        a_gate() as gate,
        agent("a", server.tcp_url, "1:2", gate=gate.port) as a,
    ):
        await gate.arrived("a 1")
        async with agent("b", server.tcp_url, "1:2", mode="fail", gate=gate.port) as b:
            await gate.arrived("a 2", "b 2")
            gate.open("b")
            assert await b.end() == 1
        await gate.arrived("a 1")
        status = await observer.status()
        assert (status.closed, status.departed[-1].cause) == (None, ar.Cause.FAILED)
        assert status.departed[-1].reason == "its workers failed: ChildFailedError"
        gate.open("a")
        assert await a.end() == 0, a.output


async def test_when_too_few_are_left_after_a_failure_the_others_end_and_the_job_can_be_started_again() -> (
    None
):
    async with ar.serve("127.0.0.1:0") as server, a_gate() as gate:
        async with (
            agent("a", server.tcp_url, "2", gate=gate.port) as a,
            agent("b", server.tcp_url, "2", mode="fail", gate=gate.port) as b,
        ):
            await gate.arrived("a 2", "b 2")
            gate.open("b")
            assert [*await asyncio.gather(a.end(), b.end())] == [1, 1]
        assert "failed: its workers failed: ChildFailedError: a round needs 2 nodes" in a.output
        async with (
            agent("a", server.tcp_url, "2", gate=gate.port) as a,
            agent("b", server.tcp_url, "2", gate=gate.port) as b,
        ):
            await gate.arrived("a 2", "b 2")
            gate.open("a", "b")
            assert [*await asyncio.gather(a.end(), b.end())] == [0, 0], a.output + b.output


async def test_an_agent_of_a_closed_run_ends_when_a_peer_is_gone_and_says_who() -> None:
    async with (
        ar.serve("127.0.0.1:0") as server,
        ar.open_rendezvous(server.tcp_url, run_id="job", min_nodes=2) as operator,
        a_gate() as gate,
        agent("a", server.tcp_url, "2", gate=gate.port) as a,
        agent("b", server.tcp_url, "2", gate=gate.port, conf=f"{QUICK},node=b") as b,
    ):
        await gate.arrived("a 2", "b 2")
        await operator.set_closed("finish what you do")
        b.kill()
        assert await a.end() == 1
        assert "finish what you do" in a.output
        assert "members that are gone: b (connection lost" in a.output


async def test_an_agent_with_a_wrong_endpoint_or_a_misspelt_option_says_so(free_port: int) -> None:
    nobody = f"127.0.0.1:{free_port}"
    async with (
        agent("a", nobody, "1", conf="read_timeout=0.3,is_host=false") as wrong,
        agent("b", nobody, "1", conf="last_call_timout=1") as misspelt,
    ):
        assert [*await asyncio.gather(wrong.end(), misspelt.end())] == [1, 1]
    assert f"tcp://{nobody} could not be reached for 0.3 s" in wrong.output
    assert "RendezvousConnectionError" in wrong.output
    assert "no option 'last_call_timout' (did you mean 'last_call_timeout'?)" in misspelt.output


async def test_all_methods_of_the_agents_store_work_beside_the_server_in_the_same_process(
    free_port: int,
) -> None:
    async with script(
        "-c", ONE_NODE, f"127.0.0.1:{free_port}", python=torch_python.command(), **QUICK_DNS
    ) as process:
        assert await process.line() == "True 0 True"
        assert await process.end() == 0


async def test_an_error_that_was_handled_before_a_job_does_not_count_as_its_failure() -> None:
    async with (
        ar.serve("127.0.0.1:0") as server,
        SessionBackend(server.host, server.port, "job") as observer,
        one_node(server.tcp_url) as process,
    ):
        assert await process.end() == 0, process.output
        status = await observer.status()
        assert status.closed is not None
        assert (status.closed.reason, status.departed[-1].cause) == (
            "finished: its work succeeded",
            ar.Cause.FINISHED,
        )


@pytest.mark.parametrize("host", ["ours", "stock"])
async def test_one_of_our_agents_and_a_stock_one_share_a_c10d_job(free_port: int, host: str) -> None:
    endpoint = f"127.0.0.1:{free_port}"

    def ours() -> AbstractAsyncContextManager[Script]:
        return agent("a", endpoint, "2", "--rdzv-backend=arendezvous-c10d", conf=f"is_host={host == 'ours'}")

    def theirs() -> AbstractAsyncContextManager[Script]:
        return agent(
            "b", endpoint, "2", "--rdzv-backend=c10d", conf=f"is_host={host == 'stock'}",
            TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1",  # or it would keep its first round's address for ever
        )  # fmt: skip

    async with ours() as a, theirs() as b:
        assert [*await asyncio.gather(a.end(), b.end())] == [0, 0], a.output + b.output
        assert "of 2 in job, restarts 0" in a.output


async def test_agents_meet_in_etcd_and_meet_again_when_a_worker_fails_or_an_agent_is_killed() -> None:
    async with serve_etcd() as etcd, a_gate() as gate:
        endpoint = etcd.urls[0].removeprefix("http://")
        options = ("--rdzv-backend=arendezvous-etcd", "--max-restarts=2")
        conf = "last_call_timeout=0.3,keep_alive_interval=0.5,keep_alive_max_attempt=16"

        def node(name: str, mode: str = "plain") -> AbstractAsyncContextManager[Script]:
            return agent(name, endpoint, "1:2", *options, gate=gate.port, conf=conf, mode=mode)

        async with node("a") as a:
            await gate.arrived("a 1")
            async with node("b", mode="fail-once") as b:
                await gate.arrived("a 2", "b 2")
                gate.open("b")
                await gate.arrived("a 2", "b 2")
                b.kill()
                await gate.arrived("a 1")
            gate.open("a")
            assert await a.end() == 0, a.output


async def test_one_of_our_agents_and_a_stock_one_share_an_etcd_v2_job() -> None:
    async with serve_etcd(options=["--enable-v2"]) as etcd:
        endpoint = etcd.urls[0].removeprefix("http://")

        def theirs() -> AbstractAsyncContextManager[Script]:
            return agent(
                "b", endpoint, "2", "--rdzv-backend=etcd-v2", conf="last_call_timeout=1",
                TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1",  # see the job over c10d
            )  # fmt: skip

        async with agent("a", endpoint, "2", "--rdzv-backend=arendezvous-etcd-v2") as a, theirs() as b:
            assert [*await asyncio.gather(a.end(), b.end())] == [0, 0], a.output + b.output
            assert "of 2 in job, restarts 0" in a.output

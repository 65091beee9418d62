"""Barriers and deaths at random: nobody is let through too early, or told of somebody who is there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import cycle, repeat
from typing import Any

import anyio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import arendezvous as ar
from arendezvous.law.operations import Disconnect
from arendezvous.testing.virtual_time import VirtualTimeLoop
from tests.kit import EXAMPLES
from tests.kit.wired_loop import WiredLoop

LONG = 3600.0  # seconds that nothing takes
ENDS = (ar.Cause.FINISHED, ar.Cause.FAILED, ar.Cause.LEFT)
PLANS = st.lists(
    st.lists(
        st.one_of(
            st.tuples(st.just("sleep"), st.sampled_from([0.0, 0.5, 3.0])),
            st.tuples(st.just("meet"), st.sampled_from([None, 1.0, 10.0])),
        ),
        max_size=5,
    ).flatmap(lambda steps: st.tuples(st.just(steps), st.sampled_from([*ENDS, "vanish", "again", "stay"]))),
    min_size=2,
    max_size=5,
)


@dataclass
class Log:
    """What the members of one round did.

    Attributes:
        came: How often each came to the barrier, and did not go away from it.
        passed: How often each passed it.
        gone: Who has gone, however that was.
        finished: Who has gone as finished.
        is_exact: Whether nothing is under way while time passes, as bytes are between sockets.
    """

    came: dict[str, int] = field(default_factory=dict)
    passed: dict[str, int] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    finished: set[str] = field(default_factory=set)
    is_exact: bool = True


async def member(
    node: Any, info: ar.RendezvousInfo, plan: Any, log: Log, vanish: Callable[[str], Any]
) -> None:
    steps, end = plan
    await anyio.sleep(info.rank / 100)  # so that no two of them do something at the same moment
    for what, seconds in steps:
        if what == "sleep":
            await anyio.sleep(seconds)
            continue
        turn = log.passed[node.node]
        log.came[node.node] = turn + 1
        outcome: Any
        (outcome,) = await asyncio.gather(info.agree("x", 1, "sum", timeout=seconds), return_exceptions=True)
        if isinstance(outcome, ar.RendezvousTimeoutError):
            log.came[node.node] = turn
        else:
            log.passed[node.node] = turn + (not isinstance(outcome, Exception))
        check(outcome, turn, log)
        if isinstance(outcome, ar.RoundOverError):
            break
    if end != "stay":
        log.gone.add(node.node)
    if end in ENDS:
        log.finished |= {node.node} if end is ar.Cause.FINISHED else set()
        await node.leave(cause=end)
    elif end == "vanish":
        await vanish(node.node)
    elif end == "again":
        with anyio.move_on_after(1):
            await node.next_rendezvous()


def check(outcome: object, turn: int, log: Log) -> None:
    """Checks what a member was told at the barrier that is its `turn`."""
    if isinstance(outcome, ar.RendezvousTimeoutError):
        late = {name for name, came in log.came.items() if came <= turn}
        assert not log.is_exact or set(outcome.missing) <= late | log.gone, (outcome.missing, log)
    elif isinstance(outcome, ar.RoundOverError):
        assert log.gone - log.finished, (outcome, log)
        assert set(outcome.departures) <= log.gone - log.finished, (outcome.departures, log)
    else:
        assert isinstance(outcome, int), outcome
        late = {name for name, came in log.came.items() if came <= turn}
        assert late <= log.gone, (outcome, log)


async def scenario(urls: Iterable[str], plans: list[Any], vanish: Callable[[Any], Any]) -> None:
    options: Any = {"keep_alive_interval": 1000, "min_nodes": len(plans)}
    async with AsyncExitStack() as stack:
        nodes = []
        for i, url in zip(range(len(plans)), urls, strict=False):
            host: Any = {"is_host": False} if url.startswith("tcp") else {}
            opened = ar.open_rendezvous(url, run_id="job", node=f"n{i}", **options, **host)
            nodes.append(await stack.enter_async_context(opened))
        with anyio.fail_after(LONG):
            infos = await asyncio.gather(*(node.next_rendezvous() for node in nodes))
            nobody = dict.fromkeys((node.node for node in nodes), 0)
            log = Log(nobody, nobody.copy(), is_exact=nodes[0].get_backend() != "http")
            async with anyio.create_task_group() as tasks:
                for node, info, plan in zip(nodes, infos, plans, strict=True):
                    tasks.start_soon(member, node, info, plan, log, vanish(node))

                async def end() -> None:
                    await anyio.sleep(20)  # whoever still waits does so for somebody who stays, and is told
                    last = next((node for node in nodes if node.node not in log.gone), nodes[0])
                    log.gone |= {last.node}
                    await last.leave("the end", cause=ar.Cause.FAILED)

                tasks.start_soon(end)


def run(main: Callable[[], Any], loop: VirtualTimeLoop) -> None:
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(main())


limited = settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


@limited
@given(PLANS)
def test_over_memory(plans: list[Any]) -> None:
    def vanish(node: Any) -> Callable[[str], Any]:
        async def break_off(name: str) -> None:
            backend = node._backend
            coordinator = backend.space.coordinator
            coordinator._apply(coordinator.runs["job"], Disconnect(name))

        return break_off

    run(lambda: scenario(repeat("memory://scenarios"), plans, vanish), VirtualTimeLoop())


async def at_a_server(plans: list[Any], http: str | None = None) -> None:
    """Plays a scenario at a server, whose listeners the nodes use by turns."""
    async with ar.serve("127.0.0.1:0", http=http, thread=False) as server:

        def vanish(node: Any) -> Callable[[str], Any]:
            async def break_off(name: str) -> None:
                server.coordinator._apply(server.coordinator.runs["job"], Disconnect(name))

            return break_off

        urls = [server.tcp_url] if server.http_url is None else [server.http_url, server.tcp_url]
        await scenario(cycle(urls), plans, vanish)


@limited
@given(PLANS)
def test_over_tcp(plans: list[Any]) -> None:
    run(lambda: at_a_server(plans), WiredLoop())


@settings(limited, max_examples=6)  # real sockets take real time, however virtual the rest is
@given(PLANS)
def test_over_http_and_tcp(plans: list[Any]) -> None:
    run(lambda: at_a_server(plans, http="127.0.0.1:0"), VirtualTimeLoop(patience=0.02))

"""What a round has agreed on outlives a server without a journal: its members bring it to the next one.

The server is torn down and started again at its port, over tcp and over http; or it is embedded in a node
that is killed, and another node takes its place. The members reach it through a proxy, so that a test decides
when they are back.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import pytest

import arendezvous as ar
from arendezvous.backends.tcp.session import SessionBackend
from arendezvous.law.operations import Close
from arendezvous.law.state import Phase
from arendezvous.testing.fault_proxy import FaultProxy
from tests.kit.ports import held_ports
from tests.kit.script_kit import script
from tests.kit.waiting import until, until_seen

WAYS = ("tcp", "http", "embedded")
NAMES = ("a", "b", "c")

HOST = """
import asyncio, sys
import arendezvous as ar

async def main():
    async with ar.open_rendezvous(sys.argv[1], run_id="other", min_nodes=1):
        print("serving", flush=True)
        await asyncio.sleep(3600)

asyncio.run(main())
"""

MEMBER = """
import asyncio, sys
import arendezvous as ar

async def main():
    async with ar.open_rendezvous(sys.argv[1], run_id="job", min_nodes=4, node="host") as rdzv:
        print("serving", flush=True)
        await rdzv.next_rendezvous()
        await asyncio.sleep(3600)

asyncio.run(main())
"""

every_way = pytest.mark.parametrize("way", WAYS)

Rendezvous = ar.AsyncRendezvousHandler


class Place:
    """A server that can be taken away, and another put in its place, behind a proxy."""

    def __init__(self, way: str, ports: list[int], proxy: FaultProxy) -> None:
        self.way = way
        self.proxy = proxy
        self.port = ports[0]
        self._http = ports[1]
        self._server = AsyncExitStack()

    @property
    def url(self) -> str:
        """Where the members find it."""
        return f"{'http' if self.way == 'http' else 'tcp'}://127.0.0.1:{self.proxy.port}"

    async def start(self) -> None:
        """Puts a server there that knows of nothing."""
        if self.way == "embedded":
            host = script("-c", HOST, f"tcp://127.0.0.1:{self.port}")
            running = await self._server.enter_async_context(host)
            await running.line_with("serving")
            self._server.callback(running.kill)
        else:
            http = f"127.0.0.1:{self._http}"
            await self._server.enter_async_context(ar.serve(f"127.0.0.1:{self.port}", http=http))

    async def stop(self) -> None:
        """Takes the server away."""
        await self._server.aclose()

    async def restart(self) -> None:
        """Has another server be there."""
        await self.stop()
        await self.start()

    def open(self, name: str, least: int = 3, **options: Any) -> Rendezvous:
        """A node of the run."""
        if self.way != "http":
            options["is_host"] = False
        return ar.open_rendezvous(self.url, run_id="job", min_nodes=least, max_nodes=8, node=name,
                                  last_call_timeout=0.2, **options)  # fmt: skip

    @asynccontextmanager
    async def met(self, least: int = 3, names: tuple[str, ...] = NAMES, **options: Any) -> AsyncIterator[Any]:
        """Nodes that are members of round 0."""
        async with AsyncExitStack() as stack:
            nodes = [await stack.enter_async_context(self.open(name, least, **options)) for name in names]
            await together(*(node.next_rendezvous for node in nodes))
            yield nodes


async def together(*calls: Callable[[], Awaitable[Any]]) -> list[Any]:
    """What the calls return that are made at once."""
    async with asyncio.timeout(60):
        return await asyncio.gather(*(call() for call in calls))


@asynccontextmanager
async def place(way: str) -> AsyncIterator[Place]:
    """A place with a server, over one of the `WAYS`."""
    with held_ports(2) as ports:
        async with FaultProxy("127.0.0.1", ports[way == "http"]) as proxy:
            here = Place(way, ports, proxy)
            await here.start()
            try:
                yield here
            finally:
                await here.stop()


async def inside(looker: Rendezvous, *names: str) -> ar.RunStatus:
    """Waits until exactly these nodes are in the run."""
    return await until_seen(
        looker.explain, lambda status: sorted(node.desc.name for node in status.nodes) == sorted(names)
    )


async def next_of(changes: AsyncIterator[ar.Change]) -> ar.Change:
    with anyio.fail_after(60):
        return await anext(changes)


@every_way
async def test_a_member_that_has_finished_is_not_lost_once_more(way: str) -> None:
    async with place(way) as here, here.met() as (a, b, c):
        changes = aiter(a.changes())
        await c.leave(cause=ar.Cause.FINISHED)
        assert await next_of(changes) == ar.NodeLeft("c", ar.Cause.FINISHED, "")
        await here.restart()
        await inside(a, "a", "b")
        assert not (await a.outlook()).departed
        await b.leave("second")
        assert await next_of(changes) == ar.NodeLeft("b", ar.Cause.LEFT, "second")


@every_way
async def test_a_leave_while_there_is_no_server_is_heard_as_what_it_is(way: str) -> None:
    async with place(way) as here, here.met(close_timeout=60.0) as (a, b, c):
        changes = aiter(a.changes())
        here.proxy.refusing = True
        here.proxy.cut()
        await here.restart()
        leaving = asyncio.create_task(c.leave(cause=ar.Cause.FINISHED))
        await anyio.wait_all_tasks_blocked()
        here.proxy.refusing = False
        assert await next_of(changes) == ar.NodeLeft("c", ar.Cause.FINISHED, "")
        await leaving
        await inside(b, "a", "b")
        assert not (await b.outlook()).departed


@every_way
async def test_the_others_meet_without_a_member_that_drains(way: str) -> None:
    async with place(way) as here, here.met(least=2) as (a, b, c):
        changes = aiter(a.changes())
        await c.drain(600.0, "preempted")
        assert isinstance(await next_of(changes), ar.NodeDraining)
        await here.restart()
        infos = await together(a.next_rendezvous, b.next_rendezvous)
        assert [(info.round > 0, info.world_size) for info in infos] == [(True, 2)] * 2


@every_way
async def test_a_drain_ends_when_it_was_to_end(way: str) -> None:
    async with place(way) as here, here.met() as (a, _, c):
        changes = aiter(a.changes())
        await c.drain(3.0, "preempted")
        assert isinstance(await next_of(changes), ar.NodeDraining)
        await here.restart()
        assert await next_of(changes) == ar.NodeLeft("c", ar.Cause.DRAINED, "preempted")


@every_way
async def test_a_member_that_meets_again_is_neither_lost_nor_goes_on_without_the_others(way: str) -> None:
    async with place(way) as here, here.met(least=2) as (a, b, c):
        changes = aiter(c.changes())
        again = [asyncio.create_task(one.next_rendezvous()) for one in (a, b)]
        await until_seen(c.explain, lambda status: sum(n.phase is Phase.WAITING for n in status.nodes) == 2)
        assert isinstance(await next_of(changes), ar.NodesWaiting)
        await here.restart()
        status = await inside(c, "a", "b", "c")
        assert (status.round, status.complete) == (0, True)
        infos = await asyncio.gather(c.next_rendezvous(), *again)
        assert {(info.round > 0, info.world_size, info.digest) for info in infos} == {
            (True, 3, infos[0].digest)
        }


@every_way
async def test_a_run_that_is_closed_before_its_members_are_back_is_closed_for_them(way: str) -> None:
    async with place(way) as here, here.met() as (a, b, c):
        changes = aiter(a.changes())
        here.proxy.refusing = True
        here.proxy.cut()
        await here.restart()
        async with SessionBackend("127.0.0.1", here.port, "job") as operator:
            await operator.propose(Close("ann", "enough"))
        here.proxy.refusing = False
        assert await next_of(changes) == ar.Closed("ann", "enough")
        status = await inside(b, "a", "b", "c")
        assert (status.complete, status.round) == (True, 0)
        with pytest.raises(ar.RendezvousClosedError, match="enough"):
            await c.next_rendezvous()


@every_way
async def test_a_member_that_does_not_come_back_is_lost_by_its_name(way: str) -> None:
    async with place(way) as here, here.met() as (a, b, c):
        changes = aiter(a.changes())
        await inside(b, *NAMES)
        await until(lambda: here.proxy.passed)
        here.proxy.refusing = True
        here.proxy.cut()
        await here.stop()
        c._backend.fail(ar.RendezvousStateError("this test has it end without a word"))
        await here.start()
        here.proxy.refusing = False
        change = await next_of(changes)
        assert isinstance(change, ar.NodeLost)
        assert change.node == "c"
        await inside(b, "a", "b")


async def test_of_a_host_that_is_killed_the_others_hear_that_it_is_lost_and_nothing_else(
    free_port: int,
) -> None:
    url = f"tcp://127.0.0.1:{free_port}"
    async with script("-c", MEMBER, url) as host, AsyncExitStack() as stack:
        await host.line_with("serving")
        opened = (
            ar.open_rendezvous(url, run_id="job", min_nodes=4, node=name, read_timeout=60.0) for name in NAMES
        )
        a, b, c = [await stack.enter_async_context(node) for node in opened]
        await together(*(node.next_rendezvous for node in (a, b, c)))
        changes = aiter(a.changes())
        await c.leave(cause=ar.Cause.FINISHED)
        assert await next_of(changes) == ar.NodeLeft("c", ar.Cause.FINISHED, "")
        host.kill()
        change = await next_of(changes)
        assert isinstance(change, ar.NodeLost)
        assert change.node == "host"
        await b.leave("second")
        assert await next_of(changes) == ar.NodeLeft("b", ar.Cause.LEFT, "second")

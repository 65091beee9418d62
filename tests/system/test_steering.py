"""Runs that are held, resized and quarantined at random while nodes come and go: over memory and over TCP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import arendezvous as ar
from arendezvous.connecting import ServerConnection, looked_at
from arendezvous.schemes import scheme_named
from arendezvous.testing.virtual_time import run_virtual
from tests.kit import EXAMPLES

NODES = ("a", "b", "c", "d")
REASONS = (ar.NodesWaiting, ar.NodeLost, ar.NodeLeft, ar.Resized)
CALM = 40.0  # seconds in which everybody has met, once nobody decides anything
PATIENCE = {"memory": 0.0, "tcp": 0.001}  # real seconds that bytes may be under way


class Step(NamedTuple):
    """Something that happens after `delay` seconds."""

    delay: float
    what: str
    node: str = "a"
    least: int = 1
    most: int = 1


class Told(NamedTuple):
    """A node was told its rank."""

    at: float
    node: str
    info: ar.RendezvousInfo


class Story:
    """A run of four nodes, an operator, and what they were told.

    Attributes:
        told: Every rank that somebody was told.
        held: When the run was held, and until when.
        out: Who was kept out, from when, until when.
    """

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        self.url = url
        self.options = options
        scheme = scheme_named(url.partition("://")[0])
        self.operator = ServerConnection(scheme, looked_at(scheme, url, 5.0), "op")
        self.told: list[Told] = []
        self.held: list[tuple[float, float]] = []
        self.out: list[tuple[str, float, float]] = []
        self._held_at: float | None = None
        self._out_at: dict[str, float] = {}
        self._working: dict[str, asyncio.Task[None]] = {}

    async def tell(self, steps: list[Step]) -> ar.RunStatus:
        """Has the steps happen, takes back all that was decided, and returns where that ends."""
        for node in NODES:
            self._come(node)
        await asyncio.sleep(0.5)
        for step in steps:
            await asyncio.sleep(step.delay)
            await self._do(step)
        for node in list(self._out_at):
            await self._do(Step(0.0, "pardon", node))
        for what in ("undo", "release"):
            await self._do(Step(0.0, what))
        for node in NODES:
            self._come(node)
        await asyncio.sleep(CALM)
        status = await self.operator.status("job")
        for task in self._working.values():
            task.cancel()
        await asyncio.gather(*self._working.values(), return_exceptions=True)
        return status

    def _come(self, node: str) -> None:
        task = self._working.get(node)
        if task is None or task.done():
            self._working[node] = asyncio.create_task(self._work(node))

    async def _work(self, node: str) -> None:
        loop = asyncio.get_running_loop()
        rank = NODES.index(node) if self.options.get("rank_policy") == "given" else None
        while True:
            try:
                async with ar.open_rendezvous(
                    self.url, run_id="job", node=node, rank=rank, keep_alive_interval=100.0,
                    join_timeout=10_000.0, **self.options,
                ) as rdzv:  # fmt: skip
                    while True:
                        info = await rdzv.next_rendezvous()
                        self.told.append(Told(loop.time(), node, info))
                        async for change in rdzv.changes():
                            if isinstance(change, REASONS):
                                break
            except ar.QuarantinedError:
                await asyncio.sleep(1.0)

    async def _do(self, step: Step) -> None:
        operator, now = self.operator, asyncio.get_running_loop().time()
        if step.what == "hold":
            await operator.hold("job")
            self._held_at = asyncio.get_running_loop().time() if self._held_at is None else self._held_at
        elif step.what == "release":
            await operator.release("job")
            if self._held_at is not None:
                self.held.append((self._held_at, now))
                self._held_at = None
        elif step.what in ("resize", "undo"):
            await operator.resize("job", None if step.what == "undo" else step.least, step.most)
        elif step.what == "quarantine":
            await operator.quarantine("job", step.node)
            self._out_at.setdefault(step.node, asyncio.get_running_loop().time())
        elif step.what == "pardon":
            await operator.pardon("job", step.node)
            if step.node in self._out_at:
                self.out.append((step.node, self._out_at.pop(step.node), now))
        elif step.what == "come":
            self._come(step.node)
        else:
            self._working[step.node].cancel()
            await asyncio.wait([self._working[step.node]])

    def check(self, status: ar.RunStatus, size: int) -> None:
        """Checks that everybody was told the same, nothing against a decision, and all meet in the end."""
        rounds: dict[tuple[int, int], list[Told]] = {}
        for told in self.told:
            rounds.setdefault((told.info.incarnation, told.info.round), []).append(told)
        for members in rounds.values():
            assert len({(one.info.digest, one.info.world_size) for one in members}) == 1
            assert len({one.info.rank for one in members}) == len({one.node for one in members})
            first = min(one.at for one in members)
            assert not any(begun < first < ended for begun, ended in self.held), "completed while held"
        for node, begun, ended in self.out:
            assert not any(one.node == node and begun < one.at < ended for one in self.told), node
        assert (status.complete, status.world_size, status.missing) == (True, size, 0), str(status)
        assert (status.resized, status.held, status.quarantined) == ((), None, ())


@asynccontextmanager
async def a_place(kind: str) -> AsyncIterator[str]:
    if kind == "memory":
        async with ar.open_rendezvous("memory://steering", run_id="keeps-it", min_nodes=1):
            yield "memory://steering"
    else:
        async with ar.serve("127.0.0.1:0") as server:
            yield server.tcp_url


def tell(kind: str, options: dict[str, Any], steps: list[Step], size: int) -> None:
    """Tells a story in virtual time, and checks it."""

    async def main() -> None:
        async with a_place(kind) as url:
            story = Story(url, options)
            status = await story.tell(steps)
        story.check(status, size)

    run_virtual(main, patience=PATIENCE[kind])


def steps(*kinds: str) -> Any:
    """Up to eight steps of these kinds."""
    step = st.builds(
        lambda delay, what, node, least, more: Step(delay, what, node, least, least + more),
        st.sampled_from([0.0, 0.5, 3.0]), st.sampled_from(kinds), st.sampled_from(NODES),
        st.integers(1, 3), st.integers(0, 2),
    )  # fmt: skip
    return st.lists(step, min_size=1, max_size=8)


def examples(run: Callable[..., None]) -> Any:
    """Runs some of them."""
    decorated = settings(
        max_examples=EXAMPLES, deadline=None, derandomize=True, database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )(run)  # fmt: skip
    both: Callable[..., None] = pytest.mark.parametrize("kind", ["memory", "tcp"])(decorated)
    return both


@examples
@given(steps=steps("hold", "release", "come", "go", "go"))
def test_holds_and_last_calls(kind: str, steps: list[Step]) -> None:
    options = {"min_nodes": 2, "max_nodes": 5, "last_call_timeout": 2.0}
    tell(kind, options, steps, len(NODES))


@examples
@given(steps=steps("quarantine", "quarantine", "pardon", "come", "go"))
def test_quarantines_and_given_ranks(kind: str, steps: list[Step]) -> None:
    options = {"min_nodes": 1, "max_nodes": 4, "last_call_timeout": 1.0, "rank_policy": "given"}
    tell(kind, options, steps, len(NODES))


@examples
@given(steps=steps("resize", "resize", "undo", "come", "go"))
def test_resizes_and_nodes_that_wait(kind: str, steps: list[Step]) -> None:
    options = {"min_nodes": 1, "max_nodes": 3, "last_call_timeout": 0.5}
    tell(kind, options, steps, 3)

"""Random scenarios of features that meet, over memory and over native sessions, in virtual time.

What is checked after each step is the state of the run itself, by all invariants of the law; and at the end,
that every node was told what is so.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count
from typing import Any

import anyio
import pytest
from hypothesis import Phase as HypothesisPhase
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from arendezvous.backends.memory import LocalBackend
from arendezvous.backends.port import RendezvousBackend
from arendezvous.backends.tcp.session import SessionBackend
from arendezvous.coordinator.coordinator import Coordinator
from arendezvous.errors import RendezvousError, RendezvousSettingsError
from arendezvous.law import machine
from arendezvous.law.operations import Drain, Join, Leave
from arendezvous.law.rules import Brought, Role, RoundRules
from arendezvous.law.state import Cause, NodeDesc, NodeView, Phase, RunSettings
from arendezvous.server.serve import serve
from tests.kit import EXAMPLES
from tests.kit import law_invariants as inv
from tests.kit.wired_loop import WiredLoop

NODES = "abcdef"
NUMBERS = count()
PHASES = (HypothesisPhase.generate, HypothesisPhase.shrink)  # to explain a failure takes tracing all the time
Step = tuple[str, str, float]


class Fleet:
    """Nodes of one run, each with a backend of its own.

    Args:
        coordinator: Keeps the run.
        settings: Of the run.
        descs: The nodes.
        backends: Theirs.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        settings: RunSettings,
        descs: dict[str, NodeDesc],
        backends: dict[str, RendezvousBackend],
    ) -> None:
        self.coordinator = coordinator
        self.settings = settings
        self.descs = descs
        self.backends = backends
        self.told: dict[str, NodeView] = {}

    async def take(self, kind: str, node: str, seconds: float) -> None:
        """Takes a step, and checks the state after it."""
        backend = self.backends[node]
        try:
            if kind == "join":
                last = self.told.get(node)
                after = (0, -1) if last is None or last.phase is Phase.GONE else last.known
                self.told.pop(node, None)
                view = await backend.join(Join(self.descs[node], self.settings, after), seconds + 0.01)
                if view is None:
                    view = await backend.changed(node, -1)
                self.told[node] = view
            elif kind == "leave":
                self.told[node] = await backend.propose(Leave(node, "done", Cause.FAILED))
            elif kind == "drain" and node in self.told:
                self.told[node] = await backend.propose(Drain(node, seconds + 0.5, "maintenance"))
            else:
                await anyio.sleep(seconds)
        except RendezvousError:
            pass  # the law does not allow it now, and nothing has changed
        self.check()

    def check(self) -> None:
        """Checks the state of the run."""
        run = self.coordinator.runs.get("job")
        if run is not None:
            inv.check_state(run.state, self.coordinator.clock())

    async def check_told(self) -> None:
        """Checks that each node that is in the run sees what is so."""
        await anyio.sleep(5.0)
        run = self.coordinator.runs.get("job")
        if run is None:
            return
        for node in run.state.nodes:
            seen = await self.backends[node].changed(node, -1)
            so = machine.view(run.state, node, self.coordinator.clock())
            for name in ("phase", "rank", "world_size", "digest", "share", "round"):
                if so.phase is Phase.MEMBER:
                    inv.same(f"the {name} that {node} was told", getattr(seen, name), getattr(so, name))
        agreed = {
            repr(view.share.facts)
            for node in run.state.nodes
            if (view := machine.view(run.state, node, 0.0)).share
        }
        inv.expect(len(agreed) <= 1, "all have the same facts", agreed)


@asynccontextmanager
async def fleet(scheme: str, settings: RunSettings, descs: dict[str, NodeDesc]) -> AsyncIterator[Fleet]:
    """Nodes at a fresh place."""
    async with AsyncExitStack() as stack:
        backends: dict[str, RendezvousBackend] = {}
        if scheme == "tcp":
            server = await stack.enter_async_context(serve("127.0.0.1:0"))
            for node in descs:
                session = SessionBackend("127.0.0.1", 1, "job", read_timeout=5.0)
                backends[node] = await stack.enter_async_context(session)
            coordinator = server.coordinator
        else:
            place = f"scenario{next(NUMBERS)}"
            for node in descs:
                local = LocalBackend("job", place)
                backends[node] = await stack.enter_async_context(local)
            coordinator = local.space.coordinator
        yield Fleet(coordinator, settings, descs, backends)


def play(scheme: str, settings: RunSettings, descs: dict[str, NodeDesc], steps: list[Step]) -> None:
    """Has nodes do all that."""

    async def main() -> None:
        async with fleet(scheme, settings, descs) as nodes:
            for step in steps:
                with anyio.fail_after(20):
                    await nodes.take(*step)
            with anyio.fail_after(20):
                await nodes.check_told()

    with asyncio.Runner(loop_factory=WiredLoop) as runner:
        runner.run(main())


def scripts() -> st.SearchStrategy[list[Step]]:
    kinds = st.sampled_from(["join", "join", "join", "leave", "drain", "pass"])
    return st.lists(
        st.tuples(kinds, st.sampled_from(NODES), st.sampled_from([0.0, 0.3, 1.0])), min_size=4, max_size=24
    )


def runs(
    roles: st.SearchStrategy[list[tuple[int, int]]],
    unit: st.SearchStrategy[int],
    *,
    facts: dict[str, Any] | None = None,
    policies: tuple[str, ...] = ("sticky", "natural", "topology"),
) -> st.SearchStrategy[Any]:
    """Settings, and the nodes with what they bring."""

    def make(
        roles: list[tuple[int, int]], unit: int, policy: str, by_label: bool, last_call: float,
        mix: list[tuple[int, int, str]],
    ) -> tuple[RunSettings, dict[str, NodeDesc]] | None:  # fmt: skip
        named = {f"r{number}": Role(least, least + more) for number, (least, more) in enumerate(roles)}
        try:
            rules = RoundRules(
                roles=named, facts=facts or {}, node_unit=unit, unit_label=by_label and unit > 1
            )
            numbers = rules.sums if named else (2, 4)
            settings = RunSettings(*numbers, last_call, 1000.0, 3, 0.5, policy, rules)
        except RendezvousSettingsError:
            return None
        descs = {}
        for node, (role, number, label) in zip(NODES, mix, strict=True):
            brought = Brought(
                f"r{role % len(named)}" if named else "", number, facts=dict.fromkeys(facts or {}, number)
            )
            descs[node] = NodeDesc(node, label=label, brings=brought)
        return settings, descs

    one = st.tuples(st.integers(0, 2), st.integers(1, 2), st.sampled_from("xy"))
    made: st.SearchStrategy[Any] = st.builds(
        make,
        roles,
        unit,
        st.sampled_from(policies),
        st.booleans(),
        st.sampled_from([0.0, 0.5]),
        st.lists(one, min_size=len(NODES), max_size=len(NODES)),
    )
    return made.filter(lambda run: run is not None)


def some_roles(least: int, more: int) -> st.SearchStrategy[list[tuple[int, int]]]:
    return st.lists(st.tuples(st.integers(0, least), st.integers(1, more)), min_size=1, max_size=3)


PAIRS = {
    "roles x units": runs(some_roles(1, 3), st.integers(2, 3)),
    "roles x spares": runs(some_roles(1, 1), st.just(1)),
    "sticky x roles": runs(some_roles(2, 3), st.just(1), policies=("sticky",)),
    "facts x newcomers": runs(st.just([]), st.just(1), facts={"model": "same", "step": "max"}),
}


@pytest.mark.parametrize("scheme", ["memory", "tcp"])
@pytest.mark.parametrize("pair", PAIRS)
def test_what_meets_keeps_all_invariants(pair: str, scheme: str) -> None:
    @given(run=PAIRS[pair], steps=scripts())
    @hypothesis_settings(max_examples=EXAMPLES, deadline=None, derandomize=True, phases=PHASES)
    def scenario(run: Any, steps: list[Step]) -> None:
        settings, descs = run
        play(scheme, settings, descs, steps)

    scenario()

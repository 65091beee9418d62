"""Whatever happens to a leader, at any of its requests, all come to agreed rounds: in virtual time.

The nodes a, b and c are processes of their own; that of a joins first and leads, and something happens to it.
What any node ever sees is checked.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field

import anyio
import pytest

from arendezvous.backends.etcd import leader as etcd_leader
from arendezvous.backends.etcd import link as etcd_link
from arendezvous.backends.etcd.backend import EtcdBackend
from arendezvous.errors import RendezvousConnectionError, RendezvousError
from arendezvous.law.operations import Join, KeepAlive, Leave
from arendezvous.law.state import NodeDesc, NodeView, Phase, RunSettings
from tests.kit.etcd_fake import AWAY, FakeEtcd

pytestmark = pytest.mark.virtual

SETTINGS = RunSettings(2, 3, last_call=1.0, keep_alive_interval=1.0, keep_alive_max_attempt=4)
PATIENCE = 120.0
NODES = ("a", "b", "c")


@dataclass
class Seen:
    """All that the nodes have seen, checked as it comes.

    Attributes:
        backends: Each node's.
        rounds: Round to its digest and its size.
        ranks: Round and rank to the node.
        latest: The latest round that each node was a member of.
        on_met_again: Called when a node has met in two rounds.
    """

    backends: dict[str, EtcdBackend] = field(default_factory=dict)
    rounds: dict[tuple[int, int], tuple[str, int]] = field(default_factory=dict)
    ranks: dict[tuple[tuple[int, int], int], str] = field(default_factory=dict)
    latest: dict[str, tuple[int, int]] = field(default_factory=dict)
    on_met_again: Callable[[], None] = lambda: None

    async def look(self, view: NodeView) -> None:
        if view.phase is not Phase.MEMBER:
            return
        round_ = (view.digest, view.world_size)
        assert self.rounds.setdefault(view.generation, round_) == round_
        assert self.ranks.setdefault((view.generation, view.rank), view.node) == view.node
        assert 0 <= view.rank < view.world_size
        assert view.generation >= self.latest.get(view.node, (0, -1))
        self.latest[view.node] = view.generation
        for notice in view.notices:
            lost = notice.cause is not None and notice.cause.is_loss
            if lost and self.latest.get(notice.node) == view.generation:
                there = await self.backends[notice.node].changed(notice.node, -1)
                holds = there.phase is Phase.MEMBER and there.generation == view.generation
                assert not holds, f"{notice.node} is lost, and holds rank {there.rank}"


async def live(backend: EtcdBackend, node: str, seen: Seen) -> None:
    """A node that meets in two rounds, and in a third one when whatever happened is over."""
    late = anyio.current_time() + AWAY + 8.0
    view = await backend.propose(Join(NodeDesc(node), SETTINGS))
    met = 0
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(beat, backend, node)
        while True:
            await seen.look(view)
            if view.phase is Phase.MEMBER:
                met += 1
                if anyio.current_time() >= late:
                    break
                if met > 1:
                    seen.on_met_again()
                    await anyio.sleep_until(late)
                    await seen.look(await backend.changed(node, -1))
            if view.phase in (Phase.MEMBER, Phase.GONE):
                held = seen.latest.get(node, (0, -1))
                view = await backend.propose(Join(NodeDesc(node), SETTINGS, held))
            else:
                view = await backend.changed(node, view.revision)
        tasks.cancel_scope.cancel()


async def beat(backend: EtcdBackend, node: str) -> None:
    while True:
        await anyio.sleep(1.0)
        try:
            await backend.propose(KeepAlive(node))
        except RendezvousError:
            continue


async def mortal(backend: EtcdBackend, seen: Seen) -> None:
    """Node a, for as long as its process lives."""
    with suppress(RendezvousConnectionError):
        await live(backend, "a", seen)
        await anyio.sleep_forever()


async def story(etcd: FakeEtcd, seen: Seen) -> None:
    """Rounds of three nodes."""
    async with AsyncExitStack() as stack:
        for node in NODES:
            backend = EtcdBackend("fake", "run", share=False)
            seen.backends[node] = await stack.enter_async_context(backend)
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(mortal, seen.backends["a"], seen)
                await anyio.sleep(0.01)
                async with anyio.create_task_group() as others:
                    for node in ("b", "c"):
                        others.start_soon(live, seen.backends[node], node, seen)
                assert seen.latest["b"] == seen.latest["c"]
                for node in ("b", "c"):
                    assert (await seen.backends[node].propose(Leave(node))).phase is Phase.GONE
                tasks.cancel_scope.cancel()


@pytest.fixture
def make_etcd(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, list[tuple[int, str]]], FakeEtcd]:
    def make(seed: int, plans: list[tuple[int, str]]) -> FakeEtcd:
        etcd = FakeEtcd(seed, plans)
        monkeypatch.setattr(etcd_link, "EtcdClient", etcd.client)
        return etcd

    return make


@pytest.mark.parametrize("what", ["dies before", "dies after", "is cut off", "is late"])
@pytest.mark.parametrize("writing", ["at once", "in pieces", "with snapshots"])
async def test_the_others_agree_whatever_happens_to_the_leader_and_when(
    make_etcd: Callable[[int, list[tuple[int, str]]], FakeEtcd],
    monkeypatch: pytest.MonkeyPatch,
    writing: str,
    what: str,
) -> None:
    if writing != "at once":
        monkeypatch.setattr(etcd_leader, "MOST_OPS", 1)
    if writing == "with snapshots":
        monkeypatch.setattr(etcd_leader, "PIECE", 500)
        monkeypatch.setattr(etcd_leader, "LEAST_REPLAY", 0)
    unharmed, seen = make_etcd(0, []), Seen()
    moments: list[int] = []
    seen.on_met_again = lambda: moments.append(unharmed.clients[0].requests)
    await story(unharmed, seen)
    assert [size for _, size in seen.rounds.values()] == [3, 3, 3]
    assert max(moments) > 10
    for moment in range(1, max(moments)):
        seen = Seen()
        await story(make_etcd(moment, [(moment, what)]), seen)
        sizes = [size for _, size in seen.rounds.values()]
        assert set(sizes) <= {2, 3}
        assert sizes[-1] == (2 if "dies" in what else 3), f"{moment}: {seen.rounds}"

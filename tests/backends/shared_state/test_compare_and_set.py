"""The compare-and-set backend over any store, with peers that write what stock nodes write."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta

import anyio
import anyio.to_thread
import pytest

import arendezvous as ar
from arendezvous import events
from arendezvous.backends.shared_state import compare_and_set
from arendezvous.backends.shared_state.c10d import C10dBackend
from arendezvous.backends.shared_state.compare_and_set import CompareAndSetBackend
from arendezvous.backends.shared_state.fenced_value import FencedKey
from arendezvous.errors import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousGracefulExitError,
    RendezvousSettingsError,
    RendezvousStateError,
    RendezvousTimeoutError,
)
from arendezvous.law.operations import Close, Disconnect, Drain, Join, KeepAlive, Leave, Reopen, Resume, Tick
from arendezvous.law.state import Cause, NodeDesc, NodeView, Phase, RunSettings
from arendezvous.rendezvous.changes import Closed, Evicted, NodeLeft, NodeLost, NodesWaiting
from arendezvous.rendezvous.driver import DynamicRendezvousHandler
from arendezvous.rendezvous.option_groups import RendezvousTimeout
from arendezvous.rendezvous.settings import RendezvousSettings
from arendezvous.stores.memory import MemoryStore
from arendezvous.stores.port import Store
from arendezvous.testing import backend_checks
from arendezvous.testing.backend_checks import BACKEND_CHECKS, run_check
from arendezvous.testing.check_tools import BackendCheck
from arendezvous.wire.torch_state.state import SENTINEL, Annex, StockState, decode_state, encode_state
from arendezvous.wire.torch_state.unpickling import StockDesc
from tests.kit.torch_process import torch_store_server

RUN = "run"
KEY = f"torch.rendezvous.{RUN}"
PAIR = RunSettings(2, 2)
STOCK = StockDesc("stock", 11, 0)
OTHER = StockDesc("stock", 12, 0)

INEXPRESSIBLE = (
    backend_checks.check_a_spare_is_promoted_when_a_member_drains,
    backend_checks.check_a_drained_member_is_not_brought_back,
    backend_checks.check_closed_is_final_until_reopened,
)
EXPRESSIBLE = [check for check in BACKEND_CHECKS if check not in INEXPRESSIBLE]


def named(checks: Sequence[BackendCheck]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("check", checks, ids=lambda check: check.__name__[6:])


# The contract of the port


@pytest.mark.virtual
@named(EXPRESSIBLE)
async def test_it_keeps_the_contract_over_a_memory_store(check: BackendCheck) -> None:
    data = MemoryStore()
    await run_check(check, lambda run_id: CompareAndSetBackend.over(MemoryStore(data.host), run_id))


@named(EXPRESSIBLE)
async def test_it_keeps_the_contract_over_a_tcp_store(check: BackendCheck) -> None:
    async with ar.serve("127.0.0.1:0") as server:
        await run_check(check, lambda run_id: C10dBackend(server.host, server.port, run_id, is_host=False))


@pytest.mark.virtual
@named(INEXPRESSIBLE)
async def test_what_the_format_has_no_place_for_is_refused_in_words(check: BackendCheck) -> None:
    data = MemoryStore()
    with pytest.raises(RendezvousStateError, match="in the format of stock agents"):
        await run_check(check, lambda run_id: CompareAndSetBackend.over(MemoryStore(data.host), run_id))


# A store, and peers that edit the state in it as stock nodes do


class Clock:
    """A wall clock that is off by some seconds, and otherwise follows the loop's."""

    def __init__(self, ahead: float = 0.0) -> None:
        self.ahead = ahead

    def __call__(self) -> datetime:
        seconds = asyncio.get_running_loop().time() + self.ahead
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)


class Peer:
    """Edits the state as a stock node does: reads it, changes it, writes it by compare-and-set."""

    def __init__(self, store: Store, node: StockDesc = STOCK, ahead: float = 0.0) -> None:
        self.store = store
        self.node = node
        self.clock = Clock(ahead)

    async def state(self) -> StockState:
        return decode_state(await self.store.get(KEY)) or StockState()

    async def edit(self, change: Callable[[StockState], object]) -> None:
        while True:
            text = await self.store.get(KEY)
            state = decode_state(text) or StockState()
            change(state)
            edited = encode_state(state)
            if await self.store.compare_set(KEY, text, edited) == edited:
                return

    async def beat(self) -> None:
        await self.edit(self._beat)

    def _beat(self, state: StockState) -> None:
        state.last_heartbeats[self.node] = self.clock()

    async def join(self, most: int) -> None:
        """Enters a round that gathers, and completes it if it is full."""

        def change(state: StockState) -> None:
            state.wait_list.discard(self.node)
            state.participants[self.node] = 0
            self._beat(state)
            if len(state.participants) == most:
                state.complete, state.deadline = True, None
                state.participants = {node: rank for rank, node in enumerate(sorted(state.participants))}

        await self.edit(change)

    async def exit(self) -> None:
        """Gives up its place in a complete round; the last one opens the next."""

        def change(state: StockState) -> None:
            del state.participants[self.node], state.last_heartbeats[self.node]
            if not state.participants:
                state.complete, state.round = False, state.round + 1

        await self.edit(change)

    async def wait(self) -> None:
        def change(state: StockState) -> None:
            state.wait_list.add(self.node)
            self._beat(state)

        await self.edit(change)

    async def drop(self, *nodes: StockDesc) -> None:
        """Takes these nodes for dead."""

        def change(state: StockState) -> None:
            for node in nodes:
                state.participants.pop(node, None)
                state.wait_list.discard(node)
                del state.last_heartbeats[node]

        await self.edit(change)

    async def keep_beating(self, interval: float) -> None:
        while True:
            await anyio.sleep(interval)
            await self.beat()


class Fleet:
    """Our handlers and stock peers over one store."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self.data = MemoryStore()
        self._stack = stack

    async def stock(self, node: StockDesc = STOCK, ahead: float = 0.0) -> Peer:
        await self.data.compare_set(KEY, b"", SENTINEL)
        return Peer(MemoryStore(self.data.host), node, ahead)

    async def handler(
        self, name: str, run: RunSettings, *, ahead: float = 0.0, store: Store | None = None
    ) -> DynamicRendezvousHandler:
        settings = RendezvousSettings(RUN, RendezvousTimeout(join=60), run)
        below = store or MemoryStore(self.data.host)
        backend = CompareAndSetBackend(FencedKey(below, RUN), RUN, store=below, wall=Clock(ahead))
        desc = NodeDesc(name, "127.0.0.1", addresses=("127.0.0.1",))
        return await self._stack.enter_async_context(DynamicRendezvousHandler(settings, backend, desc))

    async def backend(self, ahead: float = 0.0) -> CompareAndSetBackend:
        fenced = FencedKey(MemoryStore(self.data.host), RUN)
        return await self._stack.enter_async_context(CompareAndSetBackend(fenced, RUN, wall=Clock(ahead)))


@asynccontextmanager
async def fleet() -> AsyncIterator[Fleet]:
    async with AsyncExitStack() as stack:
        yield Fleet(stack)


async def member(backend: CompareAndSetBackend, name: str, run: RunSettings) -> NodeView:
    view = await backend.propose(Join(NodeDesc(name), run))
    return await until(backend, view, lambda view: view.phase is Phase.MEMBER)


async def until(
    backend: CompareAndSetBackend, view: NodeView, wanted: Callable[[NodeView], bool]
) -> NodeView:
    with anyio.fail_after(120):
        while not wanted(view):
            view = await backend.changed(view.node, view.revision)
    return view


def our_nodes(state: StockState) -> list[StockDesc]:
    return [node for node in state.nodes() if node not in (STOCK, OTHER)]


@pytest.mark.virtual
async def test_a_round_that_a_stock_node_completes_has_its_ranks() -> None:
    async with fleet() as all_:
        peer, backend = await all_.stock(), await all_.backend()
        view = await backend.propose(Join(NodeDesc("ours"), PAIR))
        assert view.phase is Phase.GATHERING
        await peer.join(2)
        view = await until(backend, view, lambda view: view.phase is Phase.MEMBER)
        ranks = (await peer.state()).participants
        assert (view.rank, view.world_size) == (1 - ranks[STOCK], 2)
        names = [desc.name for desc in await backend.roster(1, 0)]
        assert names == [str(node) if node == STOCK else "ours" for node in sorted(ranks)]


@pytest.mark.virtual
async def test_what_a_stock_node_does_is_found_by_polling_faster_than_stock_does() -> None:
    async with fleet() as all_:
        peer, backend = await all_.stock(), await all_.backend()
        view = await backend.propose(Join(NodeDesc("ours"), PAIR))
        await peer.join(2)
        begin = anyio.current_time()
        view = await until(backend, view, lambda view: view.phase is Phase.MEMBER)
        assert anyio.current_time() - begin < 0.5
        await (await all_.stock(OTHER)).wait()
        begin = anyio.current_time()
        await until(backend, view, lambda view: view.waiting == 1)
        assert anyio.current_time() - begin < 1.0


@pytest.mark.virtual
async def test_what_one_of_ours_does_is_pushed_to_the_others() -> None:
    async with fleet() as all_:
        one, two = await all_.backend(), await all_.backend()
        view = await one.propose(Join(NodeDesc("a"), PAIR))
        await anyio.sleep(10)
        begin = anyio.current_time()
        await member(two, "b", PAIR)
        view = await until(one, view, lambda view: view.phase is Phase.MEMBER)
        await two.propose(Leave("b"))
        await until(one, view, lambda view: bool(view.notices))
        assert anyio.current_time() - begin < 0.01


@pytest.mark.virtual
async def test_an_idle_member_reads_once_a_second_and_decodes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counted = {"get": 0, "decode": 0}

    class Counting(MemoryStore):
        async def get(self, key: str, **options: object) -> bytes:
            counted["get"] += 1
            return await super().get(key, **options)  # type: ignore[arg-type]  # handed on as it came

    def counting(text: bytes) -> StockState | None:
        counted["decode"] += 1
        return decode_state(text)

    async with fleet() as all_:
        store = Counting(all_.data.host)
        run = RunSettings(1, 1, keep_alive_interval=1000.0)
        async with CompareAndSetBackend(FencedKey(store, RUN), RUN) as backend:
            await member(backend, "a", run)
            await anyio.sleep(1)
            monkeypatch.setattr(compare_and_set, "_decode", counting)
            counted.update(get=0, decode=0)
            await anyio.sleep(100)
        assert 100 <= counted["get"] <= 150
        assert counted["decode"] == 0


@pytest.mark.virtual
async def test_a_crowd_that_joins_at_once_writes_only_a_few_times_for_each_node() -> None:
    writes = 0

    class Counting(MemoryStore):
        async def compare_set(self, key: str, expected: bytes | str, desired: bytes | str) -> bytes:
            nonlocal writes
            writes += 1
            return await super().compare_set(key, expected, desired)

    async with fleet() as all_:
        run = RunSettings(24, 24)
        handlers = [
            await all_.handler(f"n{number}", run, store=Counting(all_.data.host)) for number in range(24)
        ]
        infos: list[ar.RendezvousInfo] = []

        async def join(handler: DynamicRendezvousHandler) -> None:
            infos.append(await handler.next_rendezvous())

        async with anyio.create_task_group() as tasks:
            for handler in handlers:
                tasks.start_soon(join, handler)
        assert sorted(info.rank for info in infos) == list(range(24))
        assert len({info.digest for info in infos}) == 1
        assert writes <= 24 * 12


@pytest.mark.virtual
async def test_nodes_that_wait_for_a_round_which_gathers_are_let_in_together() -> None:
    async with fleet() as all_:
        peer, other, backend = await all_.stock(), await all_.stock(OTHER), await all_.backend()
        await peer.join(1)
        view = await backend.propose(Join(NodeDesc("ours"), RunSettings(2, 3, last_call=5.0)))
        assert view.phase is Phase.WAITING
        await other.wait()
        await peer.exit()
        view = await until(backend, view, lambda view: view.phase is Phase.GATHERING)
        state = await peer.state()
        assert (state.round, state.complete, state.wait_list) == (1, False, set())
        assert OTHER in state.participants
        assert state.deadline is not None
        await peer.join(3)
        view = await until(backend, view, lambda view: view.phase is Phase.MEMBER)
        assert (view.round, view.world_size) == (1, 3)


@pytest.mark.virtual
async def test_stamps_of_others_are_left_as_they_are() -> None:
    async with fleet() as all_:
        peer, backend = await all_.stock(ahead=-7.123456), await all_.backend()
        await peer.join(2)
        before = (await peer.state()).last_heartbeats[STOCK]
        await member(backend, "ours", PAIR)
        await backend.propose(KeepAlive("ours"))
        assert (await peer.state()).last_heartbeats[STOCK] == before


@pytest.mark.virtual
async def test_a_heartbeat_always_moves_the_stamp() -> None:
    async with fleet() as all_:
        peer, backend = await all_.stock(), await all_.backend()
        await backend.propose(Join(NodeDesc("ours"), PAIR))
        stamps: list[datetime] = []
        for _ in range(3):
            await anyio.sleep(1e-7)
            await backend.propose(KeepAlive("ours"))
            stamps.append(*(await peer.state()).last_heartbeats.values())
        assert len(set(stamps)) == 3


# Meeting again


@pytest.mark.virtual
async def test_after_a_round_with_stock_members_the_last_call_is_waited_for() -> None:
    """A stock member that meets again is in no list for a moment; no round must complete without it then."""
    async with fleet() as all_:
        run = RunSettings(1, 2, last_call=3.0)
        peer, handler = await all_.stock(), await all_.handler("ours", run)
        await peer.join(2)
        await handler.next_rendezvous()
        await peer.exit()
        begin = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(peer.wait)
            info = await handler.next_rendezvous()
        assert info.world_size == 2
        assert info.round == 1
        assert anyio.current_time() - begin < 3.0


@pytest.mark.virtual
async def test_after_a_round_of_ours_alone_the_survivors_meet_again_at_once() -> None:
    async with fleet() as all_:
        run = RunSettings(1, 2, last_call=30.0)
        one, two = await all_.handler("a", run), await all_.handler("b", run)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(two.next_rendezvous)
            await one.next_rendezvous()
        await two.leave()
        begin = anyio.current_time()
        info = await one.next_rendezvous()
        assert (info.round, info.rank, info.world_size) == (1, 0, 1)
        assert anyio.current_time() - begin < 1.0


# Who is alive


@pytest.mark.virtual
@pytest.mark.parametrize("ahead", [-3600.0, 60.0])
async def test_a_peer_whose_clock_is_off_stays_and_is_reported(
    ahead: float, caplog: pytest.LogCaptureFixture
) -> None:
    async with fleet() as all_:
        run = RunSettings(2, 2, keep_alive_interval=1.0)
        peer, handler = await all_.stock(ahead=ahead), await all_.handler("ours", run)
        await peer.join(2)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(peer.keep_beating, 1.0)
            with caplog.at_level(logging.WARNING):
                await handler.next_rendezvous()
                await anyio.sleep(60)
            status = await handler.explain()
            tasks.cancel_scope.cancel()
        skews = {node.desc.name: node.skew for node in status.nodes}
        assert skews[str(STOCK)] == pytest.approx(ahead, abs=1.5)
        assert skews["ours"] is None
        assert f"{STOCK}" in str(status)
        assert [record.message for record in caplog.records if "clock of stock_11_0" in record.message]
        assert any("clock of stock_11_0" in str(kept.event) for kept in events.history())


@pytest.mark.virtual
@pytest.mark.parametrize("ahead", [-3600.0, 0.0, 3600.0])
async def test_a_peer_that_falls_silent_is_expired_by_our_clock_alone(ahead: float) -> None:
    async with fleet() as all_:
        run = RunSettings(2, 2, keep_alive_interval=1.0)
        peer, handler = await all_.stock(ahead=ahead), await all_.handler("ours", run)
        await peer.join(2)
        await handler.next_rendezvous()
        begin = anyio.current_time()
        change = await anext(handler.changes())
        assert isinstance(change, NodeLost)
        assert (change.node, change.cause) == (str(STOCK), Cause.NO_HEARTBEAT)
        assert 2.0 < anyio.current_time() - begin < 4.0
        assert STOCK not in (await peer.state()).last_heartbeats


@pytest.mark.virtual
async def test_nobody_is_expired_for_the_time_in_which_the_store_was_away() -> None:
    class Frozen(MemoryStore):
        seconds = 0.0

        async def get(self, key: str, **options: object) -> bytes:
            seconds, Frozen.seconds = Frozen.seconds, 0.0
            await anyio.sleep(seconds)
            return await super().get(key, **options)  # type: ignore[arg-type]  # handed on as it came

    async with fleet() as all_:
        run = RunSettings(2, 2, keep_alive_interval=1.0)
        peer, store = await all_.stock(), Frozen(all_.data.host)
        async with CompareAndSetBackend(FencedKey(store, RUN), RUN) as backend:
            await peer.join(2)
            view = await member(backend, "ours", run)
            Frozen.seconds = 100.0
            await anyio.sleep(101)
            assert Frozen.seconds == 0.0
            await peer.beat()
            assert (await backend.changed("ours", -1)).revision == view.revision
            assert STOCK in (await peer.state()).participants


@pytest.mark.virtual
async def test_a_member_that_a_peer_drops_while_it_is_alive_is_told_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with fleet() as all_:
        peer, handler = await all_.stock(ahead=40.0), await all_.handler("ours", PAIR)
        await peer.join(2)
        await handler.next_rendezvous()
        await peer.beat()
        with caplog.at_level(logging.WARNING):
            await peer.drop(*our_nodes(await peer.state()))
            change = await anext(handler.changes())
        assert isinstance(change, Evicted)
        assert change.cause is Cause.NO_HEARTBEAT
        assert "compare the clocks; the clock of a peer is +4" in change.reason
        assert any("dropped from the run though it is alive" in record.message for record in caplog.records)
        gone = {gone.node: gone.reason for gone in (await handler.explain()).departed}
        assert "compare the clocks" in gone["ours"]


@pytest.mark.virtual
async def test_a_stock_member_that_vanishes_has_left_if_its_heartbeat_was_fresh_and_is_lost_if_not() -> None:
    async with fleet() as all_:
        run = RunSettings(3, 3)
        peer, other, handler = await all_.stock(), await all_.stock(OTHER), await all_.handler("ours", run)
        await peer.join(3)
        await other.join(3)
        await handler.next_rendezvous()
        changes = handler.changes()
        await peer.exit()
        left = await anext(changes)
        assert isinstance(left, NodeLeft)
        assert (left.node, left.cause) == (str(STOCK), Cause.LEFT)
        await anyio.sleep(14)
        await other.exit()
        lost = await anext(changes)
        assert isinstance(lost, NodeLost)
        assert lost.node == str(OTHER)


# Closing, waiting, spares


@pytest.mark.virtual
async def test_members_hear_that_a_stock_node_waits_and_that_a_stock_node_closes() -> None:
    async with fleet() as all_:
        run = RunSettings(1, 2, last_call=0.0)
        peer, handler = await all_.stock(), await all_.handler("ours", run)
        await handler.next_rendezvous()
        changes = handler.changes()
        await peer.wait()
        assert await anext(changes) == NodesWaiting(1)
        await peer.edit(lambda state: setattr(state, "closed", True))
        assert await anext(changes) == Closed("", "")
        late = await all_.handler("late", run)
        with pytest.raises(RendezvousClosedError):
            await late.next_rendezvous()


@pytest.mark.virtual
async def test_a_spare_of_a_run_that_stock_closes_exits_gracefully() -> None:
    async with fleet() as all_:
        peer, handler = await all_.stock(), await all_.handler("ours", RunSettings(1, 1))
        await peer.join(1)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(peer.keep_beating, 5.0)
            with anyio.move_on_after(700):
                await handler.next_rendezvous()
            assert (await handler.explain()).of_phase(Phase.REDUNDANT) == []
            tasks.start_soon(_close_later, peer)
            with pytest.raises(RendezvousGracefulExitError):
                await handler.next_rendezvous()
            tasks.cancel_scope.cancel()


async def _close_later(peer: Peer) -> None:
    await anyio.sleep(3)
    await peer.edit(lambda state: setattr(state, "closed", True))


@pytest.mark.virtual
async def test_a_stock_spare_is_promoted_when_a_member_leaves() -> None:
    async with fleet() as all_:
        one, two, peer = await all_.backend(), await all_.backend(), await all_.stock()
        await one.propose(Join(NodeDesc("a"), PAIR))
        await member(two, "b", PAIR)

        def spare(state: StockState) -> None:
            state.redundancy_list.add(STOCK)
            state.last_heartbeats[STOCK] = peer.clock()

        await peer.edit(spare)
        await two.propose(Leave("b"))
        state = await peer.state()
        assert (state.redundancy_list, state.wait_list) == (set(), {STOCK})


@pytest.mark.virtual
async def test_closing_a_run_that_nobody_has_joined_closes_it() -> None:
    async with fleet() as all_:
        one, two = await all_.backend(), await all_.backend()
        await one.propose(Close("operator", "not today"))
        with pytest.raises(RendezvousClosedError, match=r"by operator just now: not today"):
            await two.propose(Join(NodeDesc("a"), PAIR))
        assert (await two.status()).closed is not None


@pytest.mark.virtual
async def test_a_run_that_was_closed_during_its_last_call_keeps_nobody_busy() -> None:
    async with fleet() as all_:
        peer, backend = await all_.stock(), await all_.backend()
        view = await backend.propose(Join(NodeDesc("ours"), RunSettings(1, 2, last_call=1.0)))
        await peer.edit(lambda state: setattr(state, "closed", True))
        await until(backend, view, lambda view: view.closed is not None)
        await anyio.sleep(2)
        text = await all_.data.get(KEY)
        await anyio.sleep(5)
        assert await all_.data.get(KEY) == text


# What is refused


@pytest.mark.virtual
@pytest.mark.parametrize(
    ("operation", "words"),
    [
        (Drain("ours", 5.0), "leave the run instead"),
        (Reopen(1), "another run id"),
        (Resume(NodeDesc("gone"), PAIR, 1, 0, 0, 2, "d"), "join again"),
        (Tick(), "Tick"),
        (Disconnect("ours"), "Disconnect"),
    ],
)
async def test_an_operation_that_cannot_be_expressed_is_refused_and_changes_nothing(
    operation: Drain | Reopen | Resume | Tick | Disconnect, words: str
) -> None:
    async with fleet() as all_:
        backend = await all_.backend()
        await backend.propose(Join(NodeDesc("ours"), PAIR))
        text = await all_.data.get(KEY)
        with pytest.raises(RendezvousStateError, match=words):
            await backend.propose(operation)
        assert await all_.data.get(KEY) == text


@pytest.mark.virtual
async def test_a_node_name_belongs_to_one_backend_while_that_is_heard_of() -> None:
    async with fleet() as all_:
        one, two = await all_.backend(), await all_.backend()
        await one.propose(Join(NodeDesc("a"), PAIR))
        for operation in (Leave("a"), KeepAlive("a")):
            assert (await two.propose(operation)).phase is Phase.GONE
        async with anyio.create_task_group() as tasks:

            async def join() -> None:
                with pytest.raises(RendezvousStateError, match="'a' is in use"):
                    await two.propose(Join(NodeDesc("a"), PAIR))

            tasks.start_soon(join)
            await anyio.sleep(5)
            assert (await one.propose(KeepAlive("a"))).phase is Phase.GATHERING
        assert len((await one.status()).nodes) == 1


@pytest.mark.virtual
async def test_the_name_of_a_node_that_falls_silent_is_taken_over() -> None:
    async with fleet() as all_:
        one, two, other = await all_.backend(), await all_.backend(), await all_.handler("b", PAIR)
        await one.propose(Join(NodeDesc("a"), PAIR))
        await other.next_rendezvous()
        begin = asyncio.get_running_loop().time()
        joined = await two.propose(Join(NodeDesc("a"), PAIR))
        assert joined.phase is Phase.WAITING
        assert asyncio.get_running_loop().time() - begin <= 16
        changes = aiter(other.changes())
        assert isinstance(await anext(changes), NodeLost)
        assert isinstance(await anext(changes), NodesWaiting)
        gone = await until(one, await one.changed("a", -1), lambda view: view.phase is Phase.GONE)
        assert gone.gone is not None
        assert gone.gone.cause in (Cause.SUPERSEDED, Cause.NO_HEARTBEAT)
        assert (await one.propose(KeepAlive("a"))).phase is Phase.GONE
        assert len((await two.status()).nodes) == 2


@pytest.mark.virtual
async def test_a_join_that_waits_for_a_name_until_its_time_out_says_who_has_it() -> None:
    async with fleet() as all_:
        holder = await all_.backend()
        await holder.propose(Join(NodeDesc("a", pid=7), PAIR))
        other = await all_.handler("a", PAIR)
        other.settings.timeout.join = 3.0
        with pytest.raises(
            RendezvousTimeoutError, match=r"the name 'a' was not given up within 3 s .*process 7"
        ):
            await other.next_rendezvous()


@pytest.mark.virtual
async def test_a_given_rank_that_is_taken_is_waited_for_and_a_spare_waits_for_its_own() -> None:
    given = RunSettings(2, 2, rank_policy="given")
    async with fleet() as all_:
        nodes = [await all_.backend() for _ in range(4)]
        names = [NodeDesc(name, rank=rank) for name, rank in (("a", 0), ("b", 1), ("c", 1), ("d", 0))]
        await nodes[0].propose(Join(names[0], given))
        async with anyio.create_task_group() as tasks:

            async def refused() -> None:
                with pytest.raises(
                    RendezvousSettingsError, match="rank is 0, but must be free, but a has it"
                ):
                    await nodes[3].propose(Join(names[3], given))

            tasks.start_soon(refused)
            await anyio.sleep(1)
            await nodes[0].propose(KeepAlive("a"))
        await nodes[1].propose(Join(names[1], given))
        spares = [await nodes[at].propose(Join(names[at], given)) for at in (2, 3)]
        assert [view.phase for view in spares] == [Phase.REDUNDANT] * 2
        await nodes[0].propose(Leave("a"))
        promoted = await until(nodes[3], spares[1], lambda view: view.phase is Phase.WAITING)
        assert promoted.node == "d"
        assert (await nodes[2].propose(KeepAlive("c"))).phase is Phase.REDUNDANT


@pytest.mark.virtual
async def test_a_run_whose_members_all_finished_has_ended() -> None:
    async with fleet() as all_:
        one, two = await all_.backend(), await all_.backend()
        await one.propose(Join(NodeDesc("a"), PAIR))
        await member(two, "b", PAIR)
        for backend, name in ((one, "a"), (two, "b")):
            assert not (await one.status()).ended
            await backend.propose(Leave(name, "done", Cause.FINISHED))
        assert (await one.status()).ended
        assert "ended; all nodes of its last round have finished" in str(await two.status())


@pytest.mark.virtual
async def test_a_stock_member_that_goes_after_the_run_was_closed_is_not_said_to_be_lost() -> None:
    async with fleet() as all_:
        peer = await all_.stock()
        ours = await all_.handler("a", PAIR)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ours.next_rendezvous)
            await anyio.sleep(1)
            await peer.join(2)
        await peer.edit(lambda state: setattr(state, "closed", True))
        await anyio.sleep(30)  # its work is done, and it has ended without a word
        judged = await ours.outlook()
        assert (judged.closed, judged.departed) == (True, False)


@pytest.mark.virtual
async def test_a_node_of_ours_and_a_stock_node_of_the_same_name_are_two_nodes() -> None:
    async with fleet() as all_:
        peer, backend = await all_.stock(), await all_.backend()
        view = await backend.propose(Join(NodeDesc(str(STOCK)), PAIR))
        await peer.join(2)
        view = await until(backend, view, lambda view: view.phase is Phase.MEMBER)
        assert len({desc.name for desc in await backend.roster(1, 0)}) == 2
        await peer.exit()
        view = await until(backend, view, lambda view: bool(view.notices))
        assert view.phase is Phase.MEMBER


@pytest.mark.virtual
async def test_a_corrupt_state_is_an_error_that_says_so_and_is_not_written_over() -> None:
    async with fleet() as all_:
        backend = await all_.backend()
        view = await backend.propose(Join(NodeDesc("a"), PAIR))
        await all_.data.set(KEY, "rubbish!")
        with pytest.raises(RendezvousStateError, match="rubbish"):
            await backend.changed("a", view.revision)
        with pytest.raises(RendezvousStateError, match="rubbish"):
            await backend.propose(KeepAlive("a"))
        with pytest.raises(RendezvousStateError, match="rubbish"):
            await all_.backend()
        assert await all_.data.get(KEY) == b"rubbish!"


# The store


@pytest.mark.virtual
@pytest.mark.parametrize("emptied", [True, False])
async def test_members_are_told_when_the_store_has_forgotten_the_run(emptied: bool) -> None:
    async with fleet() as all_:
        peer, handler = await all_.stock(), await all_.handler("ours", PAIR)
        await peer.join(2)
        await handler.next_rendezvous()
        await (all_.data.delete_key(KEY) if emptied else all_.data.set(KEY, SENTINEL))
        change = await anext(handler.changes())
        assert isinstance(change, Evicted)
        assert change.cause is Cause.SUPERSEDED
        assert "lost the state" in change.reason
        assert (await handler.explain()).round == 0


@pytest.mark.virtual
async def test_a_write_to_a_store_that_has_forgotten_the_run_is_not_taken_for_done() -> None:
    store = MemoryStore()
    fenced = FencedKey(store, RUN)
    state = encode_state(StockState(round=3))
    held = await fenced.set(state, b"whatever was there before")
    assert held == (False, SENTINEL, SENTINEL)
    assert await fenced.set(state, SENTINEL) == (True, state, state)
    assert await fenced.set(SENTINEL, b"something else") == (False, state, state)


@pytest.mark.virtual
async def test_a_write_whose_answer_was_lost_is_looked_for() -> None:
    class Broken(MemoryStore):
        carried_out = True

        async def compare_set(self, key: str, expected: bytes | str, desired: bytes | str) -> bytes:
            if self.carried_out:
                await super().compare_set(key, expected, desired)
            raise RendezvousConnectionError("the connection broke")

    store = Broken()
    fenced = FencedKey(store, RUN)
    await store.set(KEY, SENTINEL)
    assert await fenced.set(b"one", SENTINEL) == (True, b"one", b"one")
    store.carried_out = False
    assert await fenced.set(b"two", b"one") == (False, b"one", b"one")


@pytest.mark.virtual
@pytest.mark.parametrize("others", [0, 1])
async def test_a_cancelled_write_that_arrives_late_changes_nothing(others: int) -> None:
    class Late(MemoryStore):
        """A store on the way to which a write is kept, and sent on after the one who wrote it gave up."""

        held_up = False
        on_its_way: tuple[bytes | str, bytes | str] | None = None

        async def compare_set(self, key: str, expected: bytes | str, desired: bytes | str) -> bytes:
            if key == KEY and self.held_up:
                self.held_up, self.on_its_way = False, (expected, desired)
                await anyio.sleep_forever()
            return await super().compare_set(key, expected, desired)

    store = Late()
    async with CompareAndSetBackend.over(store, RUN) as backend, AsyncExitStack() as stack:
        for _ in range(others):
            other = CompareAndSetBackend.over(MemoryStore(store.host), RUN)
            await (await stack.enter_async_context(other)).propose(Join(NodeDesc("b"), PAIR))
        store.held_up = True
        with anyio.move_on_after(1):
            await backend.propose(Join(NodeDesc("a"), PAIR))
        assert (await backend.propose(Leave("a", "cancelled", Cause.CANCELLED))).phase is Phase.GONE
        assert store.on_its_way is not None
        await store.compare_set(KEY, *store.on_its_way)
        assert [node.desc.name for node in (await backend.status()).nodes] == ["b"] * others


@pytest.mark.virtual
async def test_announcements_are_cleared_away() -> None:
    data = MemoryStore()
    async with CompareAndSetBackend.over(MemoryStore(data.host), RUN) as backend:
        for _ in range(5):
            await backend.propose(Join(NodeDesc("a"), PAIR))
            await backend.propose(Leave("a"))
        assert len(await data.list_keys()) <= 2
    assert await data.list_keys() == [KEY]


async def test_a_store_that_is_killed_while_we_wait_is_named_within_the_read_timeout() -> None:
    with ExitStack() as server:
        port = server.enter_context(torch_store_server())
        async with C10dBackend("127.0.0.1", port, RUN, read_timeout=3.0, is_host=False) as backend:
            view = await backend.propose(Join(NodeDesc("a"), PAIR))
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(anyio.to_thread.run_sync, server.close)
                with anyio.fail_after(120), pytest.raises(RendezvousConnectionError) as caught:
                    await backend.changed("a", view.revision)
    error = caught.value
    assert error.endpoint == f"127.0.0.1:{port}"
    assert error.doing == f"get of '{KEY}'"
    assert str(port) in error.message
    assert error.doing in error.message


async def test_a_store_that_is_not_there_is_named_within_the_read_timeout(free_port: int) -> None:
    with pytest.raises(RendezvousConnectionError, match=f"127.0.0.1:{free_port}"):
        async with C10dBackend("127.0.0.1", free_port, RUN, read_timeout=0.2, is_host=False):
            pass


async def test_the_node_that_the_endpoint_names_hosts_the_store_and_the_next_one_connects(
    free_port: int,
) -> None:
    async with (
        C10dBackend("127.0.0.1", free_port, RUN) as one,
        C10dBackend("127.0.0.1", free_port, RUN) as two,
    ):
        assert one.server is not None
        assert two.server is None
        assert one.addresses() == ("127.0.0.1",)
        await one.propose(Join(NodeDesc("a"), PAIR))
        assert [node.desc.name for node in (await two.status()).nodes] == ["a"]


def test_what_a_tcpstore_has_no_use_for_is_refused() -> None:
    with pytest.raises(RendezvousSettingsError, match="token must be left out for c10d"):
        ar.open_rendezvous("c10d://127.0.0.1:29400", run_id=RUN, min_nodes=1, token="of no use at all")
    with pytest.raises(RendezvousSettingsError, match="port"):
        C10dBackend("127.0.0.1", 0, RUN)


# What an observer finds out


@pytest.mark.virtual
async def test_a_run_of_stock_nodes_alone_can_be_looked_at() -> None:
    async with fleet() as all_:
        peer, backend = await all_.stock(), await all_.backend()
        assert (await backend.status()).settings is None
        await peer.join(1)
        status = await backend.status()
        assert (status.complete, status.world_size, status.settings) == (True, 1, None)
        assert [(node.desc.name, node.rank) for node in status.nodes] == [(str(STOCK), 0)]
        await anyio.sleep(1000)
        assert STOCK in (await peer.state()).participants  # who only looks changes nothing


@pytest.mark.virtual
async def test_a_newcomer_learns_of_earlier_departures_and_of_who_closed() -> None:
    async with fleet() as all_:
        one = await all_.backend()
        await one.propose(Join(NodeDesc("a"), PAIR))
        await one.propose(Join(NodeDesc("b"), PAIR))
        await one.propose(Leave("b", "had enough", Cause.FAILED))
        await one.propose(Close("a", "over"))
        status = await (await all_.backend()).status()
        assert [(gone.node, gone.cause, gone.reason) for gone in status.departed] == [
            ("b", Cause.FAILED, "had enough")
        ]
        assert status.closed is not None
        assert (status.closed.by, status.closed.reason) == ("a", "over")


@pytest.mark.virtual
async def test_only_a_round_with_stock_members_awaits_that_rank_0_publishes_its_store() -> None:
    async with fleet() as all_:
        peer, backend = await all_.stock(), await all_.backend()
        alone = await member(backend, "ours", RunSettings(1, 2, last_call=0.0))
        assert not backend.awaits_bootstrap(alone)
        await peer.wait()
        await backend.propose(Join(NodeDesc("ours"), RunSettings(1, 2, last_call=0.0), alone.generation))
        mixed = await until(backend, await backend.changed("ours", -1), lambda view: view.world_size == 2)
        assert backend.awaits_bootstrap(mixed)
        assert not backend.awaits_bootstrap(alone)
        assert backend.round_prefix(RUN, mixed) == f"{KEY}.1"


def test_the_annex_is_no_part_of_what_is_compared() -> None:
    assert StockState(annex=Annex(pulse="1")) == StockState()

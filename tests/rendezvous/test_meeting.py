"""Members of a round at its barriers, and what they say of themselves while they work."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import anyio
import pytest

import arendezvous as ar
from arendezvous.law.operations import Operation, Update
from arendezvous.law.state import NodeView
from tests.kit.memory_nodes import Node, meet, members, node

pytestmark = pytest.mark.virtual


async def gather(*calls: Any) -> list[Any]:
    with anyio.fail_after(3600):
        return list(await asyncio.gather(*calls, return_exceptions=True))


def now() -> float:
    return asyncio.get_running_loop().time()


# Barriers


async def test_nobody_passes_a_barrier_before_all_have_come() -> None:
    passed: list[int] = []

    async def pass_barrier(info: ar.RendezvousInfo) -> None:
        await info.barrier("loaded")
        passed.append(info.rank)

    async with members(3) as (_, infos), anyio.create_task_group() as tasks:
        for info in infos[:2]:
            tasks.start_soon(pass_barrier, info)
        await anyio.sleep(1000)
        assert passed == []
        await infos[2].barrier("loaded")
        await anyio.sleep(1)
        assert sorted(passed) == [0, 1]


async def test_a_name_is_used_again_in_a_loop_and_nobody_is_a_turn_ahead() -> None:
    at: list[int] = [0, 0, 0]

    async def work(info: ar.RendezvousInfo) -> None:
        for step in range(200):
            await anyio.sleep(info.rank)
            assert set(at) <= {step, step + 1}
            at[info.rank] += 1
            await info.barrier("step")

    async with members(3) as (_, infos):
        assert await gather(*map(work, infos)) == [None] * 3
    assert at == [200] * 3


async def test_a_barrier_that_is_not_passed_in_time_names_who_did_not_come() -> None:
    async with members(4) as (_, infos):
        began = now()
        errors = await gather(*(info.barrier("x", timeout=30) for info in infos[:3]))

        assert now() - began == pytest.approx(30)
        for error in errors:
            assert isinstance(error, ar.RendezvousTimeoutError)
            assert error.missing == ("n3",)
            assert str(error) == "barrier 'x' was not passed within 30 s: 1 member did not come: n3"


async def test_a_barrier_that_was_not_passed_can_be_come_to_again() -> None:
    async with members(2) as (_, infos):
        with pytest.raises(ar.RendezvousTimeoutError):
            await infos[0].barrier("x", timeout=0)
        assert await gather(*(info.barrier("x", timeout=10) for info in infos)) == [None, None]


async def test_a_cancelled_member_has_not_come() -> None:
    async with members(2) as (_, infos):
        with anyio.move_on_after(5):
            await infos[0].barrier("x")
        with pytest.raises(ar.RendezvousTimeoutError, match="1 of the others did not wait for so long"):
            await infos[1].barrier("x", timeout=5)


async def test_of_two_tasks_of_one_member_the_other_waits_on_when_one_goes_away() -> None:
    async with members(2) as (_, infos):
        both = asyncio.ensure_future(infos[0].barrier("x"))
        with pytest.raises(ar.RendezvousTimeoutError):
            await infos[0].barrier("x", timeout=5)
        await infos[1].barrier("x")
        assert await gather(both) == [None]


@pytest.mark.parametrize("cause", [ar.Cause.FAILED, ar.Cause.LEFT])
async def test_who_waits_is_told_at_once_that_a_member_has_gone_and_why(cause: ar.Cause) -> None:
    async with members(3) as (nodes, infos):
        waits = [asyncio.ensure_future(info.barrier("x")) for info in infos[:2]]
        await anyio.sleep(5)
        began = now()
        await nodes[2].leave("out of memory", cause=cause)

        for error in await gather(*waits, infos[0].barrier("y")):
            assert isinstance(error, ar.RoundOverError)
            assert error.departures == {"n2": "out of memory"}
            assert "out of memory" in str(error)
        assert now() == began


async def test_who_waits_is_told_that_a_member_meets_again() -> None:
    async with members(2) as (nodes, infos), anyio.create_task_group() as tasks:
        wait = asyncio.ensure_future(infos[0].barrier("x"))
        await anyio.sleep(1)
        tasks.start_soon(nodes[1].next_rendezvous)
        [error] = await gather(wait)
        assert isinstance(error, ar.RoundOverError)
        assert list(error.departures) == ["n1"]
        await nodes[0].next_rendezvous()


async def test_who_has_finished_is_not_waited_for() -> None:
    async with members(3) as (nodes, infos):
        waits = [asyncio.ensure_future(info.barrier("x")) for info in infos[:2]]
        await anyio.sleep(1)
        await nodes[2].leave(cause=ar.Cause.FINISHED)
        assert await gather(*waits) == [None, None]


async def test_a_barrier_of_an_earlier_round_is_over() -> None:
    async with members(2) as (nodes, infos):
        await meet(*nodes)
        with pytest.raises(ar.RoundOverError, match="round 0 is over"):
            await infos[0].barrier("x")


async def test_members_of_a_closed_run_finish_what_they_do() -> None:
    async with members(2) as (nodes, infos):
        await nodes[0].set_closed("enough")
        assert await gather(*(info.barrier("last") for info in infos)) == [None, None]


async def test_all_agree_on_the_same() -> None:
    async with members(3) as (_, infos):
        found = await gather(*(info.agree("step", 10 * info.rank, "min") for info in infos))
        assert found == [0, 0, 0]
        found = await gather(*(info.agree("ready", info.rank > 0, "all") for info in infos))
        assert found == [False] * 3
        found = await gather(*(info.agree("plan", {"layers": [1, None]}) for info in infos))
        assert found == [{"layers": [1, None]}] * 3


async def test_who_differs_is_named_to_all_and_the_name_can_be_used_again() -> None:
    async with members(3) as (_, infos):
        for error in await gather(*(info.agree("plan", info.rank % 2) for info in infos)):
            assert isinstance(error, ar.RendezvousStateError)
            assert "is 0 by 2 nodes (n0, n2), 1 by 1 node (n1)" in str(error)
        assert await gather(*(info.agree("plan", 7) for info in infos)) == [7, 7, 7]


@pytest.mark.parametrize(
    ("value", "reducer"),
    [("text", "min"), (True, "sum"), (2**60, "max"), (1, "all"), (float("nan"), "min"), (object(), "same"),
     ({1: 2}, "same"), ("x" * 2000, "same"), (1, "median")],
)  # fmt: skip
async def test_a_value_that_does_not_fit_is_refused_and_the_member_has_not_come(
    value: Any, reducer: Any
) -> None:
    async with members(2) as (_, infos):
        with pytest.raises(ar.RendezvousSettingsError):
            await infos[0].agree("x", value, reducer)
        with pytest.raises(ar.RendezvousTimeoutError) as caught:
            await infos[1].agree("x", 1, "min", timeout=1)
        assert caught.value.missing == ("n0",)


async def test_information_that_was_pickled_says_that_its_barriers_stay_behind() -> None:
    async with members(2) as (_, infos):
        copy = pickle.loads(pickle.dumps(infos[0]))
        assert copy.fence == infos[0].fence
        with pytest.raises(RuntimeError, match="pickled"):
            await copy.barrier("x")


# Fences


async def test_a_fence_rises_with_every_round() -> None:
    async with members(2) as (nodes, infos):
        fences = [infos[0].fence, *[(await meet(*nodes))[0].fence for _ in range(20)]]
    assert fences == sorted(set(fences))
    assert ar.is_stale(fences[0], than=fences[1])
    assert not ar.is_stale(fences[1], than=fences[1])
    assert not ar.is_stale(fences[1], than=fences[0])


@pytest.mark.parametrize(
    "fence", ["", "11", "11.1", "11.201", "21.10", "11.1G", "201.10", "11.10.10", "1-1.10"]
)
def test_what_is_no_fence_is_refused(fence: str) -> None:
    with pytest.raises(ar.RendezvousSettingsError, match="must be a fence"):
        ar.is_stale(fence, than="11.10")


def test_a_fence_that_is_no_text_is_refused() -> None:
    with pytest.raises(ar.RendezvousTypeError, match="than is 7, but must be a fence"):
        ar.is_stale("11.10", than=7)  # type: ignore[arg-type]  # on purpose


# States and progress


async def test_the_latest_state_of_each_node_is_shown() -> None:
    async with members(2) as (nodes, _):
        await nodes[0].update({"version": 1})
        await nodes[0].update({"version": 2})
        status = await nodes[1].explain()
        assert [one.state for one in status.nodes] == [b'{"version":2}', b""]


async def test_a_state_is_known_in_the_next_round_too() -> None:
    async with members(2) as (nodes, _):
        await nodes[0].update("warm")
        await nodes[0].leave()
        await meet(*nodes)
        assert [one.state for one in (await nodes[1].explain()).nodes] == [b'"warm"', b""]


async def test_states_are_told_to_whoever_asks_for_them_and_to_nobody_else() -> None:
    heard: list[ar.Change] = []

    async def listen(changes: AsyncIterator[ar.Change]) -> None:
        async for change in changes:
            heard.append(change)

    async with members(2) as (nodes, _), anyio.create_task_group() as tasks:
        await nodes[1].update("before")
        tasks.start_soon(listen, nodes[0].changes(states=True))
        others: list[ar.Change] = []
        await anyio.sleep(1)
        await nodes[1].update({"version": 43})
        await anyio.sleep(1)
        with anyio.move_on_after(1):
            others += [change async for change in nodes[0].changes()]
        await nodes[1].leave()
        await anyio.sleep(1)
        await nodes[0].leave()
        assert others == []
    states = [change for change in heard if isinstance(change, ar.StateChanged)]
    assert states == [ar.StateChanged("n1", "before"), ar.StateChanged("n1", {"version": 43})]
    assert [type(change) for change in heard if change not in states] == [ar.NodeLeft]


async def test_many_updates_at_once_are_told_as_few_and_the_last_counts() -> None:
    told: list[Operation] = []

    async with members(2) as (nodes, _):
        backend = nodes[0]._backend
        original = backend.propose

        async def propose(operation: Operation) -> NodeView:
            told.append(operation)
            return await original(operation)

        backend.propose = propose  # type: ignore[method-assign]  # looked at
        async with anyio.create_task_group() as tasks:
            for number in range(10_000):
                tasks.start_soon(nodes[0].update, number)
        updates = [operation for operation in told if isinstance(operation, Update)]
        assert len(updates) <= 2
        assert updates[-1].state == b"9999"
        assert (await nodes[1].explain()).nodes[0].state == b"9999"


async def test_a_node_that_is_not_in_the_run_has_no_state_there() -> None:
    async with node("a", 1) as a:
        for call in (a.update("x"), a.progress(1)):
            with pytest.raises(ar.RendezvousStateError, match="not in the run"):
                await call


@pytest.mark.parametrize("state", [float("inf"), object(), "x" * 2000, b"bytes"])
async def test_a_state_that_is_not_allowed_is_refused(state: Any) -> None:
    async with members(1) as (nodes, _):
        with pytest.raises(ar.RendezvousSettingsError, match="state"):
            await nodes[0].update(state)


@pytest.mark.parametrize("step", [-1, 1.5, True, "7"])
async def test_a_step_that_is_none_is_refused(step: Any) -> None:
    async with members(1) as (nodes, _):
        with pytest.raises(ar.RendezvousSettingsError, match="step"):
            await nodes[0].progress(step)


async def test_a_member_that_stalls_is_told_of_and_named() -> None:
    async with members(2, stall_timeout=60) as (nodes, _):
        await nodes[0].progress(5)
        await nodes[1].progress(5)

        async def work() -> None:
            for step in range(6, 100):
                await anyio.sleep(10)
                await nodes[0].progress(step)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(work)
            changes = nodes[0].changes()
            began = now()
            change = await anext(changes)
            assert change == ar.NodeStalled("n1", 5, 60.0)
            assert str(change) == "n1 stalls: it has been at step 5 for 60 s"
            assert now() - began == pytest.approx(60)
            assert "slowest: n1" in str(await nodes[0].explain())
            tasks.cancel_scope.cancel()


# Waits of the round's store


async def test_a_wait_in_the_store_ends_when_a_member_is_gone() -> None:
    async with members(3) as (nodes, infos):
        store = infos[0].store
        waits = [
            asyncio.ensure_future(call)
            for call in (
                store.get("k"),
                store.wait(["k"]),
                store.multi_get(["k", "l"]),
                store.queue_pop("q"),
                store.barrier("b", 3),
            )
        ]
        await anyio.sleep(5)
        began = now()
        await nodes[2].leave("boom", cause=ar.Cause.FAILED)
        for error in await gather(*waits, store.get("k")):
            assert isinstance(error, ar.RoundOverError)
            assert error.departures == {"n2": "boom"}
        assert now() == began


async def test_a_wait_in_the_store_goes_on_if_it_is_to_outlive_the_round() -> None:
    async with members(3) as (nodes, infos):
        store: Any = infos[0].store
        waits = [asyncio.ensure_future(store.get("k", outlive=True))]
        store.outlive = True
        waits += [asyncio.ensure_future(store.get("k"))]
        await anyio.sleep(5)
        await nodes[2].leave(cause=ar.Cause.FAILED)
        await anyio.sleep(5)
        await infos[1].store.set("k", b"v")
        assert await gather(*waits) == [b"v", b"v"]


async def test_a_wait_in_the_store_goes_on_when_a_member_has_finished() -> None:
    async with members(3) as (nodes, infos):
        wait = asyncio.ensure_future(infos[0].store.get("k"))
        await anyio.sleep(5)
        await nodes[2].leave(cause=ar.Cause.FINISHED)
        await anyio.sleep(5)
        await infos[1].store.set("k", b"v")
        assert await gather(wait) == [b"v"]


async def test_a_wait_in_the_store_ends_when_this_node_goes_on() -> None:
    async with members(2) as (nodes, infos):
        wait = asyncio.ensure_future(infos[0].store.get("k"))
        await anyio.sleep(5)
        await meet(*nodes)
        [error] = await gather(wait)
        assert isinstance(error, ar.RoundOverError)


async def test_a_time_out_in_the_store_names_the_keys_that_are_missing() -> None:
    async with members(2) as (_, infos):
        await infos[0].store.set("here", b"1")
        with pytest.raises(ar.StoreTimeoutError) as caught:
            await infos[0].store.wait(["here", "gone"], 5)
        assert [key.rpartition("/")[2] for key in caught.value.keys] == ["gone"]


async def test_a_cancelled_wait_in_the_store_is_cancelled() -> None:
    async with members(2) as (nodes, infos):
        wait = asyncio.ensure_future(infos[0].store.get("k"))
        await anyio.sleep(1)
        wait.cancel()
        with pytest.raises(asyncio.CancelledError):
            await wait
        await nodes[1].leave(cause=ar.Cause.FAILED)
        await anyio.sleep(1)


# Rounds


async def test_a_round_is_cancelled_when_a_member_fails_and_the_others_go_on() -> None:
    worlds: dict[str, list[int]] = {"n0": [], "n1": [], "n2": []}

    async def work(one: Node) -> None:
        async with one:
            async for round_ in one.rounds():
                worlds[one.node].append(round_.world_size)
                with round_.scope:
                    if round_.world_size == 3 and one.node == "n2":
                        await anyio.sleep(10)
                        raise MemoryError
                    await anyio.sleep(100)

    async with anyio.create_task_group() as tasks:
        for name in ("n0", "n1"):
            tasks.start_soon(work, node(name, 2, 3, last_call_timeout=1))

        async def fail() -> None:
            with pytest.raises(MemoryError):
                await work(node("n2", 2, 3, last_call_timeout=1))

        tasks.start_soon(fail)
    assert worlds == {"n0": [3, 2], "n1": [3, 2], "n2": [3]}


async def test_a_node_whose_work_is_done_has_finished() -> None:
    async with members(2) as (nodes, _):

        async def work(one: Node) -> list[int]:
            return [round_.round async for round_ in one.rounds()]

        assert await gather(*map(work, nodes)) == [[1], [1]]
        status = await nodes[0].explain()
        assert {gone.cause for gone in status.departed} == {ar.Cause.FINISHED}
        assert status.ended


async def test_a_round_tells_why_it_ended() -> None:
    async with node("a", 1, 2, last_call_timeout=0) as a, node("b", 1, 2, last_call_timeout=0) as b:
        rounds = aiter(a.rounds())
        round_ = await anext(rounds)
        assert (round_.rank, round_.info.world_size) == (0, 1)
        assert not round_.has_ended
        assert pickle.loads(pickle.dumps(round_)) == round_.info
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(b.next_rendezvous)
            with anyio.fail_after(10):
                assert await round_.over() == (ar.NodesWaiting(1),)
            with round_.scope:
                await anyio.sleep_forever()
            assert round_.scope.cancelled_caught
            assert (await anext(rounds)).world_size == 2


async def test_which_changes_end_a_round_is_the_callers_to_say() -> None:
    async with members(3) as (nodes, _):

        async def work(one: Node) -> tuple[int, list[ar.Change]]:
            async for round_ in one.rounds(until=lambda change: False):
                with round_.scope:
                    await anyio.sleep(100)
                return round_.world_size, round_.changes
            raise AssertionError

        async def fail() -> None:
            await nodes[2].next_rendezvous()
            await anyio.sleep(10)
            await nodes[2].leave("boom", cause=ar.Cause.FAILED)

        first, second, _ = await gather(work(nodes[0]), work(nodes[1]), fail())
        assert first == second == (3, [ar.NodeLeft("n2", ar.Cause.FAILED, "boom")])


async def test_rounds_end_when_the_run_is_closed_but_not_the_work() -> None:
    done: list[str] = []

    async def work(one: Node) -> None:
        async for round_ in one.rounds():
            with round_.scope:
                await anyio.sleep(10 + 10 * round_.rank)
                done.append(one.node)
            if round_.rank == 1:
                break

    async with members(2) as (nodes, _), anyio.create_task_group() as tasks:
        tasks.start_soon(work, nodes[0])
        tasks.start_soon(work, nodes[1])
        await anyio.sleep(5)
        await nodes[0].set_closed("enough")
    assert done == ["n0", "n1"]


async def test_a_drained_node_ends_its_rounds_once_the_others_have_met_without_it() -> None:
    worlds: dict[str, list[int]] = {"n0": [], "n1": [], "n2": []}

    async def work(one: Node) -> None:
        async for round_ in one.rounds():
            worlds[one.node].append(round_.world_size)
            with round_.scope:
                await anyio.sleep(100)

    async with AsyncExitStack() as stack, anyio.create_task_group() as tasks:
        nodes = [await stack.enter_async_context(node(f"n{i}", 2, 3, last_call_timeout=1)) for i in range(3)]
        for one in nodes:
            tasks.start_soon(work, one)
        await anyio.sleep(5)
        await nodes[2].drain(60, "maintenance")
    assert worlds == {"n0": [3, 2], "n1": [3, 2], "n2": [3]}


async def test_a_barrier_that_says_that_the_round_is_over_ends_the_work_in_it_as_any_change_does() -> None:
    seen: list[tuple[str, int]] = []

    async def work(one: Node) -> None:
        async with one:
            async for round_ in one.rounds():
                seen.append((one.node, round_.world_size))
                with round_.scope:
                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(round_.barrier, "never" if round_.world_size == 3 else "both")
                        await round_.barrier("nor this" if round_.world_size == 3 else "together")

    async with anyio.create_task_group() as tasks, node("n2", 2, 3, last_call_timeout=1) as third:
        for name in ("n0", "n1"):
            tasks.start_soon(work, node(name, 2, 3, last_call_timeout=1))
        await third.next_rendezvous()
        await third.leave("boom", cause=ar.Cause.FAILED)
    assert sorted(seen) == [("n0", 2), ("n0", 3), ("n1", 2), ("n1", 3)]

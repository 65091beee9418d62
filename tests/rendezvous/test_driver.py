"""One node's way through a rendezvous: joining, changes, leaving, and being stopped anywhere on the way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import anyio
import pytest

import arendezvous as ar
from arendezvous.backends.memory import LocalBackend
from arendezvous.law.operations import Drain, Join, KeepAlive, Leave, Operation, Reopen
from arendezvous.law.state import Cause, NodeDesc, NodeView, Phase
from arendezvous.rendezvous.option_groups import RendezvousTimeout
from tests.kit.memory_nodes import ENDPOINT, Node, meet, members, node

pytestmark = pytest.mark.virtual


async def next_change(handler: Node) -> ar.Change:
    with anyio.fail_after(3600):
        return await anext(aiter(handler.changes()))


async def all_changes(handler: Node) -> list[ar.Change]:
    with anyio.fail_after(3600):
        return [change async for change in handler.changes()]


# Joining


async def test_all_who_join_agree_on_round_world_size_and_digest() -> None:
    async with members(5) as (_, infos):
        assert [info.rank for info in infos] == [0, 1, 2, 3, 4]
        expected = {(0, 1, 5, infos[0].digest, ("n0",))}
        assert {
            (i.round, i.incarnation, i.world_size, i.digest, i.rank0_addresses) for i in infos
        } == expected
        assert [desc.name for desc in await infos[3].members()] == ["n0", "n1", "n2", "n3", "n4"]


async def test_members_of_a_round_share_a_store_that_others_do_not_see() -> None:
    async with members(2) as (nodes, infos):
        await infos[0].store.set("key", b"of round 0")
        assert await infos[1].store.get("key") == b"of round 0"
        again = await meet(*nodes)
        assert [info.round for info in again] == [1, 1]
        assert not await again[0].store.check(["key"])


async def test_the_last_call_is_over_after_its_time() -> None:
    loop = asyncio.get_running_loop()
    begin = loop.time()
    async with node("a", 1, 2, timeout=RendezvousTimeout(last_call=30)) as a:
        info = await a.next_rendezvous()
        assert info.world_size == 1
        assert loop.time() - begin == pytest.approx(30)


async def test_a_join_that_times_out_says_who_came_and_who_was_dropped() -> None:
    async with node("node-a", 4) as a, node("node-b", 4) as b, anyio.create_task_group() as tasks:

        async def lost() -> None:
            async with LocalBackend("job", "nodes") as backend:
                await backend.propose(Join(NodeDesc("node-c"), a.settings.run))
                await anyio.sleep(30)  # and no heartbeat

        async def other() -> None:
            await anyio.sleep(588)
            with pytest.raises(ar.RendezvousTimeoutError):
                await b.next_rendezvous()

        tasks.start_soon(lost)
        tasks.start_soon(other)
        with pytest.raises(ar.RendezvousTimeoutError) as caught:
            await a.next_rendezvous()
        expected = (
            "joined, but only 2 of at least 4 nodes came within 600 s: node-a (10 min), node-b (12 s); "
            "missing 2; dropped: node-c, no heartbeat for 15.0 s. "
            "Start the missing nodes, or raise the join time-out"
        )
        assert str(caught.value) == expected
        assert caught.value.timeout == 600
        assert "2 more needed" in caught.value.explanation
        status = await b.explain()
        assert [one.desc.name for one in status.nodes] == ["node-b"]
        assert status.departed[-1].cause is Cause.CANCELLED
        tasks.cancel_scope.cancel()


async def test_a_join_that_times_out_since_members_do_not_meet_again_says_so() -> None:
    async with members(2, timeout=RendezvousTimeout(join=20)) as (nodes, _):
        with pytest.raises(
            ar.RendezvousTimeoutError, match="members of round 0 did not meet again within 20 s"
        ):
            await nodes[0].next_rendezvous()
        assert [one.desc.name for one in (await nodes[1].explain()).nodes] == ["n1"]


async def test_a_join_that_times_out_is_over_in_time_even_if_nobody_answers() -> None:
    async with node("a", timeout=RendezvousTimeout(join=20)) as a, node("b") as b:

        async def no_answer() -> ar.RunStatus:
            await anyio.sleep_forever()
            raise AssertionError

        a._backend.status = no_answer  # type: ignore[method-assign]
        begin = asyncio.get_running_loop().time()
        with pytest.raises(
            ar.RendezvousTimeoutError, match=r"within 20 s, and memory://nodes does not answer"
        ):
            await a.next_rendezvous()
        assert asyncio.get_running_loop().time() - begin <= 25
        assert (await b.explain()).nodes == ()


async def test_a_second_join_at_the_same_time_is_refused_and_the_first_goes_on() -> None:
    async with node("a") as a, node("b") as b, anyio.create_task_group() as tasks:
        tasks.start_soon(a.next_rendezvous)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(RuntimeError, match="a is joining already"):
            await a.next_rendezvous()
        assert (await b.next_rendezvous()).world_size == 2


async def test_a_node_takes_the_place_of_one_of_its_name_that_is_gone_without_a_word() -> None:
    async with node("a") as a, LocalBackend("job", "nodes") as backend:
        join = Join(NodeDesc("b"), a.settings.run)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(a.next_rendezvous)
            await backend.propose(join)
        await backend.__aexit__(None, None, None)  # as if its process were killed
        async with node("b") as b, anyio.create_task_group() as tasks:
            tasks.start_soon(b.next_rendezvous)
            changes = aiter(a.changes())
            assert isinstance(await anext(changes), ar.NodeLost)
            assert await anext(changes) == ar.NodesWaiting(1)
            assert (await a.next_rendezvous()).round == 1
        await backend.__aenter__()


async def test_a_node_that_was_refused_a_name_says_nothing_false_of_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with node("a") as a, node("a") as b, anyio.create_task_group() as tasks:
        tasks.start_soon(a.next_rendezvous)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(ar.RendezvousStateError):
            await b.next_rendezvous()
        assert "expired" not in caplog.text
        tasks.cancel_scope.cancel()


async def test_nodes_of_one_name_are_told_to_take_another() -> None:
    async with node("a") as a, node("a") as b, anyio.create_task_group() as tasks:
        tasks.start_soon(a.next_rendezvous)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(ar.RendezvousStateError, match="'a' is in use in run 'job'"):
            await b.next_rendezvous()
        assert [one.desc.name for one in (await a.explain()).nodes] == ["a"]
        tasks.cancel_scope.cancel()


async def test_a_node_with_other_settings_is_refused_and_named_the_difference() -> None:
    async with node("a", 2, 3) as a, node("b", 2, 4) as b, anyio.create_task_group() as tasks:
        tasks.start_soon(a.next_rendezvous)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(ar.RendezvousSettingsError, match="max_nodes is 4, but must be 3"):
            await b.next_rendezvous()
        tasks.cancel_scope.cancel()


async def test_a_node_that_was_dropped_while_it_waited_joins_again_by_itself() -> None:
    async with node("a") as a, node("b") as b, anyio.create_task_group() as tasks:
        sizes: list[int] = []

        async def join() -> None:
            sizes.append((await a.next_rendezvous()).world_size)

        tasks.start_soon(join)
        await anyio.wait_all_tasks_blocked()
        await a._backend.propose(Leave("a", "as the law would", Cause.NO_HEARTBEAT))
        sizes.append((await b.next_rendezvous()).world_size)
    assert sizes == [2, 2]
    assert any("joining again" in entry.what for entry in a.history)


async def test_a_waiting_node_that_leaves_by_another_task_is_not_joined_again() -> None:
    async with node("a") as a, anyio.create_task_group() as tasks:

        async def join() -> None:
            with pytest.raises(ar.RendezvousStateError, match="a left the run while it was joining"):
                await a.next_rendezvous()

        tasks.start_soon(join)
        await anyio.wait_all_tasks_blocked()
        await a.leave("not needed")
        await anyio.wait_all_tasks_blocked()
        assert (await a.explain()).nodes == ()


# Cancellation


async def join_cancelled_after(steps: int) -> tuple[bool, list[str]]:
    """Cancels a join after so many turns of the loop; whether it was done by then, and who is in the run."""
    async with (
        members(2, most=3, timeout=RendezvousTimeout(last_call=0)) as (others, _),
        node("x", 2, 3, timeout=RendezvousTimeout(last_call=0)) as x,
    ):
        done = False
        async with anyio.create_task_group() as tasks:

            async def join() -> None:
                nonlocal done
                await x.next_rendezvous()
                done = True

            tasks.start_soon(join)
            for _ in range(steps):
                await asyncio.sleep(0)
            if steps > 4:
                tasks.start_soon(meet, *others)
                for _ in range(steps):
                    await asyncio.sleep(0)
            tasks.cancel_scope.cancel()
        return done, [one.desc.name for one in (await x.explain()).nodes]


@pytest.mark.parametrize("steps", range(24))
async def test_a_join_cancelled_at_any_point_withdraws_the_node(steps: int) -> None:
    done, inside = await join_cancelled_after(steps)
    assert ("x" in inside) == done


async def test_the_brute_force_above_reaches_the_end_of_a_join() -> None:
    assert (await join_cancelled_after(0))[0] is False
    assert (await join_cancelled_after(23))[0] is True


async def test_a_cancelled_join_is_over_at_once_for_the_others() -> None:
    async with node("a") as a, node("b", 2) as b:
        with anyio.move_on_after(5) as scope:
            await a.next_rendezvous()
        assert scope.cancelled_caught
        status = await b.explain()
        assert (status.nodes, status.departed[-1].cause) == ((), Cause.CANCELLED)
        assert a.history[-1].what == "not joined: the join was cancelled"


async def test_a_cancelled_join_can_be_tried_again() -> None:
    async with node("a") as a, node("b") as b:
        with anyio.move_on_after(5):
            await a.next_rendezvous()
        infos = await meet(a, b)
        assert [info.world_size for info in infos] == [2, 2]


# Leaving


async def test_leaving_the_block_tells_the_others_at_once() -> None:
    async with node("a") as a:
        async with node("b") as b:
            await meet(a, b)
        expected = ar.NodeLeft("b", Cause.LEFT, "")
        assert await next_change(a) == expected


async def test_leaving_the_block_by_an_exception_tells_the_others_its_name() -> None:
    async with node("a") as a:
        with suppress(ZeroDivisionError):
            async with node("b") as b:
                await meet(a, b)
                raise ZeroDivisionError
        assert await next_change(a) == ar.NodeLeft("b", Cause.FAILED, "ZeroDivisionError")


async def test_leaving_the_block_by_cancellation_tells_the_others() -> None:
    async with node("a") as a:
        with anyio.move_on_after(10):
            async with node("b") as b:
                await meet(a, b)
                await anyio.sleep_forever()
        assert await next_change(a) == ar.NodeLeft("b", Cause.CANCELLED, "its task was cancelled")


async def test_leaving_the_block_without_having_joined_disturbs_nobody() -> None:
    async with node("a"):
        async with node("b") as b:
            pass
        assert b.history == ()


async def test_leave_tells_why_and_that_the_work_is_finished() -> None:
    async with members(3) as (nodes, _):
        await nodes[1].leave("all epochs done", cause=Cause.FINISHED)
        assert await next_change(nodes[0]) == ar.NodeLeft("n1", Cause.FINISHED, "all epochs done")
        assert str(await next_change(nodes[0])) == "n1 finished its work: all epochs done"
        with pytest.raises(RuntimeError, match="no changes before"):
            nodes[1].changes()


async def test_a_leave_that_was_cancelled_is_made_sure_by_leaving_the_block() -> None:
    async with node("a") as a:
        async with node("b") as b:
            await meet(a, b)
            real = b._backend.propose

            async def lost(operation: Operation) -> NodeView:
                if isinstance(operation, Leave) and operation.reason == "on the way":
                    await anyio.sleep_forever()
                return await real(operation)

            b._backend.propose = lost  # type: ignore[method-assign]
            with anyio.move_on_after(1):
                await b.leave("on the way")
        assert (await a.explain()).departed[-1].node == "b"


async def test_a_reason_that_is_too_long_is_refused_and_the_node_stays() -> None:
    async with members(2) as (nodes, _):
        with pytest.raises(ar.RendezvousSettingsError, match="reason"):
            await nodes[0].leave("x" * 1000)
        assert len((await nodes[1].explain()).nodes) == 2


async def test_shutdown_leaves_and_says_that_it_worked() -> None:
    async with members(2) as (nodes, _):
        assert await nodes[0].shutdown() is True
        assert await nodes[0].shutdown() is True
        assert [one.desc.name for one in (await nodes[1].explain()).nodes] == ["n1"]
        assert not await nodes[1].is_closed()


async def test_shutdown_says_that_it_did_not_work() -> None:
    async with members(2) as (nodes, _):
        real = nodes[0]._backend.propose

        async def broken(operation: Operation) -> NodeView:
            raise ar.RendezvousConnectionError("no way")

        nodes[0]._backend.propose = broken  # type: ignore[method-assign]
        assert await nodes[0].shutdown() is False
        nodes[0]._backend.propose = real  # type: ignore[method-assign]


async def test_a_node_that_left_may_come_back() -> None:
    async with members(2) as (nodes, _):
        await nodes[0].leave()
        infos = await meet(*nodes)
        assert [(info.round, info.world_size) for info in infos] == [(1, 2), (1, 2)]


# Changes


async def test_a_silent_member_is_lost_after_its_heartbeats_are_missed() -> None:
    async with members(2, keep_alive_interval=5, keep_alive_max_attempt=3) as (nodes, _):
        loop = asyncio.get_running_loop()
        nodes[1]._joined = False  # sends no heartbeats, as if it were frozen
        begin = loop.time()
        change = await next_change(nodes[0])
        assert isinstance(change, ar.NodeLost)
        assert (change.node, change.cause) == ("n1", Cause.NO_HEARTBEAT)
        assert 10 <= loop.time() - begin <= 15.1


async def test_a_member_that_was_expired_is_told_that_it_was_evicted() -> None:
    async with members(2) as (nodes, _):
        nodes[1]._joined = False  # sends no heartbeats, as if it were frozen
        changes = await all_changes(nodes[1])
        assert [type(change) for change in changes] == [ar.Evicted]
        assert changes[0].cause is Cause.NO_HEARTBEAT  # type: ignore[union-attr]
        assert "no heartbeat for 15" in str(changes[0])
        assert await all_changes(nodes[1]) == changes


async def test_newcomers_are_announced_and_admitted_when_the_members_meet_again() -> None:
    settings: dict[str, Any] = {"most": 3, "timeout": RendezvousTimeout(last_call=0)}
    async with members(2, **settings) as (nodes, infos), node("late", 2, **settings) as late:
        assert [info.world_size for info in infos] == [2, 2]
        async with anyio.create_task_group() as tasks:

            async def join_late() -> None:
                assert (await late.next_rendezvous()).rank == 2

            tasks.start_soon(join_late)
            assert await next_change(nodes[0]) == ar.NodesWaiting(1)
            assert await nodes[1].num_nodes_waiting() == 1
            again = await meet(*nodes)
        assert [(info.rank, info.world_size) for info in again] == [(0, 3), (1, 3)]
        assert await nodes[0].num_nodes_waiting() == 0


async def test_changes_end_when_the_node_joins_another_round() -> None:
    async with members(2) as (nodes, _), anyio.create_task_group() as tasks:
        seen: list[list[ar.Change]] = []

        async def watch() -> None:
            seen.append(await all_changes(nodes[0]))

        tasks.start_soon(watch)
        await anyio.wait_all_tasks_blocked()
        await meet(*nodes)
        await anyio.wait_all_tasks_blocked()
        assert len(seen) == 1
        assert all(isinstance(change, ar.NodesWaiting) for change in seen[0])


async def test_changes_end_after_the_run_is_closed() -> None:
    async with members(2) as (nodes, _):
        await nodes[1].set_closed("enough")
        assert await all_changes(nodes[0]) == [ar.Closed("n1", "enough")]
        assert await nodes[0].is_closed()
        assert nodes[0].history[-1].change == ar.Closed("n1", "enough")


async def test_a_member_of_a_closed_run_learns_which_peers_are_gone_other_than_by_finishing() -> None:
    async with members(4) as (nodes, _):
        await nodes[0].set_closed("finish what you do")
        await nodes[1].leave("all done", cause=Cause.FINISHED)
        await anyio.wait_all_tasks_blocked()
        assert not (await nodes[0].outlook()).departed
        await nodes[2].leave("disk full", cause=Cause.FAILED)
        await anyio.wait_all_tasks_blocked()
        judged = await nodes[0].outlook()
        assert (judged.closed, judged.departed, judged.remaining) == (True, True, 2)
        assert judged.departures == (ar.NodeLeft("n2", Cause.FAILED, "disk full"),)
        await anyio.sleep(2)
        with pytest.raises(ar.RendezvousClosedError) as caught:
            await nodes[0].next_rendezvous()
        assert (caught.value.by, caught.value.reason) == ("n0", "finish what you do")
        assert str(caught.value).endswith("; members that are gone: n2 (failed 2.0 s ago: disk full)")


async def test_a_peer_that_drains_in_a_closed_run_counts_once_it_is_gone() -> None:
    async with members(2) as (nodes, _):
        await nodes[0].set_closed()
        await nodes[1].drain(5, "power")
        await anyio.wait_all_tasks_blocked()
        assert not (await nodes[0].outlook()).departed
        await anyio.sleep(5.1)
        assert (await nodes[0].outlook()).departures == (ar.NodeLeft("n1", Cause.DRAINED, "power"),)


async def test_a_run_that_all_members_left_as_finished_has_ended() -> None:
    async with members(2) as (nodes, _), node("late") as late:
        for one in nodes:
            await one.leave("converged", cause=Cause.FINISHED)
        status = await late.explain()
        assert (status.ended, status.missing) == (True, 0)
        assert str(status).startswith("run 'job': ended; all nodes of its last round have finished, the last")


async def test_changes_that_come_with_the_completion_itself_are_told() -> None:
    async with node("a", 3) as a, node("b", 3) as b, node("c", 3) as c:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(a.next_rendezvous)
            tasks.start_soon(b.next_rendezvous)
            await anyio.wait_all_tasks_blocked()
            await c.next_rendezvous()  # completes the round; in the same turn of the loop:
            await c.leave("at once")
            await c.set_closed("and for all")
        expected = [ar.NodeLeft("c", Cause.LEFT, "at once"), ar.Closed("c", "and for all")]
        assert await all_changes(a) == expected


async def test_a_drain_is_announced_and_ends_in_a_graceful_exit() -> None:
    async with members(2) as (nodes, _), node("spare") as spare, anyio.create_task_group() as tasks:
        outcome: list[int] = []

        async def wait() -> None:
            outcome.append((await spare.next_rendezvous()).rank)

        tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        await nodes[1].drain(60, "maintenance")
        change = await next_change(nodes[0])
        assert change == ar.NodeDraining("n1", 60.0, "maintenance")
        assert str(change) == "n1 is draining and will be gone within 60 s: maintenance"
        info = await nodes[0].next_rendezvous()
        assert info.world_size == 2
        await anyio.wait_all_tasks_blocked()
        assert outcome == [1]
        changes = await all_changes(nodes[1])
        assert changes[-1] == ar.Evicted(Cause.DRAINED, "maintenance")


async def loop(handler: Node, outcome: dict[str, list[Any]]) -> None:
    """The loop of the quick start: meets whenever the world changes, until the node may go."""
    ranks = outcome.setdefault(handler.node, [])
    while True:
        try:
            info = await handler.next_rendezvous()
        except ar.RendezvousGracefulExitError as error:
            ranks.append(str(error))
            return
        ranks.append((info.round, info.rank))
        async for change in handler.changes():
            if isinstance(change, ar.Closed):
                return
            break


@pytest.mark.parametrize("by", ["itself", "an operator"])
async def test_a_drained_node_that_meets_again_waits_for_its_release_and_is_told_to_go(by: str) -> None:
    outcome: dict[str, list[Any]] = {}
    async with members(3, most=3) as (nodes, _), node("spare", 3) as spare:
        async with anyio.create_task_group() as tasks:
            for one in (*nodes, spare):
                tasks.start_soon(loop, one, outcome)
            await anyio.wait_all_tasks_blocked()
            if by == "itself":
                await nodes[1].drain(60, "maintenance")
            else:
                await nodes[0]._backend.propose(Drain("n1", 60, "maintenance"))
            await anyio.sleep(1)
            await spare.set_closed("enough")
        assert outcome["n1"][-1] == "n1 was drained: maintenance"
        assert [outcome[name][-1] for name in ("n0", "spare", "n2")] == [(2, 0), (2, 1), (2, 2)]
        with pytest.raises(ar.RendezvousGracefulExitError, match="n1 was drained"):
            await nodes[1].next_rendezvous()  # it never comes back by itself


async def test_a_drained_node_waits_for_its_release_without_a_time_out() -> None:
    async with members(2, timeout=RendezvousTimeout(join=5)) as (nodes, _):
        loop = asyncio.get_running_loop()
        begin = loop.time()
        await nodes[1].drain(60)
        with pytest.raises(ar.RendezvousGracefulExitError, match="n1 was drained: no reason given"):
            await nodes[1].next_rendezvous()
        assert loop.time() - begin == pytest.approx(60)
        assert await next_change(nodes[0]) == ar.NodeDraining("n1", 60.0, "")


async def test_a_drained_node_of_a_run_that_is_closed_need_not_wait() -> None:
    async with members(2) as (nodes, _), anyio.create_task_group() as tasks:
        await nodes[1].drain(60, "power")

        async def meet_again() -> None:
            with pytest.raises(
                ar.RendezvousGracefulExitError, match=r"n1 is draining, and not needed: .* enough"
            ):
                await nodes[1].next_rendezvous()

        tasks.start_soon(meet_again)
        await anyio.wait_all_tasks_blocked()
        await nodes[0].set_closed("enough")


async def test_a_drain_can_wait_for_the_release() -> None:
    async with members(2) as (nodes, _), node("spare") as spare, anyio.create_task_group() as tasks:
        released = anyio.Event()

        async def drain() -> None:
            await nodes[1].drain(60, "maintenance", wait=True)
            released.set()

        tasks.start_soon(spare.next_rendezvous)
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(drain)
        await anyio.sleep(10)
        assert not released.is_set()
        await nodes[0].next_rendezvous()
        await anyio.wait_all_tasks_blocked()
        assert released.is_set()


async def test_a_drain_that_was_released_before_the_node_meets_again_is_not_undone_by_that() -> None:
    async with members(2) as (nodes, _), node("spare") as spare, anyio.create_task_group() as tasks:
        tasks.start_soon(spare.next_rendezvous)
        await anyio.wait_all_tasks_blocked()
        await nodes[1].drain(60)
        await nodes[0].next_rendezvous()
        with pytest.raises(ar.RendezvousGracefulExitError):
            await nodes[1].next_rendezvous()
        assert {one.desc.name for one in (await nodes[0].explain()).nodes} == {"n0", "spare"}


async def test_a_drained_node_that_is_opened_anew_takes_part_again() -> None:
    async with members(2) as (nodes, _):
        await nodes[1].drain(0.5, wait=True)
        async with node("n1") as again, anyio.create_task_group() as tasks:
            tasks.start_soon(again.next_rendezvous)
            assert (await nodes[0].next_rendezvous()).world_size == 2


async def test_a_drain_is_over_at_its_deadline() -> None:
    async with members(2) as (nodes, _):
        loop = asyncio.get_running_loop()
        begin = loop.time()
        await nodes[1].drain(7.5)
        changes = await all_changes(nodes[1])
        assert isinstance(changes[-1], ar.Evicted)
        assert loop.time() - begin == pytest.approx(7.5)


async def test_a_node_that_is_no_member_has_nothing_to_drain() -> None:
    async with members(2), node("a") as a:
        with pytest.raises(ar.RendezvousStateError, match="nothing to drain"):
            await a.drain(1)


async def test_a_node_drained_while_it_waits_exits_gracefully() -> None:
    async with node("a") as a, anyio.create_task_group() as tasks:

        async def join() -> None:
            with pytest.raises(ar.RendezvousGracefulExitError, match="a was drained: power"):
                await a.next_rendezvous()

        tasks.start_soon(join)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(ar.RendezvousStateError):
            await a.drain(10, "power")


async def test_the_iteration_can_be_broken_off_and_taken_up_anew() -> None:
    async with members(3) as (nodes, _):
        await nodes[2].leave("one")
        assert isinstance(await next_change(nodes[0]), ar.NodeLeft)
        await nodes[1].leave("two")
        seen: list[str] = []
        async for change in nodes[0].changes():
            assert isinstance(change, ar.NodeLeft)
            seen.append(change.reason)
            if len(seen) == 2:
                break
        assert seen == ["one", "two"]


# Spares


async def test_a_spare_waits_without_time_out_and_is_promoted_when_a_member_leaves() -> None:
    quick: dict[str, Any] = {"timeout": RendezvousTimeout(join=10)}
    async with members(2, **quick) as (nodes, _), node("spare", **quick) as spare:
        async with anyio.create_task_group() as tasks:
            ranks: list[int] = []

            async def wait() -> None:
                ranks.append((await spare.next_rendezvous()).rank)

            tasks.start_soon(wait)
            await anyio.sleep(1000)
            await nodes[1].leave()
            info = await nodes[0].next_rendezvous()
        assert (ranks, info.rank) == ([1], 0)


async def test_a_promoted_spare_has_the_join_time_out_again() -> None:
    quick: dict[str, Any] = {"timeout": RendezvousTimeout(join=10)}
    async with members(2, **quick) as (nodes, _), node("spare", **quick) as spare:
        loop = asyncio.get_running_loop()
        async with anyio.create_task_group() as tasks:
            ended: list[float] = []

            async def wait() -> None:
                with pytest.raises(ar.RendezvousTimeoutError):
                    await spare.next_rendezvous()
                ended.append(loop.time())

            tasks.start_soon(wait)
            await anyio.sleep(100)
            await nodes[1].leave()
            promoted = loop.time()
        assert ended == [pytest.approx(promoted + 10)]


async def test_a_spare_of_a_run_that_is_closed_exits_gracefully() -> None:
    async with members(2) as (nodes, _), node("spare") as spare, anyio.create_task_group() as tasks:

        async def wait() -> None:
            with pytest.raises(ar.RendezvousGracefulExitError, match="spare was a spare and is not needed"):
                await spare.next_rendezvous()

        tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        await nodes[0].set_closed()


# Closed and reopened


async def test_a_closed_run_is_not_joined_and_the_error_says_by_whom_and_why() -> None:
    async with node("a") as a, node("b") as b:
        await a.set_closed("wrong data")
        assert await b.is_closed()
        await anyio.sleep(3)
        with pytest.raises(ar.RendezvousClosedError) as caught:
            await b.next_rendezvous()
        error = caught.value
        assert (error.by, error.reason) == ("a", "wrong data")
        assert error.age == pytest.approx(3)
        assert str(error).startswith("the run was closed by a 3.0 s ago: wrong data")


async def test_nodes_that_gather_when_the_run_is_closed_are_told() -> None:
    async with node("a", 3) as a, node("b", 3) as b, anyio.create_task_group() as tasks:

        async def join() -> None:
            with pytest.raises(ar.RendezvousClosedError, match="closed by b"):
                await a.next_rendezvous()

        tasks.start_soon(join)
        await anyio.wait_all_tasks_blocked()
        await b.set_closed()


async def test_an_evicted_node_learns_that_the_run_was_closed_after_it_went() -> None:
    async with members(2) as (nodes, _):
        nodes[1]._joined = False
        await all_changes(nodes[1])
        nodes[1]._joined = True
        assert not await nodes[1].is_closed()
        await nodes[0].set_closed()
        assert await nodes[1].is_closed()


async def test_members_of_a_run_that_was_reopened_are_evicted_and_may_join_again() -> None:
    async with members(2) as (nodes, _):
        await nodes[0].set_closed()
        await nodes[0]._backend.propose(Reopen(1, "operator"))
        assert [type(change) for change in await all_changes(nodes[1])] == [ar.Evicted]
        infos = await meet(*nodes)
        assert [(info.incarnation, info.world_size) for info in infos] == [(2, 2), (2, 2)]


# Misuse, and what can be looked at


@pytest.mark.parametrize(
    "use",
    [
        lambda h: h.next_rendezvous(),
        lambda h: h.is_closed(),
        lambda h: h.set_closed(),
        lambda h: h.num_nodes_waiting(),
        lambda h: h.leave(),
        lambda h: h.drain(1),
        lambda h: h.explain(),
    ],
)
async def test_use_outside_of_the_block_is_refused(use: Callable[[Node], Any]) -> None:
    handler = Node.from_backend("job", LocalBackend("job"), 1, 1)
    with pytest.raises(RuntimeError, match="outside of its 'async with' block"):
        await use(handler)
    async with handler:
        pass
    with pytest.raises(RuntimeError, match="outside of its 'async with' block"):
        await use(handler)


async def test_changes_before_the_first_round_are_refused() -> None:
    async with node("a") as a:
        with pytest.raises(RuntimeError, match="before next_rendezvous"):
            a.changes()


async def test_a_handler_from_a_backend_meets_others_in_the_same_space() -> None:
    async with (
        Node.from_backend("job", LocalBackend("job"), 2, 2, local_addr="h1") as a,
        Node.from_backend("job", LocalBackend("job"), 2, 2, rank_policy="sticky") as b,
    ):
        infos = await meet(a, b)
        assert [info.rank for info in infos] == [0, 1]
        assert infos[0].rank0_addresses == ("h1",)
        assert (a.get_backend(), a.get_run_id(), a.use_agent_store) == ("memory", "job", True)
        assert (a.settings.min_nodes, a.settings.max_nodes) == (2, 2)


async def test_a_node_without_an_address_is_reached_at_what_the_backend_knows() -> None:
    async with ar.open_rendezvous(ENDPOINT, run_id="job", min_nodes=1, node="a") as a:
        info = await a.next_rendezvous()
        assert len(info.rank0_addresses) == 1


async def test_history_tells_the_story_of_the_node() -> None:
    async with members(2) as (nodes, _):
        await nodes[1].leave("bored")
        await next_change(nodes[0])
        whole = [entry.what for entry in nodes[0].history]
        assert whole == [
            "joining run 'job'",
            "round 0: rank 0 of 2",
            "n1 left: bored",
        ]
        assert [entry.what for entry in nodes[1].history][-1] == "left the run: bored"


async def test_explain_shows_the_run_in_words() -> None:
    async with members(2) as (nodes, _):
        assert str(await nodes[0].explain()) == "run 'job': round 0 is complete with 2 nodes"


async def test_heartbeats_that_fail_are_tried_again() -> None:
    async with members(2) as (nodes, _):
        backend = nodes[0]._backend
        real, failures = backend.propose, 0

        async def flaky(operation: Operation) -> NodeView:
            nonlocal failures
            if isinstance(operation, KeepAlive) and failures < 2:
                failures += 1
                raise ar.RendezvousConnectionError("not now")
            return await real(operation)

        backend.propose = flaky  # type: ignore[method-assign]
        await anyio.sleep(120)
        assert failures == 2
        assert {one.phase for one in (await nodes[1].explain()).nodes} == {Phase.MEMBER}


def with_a_bug(handler: Node) -> ZeroDivisionError:
    """Makes its heartbeats fail as no backend should; returns the error."""
    backend, bug = handler._backend, ZeroDivisionError("of a bug")
    real = backend.propose

    async def propose(operation: Operation) -> NodeView:
        if isinstance(operation, KeepAlive):
            raise bug
        return await real(operation)

    backend.propose = propose  # type: ignore[method-assign]
    return bug


async def test_a_bug_in_the_heartbeats_reaches_a_join_that_waits() -> None:
    async with node("a") as a:
        bug = with_a_bug(a)
        with pytest.raises(ar.RendezvousError, match="a: work in the background failed") as caught:
            await a.next_rendezvous()
        assert caught.value.__cause__ is bug


async def test_a_bug_in_the_heartbeats_reaches_all_waits_of_the_node_and_nobody_else() -> None:
    async with members(2) as (nodes, _):
        bug = with_a_bug(nodes[0])
        changes = aiter(nodes[0].changes())
        for wait in (lambda: anext(changes), nodes[0].next_rendezvous, nodes[0].explain):
            with pytest.raises(ar.RendezvousError, match="n0: work in the background failed") as caught:
                await wait()
            assert caught.value.__cause__ is bug
        await anyio.sleep(1)  # this task goes on
        assert len((await nodes[1].explain()).nodes) == 2


async def test_three_hundred_members_in_one_loop_are_kept_alive_for_an_hour() -> None:
    async with members(300) as (nodes, infos):
        assert sorted(info.rank for info in infos) == list(range(300))
        await anyio.sleep(3600 / 10)
        assert len((await nodes[0].explain()).nodes) == 300

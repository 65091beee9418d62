"""The conformance suite of `RendezvousBackend`: what every backend must do, checked through the port alone.

    async def test_my_backend() -> None:
        await check_backend(lambda run_id: MyBackend("host", 1234, run_id))

`make` returns a new backend for a run, not entered yet; every call stands for another process. The checks use
real time where the backend does, and short keep-alives only where a node has to die.
"""

from __future__ import annotations

import secrets
from typing import Final

import anyio

from arendezvous.backends.port import RendezvousBackend
from arendezvous.errors import (
    RendezvousClosedError,
    RendezvousError,
    RendezvousSettingsError,
    RendezvousStateError,
)
from arendezvous.law.operations import Close, Drain, Join, KeepAlive, Leave, Reopen, Resume
from arendezvous.law.state import Cause, NodeDesc, NodeView, Phase, RunSettings
from arendezvous.rendezvous.handler import fence_of
from arendezvous.testing.check_tools import (
    INTERVAL,
    PAIR,
    PATIENCE,
    BackendCheck,
    MakeBackend,
    join_until_member,
    keep_alive,
    pair_of_members,
    refusal_of,
    view_where,
)
from arendezvous.testing.round_checks import ROUND_CHECKS


async def check_backend(make: MakeBackend) -> None:
    """Runs every check of `BACKEND_CHECKS`, one after the other, each in a run of its own.

    Args:
        make: Returns a new backend, not entered yet, for the run with the given id.

    Raises:
        AssertionError: The backend breaks the contract; the check's name and docstring say which part.
    """
    for check in BACKEND_CHECKS:
        await run_check(check, make)


async def run_check(check: BackendCheck, make: MakeBackend) -> None:
    """Runs one of `BACKEND_CHECKS` in a run of its own, for at most two minutes."""
    with anyio.fail_after(4 * PATIENCE):
        await check(make, f"check-{secrets.token_hex(6)}")


async def check_a_round_completes_at_max(make: MakeBackend, run_id: str) -> None:
    """Nodes that join at different backends get the ranks 0..n-1 of one round with one digest."""
    async with make(run_id) as one, make(run_id) as two, make(run_id) as three:
        views: list[NodeView] = []

        async def join(backend: RendezvousBackend, name: str) -> None:
            views.append(await join_until_member(backend, Join(NodeDesc(name), RunSettings(3, 3))))

        async with anyio.create_task_group() as tasks:
            for backend, name in ((one, "a"), (two, "b"), (three, "c")):
                tasks.start_soon(join, backend, name)
        assert sorted(view.rank for view in views) == [0, 1, 2]
        assert {view.world_size for view in views} == {3}
        assert len({(view.generation, view.digest, view.rank0) for view in views}) == 1
        assert views[0].digest
        assert views[0].rank0


async def check_a_round_completes_after_the_last_call(make: MakeBackend, run_id: str) -> None:
    """With `min_nodes` and nobody else, the round completes when the last call is over."""
    async with make(run_id) as backend:
        view = await join_until_member(backend, Join(NodeDesc("a"), RunSettings(1, 2, last_call=0.2)))
        assert (view.rank, view.world_size) == (0, 1)


async def check_the_present_view_is_returned_at_once(make: MakeBackend, run_id: str) -> None:
    """`changed` with -1 returns what is known, with the revision that `propose` gave or a later one."""
    async with make(run_id) as backend:
        proposed = await backend.propose(Join(NodeDesc("a"), PAIR))
        known = await backend.changed("a", -1)
        assert known.revision >= proposed.revision
        assert (known.node, known.phase) == ("a", Phase.GATHERING)


async def check_a_join_in_good_time_is_a_proposal(make: MakeBackend, run_id: str) -> None:
    """`join` returns the view that `propose` would, if that comes before its time-out."""
    async with make(run_id) as backend:
        view = await backend.join(Join(NodeDesc("a"), PAIR), PATIENCE)
        assert view is not None
        assert (view.node, view.phase) == ("a", Phase.GATHERING)
        assert (await backend.changed("a", -1)).revision >= view.revision


async def check_a_change_wakes_all_who_wait_and_revisions_rise(make: MakeBackend, run_id: str) -> None:
    """`changed` returns when the node's view changes, to every caller, with a higher revision."""
    async with make(run_id) as one, make(run_id) as two:
        before = await one.propose(Join(NodeDesc("a"), PAIR))
        seen: list[NodeView] = []

        async def wait() -> None:
            seen.append(await one.changed("a", before.revision))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            tasks.start_soon(wait)
            await two.propose(Join(NodeDesc("b"), PAIR))
        assert [view.phase for view in seen] == [Phase.MEMBER] * 2
        assert all(view.revision > before.revision for view in seen)


async def check_a_cancelled_wait_loses_nothing(make: MakeBackend, run_id: str) -> None:
    """A change that comes while nobody waits, as the wait was cancelled, is returned to the next caller."""
    async with make(run_id) as one, make(run_id) as two:
        before = await one.propose(Join(NodeDesc("a"), PAIR))
        with anyio.move_on_after(0.05) as scope:
            await one.changed("a", before.revision)
        assert scope.cancelled_caught
        await two.propose(Join(NodeDesc("b"), PAIR))
        after = await one.changed("a", before.revision)
        assert after.phase is Phase.MEMBER


async def check_a_repeated_join_is_harmless(make: MakeBackend, run_id: str) -> None:
    """A join that is sent twice counts once."""
    async with make(run_id) as one:
        join = Join(NodeDesc("a"), PAIR)
        first, second = await one.propose(join), await one.propose(join)
        assert (first.phase, second.phase) == (Phase.GATHERING, Phase.GATHERING)
        assert second.revision >= first.revision
        assert [node.desc.name for node in (await one.status()).nodes] == ["a"]


async def check_operations_of_a_node_are_applied_in_order(make: MakeBackend, run_id: str) -> None:
    """A join and a leave, proposed one after the other without waiting, leave nobody behind."""
    async with make(run_id) as backend:
        for _ in range(5):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(backend.propose, Join(NodeDesc("a"), PAIR))
                tasks.start_soon(backend.propose, Leave("a"))
            assert (await backend.status()).nodes == ()


async def check_a_leave_after_a_cancelled_join_wins(make: MakeBackend, run_id: str) -> None:
    """A leave after a join that was cancelled leaves nobody behind, whatever became of the join."""
    async with make(run_id) as backend:
        await backend.status()
        for delay in (0.0, 0.0001, 0.0005, 0.002):
            with anyio.move_on_after(delay):
                await backend.propose(Join(NodeDesc("a"), PAIR))
            view = await backend.propose(Leave("a", "cancelled", Cause.CANCELLED))
            assert view.phase is Phase.GONE
            assert (await backend.status()).nodes == ()


async def check_members_hear_who_left_and_why(make: MakeBackend, run_id: str) -> None:
    """A member that leaves is announced to the others, with its cause and reason; itself it sees as gone."""
    async with pair_of_members(make, run_id, PAIR) as (one, two, view):
        left = await two.propose(Leave("b", "done", Cause.FINISHED))
        assert left.phase is Phase.GONE
        assert left.gone is not None
        assert (left.gone.cause, left.gone.reason) == (Cause.FINISHED, "done")
        after = await one.changed("a", view.revision)
        notice = after.notices[-1]
        assert (notice.node, notice.cause, notice.reason) == ("b", Cause.FINISHED, "done")
        assert (after.rank, after.world_size, after.digest) == (view.rank, view.world_size, view.digest)


async def check_leaving_twice_or_from_nowhere_is_harmless(make: MakeBackend, run_id: str) -> None:
    """A leave or a heartbeat of a node that is in no list changes nothing, and says that it is gone."""
    async with make(run_id) as backend:
        assert (await backend.propose(Leave("a"))).phase is Phase.GONE
        await backend.propose(Join(NodeDesc("a"), PAIR))
        assert (await backend.propose(Leave("a"))).phase is Phase.GONE
        assert (await backend.propose(Leave("a"))).phase is Phase.GONE
        assert (await backend.propose(KeepAlive("a"))).phase is Phase.GONE


async def check_an_illegal_join_changes_nothing(make: MakeBackend, run_id: str) -> None:
    """A join with other settings is refused by its own error, and nobody notices."""
    async with make(run_id) as one, make(run_id) as two:
        await one.propose(Join(NodeDesc("a"), PAIR))
        refused = await refusal_of(two, Join(NodeDesc("b"), RunSettings(2, 3)), RendezvousSettingsError)
        assert refused.name == "max_nodes"
        assert [node.desc.name for node in (await one.status()).nodes] == ["a"]


async def check_all_members_can_meet_again(make: MakeBackend, run_id: str) -> None:
    """When all members have joined again the next round completes, with their ranks and a higher fence."""
    async with pair_of_members(make, run_id, PAIR) as (one, two, view):
        ranks = {"a": view.rank, "b": 1 - view.rank}
        again: dict[str, NodeView] = {}

        async def rejoin(backend: RendezvousBackend, name: str) -> None:
            join = Join(NodeDesc(name), PAIR, view.generation)
            again[name] = await join_until_member(backend, join)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(rejoin, one, "a")
            tasks.start_soon(rejoin, two, "b")
        assert {name: later.rank for name, later in again.items()} == ranks
        assert all(later.generation > view.generation for later in again.values())
        fences = {fence_of(*later.generation) for later in again.values()}
        assert len(fences) == 1
        assert fences.pop() > fence_of(*view.generation)


async def check_members_are_told_that_somebody_waits(make: MakeBackend, run_id: str) -> None:
    """A late node waits for the next round, and the members of this one see it."""
    settings = RunSettings(2, 3, last_call=0.0)
    async with pair_of_members(make, run_id, settings) as (one, two, view), make(run_id) as three:
        late = await three.propose(Join(NodeDesc("c"), settings))
        assert late.phase is Phase.WAITING
        later = await view_where(one, view, lambda later: later.waiting > 0)
        assert later.waiting == 1
        assert (await two.status()).complete


async def check_a_spare_is_promoted_when_a_member_drains(make: MakeBackend, run_id: str) -> None:
    """A node too many is a spare; a drain has it wait for the next round, and is announced."""
    async with pair_of_members(make, run_id, PAIR) as (one, two, view), make(run_id) as three:
        spare = await three.propose(Join(NodeDesc("c"), PAIR))
        assert spare.phase is Phase.REDUNDANT
        draining = await two.propose(Drain("b", 60.0, "maintenance"))
        assert draining.phase is Phase.MEMBER
        promoted = await view_where(three, spare, lambda later: later.phase is not Phase.REDUNDANT)
        assert promoted.phase is Phase.WAITING
        notice = (await view_where(one, view, lambda later: later.notices)).notices[-1]
        assert (notice.node, notice.cause, notice.reason) == ("b", None, "maintenance")


async def check_a_drained_member_is_not_brought_back(make: MakeBackend, run_id: str) -> None:
    """A draining member that joins again stays a member until it is released, and is out of the run then."""
    async with pair_of_members(make, run_id, PAIR) as (_, two, view):
        draining = await two.propose(Drain("b", 0.5, "maintenance"))
        again = Join(NodeDesc("b"), PAIR, view.generation)
        assert (await two.propose(again)).phase is Phase.MEMBER
        released = await view_where(two, draining, lambda later: later.phase is Phase.GONE)
        for gone in (released, await two.propose(again)):
            assert (gone.phase, gone.gone is not None) == (Phase.GONE, True)
            assert gone.gone is not None
            assert (gone.gone.cause, gone.gone.reason) == (Cause.DRAINED, "maintenance")
        assert [node.desc.name for node in (await two.status()).nodes] == ["a"]


async def check_closed_is_final_until_reopened(make: MakeBackend, run_id: str) -> None:
    """Everybody hears that the run is closed, nobody can join it, and members keep their ranks."""
    async with pair_of_members(make, run_id, PAIR) as (one, two, view):
        closed = await two.propose(Close("b", "over"))
        assert (await two.changed("b", -1)).revision >= closed.revision
        told = await view_where(one, view, lambda later: later.closed is not None)
        assert told.closed is not None
        assert (told.closed.by, told.closed.reason, told.phase) == ("b", "over", Phase.MEMBER)
        refused = await refusal_of(one, Join(NodeDesc("c"), PAIR), RendezvousClosedError)
        assert (refused.by, refused.reason) == ("b", "over")
        await two.propose(Reopen(view.incarnation, "b"))
        evicted = await view_where(one, told, lambda later: later.phase is Phase.GONE)
        assert evicted.gone is not None
        assert evicted.gone.cause is Cause.REOPENED
        joined = await one.propose(Join(NodeDesc("a"), PAIR, (1, 0)))
        assert joined.closed is None
        assert joined.generation > (1, 0)


async def check_members_are_listed_in_rank_order(make: MakeBackend, run_id: str) -> None:
    """The members of a complete round can be listed, and who of them has gone, until the next completes."""
    async with pair_of_members(make, run_id, PAIR) as (one, two, view):
        names = ["a", "b"] if view.rank == 0 else ["b", "a"]
        assert [member.name for member in await one.roster(*view.generation)] == names
        await two.propose(Leave("b"))
        if one.carries_what_nodes_bring:
            assert [member.name for member in await one.roster(*view.generation)] == names
            gone = await one.gone(*view.generation)
            assert [(names[member.rank], member.cause) for member in gone] == [("b", Cause.LEFT)]
        else:  # who has gone is not kept where the state is shared with stock nodes
            assert [member.name for member in await one.roster(*view.generation)] == ["a"]
        try:
            await one.roster(view.incarnation, view.round + 1)
        except RendezvousStateError:
            return
        raise AssertionError("the members of a round that never was were listed")


async def check_the_status_tells_of_everybody(make: MakeBackend, run_id: str) -> None:
    """The status of an unknown run has no settings; later it has every node and who departed."""
    async with make(run_id) as one, make(run_id) as two:
        assert (await one.status()).settings is None
        await one.propose(Join(NodeDesc("a", addr="host-a"), PAIR))
        await two.propose(Join(NodeDesc("c"), PAIR))
        await two.propose(Leave("c", "enough"))
        status = await two.status()
        assert (status.run_id, status.settings) == (run_id, PAIR)
        assert [node.desc.name for node in status.nodes if node.desc.addr] == ["a"]
        assert [(gone.node, gone.reason) for gone in status.departed] == [("c", "enough")]


async def check_one_backend_speaks_for_several_nodes(make: MakeBackend, run_id: str) -> None:
    """Nodes that share a backend are different nodes, each with its own view."""
    async with make(run_id) as backend:
        settings, views = RunSettings(8, 8), []

        async def join(name: str) -> None:
            views.append(await join_until_member(backend, Join(NodeDesc(name), settings)))

        async with anyio.create_task_group() as tasks:
            for number in range(8):
                tasks.start_soon(join, f"node{number}")
        assert sorted(view.rank for view in views) == list(range(8))
        assert len({view.node for view in views}) == 8


async def check_a_name_goes_to_whoever_waits_for_it(make: MakeBackend, run_id: str) -> None:
    """Under one name another process has no part in the run; once that has left, its join is carried out."""
    async with make(run_id) as one, make(run_id) as two:
        await one.propose(Join(NodeDesc("a", pid=1), PAIR))
        assert (await two.propose(Leave("a"))).phase is Phase.GONE
        entered: list[NodeView] = []

        async def join() -> None:
            view = await two.propose(Join(NodeDesc("a", pid=2), PAIR))
            entered.append(await view_where(two, view, lambda later: later.phase is Phase.GATHERING))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(join)
            await anyio.sleep(0.1)
            assert [node.desc.pid for node in (await two.status()).nodes] == [1]
            await one.propose(Leave("a"))
        assert [node.desc.pid for node in (await two.status()).nodes] == [2]
        assert entered[0].node == "a"


async def check_runs_are_apart(make: MakeBackend, run_id: str) -> None:
    """Nodes of different runs do not meet, even under one name."""
    async with make(run_id) as one, make(f"{run_id}-other") as two:
        await one.propose(Join(NodeDesc("a"), PAIR))
        view = await two.propose(Join(NodeDesc("a"), PAIR))
        assert view.phase is Phase.GATHERING
        assert len((await one.status()).nodes) == 1


async def check_the_silent_are_expired_and_others_are_not(make: MakeBackend, run_id: str) -> None:
    """A node without heartbeats is lost, the others are told; one with heartbeats stays."""
    settings = RunSettings(2, 2, keep_alive_interval=INTERVAL, keep_alive_max_attempt=4)
    async with (
        pair_of_members(make, run_id, settings) as (one, two, view),
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(keep_alive, one, "a")
        later = await view_where(one, view, lambda later: later.notices)
        notice = later.notices[-1]
        assert notice.node == "b"
        assert notice.cause is not None
        assert notice.cause.is_loss
        assert later.phase is Phase.MEMBER
        gone = await two.propose(KeepAlive("b"))
        assert gone.phase is Phase.GONE
        tasks.cancel_scope.cancel()


async def check_a_backend_that_is_left_takes_its_nodes_along(make: MakeBackend, run_id: str) -> None:
    """A node whose backend was left without a leave is lost, after the grace or the expiry at the latest."""
    settings = RunSettings(2, 2, 0.0, INTERVAL, 4, disconnect_grace=0.1)
    async with make(run_id) as one:
        async with make(run_id) as two:
            await one.propose(Join(NodeDesc("a"), settings))
            await two.propose(Join(NodeDesc("b"), settings))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(keep_alive, one, "a")
            view = await view_where(one, await one.changed("a", -1), lambda later: later.notices)
            assert view.notices[-1].node == "b"
            tasks.cancel_scope.cancel()


async def check_a_member_that_resumes_keeps_its_rank(make: MakeBackend, run_id: str) -> None:
    """A member that presents its rank to a backend that knows it still has it, and nobody notices."""
    async with pair_of_members(make, run_id, PAIR) as (one, two, view):
        held = (view.incarnation, view.round, view.rank, view.world_size, view.digest)
        resumed = await one.propose(Resume(NodeDesc("a"), PAIR, *held))
        assert (resumed.phase, resumed.rank) == (Phase.MEMBER, view.rank)
        assert len((await two.status()).nodes) == 2


async def check_use_outside_of_the_block_is_refused(make: MakeBackend, run_id: str) -> None:
    """Before and after its block, a backend's methods raise `RuntimeError`."""
    backend = make(run_id)
    for call in (backend.status, lambda: backend.propose(Leave("a"))):
        try:
            await call()
        except RuntimeError:
            continue
        raise AssertionError("a backend that was not entered could be used")
    async with backend:
        await backend.status()
    try:
        await backend.propose(Leave("a"))
    except RuntimeError:
        return
    raise AssertionError("a backend that was left could be used")


async def check_any_task_may_leave_in_any_order(make: MakeBackend, run_id: str) -> None:
    """One task may leave what another has entered, in the order in which it was entered."""
    one, two = make(run_id), make(run_id)
    with anyio.fail_after(PATIENCE):
        await one.__aenter__()
    async with anyio.create_task_group() as tasks:
        await two.__aenter__()
        tasks.start_soon(one.__aexit__, None, None, None)
    await two.status()
    await two.__aexit__(None, None, None)


async def check_a_failure_ends_all_waits(make: MakeBackend, run_id: str) -> None:
    """Once it has been failed, waits end with that error, later calls raise it, and it can be left."""
    failure = RendezvousStateError("it cannot go on")
    async with make(run_id) as backend:
        view = await backend.propose(Join(NodeDesc("a"), PAIR))
        raised: list[RendezvousError] = []

        async def wait() -> None:
            try:
                await backend.changed("a", view.revision)
            except RendezvousError as error:
                raised.append(error)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            backend.fail(failure)
        calls = (backend.status, lambda: backend.changed("a", -1), lambda: backend.propose(KeepAlive("a")))
        for call in calls:
            try:
                await call()
            except RendezvousError as error:
                raised.append(error)
        assert raised == [failure] * 5


BACKEND_CHECKS: Final[tuple[BackendCheck, ...]] = (
    check_a_round_completes_at_max,
    check_a_round_completes_after_the_last_call,
    check_the_present_view_is_returned_at_once,
    check_a_join_in_good_time_is_a_proposal,
    check_a_change_wakes_all_who_wait_and_revisions_rise,
    check_a_cancelled_wait_loses_nothing,
    check_a_repeated_join_is_harmless,
    check_operations_of_a_node_are_applied_in_order,
    check_a_leave_after_a_cancelled_join_wins,
    check_members_hear_who_left_and_why,
    check_leaving_twice_or_from_nowhere_is_harmless,
    check_an_illegal_join_changes_nothing,
    check_all_members_can_meet_again,
    check_members_are_told_that_somebody_waits,
    check_a_spare_is_promoted_when_a_member_drains,
    check_a_drained_member_is_not_brought_back,
    check_closed_is_final_until_reopened,
    check_members_are_listed_in_rank_order,
    check_the_status_tells_of_everybody,
    check_one_backend_speaks_for_several_nodes,
    check_a_name_goes_to_whoever_waits_for_it,
    check_runs_are_apart,
    check_the_silent_are_expired_and_others_are_not,
    check_a_backend_that_is_left_takes_its_nodes_along,
    check_a_member_that_resumes_keeps_its_rank,
    check_use_outside_of_the_block_is_refused,
    check_any_task_may_leave_in_any_order,
    check_a_failure_ends_all_waits,
    *ROUND_CHECKS,
)

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

from arendezvous.errors import RendezvousClosedError, RendezvousSettingsError, RendezvousStateError
from arendezvous.law.operations import Close, Drain, Join, KeepAlive, Leave, Reopen, Resume
from arendezvous.law.state import Cause, NodeDesc, NodeView, Phase, RunSettings
from arendezvous.rendezvous.handler import fence_of
from arendezvous.testing.check_tools import (
    INTERVAL,
    LONG,
    PAIR,
    BackendCheck,
    MakeBackend,
    checks_of,
    join_until_member,
    kept_alive,
    meanwhile,
    pair_of_members,
    refused,
    together,
    view_where,
)
from arendezvous.testing.round_checks import ROUND_CHECKS


async def check_a_round_completes_at_max(make: MakeBackend, run_id: str) -> None:
    """Nodes that join at different backends get the ranks 0..n-1 of one round with one digest."""
    async with make(run_id) as one, make(run_id) as two, make(run_id) as three:
        nodes = {"a": one, "b": two, "c": three}
        joins = [join_until_member(nodes[name], Join(NodeDesc(name), RunSettings(3, 3))) for name in nodes]
        views = await together(*joins)
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
        view = await backend.join(Join(NodeDesc("a"), PAIR), LONG)
        assert view is not None
        assert (view.node, view.phase) == ("a", Phase.GATHERING)
        assert (await backend.changed("a", -1)).revision >= view.revision


async def check_a_change_wakes_all_who_wait_and_revisions_rise(make: MakeBackend, run_id: str) -> None:
    """`changed` returns when the node's view changes, to every caller, with a higher revision."""
    async with make(run_id) as one, make(run_id) as two:
        before = await one.propose(Join(NodeDesc("a"), PAIR))
        async with meanwhile(*(one.changed("a", before.revision) for _ in range(2))) as seen:
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
            await together(backend.propose(Join(NodeDesc("a"), PAIR)), backend.propose(Leave("a")))
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
    async with pair_of_members(make, run_id) as (one, two, view):
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
        for operation in (Leave("a"), Leave("a"), KeepAlive("a")):
            assert (await backend.propose(operation)).phase is Phase.GONE


async def check_an_illegal_join_changes_nothing(make: MakeBackend, run_id: str) -> None:
    """A join with other settings is refused by its own error, and nobody notices."""
    async with make(run_id) as one, make(run_id) as two:
        await one.propose(Join(NodeDesc("a"), PAIR))
        join = Join(NodeDesc("b"), RunSettings(2, 3))
        assert (await refused(RendezvousSettingsError, two.propose(join))).name == "max_nodes"
        assert [node.desc.name for node in (await one.status()).nodes] == ["a"]


async def check_all_members_can_meet_again(make: MakeBackend, run_id: str) -> None:
    """When all members have joined again the next round completes, with their ranks and a higher fence."""
    async with pair_of_members(make, run_id) as (one, two, view):
        again = await together(
            join_until_member(one, Join(NodeDesc("a"), PAIR, view.generation)),
            join_until_member(two, Join(NodeDesc("b"), PAIR, view.generation)),
        )
        assert {later.node: later.rank for later in again} == {"a": view.rank, "b": 1 - view.rank}
        assert all(later.generation > view.generation for later in again)
        fences = {fence_of(*later.generation) for later in again}
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
    async with pair_of_members(make, run_id) as (one, two, view), make(run_id) as three:
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
    async with pair_of_members(make, run_id) as (_, two, view):
        draining = await two.propose(Drain("b", 0.5, "maintenance"))
        again = Join(NodeDesc("b"), PAIR, view.generation)
        assert (await two.propose(again)).phase is Phase.MEMBER
        released = await view_where(two, draining, lambda later: later.phase is Phase.GONE)
        for gone in (released, await two.propose(again)):
            assert gone.phase is Phase.GONE
            assert gone.gone is not None
            assert (gone.gone.cause, gone.gone.reason) == (Cause.DRAINED, "maintenance")
        assert [node.desc.name for node in (await two.status()).nodes] == ["a"]


async def check_closed_is_final_until_reopened(make: MakeBackend, run_id: str) -> None:
    """Everybody hears that the run is closed, nobody can join it, and members keep their ranks."""
    async with pair_of_members(make, run_id) as (one, two, view):
        closed = await two.propose(Close("b", "over"))
        assert (await two.changed("b", -1)).revision >= closed.revision
        told = await view_where(one, view, lambda later: later.closed is not None)
        assert told.closed is not None
        assert (told.closed.by, told.closed.reason, told.phase) == ("b", "over", Phase.MEMBER)
        refusal = await refused(RendezvousClosedError, one.propose(Join(NodeDesc("c"), PAIR)))
        assert (refusal.by, refusal.reason) == ("b", "over")
        await two.propose(Reopen(view.incarnation, "b"))
        evicted = await view_where(one, told, lambda later: later.phase is Phase.GONE)
        assert evicted.gone is not None
        assert evicted.gone.cause is Cause.REOPENED
        joined = await one.propose(Join(NodeDesc("a"), PAIR, (1, 0)))
        assert joined.closed is None
        assert joined.generation > (1, 0)


async def check_members_are_listed_in_rank_order(make: MakeBackend, run_id: str) -> None:
    """The members of a complete round can be listed, and who of them has gone, until the next completes."""
    async with pair_of_members(make, run_id) as (one, two, view):
        names = ["a", "b"] if view.rank == 0 else ["b", "a"]
        assert [member.name for member in await one.roster(*view.generation)] == names
        await two.propose(Leave("b"))
        if one.carries_what_nodes_bring:
            assert [member.name for member in await one.roster(*view.generation)] == names
            gone = await one.gone(*view.generation)
            assert [(names[member.rank], member.cause) for member in gone] == [("b", Cause.LEFT)]
        else:  # who has gone is not kept where the state is shared with stock nodes
            assert [member.name for member in await one.roster(*view.generation)] == ["a"]
        await refused(RendezvousStateError, one.roster(view.incarnation, view.round + 1))


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
        joins = [Join(NodeDesc(f"node{number}"), RunSettings(8, 8)) for number in range(8)]
        views = await together(*(join_until_member(backend, join) for join in joins))
        assert sorted(view.rank for view in views) == list(range(8))
        assert len({view.node for view in views}) == 8


async def check_a_name_goes_to_whoever_waits_for_it(make: MakeBackend, run_id: str) -> None:
    """Under one name another process has no part in the run; once that has left, its join is carried out."""
    async with make(run_id) as one, make(run_id) as two:
        await one.propose(Join(NodeDesc("a", pid=1), PAIR))
        assert (await two.propose(Leave("a"))).phase is Phase.GONE

        async def join() -> NodeView:
            view = await two.propose(Join(NodeDesc("a", pid=2), PAIR))
            return await view_where(two, view, lambda later: later.phase is Phase.GATHERING)

        async with meanwhile(join()) as entered:
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
    async with pair_of_members(make, run_id, settings) as (one, two, view), kept_alive(one, "a"):
        later = await view_where(one, view, lambda later: later.notices)
        notice = later.notices[-1]
        assert notice.node == "b"
        assert notice.cause is not None
        assert notice.cause.is_loss
        assert later.phase is Phase.MEMBER
        assert (await two.propose(KeepAlive("b"))).phase is Phase.GONE


async def check_a_backend_that_is_left_takes_its_nodes_along(make: MakeBackend, run_id: str) -> None:
    """A node whose backend was left without a leave is lost, after the grace or the expiry at the latest."""
    settings = RunSettings(2, 2, 0.0, INTERVAL, 4, disconnect_grace=0.1)
    async with make(run_id) as one:
        async with make(run_id) as two:
            await one.propose(Join(NodeDesc("a"), settings))
            await two.propose(Join(NodeDesc("b"), settings))
        async with kept_alive(one, "a"):
            view = await view_where(one, await one.changed("a", -1), lambda later: later.notices)
            assert view.notices[-1].node == "b"


async def check_a_member_that_resumes_keeps_its_rank(make: MakeBackend, run_id: str) -> None:
    """A member that presents its rank to a backend that knows it still has it, and nobody notices."""
    async with pair_of_members(make, run_id) as (one, two, view):
        held = (view.incarnation, view.round, view.rank, view.world_size, view.digest)
        resumed = await one.propose(Resume(NodeDesc("a"), PAIR, *held))
        assert (resumed.phase, resumed.rank) == (Phase.MEMBER, view.rank)
        assert len((await two.status()).nodes) == 2


async def check_use_outside_of_the_block_is_refused(make: MakeBackend, run_id: str) -> None:
    """Before and after its block, a backend's methods raise `RuntimeError`."""
    backend = make(run_id)
    await refused(RuntimeError, backend.status())
    await refused(RuntimeError, backend.propose(Leave("a")))
    async with backend:
        await backend.status()
    await refused(RuntimeError, backend.propose(Leave("a")))


async def check_any_task_may_leave_in_any_order(make: MakeBackend, run_id: str) -> None:
    """One task may leave what another has entered, in the order in which it was entered."""
    one, two = make(run_id), make(run_id)
    with anyio.fail_after(LONG):
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
        waits = [refused(RendezvousStateError, backend.changed("a", view.revision)) for _ in range(2)]
        async with meanwhile(*waits) as raised:
            await anyio.wait_all_tasks_blocked()
            backend.fail(failure)
        for call in (backend.status(), backend.changed("a", -1), backend.propose(KeepAlive("a"))):
            raised.append(await refused(RendezvousStateError, call))
        assert raised == [failure] * 5


BACKEND_CHECKS: Final[tuple[BackendCheck, ...]] = (*checks_of(globals()), *ROUND_CHECKS)


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
    with anyio.fail_after(4 * LONG):
        await check(make, f"check-{secrets.token_hex(6)}")

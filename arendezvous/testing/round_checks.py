"""The checks of what members do within a round: barriers, values that they agree on, states, progress.

A backend whose rounds carry nothing, see `RendezvousBackend.carries_what_nodes_bring`, refuses all of it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio

from arendezvous.backends.port import RendezvousBackend
from arendezvous.errors import RendezvousStateError, RoundOverError
from arendezvous.law.barriers import Met
from arendezvous.law.operations import Arrive, Leave, Progress, Update, Withdraw
from arendezvous.law.state import Cause, NodeView
from arendezvous.testing.check_tools import (
    PAIR,
    PATIENCE,
    BackendCheck,
    MakeBackend,
    pair_of_members,
)


async def check_barriers_pass_once_all_have_come(make: MakeBackend, run_id: str) -> None:
    """Members that come to a barrier wait for each other, and get one value of all that they bring."""
    async with pair_of_members(make, run_id, PAIR) as (one, two, view):
        if not one.carries_what_nodes_bring:
            await _refused(lambda: one.meet(_arrive(view, "a")))
            return
        async with _arrived(one, two, _arrive(view, "a")) as met:
            assert not met, "a barrier was passed before all had come"
            met.append(await two.meet(_arrive(view, "b")))
        assert met == [Met(passed=True)] * 2
        again: list[Met] = [await one.meet(_arrive(view, "a"))]
        assert again == met[:1], "a member that asks again is not told that the barrier has passed"
        async with _arrived(one, two, _arrive(view, "a", 1, "max", b"41")) as met:
            met.append(await two.meet(_arrive(view, "b", 1, "max", b"43")))
        assert met == [Met(passed=True, value=b"43")] * 2
        async with _arrived(one, two, _arrive(view, "a", 2, "same", b'"x"')) as met:
            met.append(await two.meet(_arrive(view, "b", 2, "same", b'"y"')))
        assert met[0] == met[1]
        assert met[0].problem, "members that brought different values are told of no problem"


async def check_a_barrier_tells_who_is_missing_or_gone(make: MakeBackend, run_id: str) -> None:
    """A member that withdraws learns who has not come; once one is gone nobody waits any more."""
    async with pair_of_members(make, run_id, PAIR) as (one, two, view):
        if not one.carries_what_nodes_bring:
            await _refused(lambda: one.meet(_withdraw(view, "a")))
            return
        async with _arrived(one, two, _arrive(view, "a")) as met:
            withdrawn = await one.meet(_withdraw(view, "a"))
        assert (withdrawn.passed, withdrawn.missing, withdrawn.others) == (False, ("b",), 0)
        assert [one.passed for one in met] == [False]
        over: list[RoundOverError] = []
        async with _arrived(one, two, _arrive(view, "a"), over) as met:
            await two.propose(Leave("b", "broken", Cause.FAILED))
        try:
            await one.meet(_arrive(view, "a"))
        except RoundOverError as error:
            over.append(error)
        assert met == []
        assert [error.departures for error in over] == [{"b": "broken"}] * 2


async def check_members_say_how_they_are_and_how_far(make: MakeBackend, run_id: str) -> None:
    """A member's state comes to who asked for states, and stands in the status, as does its progress."""
    async with pair_of_members(make, run_id, PAIR) as (one, two, view):
        if not one.carries_what_nodes_bring:
            await _refused(lambda: two.propose(Update("b", b"1")))
            await _refused(lambda: two.propose(Progress("b", 7)))
            await _refused(lambda: _first_state(one))
            return
        await two.propose(Update("b", b'{"load":1}'))
        async with one.states() as states:
            with anyio.fail_after(PATIENCE):
                assert await anext(states) == ("b", b'{"load":1}')
                assert await one.propose(Update("a", b"2")) is not None
                await two.propose(Update("b", b'{"load":3}'))
                told: dict[str, bytes] = {}
                while told != {"a": b"2", "b": b'{"load":3}'}:
                    node, state = await anext(states)
                    told[node] = state
        await two.propose(Progress("b", 7))
        nodes = {node.desc.name: node for node in (await one.status()).nodes}
        assert (nodes["b"].state, nodes["a"].state) == (b'{"load":3}', b"2")
        assert (nodes["b"].step, nodes["a"].step) == (7, None)
        assert (await one.changed("a", -1)).generation == view.generation


def _arrive(view: NodeView, node: str, turn: int = 0, reducer: Any = "", value: bytes = b"") -> Arrive:
    return Arrive(node, view.incarnation, view.round, "check", turn, reducer, value)


def _withdraw(view: NodeView, node: str) -> Withdraw:
    return Withdraw(node, view.incarnation, view.round, "check")


@asynccontextmanager
async def _arrived(
    one: RendezvousBackend,
    two: RendezvousBackend,
    arrive: Arrive,
    over: list[RoundOverError] | None = None,
) -> AsyncIterator[list[Met]]:
    """Has the member a, of `one`, wait at a barrier during the block, which is left once it waits no more.

    The block is entered once b, of `two`, sees that a has come. What a is told is in the list in the end;
    that its round is over, in `over`.
    """
    met: list[Met] = []

    async def wait() -> None:
        try:
            met.append(await one.meet(arrive))
        except RoundOverError as error:
            if over is None:
                raise
            over.append(error)

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            look = Withdraw("b", arrive.incarnation, arrive.round, arrive.name, arrive.turn)
            while (await two.meet(look)).missing != ("b",):  # noqa: ASYNC110 - no event tells of it
                await anyio.sleep(0.01)
            yield met


async def _first_state(backend: RendezvousBackend) -> object:
    async with backend.states() as states:
        return await anext(states)


async def _refused(call: Callable[[], Awaitable[object]]) -> None:
    try:
        await call()
    except RendezvousStateError:
        return
    raise AssertionError("what rounds here do not carry was not refused")


ROUND_CHECKS: Final[tuple[BackendCheck, ...]] = (
    check_barriers_pass_once_all_have_come,
    check_a_barrier_tells_who_is_missing_or_gone,
    check_members_say_how_they_are_and_how_far,
)

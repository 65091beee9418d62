"""The checks of what members do within a round: barriers, values that they agree on, states, progress.

A backend whose rounds carry nothing, see `RendezvousBackend.carries_what_nodes_bring`, refuses all of it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

import anyio

from arendezvous.backends.port import RendezvousBackend
from arendezvous.errors import RendezvousStateError, RoundOverError
from arendezvous.law.barriers import Met
from arendezvous.law.operations import Arrive, Leave, Progress, Update, Withdraw
from arendezvous.law.state import Cause, NodeView
from arendezvous.testing.check_tools import (
    LONG,
    BackendCheck,
    MakeBackend,
    checks_of,
    meanwhile,
    pair_of_members,
    refused,
)

T = TypeVar("T")


async def check_barriers_pass_once_all_have_come(make: MakeBackend, run_id: str) -> None:
    """Members that come to a barrier wait for each other, and get one value of all that they bring."""
    async with pair_of_members(make, run_id) as (one, two, view):
        come = _arrive(view, "a")
        if not one.carries_what_nodes_bring:
            await refused(RendezvousStateError, one.meet(come))
            return
        async with _arrived(one.meet(come), two, come) as met:
            assert not met, "a barrier was passed before all had come"
            met.append(await two.meet(_arrive(view, "b")))
        assert met == [Met(passed=True)] * 2
        assert await one.meet(come) == met[0], "a member that asks again is not told that it has passed"
        come = _arrive(view, "a", 1, "max", b"41")
        async with _arrived(one.meet(come), two, come) as met:
            met.append(await two.meet(_arrive(view, "b", 1, "max", b"43")))
        assert met == [Met(passed=True, value=b"43")] * 2
        come = _arrive(view, "a", 2, "same", b'"x"')
        async with _arrived(one.meet(come), two, come) as met:
            met.append(await two.meet(_arrive(view, "b", 2, "same", b'"y"')))
        assert met[0] == met[1]
        assert met[0].problem, "members that brought different values are told of no problem"


async def check_a_barrier_tells_who_is_missing_or_gone(make: MakeBackend, run_id: str) -> None:
    """A member that withdraws learns who has not come; once one is gone nobody waits any more."""
    async with pair_of_members(make, run_id) as (one, two, view):
        come, withdraw = _arrive(view, "a"), Withdraw("a", view.incarnation, view.round, "check")
        if not one.carries_what_nodes_bring:
            await refused(RendezvousStateError, one.meet(withdraw))
            return
        async with _arrived(one.meet(come), two, come) as met:
            withdrawn = await one.meet(withdraw)
        assert (withdrawn.passed, withdrawn.missing, withdrawn.others) == (False, ("b",), 0)
        assert [one.passed for one in met] == [False]
        async with _arrived(refused(RoundOverError, one.meet(come)), two, come) as over:
            await two.propose(Leave("b", "broken", Cause.FAILED))
        over.append(await refused(RoundOverError, one.meet(come)))
        assert [error.departures for error in over] == [{"b": "broken"}] * 2


async def check_members_say_how_they_are_and_how_far(make: MakeBackend, run_id: str) -> None:
    """A member's state comes to who asked for states, and stands in the status, as does its progress."""
    async with pair_of_members(make, run_id) as (one, two, view):
        if not one.carries_what_nodes_bring:
            await refused(RendezvousStateError, two.propose(Update("b", b"1")))
            await refused(RendezvousStateError, two.propose(Progress("b", 7)))
            await refused(RendezvousStateError, _first_state(one))
            return
        await two.propose(Update("b", b'{"load":1}'))
        async with one.states() as states:
            with anyio.fail_after(LONG):
                assert await anext(states) == ("b", b'{"load":1}')
                assert await one.propose(Update("a", b"2")) is not None
                await two.propose(Update("b", b'{"load":3}'))
                told: dict[str, bytes] = {}
                while told != {"a": b"2", "b": b'{"load":3}'}:
                    told |= dict([await anext(states)])
        await two.propose(Progress("b", 7))
        nodes = {node.desc.name: node for node in (await one.status()).nodes}
        assert (nodes["b"].state, nodes["a"].state) == (b'{"load":3}', b"2")
        assert (nodes["b"].step, nodes["a"].step) == (7, None)
        assert (await one.changed("a", -1)).generation == view.generation


def _arrive(view: NodeView, node: str, turn: int = 0, reducer: Any = "", value: bytes = b"") -> Arrive:
    return Arrive(node, view.incarnation, view.round, "check", turn, reducer, value)


@asynccontextmanager
async def _arrived(wait: Awaitable[T], two: RendezvousBackend, arrive: Arrive) -> AsyncIterator[list[T]]:
    """Has a member wait at a barrier while the block runs, which begins once b, of `two`, sees it there."""
    look = Withdraw("b", arrive.incarnation, arrive.round, arrive.name, arrive.turn)
    with anyio.fail_after(LONG):
        async with meanwhile(wait) as told:
            while (await two.meet(look)).missing != ("b",):  # noqa: ASYNC110 - no event tells of it
                await anyio.sleep(0.01)
            yield told


async def _first_state(backend: RendezvousBackend) -> object:
    async with backend.states() as states:
        return await anext(states)


ROUND_CHECKS: Final[tuple[BackendCheck, ...]] = checks_of(globals())

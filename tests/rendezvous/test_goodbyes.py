"""How long a node takes to leave, to close and to give up where nobody answers; in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

import arendezvous as ar
from arendezvous.backends.memory import LocalBackend
from arendezvous.law.operations import Join, Operation
from arendezvous.law.state import NodeView
from arendezvous.law.status import RunStatus
from arendezvous.net.reach import Reach
from arendezvous.rendezvous.option_groups import RendezvousTimeout

pytestmark = pytest.mark.virtual

Node = ar.DynamicRendezvousHandler


class Place(LocalBackend):
    """A run that may stop answering; or be out of reach, and known to be so."""

    def __init__(self) -> None:
        super().__init__("job", "goodbyes")
        self.answers = True
        self._reach = Reach()

    @property
    def reach(self) -> Reach:
        return self._reach

    def go(self) -> None:
        """Is out of reach from now on."""
        self.answers = False
        self._reach.lose()

    async def propose(self, operation: Operation) -> NodeView:
        if not self.answers:
            await anyio.sleep_forever()
        return await super().propose(operation)

    async def join(self, operation: Join, timeout: float) -> NodeView | None:
        if self.answers:
            return await super().join(operation, timeout)
        await anyio.sleep(timeout)
        return None

    async def status(self) -> RunStatus:
        if not self.answers:
            await anyio.sleep_forever()
        return await super().status()


@asynccontextmanager
async def joined(place: Place) -> AsyncIterator[Node]:
    async with Node.from_backend("job", place, 1, 1, timeout=RendezvousTimeout(join=1.0)) as node:
        await node.next_rendezvous()
        yield node


def now() -> float:
    return asyncio.get_running_loop().time()


async def test_a_member_leaves_its_block_two_seconds_after_its_run_is_out_of_reach() -> None:
    place = Place()
    async with joined(place):
        began = now()
        place.answers = False
        asyncio.get_running_loop().call_later(5, place.go)
    assert now() - began == pytest.approx(7.0)


@pytest.mark.parametrize("end", [Node.set_closed, Node.leave, Node.shutdown])
async def test_what_failed_once_for_want_of_a_server_is_not_waited_for_again(
    end: Callable[[Node], Any],
) -> None:
    place = Place()
    async with joined(place) as node:
        began = now()
        place.go()
        if end is Node.shutdown:
            assert not await node.shutdown()
        else:
            with pytest.raises(ar.RendezvousConnectionError, match="out of reach"):
                await end(node)
    assert now() - began == pytest.approx(2.0)


async def test_a_leave_that_failed_is_made_up_for_once_the_run_is_within_reach_again() -> None:
    place, told = Place(), []
    async with joined(place) as node:
        place.go()
        with pytest.raises(ar.RendezvousConnectionError):
            await node.leave("first")
        place.answers = True
        place.reach.find()
        told = [one.desc.name for one in (await node.explain()).nodes]
    assert told == [node.node]
    async with joined(Place()) as other:
        assert (await other.explain()).world_size == 1


@pytest.mark.parametrize("reachable", [True, False])
async def test_a_join_without_answers_ends_two_seconds_after_its_time_out_at_most(reachable: bool) -> None:
    place = Place()
    async with Node.from_backend("job", place, 1, 1, timeout=RendezvousTimeout(join=1.0)) as node:
        began = now()
        place.answers = False
        if not reachable:
            place.go()
        with pytest.raises(
            ar.RendezvousTimeoutError, match=r"within 1 s, and memory://goodbyes does not answer"
        ):
            await node.next_rendezvous()
    assert now() - began <= 3.0


async def test_connecting_takes_no_longer_than_the_join_time_out_and_a_second() -> None:
    class Absent(Place):
        async def __aenter__(self) -> Any:
            await anyio.sleep_forever()

    node = Node.from_backend("job", Absent(), 1, 1, timeout=RendezvousTimeout(join=4.0))
    began = now()
    with pytest.raises(ar.RendezvousConnectionError, match=r"could not be reached within .* 4 s"):
        await node.__aenter__()
    assert now() - began == pytest.approx(5.0)


async def test_what_connecting_takes_counts_for_the_first_join() -> None:
    class Late(Place):
        async def __aenter__(self) -> Any:
            await anyio.sleep(3)
            return await super().__aenter__()

    began = now()
    async with Node.from_backend("job", Late(), 2, 2, timeout=RendezvousTimeout(join=4.0)) as node:
        for bound in (4.0, 8.0):
            with pytest.raises(ar.RendezvousTimeoutError, match="within 4 s"):
                await node.next_rendezvous()
            assert now() - began == pytest.approx(bound)


async def test_a_run_that_does_not_answer_is_closed_and_left_no_longer_than_the_time_out_for_closing() -> (
    None
):
    place, times = Place(), RendezvousTimeout(close=5.0)
    async with Node.from_backend("job", place, 1, 1, timeout=times) as node:
        await node.next_rendezvous()
        place.answers, began = False, now()
        with pytest.raises(ar.RendezvousConnectionError, match="has not answered for 5 s"):
            await node.set_closed()
        assert now() - began == pytest.approx(5.0)
    assert now() - began == pytest.approx(7.0)


async def test_a_member_whose_task_is_cancelled_waits_two_seconds_for_an_answer() -> None:
    place, began = Place(), 0.0
    with anyio.CancelScope() as scope:
        async with joined(place):
            place.answers, began = False, now()
            scope.cancel()
            await anyio.sleep(1)
    assert now() - began == pytest.approx(2.0)


async def test_a_block_that_has_ended_in_time_is_not_given_up_however_often_the_place_is_lost() -> None:
    reach = Reach()
    for _ in range(3):
        with reach.bounded("somewhere", 2.0):
            reach.lose()
            await anyio.sleep(1.9)
            reach.find()
            await anyio.sleep(10)
    reach.lose()
    gone = pytest.raises(ar.RendezvousConnectionError, match="somewhere is out of reach")
    with gone, reach.bounded("somewhere", 0.0):
        await anyio.sleep(1)

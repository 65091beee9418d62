"""Requests in flight are given up in time, over silent connections and over none; none is kept for ever."""

from __future__ import annotations

import asyncio

import anyio
import pytest

from arendezvous.backends.tcp.connection import Request, RequestTable
from arendezvous.wire.native.messages import Ack, GetStatus

pytestmark = pytest.mark.virtual


class World:
    """A table with a patience of 60 seconds, and what it complained of."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.begin = self.loop.time()
        self.silences: list[tuple[float, float]] = []
        self.table = RequestTable(
            60, lambda seconds: ConnectionError(f"given up after {seconds:g} s"), self._silent
        )

    @staticmethod
    def _give_up(seconds: float) -> Exception:
        return ConnectionError(f"given up after {seconds:g} s")

    def _silent(self, seconds: float) -> None:
        self.silences.append((round(self.now, 3), seconds))

    @property
    def now(self) -> float:
        return self.loop.time() - self.begin

    def ask(self, *, sent: bool = True, awaited: bool = True) -> Request:
        request = self.table.add(GetStatus, "a", awaited=awaited)
        request.sent = self.loop.time() if sent else None
        return request


@pytest.fixture
async def world() -> World:
    return World()


async def given_up_at(world: World, request: Request) -> float:
    assert request.future is not None
    with pytest.raises(ConnectionError, match="given up"):
        await request.future
    world.table.abandon(request)
    return round(world.now, 3)


async def test_a_request_that_cannot_be_sent_is_given_up_after_the_patience(world: World) -> None:
    assert await given_up_at(world, world.ask(sent=False)) == 60
    assert world.silences == []


async def test_each_request_has_its_own_patience(world: World) -> None:
    first = world.ask(sent=False)
    await anyio.sleep(25)
    second = world.ask(sent=False)
    assert await given_up_at(world, first) == 60
    assert await given_up_at(world, second) == 85


async def test_a_request_may_have_less_patience_than_those_before_it_and_an_error_of_its_own(
    world: World,
) -> None:
    patient = world.ask(sent=False)
    hasty = world.table.add(GetStatus, "a", awaited=True, patience=0.5, give_up=TimeoutError)
    assert hasty.future is not None
    with pytest.raises(TimeoutError):
        await hasty.future
    assert round(world.now, 3) == 0.5
    world.table.abandon(hasty)
    assert await given_up_at(world, patient) == 60


async def test_a_connection_that_does_not_answer_is_reported_after_the_answer_time_out(world: World) -> None:
    world.table.answer_timeout = 15
    world.ask()
    await anyio.sleep(15.1)
    assert world.silences == [(15, 15)]


async def test_a_shorter_answer_time_out_holds_for_requests_in_flight_too(world: World) -> None:
    world.ask()
    await anyio.sleep(5)
    world.table.answer_timeout = 15
    await anyio.sleep(15.1)
    assert world.silences
    assert world.silences[0][0] <= 20


async def test_a_request_that_was_cancelled_is_still_owed_an_answer(world: World) -> None:
    world.table.answer_timeout = 15
    request = world.ask()
    assert request.future is not None
    request.future.cancel()
    world.table.abandon(request)
    await anyio.sleep(15.1)
    assert world.silences == [(15, 15)]


async def test_a_request_that_was_cancelled_and_then_answered_is_forgotten(world: World) -> None:
    world.table.answer_timeout = 15
    request = world.ask()
    assert request.future is not None
    request.future.cancel()
    world.table.abandon(request)
    assert world.table.get(request.number) is request
    world.table.remove(request)
    await anyio.sleep(100)
    assert world.silences == []


async def test_a_request_that_was_cancelled_before_it_was_sent_is_forgotten_at_once(world: World) -> None:
    request = world.ask(sent=False)
    assert request.future is not None
    request.future.cancel()
    world.table.abandon(request)
    assert world.table.get(request.number) is None


async def test_an_answered_request_is_forgotten_by_whoever_waited(world: World) -> None:
    request = world.ask()
    assert request.future is not None
    request.future.set_result(Ack(request.number))
    await request.future
    world.table.abandon(request)
    assert world.table.get(request.number) is None


async def test_after_a_break_only_what_somebody_waits_for_is_pending(world: World) -> None:
    presented, asked = world.ask(awaited=False), world.ask()
    world.table.unsend()
    assert world.table.pending() == [asked]
    assert world.table.get(presented.number) is None
    assert asked.sent is None


async def test_nothing_is_silent_while_there_is_no_connection_and_requests_end_in_time(world: World) -> None:
    world.table.answer_timeout = 15
    world.ask(awaited=False)
    first = world.ask()
    world.table.unsend()
    await anyio.sleep(10)
    second = world.ask(sent=False)
    assert await given_up_at(world, first) == 60
    assert await given_up_at(world, second) == 70
    assert world.silences == []


async def test_the_timer_rests_while_there_is_no_request_and_starts_again_with_one(world: World) -> None:
    request = world.ask()
    world.table.remove(request)
    await anyio.sleep(1000)
    late = world.ask(sent=False)
    assert await given_up_at(world, late) == 1060


async def test_all_waits_end_when_the_table_is_closed(world: World) -> None:
    request = world.ask()
    world.table.fail(ConnectionError("given up"))
    world.table.close()
    assert await given_up_at(world, request) == 0
    world.table.close()

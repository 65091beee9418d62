"""All that is opened is closed in any order, by any task, under any scope; cancelled, it leaves nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import pytest
import pytest_asyncio
from anyio.from_thread import start_blocking_portal

from arendezvous.backends.tcp import embedded
from tests.kit.cancelling import WAYS, cancelled_at, nothing_left
from tests.kit.etcd_server import serve_etcd
from tests.kit.lifetimes import EVERYTHING, Around, Place, Thing
from tests.kit.tls_kit import make_pki
from tests.kit.waiting import until_seen

NAMES = ("a", "b", "c")
ORDERS = ([0, 1, 2], [2, 1, 0], [1, 2, 0])


@pytest.fixture(scope="module")
def around(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Around]:
    """What the places need, etcd above all, which is slow to start: once for all tests here."""
    pki = make_pki(tmp_path_factory.mktemp("pki"))
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(serve_etcd(options=("--enable-v2",))) as cluster,
    ):
        yield Around(cluster.urls[0], pki)


@pytest_asyncio.fixture(params=EVERYTHING)
async def place(
    request: pytest.FixtureRequest, around: Around, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Place]:
    monkeypatch.setattr(embedded, "SETTLE", 0.01)  # a node that hosts would wait a second for others
    async with EVERYTHING[request.param](around) as place, nothing_left():
        yield place


async def close(thing: Thing) -> None:
    await thing.__aexit__(None, None, None)


@pytest.mark.parametrize("order", ORDERS, ids=str)
async def test_they_are_closed_in_any_order(place: Place, order: list[int]) -> None:
    things = [place.make(name) for name in NAMES]
    for thing in things:
        await place.use(await thing.__aenter__())
    for number in order:
        await close(things[number])
    await asyncio.sleep(0)  # this task is not cancelled


async def test_they_are_opened_at_the_same_time_and_closed_at_the_same_time_in_tasks_of_their_own(
    place: Place,
) -> None:
    things = [place.make(name) for name in NAMES]
    opened = await asyncio.gather(*(thing.__aenter__() for thing in things))
    for one in opened:
        await place.use(one)
    await asyncio.gather(*(close(thing) for thing in things))


async def test_they_are_opened_under_scopes_and_time_outs_that_end_before_they_are_closed(
    place: Place,
) -> None:
    one, two, three = (place.make(name) for name in NAMES)
    opened: list[Any] = []
    with anyio.fail_after(60):
        opened.append(await one.__aenter__())
    opened.append(await asyncio.wait_for(two.__aenter__(), 60))
    async with anyio.create_task_group() as tasks:
        opened.append(await three.__aenter__())
        tasks.cancel_scope.cancel()
    for each in opened:
        await place.use(each)
    async with asyncio.timeout(60):
        await close(one)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(close, two)
    await close(three)


@pytest_asyncio.fixture
async def opened(place: Place) -> AsyncIterator[Any]:
    async with place.make("a") as thing:
        yield thing


async def test_a_fixture_yields_them(opened: Any, place: Place) -> None:
    await place.use(opened)


@pytest.mark.parametrize("way", WAYS)
async def test_cancelled_anywhere_while_they_are_opened_they_leave_nothing(place: Place, way: str) -> None:
    step, struck = 0, True
    while struck:
        async with nothing_left():
            thing = place.make("a")
            opening = await cancelled_at(step, way, thing.__aenter__())
            if not opening.cut:
                await close(thing)
        step, struck = step + 1, opening.struck
    async with place.make("a") as again:
        await place.use(again)


@pytest.mark.parametrize("way", WAYS)
async def test_cancelled_anywhere_while_they_are_closed_they_leave_nothing(place: Place, way: str) -> None:
    step, struck = 0, True
    while struck:
        async with nothing_left():
            thing = place.make("a")
            await place.use(await thing.__aenter__())
            closing = await cancelled_at(step, way, close(thing))
            await until_seen(lambda: place.is_gone("a"), bool)
        step, struck = step + 1, closing.struck

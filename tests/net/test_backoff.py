"""Back-off: pauses grow, are bounded and spread out, and are short again only after a success that lasted."""

from __future__ import annotations

import math

import anyio
import pytest

from arendezvous.net.backoff import Backoff, Pauses

pytestmark = pytest.mark.virtual

EXACT = Backoff(first=0.1, last=1.0, factor=2.0, jitter=0.0)


async def slept(pauses: Pauses, until: float = math.inf) -> float:
    """How long it paused, in virtual seconds."""
    began = anyio.current_time()
    await pauses.sleep(until)
    return round(anyio.current_time() - began, 6)


async def test_pauses_grow_by_the_factor_up_to_the_last_and_begin_anew_after_a_reset() -> None:
    pauses = EXACT.start()
    assert [await slept(pauses) for _ in range(6)] == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    pauses.reset()
    assert [await slept(pauses) for _ in range(2)] == [0.1, 0.2]


async def test_series_of_one_policy_do_not_know_of_each_other() -> None:
    one, two = EXACT.start(), EXACT.start()
    await slept(one)
    assert (await slept(one), await slept(two)) == (0.2, 0.1)


@pytest.mark.parametrize(("jitter", "least"), [(0.5, 0.05), (1.0, 0.0)])
async def test_jitter_takes_off_at_most_its_part_and_not_always_the_same(jitter: float, least: float) -> None:
    pauses = [await slept(Backoff(first=0.1, jitter=jitter).start()) for _ in range(200)]
    assert least <= min(pauses) < max(pauses) <= 0.1
    middle = (least + 0.1) / 2
    assert min(pauses) < middle < max(pauses)


async def test_a_pause_that_would_end_too_late_is_not_begun() -> None:
    pauses, began = EXACT.start(), anyio.current_time()
    end = began + 0.65
    assert [await pauses.sleep(end) for _ in range(3)] == [True, True, False]
    assert anyio.current_time() - began == pytest.approx(0.3)


async def test_a_success_that_lasted_is_followed_by_an_attempt_at_once_and_then_by_the_first_pause() -> None:
    pauses = EXACT.start()
    for _ in range(4):
        await slept(pauses)
    pauses.succeeded()
    await anyio.sleep(0.6)
    pauses.succeeded()  # it still lasts: that it is told again does not make it younger
    await anyio.sleep(0.4)
    assert [await slept(pauses) for _ in range(3)] == [0.0, 0.1, 0.2]


async def test_a_success_that_is_lost_soon_counts_as_a_failure() -> None:
    pauses = EXACT.start()
    found = []
    for _ in range(5):
        pauses.succeeded()
        await anyio.sleep(0.01)
        found.append(await slept(pauses))
    assert found == [0.1, 0.2, 0.4, 0.8, 1.0]


@pytest.mark.parametrize("held", [0.0, 0.3, 0.999])
async def test_a_server_that_welcomes_and_closes_is_tried_once_in_the_longest_pause(
    held: float,
) -> None:
    pauses, attempts = Backoff(first=0.01, last=1.0).start(), 0
    with anyio.move_on_after(600):
        while True:
            attempts += 1
            pauses.succeeded()
            await anyio.sleep(held)
            await pauses.sleep()
    assert 600 / 2 <= attempts <= 2 * 600 + 10  # with the jitter a pause takes half of its length or more


async def test_those_who_fail_together_pause_together_and_as_if_they_were_one() -> None:
    pauses, woken = EXACT.start(), []

    async def fail(at: float) -> None:
        await anyio.sleep(at)
        await pauses.sleep()
        woken.append(round(anyio.current_time() - began, 6))

    began = anyio.current_time()
    async with anyio.create_task_group() as tasks:
        for number in range(50):
            tasks.start_soon(fail, number / 1000)
    assert woken == [0.1] * 50
    assert await slept(pauses) == 0.2


async def test_whoever_is_called_back_in_the_middle_of_a_pause_has_only_the_rest_of_it_to_wait() -> None:
    pauses = EXACT.start()
    with anyio.move_on_after(0.04):
        await pauses.sleep()
    assert await slept(pauses) == 0.06
    assert await slept(pauses) == 0.2

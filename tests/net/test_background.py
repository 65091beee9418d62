"""Background work: whose it is, how it ends, and whom its errors reach."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Awaitable, Callable

import anyio
import pytest

from arendezvous.errors import RendezvousConnectionError, RendezvousError
from arendezvous.net.background import CLOSE_TIMEOUT, Background, finish, require_asyncio

pytestmark = pytest.mark.virtual


class Owner:
    """Somebody with background work, and what was noted of it."""

    def __init__(self) -> None:
        self.background = Background("the owner", self._fail)
        self.failures: list[RendezvousError] = []
        self.story: list[str] = []

    def _fail(self, error: RendezvousError) -> None:
        self.failures.append(error)

    async def work(self, name: str = "work", cleaning: float = 0.0) -> None:
        """Works until it is cancelled, and then cleans up for so many seconds."""
        self.story.append(f"{name} begins")
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(cleaning)
            self.story.append(f"{name} ends")

    async def fail(self, error: BaseException) -> None:
        self.story.append("fails")
        raise error


async def test_work_is_started_from_tasks_and_callbacks_and_ends_with_the_owner() -> None:
    owner = Owner()
    owner.background.start(owner.work, "one")
    asyncio.get_running_loop().call_soon(lambda: owner.background.start(owner.work, "two"))
    await anyio.wait_all_tasks_blocked()
    owner.background.start(owner.work, "three")
    await anyio.wait_all_tasks_blocked()
    assert owner.story == ["one begins", "two begins", "three begins"]
    await owner.background.close()
    assert sorted(owner.story[3:]) == ["one ends", "three ends", "two ends"]
    assert (owner.failures, owner.background.error) == ([], None)


async def test_a_task_that_started_work_may_end_and_another_closes_it() -> None:
    owner = Owner()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(open_it, owner)
    assert owner.story == ["work begins"]
    await asyncio.create_task(owner.background.close())
    assert owner.story == ["work begins", "work ends"]


async def open_it(owner: Owner) -> None:
    with anyio.fail_after(5):
        owner.background.start(owner.work)
        await anyio.sleep(1)


async def test_work_outlives_the_scope_under_which_it_was_started() -> None:
    owner = Owner()
    with anyio.move_on_after(1):
        owner.background.start(owner.work)
        await anyio.sleep_forever()
    await anyio.sleep(10)
    assert owner.story == ["work begins"]
    await owner.background.close()


async def test_nothing_is_started_once_it_is_closed_and_closing_may_be_repeated() -> None:
    owner = Owner()
    await owner.background.close()
    owner.background.start(owner.work)
    await anyio.wait_all_tasks_blocked()
    await owner.background.close()
    assert owner.story == []


async def test_closing_waits_for_clean_up() -> None:
    owner = Owner()
    owner.background.start(owner.work, "slow", CLOSE_TIMEOUT - 1)
    await anyio.wait_all_tasks_blocked()
    begin = anyio.current_time()
    await owner.background.close()
    assert owner.story[-1] == "slow ends"
    assert anyio.current_time() - begin == pytest.approx(CLOSE_TIMEOUT - 1)


async def test_clean_up_that_takes_too_long_is_left_behind_and_that_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    owner = Owner()
    owner.background.start(owner.work, "stuck", 60.0)
    await anyio.wait_all_tasks_blocked()
    begin = anyio.current_time()
    await owner.background.close()
    assert anyio.current_time() - begin == pytest.approx(CLOSE_TIMEOUT)
    assert caplog.messages == ["the owner: work in the background has not ended within 5 s"]
    await anyio.sleep(60)
    assert owner.story[-1] == "stuck ends"


async def test_work_that_is_cancelled_before_it_began_begins_to_clean_up_what_it_was_given() -> None:
    owner = Owner()
    owner.background.start(owner.work)
    await owner.background.close()
    assert owner.story == ["work begins", "work ends"]


async def test_every_await_of_work_that_is_cancelled_is_cancelled() -> None:
    owner = Owner()

    async def stubborn() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            await anyio.sleep(1)
            owner.story.append("not reached")

    owner.background.start(stubborn)
    await anyio.wait_all_tasks_blocked()
    begin = anyio.current_time()
    await owner.background.close()
    assert (owner.story, anyio.current_time()) == ([], begin)


async def test_work_may_end_all_work_its_own_included() -> None:
    owner = Owner()

    async def end_all() -> None:
        owner.background.cancel()
        await anyio.sleep_forever()

    owner.background.start(owner.work)
    owner.background.start(end_all)
    await anyio.wait_all_tasks_blocked()
    assert owner.story == ["work begins", "work ends"]
    assert owner.failures == []


# Errors


async def test_an_error_ends_all_work_and_reaches_the_owner_as_one_of_ours_chained_to_it() -> None:
    owner, cause = Owner(), ZeroDivisionError("of a bug")
    owner.background.start(owner.work)
    owner.background.start(owner.fail, cause)
    await anyio.sleep(1)  # this task is not cancelled
    assert owner.story == ["work begins", "fails", "work ends"]
    [error] = owner.failures
    assert error is owner.background.error
    assert error.__cause__ is cause
    assert str(error) == (
        "the owner: work in the background failed, and it cannot go on: ZeroDivisionError('of a bug');"
        " open it anew"
    )
    owner.background.start(owner.work)
    await owner.background.close()
    assert len(owner.story) == 3


async def test_an_error_of_ours_reaches_the_owner_as_it_is_even_from_a_task_group() -> None:
    owner, cause = Owner(), RendezvousConnectionError("gone")

    async def fail_in_a_group() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(owner.fail, cause)

    owner.background.start(fail_in_a_group)
    await anyio.wait_all_tasks_blocked()
    assert owner.failures == [cause]


async def test_the_owner_is_told_of_the_first_error_before_the_rest_has_cleaned_up_and_the_log_of_all(
    caplog: pytest.LogCaptureFixture,
) -> None:
    owner = Owner()

    async def fail_late() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise RendezvousError("late")

    owner.background.start(owner.work, "slow", 3.0)
    owner.background.start(fail_late)
    await anyio.wait_all_tasks_blocked()
    owner.background.start(owner.fail, RendezvousError("early"))
    await anyio.sleep(1)
    assert owner.story == ["slow begins", "fails"]
    assert [str(error) for error in owner.failures] == ["early"]
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == ["early", "late"]
    await owner.background.close()
    assert owner.story[-1] == "slow ends"


async def test_an_error_in_clean_up_is_kept_and_the_owner_that_closes_is_not_called(
    caplog: pytest.LogCaptureFixture,
) -> None:
    owner = Owner()

    async def fail_at_the_end() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise KeyError("lost")

    owner.background.start(fail_at_the_end)
    await anyio.wait_all_tasks_blocked()
    await owner.background.close()
    assert owner.failures == []
    assert owner.background.error is not None
    assert isinstance(owner.background.error.__cause__, KeyError)
    assert caplog.messages == ["the owner: work in the background failed"]


async def test_the_owner_is_told_if_somebody_cancels_all_tasks() -> None:
    owner = Owner()
    owner.background.start(owner.work, "one")
    owner.background.start(owner.work, "two")
    await anyio.wait_all_tasks_blocked()
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    await anyio.wait_all_tasks_blocked()
    assert sorted(owner.story[2:]) == ["one ends", "two ends"]
    [error] = owner.failures
    assert str(error) == (
        "the owner: work in the background failed, and it cannot go on: CancelledError('somebody else has"
        " cancelled it'); open it anew"
    )


# Whoever closes is cancelled

Ending = Callable[[Owner], Awaitable[object]]
ENDINGS: dict[str, Ending] = {
    "close": lambda owner: owner.background.close(),
    "finish": lambda owner: finish(clean_up, owner),
}


async def clean_up(owner: Owner) -> str:
    await anyio.sleep(3)
    owner.story.append("work ends")
    return "done"


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("ending", ENDINGS)
async def test_a_task_that_is_cancelled_while_it_closes_goes_on_when_that_is_done(
    ending: str, times: int
) -> None:
    owner = Owner()
    owner.background.start(owner.work, "work", 3.0)
    await anyio.wait_all_tasks_blocked()
    begin = anyio.current_time()
    closing = asyncio.ensure_future(ENDINGS[ending](owner))
    for _ in range(times):
        await anyio.sleep(0.5)
        assert closing.cancel()
    await asyncio.wait([closing])
    assert closing.cancelled()
    assert owner.story == ["work begins", "work ends"]
    assert anyio.current_time() - begin == pytest.approx(3)
    await owner.background.close()


@pytest.mark.parametrize("ending", ENDINGS)
async def test_a_scope_that_is_cancelled_around_closing_ends_when_that_is_done(ending: str) -> None:
    owner = Owner()
    owner.background.start(owner.work, "work", 3.0)
    await anyio.wait_all_tasks_blocked()
    begin = anyio.current_time()
    with anyio.move_on_after(1):
        await ENDINGS[ending](owner)
        owner.story.append("goes on to the next await")
        await anyio.sleep(60)
    assert owner.story == ["work begins", "work ends", "goes on to the next await"]
    assert anyio.current_time() - begin == pytest.approx(3)
    await owner.background.close()


async def test_what_is_finished_returns_and_raises_what_it_would_otherwise() -> None:
    owner = Owner()
    assert await finish(clean_up, owner) == "done"
    with pytest.raises(KeyError, match="lost"):
        await finish(owner.fail, KeyError("lost"))


async def test_an_error_of_what_is_finished_for_a_cancelled_task_is_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    owner = Owner()

    async def fail_slowly() -> None:
        await anyio.sleep(1)
        raise KeyError("lost")

    closing = asyncio.ensure_future(finish(fail_slowly))
    await anyio.wait_all_tasks_blocked()
    closing.cancel()
    await asyncio.wait([closing])
    assert closing.cancelled()
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == ["'lost'"]
    assert owner.failures == []


# The end of the loop


def run_to_the_end(main: Callable[[Owner], Awaitable[None]], caplog: pytest.LogCaptureFixture) -> Owner:
    """Runs `main` in a loop of its own; returns the owner once everything has been collected."""

    async def all_of_it() -> Owner:
        owner = Owner()
        await main(owner)
        return owner

    with caplog.at_level(logging.DEBUG, "asyncio"):
        owner = asyncio.run(all_of_it())
        gc.collect()
    return owner


def test_work_that_goes_on_when_the_loop_ends_is_cancelled_without_a_word(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main(owner: Owner) -> None:
        owner.background.start(owner.work)
        await asyncio.sleep(0)
        owner.background.start(owner.work, "late")

    owner = run_to_the_end(main, caplog)
    assert sorted(owner.story) == ["late begins", "late ends", "work begins", "work ends"]
    assert [type(error.__cause__) for error in owner.failures] == [asyncio.CancelledError]
    assert [message for message in caplog.messages if "selector" not in message] == []


def test_goodbyes_that_go_on_when_the_loop_ends_are_broken_off(caplog: pytest.LogCaptureFixture) -> None:
    async def main(owner: Owner) -> None:
        owner.background.start(lambda: finish(owner.work))
        await asyncio.sleep(0.01)

    owner = run_to_the_end(main, caplog)
    assert owner.story == ["work begins", "work ends"]
    assert [message for message in caplog.messages if "selector" not in message] == []


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_in_the_work_ends_the_program_as_anywhere(
    kind: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    owners: list[Owner] = []

    async def main(owner: Owner) -> None:
        owners.append(owner)
        owner.background.start(owner.work)
        owner.background.start(owner.fail, kind())
        await asyncio.sleep(60)

    with pytest.raises(kind):
        run_to_the_end(main, caplog)
    gc.collect()
    assert owners[0].story == ["work begins", "fails", "work ends"]
    assert [message for message in caplog.messages if "selector" not in message] == []


def test_without_a_loop_of_asyncio_it_is_refused_in_one_sentence() -> None:
    with pytest.raises(RuntimeError) as caught:
        require_asyncio("a rendezvous")
    assert str(caught.value) == (
        "a rendezvous needs a running event loop of asyncio, and there is none here; use asyncio.run(), or"
        " anyio.run() with the backend 'asyncio' (trio is not supported)"
    )

"""What is held open in a thread of its own is entered, left and cut short from its owner's loop."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial

import anyio
import pytest

from arendezvous.errors import RendezvousError
from arendezvous.net.own_thread import in_own_thread, may_use_threads
from arendezvous.testing.virtual_time import run_virtual
from tests.kit.cancelling import WAYS, cancelled_at

NAME = "something of this test"


class Held:
    """A context that notes how far it got, and in which thread.

    Args:
        entering: What entering it does.
        leaving: What leaving it does.
    """

    def __init__(self, entering: float = 0.0, leaving: float = 0.0) -> None:
        self.entering = entering
        self.leaving = leaving
        self.threads: list[threading.Thread] = []
        self.loop: asyncio.AbstractEventLoop | None = None

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Held]:
        await anyio.sleep(self.entering)
        self.loop = asyncio.get_running_loop()
        self.threads.append(threading.current_thread())
        try:
            yield self
            await anyio.sleep(self.leaving)
        finally:
            self.threads.append(threading.current_thread())


@asynccontextmanager
async def failing(error: BaseException | None) -> AsyncIterator[None]:
    if error is not None:
        raise error
    yield


async def test_it_is_entered_and_left_in_one_thread_that_is_gone_afterwards() -> None:
    held = Held()
    async with in_own_thread(held.open, NAME) as value:
        assert value is held
        assert len(held.threads) == 1
    entered, left = held.threads
    assert entered is left
    assert entered is not threading.current_thread()
    assert entered.name == NAME
    await asyncio.to_thread(entered.join)


async def test_what_entering_raises_reaches_the_owner_with_its_cause() -> None:
    error = LookupError("no such thing")
    error.__cause__ = ValueError("why")
    with pytest.raises(LookupError, match="no such thing") as caught:
        async with in_own_thread(partial(failing, error), NAME):
            pass
    assert isinstance(caught.value.__cause__, ValueError)


async def test_an_error_of_the_block_is_its_own() -> None:
    held = Held()
    with pytest.raises(LookupError):
        async with in_own_thread(held.open, NAME):
            raise LookupError
    assert len(held.threads) == 2


@pytest.mark.parametrize("way", WAYS)
async def test_it_is_left_whenever_its_owner_is_cancelled(way: str) -> None:
    async def use(held: Held) -> None:
        async with in_own_thread(held.open, NAME):
            pass

    step, struck = 0, True
    while struck:
        held = Held()
        struck = (await cancelled_at(step, way, use(held))).struck
        assert len(held.threads) in (0, 2)
        for thread in threading.enumerate():
            if thread.name == NAME:
                await asyncio.to_thread(thread.join)
        step += 1
    assert step > 2


async def test_a_wait_on_entering_is_cancelled_with_its_owner() -> None:
    held = Held(entering=600.0)
    with anyio.move_on_after(0.01) as scope:
        async with in_own_thread(held.open, NAME):
            pass
    assert scope.cancelled_caught
    assert held.threads == []


async def test_a_wait_on_leaving_is_cancelled_with_its_owner() -> None:
    held = Held(leaving=600.0)
    with anyio.CancelScope() as scope:
        async with in_own_thread(held.open, NAME):
            scope.deadline = anyio.current_time() + 0.01
    assert scope.cancelled_caught
    assert len(held.threads) == 2


async def test_a_loop_that_an_interrupt_ends_leaves_the_context_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def interrupt() -> None:
        raise SystemExit

    held = Held()
    async with in_own_thread(held.open, NAME):
        assert held.loop is not None
        held.loop.call_soon_threadsafe(interrupt)
        await asyncio.to_thread(held.threads[0].join)
        assert len(held.threads) == 2
    assert f"{NAME}: its thread has failed" in caplog.text


async def test_an_interrupt_on_entering_is_an_error() -> None:
    with pytest.raises(RendezvousError, match="its thread ended before") as caught:
        async with in_own_thread(partial(failing, SystemExit()), NAME):
            pass
    assert isinstance(caught.value.__cause__, SystemExit)


async def test_without_room_for_a_thread_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(RendezvousError, match="can't start new thread; raise the limits"):
        async with in_own_thread(Held().open, NAME):
            pass


async def test_in_a_forked_process_leaving_the_block_does_nothing() -> None:
    held = Held()
    context: AbstractAsyncContextManager[Held] = in_own_thread(held.open, NAME)
    await context.__aenter__()
    child = os.fork()
    if child == 0:
        closing = context.__aexit__(None, None, None)
        try:
            closing.send(None)
        except StopIteration:
            os._exit(7)  # at once
        os._exit(8)
    status = await asyncio.to_thread(os.waitpid, child, 0)
    assert os.waitstatus_to_exitcode(status[1]) == 7
    await context.__aexit__(None, None, None)
    assert len(held.threads) == 2


async def test_it_goes_on_while_its_owner_blocks_its_loop() -> None:
    counted = threading.Event()

    @asynccontextmanager
    async def counting() -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        loop.call_later(0.001, lambda: loop.call_soon(counted.set))
        yield

    async with in_own_thread(counting, NAME):
        assert counted.wait(60)


def test_no_thread_is_used_beside_virtual_time() -> None:
    async def look() -> bool:
        return may_use_threads()

    assert not run_virtual(look)
    assert asyncio.run(look())

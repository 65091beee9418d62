"""What comes of a request over HTTP, for which somebody waits, gives up waiting, and waits again."""

from __future__ import annotations

import anyio
import pytest

from arendezvous.backends.http.reply import Reply


async def test_whoever_waits_gets_the_answer() -> None:
    reply: Reply[str] = Reply()
    async with anyio.create_task_group() as tasks:

        async def wait() -> None:
            assert await reply.wait() == "answer"

        tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        reply.give("answer")


async def test_an_answer_outlives_the_wait_for_it() -> None:
    reply: Reply[str] = Reply()
    with anyio.move_on_after(0) as scope:
        await reply.wait()
    assert scope.cancelled_caught
    reply.give("answer")
    assert [await reply.wait(), await reply.wait()] == ["answer", "answer"]


async def test_an_error_is_raised_and_nothing_counts_after_it() -> None:
    reply: Reply[str] = Reply()
    reply.give(ConnectionError("it is lost"))
    reply.give("too late")
    for _ in range(2):
        with pytest.raises(ConnectionError, match="it is lost"):
            await reply.wait()


async def test_an_empty_answer_is_one() -> None:
    reply: Reply[bytes] = Reply()
    reply.give(b"")
    assert await reply.wait() == b""

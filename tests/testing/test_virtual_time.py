"""The clock of virtual time jumps to the next timer, and nothing else changes."""

from __future__ import annotations

import asyncio
import itertools
import time

import anyio
import pytest

from arendezvous.testing.virtual_time import VirtualTimeError, VirtualTimeLoop, run_virtual


@pytest.mark.virtual
async def test_ten_minutes_pass_on_the_virtual_clock_and_not_on_the_real_one() -> None:
    loop, real = asyncio.get_running_loop(), time.monotonic()
    begin = loop.time()
    await anyio.sleep(600)
    assert loop.time() - begin == pytest.approx(600)
    assert time.monotonic() - real < 60


@pytest.mark.virtual
async def test_timers_go_off_in_the_order_of_their_times() -> None:
    order: list[float] = []

    async def sleeper(seconds: float) -> None:
        await anyio.sleep(seconds)
        order.append(seconds)

    async with anyio.create_task_group() as tasks:
        for seconds in (3.0, 0.5, 100.0, 2.0):
            tasks.start_soon(sleeper, seconds)
    assert order == [0.5, 2.0, 3.0, 100.0]


@pytest.mark.virtual
async def test_an_anyio_time_out_is_virtual_too() -> None:
    with pytest.raises(TimeoutError):
        with anyio.fail_after(3600):
            await anyio.sleep_forever()


def test_run_virtual_returns_what_main_returns() -> None:
    async def main() -> str:
        await asyncio.sleep(86_400)
        return "a day later"

    assert run_virtual(main) == "a day later"


def test_a_circle_of_timers_ends_at_the_limit() -> None:
    async def main() -> None:
        for _ in itertools.count():
            await asyncio.sleep(1)

    with pytest.raises(VirtualTimeError, match="50 virtual seconds"):
        run_virtual(main, limit=50)


def test_a_deadlock_is_an_error_instead_of_a_test_that_hangs() -> None:
    async def main() -> None:
        await asyncio.get_running_loop().create_future()

    with (
        asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(stuck=0.01)) as runner,
        pytest.raises(VirtualTimeError, match="no timer is set"),
    ):
        runner.run(main())


def test_patience_lets_a_socket_come_before_the_next_timer() -> None:
    async def main() -> bytes:
        async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readexactly(5))
            writer.close()

        server = await asyncio.start_server(greet, "127.0.0.1", 0)
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(b"hello")
            with anyio.fail_after(10):
                answer = await reader.read()
            writer.close()
            return answer

    assert run_virtual(main, patience=0.2) == b"hello"


def test_a_thread_is_waited_for_while_there_is_no_timer() -> None:
    async def main() -> int:
        return await asyncio.to_thread(lambda: 7)

    assert run_virtual(main) == 7

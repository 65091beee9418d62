"""Runs a target: for some inputs, or for some time."""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

HANGS: Final = 30  # seconds after which an input is taken to have no end
GROWTH: Final = 300  # MiB that a target may grow the process by, whatever it was fed
BATCH: Final = 100

Check = Callable[[Any], Awaitable[None]]


@dataclass(frozen=True)
class Target:
    """One place that is fed.

    Attributes:
        name: What it is called on the command line.
        inputs: What it is fed with.
        opened: Opens what it needs; yields what feeds it with one input, and raises if something is wrong.
    """

    name: str
    inputs: SearchStrategy[Any]
    opened: Callable[[], AbstractAsyncContextManager[Check]]


def pure(name: str, inputs: SearchStrategy[Any], check: Callable[[Any], object]) -> Target:
    """Makes a target of a function that needs nothing."""

    async def feed(given_: Any) -> None:
        check(given_)

    @asynccontextmanager
    async def opened():  # type: ignore[no-untyped-def]  # what it yields is in Target
        yield feed

    return Target(name, inputs, opened)


class Complaints(logging.Handler):
    """Collects what should not happen, and that nobody waits for: errors in the log and in the loop."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self._heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._heard.append(self.format(record))

    def on_loop(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self._heard.append(f"{context.get('message')}: {context.get('exception')!r}")

    def require_none(self) -> None:
        heard, self._heard = self._heard, []
        assert not heard, "\n".join(heard)


def run(target: Target, *, seconds: float = 0.0, examples: int = BATCH, first_seed: int = 0) -> int:
    """Feeds a target, for `seconds` or with `examples`, whichever takes longer; returns how many there were.

    Raises:
        AssertionError: Something that must not happen has; hypothesis has printed the smallest such input.
    """
    fed, end = 0, time.monotonic() + seconds
    complaints = Complaints()
    logging.getLogger().addHandler(complaints)
    before = _resident()
    try:
        with asyncio.Runner() as runner:
            runner.get_loop().set_exception_handler(complaints.on_loop)
            arena = target.opened()
            check = runner.run(arena.__aenter__())

            def feed(value: Any) -> None:
                nonlocal fed
                fed += 1
                signal.alarm(HANGS)  # raised wherever it hangs, in the loop or in one call
                try:
                    runner.run(_bounded(check, value))
                finally:
                    signal.alarm(0)
                complaints.require_none()

            try:
                while fed < examples or time.monotonic() < end:
                    _batch(feed, target.inputs, min(BATCH, max(examples, 1)), first_seed + fed)
            finally:
                runner.run(_left(arena))
        complaints.require_none()
    finally:
        logging.getLogger().removeHandler(complaints)
    grown = _resident() - before
    assert grown < GROWTH, f"{target.name} grew the process by {grown} MiB"
    return fed


async def _bounded(check: Check, value: Any) -> None:
    try:
        async with asyncio.timeout(HANGS / 2):
            await check(value)
    except TimeoutError as error:
        raise AssertionError(f"no end within {HANGS / 2:g} s") from error


async def _left(arena: AbstractAsyncContextManager[Check]) -> None:
    await arena.__aexit__(None, None, None)


def _batch(feed: Callable[[Any], None], inputs: SearchStrategy[Any], examples: int, number: int) -> None:
    @seed(number)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )
    @given(inputs)
    def one(value: Any) -> None:
        feed(value)

    one()


def _resident() -> int:
    """The most memory that this process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10

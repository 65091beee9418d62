"""The process of the simulation: the real server and N nodes over memory, in virtual time, step by step."""

from __future__ import annotations

import asyncio
import gc
import time
from typing import Final

import msgspec

from arendezvous.bench.child import Answer, serve_requests
from arendezvous.bench.counting import Counts
from arendezvous.bench.simulated import Crowd, SimulatedLoop, simulated_server

STEPS: Final = ("connect", "join", "heartbeat", "death", "join again")


class Steps:
    """Takes, for each step, the processor's seconds, what the connections carried, timers and wake-ups."""

    def __init__(self, loop: SimulatedLoop, counts: Counts | None) -> None:
        self._loop = loop
        self._counts = counts
        self._before = Counts()
        self._timers = self._wakeups = 0
        self._cpu = 0.0
        self.taken: Answer = {}

    def begin(self) -> None:
        """A step begins."""
        if self._counts is not None:
            self._before = msgspec.structs.replace(self._counts)
        self._timers, self._wakeups = self._loop.timers, self._loop.callbacks
        self._cpu = time.process_time()

    def take(self, step: str) -> None:
        """The step is over."""
        cpu = time.process_time() - self._cpu
        counts = msgspec.to_builtins(self._counts - self._before) if self._counts is not None else {}
        asked = {"timers": self._loop.timers - self._timers, "wakeups": self._loop.callbacks - self._wakeups}
        self.taken[step] = {"cpu": cpu, **asked, **counts}


async def live(nodes: int, *, counted: bool) -> Answer:
    """Lets `nodes` nodes connect, meet, send a heartbeat, lose one of them, and meet again.

    Args:
        nodes: How many.
        counted: Whether to count what the connections carry, which takes time of its own.

    Returns:
        What each of `STEPS` took.

    Raises:
        RuntimeError: The ranks are not those that they must be.
    """
    counts = Counts() if counted else None
    async with simulated_server() as loop:
        crowd, steps = Crowd(loop, nodes, counts), Steps(loop, counts)
        frames = crowd.hellos()
        steps.begin()
        await crowd.connect(frames)
        steps.take("connect")
        for step, frames in ("join", crowd.joins(nodes)), ("heartbeat", crowd.heartbeats()):
            steps.begin()
            await crowd.say(frames)
            steps.take(step)
            if step == "join":
                _check(crowd.ranks(nodes), nodes)
        steps.begin()
        await crowd.lose(nodes - 1)
        steps.take("death")
        frames = crowd.joins(nodes - 1, after=(1, 0))
        steps.begin()
        await crowd.say(frames)
        steps.take("join again")
        _check(crowd.ranks(nodes - 1), nodes - 1)
    return steps.taken


def _check(ranks: list[int], nodes: int) -> None:
    if sorted(ranks) != list(range(nodes)):
        raise RuntimeError(f"the ranks of {nodes} nodes are not 0 to {nodes - 1}")


def answer(request: Answer) -> Answer:
    """Simulates once."""
    gc.collect()
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        return runner.run(live(request["nodes"], counted=request["counted"]))


if __name__ == "__main__":
    serve_requests(answer)

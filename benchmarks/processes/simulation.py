"""The process of the simulation: the real server and N nodes over memory, in virtual time, step by step."""

from __future__ import annotations

import asyncio
import gc
import time
from types import TracebackType
from typing import Final, Self

import msgspec

from benchmarks.counting import TrafficCounts
from benchmarks.processes.child import Answer, resident, serve_requests
from benchmarks.simulated import SimulatedLoop, SimulatedNodes, simulated_server

STEPS: Final = ("connect", "join", "heartbeat", "death", "join again")


class Collector:
    """Adds up the processor's seconds of Python's garbage collector, while the block runs.

    Attributes:
        seconds: So far.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._began = 0.0

    def __enter__(self) -> Self:
        """Begins to listen."""
        gc.callbacks.append(self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Listens no more."""
        gc.callbacks.remove(self._note)

    def _note(self, phase: str, _: dict[str, int]) -> None:
        if phase == "start":
            self._began = time.process_time()
        else:
            self.seconds += time.process_time() - self._began


class Steps:
    """Takes, for each step, the processor's seconds, what the connections carried, timers and wake-ups."""

    def __init__(self, loop: SimulatedLoop, collector: Collector, counts: TrafficCounts | None) -> None:
        self._loop = loop
        self._collector = collector
        self._counts = counts
        self._before = TrafficCounts()
        self._timers = self._wakeups = 0
        self._cpu = self._collected = 0.0
        self.taken: Answer = {}

    def begin(self) -> None:
        """A step begins."""
        if self._counts is not None:
            self._before = msgspec.structs.replace(self._counts)
        self._timers, self._wakeups = self._loop.timers, self._loop.callbacks
        self._collected = self._collector.seconds
        self._cpu = time.process_time()
        self._loop.time_turns()

    def take(self, step: str) -> None:
        """The step is over."""
        cpu = time.process_time() - self._cpu
        counts = msgspec.to_builtins(self._counts - self._before) if self._counts is not None else {}
        self.taken[step] = {
            "cpu": cpu,
            "collector": self._collector.seconds - self._collected,
            "turn": self._loop.longest_turn,
            "timers": self._loop.timers - self._timers,
            "wakeups": self._loop.callbacks - self._wakeups,
            **counts,
        }


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
    counts = TrafficCounts() if counted else None
    with Collector() as collector:
        async with simulated_server() as loop:
            simulated, steps = SimulatedNodes(loop, nodes, counts), Steps(loop, collector, counts)
            frames = simulated.hellos()
            steps.begin()
            await simulated.connect(frames)
            steps.take("connect")
            frames = simulated.joins(nodes)
            steps.begin()
            await simulated.send(frames)
            steps.take("join")
            _check(simulated.ranks(nodes), nodes)
            frames = simulated.heartbeats()
            steps.begin()
            await simulated.send(frames)
            steps.take("heartbeat")
            steps.begin()
            await simulated.lose(nodes - 1)
            steps.take("death")
            frames = simulated.joins(nodes - 1, after=(1, 0))
            steps.begin()
            await simulated.send(frames)
            steps.take("join again")
            _check(simulated.ranks(nodes - 1), nodes - 1)
    return steps.taken


def _check(ranks: list[int], nodes: int) -> None:
    if sorted(ranks) != list(range(nodes)):
        raise RuntimeError(f"the ranks of {nodes} nodes are not 0 to {nodes - 1}")


def _peak() -> int:
    """Bytes of memory that this process has held at most; unlike ``ru_maxrss``, without what forked it."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM:"))


def answer(request: Answer) -> Answer:
    """Simulates once; tells the `steps`, and by how many bytes of `memory` this process grew at most.

    With `collector` false in the request, Python's garbage collector does nothing meanwhile.
    """
    gc.collect()
    before = resident()
    was_enabled = gc.isenabled()
    _let_collect(request.get("collector", True))
    try:
        with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
            steps = runner.run(live(request["nodes"], counted=request["counted"]))
    finally:
        _let_collect(was_enabled)
    return {"steps": steps, "memory": max(0, _peak() - before)}


def _let_collect(enabled: bool) -> None:
    (gc.enable if enabled else gc.disable)()


if __name__ == "__main__":
    serve_requests(answer)

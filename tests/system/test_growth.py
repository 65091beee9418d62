"""What N nodes cost the server, in counts: a join that became O(N) would fail here, on any machine.

The real server runs without sockets, in virtual time. `COSTS` is the one table to change when what a node
costs is changed on purpose: each entry is (for each node, once).
"""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec
import pytest

import arendezvous.coordinator.coordinator
from arendezvous.coordinator.coordinator import Coordinator
from arendezvous.coordinator.run import Run
from arendezvous.law.machine import apply, view
from arendezvous.law.operations import Operation
from arendezvous.wire.native.messages import encode
from benchmarks.counting import TrafficCounts
from benchmarks.processes.simulation import STEPS, Collector, answer, live
from benchmarks.simulated import SimulatedLoop, SimulatedNodes, simulated_server

PER_STEP = {
    #             messages in  messages out  writes     timers     wake-ups (3 of the simulation)
    "connect":    ((1, 0),     (1, 0),       (1, 0),    (2, 0),    (0, 3)),
    "join":       ((1, 0),     (1, 0),       (1, 0),    (0, 3),    (0, 4)),
    "heartbeat":  ((1, 0),     (1, 0),       (1, 0),    (0, 0),    (0, 3)),
    "death":      ((0, 0),     (1, -1),      (1, -1),   (0, 6),    (0, 2)),
    "join again": ((1, -1),    (1, -1),      (1, -1),   (0, 1),    (0, 4)),
}  # fmt: skip
CALLS = {
    #             laws applied  views taken  messages encoded
    "connect":    ((0, 0),      (0, 0),      (1, 0)),
    "join":       ((1, 0),      (1, 0),      (1, 0)),
    "heartbeat":  ((1, 0),      (0, 0),      (1, 0)),
    "death":      ((0, 2),      (1, -1),     (1, -1)),
    "join again": ((1, -1),     (1, -1),     (1, -1)),
}  # fmt: skip
# of the package's functions, for each node, at most
OWN_CALLS = {"connect": 40, "join": 71, "heartbeat": 28, "death": 6, "join again": 66}
COUNTED = ("frames_in", "frames_out", "writes", "timers", "wakeups")
CALLED = [f"{call.__module__}.{call.__qualname__}" for call in (apply, view, encode)]
SIZES = (60, 120, 240)  # in one turn of the loop each
A_FEW = 10  # calls that the event loop makes when it tidies up its timers
OURS, SIMULATES = "arendezvous.", "arendezvous.testing."


def simulate(nodes: int) -> dict[str, dict[str, int]]:
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        steps: dict[str, dict[str, int]] = runner.run(live(nodes, counted=True))
        return steps


class Calls:
    """Counts calls of functions while a block runs: by name those of the server, and all in all."""

    def __init__(self) -> None:
        self.total = 0
        self.by_name: Counter[str] = Counter()

    def __enter__(self) -> Calls:
        gc.disable()  # what others have asked to be called at a collection is not counted
        sys.setprofile(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        gc.enable()

    def _note(self, frame: FrameType, event: str, _: Any) -> None:
        if event not in ("call", "c_call"):
            return
        self.total += 1
        module = str(frame.f_globals.get("__name__", ""))
        if event == "call" and module.startswith(OURS):
            self.by_name[f"{module}.{frame.f_code.co_qualname}"] += 1


async def called(nodes: int) -> dict[str, Calls]:
    """What the server calls in each step of the life of `nodes` nodes."""
    async with simulated_server() as loop:
        simulated = SimulatedNodes(loop, nodes)
        hellos, joins, beats = simulated.hellos(), simulated.joins(nodes), simulated.heartbeats()
        again = simulated.joins(nodes - 1, after=(1, 0))
        calls = {}
        with Calls() as calls["connect"]:
            await simulated.connect(hellos)
        with Calls() as calls["join"]:
            await simulated.send(joins)
        with Calls() as calls["heartbeat"]:
            await simulated.send(beats)
        with Calls() as calls["death"]:
            await simulated.lose(nodes - 1)
        with Calls() as calls["join again"]:
            await simulated.send(again)
        return calls


def profile(nodes: int) -> dict[str, Calls]:
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        return runner.run(called(nodes))


def bend(values: list[int]) -> int:
    """How far three values, each for twice the size of the one before, are off a straight line."""
    once, twice, four_times = values
    return (four_times - twice) - 2 * (twice - once)


@pytest.mark.parametrize("nodes", SIZES)
def test_the_messages_writes_timers_and_wake_ups_of_every_step_are_those_of_the_table(nodes: int) -> None:
    steps = simulate(nodes)
    expected = {step: [each * nodes + once for each, once in costs] for step, costs in PER_STEP.items()}
    assert {step: [steps[step][what] for what in COUNTED] for step in STEPS} == expected


@pytest.mark.parametrize("nodes", SIZES)
def test_the_law_and_the_encoder_are_called_as_often_as_the_table_says(nodes: int) -> None:
    calls = profile(nodes)
    expected = {step: [each * nodes + once for each, once in costs] for step, costs in CALLS.items()}
    assert {step: [calls[step].by_name[name] for name in CALLED] for step in STEPS} == expected


def test_a_step_calls_no_more_of_our_functions_for_a_node_than_its_ceiling() -> None:
    profile(8)  # what is called only once, such as imports
    calls = profile(SIZES[-1])
    each = {
        step: sum(n for name, n in calls[step].by_name.items() if not name.startswith(SIMULATES)) / SIZES[-1]
        for step in STEPS
    }
    assert {step: called for step, called in each.items() if called > OWN_CALLS[step]} == {}


def test_all_the_work_of_every_step_grows_in_a_straight_line() -> None:
    profile(8)  # what is called only once, such as imports
    totals = [profile(nodes) for nodes in SIZES]
    bends = {step: bend([calls[step].total for calls in totals]) for step in STEPS}
    assert {step: off for step, off in bends.items() if abs(off) > A_FEW} == {}


def test_a_join_that_looks_at_every_node_bends_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Coordinator._apply

    def slow(self: Coordinator, run: Run, operation: Operation, speaker: str | None = None) -> None:
        for node in run.state.nodes:
            run.state.phase(node)
        plain(self, run, operation, speaker)

    monkeypatch.setattr(arendezvous.coordinator.coordinator.Coordinator, "_apply", slow)
    totals = [profile(nodes)["join"].total for nodes in SIZES]
    assert bend(totals) > SIZES[0] ** 2


def test_members_that_meet_again_over_many_turns_of_the_loop_hear_of_each_other_once_at_most() -> None:
    steps = simulate(1000)
    assert steps["join again"]["frames_out"] < 2 * 1000


def test_bytes_for_a_node_grow_with_the_digits_of_numbers_alone() -> None:
    few, many = simulate(60), simulate(240)
    for step in STEPS:
        for way in ("bytes_in", "bytes_out"):
            assert many[step][way] / 240 - few[step][way] / 60 < 8, (step, way)


KEPT = """
import asyncio, gc, sys
from benchmarks.simulated import SimulatedLoop, SimulatedNodes, simulated_server

async def kept(nodes):
    async with simulated_server() as loop:
        simulated = SimulatedNodes(loop, nodes)
        hellos, joins = simulated.hellos(), simulated.joins(nodes)
        gc.collect()
        before = sys.getallocatedblocks()
        await simulated.connect(hellos)
        await simulated.send(joins)
        gc.collect()
        return sys.getallocatedblocks() - before

with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
    print(*(runner.run(kept(int(nodes))) for nodes in sys.argv[1:]))
"""


def test_the_memory_kept_for_the_members_of_a_round_grows_in_a_straight_line() -> None:
    sizes = map(str, (8, *SIZES))  # the first for what is kept only once
    command = [sys.executable, "-c", KEPT, *sizes]  # in a process that has done nothing else
    root = Path(__file__).parents[2]  # where benchmarks are, which are not installed
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, cwd=root)
    _, *blocks = map(int, done.stdout.split())
    assert abs(bend(blocks)) <= A_FEW, blocks


def test_of_a_step_s_time_the_longest_turn_and_the_collector_are_parts() -> None:
    taken = answer({"nodes": 300, "counted": False})
    assert taken["memory"] >= 0
    assert list(taken["steps"]) == list(STEPS)
    for step, times in taken["steps"].items():
        assert 0 < times["turn"] <= times["cpu"], step
        assert 0 <= times["collector"] <= times["cpu"], step


def test_without_the_collector_a_simulation_takes_none_of_its_time() -> None:
    taken = answer({"nodes": 300, "counted": False, "collector": False})
    assert {step: times["collector"] for step, times in taken["steps"].items()} == dict.fromkeys(STEPS, 0.0)
    assert gc.isenabled()


def test_the_collector_s_time_is_taken_while_the_block_runs() -> None:
    with Collector() as collector:
        gc.collect()
    during = collector.seconds
    gc.collect()
    assert 0 < during == collector.seconds


def test_an_empty_difference_of_counts_is_nothing() -> None:
    counts = TrafficCounts(1, 2, 3, 4, 5, 6)
    assert set(msgspec.structs.astuple(counts - counts)) == {0}


HEAVY = ("aiohttp", "jaxlib", "matplotlib", "prometheus_client", "rich", "torch", "typer", "uvloop")


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        (
            "import arendezvous",
            (*HEAVY, "anyio", "asyncio", "inspect", "logging", "msgspec", "socket", "ssl"),
        ),
        ("from arendezvous import open_rendezvous", (*HEAVY, "arendezvous.server", "importlib.metadata")),
        (
            "from arendezvous import open_rendezvous as o; o('tcp://h', run_id='j', nnodes=1, is_host=False)",
            (*HEAVY, "arendezvous.server", "importlib.metadata"),
        ),
        ("from arendezvous import serve", HEAVY),
        ("import arendezvous.backends.tcp.embedded", HEAVY),
        ("import arendezvous.sync", HEAVY),
    ],
)
def test_imports_load_only_what_they_need(statement: str, unwanted: tuple[str, ...]) -> None:
    code = f"import sys; {statement}; print(*(name for name in {unwanted} if name in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.split() == []

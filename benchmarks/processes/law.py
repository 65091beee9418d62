"""Measures the law alone: what applying one operation takes in a run of many nodes, or in one that they left.

What follows every operation is asked, too: when the law is to be woken next.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Final

from arendezvous.law.machine import apply, next_wake
from arendezvous.law.operations import Drain, Join, KeepAlive, Leave, Operation, Tick
from arendezvous.law.state import NodeDesc, RendezvousState, RunSettings
from benchmarks.processes.child import Answer, serve_requests

OPERATIONS: Final = 100_000  # of each kind, over as many fresh runs as that takes
MOST_RUNS: Final = 20
EXPIRIES: Final = 1_000
FEW: Final = 500  # rounds of one or two nodes in a run that many have left
NEVER: Final = 1e9

Seconds = dict[str, float]


def timed(count: int, work: Callable[[], None]) -> float:
    """Does `work`, which is `count` operations; returns the processor's seconds of one."""
    began = time.process_time()
    work()
    return (time.process_time() - began) / count


def apply_all(state: RendezvousState, operations: Iterable[Operation], now: float) -> None:
    """Applies one operation after another, each followed by what its owner asks of the law."""
    for operation in operations:
        apply(state, operation, now)
        next_wake(state)


def once(nodes: int) -> Seconds:
    """Does every kind of operation in one run of `nodes` nodes; returns the seconds of one of each."""
    settings = RunSettings(1, nodes, NEVER, 5.0, 3, 1.0)
    joins = [
        Join(NodeDesc(f"node{i}", addr=f"10.{i >> 16}.{i >> 8 & 255}.{i & 255}"), settings)
        for i in range(nodes)
    ]
    state, seconds = RendezvousState(settings), {}
    seconds["join"] = timed(nodes, lambda: apply_all(state, joins, 0.0))
    assert state.complete, "a full round completes"
    beats = [KeepAlive(join.node) for join in joins]
    seconds["heartbeat"] = timed(nodes, lambda: apply_all(state, beats, 1.0))
    again = [Join(join.desc, join.settings, (1, 0)) for join in joins]
    seconds["join again"] = timed(nodes, lambda: apply_all(state, again, 2.0))
    assert (state.round, state.complete) == (1, True), "all meet again"
    apply_all(state, beats[EXPIRIES:], 3.0)
    seconds["expiry"] = timed(min(nodes, EXPIRIES), lambda: apply_all(state, [Tick()], 17.0))
    assert len(state.nodes) == max(nodes - EXPIRIES, 0), "the silent ones expire"
    apply_all(state, [KeepAlive(node) for node in state.nodes], 17.0)
    apply_all(state, [Join(join.desc, join.settings) for join in joins[:EXPIRIES]], 17.0)
    drains = [Drain(node, 1.0) for node in state.participants]
    seconds["drain"] = timed(max(len(drains), 1), lambda: apply_all(state, [*drains, Tick()], 18.0))
    apply_all(state, [Tick()], 19.0)
    for node in list(state.nodes):
        apply(state, Leave(node), 20.0)
    seconds["join, after many have left"] = timed(2 * FEW, lambda: meet_in_few(state))
    return seconds


def meet_in_few(state: RendezvousState) -> None:
    """Completes rounds of one or two nodes in a run that many others have left."""
    settings = RunSettings(1, 2, 0.0)
    nodes = [NodeDesc("a"), NodeDesc("b")]
    for number in range(FEW):
        for desc in nodes:
            apply(state, Join(desc, settings, (1, state.round)), 21.0)
        if number % 2:
            apply(state, Drain("b", 1.0), 21.0)
            apply(state, Leave("b"), 21.0)


def answer(request: Answer) -> Answer:
    """Returns the mean seconds of each kind of operation, over enough runs to be worth reading."""
    nodes = request["nodes"]
    runs = [once(nodes) for _ in range(max(1, min(MOST_RUNS, OPERATIONS // nodes)))]
    return {kind: sum(run[kind] for run in runs) / len(runs) for kind in runs[0]}


if __name__ == "__main__":
    serve_requests(answer)

"""How fast the law is at 1 k, 10 k and 100 k nodes: operations a second, which must not fall with the size.

Run as ``python benchmarks/bench_law.py [NODES ...]``. Every row is one run of N nodes; each cell is the rate
of one kind of operation over all of them. The garbage collector is paused: its passes grow with the heap.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Iterable

from arendezvous.law.machine import apply, next_wake
from arendezvous.law.operations import Drain, Join, KeepAlive, Leave, Operation, Tick
from arendezvous.law.state import NodeDesc, RendezvousState, RunSettings

SIZES = (1_000, 10_000, 100_000)
OPERATIONS = 100_000  # at least so many of each kind, over as many fresh runs as that takes
EXPIRIES = 1_000
FEW = 2_000  # rounds of two nodes in a run that a crowd has left
NEVER = 1e9

Rates = dict[str, float]


def rate(count: int, work: Callable[[], None]) -> float:
    """Does `work`, which is `count` operations, and returns how many a second that is."""
    began = time.perf_counter()
    work()
    return count / (time.perf_counter() - began)


def apply_all(state: RendezvousState, operations: Iterable[Operation], now: float) -> None:
    """Applies one operation after another, each followed by what its owner asks of the law."""
    for operation in operations:
        apply(state, operation, now)
        next_wake(state)


def met(nodes: int) -> tuple[RendezvousState, list[Join]]:
    """A run, and the joins that complete its first round."""
    settings = RunSettings(1, nodes, NEVER, 5.0, 3, 1.0)
    joins = [
        Join(NodeDesc(f"node{i}", addr=f"10.{i >> 16}.{i >> 8 & 255}.{i & 255}"), settings)
        for i in range(nodes)
    ]
    return RendezvousState(settings), joins


def once(nodes: int) -> Rates:
    """All the kinds of work on one run of `nodes` nodes."""
    rates: Rates = {}
    state, joins = met(nodes)
    rates["join"] = rate(nodes, lambda: apply_all(state, joins, 0.0))
    assert state.complete, "a full round completes"
    beats = [KeepAlive(join.node) for join in joins]
    rates["heartbeat"] = rate(nodes, lambda: apply_all(state, beats, 1.0))
    again = [Join(join.desc, join.settings, (1, 0)) for join in joins]
    rates["join again"] = rate(nodes, lambda: apply_all(state, again, 2.0))
    assert (state.round, state.complete) == (1, True), "all have met again"
    apply_all(state, beats[EXPIRIES:], 3.0)
    rates["expiry"] = rate(min(nodes, EXPIRIES), lambda: apply_all(state, [Tick()], 17.0))
    left = [KeepAlive(node) for node in state.nodes]
    assert len(left) == max(nodes - EXPIRIES, 0), "the silent ones are gone"
    if left:
        apply_all(state, left, 17.0)
    newcomers = [Join(join.desc, join.settings) for join in joins[:EXPIRIES]]
    apply_all(state, newcomers, 17.0)
    members = list(state.participants)
    drains = [Drain(node, 1.0) for node in members]
    ends: list[Operation] = [Tick()]
    rates["drain"] = rate(max(len(members), 1), lambda: apply_all(state, [*drains, *ends], 18.0))
    apply_all(state, [Tick()], 19.0)
    for node in list(state.nodes):
        apply(state, Leave(node), 20.0)
    rates["small run later"] = few_after_a_crowd(state)
    return rates


def few_after_a_crowd(state: RendezvousState) -> float:
    """Rounds of one or two nodes in a run that the others have left."""
    settings = RunSettings(1, 2, 0.0)
    nodes = [NodeDesc("a"), NodeDesc("b")]

    def rounds() -> None:
        for number in range(FEW):
            for desc in nodes:
                apply(state, Join(desc, settings, (1, state.round)), 21.0)
            if number % 2:
                apply(state, Drain("b", 1.0), 21.0)
                apply(state, Leave("b"), 21.0)

    return rate(2 * FEW, rounds)


def average(nodes: int) -> Rates:
    """Rates over enough runs of `nodes` nodes to be worth reading: the harmonic mean of each."""
    runs = [once(nodes) for _ in range(max(1, OPERATIONS // nodes))]
    return {kind: len(runs) / sum(1 / run[kind] for run in runs) for kind in runs[0]}


def main(sizes: Iterable[int]) -> None:
    """Prints the table."""
    gc.disable()
    once(100)  # warms up
    header = False
    for nodes in sizes:
        rates = average(nodes)
        gc.collect()
        if not header:
            print("operations a second")
            print(f"{'nodes':>8}", *(f"{kind:>16}" for kind in rates))
            header = True
        print(f"{nodes:>8}", *(f"{value:>16,.0f}" for value in rates.values()))


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:]] or SIZES)

"""Rendezvous: from "everybody calls" to "the last one has its rank", at several sizes; and after a death."""

from __future__ import annotations

from contextlib import ExitStack
from itertools import product
from typing import Final

from arendezvous.bench.contenders import members, server, start
from arendezvous.bench.plan import Plan, Tell
from arendezvous.bench.process import Process, SkippedError
from arendezvous.bench.report import Report
from arendezvous.bench.turns import Turns

GRACES: Final = (1.0, 0.0)
STOCK_FAILURE_LIMIT: Final = 60.0
FEW: Final = 256  # nodes in all runs of one turn together, of a contender that is quick
LEAST_RUNS: Final = 3  # as the machine's speed drifts while one contender has its turn
MOST_RUNS: Final = 16
WARM_THEMSELVES: Final = ("c10d", "torchft", "jax")


def measure_rendezvous(plan: Plan, report: Report, tell: Tell) -> None:
    """Lets the contenders take turns at each size; one that fails, or takes too long, is out."""
    with ExitStack() as resources:
        running = _start(plan, report, resources)
        for nodes in plan.nodes:
            turns = Turns(report, "rendezvous", nodes, "meet")
            for turn, name in product(range(plan.repeat), list(running)):
                tell(f"rendezvous of {nodes}, turn {turn + 1} of {plan.repeat}: {name}")
                if name in running and not _take_turn(turns, name, running[name], plan.limit, nodes):
                    del running[name]
            turns.over()


def _take_turn(turns: Turns, name: str, process: Process, limit: float, nodes: int) -> bool:
    """Has a contender do the runs of one turn; returns whether it did.

    A process that has rested while others had their turns finds cold caches, and perhaps its memory put
    aside: it does one run that does not count. The peers, whose processes are new each time, see to that
    themselves.
    """
    if name not in WARM_THEMSELVES and not turns.warm_up(name, process, limit, do="meet"):
        return False
    return all(turns.take(name, process, limit, do="meet") for _ in range(_runs(name, nodes)))


def _runs(name: str, nodes: int) -> int:
    """How many runs a turn has: of few nodes one is over in a millisecond, and with c10d in seconds."""
    return 1 if name == "c10d" else max(LEAST_RUNS, min(MOST_RUNS, FEW // nodes))


def _start(plan: Plan, report: Report, resources: ExitStack) -> dict[str, Process]:
    running: dict[str, Process] = {}
    for name in plan.contenders:
        try:
            running[name] = start(name, resources, plan)
            report.versions.update(running[name].versions)
            if name != "c10d":  # which takes a second and has nothing to warm up
                running[name].ask(plan.limit, do="meet", nodes=2)
        except SkippedError as reason:
            running.pop(name, None)
            report.skipped[name] = str(reason)
    return running


def measure_failure(plan: Plan, report: Report, tell: Tell) -> None:
    """Kills one of the members of a round, and times until the others know, and have met again."""
    nodes = plan.failure_nodes
    with ExitStack() as resources:
        running: dict[str, tuple[Process, dict[str, float]]] = {}
        if "tcp" in plan.contenders:
            url = server(resources, plan, "asyncio").hello["tcp"]
            ours = members(resources, plan, url, "asyncio")
            running.update({f"tcp, grace {grace:g} s": (ours, {"grace": grace}) for grace in GRACES})
        if "c10d" in plan.contenders:
            try:
                running["c10d"] = start("c10d", resources, plan), {}
            except SkippedError as reason:
                report.skipped["c10d"] = str(reason)
        turns, limit = Turns(report, "failure", nodes, "again"), max(plan.limit, STOCK_FAILURE_LIMIT)
        for turn, name in product(range(plan.repeat), list(running)):
            tell(f"a death among {nodes}, turn {turn + 1} of {plan.repeat}: {name}")
            if name in running:
                process, options = running[name]
                if not turns.take(name, process, limit, do="lose", **options):
                    del running[name]
        turns.over()

"""Measures how it grows: what one node costs the server as nodes become more, and with which exponent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import pairwise, product
from typing import Final

from benchmarks.contenders import members, server
from benchmarks.plan import Plan, Tell
from benchmarks.process import Process, SkippedError
from benchmarks.processes.child import cpu_seconds
from benchmarks.report import Report, Series

REAL: Final = "real"
STEPS: Final = ("connect", "join", "join again", "leave")
COUNTS: Final = {
    "frames_in": "messages",
    "frames_out": "messages",
    "bytes_in": "B",
    "bytes_out": "B",
    "reads": "reads",
    "writes": "writes",
}
TIMES: Final = {"cpu": "s", "collector": "s", "turn": "s"}
LONG_LIMIT: Final = 3600.0


def measure_growth(plan: Plan, report: Report, tell: Tell) -> None:
    """Looks at the real server, then at the simulation. All values are for one node."""
    _measure_real(plan, report, tell)
    _measure_simulated(plan, report, tell)


def _measure_real(plan: Plan, report: Report, tell: Tell) -> None:
    """A life of connecting, meeting twice and leaving: counts, and the processor's time without counting."""
    with ExitStack() as resources:
        counting = resources.enter_context(Process("server", "--count", verbose=plan.verbose))
        plain = server(resources, plan, "asyncio")
        silent = {"keep_alive_interval": LONG_LIMIT}  # so that no heartbeat is counted as part of a step
        counted = members(resources, plan, counting.hello["tcp"], "asyncio", silent)
        timed = members(resources, plan, plain.hello["tcp"], "asyncio")
        timed.ask(plan.limit, do="meet", nodes=2)
        for nodes in plan.grown:
            tell(f"growth: the real server with {nodes}")
            try:
                request = {"do": "meet", "nodes": nodes, "counter": counting.hello["counter"]}
                counts = counted.ask(plan.limit, **request)["counts"]
                lives = max(1, max(plan.grown) // nodes)  # so that the processor's clock has enough to count
                cpu = cpu_seconds(plain.pid)
                for _ in range(lives):
                    timed.ask(plan.limit, do="meet", nodes=nodes)
                cpu = cpu_seconds(plain.pid) - cpu
            except SkippedError as reason:
                report.miss("growth", f"{REAL} life", "cpu", nodes, str(reason))
                return
            for step, (before, after) in zip(STEPS, pairwise(counts), strict=True):
                for metric, unit in COUNTS.items():
                    value = (after[metric] - before[metric]) / nodes
                    report.add("growth", f"{REAL} {step}", metric, unit, [value], nodes)
            report.add("growth", f"{REAL} life", "cpu", "s", [cpu / lives / nodes], nodes)


def _measure_simulated(plan: Plan, report: Report, tell: Tell) -> None:
    for nodes, counted in product(plan.simulated, (True, False)):
        tell(f"growth: {nodes} nodes simulated, {'counted' if counted else 'timed'}")
        try:
            with Process("simulation", verbose=plan.verbose) as simulating:
                simulating.ask(LONG_LIMIT, nodes=100, counted=counted)  # so that all is loaded
                answer = simulating.ask(LONG_LIMIT, nodes=nodes, counted=counted)
        except SkippedError as reason:
            report.miss("growth", "simulated join", "cpu", nodes, str(reason))
            return
        metrics = {**COUNTS, "timers": "timers", "wakeups": "wake-ups"} if counted else TIMES
        for (step, taken), metric in product(answer["steps"].items(), metrics):
            report.add("growth", f"simulated {step}", metric, metrics[metric], [taken[metric] / nodes], nodes)
        if not counted:
            report.add("growth", "simulated, all", "memory", "B", [answer["memory"] / nodes], nodes)


def measure_law(plan: Plan, report: Report, tell: Tell) -> None:
    """Looks at the law alone, at the sizes of the simulation. All values are for one operation."""
    with Process("law", verbose=plan.verbose) as law:
        law.ask(LONG_LIMIT, nodes=100)  # so that all is loaded
        for nodes in plan.simulated:
            tell(f"the law with {nodes} nodes")
            for operation, seconds in law.ask(LONG_LIMIT, nodes=nodes).items():
                report.add("law", operation, "cpu", "s", [seconds], nodes)


def exponent(points: Sequence[tuple[float, float]]) -> float | None:
    """Returns the slope of a straight line through the points on log-log paper, by least squares.

    The cost for one node grows as N to the power of this; 0 if it is the same for all N. None for fewer than
    two points, or a value that is not positive.
    """
    if len(points) < 2 or any(x <= 0 or y <= 0 for x, y in points):
        return None
    logs = [(math.log(x), math.log(y)) for x, y in points]
    mean_x = sum(x for x, _ in logs) / len(logs)
    mean_y = sum(y for _, y in logs) / len(logs)
    spread = sum((x - mean_x) ** 2 for x, _ in logs)
    return sum((x - mean_x) * (y - mean_y) for x, y in logs) / spread if spread else None


def fits(report: Report, part: str = "growth") -> list[tuple[str, str, list[Series], float | None]]:
    """Fits, contender by contender: metric, its series by size, and the exponent of the cost for one node."""
    groups: dict[tuple[str, str], list[Series]] = {}
    for one in report.of(part):
        if one.median is not None:
            groups.setdefault((one.contender, one.metric), []).append(one)
    found = []
    for (contender, metric), series in groups.items():
        series.sort(key=lambda one: one.nodes)
        points = [(float(one.nodes), one.median or 0.0) for one in series]
        found.append((contender, metric, series, exponent(points)))
    order = list(dict.fromkeys(contender for contender, _ in groups))
    return sorted(found, key=lambda fit: order.index(fit[0]))

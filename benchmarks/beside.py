"""Compares two checkouts: contender by contender, both take turns run by run, A B B A.

The processes of both run the programs of this checkout, and import what each is to measure.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Final

import msgspec

from benchmarks.parts import LEAST_RUNS, Turn, runs_of, started_or_skipped, take_turns, time_imports
from benchmarks.plan import BESIDE, Plan, Tell
from benchmarks.process import PACKAGE, Process
from benchmarks.report import Report, Series, ratios

ALLOWED: Final = 1.1  # times what it takes in the other checkout
CONFIDENCE: Final = 0.95
STORE: Final = {
    "get": ("get", 1), "get, 64 in flight": ("get", 64), "set": ("set", 1), "set, 64 in flight": ("set", 64),
}  # fmt: skip
OUR_IMPORTS: Final = ("import arendezvous", "and open_rendezvous", "and serve", "arendezvous --help")


def measure_beside(plan: Plan, report: Report, tell: Tell) -> None:
    """Times rendezvous, connecting, and the stores of rounds, over every backend, and imports."""
    for name in plan.contenders:
        with ExitStack() as resources:
            pair = _start_pair(name, plan, report, resources)
            for nodes in plan.nodes if "rendezvous" in plan.parts else ():
                often = msgspec.structs.replace(plan, repeat=plan.repeat * runs_of(name, nodes))
                request = {"do": "meet", "nodes": nodes}
                turns = {each: Turn(process, request) for each, process in pair.items()}
                take_turns(turns, often, report, tell, part="rendezvous", main="meet", nodes=nodes)
            if "store" in plan.parts:
                often = msgspec.structs.replace(plan, repeat=plan.repeat * LEAST_RUNS)
                request = {"do": "store", "kinds": STORE, "operations": plan.operations // 10, "port": 0}
                turns = {each: Turn(process, request) for each, process in pair.items()}
                take_turns(turns, often, report, tell, part="store", main="get")
    if "imports" in plan.parts:
        often = msgspec.structs.replace(plan, repeat=plan.repeat * LEAST_RUNS)
        packages = {"": plan.package or str(PACKAGE), BESIDE: plan.beside}
        time_imports(packages, OUR_IMPORTS, often, report, tell)


def _start_pair(name: str, plan: Plan, report: Report, resources: ExitStack) -> dict[str, Process]:
    pair = {}
    for each, package in ((name, plan.package), (f"{name}{BESIDE}", plan.beside)):
        measured = msgspec.structs.replace(plan, package=package)
        process = started_or_skipped(name, measured, report, resources, as_=each)
        if process is not None:
            pair[each] = process
    return pair


class Figure(msgspec.Struct, frozen=True):
    """Holds what was measured of one thing in both checkouts.

    Attributes:
        name: The contender, and the metric.
        nodes: How many nodes take part; 0 where there are none.
        here: The values of this checkout; None if it has none.
        beside: What there is of the other one.
        ratio: The median of the ratios of the single runs, here / beside; None if they cannot be compared.
        low: Its interval of confidence begins here.
        high: And ends here.
    """

    name: str
    nodes: int
    here: Series | None
    beside: Series
    ratio: float | None = None
    low: float = 0.0
    high: float = 0.0

    def __str__(self) -> str:
        return f"{self.name} of {self.nodes}" if self.nodes else self.name

    @property
    def is_worse(self) -> bool:
        """Whether it surely takes more than a tenth longer here, or is not done here at all."""
        if self.ratio is None:
            return self.here is None and bool(self.beside.values)
        return self.low > ALLOWED

    @property
    def is_undecided(self) -> bool:
        """Whether it seems to take more than a tenth longer here, but may not."""
        return self.ratio is not None and self.low <= ALLOWED < self.ratio


def figures(report: Report) -> list[Figure]:
    """Lists all that was measured in the other checkout, in the order of the report."""
    found = []
    for beside in report.series:
        contender = beside.contender.removesuffix(BESIDE)
        if contender == beside.contender:
            continue
        here = report.find(beside.part, contender, beside.metric, beside.nodes)
        name = contender if beside.part == "imports" else f"{contender}: {beside.metric}"
        figure = Figure(name, beside.nodes, here, beside)
        times = ratios(here, beside)
        if times:
            low, high = median_interval(times)
            figure = msgspec.structs.replace(figure, ratio=statistics.median(times), low=low, high=high)
        found.append(figure)
    return found


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Returns where the median that values were drawn from is, with a confidence of 95 %.

    It is between two of the values, whatever they are distributed like: the number of those below the median
    is binomial. Of fewer than six values it is their whole range, which means less.
    """
    ordered, count = sorted(values), len(values)
    skipped, outside = 0, 2.0 * 0.5**count  # of the values at either end; how likely the median is beyond
    while outside <= 1 - CONFIDENCE:
        skipped += 1
        outside += 2.0 * math.comb(count, skipped) * 0.5**count
    least = max(0, skipped - 1)
    return ordered[least], ordered[-1 - least]

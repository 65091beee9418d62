"""Plans and reports for the tests of the benchmarks."""

from __future__ import annotations

from benchmarks.plan import Plan
from benchmarks.report import Report, Series, new_report

TINY = Plan(
    contenders=("tcp", "memory", "floor"),
    nodes=(2, 3),
    repeat=2,
    failure_nodes=3,
    idle_nodes=3,
    idle_seconds=0.1,
    idle_interval=0.1,
    operations=64,
    grown=(2, 4),
    simulated=(4, 8),
    limit=120.0,
)


def series(contender: str, values: tuple[float, ...], nodes: int = 2, metric: str = "meet") -> Series:
    report = Report(series=[])
    report.add("rendezvous", contender, metric, "s", values, nodes)
    return report.series[0]


def a_report() -> Report:
    report = new_report({"repeat": 3})
    report.series += [series("tcp", (0.001, 0.002, 0.003)), series("c10d", (1.0, 1.0, 1.5))]
    report.miss("rendezvous", "jax", "meet", 2, "not done in 60 s")
    report.skipped["etcd"] = "there is no etcd"
    return report


def nothing(_: str) -> None:
    """Tells nobody."""

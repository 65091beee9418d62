"""Upkeep: what members that only keep their places cost the server; and how quickly things are imported."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import ExitStack
from typing import Final

from arendezvous.bench.contenders import members, server
from arendezvous.bench.plan import Plan, Tell
from arendezvous.bench.process import SkippedError
from arendezvous.bench.report import Report

UNITS: Final = {"cpu": "cores", "memory": "B", "member_cpu": "cores", "member_memory": "B"}

_TIMED = "import time; begin = time.perf_counter(); {}; print(time.perf_counter() - begin)"
IMPORTS: Final = {
    "import arendezvous": _TIMED.format("import arendezvous"),
    "and open_rendezvous": _TIMED.format("from arendezvous import open_rendezvous"),
    "and serve": _TIMED.format("from arendezvous import serve"),
    "torch's rendezvous": _TIMED.format("import torch.distributed.elastic.rendezvous"),
}


def measure_upkeep(plan: Plan, report: Report, tell: Tell) -> None:
    """Has members idle, each with a connection of its own; the server has a process of its own."""
    nodes, seconds = plan.idle_nodes, plan.idle_seconds
    with ExitStack() as resources:
        serving = server(resources, plan, "asyncio")
        idlers = members(resources, plan, serving.hello["tcp"], "asyncio")
        tell(f"{nodes} idle members for {seconds:g} s")
        request = {"nodes": nodes, "seconds": seconds, "interval": plan.idle_interval, "server": serving.pid}
        try:
            idlers.ask(plan.limit, do="meet", nodes=8)  # so that what is loaded once is loaded
            limit = plan.limit + seconds + plan.idle_interval
            answer = idlers.ask(limit, do="idle", **request)
        except SkippedError as reason:
            report.miss("upkeep", "tcp", "cpu", nodes, str(reason))
            return
        for metric, unit in UNITS.items():
            report.add("upkeep", "tcp", metric, unit, [answer[metric]], nodes)


def measure_imports(plan: Plan, report: Report, tell: Tell) -> None:
    """Imports, each in a fresh process, from a warm file cache; and the time of a whole ``--help``."""
    values: dict[str, list[float]] = {}
    for turn in range(plan.repeat):
        tell(f"imports, turn {turn + 1} of {plan.repeat}")
        for name, script in IMPORTS.items():
            done = _python("-c", script)
            if done.returncode == 0:
                values.setdefault(name, []).append(float(done.stdout))
        for name, arguments in {
            "arendezvous --help": ("-m", "arendezvous.cli", "--help"),
            "python -c pass": ("-c", "pass"),
        }.items():
            begin = time.perf_counter()
            if _python(*arguments).returncode == 0:
                values.setdefault(name, []).append(time.perf_counter() - begin)
    for name, seconds in values.items():
        report.add("imports", name, "seconds", "s", seconds)


def _python(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - as above

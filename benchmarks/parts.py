"""Measures, group by group: rendezvous, a death, upkeep, the store, imports."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from benchmarks.contenders import members, server, start
from benchmarks.growth import measure_growth, measure_law
from benchmarks.plan import Plan, Tell
from benchmarks.process import PACKAGE, Process, SkippedError
from benchmarks.report import Report

GRACES: Final = (1.0, 0.0)
STOCK_FAILURE_LIMIT: Final = 60.0
FEW: Final = 256  # nodes in all runs of one turn together, of a contender that is quick
LEAST_RUNS: Final = 3  # as the machine's speed drifts while one contender has its turn
MOST_RUNS: Final = 16
ONE_RUN: Final = ("c10d", "etcd-v2")  # they take seconds
WARM_THEMSELVES: Final = ("c10d", "etcd-v2", "torchft", "jax")
UPKEEP: Final = {"cpu": "cores", "memory": "B", "member_cpu": "cores", "member_memory": "B"}
STORE: Final = {"round trip": ("get", 1), "64 in flight": ("get", 64)}

_TIMED = "import time; begin = time.perf_counter(); {}; print(time.perf_counter() - begin)"
IMPORTS: Final = {  # what is run, and whether it prints the seconds itself
    "import arendezvous": (("-c", _TIMED.format("import arendezvous")), True),
    "and open_rendezvous": (("-c", _TIMED.format("from arendezvous import open_rendezvous")), True),
    "and serve": (("-c", _TIMED.format("from arendezvous import serve")), True),
    "arendezvous --help": (("-c", "from arendezvous.cli import main; main()", "--help"), False),
    "torch's rendezvous": (("-c", _TIMED.format("import torch.distributed.elastic.rendezvous")), True),
    "python -c pass": (("-c", "pass"), False),
}


class Turn(NamedTuple):
    """Says what a contender does when it has its turn.

    Attributes:
        process: Whom to ask.
        request: What one run is.
        runs: How many it does.
        warm_up: What it does before these, and does not count; None: nothing. A process that has rested while
            others had their turns finds cold caches, and perhaps its memory put aside.
    """

    process: Process
    request: Mapping[str, Any]
    runs: int = 1
    warm_up: Mapping[str, Any] | None = None


def take_turns(
    turns: dict[str, Turn], plan: Plan, report: Report, tell: Tell, *, part: str, main: str, nodes: int = 0
) -> None:
    """Lets contenders take turns, A B B A, and reports all seconds in their answers.

    Args:
        turns: What each does; one that fails, or takes too long, is removed.
        plan: How many turns, and how long a run may take.
        report: Gets the results.
        tell: Is told what is being measured.
        part: The group of measurements.
        main: The metric under which it is reported why a contender is out.
        nodes: How many nodes take part; 0 where there are none.
    """
    values: dict[tuple[str, str], list[float]] = {}
    for number in range(plan.repeat):
        for name in list(turns)[:: -1 if number % 2 else 1]:
            process, request, runs, warm_up = turns[name]
            tell(f"{part}{f' of {nodes}' if nodes else ''}, turn {number + 1} of {plan.repeat}: {name}")
            try:
                if warm_up is not None:
                    process.ask(plan.limit, **warm_up)
                answers = [process.ask(plan.limit, **request) for _ in range(runs)]
            except SkippedError as reason:
                report.miss(part, name, main, nodes, str(reason))
                del turns[name]
                continue
            for metric, value in (pair for answer in answers for pair in answer.items()):
                if isinstance(value, float):
                    values.setdefault((name, metric), []).append(value)
    for (name, metric), seconds in values.items():
        if name in turns:
            report.add(part, name, metric, "s", seconds, nodes)


def measure_rendezvous(plan: Plan, report: Report, tell: Tell) -> None:
    """Times rendezvous from "everybody calls" to "the last one has its rank", at several sizes."""
    with ExitStack() as resources:
        started = {name: started_or_skipped(name, plan, report, resources) for name in plan.contenders}
        running = {name: process for name, process in started.items() if process is not None}
        for nodes in plan.nodes:
            request = {"do": "meet", "nodes": nodes}
            turns = {}
            for name, process in running.items():
                warm_up = None if name in WARM_THEMSELVES else request
                turns[name] = Turn(process, request, runs_of(name, nodes), warm_up)
            take_turns(turns, plan, report, tell, part="rendezvous", main="meet", nodes=nodes)
            running = {name: turn.process for name, turn in turns.items()}


def runs_of(name: str, nodes: int) -> int:
    """Tells how many runs a turn has: one of few nodes takes a millisecond, and with stock seconds."""
    return 1 if name in ONE_RUN else max(LEAST_RUNS, min(MOST_RUNS, FEW // nodes))


def started_or_skipped(
    name: str, plan: Plan, report: Report, resources: ExitStack, as_: str = ""
) -> Process | None:
    """Starts a contender's processes, and warms them up; None, and a note in the report, if it cannot.

    Args:
        name: The contender.
        plan: What is to be measured.
        report: Gets the versions of what it runs, or the reason why it cannot.
        resources: Ends the processes.
        as_: What the report calls it; empty: its name.
    """
    try:
        process = start(name, resources, plan)
        report.versions.update(process.versions)
        if name not in ONE_RUN:
            process.ask(plan.limit, do="meet", nodes=2)
    except SkippedError as reason:
        report.skipped[as_ or name] = str(reason)
        return None
    return process


def measure_failure(plan: Plan, report: Report, tell: Tell) -> None:
    """Kills one of the members of a round, and times until the others know, and have met again."""
    nodes = plan.failure_nodes
    request = {"do": "lose", "nodes": nodes}
    turns: dict[str, Turn] = {}
    with ExitStack() as resources:
        if "tcp" in plan.contenders:
            url = server(resources, plan, "asyncio").hello["tcp"]
            ours = members(resources, plan, url, "asyncio")
            for grace in GRACES:
                turns[f"tcp, grace {grace:g} s"] = Turn(ours, {**request, "grace": grace})
        stock = started_or_skipped("c10d", plan, report, resources) if "c10d" in plan.contenders else None
        if stock is not None:
            turns["c10d"] = Turn(stock, request)
        patient = msgspec.structs.replace(plan, limit=max(plan.limit, STOCK_FAILURE_LIMIT))
        take_turns(turns, patient, report, tell, part="failure", main="again", nodes=nodes)


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
        for metric, unit in UPKEEP.items():
            report.add("upkeep", "tcp", metric, unit, [answer[metric]], nodes)


def measure_store(plan: Plan, report: Report, tell: Tell) -> None:
    """Times a ``get`` of 32 bytes, of {torch's client, ours} on {torch's server, ours}.

    It is two requests for torch's client, and one for ours.
    """
    with ExitStack() as resources:
        turns = {}
        for name, process, port in _start_clients(plan, report, resources):
            request = {"do": "store", "kinds": STORE, "operations": plan.operations, "port": port}
            turns[name] = Turn(process, request, 1, {**request, "operations": plan.operations // 10})
        take_turns(turns, plan, report, tell, part="store", main=next(iter(STORE)))


def _start_clients(plan: Plan, report: Report, resources: ExitStack) -> list[tuple[str, Process, int]]:
    """Starts both clients at both servers; returns what each pair is called, its client, and the port."""
    clients: list[tuple[str, Process, int]] = []
    for serving, calling in product(("stock", "ours"), ("stock", "ours")):
        name = f"{calling} client, {serving} server"
        try:
            if serving == "ours":
                port = server(resources, plan, "asyncio").hello["port"]
            else:
                stock = Process("peer_store", verbose=plan.verbose)
                port = resources.enter_context(stock).hello["port"]
            if calling == "ours":
                client = members(resources, plan, f"tcp://127.0.0.1:{port}", "asyncio")
            else:
                client = resources.enter_context(Process("peer_store", port, verbose=plan.verbose))
        except SkippedError as reason:
            report.skipped[f"store: {name}"] = str(reason)
        else:
            clients.append((name, client, port))
    return clients


def measure_imports(plan: Plan, report: Report, tell: Tell) -> None:
    """Times imports, each in a fresh process, from a warm file cache; and the whole of ``--help``."""
    time_imports({"": plan.package or str(PACKAGE)}, IMPORTS, plan, report, tell)


def time_imports(
    packages: Mapping[str, str], imports: Iterable[str], plan: Plan, report: Report, tell: Tell
) -> None:
    """Times some of `IMPORTS`, of one package after the other.

    Args:
        packages: The directories of the packages; the names are added to those of the imports.
        imports: Names of imports.
        plan: How many times.
        report: Gets the results.
        tell: Is told what is being measured.
    """
    values: dict[str, list[float]] = {}
    for turn, name, (whose, package) in product(range(plan.repeat), imports, packages.items()):
        tell(f"imports, turn {turn + 1} of {plan.repeat}")
        arguments, tells_seconds = IMPORTS[name]
        begin = time.perf_counter()
        done = _python(package, *arguments)
        seconds = time.perf_counter() - begin
        if done.returncode == 0:
            values.setdefault(f"{name}{whose}", []).append(float(done.stdout) if tells_seconds else seconds)
        else:
            *_, report.skipped[f"{name}{whose}"] = f"exit code {done.returncode}", *done.stderr.splitlines()
    for name, took in values.items():
        report.add("imports", name, "seconds", "s", took)


def _python(package: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(Path(package).parent), "PYTHONSAFEPATH": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


MEASURES: Final[Mapping[str, Callable[[Plan, Report, Tell], None]]] = {
    "rendezvous": measure_rendezvous,
    "failure": measure_failure,
    "upkeep": measure_upkeep,
    "store": measure_store,
    "imports": measure_imports,
    "growth": measure_growth,
    "law": measure_law,
}

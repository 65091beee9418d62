"""The store: round trip and throughput of {torch's client, ours} on {torch's server, ours}."""

from __future__ import annotations

from contextlib import ExitStack
from itertools import product
from typing import Final

from arendezvous.bench.plan import Plan, Tell
from arendezvous.bench.process import Process, SkippedError
from arendezvous.bench.report import Report

IN_FLIGHT: Final = {"round trip": 1, "64 in flight": 64}
WHOSE: Final = ("stock", "ours")


def measure_store(plan: Plan, report: Report, tell: Tell) -> None:
    """A ``get`` of 32 bytes, seconds for each; it is two requests for torch's client, and one for ours."""
    with ExitStack() as resources:
        clients = _start(plan, report, resources)
        values: dict[tuple[str, str], list[float]] = {}
        for turn, name, metric in product(range(plan.repeat + 1), list(clients), IN_FLIGHT):
            if name not in clients:
                continue
            tell(f"store, turn {turn} of {plan.repeat}: {name}")
            request = {"operations": plan.operations, "in_flight": IN_FLIGHT[metric]}
            try:
                seconds = clients[name].ask(plan.limit, **request)["seconds"]
            except SkippedError as reason:
                del clients[name]
                report.skipped[f"store: {name}"] = str(reason)
                continue
            if turn > 0:  # the first turn warms up
                values.setdefault((name, metric), []).append(seconds)
        for (name, metric), took in values.items():
            report.add("store", name, metric, "s", took)


def _start(plan: Plan, report: Report, resources: ExitStack) -> dict[str, Process]:
    clients: dict[str, Process] = {}
    for server, client in product(WHOSE, WHOSE):
        name = f"{client} client, {server} server"
        try:
            serving = Process("store_process", "serve", server, verbose=plan.verbose)
            port = resources.enter_context(serving).hello["port"]
            calling = Process("store_process", "call", client, port, verbose=plan.verbose)
            clients[name] = resources.enter_context(calling)
        except SkippedError as reason:
            report.skipped[f"store: {name}"] = str(reason)
    return clients

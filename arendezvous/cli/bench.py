"""``arendezvous bench``: ours beside the peers that are installed, in one run, as one table."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from arendezvous.cli.exits import ExitCode, code_of, fail
from arendezvous.errors import RendezvousError

if TYPE_CHECKING:
    from collections.abc import Callable

    from arendezvous.bench.plan import Plan, Tell
    from arendezvous.bench.report import Report


def bench(
    only: Annotated[
        list[str] | None,
        typer.Option(help="Only these parts or contenders; names with commas, or several times."),
    ] = None,
    nodes: Annotated[
        list[int] | None, typer.Option(min=2, help="Nodes of the rendezvous; may be given several times.")
    ] = None,
    repeat: Annotated[int | None, typer.Option(min=1, help="Runs of each; the default is 5.")] = None,
    limit: Annotated[
        float | None, typer.Option(min=0.1, help="Seconds that one run may take; the default is 60.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Small sizes and few runs: a minute or two.")
    ] = False,
    json: Annotated[Path | None, typer.Option(help="Write all values to this file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw time against nodes; .png, .svg or .pdf.")] = None,
    markdown: Annotated[
        list[Path] | None, typer.Option(help="Fill the tables into this page, between its markers.")
    ] = None,
    load: Annotated[
        Path | None, typer.Option(help="Measure nothing, but show what --json wrote earlier.")
    ] = None,
    peer_python: Annotated[
        str | None,
        typer.Option(help="A Python interpreter that has torchft and jaxlib; the default is this one."),
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show what the measured processes write to stderr.")
    ] = False,
) -> None:
    """Measure ours beside every peer that is installed, in one run, and print one table.

    Rendezvous over tcp, http, etcd and memory beside torch's c10d, torchft, JAX and a bare asyncio exchange;
    what a death takes; what idle members cost; the store; import times; how it grows. Contenders take
    turns. Takes about half an hour; use --quick for a first look.
    """
    from arendezvous.bench.plot import check_plot
    from arendezvous.bench.report import load as load_report
    from arendezvous.bench.report import save

    try:
        if plot is not None:
            check_plot(plot)
        plan = _plan(only, nodes, repeat, limit, peer_python, quick=quick, verbose=verbose)
        report = _measure(plan) if load is None else load_report(load)
        if json is not None:
            save(report, json)
        _show(report, plot, markdown or [])
    except RendezvousError as error:
        fail(error.message, code_of(error))
    except OSError as error:
        fail(f"{error.filename or 'a file'}: {error.strerror or error}")
    except KeyboardInterrupt:
        raise typer.Exit(ExitCode.INTERRUPTED) from None


def _plan(
    only: list[str] | None,
    nodes: list[int] | None,
    repeat: int | None,
    limit: float | None,
    peer_python: str | None,
    *,
    quick: bool,
    verbose: bool,
) -> Plan:
    import msgspec

    from arendezvous.bench.plan import QUICK, Plan, restrict

    given = {
        "nodes": tuple(nodes) if nodes else None,
        "repeat": repeat,
        "limit": limit,
        "peer_python": peer_python,
        "verbose": verbose or None,
    }
    plan = QUICK if quick else Plan()
    plan = msgspec.structs.replace(
        plan, **{name: value for name, value in given.items() if value is not None}
    )
    return restrict(plan, only or [])


def _measure(plan: Plan) -> Report:
    import signal

    import msgspec

    from arendezvous.bench.child import raise_open_files
    from arendezvous.bench.process import SkippedError
    from arendezvous.bench.report import new_report

    def stop(number: int, _: object) -> None:
        raise typer.Exit(128 + number)

    raise_open_files()
    before = signal.signal(signal.SIGTERM, stop)
    try:
        report = new_report(msgspec.to_builtins(plan))
        for part, measure in _parts():
            if part in plan.parts:
                try:
                    measure(plan, report, _tell)
                except SkippedError as reason:  # what is known is shown all the same
                    report.skipped[part] = str(reason)
        _tell("")
    finally:
        signal.signal(signal.SIGTERM, before)
    return report


def _parts() -> list[tuple[str, Callable[[Plan, Report, Tell], None]]]:
    from arendezvous.bench.growth import measure_growth
    from arendezvous.bench.meeting import measure_failure, measure_rendezvous
    from arendezvous.bench.storing import measure_store
    from arendezvous.bench.upkeep import measure_imports, measure_upkeep

    return [
        ("rendezvous", measure_rendezvous),
        ("failure", measure_failure),
        ("upkeep", measure_upkeep),
        ("store", measure_store),
        ("imports", measure_imports),
        ("growth", measure_growth),
    ]


def _tell(what: str) -> None:
    """Shows on a terminal what is being measured, in one line that is overwritten."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[2K{what}")
        sys.stderr.flush()


def _show(report: Report, plot: Path | None, pages: list[Path]) -> None:
    from rich.console import Console
    from rich.table import Table

    from arendezvous.bench.pages import fill_page, machine
    from arendezvous.bench.plot import draw
    from arendezvous.bench.tables import tables

    console = Console(soft_wrap=True) if not sys.stdout.isatty() else Console()
    console.print(machine(report), highlight=False)
    for table in tables(report):
        shown = Table(*table.headings, title=table.title, title_justify="left")
        for row in table.rows:
            shown.add_row(*row)
        console.print(shown)
    for page in pages:
        fill_page(page, report)
    if plot is not None:
        draw(report, plot)

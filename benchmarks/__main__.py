"""``python -m benchmarks``: ours beside its peers, or beside another checkout, in one run."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from arendezvous.cli.exits import ExitCode, code_of, fail
from arendezvous.errors import RendezvousError
from benchmarks.beside import figures, measure_beside
from benchmarks.failover import failover
from benchmarks.hostile import hostile
from benchmarks.meeting import meeting
from benchmarks.observers import observers
from benchmarks.output import check_plot, draw, fill_page, machine, tables
from benchmarks.parts import MEASURES
from benchmarks.plan import QUICK, Plan, put_beside, restrict
from benchmarks.process import SkippedError
from benchmarks.processes.child import raise_open_files
from benchmarks.report import Report, new_report, save
from benchmarks.report import load as load_report
from benchmarks.roster import roster

FILE_WIDTH = 160  # columns, where stdout is no terminal

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def main(
    context: typer.Context,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Only these parts or contenders; names with commas, or several times."),
    ] = None,
    nodes: Annotated[
        list[int] | None, typer.Option(min=2, help="Nodes of the rendezvous; may be given several times.")
    ] = None,
    repeat: Annotated[int | None, typer.Option(min=1, help="Turns of each; the default is 5.")] = None,
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
    beside: Annotated[
        Path | None,
        typer.Option(metavar="CHECKOUT", help="Compare with this checkout of ours, instead of the peers."),
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

    Rendezvous over tcp, http, etcd and memory beside torch's c10d and etcd-v2, torchft, JAX and a bare
    asyncio exchange; what a death takes; what idle members cost; the store; import times; how it grows.
    Contenders take turns. Takes about half an hour; use --quick for a first look.

    With --beside, ours and what is in another checkout take turns instead: rendezvous and stores over tcp,
    http, etcd and memory, and imports. It fails if anything takes more than a tenth longer here.
    """
    if context.invoked_subcommand is not None:
        return
    try:
        if plot is not None:
            check_plot(plot)
        plan = _plan(only, nodes, repeat, limit, beside, peer_python, quick=quick, verbose=verbose)
        report = _measure(plan) if load is None else load_report(load)
        if json is not None:
            save(report, json)
        _show(report, plot, markdown or [])
        if report.settings.get("beside"):
            _judge(report)
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
    beside: Path | None,
    peer_python: str | None,
    *,
    quick: bool,
    verbose: bool,
) -> Plan:
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
    return restrict(plan if beside is None else put_beside(plan, beside), only or [])


def _measure(plan: Plan) -> Report:
    def stop(number: int, _: object) -> None:
        raise typer.Exit(128 + number)

    raise_open_files()
    before = signal.signal(signal.SIGTERM, stop)
    try:
        report = new_report(msgspec.to_builtins(plan))
        for part in plan.parts if not plan.beside else ():
            try:
                MEASURES[part](plan, report, _tell)
            except SkippedError as reason:  # what is known is shown all the same
                report.skipped[part] = str(reason)
        if plan.beside:
            measure_beside(plan, report, _tell)
        _tell("")
    finally:
        signal.signal(signal.SIGTERM, before)
    return report


def _tell(what: str) -> None:
    """Shows on a terminal what is being measured, in one line that is overwritten."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[2K{what}")
        sys.stderr.flush()


def _show(report: Report, plot: Path | None, pages: list[Path]) -> None:
    console = Console() if sys.stdout.isatty() else Console(width=FILE_WIDTH)
    console.print(machine(report), highlight=False, soft_wrap=True)
    for table in tables(report):
        shown = Table(*table.headings, title=table.title, title_justify="left")
        for row in table.rows:
            shown.add_row(*row)
        console.print(shown)
    for page in pages:
        fill_page(page, report)
    if plot is not None:
        draw(report, plot)


def _judge(report: Report) -> None:
    """Fails, naming what is worse here, if anything is; names what cannot be told, too."""
    compared = figures(report)
    if not compared:
        fail("nothing was compared; --verbose shows why")
    undecided = ", ".join(str(figure) for figure in compared if figure.is_undecided)
    worse = ", ".join(str(figure) for figure in compared if figure.is_worse)
    if undecided:
        typer.echo(f"perhaps more than a tenth worse here; more turns would show: {undecided}", err=True)
    if worse:
        fail(f"more than a tenth worse here: {worse}")


app.command()(hostile)
app.command()(failover)
app.command()(meeting)
app.command()(roster)
app.command()(observers)


if __name__ == "__main__":
    app()

"""The commands, by name."""

from __future__ import annotations

import inspect
from typing import Annotated, Any, Final

import typer
from typer.core import TyperCommand

from arendezvous.cli.command import ClientCommand, Commands
from arendezvous.cli.contact import contacting
from arendezvous.cli.deciding import close, drain, hold, pardon, quarantine, release, reopen, resize
from arendezvous.cli.exits import run_async
from arendezvous.cli.looking import doctor, explain, status, watch
from arendezvous.cli.output import say
from arendezvous.cli.serve import serve

EPILOG = (
    "Exit codes: 0 done; 1 failed; 2 wrong usage; 3 the server cannot be reached; "
    "4 there is no such run or node; 128 + n ended by signal n."
)

app = typer.Typer(
    cls=Commands,
    help="Nodes of one distributed job meet, agree on ranks, and meet again.",
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_CLIENTS: Final = (
    status, watch, explain, close, reopen, drain, resize, hold, release, quarantine, pardon, doctor,
)  # fmt: skip


def demo() -> None:
    """Show the whole story on this machine, with real processes, in a few seconds.

    Four processes meet, and one of them hosts the server. One is killed, and the rest meet again; a late one
    is admitted; one drains; the run is closed. Exits with 0 only if every step was observed.
    """
    from arendezvous.cli.demo_story import show_demo

    run_async(show_demo)


def _add(command: Any, kind: type[TyperCommand]) -> None:
    summary, _, _ = (inspect.getdoc(command) or "").partition("\n\n")
    app.command(cls=kind, epilog=EPILOG, short_help=" ".join(summary.split()))(command)


for local in (demo, serve):
    _add(local, TyperCommand)
for client in _CLIENTS:
    _add(contacting(client, timed=client is not doctor), ClientCommand)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            say(f"arendezvous {version('arendezvous')}")
        except PackageNotFoundError:
            say("arendezvous, not installed: it runs from its source")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    pass

"""The commands, by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Final

import typer
from typer.core import TyperCommand

from arendezvous.cli.command import ClientCommand, Commands
from arendezvous.cli.credentials import takes_credentials
from arendezvous.cli.deciding import close, drain, hold, pardon, quarantine, release, reopen, resize
from arendezvous.cli.demo import demo
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
_LOCAL: Final[tuple[Callable[..., None], ...]] = (demo, serve)
_CLIENTS: Final[tuple[Callable[..., None], ...]] = (
    status, watch, explain, close, reopen, drain, resize, hold, release, quarantine, pardon, doctor,
)  # fmt: skip
for command in (*_LOCAL, *map(takes_credentials, _CLIENTS)):
    summary, _, _ = (inspect.getdoc(command) or "").partition("\n\n")
    kind = TyperCommand if command in _LOCAL else ClientCommand
    app.command(cls=kind, epilog=EPILOG, short_help=" ".join(summary.split()))(command)


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

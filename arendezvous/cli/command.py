"""Reads the words of a command: the URL that may be left out, times with units; and says what is wrong."""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from arendezvous.cli.exits import ExitCode
from arendezvous.cli.output import say

URL_VARIABLE: Final = "ARENDEZVOUS_URL"
DEFAULT_PORT: Final = 29400

_UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # typer may carry a click of its own
_ClickError: type[Exception] = _UsageError.__mro__[1]
_UNITS: Final = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
_TIME: Final = re.compile(
    r"(?:(?P<d>[\d.]+)d)?(?:(?P<h>[\d.]+)h)?(?:(?P<m>[\d.]+)m(?:in)?)?(?:(?P<s>[\d.]+)s?)?"
)


class Commands(TyperGroup):
    """All commands; what is wrong with their words is one line on stderr, as every other error."""

    def main(self, *args: Any, **options: Any) -> NoReturn:
        """Runs a command, and exits."""
        try:
            code = super().main(*args, **{**options, "standalone_mode": False})
        except _ClickError as caught:
            error: Any = caught
            context = getattr(error, "ctx", None)
            path = "arendezvous" if context is None else context.command_path
            said = " ".join(str(error.format_message()).split()).rstrip(".")
            hint = f"; see {path} --help" if isinstance(error, _UsageError) else ""
            said = said.replace(". Did you", "; did you")
            say(f"error: {said[:1].lower()}{said[1:]}{hint}", err=True)
            sys.exit(ExitCode.USAGE)
        except typer.Abort:
            sys.exit(ExitCode.INTERRUPTED)
        sys.exit(code if isinstance(code, int) else ExitCode.OK)


class ClientCommand(TyperCommand):
    """A command that talks to a server: its URL may come from the environment."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Reads the words, with the URL put in front of the others if it is not among them."""
        words = self.make_parser(ctx).parse_args(args=list(args))[0]
        first = words.get("url")
        if not isinstance(first, str) or "://" not in first:
            known = os.environ.get(URL_VARIABLE)
            asks = {"-h", "--help"}.isdisjoint(args)
            if known is None and not isinstance(first, str) and self.name == "status" and asks:
                known = local_url()
            if known:
                args = [known, *args]
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Writes the help, in which the name of an argument says enough, without its type in Python."""
        for parameter in self.params:
            if parameter.param_type_name == "argument":
                parameter.display_type_rich = _no_type  # type: ignore[attr-defined]  # some typers show one
        super().format_help(ctx, formatter)


def _no_type(*_: Any, **__: Any) -> str:
    return ""


def time_of(text: str | float) -> float:
    """Reads a time: seconds, or numbers with units, such as ``90``, ``1.5h``, ``10m`` or ``1h30m``."""
    found = _TIME.fullmatch(str(text).strip().lower())
    parts = {} if found is None else {unit: part for unit, part in found.groupdict().items() if part}
    try:
        seconds = sum(float(part) * _UNITS[unit] for unit, part in parts.items())
    except ValueError:
        parts = {}
    if not parts:
        raise typer.BadParameter(
            f"{text!r} is no time: give seconds, or a number with a unit, such as 10m or 1.5h"
        )
    return seconds


def time_option(least: float, most: float, text: str, **others: Any) -> Any:
    """Declares an option that is a time, within bounds in seconds."""

    def read(given: str) -> float:
        seconds = time_of(given)
        if not least <= seconds <= most:
            raise typer.BadParameter(f"{given!r} is no time from {least:g} s to {most:g} s")
        return seconds

    return typer.Option(parser=read, metavar="TIME", help=text, **others)


def local_url() -> str | None:
    """Finds a server of this user by the processes that are called as ours are; None if there is none."""
    for process in os.listdir("/proc") if sys.platform == "linux" else ():
        if process.isdigit() and _serves(process) and (ports := _ports_of(process)):
            return f"tcp://127.0.0.1:{DEFAULT_PORT if DEFAULT_PORT in ports else min(ports)}"
    return None


def _serves(process: str) -> bool:
    with suppress(OSError), open(f"/proc/{process}/cmdline", "rb") as file:
        words = file.read(4096).split(b"\0")
        return b"serve" in words and any(word.endswith(b"arendezvous") for word in words)
    return False


def _ports_of(process: str) -> set[int]:
    """Lists the TCP ports at which a process of this user listens."""
    sockets = set[str]()
    try:
        for one in Path(f"/proc/{process}/fd").iterdir():
            target = os.readlink(one)
            if target.startswith("socket:["):
                sockets.add(target[8:-1])
    except OSError:
        return set()
    return {port for port, inode in _listening(process) if inode in sockets}


def _listening(process: str) -> list[tuple[int, str]]:
    found = []
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            rows = [line.split() for line in Path(f"/proc/{process}/net/{table}").read_text().splitlines()]
            listening = [row for row in rows[1:] if row[3] == "0A"]
            found += [(int(row[1].rpartition(":")[2], 16), row[9]) for row in listening]
    return found

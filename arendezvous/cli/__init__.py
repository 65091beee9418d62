"""The command line: one module per command or group; each imports what is heavy only when it runs."""

from __future__ import annotations


def main() -> None:
    """Runs ``arendezvous`` with the arguments of this process, and exits."""
    from arendezvous.cli.app import app

    app(prog_name="arendezvous")

"""The picture that the demo shows: the story line by line, and on a terminal the nodes below it, live."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from arendezvous.cli.demo_cast import Actor
from arendezvous.wire.foreign import printable

_STYLES: Final = {
    "member": "green",
    "joining": "yellow",
    "starting": "dim",
    "draining": "magenta",
    "drained": "magenta",
    "killed": "bold red",
}


class Show:
    """The screen; plain lines if stdout is no terminal.

    Args:
        steps: How many steps the story has.
    """

    def __init__(self, steps: int) -> None:
        self._console = Console(highlight=False)
        self._steps = steps
        self._step = 0
        self._live: Live | None = None
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False, transient=False)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def step(self, title: str) -> None:
        """Begins the next step."""
        self._step += 1
        self._print(f"{self._step}/{self._steps} {title}", "bold")

    def line(self, text: str) -> None:
        """Tells something that was observed in this step."""
        self._print(f"    {text}", "")

    def success(self, text: str) -> None:
        """Ends the story well."""
        self._print(text, "bold green")

    def failure(self, text: str) -> None:
        """Ends the story badly."""
        self._print(f"failed in step {self._step} of {self._steps}: {text}", "bold red")

    def nodes(self, actors: Iterable[Actor]) -> None:
        """Shows how the nodes stand; does nothing on a plain stdout."""
        if self._live is None:
            return
        table = Table(title_justify="left", expand=False)
        for heading in ("node", "pid", "state", "rank", "round", "last news"):
            table.add_column(heading, justify="right" if heading in ("pid", "rank", "round") else "left")
        for actor in actors:
            member = actor.last("member")
            holds = member is not None and actor.fate in ("member", "draining")
            news = next((report.text for report in reversed(actor.reports) if report.text), "")
            table.add_row(
                actor.name,
                str(actor.pid),
                actor.fate,
                f"{member.rank} of {member.world_size}" if holds and member is not None else "-",
                str(member.round) if holds and member is not None else "-",
                Text(printable(news)),
                style=_STYLES.get(actor.fate, ""),
            )
        self._live.update(table, refresh=True)

    def _print(self, text: str, style: str) -> None:
        for line in text.split("\n"):
            self._console.print(printable(line), style=style, soft_wrap=True, markup=False)

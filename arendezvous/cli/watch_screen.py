"""The live picture of a run on a terminal: its nodes, and below them what happened last."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from types import TracebackType
from typing import Final, Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from arendezvous.backends.tcp.watching import News
from arendezvous.law.status import RunStatus, explained, trouble_text

MAX_ROWS: Final = 30
MAX_LINES: Final = 10


class WatchScreen:
    """A picture that is drawn anew whenever there is news."""

    def __init__(self) -> None:
        self._live = Live(console=Console(highlight=False), auto_refresh=False)
        self._lines: deque[str] = deque(maxlen=MAX_LINES)
        self._status: RunStatus | None = None

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, news: News, words: Iterable[str]) -> bool:
        """Shows a status, or in `words` what happened; tells whether the status shown is stale now."""
        if isinstance(news, RunStatus):
            self._status = news
        else:
            self._lines.extend(words)
        self._draw()
        return not isinstance(news, RunStatus)

    def _draw(self) -> None:
        parts: list[Text | Table] = []
        if self._status is not None:
            parts += [Text(line, style="bold") for line in explained(self._status)[:2]]
            parts.append(node_table(self._status))
        parts += [Text(line, style="dim") for line in self._lines]
        self._live.update(Group(*parts), refresh=True)


def node_table(status: RunStatus) -> Table:
    """The first nodes of a run."""
    table = Table()
    for heading in ("node", "state", "rank", "remark"):
        table.add_column(heading, justify="right" if heading == "rank" else "left")
    for node in status.nodes[:MAX_ROWS]:
        rank = "-" if node.rank < 0 else str(node.rank)
        table.add_row(Text(node.desc.name), node.phase.value, rank, Text(trouble_text(node)))
    if len(status.nodes) > MAX_ROWS:
        table.add_row(f"and {len(status.nodes) - MAX_ROWS} more", "", "", "")
    return table

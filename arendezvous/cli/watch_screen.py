"""Tells of a run for ``arendezvous watch``: in words, grouped in time; on a terminal as a live picture."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from arendezvous.law.status import RunStatus, explained, trouble_text
from arendezvous.law.words import counted, event_texts
from arendezvous.observing import Item
from arendezvous.wire.foreign import printable
from arendezvous.wire.native.messages import Happened

MAX_LINES: Final = 10
FRAME: Final = 5  # lines of the table besides its rows, and one for the cursor
LEAST_ROWS: Final = 3


class Narrator:
    """Says in words what comes, with one line for all nodes to which the same happened.

    Its fields:
        _known: The nodes that are in the run.
        _events: What happened, and is still to be told.
    """

    def __init__(self) -> None:
        self._known: set[str] = set()
        self._events: list[Happened] = []

    def learn(self, status: RunStatus) -> None:
        """Takes note of who is in the run, without a word."""
        self._known = {node.desc.name for node in status.nodes}

    def tell(self, items: Sequence[Item]) -> list[str]:
        """Says what `items`, which came within a short time, are."""
        lines: list[str] = []
        for item in items:
            if isinstance(item, Happened):
                self._events.append(item)
                continue
            lines += self._tell_events()
            if isinstance(item, RunStatus):
                self.learn(item)
                lines += explained(item)
            else:
                lines.append(f"{item.reason}; trying again")
        return lines + self._tell_events()

    def _tell_events(self) -> list[str]:
        happened, self._events = self._events, []
        lines = event_texts((event for item in happened for event in item.events), self._known)
        if missed := sum(item.missed for item in happened):
            lines.append(f"{counted(missed, 'event')} missed, as they came too fast")
        return lines


def stamped(lines: list[str]) -> list[str]:
    """Puts the time of day in front of each line."""
    now = datetime.now().astimezone().strftime("%H:%M:%S.%f")[:-3]
    return [f"{now}  {line}" for line in lines]


class WatchScreen(Live):
    """A picture, on stdout if no console is given, that is drawn anew whenever there is news.

    Its fields:
        _lines: What happened last, with the times.
        _status: The latest status; None before the first.
    """

    def __init__(self, console: Console | None = None) -> None:
        super().__init__(console=console or Console(highlight=False), auto_refresh=False)
        self._lines: deque[str] = deque(maxlen=MAX_LINES)
        self._status: RunStatus | None = None

    def show(self, items: list[Item], narrator: Narrator) -> bool:
        """Shows what has come; returns whether the status shown is stale now."""
        told = [item for item in items if not isinstance(item, RunStatus)]
        self._lines.extend(stamped(narrator.tell(told)))
        for item in items:
            if isinstance(item, RunStatus):
                self._status = item
                narrator.learn(item)
        self._draw()
        return any(isinstance(item, Happened) for item in items)

    def _draw(self) -> None:
        parts: list[Text | Table] = []
        if self._status is not None:
            parts += [Text(printable(line), style="bold") for line in explained(self._status)[:2]]
            rows = self.console.size.height - len(parts) - len(self._lines) - FRAME
            parts.append(node_table(self._status, max(LEAST_ROWS, rows)))
        parts += [
            Text(printable(line), style="dim", no_wrap=True, overflow="ellipsis") for line in self._lines
        ]
        self.update(Group(*parts), refresh=True)


def node_table(status: RunStatus, rows: int) -> Table:
    """Makes a table of the nodes, in at most so many rows: those in trouble first, if not all fit."""
    table = Table()
    for heading in ("node", "state", "rank", "remark"):
        table.add_column(heading, justify="right" if heading == "rank" else "left")
    shown = list(status.nodes)
    if len(shown) > rows:
        shown = sorted(shown, key=lambda node: not trouble_text(node))[: rows - 1]
    for node in shown:
        rank = "-" if node.rank < 0 else str(node.rank)
        remark = Text(printable(trouble_text(node)))
        table.add_row(Text(printable(node.desc.name)), node.phase.value, rank, remark)
    if len(shown) < len(status.nodes):
        table.add_row(f"and {len(status.nodes) - len(shown)} more", "", "", "")
    return table

"""Saying in words what happens to a run, for ``arendezvous watch``: grouped in time."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from arendezvous.law.status import RunStatus, explained
from arendezvous.law.words import counted, event_texts
from arendezvous.observing import Item
from arendezvous.wire.native.messages import Happened


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

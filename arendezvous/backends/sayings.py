"""Keeps what nodes say of themselves while they work, for a coordinator that may have forgotten it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Final, TypeAlias

from arendezvous.law.operations import Arrive, Leave, Operation, Progress, Update

Saying: TypeAlias = Update | Progress | Arrive

MAX_ARRIVALS: Final = 8  # that are said again of each node


class Sayings:
    """Keeps what nodes of a backend have said, for a coordinator that may have forgotten it.

    Its fields:
        _states: The latest state of each node.
        _steps: Its latest step.
        _arrivals: The latest barriers that it has passed: another member may have missed the answer.
    """

    def __init__(self) -> None:
        self._states: dict[str, Update] = {}
        self._steps: dict[str, Progress] = {}
        self._arrivals: dict[str, deque[Arrive]] = {}

    def note(self, operation: Operation) -> None:
        """Keeps what a node has said; forgets it all if the node leaves."""
        if isinstance(operation, Update):
            self._states[operation.node] = operation
        elif isinstance(operation, Progress):
            self._steps[operation.node] = operation
        elif isinstance(operation, Arrive):
            self._arrivals.setdefault(operation.node, deque(maxlen=MAX_ARRIVALS)).append(operation)
        elif isinstance(operation, Leave):
            for kept in (self._states, self._steps, self._arrivals):
                kept.pop(operation.node, None)

    def of(self, node: str, generation: tuple[int, int]) -> Iterator[Saying]:
        """Yields what is to be said again for a node, as a member of the round `generation`."""
        if node in self._states:
            yield self._states[node]
        if node in self._steps:
            yield self._steps[node]
        for arrival in self._arrivals.get(node, ()):
            if (arrival.incarnation, arrival.round) == generation:
                yield arrival

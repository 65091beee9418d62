"""Turns: contenders are asked for one run each, again and again; one that fails is out."""

from __future__ import annotations

from typing import Any

from arendezvous.bench.process import Process, SkippedError
from arendezvous.bench.report import Report


class Turns:
    """The answers of the contenders in one part and at one size.

    Args:
        report: Gets the results.
        part: The group of measurements.
        nodes: How many nodes take part; 0 where there are none.
        main: The metric under which it is noted why a contender is out.
    """

    def __init__(self, report: Report, part: str, nodes: int, main: str) -> None:
        self._report = report
        self._part = part
        self._nodes = nodes
        self._main = main
        self._values: dict[tuple[str, str], list[float]] = {}

    def take(self, name: str, process: Process, limit: float, **request: Any) -> bool:
        """Has a contender do one run; returns whether it did, or is out from now on."""
        answer = self._ask(name, process, limit, request)
        if answer is None:
            return False
        for metric, value in answer.items():
            if isinstance(value, float):
                self._values.setdefault((name, metric), []).append(value)
        return True

    def warm_up(self, name: str, process: Process, limit: float, **request: Any) -> bool:
        """The same, but for what comes of the run."""
        return self._ask(name, process, limit, request) is not None

    def over(self) -> None:
        """Adds what has come to the report; all of it is seconds."""
        for (name, metric), seconds in self._values.items():
            self._report.add(self._part, name, metric, "s", seconds, self._nodes)

    def _ask(
        self, name: str, process: Process, limit: float, request: dict[str, Any]
    ) -> dict[str, Any] | None:
        try:
            return process.ask(limit, nodes=self._nodes, **request)
        except SkippedError as reason:
            self._report.miss(self._part, name, self._main, self._nodes, str(reason))
            for key in [key for key in self._values if key[0] == name]:
                del self._values[key]
            return None

"""Holds what a benchmark comes to: series of values with their medians, to be saved and read again."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from arendezvous.errors import RendezvousSettingsError

SCHEMA: Final = 1


class Series(msgspec.Struct, frozen=True):
    """Holds the values of one quantity, one for each run; or why there are none.

    Attributes:
        part: The group of measurements: ``rendezvous``, ``failure``, ``upkeep``, ``store``, ``imports`` or
            ``growth``.
        contender: Whose value it is.
        metric: What was measured.
        unit: ``s``, ``B``, ``cores``, or what is counted.
        nodes: How many nodes took part; 0 where there are none.
        values: In the order of the runs; the same place in two series of one part and size is the same turn.
        median: Of the values; None without any.
        low: The least.
        high: The greatest.
        skipped: Why there are no values; empty if there are.
    """

    part: str
    contender: str
    metric: str
    unit: str
    nodes: int = 0
    values: tuple[float, ...] = ()
    median: float | None = None
    low: float | None = None
    high: float | None = None
    skipped: str = ""


class Report(msgspec.Struct):
    """Holds what one run of ``python -m benchmarks`` comes to.

    Attributes:
        schema: The version of this format.
        at: When it began, in UTC, as ISO 8601.
        machine: What it ran on: processors, their model, system, limit of open files.
        settings: How it was asked for.
        versions: Of Python and the packages that took part.
        skipped: Contenders that did not take part, and why.
        series: The results.
    """

    schema: int = SCHEMA
    at: str = ""
    machine: dict[str, str | int | float] = {}
    settings: dict[str, Any] = {}
    versions: dict[str, str] = {}
    skipped: dict[str, str] = {}
    series: list[Series] = []

    def add(
        self, part: str, contender: str, metric: str, unit: str, values: Sequence[float], nodes: int = 0
    ) -> None:
        """Adds a series; one without values is left out."""
        if values:
            middle = statistics.median(values)
            series = Series(
                part, contender, metric, unit, nodes, tuple(values), middle, min(values), max(values)
            )
            self.series.append(series)

    def miss(self, part: str, contender: str, metric: str, nodes: int, reason: str) -> None:
        """Notes why there are no values."""
        self.series.append(Series(part, contender, metric, "", nodes, skipped=reason))

    def of(self, part: str, metric: str | None = None) -> Iterator[Series]:
        """Yields the series of a part, of one metric or, if that is None, of all."""
        return (one for one in self.series if one.part == part and (metric is None or one.metric == metric))

    def find(self, part: str, contender: str, metric: str, nodes: int = 0) -> Series | None:
        """Finds the series with values that this describes; None if there is none."""
        for one in self.of(part, metric):
            if (one.contender, one.nodes) == (contender, nodes) and one.values:
                return one
        return None


def ratios(one: Series | None, other: Series | None) -> list[float]:
    """Lists how many times `other` the series `one` is, run by run, as the machine's speed drifts.

    Where they have not the same number of runs it is one ratio, that of the medians. None at all, if one of
    them has no values, or `other` is 0 in some run.
    """
    if one is None or other is None or not one.values or not other.values or 0 in other.values:
        return []
    if len(one.values) != len(other.values):
        return [statistics.median(one.values) / statistics.median(other.values)]
    return [a / b for a, b in zip(one.values, other.values, strict=True)]


def ratio(one: Series | None, other: Series | None) -> float | None:
    """Tells how many times `other` the series `one` is, by the median of `ratios`; None if there are none."""
    found = ratios(one, other)
    return statistics.median(found) if found else None


def new_report(settings: Mapping[str, Any]) -> Report:
    """Makes an empty report about this machine."""
    import resource

    machine: dict[str, str | int | float] = {
        "processors": os.cpu_count() or 0,
        "model": _processor(),
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        "load": round(os.getloadavg()[0], 2),
    }
    at = datetime.now(UTC).isoformat(timespec="seconds")
    versions = {"python": platform.python_version()}
    return Report(SCHEMA, at, machine, dict(settings), versions, {}, [])


def load(path: Path) -> Report:
    """Reads a report.

    Raises:
        RendezvousSettingsError: The file cannot be read, or is no report of this version.
    """
    try:
        report = msgspec.json.decode(path.read_bytes(), type=Report)
    except (OSError, msgspec.MsgspecError) as error:
        raise RendezvousSettingsError.of("report", str(path), f"the JSON of a benchmark: {error}") from error
    if report.schema != SCHEMA:
        raise RendezvousSettingsError.of("schema", report.schema, f"{SCHEMA}; measure again")
    return report


def save(report: Report, path: Path) -> None:
    """Writes a report."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")


def sizes(series: Iterable[Series]) -> list[int]:
    """Lists the numbers of nodes that occur, in order."""
    return sorted({one.nodes for one in series})


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"

"""The tables of a report: headings and rows of text, for a terminal and for Markdown alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from arendezvous.bench.capacity import bounds
from arendezvous.bench.growth import fits
from arendezvous.bench.report import Report, Series, ratio, sizes

OURS: Final = "tcp"
NAMES: Final = {
    "tcp": "ours, tcp",
    "tcp-uvloop": "ours, tcp, uvloop",
    "tcp-tls": "ours, tcp with TLS and token",
    "http": "ours, http",
    "etcd": "ours, etcd",
    "memory": "ours, memory",
    "floor": "bare asyncio exchange",
    "floor-uvloop": "bare exchange, uvloop",
    "c10d": "stock c10d",
    "torchft": "torchft lighthouse",
    "jax": "JAX barrier",
}


_GROWN: Final = {
    "frames_in": "messages in",
    "frames_out": "messages out",
    "bytes_in": "bytes in",
    "bytes_out": "bytes out",
    "writes": "writes",
    "timers": "timers",
    "wakeups": "wake-ups",
    "cpu": "processor",
    "collector": "of it the collector",
    "turn": "longest turn",
    "memory": "memory",
}


class Table(msgspec.Struct, frozen=True):
    """A table.

    Attributes:
        name: A short one, for markers in Markdown.
        title: What it shows.
        headings: Of the columns.
        rows: Text for each column.
    """

    name: str
    title: str
    headings: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def tables(report: Report) -> list[Table]:
    """All tables for which there are results."""
    found = [make(report) for make in _MAKERS]
    return [table for table in found if table.rows]


def quantity(value: float, unit: str) -> str:
    """A value with three digits and a fitting unit."""
    if unit == "s":
        for factor, name in ((1.0, "s"), (1e3, "ms"), (1e6, "µs")):
            if value * factor >= 1 or name == "µs":
                return f"{_digits(value * factor)} {name}"
    if unit == "B":
        for factor, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
            if abs(value) >= factor:
                return f"{_digits(value / factor)} {name}"
        return f"{_digits(value)} B"
    if unit == "cores":
        return f"{_digits(value * 100)} % of a core"
    return _digits(value)


def _digits(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _spread(series: Series) -> str:
    if series.median is None or series.low is None or series.high is None:
        return "-"
    middle = quantity(series.median, series.unit)
    if len(series.values) == 1:
        return middle
    return f"{middle} ({quantity(series.low, series.unit)} to {quantity(series.high, series.unit)})"


def _rendezvous(report: Report, metric: str = "meet") -> Table:
    series = list(report.of("rendezvous", metric))
    columns = sizes(series)
    ours = {nodes: report.find("rendezvous", OURS, metric, nodes) for nodes in columns}
    rows: list[tuple[str, ...]] = []
    order = list(NAMES)
    for contender in sorted({one.contender for one in series}, key=order.index):
        found = {one.nodes: one for one in series if one.contender == contender}
        cells = [_cell(found.get(nodes), ours[nodes], contender) for nodes in columns]
        rows.append((NAMES.get(contender, contender), *cells))
    title = {
        "meet": "Rendezvous: from the call of all nodes to the rank of the last; median (least to greatest)",
        "connect": "Connecting, which is not part of the above",
    }[metric]
    name = {"meet": "rendezvous", "connect": "connecting"}[metric]
    return Table(name, title, ("nodes", *(f"{nodes:,}" for nodes in columns)), rows)


def _cell(one: Series | None, ours: Series | None, contender: str) -> str:
    if one is None:
        return "-"
    if one.skipped:
        return one.skipped
    times = ratio(one, ours)
    return _spread(one) + (f" = {_digits(times)} x ours" if times is not None and contender != OURS else "")


def _failure(report: Report) -> Table:
    rows = []
    for contender in dict.fromkeys(one.contender for one in report.of("failure")):
        mine = {one.metric: one for one in report.of("failure") if one.contender == contender}
        told, again = mine.get("told"), mine.get("again")
        nodes = f"{next(iter(mine.values())).nodes}"
        rows.append(
            (
                NAMES.get(contender, contender),
                nodes,
                _spread(told) if told is not None else "never",
                again.skipped or _spread(again) if again is not None else "-",
            )
        )
    title = "A death: from the SIGKILL of one member to the survivors"
    return Table("failure", title, ("", "nodes", "all told", "next round complete"), rows)


def _upkeep(report: Report) -> Table:
    names = {
        "cpu": "processor of the server",
        "memory": "memory of the server, for one member",
        "member_cpu": "processor of all members, in one process",
        "member_memory": "memory of one member",
    }
    rows = [
        (names[one.metric], f"{one.nodes:,}", one.skipped or _spread(one))
        for one in report.of("upkeep")
        if one.metric in names
    ]
    return Table("upkeep", "Upkeep: members that only keep their places", ("", "members", "cost"), rows)


def _store(report: Report) -> Table:
    rows = []
    stock = report.find("store", "stock client, stock server", "round trip")
    for one in report.of("store", "round trip"):
        many = report.find("store", one.contender, "64 in flight")
        rate = f"{1 / many.median:,.0f} /s" if many is not None and many.median else "-"
        times = ratio(one, stock)
        rows.append((one.contender, _spread(one), rate, f"{times:.2f}" if times is not None else "-"))
    headings = ("", "round trip", "64 in flight", "round trip / stock")
    return Table("store", "Store: get of 32 bytes", headings, rows)


def _imports(report: Report) -> Table:
    rows = [(one.contender, _spread(one)) for one in report.of("imports")]
    return Table("imports", "Import time, each in a fresh process", ("", "time"), rows)


def _growth(report: Report) -> Table:
    rows = []
    found = [fit for fit in fits(report) if fit[1] in _GROWN and any(one.median for one in fit[2])]
    columns = sizes(one for _, _, series, _ in found for one in series)
    for contender, metric, series, power in found:
        values = {one.nodes: quantity(one.median or 0.0, one.unit) for one in series}
        cells = [values.get(nodes, "") for nodes in columns]
        row = f"{contender}: {_GROWN[metric]}"
        rows.append((row, *cells, "-" if power is None else f"{power:+.2f}"))
    headings = ("for one node", *(f"{nodes:,}" for nodes in columns), "exponent")
    return Table(
        "growth", "Growth: what one node costs the server; an exponent of 0 is ideal", headings, rows
    )


def _capacity(report: Report) -> Table:
    rows = [
        (bound.what, bound.formula, bound.inputs, f"{bound.nodes:,.0f}")
        for bound in bounds(report)
        if any(report.of("growth")) or any(report.of("upkeep"))
    ]
    headings = ("what ends", "formula", "measured", "nodes")
    return Table("capacity", "What one server carries, on paper", headings, rows)


def _skipped(report: Report) -> Table:
    rows = [(NAMES.get(name, name), reason) for name, reason in report.skipped.items()]
    return Table("skipped", "Not measured", ("", "why"), rows)


def to_markdown(table: Table) -> str:
    """The table in Markdown, without its title."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(table.headings), "|" + "---|" * len(table.headings), *map(line, table.rows)])


def _connecting(report: Report) -> Table:
    return _rendezvous(report, "connect")


_MAKERS: Final[tuple[Callable[[Report], Table], ...]] = (
    _rendezvous, _connecting, _failure, _upkeep, _store, _imports, _growth, _capacity, _skipped,
)  # fmt: skip

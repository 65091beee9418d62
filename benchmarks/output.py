"""Shows a report: as tables of text, for a terminal and in pages of Markdown alike, and as a plot.

A page has ``<!-- bench:NAME -->`` and ``<!-- end -->``, each on a line of its own; NAME is that of a table,
``summary`` for the few figures that a newcomer reads, or ``machine``. What is between them is replaced.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import msgspec

from arendezvous.errors import RendezvousSettingsError
from benchmarks.beside import Figure, figures
from benchmarks.capacity import bounds
from benchmarks.growth import fits
from benchmarks.plan import CONTENDERS
from benchmarks.report import Report, Series, ratio, sizes

OURS: Final = "tcp"
SUMMARY: Final = ("tcp", "c10d", "torchft", "jax")
SUMMARY_NODES: Final = (2, 64, 256, 1024)

_MARKED: Final = re.compile(r"(<!-- bench:([a-z]+) -->\n).*?(<!-- end -->)", re.DOTALL)
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
    """Holds a table: headings, and rows of text.

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
    """Makes all tables for which there are results."""
    found = [make(report) for make in (_BESIDE_MAKERS if report.settings.get("beside") else _MAKERS)]
    return [table for table in found if table.rows]


def quantity(value: float, unit: str) -> str:
    """Writes a value with three digits and a fitting unit."""
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
        return series.skipped or "-"
    middle = quantity(series.median, series.unit)
    if len(series.values) == 1:
        return middle
    return f"{middle} ({quantity(series.low, series.unit)} to {quantity(series.high, series.unit)})"


def _rendezvous(report: Report) -> Table:
    title = "Rendezvous: from the call of all nodes to the rank of the last; median (least to greatest)"
    return _by_size("rendezvous", title, report, "meet")


def _connecting(report: Report) -> Table:
    return _by_size("connecting", "Connecting, which is not part of the above", report, "connect")


def _by_size(name: str, title: str, report: Report, metric: str) -> Table:
    series = list(report.of("rendezvous", metric))
    contenders = sorted({one.contender for one in series}, key=list(CONTENDERS).index)
    columns = sizes(series)
    headings = ("nodes", *(f"{nodes:,}" for nodes in columns))
    return Table(name, title, headings, _rows(report, metric, contenders, columns, _spread))


def _summary(report: Report) -> Table:
    """Makes the table of the few figures that a newcomer reads; without rows if ours was not measured."""
    columns = [nodes for nodes in SUMMARY_NODES if report.find("rendezvous", OURS, "meet", nodes)]
    rows = _rows(report, "meet", SUMMARY, columns, _median) if columns else []
    title = "Rendezvous: from the call of all nodes to the rank of the last; median"
    return Table("summary", title, ("nodes", *(f"{nodes:,}" for nodes in columns)), rows)


def _rows(
    report: Report,
    metric: str,
    contenders: Sequence[str],
    columns: Sequence[int],
    show: Callable[[Series], str],
) -> list[tuple[str, ...]]:
    found = {(one.contender, one.nodes): one for one in report.of("rendezvous", metric)}
    rows = []
    for contender in contenders:
        pairs = [(found.get((contender, nodes)), found.get((OURS, nodes))) for nodes in columns]
        rows.append((CONTENDERS[contender], *(_cell(one, ours, show) for one, ours in pairs)))
    return rows


def _cell(one: Series | None, ours: Series | None, show: Callable[[Series], str]) -> str:
    if one is None or not one.values:
        return "-" if one is None else one.skipped
    times = ratio(one, ours)
    return show(one) + (f" = {_digits(times)} x ours" if times is not None and one is not ours else "")


def _median(series: Series) -> str:
    return quantity(series.median or 0.0, series.unit)


def _failure(report: Report) -> Table:
    rows = []
    for contender in dict.fromkeys(one.contender for one in report.of("failure")):
        mine = {one.metric: one for one in report.of("failure") if one.contender == contender}
        told, again = mine.get("told"), mine.get("again")
        nodes = f"{next(iter(mine.values())).nodes}"
        rows.append(
            (
                CONTENDERS.get(contender, contender),
                nodes,
                _spread(told) if told is not None else "never",
                _spread(again) if again is not None else "-",
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
        (names[one.metric], f"{one.nodes:,}", _spread(one))
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
    title = "Growth: what one node costs the server; an exponent of 0 is ideal"
    return _by_exponent("growth", title, report, {metric: f": {name}" for metric, name in _GROWN.items()})


def _law(report: Report) -> Table:
    title = "Law: what one operation takes in a run of so many nodes; an exponent of 0 is ideal"
    return _by_exponent("law", title, report, {"cpu": ""})


def _by_exponent(part: str, title: str, report: Report, metrics: Mapping[str, str]) -> Table:
    rows = []
    found = [fit for fit in fits(report, part) if fit[1] in metrics and any(one.median for one in fit[2])]
    columns = sizes(one for _, _, series, _ in found for one in series)
    for contender, metric, series, power in found:
        values = {one.nodes: quantity(one.median or 0.0, one.unit) for one in series}
        cells = [values.get(nodes, "") for nodes in columns]
        rows.append((f"{contender}{metrics[metric]}", *cells, "-" if power is None else f"{power:+.2f}"))
    first = "for one node" if part == "growth" else "for one operation"
    headings = (first, *(f"{nodes:,}" for nodes in columns), "exponent")
    return Table(part, title, headings, rows)


def _capacity(report: Report) -> Table:
    rows = [
        (bound.what, bound.formula, bound.inputs, f"{bound.nodes:,.0f}")
        for bound in bounds(report)
        if any(report.of("growth")) or any(report.of("upkeep"))
    ]
    headings = ("what ends", "formula", "measured", "nodes")
    return Table("capacity", "What one server carries, on paper", headings, rows)


def _skipped(report: Report) -> Table:
    rows = [(CONTENDERS.get(name, name), reason) for name, reason in report.skipped.items()]
    return Table("skipped", "Not measured", ("", "why"), rows)


def to_markdown(table: Table) -> str:
    """The table in Markdown, without its title."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(table.headings), "|" + "---|" * len(table.headings), *map(line, table.rows)])


def _beside(report: Report) -> Table:
    headings = ("", "nodes", "here", "beside", "here / beside", "95 % within")
    checkout = Path(report.settings["beside"]).parent
    title = f"Beside {checkout}: medians, and the median of the ratios of the single runs"
    return Table("beside", title, headings, [_beside_row(figure) for figure in figures(report)])


def _beside_row(figure: Figure) -> tuple[str, ...]:
    here = _median(figure.here) if figure.here is not None else "not done"
    beside = _median(figure.beside) if figure.beside.values else figure.beside.skipped
    nodes = f"{figure.nodes:,}" if figure.nodes else ""
    if figure.ratio is None:
        return (figure.name, nodes, here, beside, "-", "-")
    between = f"{_digits(figure.low)} to {_digits(figure.high)}"
    return (figure.name, nodes, here, beside, _digits(figure.ratio), between)


_MAKERS: Final[tuple[Callable[[Report], Table], ...]] = (
    _rendezvous, _connecting, _failure, _upkeep, _store, _imports, _growth, _law, _capacity, _skipped,
)  # fmt: skip
_BESIDE_MAKERS: Final[tuple[Callable[[Report], Table], ...]] = (_beside, _skipped)


def fill(text: str, report: Report) -> str:
    """Returns the page with the report's tables; a table that the report has not is left as it is."""
    made = {table.name: to_markdown(table) for table in [*tables(report), _summary(report)] if table.rows}
    made["machine"] = machine(report)

    def replace(match: re.Match[str]) -> str:
        name = match[2]
        return f"{match[1]}{made[name]}\n{match[3]}" if name in made else match[0]

    return _MARKED.sub(replace, text)


def fill_page(path: Path, report: Report) -> None:
    """Fills a page in place.

    Raises:
        RendezvousSettingsError: It cannot be read, or has no markers.
    """
    try:
        text = path.read_text()
    except OSError as error:
        raise RendezvousSettingsError.of("markdown", str(path), f"a page: {error.strerror}") from error
    if not _MARKED.search(text):
        raise RendezvousSettingsError.of("markdown", str(path), "a page with <!-- bench:NAME --> markers")
    path.write_text(fill(text, report))


def machine(report: Report) -> str:
    """Tells when, on what and with which versions was measured."""
    about, versions = report.machine, report.versions
    packages = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    return (
        f"Measured {report.at} on {about.get('processors')} processors ({about.get('model')}), "
        f"{about.get('system')}, all on loopback; {packages}."
    )


def check_plot(path: Path) -> None:
    """Checks, before anything is measured, that a plot can be made.

    Raises:
        RendezvousSettingsError: matplotlib is not installed, or the file name has no known ending.
    """
    if find_spec("matplotlib") is None:
        raise RendezvousSettingsError.of(
            "plot", str(path), "left out, as matplotlib is not installed; pip install -e '.[bench]'"
        )
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise RendezvousSettingsError.of("plot", str(path), "a name that ends in .png, .svg or .pdf")


def draw(report: Report, path: Path) -> None:
    """Draws one line for each contender, and writes the file."""
    import matplotlib.pyplot as pyplot

    pyplot.switch_backend("agg")
    figure, axes = pyplot.subplots(figsize=(8, 5.5))
    series = [one for one in report.of("rendezvous", "meet") if one.median is not None]
    for contender in dict.fromkeys(one.contender for one in series):
        points = sorted((one.nodes, one.median) for one in series if one.contender == contender)
        style = "--" if contender.startswith("floor") else "-"
        axes.plot(*zip(*points, strict=True), style, marker="o", label=CONTENDERS.get(contender, contender))
    axes.set_xscale("log", base=2)
    ticks = sizes(series)
    axes.set_xticks(ticks, [f"{nodes:,}" for nodes in ticks])
    axes.set_yscale("log")
    axes.set_xlabel("nodes")
    axes.set_ylabel("seconds until the last node has its rank")
    axes.grid(visible=True, which="both", alpha=0.2)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)

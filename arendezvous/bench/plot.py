"""The plot of a report: time of a rendezvous against the number of nodes, on log-log paper."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from arendezvous.bench.report import Report, sizes
from arendezvous.bench.tables import NAMES
from arendezvous.errors import RendezvousSettingsError


def check_plot(path: Path) -> None:
    """Checks, before anything is measured, that a plot can be made.

    Raises:
        RendezvousSettingsError: matplotlib is not installed, or the file name has no known ending.
    """
    if find_spec("matplotlib") is None:
        raise RendezvousSettingsError.of(
            "plot", str(path), "left out, as matplotlib is not installed; pip install 'arendezvous[bench]'"
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
        axes.plot(*zip(*points, strict=True), style, marker="o", label=NAMES.get(contender, contender))
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

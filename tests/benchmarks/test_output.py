"""A report is shown as tables, in pages, and as a plot."""

from __future__ import annotations

from pathlib import Path

import pytest

from arendezvous.errors import RendezvousSettingsError
from benchmarks import output
from benchmarks.output import fill, fill_page, quantity, tables, to_markdown
from benchmarks.report import new_report
from tests.kit.benchmarks_kit import a_report, series


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (2.5, "s", "2.50 s"), (0.0123, "s", "12.3 ms"), (0.00000005, "s", "0.05 µs"), (123e-6, "s", "123 µs"),
        (100, "B", "100 B"), (2048, "B", "2.00 KiB"), (3 * 2**30, "B", "3.00 GiB"),
        (0.05, "cores", "5.00 % of a core"), (1.5, "messages", "1.50"), (1234, "messages", "1,234"),
    ],
)  # fmt: skip
def test_a_quantity_has_three_digits_and_a_fitting_unit(value: float, unit: str, expected: str) -> None:
    assert quantity(value, unit) == expected


def test_a_table_shows_medians_spreads_ratios_and_why_something_is_missing() -> None:
    rendezvous, *_, skipped = tables(a_report())
    assert rendezvous.rows == [
        ("ours, tcp", "2.00 ms (1.00 ms to 3.00 ms)"),
        ("stock c10d", "1.00 s (1.00 s to 1.50 s) = 500 x ours"),
        ("JAX barrier", "not done in 60 s"),
    ]
    assert skipped.rows == [("ours, etcd", "there is no etcd")]


def test_a_page_is_filled_between_its_markers_and_nowhere_else() -> None:
    page = "a\n<!-- bench:rendezvous -->\nold\n<!-- end -->\nb\n<!-- bench:store -->\nkept\n<!-- end -->\n"
    report = a_report()
    filled = fill(page, report)
    table = to_markdown(tables(report)[0])
    assert filled == page.replace("old", table)
    assert fill(filled, report) == filled


def test_the_summary_has_few_contenders_and_sizes_and_no_spread() -> None:
    report = a_report()
    report.series += [series("tcp", (0.004,), 3), series("http", (0.005,)), series("c10d", (2.0,), 64)]
    report.series.append(series("tcp", (0.004,), 64))
    page = "<!-- bench:summary -->\nold\n<!-- end -->\n"
    assert fill(page, report).splitlines() == [
        "<!-- bench:summary -->",
        "| nodes | 2 | 64 |",
        "|---|---|---|",
        "| ours, tcp | 2.00 ms | 4.00 ms |",
        "| stock c10d | 1.00 s = 500 x ours | 2.00 s = 500 x ours |",
        "| torchft lighthouse | - | - |",
        "| JAX barrier | not done in 60 s | - |",
        "<!-- end -->",
    ]
    assert "summary" not in [table.name for table in tables(report)]
    assert fill(page, new_report({})) == page


def test_a_page_without_markers_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    with pytest.raises(RendezvousSettingsError, match="page"):
        fill_page(page, a_report())
    page.write_text("nothing to fill\n")
    with pytest.raises(RendezvousSettingsError, match="markers"):
        fill_page(page, a_report())


def test_a_plot_needs_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "find_spec", lambda name: None)
    with pytest.raises(RendezvousSettingsError, match="matplotlib is not installed"):
        output.check_plot(Path("x.svg"))
    monkeypatch.setattr(output, "find_spec", lambda name: object())
    with pytest.raises(RendezvousSettingsError, match=r"\.png"):
        output.check_plot(Path("x.txt"))

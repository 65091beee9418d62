"""Two checkouts are compared: each runs its own code, and what is worse is told."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arendezvous.cli.exits import ExitCode
from arendezvous.errors import RendezvousSettingsError
from benchmarks.beside import OUR_IMPORTS, STORE, Figure, figures, measure_beside, median_interval
from benchmarks.contenders import server, start
from benchmarks.output import tables
from benchmarks.plan import BESIDE, put_beside
from benchmarks.report import Report, new_report, save
from tests.benchmarks.test_command import run
from tests.kit import ROOT
from tests.kit import house_rules as house
from tests.kit.benchmarks_kit import TINY, nothing, series

SIX = (1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
WHAT = "tcp: meet of 2"
PERHAPS = "perhaps more than a tenth worse here; more turns would show"


def compared(here: tuple[float, ...], beside: tuple[float, ...]) -> tuple[Report, Figure]:
    report = new_report({"beside": "elsewhere"})
    if here:
        report.series.append(series("tcp", here))
    report.series.append(series(f"tcp{BESIDE}", beside))
    (figure,) = figures(report)
    return report, figure


def test_members_and_server_of_the_other_checkout_run_its_code(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "arendezvous", tmp_path / "arendezvous")
    plan = put_beside(TINY, tmp_path)
    there = msgspec.structs.replace(plan, package=plan.beside)
    with ExitStack() as resources:
        here = [start("memory", resources, plan), server(resources, plan, "asyncio")]
        other = [start("memory", resources, there), server(resources, there, "asyncio")]
        packages = [process.hello["package"] for process in (*here, *other)]
    assert packages == [str(ROOT / "arendezvous")] * 2 + [str(tmp_path / "arendezvous")] * 2


@pytest.mark.parametrize("program", ["processes.members", "processes.server", "processes.child"])
def test_what_runs_in_another_checkout_needs_nothing_of_it_but_its_public_names(program: str) -> None:
    assert house.ours(house.load(ROOT / "benchmarks")[program].imports) <= {""}


def test_both_checkouts_are_measured_over_every_backend_that_is_asked_for() -> None:
    plan = put_beside(msgspec.structs.replace(TINY, nodes=(2,), repeat=1), ROOT)
    report = new_report(msgspec.to_builtins(plan))
    measure_beside(msgspec.structs.replace(plan, contenders=("tcp", "memory")), report, nothing)
    metrics = ("connect", "meet", "again", *STORE)
    expected = [f"{name}: {metric}" for name in ("tcp", "memory") for metric in metrics]
    assert (report.skipped, [figure.name for figure in figures(report)]) == ({}, [*expected, *OUR_IMPORTS])
    assert all(figure.ratio is not None and figure.ratio > 0 for figure in figures(report))
    assert [(table.name, len(table.rows)) for table in tables(report)] == [("beside", len(figures(report)))]


def test_what_takes_a_tenth_longer_is_worse_only_if_it_surely_does() -> None:
    _, slower = compared((1.2,) * 6, SIX)
    _, same = compared((1.05,) * 6, SIX)
    _, perhaps = compared((1.0, 1.2, 1.2, 1.2, 1.2, 1.2), SIX)
    assert (slower.is_worse, slower.is_undecided, slower.ratio) == (True, False, 1.2)
    assert (same.is_worse, same.is_undecided) == (False, False)
    assert (perhaps.is_worse, perhaps.is_undecided) == (False, True)


def test_what_is_done_beside_and_not_here_is_worse() -> None:
    _, missing = compared((), SIX)
    assert (missing.is_worse, missing.ratio) == (True, None)


def test_the_table_shows_both_their_ratio_and_how_sure_it_is() -> None:
    report, _ = compared((2.0, 2.0, 2.0, 2.0, 2.0, 3.0), SIX)
    assert tables(report)[0].rows == [("tcp: meet", "2", "2.00 s", "1.00 s", "2.00", "2.00 to 3.00")]


@pytest.mark.parametrize(
    ("count", "ends"), [(1, (1, 1)), (5, (1, 5)), (6, (1, 6)), (16, (4, 13)), (48, (17, 32))]
)
def test_the_median_is_within_known_ranks(count: int, ends: tuple[int, int]) -> None:
    assert median_interval([float(value) for value in range(1, count + 1)]) == ends


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=100))
def test_the_interval_lies_around_the_middle_of_the_values(values: list[float]) -> None:
    low, high = median_interval(values)
    assert min(values) <= low <= sorted(values)[len(values) // 2] <= high <= max(values)


def test_a_directory_without_the_package_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RendezvousSettingsError, match="a checkout, with the package arendezvous"):
        put_beside(TINY, tmp_path)


@pytest.mark.parametrize(
    ("here", "code", "error"),
    [
        ((1.05,) * 6, ExitCode.OK, ""),
        ((1.2,) * 6, ExitCode.FAILED, f"error: more than a tenth worse here: {WHAT}"),
        ((1.0, *(1.2,) * 5), ExitCode.OK, f"{PERHAPS}: {WHAT}"),
        ((), ExitCode.FAILED, f"error: more than a tenth worse here: {WHAT}"),
    ],
)
async def test_the_command_fails_if_something_is_worse(
    tmp_path: Path, here: tuple[float, ...], code: ExitCode, error: str
) -> None:
    save(compared(here, SIX)[0], tmp_path / "report.json")
    result = await run("--load", str(tmp_path / "report.json"))
    assert (result.code, result.err.strip()) == (code, error)


async def test_a_comparison_of_nothing_fails(tmp_path: Path) -> None:
    save(new_report({"beside": "elsewhere"}), tmp_path / "report.json")
    result = await run("--load", str(tmp_path / "report.json"))
    assert (result.code, result.err) == (
        ExitCode.FAILED,
        "error: nothing was compared; --verbose shows why\n",
    )

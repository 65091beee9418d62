"""A report holds what was measured, and what follows from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arendezvous.errors import RendezvousSettingsError
from benchmarks.capacity import bounds
from benchmarks.growth import exponent
from benchmarks.plan import CONTENDERS, PARTS, Plan, restrict
from benchmarks.report import load, new_report, ratio, save
from tests.kit.benchmarks_kit import a_report, series


@given(st.floats(-2, 2), st.floats(0.01, 100))
def test_the_exponent_of_a_power_is_found(power: float, factor: float) -> None:
    points = [(float(n), factor * n**power) for n in (64, 256, 1024)]
    assert exponent(points) == pytest.approx(power, abs=1e-6)


@pytest.mark.parametrize("points", [[], [(1.0, 2.0)], [(1.0, 2.0), (2.0, 0.0)], [(1.0, 2.0), (1.0, 3.0)]])
def test_there_is_no_exponent_without_two_sizes_and_costs(points: list[tuple[float, float]]) -> None:
    assert exponent(points) is None


def test_a_ratio_is_that_of_the_turns_so_that_drift_cancels() -> None:
    ours, drifting = series("tcp", (1.0, 2.0, 4.0)), series("c10d", (3.0, 6.0, 12.0))
    assert ratio(drifting, ours) == 3.0
    assert ratio(series("c10d", (3.0,)), ours) == 1.5
    assert ratio(None, ours) is None
    assert ratio(ours, series("x", (0.0, 0.0, 0.0))) is None


def test_a_report_is_the_same_after_it_was_saved(tmp_path: Path) -> None:
    report = a_report()
    save(report, tmp_path / "report.json")
    assert load(tmp_path / "report.json") == report
    data = json.loads((tmp_path / "report.json").read_text())
    first = data["series"][0]
    assert (data["schema"], first["median"], first["low"], first["high"]) == (1, 0.002, 0.001, 0.003)


@pytest.mark.parametrize("content", [None, "{", '{"schema": 2}', '{"series": [1]}'])
def test_a_file_that_is_no_report_is_refused(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "report.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(RendezvousSettingsError, match=r"report is|schema is 2"):
        load(path)


def test_where_a_server_ends_is_the_least_of_its_bounds() -> None:
    report = new_report({})
    report.machine["open_files"] = 1050
    report.add("upkeep", "tcp", "cpu", "cores", [0.1], 1000)
    report.add("upkeep", "tcp", "memory", "B", [2**20], 1000)
    for step, seconds, sent in (("join", 1e-3, 50), ("join again", 1e-5, 125), ("death", 2e-5, 100)):
        report.add("growth", f"simulated {step}", "turn", "s", [seconds], 10)
        report.add("growth", f"simulated {step}", "bytes_out", "B", [sent], 10)
    report.add("growth", "simulated join", "turn", "s", [1e-6], 1000)  # the largest size counts
    found = {bound.what: bound.nodes for bound in bounds(report)}
    assert found == {
        "open files": 1000,
        "heartbeats": pytest.approx(5000),
        "memory": 8192,
        "a turn below 2 s": pytest.approx(100_000),
        "fan-out bandwidth": pytest.approx(1e7),
    }
    assert bounds(report)[0].what == "open files"


def test_only_names_parts_and_contenders() -> None:
    plan = restrict(Plan(), ["failure,tcp", "growth"])
    assert (plan.parts, plan.contenders) == (("failure", "growth"), ("tcp",))
    everything = restrict(Plan(), [])
    assert (everything.parts, everything.contenders) == (PARTS, tuple(CONTENDERS))
    with pytest.raises(RendezvousSettingsError, match=r"'speed'.*rendezvous.*torchft"):
        restrict(Plan(), ["speed"])

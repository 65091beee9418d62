"""Every group of measurements measures what it says."""

from __future__ import annotations

import sys
from itertools import groupby
from pathlib import Path

import msgspec
import pytest

from benchmarks.growth import fits, measure_growth, measure_law
from benchmarks.parts import (
    MEASURES,
    MOST_RUNS,
    measure_failure,
    measure_imports,
    measure_rendezvous,
    measure_store,
    measure_upkeep,
)
from benchmarks.plan import PARTS
from benchmarks.report import new_report
from tests.kit.benchmarks_kit import TINY, nothing


def test_a_rendezvous_is_timed_for_every_contender_size_and_turn() -> None:
    report = new_report({})
    measure_rendezvous(TINY, report, nothing)
    counts = {(one.contender, one.nodes): len(one.values) for one in report.of("rendezvous", "meet")}
    expected = {(name, nodes): 2 * MOST_RUNS for name in TINY.contenders for nodes in TINY.nodes}
    assert (report.skipped, counts) == ({}, expected)
    assert all(value > 0 for one in report.series for value in one.values)


def test_a_contender_that_is_not_installed_is_left_out_with_the_reason() -> None:
    report = new_report({})
    plan = msgspec.structs.replace(TINY, contenders=("torchft", "jax"), peer_python=sys.executable)
    measure_rendezvous(plan, report, nothing)
    here = {name for name in plan.contenders if name not in report.skipped}
    assert all("is not installed" in reason for reason in report.skipped.values())
    assert here == {one.contender for one in report.series}


def test_a_peer_without_an_interpreter_is_left_out_with_the_reason(tmp_path: Path) -> None:
    report = new_report({})
    missing = str(tmp_path / "python")
    plan = msgspec.structs.replace(TINY, contenders=("jax",), peer_python=missing)
    measure_rendezvous(plan, report, nothing)
    assert report.skipped == {"jax": f"{missing} cannot be run: No such file or directory"}


@pytest.mark.parametrize("stock", ["c10d", "etcd-v2"])
def test_stock_is_measured_with_a_process_for_each_node(stock: str) -> None:
    report = new_report({})
    plan = msgspec.structs.replace(TINY, contenders=(stock,), nodes=(2,), repeat=1)
    measure_rendezvous(plan, report, nothing)
    meet = report.find("rendezvous", stock, "meet", 2)
    assert (report.skipped, meet is not None) == ({}, True)


def test_a_death_is_timed_until_all_are_told_and_have_met_again() -> None:
    report = new_report({})
    measure_failure(msgspec.structs.replace(TINY, repeat=1), report, nothing)
    at_once = {one.metric: one for one in report.series if one.contender == "tcp, grace 0 s"}
    assert set(at_once) == {"told", "again"}
    later = report.find("failure", "tcp, grace 1 s", "told", 3)
    assert later is not None
    assert later.values[0] >= 1.0
    assert at_once["told"].values < at_once["again"].values


def test_upkeep_is_measured_in_the_server() -> None:
    report = new_report({})
    measure_upkeep(TINY, report, nothing)
    assert {one.metric for one in report.of("upkeep")} == {"cpu", "memory", "member_cpu", "member_memory"}


def test_the_store_is_measured_with_both_clients_and_servers() -> None:
    report = new_report({})
    measure_store(msgspec.structs.replace(TINY, repeat=1), report, nothing)
    pairs = {
        f"{client} client, {served} server" for client in ("stock", "ours") for served in ("stock", "ours")
    }
    assert {one.contender for one in report.of("store", "round trip")} == pairs


def test_imports_are_timed() -> None:
    report = new_report({})
    measure_imports(msgspec.structs.replace(TINY, repeat=1), report, nothing)
    assert {"import arendezvous", "arendezvous --help"} <= {one.contender for one in report.of("imports")}


def test_the_law_alone_is_timed_operation_by_operation() -> None:
    report = new_report({})
    measure_law(TINY, report, nothing)
    sizes: dict[str, list[int]] = {}
    for one in report.of("law"):
        sizes.setdefault(one.contender, []).append(one.nodes)
    assert {"join", "heartbeat", "expiry", "drain"} < set(sizes)
    assert {tuple(nodes) for nodes in sizes.values()} == {TINY.simulated}


def test_growth_is_counted_on_the_real_server_and_in_the_simulation() -> None:
    report = new_report({})
    measure_growth(TINY, report, nothing)
    for contender, sizes in (("real join", TINY.grown), ("simulated join", TINY.simulated)):
        found = [report.find("growth", contender, "frames_in", nodes) for nodes in sizes]
        assert [one.values for one in found if one is not None] == [(1.0,)] * 2, contender
    told = [(contender, metric) for contender, metric, _, _ in fits(report)]
    assert ("simulated join", "turn") in told
    assert ("simulated join", "collector") in told
    assert ("simulated, all", "memory") in told
    contenders = [contender for contender, _ in told]
    assert len([*groupby(contenders)]) == len({*contenders}), "the rows of a step are not together"


def test_every_part_can_be_measured() -> None:
    assert tuple(MEASURES) == PARTS

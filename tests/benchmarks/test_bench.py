"""The benchmark measures what it says, ends what it starts, and shows what it has measured."""

from __future__ import annotations

import json
import os
import socket
import sys
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arendezvous.bench import plot, ports
from arendezvous.bench.capacity import bounds
from arendezvous.bench.contenders import server, start
from arendezvous.bench.counting import FrameCount
from arendezvous.bench.growth import exponent, fits, measure_growth
from arendezvous.bench.meeting import MOST_RUNS, measure_failure, measure_rendezvous
from arendezvous.bench.pages import fill, fill_page
from arendezvous.bench.plan import CONTENDERS, PARTS, Plan, restrict
from arendezvous.bench.ports import held_port, until_listening
from arendezvous.bench.process import Process, SkippedError
from arendezvous.bench.report import Report, Series, load, new_report, ratio, save
from arendezvous.bench.storing import measure_store
from arendezvous.bench.tables import quantity, tables, to_markdown
from arendezvous.bench.upkeep import measure_imports, measure_upkeep
from arendezvous.cli.exits import ExitCode
from arendezvous.errors import RendezvousSettingsError
from arendezvous.wire.native.messages import PREFACE, Ack, encode
from tests.kit.cli_kit import run

TINY = Plan(
    contenders=("tcp", "memory", "floor"),
    nodes=(2, 3),
    repeat=2,
    failure_nodes=3,
    idle_nodes=3,
    idle_seconds=0.1,
    idle_interval=0.1,
    operations=64,
    grown=(2, 4),
    simulated=(4, 8),
    limit=120.0,
)


def series(contender: str, values: tuple[float, ...], nodes: int = 2, **more: Any) -> Series:
    report = Report(series=[])
    report.add("rendezvous", contender, more.get("metric", "meet"), "s", values, nodes)
    return report.series[0]


def a_report() -> Report:
    report = new_report({"repeat": 3})
    report.series += [series("tcp", (0.001, 0.002, 0.003)), series("c10d", (1.0, 1.0, 1.5))]
    report.miss("rendezvous", "jax", "meet", 2, "not done in 60 s")
    report.skipped["etcd"] = "there is no etcd"
    return report


def nothing(_: str) -> None:
    """Tells nobody."""


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


def test_stock_is_measured_with_a_process_for_each_node() -> None:
    report = new_report({})
    plan = msgspec.structs.replace(TINY, contenders=("c10d",), nodes=(2,), repeat=1)
    measure_rendezvous(plan, report, nothing)
    meet = report.find("rendezvous", "c10d", "meet", 2)
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


def test_a_process_that_takes_too_long_is_ended_with_all_that_it_has_started() -> None:
    with ExitStack() as resources:
        peer = start("memory", resources, TINY)
        with pytest.raises(SkippedError, match=r"not done in 0\.01 s"):
            peer.ask(0.01, do="idle", nodes=1, seconds=60, interval=60, server=os.getpid())
        with pytest.raises(SkippedError, match=r"not done in 0\.01 s"):
            peer.ask(30, do="meet", nodes=2)
    with pytest.raises(ProcessLookupError):
        os.kill(peer.pid, 0)


def test_what_a_process_fails_with_is_told_and_it_goes_on() -> None:
    with Process("members", "memory://x", "asyncio", '{"rank_policy": "best"}') as broken:
        with pytest.raises(SkippedError, match="rank_policy is 'best'"):
            broken.ask(30, do="meet", nodes=2)
        with pytest.raises(SkippedError, match="KeyError"):
            broken.ask(30, nodes=2)


def test_a_process_that_ends_is_told_of() -> None:
    with ExitStack() as resources:
        serving = server(resources, TINY, "asyncio")
        os.kill(serving.pid, 9)
        with pytest.raises(SkippedError, match="process"):
            serving.ask(30)


def test_a_port_that_is_held_is_for_the_server_that_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "START_LIMIT", 0.01)
    with held_port() as port:
        with socket.socket() as another, pytest.raises(OSError, match="in use"):
            another.bind((ports.HOST, port))
        with pytest.raises(TimeoutError, match=f"nobody listens on 127.0.0.1:{port} after 0.01 s"):
            until_listening(port)
        monkeypatch.undo()
        with socket.create_server((ports.HOST, port)):
            until_listening(port)


@given(st.lists(st.integers(1, 300), max_size=8), st.lists(st.integers(1, 20), min_size=1))
def test_frames_are_counted_however_the_bytes_are_cut(numbers: list[int], cuts: list[int]) -> None:
    data = PREFACE + b"".join(encode(Ack(number)) for number in numbers)
    counter, counted, position = FrameCount(len(PREFACE)), 0, 0
    while position < len(data):
        cut = cuts[position % len(cuts)]
        counted += counter.feed(data[position : position + cut])
        position += cut
    assert counted == len(numbers)


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


def test_a_page_without_markers_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    with pytest.raises(RendezvousSettingsError, match="page"):
        fill_page(page, a_report())
    page.write_text("nothing to fill\n")
    with pytest.raises(RendezvousSettingsError, match="markers"):
        fill_page(page, a_report())


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
    assert (everything.parts, everything.contenders) == (PARTS, CONTENDERS)
    with pytest.raises(RendezvousSettingsError, match=r"'speed'.*rendezvous.*torchft"):
        restrict(Plan(), ["speed"])


def test_a_plot_needs_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plot, "find_spec", lambda name: None)
    with pytest.raises(RendezvousSettingsError, match="matplotlib is not installed"):
        plot.check_plot(Path("x.svg"))
    monkeypatch.setattr(plot, "find_spec", lambda name: object())
    with pytest.raises(RendezvousSettingsError, match=r"\.png"):
        plot.check_plot(Path("x.txt"))


async def test_the_command_prints_the_table_writes_json_and_shows_it_again(tmp_path: Path) -> None:
    path, page = tmp_path / "report.json", tmp_path / "page.md"
    page.write_text("<!-- bench:rendezvous -->\n<!-- end -->\n")
    few = ("--quick", "--only", "rendezvous,memory,floor", "--nodes", "2", "--repeat", "1")
    first = await run("bench", *few, "--json", str(path))
    assert (first.code, first.err) == (ExitCode.OK, "")
    assert "ours, memory" in first.out
    again = await run("bench", "--load", str(path), "--markdown", str(page))
    assert (again.code, again.out) == (ExitCode.OK, first.out)
    assert "| ours, memory |" in page.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--only", "speed"), "only is 'speed'"),
        (("--load", "nowhere.json"), "nowhere.json"),
        (("--plot", "x.txt"), "plot is 'x.txt'"),
    ],
)
async def test_the_command_says_what_is_wrong_before_it_measures(
    arguments: tuple[str, ...], message: str
) -> None:
    result = await run("bench", *arguments)
    assert (result.code, result.out) == (ExitCode.USAGE, "")
    assert message in result.err

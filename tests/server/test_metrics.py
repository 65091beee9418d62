"""The figures for Prometheus are true, well named, and few; the probes answer."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterable
from functools import partial
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import aiohttp
import anyio
import pytest
from prometheus_client.core import Metric
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_text

import arendezvous as ar
from arendezvous.coordinator.coordinator import Coordinator
from arendezvous.keyspace.host import KeyspaceHost
from arendezvous.keyspace.keyspace import Keyspace
from arendezvous.law.operations import Close, Drain, Join, KeepAlive, Leave
from arendezvous.law.state import Cause, NodeDesc, RunSettings
from arendezvous.server.access.admission import Admission, FailureThrottle
from arendezvous.server.access.limits import DEFAULT_LIMITS
from arendezvous.server.context import ServerContext
from arendezvous.server.http.listener import make_app
from arendezvous.server.metrics import Histogram, ServerMetrics, package_version
from arendezvous.server.serve import Server
from arendezvous.server.tcp.sharing import Shared
from tests.kit import ROOT

DOCS = ROOT / "docs"
Figures = dict[tuple[str, frozenset[tuple[str, str]]], float]

UNITS = ("_seconds", "_bytes", "_total", "_info", "_runs", "_nodes", "_connections", "_keys", "_fds")
OPEN_METRICS = "application/openmetrics-text; version=1.0.0"


def figures_of(families: Iterable[Metric]) -> Figures:
    """All samples; no two are of the same name and labels."""
    figures: Figures = {}
    for family in families:
        for sample in family.samples:
            name = (sample.name, frozenset(sample.labels.items()))
            assert name not in figures, name
            figures[name] = sample.value
    return figures


def get(figures: Figures, name: str, **labels: str) -> float:
    return figures[f"arendezvous_{name}", frozenset(labels.items())]


def faults(families: list[Metric]) -> list[str]:
    """What Prometheus' own check of metrics (promtool check metrics) would say, and a little more."""
    found = []
    for family in families:
        name = family.name + ("_total" if family.type == "counter" else "")
        if not re.fullmatch(r"(arendezvous|process)_[a-z0-9]+(_[a-z0-9]+)*", name):
            found.append(f"{name}: not in snake case with the prefix of the program")
        if not name.endswith(UNITS):
            found.append(f"{name}: no unit, or not a base unit")
        if not family.documentation:
            found.append(f"{name}: no help")
        if family.type == "gauge" and name.endswith("_total"):
            found.append(f"{name}: only counters end in _total")
        if re.search(r"_(counter|gauge|histogram|metric)\b", name):
            found.append(f"{name}: names its type")
        for label in {label for sample in family.samples for label in sample.labels}:
            if label not in {"le", "state", "phase", "cause", "kind", "protocol", "version", "python"}:
                found.append(f"{name}: a label that may have any number of values: {label}")
    return found


async def fetch(server: Server, path: str = "/metrics", accept: str = "") -> tuple[int, str, str]:
    async with (
        aiohttp.ClientSession(server.http_url) as client,
        client.get(path, headers={"Accept": accept} if accept else {}) as answer,
    ):
        return answer.status, answer.headers["Content-Type"], await answer.text()


async def scrape(server: Server) -> Figures:
    _, _, text = await fetch(server)
    return figures_of(parse_text(text))


class World:
    """A coordinator with its figures, in virtual time."""

    def __init__(self) -> None:
        self.coordinator = Coordinator(asyncio.get_running_loop())
        self.keys = Keyspace()
        self.metrics = ServerMetrics(self.coordinator, self.keys, Admission())
        self.metrics.start()

    def propose(self, node: str, operation: Join | Leave | KeepAlive, run: str = "job") -> None:
        attachment = self.coordinator.attach(run, node, node.encode(), lambda _: None)
        self.coordinator.propose(attachment, operation)

    def join(self, node: str, settings: RunSettings, run: str = "job") -> None:
        self.propose(node, Join(NodeDesc(node), settings), run)

    @property
    def figures(self) -> Figures:
        return figures_of(self.metrics.registry.collect())

    def end(self) -> None:
        self.metrics.stop()
        self.coordinator.close()


async def test_both_formats_are_valid_and_name_the_same_figures() -> None:
    async with ar.serve("127.0.0.1:0", http="127.0.0.1:0") as server:
        status, content_type, text = await fetch(server)
        assert (status, content_type) == (200, "text/plain; version=0.0.4; charset=utf-8")
        status, content_type, more = await fetch(server, accept=OPEN_METRICS)
        assert (status, content_type) == (200, f"{OPEN_METRICS}; charset=utf-8")
        plain, modern = list(parse_text(text)), list(parse_openmetrics(more))  # type: ignore[no-untyped-call]  # theirs
        assert {family.name for family in plain} >= {
            "arendezvous_runs", "arendezvous_rounds_completed", "process_cpu_seconds"
        }  # fmt: skip
        assert set(figures_of(plain)) == set(figures_of(modern))


async def test_the_document_names_every_figure_its_type_and_its_labels() -> None:
    row = re.compile(r"^\| `(arendezvous_\w+)` \| (\w+) \| (?:([^|]*) )?\|", re.MULTILINE)
    told = {
        name: (kind, set(re.findall(r"`(\w+)`", labels)))
        for name, kind, labels in row.findall((DOCS / "reference" / "metrics.md").read_text())
    }
    async with ar.serve("127.0.0.1:0", http="127.0.0.1:0") as server:
        _, _, text = await fetch(server)
    there = {}
    for family in parse_text(text):
        if family.name.startswith("arendezvous"):
            name = family.name + ("_total" if family.type == "counter" else "")
            labels = {label for sample in family.samples for label in sample.labels} - {"le"}
            there[name] = (family.type, labels)
    assert told == there


SELECTED = re.compile(r"((?:arendezvous|process)_\w+)\{([^}]*)\}")
OF_PROMETHEUS = {"job", "instance"}  # the labels that it adds to what it reads


async def test_every_query_of_the_dashboard_asks_for_what_a_server_tells(tmp_path: Path) -> None:
    board = json.loads((ROOT / "deploy" / "grafana" / "arendezvous.json").read_text())
    targets = [one for panel in board["panels"] for one in panel.get("targets", ())]
    async with ar.serve("127.0.0.1:0", http="127.0.0.1:0", data_dir=tmp_path) as server:
        async with ar.open_rendezvous(server.tcp_url, run_id="job", min_nodes=1, max_nodes=1) as node:
            await node.next_rendezvous()
        series: dict[str, list[dict[str, str]]] = {}
        for name, labels in await scrape(server):
            series.setdefault(name, []).append(dict(labels))
    assert len(targets) > 20
    for target in targets:
        selected = SELECTED.findall(target["expr"])
        assert len(selected) == len(re.findall(r"(?:arendezvous|process)_\w+", target["expr"])) > 0, target
        grouped = {label for by in re.findall(r"by \(([^)]*)\)", target["expr"]) for label in by.split(", ")}
        shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        for name, matchers in selected:
            asked = {label: value for label, _, value in re.findall(r'(\w+)(=~?)"([^"]*)"', matchers)}
            assert asked.keys() >= OF_PROMETHEUS, target
            exact = {label: value for label, value in asked.items() if label not in OF_PROMETHEUS}
            assert [labels for labels in series.get(name, []) if exact.items() <= labels.items()], target
            assert grouped <= {*series[name][0], *OF_PROMETHEUS}, target
        assert shown <= grouped, target
    asked_first = [one["definition"] for one in board["templating"]["list"] if one["type"] == "query"]
    assert all(re.findall(r"label_values\((\w+)", one)[0] in series for one in asked_first)


def test_no_panel_of_the_dashboard_covers_another() -> None:
    board = json.loads((ROOT / "deploy" / "grafana" / "arendezvous.json").read_text())
    cells = [
        (column, line)
        for at in (panel["gridPos"] for panel in board["panels"])
        for column in range(at["x"], at["x"] + at["w"])
        for line in range(at["y"], at["y"] + at["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(column for column, _ in cells) < 24


async def test_names_and_labels_are_as_prometheus_advises() -> None:
    async with ar.serve("127.0.0.1:0", http="127.0.0.1:0") as server:
        _, _, text = await fetch(server)
        assert faults(list(parse_text(text))) == []


def test_the_check_of_names_finds_faults() -> None:
    text = '# HELP job_runs_total \n# TYPE job_runs_total gauge\njob_runs_total{run="a"} 1\n'
    assert len(faults(list(parse_text(text)))) == 4
    assert (
        len(faults(list(parse_text("# HELP arendezvous_lag_ms x\n# TYPE arendezvous_lag_ms gauge\n")))) == 1
    )


@pytest.mark.virtual
async def test_any_number_of_runs_and_nodes_makes_no_more_series() -> None:
    world = World()
    before = set(world.figures)
    for number in range(50):
        world.join(f"node {number}", RunSettings(1, 1), run=f"run {number}")
    assert set(world.figures) == before
    assert get(world.figures, "runs", state="complete") == 50
    world.end()


@pytest.mark.virtual
async def test_runs_and_nodes_are_counted_where_they_stand() -> None:
    world = World()
    trio = RunSettings(2, 3, last_call=5.0)
    for node in "abc":
        world.join(node, trio)
    world.join("spare", trio)
    world.join("early", trio, run="gathering")
    rival = world.coordinator.attach("gathering", "early", b"another process", lambda _: None)
    world.coordinator.propose(rival, Join(NodeDesc("early"), trio))
    world.join("done", RunSettings(1, 1), run="ended")
    world.propose("done", Leave("done", cause=Cause.FINISHED), run="ended")
    world.coordinator.steer("closed", Close())
    world.coordinator.steer("job", Drain("a", 60.0))
    figures = world.figures
    states = ("gathering", "complete", "closed", "ended")
    assert {state: get(figures, "runs", state=state) for state in states} == dict.fromkeys(states, 1)
    phases = ("gathering", "member", "waiting", "spare", "claiming")
    assert [get(figures, "nodes", phase=phase) for phase in phases] == [1, 3, 1, 0, 1]
    assert get(figures, "draining_nodes") == 1
    world.coordinator.detach(world.coordinator.runs["job"].attachments["b"])
    assert get(world.figures, "disconnected_nodes") == 1
    world.end()


@pytest.mark.virtual
async def test_joins_leaves_and_losses_are_counted_by_kind_and_cause() -> None:
    world = World()
    settings = RunSettings(1, 5, last_call=0.0)
    for node in ("stays", "leaves", "fails", "dies"):
        world.join(node, settings)
    world.propose("leaves", Leave("leaves"))
    world.propose("fails", Leave("fails", cause=Cause.FAILED))
    world.coordinator.detach(world.coordinator.runs["job"].attachments["dies"])
    for _ in range(8):
        world.propose("stays", KeepAlive("stays"))
        await anyio.sleep(4.0)
    figures = world.figures
    assert get(figures, "joins_total", phase="gathering") == 1
    assert get(figures, "joins_total", phase="waiting") == 3
    assert get(figures, "leaves_total", cause="left") == 1
    assert get(figures, "leaves_total", cause="failed") == 1
    assert get(figures, "expiries_total", cause="connection lost") == 1
    assert get(figures, "expiries_total", cause="no heartbeat") == 0
    assert get(figures, "heartbeats_total") == 8
    assert get(figures, "operations_total", kind="leave") == 2
    assert get(figures, "operations_total", kind="disconnect") == 1
    world.end()


@pytest.mark.virtual
async def test_a_round_lasts_from_its_first_participant_to_its_completion() -> None:
    world = World()
    pair = RunSettings(2, 2)
    world.join("a", pair)
    await anyio.sleep(3.0)
    world.join("b", pair)
    figures = world.figures
    assert get(figures, "rounds_completed_total") == 1
    assert get(figures, "round_duration_seconds_count") == 1
    assert get(figures, "round_duration_seconds_sum") == pytest.approx(3.0)
    assert get(figures, "round_duration_seconds_bucket", le="2.5") == 0
    assert get(figures, "round_duration_seconds_bucket", le="5.0") == 1
    assert get(figures, "round_duration_seconds_bucket", le="+Inf") == 1
    world.end()


async def test_a_round_that_is_over_in_the_moment_of_its_completion_is_counted_but_not_timed() -> None:
    now = 0.0
    coordinator = Coordinator(asyncio.get_running_loop(), lambda: now)
    metrics = ServerMetrics(coordinator, Keyspace(), Admission())
    metrics.start()
    attachment = coordinator.attach("job", "a", b"", lambda _: None)
    coordinator.propose(attachment, Join(NodeDesc("a"), RunSettings(1, 2, last_call=5.0)))
    now = 6.0
    coordinator.propose(attachment, Leave("a"))
    figures = figures_of(metrics.registry.collect())
    assert get(figures, "rounds_completed_total") == 1
    assert get(figures, "round_duration_seconds_count") == 0
    metrics.stop()
    coordinator.close()


@pytest.mark.virtual
async def test_how_late_the_loop_is_is_looked_at_four_times_a_second() -> None:
    world = World()
    loop = asyncio.get_running_loop()
    await anyio.sleep(10.1)
    assert get(world.figures, "loop_lag_seconds_count") == 40
    assert get(world.figures, "loop_lag_seconds_sum") == pytest.approx(0.0)
    loop._virtual_now += 2.0  # type: ignore[attr-defined]  # somebody held the loop up for so long
    await anyio.sleep(0.01)
    assert get(world.figures, "loop_lag_seconds_sum") == world.metrics.lag == pytest.approx(1.85)
    world.end()


def test_a_histogram_counts_a_figure_at_a_bound_into_the_bucket_of_that_bound() -> None:
    histogram = Histogram((1.0, 2.0))
    for figure in (0.5, 1.0, 1.5, 9.0):
        histogram.observe(figure)
    family = histogram.family("x", "y")
    assert [(sample.labels.get("le"), sample.value) for sample in family.samples] == [
        ("1.0", 2), ("2.0", 3), ("+Inf", 4), (None, 4), (None, 12.0)
    ]  # fmt: skip


async def test_what_stops_being_counted_costs_nothing_any_more() -> None:
    coordinator = Coordinator(asyncio.get_running_loop())
    metrics = ServerMetrics(coordinator, Keyspace(), Admission())
    metrics.stop()
    metrics.start()
    metrics.stop()
    attachment = coordinator.attach("job", "a", b"", lambda _: None)
    coordinator.propose(attachment, Join(NodeDesc("a"), RunSettings(1, 1)))
    assert get(figures_of(metrics.registry.collect()), "rounds_completed_total") == 0
    coordinator.close()


async def test_traffic_is_counted_by_protocol_while_it_goes_on() -> None:
    async with (
        ar.serve("127.0.0.1:0", http="127.0.0.1:0") as server,
        ar.open_rendezvous(server.tcp_url, run_id="job", min_nodes=1, max_nodes=1) as rdzv,
    ):
        info = await rdzv.next_rendezvous()
        await info.store.set("key", b"x" * 10_000)
        first = await scrape(server)
        for protocol in ("native", "c10d", "http"):
            assert get(first, "connections", protocol=protocol) == 1, protocol
            assert get(first, "received_bytes_total", protocol=protocol) > 0, protocol
        assert get(first, "received_bytes_total", protocol="c10d") > 10_000
        assert get(first, "sent_bytes_total", protocol="native") > 0
        assert get(first, "sent_bytes_total", protocol="http") == 0  # this answer is being written
        assert get(first, "store_operations_total", kind="set") == 1
        assert get(first, "store_keys") >= 1
        assert get(first, "store_bytes") >= 1
        second = await scrape(server)
        assert get(second, "sent_bytes_total", protocol="http") > 5_000
        assert get(second, "connections_opened_total", protocol="http") == 2
        assert get(second, "connections", protocol="http") == 1


async def test_a_stream_of_events_is_counted_before_it_is_over() -> None:
    async with (
        ar.serve("127.0.0.1:0", http="127.0.0.1:0") as server,
        aiohttp.ClientSession(server.http_url) as client,
        client.get("/v1/events") as stream,
    ):
        await stream.content.readuntil(b"\n\n")
        assert get(await scrape(server), "sent_bytes_total", protocol="http") > 100


def test_a_checkout_that_is_not_installed_has_an_unknown_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("arendezvous.server.metrics.version", none)
    assert package_version() == "unknown"


async def test_connections_over_the_limit_are_counted() -> None:
    limits = ar.ServerLimits(max_connections=1)
    async with (
        ar.serve("127.0.0.1:0", http="127.0.0.1:0", limits=limits) as server,
        aiohttp.ClientSession(server.http_url) as client,
    ):
        async with client.get("/healthz") as answer:
            assert answer.status == 200
        stream = await anyio.connect_tcp(server.host, server.port)
        with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
            await stream.receive()
        await stream.aclose()
        async with client.get("/metrics") as answer:
            figures = figures_of(parse_text(await answer.text()))
    assert get(figures, "connections_refused_total") == 1


async def test_a_server_that_runs_is_alive_and_ready_in_words_and_as_json() -> None:
    async with ar.serve("127.0.0.1:0", http="127.0.0.1:0") as server:
        assert await fetch(server, "/healthz") == (200, "text/plain; charset=utf-8", "ok\n")
        assert await fetch(server, "/readyz") == (200, "text/plain; charset=utf-8", "ready\n")
        status, kind, text = await fetch(server, "/readyz", "application/json")
        assert (status, kind) == (200, "application/json")
        assert text == '{"status":"ready","listeners":{"tcp":true,"http":true}}'
        _, _, text = await fetch(server, "/healthz", "application/json")
        assert text.startswith('{"status":"ok","loop_lag_seconds":')


@pytest.mark.parametrize(
    ("listeners", "closed", "words"),
    [
        ({"tcp": True, "http": True}, True, "shutting down\n"),
        ({"tcp": False, "http": True}, False, "not listening: tcp\n"),
        ({}, False, "not listening: anywhere\n"),
    ],
)
async def test_a_server_that_cannot_take_nodes_is_alive_but_not_ready(
    listeners: dict[str, bool], closed: bool, words: str
) -> None:
    admission = Admission()
    admission.listeners.update({name: partial(bool, is_open) for name, is_open in listeners.items()})
    if closed:
        admission.close()
    coordinator = Coordinator(asyncio.get_running_loop())
    shared = Shared(DEFAULT_LIMITS, FailureThrottle())
    context = ServerContext(coordinator, KeyspaceHost(), shared, admission=admission)
    runner = aiohttp.web.AppRunner(make_app(context))
    await runner.setup()
    site = aiohttp.web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    async with aiohttp.ClientSession(site.name) as client:
        host, port = runner.addresses[0][:2]
        async with client.get(f"http://{host}:{port}/readyz") as answer:
            assert (answer.status, await answer.text()) == (503, words)
        async with client.get(f"http://{host}:{port}/healthz") as answer:
            assert answer.status == 200
    await runner.cleanup()
    coordinator.close()

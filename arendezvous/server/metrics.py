"""The figures of a server for Prometheus: read from what is there when somebody asks, and counted where not.

Names, units and types follow Prometheus' own advice for instrumentation. No label has more values than the
code can name: there is none for a run, a node or an address, as whoever joins could make up any number.
"""

from __future__ import annotations

import asyncio
import math
import platform
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Final, get_args

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily as Counter
from prometheus_client.core import GaugeMetricFamily as Gauge
from prometheus_client.core import HistogramMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from arendezvous.coordinator.coordinator import Coordinator
from arendezvous.coordinator.run import Run
from arendezvous.keyspace.keyspace import Keyspace
from arendezvous.law.events import LawEvent, NodeDeparted, NodeJoined, RoundCompleted
from arendezvous.law.operations import KeepAlive, Operation, Tick
from arendezvous.law.state import Cause, Phase, RendezvousState
from arendezvous.server.access.admission import Admission, ProtocolCounts
from arendezvous.server.leadership import Leadership

LAG_INTERVAL: Final = 0.25  # seconds between two looks at how late the event loop is
LAG_BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
ROUND_BOUNDS: Final = (
    0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0,
)  # fmt: skip


class Histogram:
    """Counts how often a figure was at most each of some bounds."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, figure: float) -> None:
        """Counts one figure."""
        self._counts[bisect_left(self._bounds, figure)] += 1
        self._sum += figure

    def family(self, name: str, documentation: str) -> HistogramMetricFamily:
        """The histogram as Prometheus has it: each bucket holds the ones before it, too."""
        buckets, total = [], 0
        for bound, count in zip((*self._bounds, math.inf), self._counts, strict=True):
            total += count
            buckets.append((str(bound) if bound < math.inf else "+Inf", float(total)))
        return HistogramMetricFamily(name, documentation, buckets=buckets, sum_value=self._sum)


class RunCounts:
    """How many runs and nodes there are, by where they stand.

    Attributes:
        states: Runs, by state.
        phases: Nodes, by phase.
        draining: Members that are draining.
        disconnected: Nodes whose connection broke, within their grace.
    """

    def __init__(self, runs: Iterable[Run] = ()) -> None:
        self.states = dict.fromkeys(("gathering", "complete", "closed", "ended"), 0)
        self.phases = dict.fromkeys((phase for phase in Phase if phase is not Phase.GONE), 0)
        self.draining = 0
        self.disconnected = 0
        self.add(runs)

    def add(self, runs: Iterable[Run]) -> None:
        """Counts some more runs."""
        states, phases = self.states, self.phases
        for run in runs:
            state = run.state
            states[_state_of(state)] += 1
            phases[Phase.MEMBER if state.complete else Phase.GATHERING] += len(state.participants)
            phases[Phase.WAITING] += len(state.wait_list)
            phases[Phase.REDUNDANT] += len(state.redundancy_list)
            phases[Phase.CLAIMING] += sum(map(len, run.claims.values()))
            self.draining += len(state.drains)
            self.disconnected += len(state.suspects)


class ServerMetrics(Collector):
    """All figures of one server, in a registry of its own.

    Attributes:
        registry: Where to collect from.
        lag: Seconds by which the event loop was late when last looked at.
        counts: What there is, for the next `collect`; None: it counts that itself.
    """

    def __init__(
        self, coordinator: Coordinator, keys: Keyspace, admission: Admission, fleet: Leadership | None = None
    ) -> None:
        self.registry = CollectorRegistry()
        self.lag = 0.0
        self.counts: RunCounts | None = None
        self._coordinator = coordinator
        self._keys = keys
        self._admission = admission
        self._leadership = fleet
        self._rounds = 0
        self._joins = dict.fromkeys(Phase, 0)
        self._departures = dict.fromkeys(Cause, 0)
        self._round_seconds = Histogram(ROUND_BOUNDS)
        self._lag_seconds = Histogram(LAG_BOUNDS)
        self._timer: asyncio.TimerHandle | None = None
        self._stop_observing: Callable[[], None] | None = None
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    def start(self) -> None:
        """Begins to count what cannot be read when somebody asks; in the server's event loop."""
        kinds = (NodeJoined, NodeDeparted, RoundCompleted)
        self._stop_observing = self._coordinator.observe(self._observe, *kinds)
        self._look_again(asyncio.get_running_loop())

    def stop(self) -> None:
        """Ends the counting."""
        if self._timer is not None:
            self._timer.cancel()
        if self._stop_observing is not None:
            self._stop_observing()

    def collect(self) -> Iterator[Metric]:
        """Yields all families; work proportional to the number of runs, whatever the number of nodes."""
        build = {"version": package_version(), "python": platform.python_version()}
        yield InfoMetricFamily("arendezvous_build", "What is running here.", value=build)
        yield from self._of_runs()
        yield from self._of_events()
        yield from self._of_store()
        yield from self._of_protocols()
        if self._coordinator.records is not None:
            yield from _of_journal(self._coordinator.records.commits.failing_since)
        if self._leadership is not None:
            yield from _of_fleet(self._leadership)
        words = f"How late a timer of the event loop was, each {LAG_INTERVAL:g} s."
        yield self._lag_seconds.family("arendezvous_loop_lag_seconds", words)

    def _observe(self, run_id: str, now: float, event: LawEvent) -> None:
        if isinstance(event, NodeJoined):
            self._joins[event.phase] += 1
        elif isinstance(event, NodeDeparted):
            self._departures[event.cause] += 1
        elif isinstance(event, RoundCompleted):
            self._rounds += 1
            state = self._coordinator.runs[run_id].state
            if state.complete and state.round == event.round:  # and not over in the very same moment
                since = min([state.nodes[node].since for node in state.participants])
                self._round_seconds.observe(now - since)

    def _look_again(self, loop: asyncio.AbstractEventLoop) -> None:
        due = loop.time() + LAG_INTERVAL

        def look() -> None:
            self.lag = max(0.0, loop.time() - due)
            self._lag_seconds.observe(self.lag)
            self._look_again(loop)

        self._timer = loop.call_at(due, look)

    def _of_runs(self) -> Iterator[Metric]:
        counts = self.counts or RunCounts(self._coordinator.runs.values())
        states = counts.states.items()
        yield _gauge("arendezvous_runs", "Runs that the server keeps, by state.", "state", states)
        nodes = ((phase.value, count) for phase, count in counts.phases.items())
        yield _gauge("arendezvous_nodes", "Nodes in all runs, by where they stand.", "phase", nodes)
        yield Gauge("arendezvous_draining_nodes", "Members that are draining.", counts.draining)
        words = "Nodes whose connection broke, within their grace."
        yield Gauge("arendezvous_disconnected_nodes", words, counts.disconnected)

    def _of_events(self) -> Iterator[Metric]:
        operations = self._coordinator.operations
        yield Counter("arendezvous_rounds_completed", "Rounds that were completed.", self._rounds)
        words = "From a round's first participant to its completion."
        yield self._round_seconds.family("arendezvous_round_duration_seconds", words)
        nowhere = (Phase.GONE, Phase.CLAIMING)
        joins = ((phase.value, count) for phase, count in self._joins.items() if phase not in nowhere)
        yield _counter("arendezvous_joins", "Nodes that joined a run or met again.", "phase", joins)
        gone = self._departures.items()
        left = ((c.value, count) for c, count in gone if not (c.is_loss or c.is_refusal))
        yield _counter("arendezvous_leaves", "Nodes that left by decision, by cause.", "cause", left)
        lost = ((cause.value, count) for cause, count in gone if cause.is_loss)
        yield _counter("arendezvous_expiries", "Nodes that were lost, by cause.", "cause", lost)
        yield Counter("arendezvous_heartbeats", "Keep-alives of nodes.", operations[KeepAlive])
        known = [kind for kind in get_args(Operation) if kind is not Tick]
        kinds = ((_snake(kind.__name__), operations[kind]) for kind in known)
        yield _counter("arendezvous_operations", "Operations on runs, refused ones too.", "kind", kinds)

    def _of_store(self) -> Iterator[Metric]:
        kinds = ((_snake(kind.__name__), count) for kind, count in self._keys.handled.items())
        yield _counter("arendezvous_store_operations", "Operations on the store.", "kind", kinds)
        yield Gauge("arendezvous_store_keys", "Keys in the store.", len(self._keys))
        words = "Bytes of the store, as its limits count them."
        yield Gauge("arendezvous_store_bytes", words, self._keys.size)

    def _of_protocols(self) -> Iterator[Metric]:
        def each(figure: Callable[[ProtocolCounts], int]) -> list[tuple[str, int]]:
            return [(name, figure(counts)) for name, counts in self._admission.traffic.items()]

        now_open = each(lambda counts: counts.opened - counts.closed)
        yield _gauge("arendezvous_connections", "Connections that are open.", "protocol", now_open)
        opened = each(lambda counts: counts.opened)
        yield _counter("arendezvous_connections_opened", "Connections that began.", "protocol", opened)
        yield Counter("arendezvous_connections_refused", "Connections over a limit.", self._admission.refused)
        received, sent = each(lambda counts: counts.received), each(lambda counts: counts.sent)
        yield _counter("arendezvous_received_bytes", "Bytes that came in.", "protocol", received)
        yield _counter("arendezvous_sent_bytes", "Bytes that went out.", "protocol", sent)


def _of_journal(failing_since: float | None) -> Iterator[Metric]:
    words = "Whether what is agreed cannot be recorded, so that no round completes."
    yield Gauge("arendezvous_journal_failing", words, failing_since is not None)
    if failing_since is not None:
        since = "When that began, by the server's clock."
        yield Gauge("arendezvous_journal_failing_since_seconds", since, failing_since)


def _of_fleet(fleet: Leadership) -> Iterator[Metric]:
    yield Gauge("arendezvous_leading", "Whether this server leads its fleet.", fleet.is_own)
    if fleet.leader is not None:
        names = {"tcp": fleet.leader.tcp, "term": str(fleet.leader.term)}
        yield InfoMetricFamily("arendezvous_leader", "Who leads the fleet.", value=names)
        words = "When that began, by the leader's clock."
        yield Gauge("arendezvous_leader_since_seconds", words, fleet.leader.since)


def _state_of(state: RendezvousState) -> str:
    if state.ended:
        return "ended"
    if state.closed is not None:
        return "closed"
    return "complete" if state.complete else "gathering"


def _labelled(
    kind: type[Gauge | Counter], name: str, documentation: str, label: str, figures: Iterable[tuple[str, int]]
) -> Metric:
    family = kind(name, documentation, labels=[label])
    for value, figure in figures:
        family.add_metric([value], figure)
    return family


_gauge: Final = partial(_labelled, Gauge)
_counter: Final = partial(_labelled, Counter)


def package_version() -> str:
    """The version of this package, if it is installed."""
    try:
        return version("arendezvous")
    except PackageNotFoundError:  # a checkout that is not installed
        return "unknown"


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()

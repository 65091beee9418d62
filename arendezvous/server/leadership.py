"""Knows who leads a fleet of servers, for ``/readyz`` and ``/metrics`` of one of them."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric

from arendezvous.directory.port import Leader


class Leadership:
    """Tells who leads a fleet.

    Attributes:
        leader: Who leads; None as long as nobody does. Written by the fleet.
        is_own: Whether that is this server.
    """

    def __init__(self) -> None:
        self.leader: Leader | None = None
        self.is_own = False

    @property
    def words(self) -> str:
        """Says what this server does, in words."""
        if self.leader is None:
            return "nobody leads"
        return "leads" if self.is_own else f"passes on to {self.leader.tcp}, which leads"

    def collect(self) -> Iterator[Metric]:
        """Yields the figures for Prometheus."""
        yield GaugeMetricFamily("arendezvous_leading", "Whether this server leads its fleet.", self.is_own)
        if self.leader is not None:
            names = {"tcp": self.leader.tcp, "term": str(self.leader.term)}
            yield InfoMetricFamily("arendezvous_leader", "Who leads the fleet.", value=names)
            yield GaugeMetricFamily(
                "arendezvous_leader_since_seconds",
                "When that began, by the leader's clock.",
                self.leader.since,
            )

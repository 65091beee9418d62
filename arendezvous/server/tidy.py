"""Removes what the members of a round left in the store, once nobody is in that round any more."""

from __future__ import annotations

from collections.abc import Callable

from arendezvous.coordinator.coordinator import Coordinator
from arendezvous.keyspace.grants import run_prefix
from arendezvous.keyspace.host import KeyspaceHost
from arendezvous.law.events import LawEvent, NodeDeparted, RoundOpened


def tidy_up(coordinator: Coordinator, keys: KeyspaceHost) -> Callable[[], None]:
    """Keeps the rounds' keys of `coordinator`'s runs in `keys` from piling up; returns how to stop that.

    When a round opens, every member of the one before has left it, so nobody reads its keys any more; the
    same holds when the last node leaves a run. They are gone at once, however many they are.
    """

    def observe(run_id: str, _: float, event: LawEvent) -> None:
        run = coordinator.runs.get(run_id)
        deserted = isinstance(event, NodeDeparted) and run is not None and not run.state.nodes
        if deserted or isinstance(event, RoundOpened):
            keys.delete_run(f"/{run_prefix(run_id)}/".encode())

    return coordinator.observe(observe, NodeDeparted, RoundOpened)

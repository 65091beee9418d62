"""What is to be measured, and how often."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from arendezvous.errors import RendezvousSettingsError

PARTS: Final = ("rendezvous", "failure", "upkeep", "store", "imports", "growth")
CONTENDERS: Final = (
    "tcp", "tcp-uvloop", "tcp-tls", "http", "etcd", "memory",
    "floor", "floor-uvloop", "c10d", "torchft", "jax",
)  # fmt: skip


class Plan(msgspec.Struct, frozen=True):
    """What is to be measured.

    Attributes:
        parts: The groups of measurements.
        contenders: Who takes part.
        nodes: Sizes of the rendezvous.
        repeat: Runs of each.
        limit: Seconds that one run may take.
        failure_nodes: Nodes of the rendezvous of which one is killed.
        idle_nodes: Members whose upkeep is measured.
        idle_seconds: For how long.
        idle_interval: Seconds between two of their heartbeats.
        operations: Of the store, one after the other in one run.
        grown: Sizes at which the real server is looked at.
        simulated: Sizes of the simulation.
        peer_python: The interpreter in whose environment torchft and jaxlib are looked for.
        verbose: Whether what the processes write to stderr is shown.
    """

    parts: tuple[str, ...] = PARTS
    contenders: tuple[str, ...] = CONTENDERS
    nodes: tuple[int, ...] = (2, 64, 128, 256, 1024, 4096)
    repeat: int = 5
    limit: float = 60.0
    failure_nodes: int = 64
    idle_nodes: int = 4096
    idle_seconds: float = 60.0
    idle_interval: float = 5.0
    operations: int = 10_000
    grown: tuple[int, ...] = (64, 256, 1024, 4096)
    simulated: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    peer_python: str = sys.executable
    verbose: bool = False


QUICK: Final = Plan(
    nodes=(2, 16, 64),
    repeat=3,
    limit=20.0,
    failure_nodes=8,
    idle_nodes=64,
    idle_seconds=3.0,
    idle_interval=1.0,
    operations=1_000,
    grown=(16, 32, 64),
    simulated=(250, 500, 1_000),
)

Tell = Callable[[str], None]


def restrict(plan: Plan, only: Iterable[str]) -> Plan:
    """Restricts `plan` to the parts, and the contenders, that `only` names; to all where it names none.

    Raises:
        RendezvousSettingsError: A name is neither.
    """
    names = [name.strip() for item in only for name in item.split(",")]
    for name in names:
        if name not in PARTS and name not in CONTENDERS:
            raise RendezvousSettingsError.of("only", name, f"one of {', '.join((*PARTS, *CONTENDERS))}")
    parts = tuple(part for part in plan.parts if part in names) or plan.parts
    contenders = tuple(one for one in plan.contenders if one in names) or plan.contenders
    return msgspec.structs.replace(plan, parts=parts, contenders=contenders)

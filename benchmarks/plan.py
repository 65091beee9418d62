"""Says what is to be measured, and how often."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from arendezvous.errors import RendezvousSettingsError

PARTS: Final = ("rendezvous", "failure", "upkeep", "store", "imports", "growth", "law")
CONTENDERS: Final[Mapping[str, str]] = {
    "tcp": "ours, tcp",
    "tcp-uvloop": "ours, tcp, uvloop",
    "tcp-tls": "ours, tcp with TLS and token",
    "data-dir": "ours, tcp with --data-dir",
    "sync-full": "ours, tcp with --data-dir --sync-full",
    "etcd-journal": "ours, tcp with a journal in etcd",
    "etcd-journal-3": "ours, tcp with a journal in three etcd",
    "http": "ours, http",
    "etcd": "ours, etcd",
    "memory": "ours, memory",
    "floor": "bare asyncio exchange",
    "floor-uvloop": "bare exchange, uvloop",
    "c10d": "stock c10d",
    "etcd-v2": "stock etcd-v2",
    "torchft": "torchft lighthouse",
    "jax": "JAX barrier",
}
"""What takes part in a rendezvous, with the names that tables use."""

BESIDE: Final = " beside"
"""Ends the name of a contender of the other checkout."""
BESIDE_PARTS: Final = ("rendezvous", "store", "imports")
BESIDE_CONTENDERS: Final = ("tcp", "http", "etcd", "memory")


class Plan(msgspec.Struct, frozen=True):
    """Says what is to be measured.

    Attributes:
        parts: The groups of measurements.
        contenders: What takes part.
        nodes: Sizes of the rendezvous.
        repeat: Turns of each contender.
        limit: Seconds that one run may take.
        failure_nodes: Nodes of the rendezvous of which one is killed.
        idle_nodes: Members whose upkeep is measured.
        idle_seconds: For how long.
        idle_interval: Seconds between two of their heartbeats.
        operations: Of the store, one after the other in one run.
        grown: Sizes at which the real server is looked at.
        simulated: Sizes of the simulation, and of runs of the law alone.
        peer_python: The interpreter in whose environment torchft and jaxlib are looked for.
        package: The directory of the package ``arendezvous`` that is measured; empty: the one imported here.
        beside: That of the other checkout that is measured beside it; empty: none.
        verbose: Whether what the processes write to stderr is shown.
    """

    parts: tuple[str, ...] = PARTS
    contenders: tuple[str, ...] = tuple(CONTENDERS)
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
    package: str = ""
    beside: str = ""
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
        if name not in plan.parts and name not in plan.contenders:
            known = ", ".join((*plan.parts, *plan.contenders))
            raise RendezvousSettingsError.of("only", name, f"one of {known}")
    parts = tuple(part for part in plan.parts if part in names) or plan.parts
    contenders = tuple(one for one in plan.contenders if one in names) or plan.contenders
    return msgspec.structs.replace(plan, parts=parts, contenders=contenders)


def put_beside(plan: Plan, checkout: Path) -> Plan:
    """Plans to measure ours beside what another checkout has, contender by contender.

    Raises:
        RendezvousSettingsError: There is no package in that directory.
    """
    package = (checkout / "arendezvous").resolve()
    if not (package / "__init__.py").exists():
        raise RendezvousSettingsError.of("beside", str(checkout), "a checkout, with the package arendezvous")
    return msgspec.structs.replace(
        plan, parts=BESIDE_PARTS, contenders=BESIDE_CONTENDERS, beside=str(package)
    )

"""Calculates what one server machine carries, and where it ends, from what was measured."""

from __future__ import annotations

from typing import Final

import msgspec

from arendezvous.coordinator.clock import STALL
from benchmarks.growth import REAL
from benchmarks.report import Report, Series

CORE_SHARE: Final = 0.5  # of one core, for heartbeats alone
INTERVAL: Final = 5.0  # seconds between two heartbeats: the default
EXPIRY: Final = 15.0  # seconds of silence after which a node is dead: the default
MEMORY: Final = 8 * 2**30
LINK: Final = 10e9 / 8  # bytes a second
ROUND: Final = 1.0  # second that a round may take


class Bound(msgspec.Struct, frozen=True):
    """Tells how many nodes one of the things allows that end first.

    Attributes:
        what: The thing.
        formula: How many nodes it allows.
        inputs: The measured numbers in it.
        nodes: The result.
    """

    what: str
    formula: str
    inputs: str
    nodes: float


def bounds(report: Report) -> list[Bound]:
    """Lists what each thing allows, as far as the report has the numbers; the least is where it ends."""
    found: list[Bound] = []
    files = report.machine.get("open_files")
    if isinstance(files, int | float) and files > 0:
        found.append(Bound("open files", "limit - 50", f"limit {files:g}", max(0.0, files - 50)))
    idle = _largest(report, "upkeep", "tcp", "cpu")
    if idle is not None and idle.median:
        heartbeat = idle.median * INTERVAL / idle.nodes
        formula = f"{CORE_SHARE:g} core x {INTERVAL:g} s / heartbeat"
        bound = Bound("heartbeats", formula, f"heartbeat {heartbeat * 1e6:.1f} us", 0)
        found.append(msgspec.structs.replace(bound, nodes=CORE_SHARE * INTERVAL / heartbeat))
    memory = _largest(report, "upkeep", "tcp", "memory")
    if memory is not None and memory.median:
        inputs = f"member {memory.median / 1024:.1f} KiB"
        found.append(Bound("memory", f"{MEMORY >> 30} GiB / member", inputs, MEMORY / memory.median))
    life = _largest(report, "growth", f"{REAL} life", "cpu")
    if life is not None and life.median:
        inputs = f"connecting, meeting twice and leaving {life.median * 1e6:.0f} us of the server"
        formula = f"{EXPIRY:g} s / (all of that at once)"
        found.append(Bound("loop lag below the expiry", formula, inputs, EXPIRY / life.median))
    meet = _largest(report, "rendezvous", "tcp", "meet")
    if meet is not None and meet.median:
        each = meet.median / meet.nodes
        inputs = f"{each * 1e6:.1f} us a node, members on the same machine"
        found.append(Bound(f"a round within {ROUND:g} s", f"{ROUND:g} s / node", inputs, ROUND / each))
    turn = _worst_step(report, "turn")
    if turn is not None and turn.median:
        inputs = f"{turn.contender}: {turn.median * 1e6:.1f} us a node in one turn, without the kernel"
        found.append(Bound(f"a turn below {STALL:g} s", f"{STALL:g} s / node", inputs, STALL / turn.median))
    sent = _worst_step(report, "bytes_out")
    if sent is not None and sent.median:
        formula, inputs = f"10 Gbit/s x {ROUND:g} s / bytes", f"{sent.contender}: {sent.median:.0f} B a node"
        found.append(Bound("fan-out bandwidth", formula, inputs, LINK * ROUND / sent.median))
    return sorted(found, key=lambda bound: bound.nodes)


def _largest(report: Report, part: str, contender: str, metric: str) -> Series | None:
    series = [one for one in report.of(part, metric) if one.contender == contender and one.values]
    return max(series, key=lambda one: one.nodes, default=None)


def _worst_step(report: Report, metric: str) -> Series | None:
    """Finds the simulated step that costs a node most, at the largest size."""
    steps = dict.fromkeys(
        one.contender for one in report.of("growth", metric) if one.contender.startswith("simulated")
    )
    series = [_largest(report, "growth", step, metric) for step in steps]
    return max((one for one in series if one is not None), key=lambda one: one.median or 0.0, default=None)

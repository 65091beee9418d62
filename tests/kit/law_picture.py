"""Draws where a node may stand in a run, and what moves it, as the law is seen to do it.

A few nodes do at random whatever a node may do; each move that its events tell of becomes an arrow. A move
that has no place in the picture is an error, so that a law that has changed has its picture changed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Final, NamedTuple

from arendezvous.errors import RendezvousError
from arendezvous.law import machine
from arendezvous.law.events import (
    LawEvent,
    NodeDeparted,
    NodeJoined,
    NodePromoted,
    RoundCompleted,
    RoundOpened,
)
from arendezvous.law.operations import (
    NOTHING_KNOWN,
    Close,
    Disconnect,
    Drain,
    Join,
    Leave,
    Operation,
    Reopen,
    Tick,
)
from arendezvous.law.state import Cause, NodeDesc, Phase, RendezvousState, RunSettings

STEPS: Final = 8000
_NODES: Final = {name: NodeDesc(name) for name in "abcd"}
_SETTINGS: Final = RunSettings(1, 2, last_call=2, keep_alive_interval=1.5, keep_alive_max_attempt=2)
_KINDS: Final = ("join",) * 6 + ("leave", "drain", "cut", "pass", "pass", "close", "reopen")


class Move(NamedTuple):
    """One arrow: from where to where, and when."""

    before: Phase
    after: Phase
    when: str


class _Arrow(NamedTuple):
    """Where an arrow is drawn: its path, and where its text begins."""

    path: str
    x: int
    y: int


_BOXES: Final = {
    Phase.GONE: (20, 165), Phase.GATHERING: (300, 45), Phase.MEMBER: (640, 45),
    Phase.REDUNDANT: (300, 285), Phase.WAITING: (640, 285),
}  # fmt: skip
_ARROWS: Final = {
    Move(Phase.GONE, Phase.GATHERING, "joins"): _Arrow("M160 180 L296 85", 165, 118),
    Move(Phase.GONE, Phase.REDUNDANT, "joins"): _Arrow("M160 210 L296 295", 165, 272),
    Move(Phase.GONE, Phase.WAITING, "joins"): _Arrow("M90 215 C90 400 560 400 680 339", 330, 390),
    Move(Phase.GATHERING, Phase.MEMBER, "the round completes"): _Arrow("M440 70 L636 70", 470, 60),
    Move(Phase.MEMBER, Phase.WAITING, "joins again"): _Arrow("M710 95 L710 281", 718, 190),
    Move(Phase.WAITING, Phase.GATHERING, "the next round opens"): _Arrow("M650 285 L436 99", 548, 165),
    Move(Phase.REDUNDANT, Phase.GATHERING, "the next round opens"): _Arrow("M370 285 L370 99", 208, 215),
    Move(Phase.REDUNDANT, Phase.WAITING, "a place is free"): _Arrow("M440 310 L636 310", 485, 300),
}
_HEAD: Final = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 800 430" font-family="sans-serif" font-size="14">
<title>Where a node stands in a run, and what moves it</title>
<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8" orient="auto">
<path d="M0 0 L10 5 L0 10 z" fill="#808080"/></marker></defs>
"""


def drawn() -> str:
    """The picture, as SVG that is legible on light and on dark."""
    moves = seen()
    arrows = {move for move in moves if move.after is not Phase.GONE}
    assert arrows == set(_ARROWS), f"draw these: {arrows ^ set(_ARROWS)}"
    causes = sorted({move.when for move in moves if move.after is Phase.GONE})
    leavers = {move.before for move in moves if move.after is Phase.GONE}
    assert leavers == set(_BOXES) - {Phase.GONE}
    shapes = [_arrow(move.when, _ARROWS[move]) for move in _ARROWS]
    boxes = [_box(phase, *place) for phase, place in _BOXES.items()]
    text = f"From anywhere a node is gone by: {', '.join(causes)}."
    legend = f'<text x="20" y="422" fill="#808080" font-size="12">{text}</text>'
    return _HEAD + "\n".join([*shapes, *boxes, legend]) + "\n</svg>\n"


def _arrow(when: str, arrow: _Arrow) -> str:
    line = f'<path d="{arrow.path}" fill="none" stroke="#808080" stroke-width="2" marker-end="url(#tip)"/>'
    return f'{line}<text x="{arrow.x}" y="{arrow.y}" fill="#808080">{when}</text>'


def _box(phase: Phase, x: int, y: int) -> str:
    box = f'<rect x="{x}" y="{y}" width="140" height="50" rx="8" fill="#00796b"/>'
    return f'{box}<text x="{x + 70}" y="{y + 30}" fill="#fff" text-anchor="middle">{phase.value}</text>'


def seen() -> set[Move]:
    """Every move that some nodes make which do at random what a node may do."""
    chance, state, now = random.Random(0), RendezvousState(_SETTINGS), 0.0
    moves: set[Move] = set()
    for _ in range(STEPS):
        kind, node = chance.choice(_KINDS), chance.choice("abcd")
        now += chance.choice((0.5, 1.0, 3.0)) if kind == "pass" else 0.0
        phases = {name: state.phase(name) for name in _NODES}
        try:
            events = machine.apply(state, _operation(kind, node, state, chance), now)
        except RendezvousError:
            continue
        moves.update(_moves(phases, events))
        assert phases == {name: state.phase(name) for name in _NODES}, events
    return moves


def _operation(kind: str, node: str, state: RendezvousState, chance: random.Random) -> Operation:
    if kind == "join":
        is_member = state.phase(node) is Phase.MEMBER
        return Join(_NODES[node], _SETTINGS, (state.incarnation, state.round) if is_member else NOTHING_KNOWN)
    if kind == "leave":
        return Leave(node, cause=chance.choice((Cause.LEFT, Cause.FINISHED, Cause.FAILED)))
    if kind == "drain":
        return Drain(node, 2.0)
    if kind == "cut":
        return Disconnect(node)
    if kind == "close":
        return Close("x", "")
    return Reopen(state.incarnation) if kind == "reopen" else Tick()


def _moves(phases: dict[str, Phase], events: list[LawEvent]) -> Iterator[Move]:
    """Each move that the events tell of; `phases` is brought up to date."""
    for event in events:
        moved: dict[str, tuple[Phase, str]] = {}
        if isinstance(event, NodeJoined):
            again = phases[event.node] is Phase.MEMBER
            moved = {event.node: (event.phase, "joins again" if again else "joins")}
        elif isinstance(event, NodePromoted):
            opened = any(isinstance(other, RoundOpened) for other in events)
            moved = {event.node: (event.phase, "the next round opens" if opened else "a place is free")}
        elif isinstance(event, NodeDeparted):
            moved = {event.node: (Phase.GONE, event.cause.value)}
        elif isinstance(event, RoundCompleted):
            gathered = [node for node, phase in phases.items() if phase is Phase.GATHERING]
            moved = dict.fromkeys(gathered, (Phase.MEMBER, "the round completes"))
        for node, (after, when) in moved.items():
            yield Move(phases[node], after, when)
            phases[node] = after

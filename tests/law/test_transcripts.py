"""Scenarios of the law as readable transcripts, replayed and compared.

Each file of ``tests/data/law`` has one operation a line, ``SECONDS OPERATION [NODE] [ARGUMENT]``; indented
below it, what came of it: the events, then the lists. The first line has the settings; ``#`` is a comment.
``forget`` and ``restart`` are a coordinator that starts with an empty memory, not knowing or knowing that
there was one before it.

``ARENDEZVOUS_REGENERATE=1`` writes the indented lines anew; then read the difference.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from arendezvous.errors import RendezvousError
from arendezvous.law import machine
from arendezvous.law.barriers import Met, standing
from arendezvous.law.events import (
    BarrierPassed,
    LawEvent,
    MemberDraining,
    MemberStalled,
    NodeDeparted,
    NodeJoined,
    NodePromoted,
    NodeUpdated,
    RoundBroken,
    RoundCompleted,
    RoundOpened,
    RunClosed,
    RunReopened,
    WaitingChanged,
)
from arendezvous.law.operations import (
    Arrive,
    Claim,
    Close,
    Disconnect,
    Drain,
    Join,
    KeepAlive,
    Leave,
    Operation,
    Progress,
    Reopen,
    Resume,
    Tick,
    Withdraw,
)
from arendezvous.law.rounds import recovery_time
from arendezvous.law.rules import RoundRules
from arendezvous.law.state import Cause, NodeDesc, RendezvousState, RunSettings
from arendezvous.law.words import event_text
from tests.kit import DATA
from tests.kit import law_invariants as inv

FILES = sorted((DATA / "law").glob("*.txt"))


class Replay:
    """A run that is driven by the lines of a transcript; nodes remember the rank that they last had."""

    def __init__(self, settings: str) -> None:
        size, *options = settings.split()[1:]
        least, most = (int(number) for number in size.split(":"))
        values: dict[str, Any] = dict(option.split("=") for option in options)
        policy, stall = values.pop("rank_policy", "sticky"), float(values.pop("stall_timeout", 0))
        numbers = {name: float(value) for name, value in values.items()}
        rules = RoundRules(stall_timeout=stall) if stall else None
        self.settings = RunSettings(least, most, **numbers, rank_policy=policy, rules=rules)  # type: ignore[arg-type]  # all others are numbers
        self.state = RendezvousState(self.settings)
        self.held: dict[str, tuple[int, int, int, int, str]] = {}
        self.known: dict[str, tuple[int, int]] = {}

    def line(self, line: str) -> list[str]:
        """Applies one line, and tells what came of it."""
        seconds, kind, *arguments = line.split()
        now = float(seconds)
        if kind in ("forget", "restart"):
            grace = recovery_time(self.settings) if kind == "restart" else None
            self.state = RendezvousState(self.settings, grace and now + grace, 1000 if grace else 0)
            return [self.lists()]
        try:
            operation = self.operation(kind, arguments)
            events = machine.apply(self.state, operation, now)
            if isinstance(operation, Arrive | Withdraw):
                return [*(told(event) for event in events), met_text(standing(self.state, operation))]
        except RendezvousError as error:
            return [f"{type(error).__name__}: {error}"]
        inv.check_state(self.state, now)
        for node in self.state.nodes:
            view = machine.view(self.state, node, now)
            self.known[node] = max(self.known.get(node, (0, -1)), view.known)
            if view.rank >= 0:
                self.held[node] = (*view.generation, view.rank, view.world_size, view.digest)
        return [*(told(event) for event in events), self.lists()]

    def operation(self, kind: str, arguments: list[str]) -> Operation:
        """The operation that a line stands for."""
        node = arguments[0] if arguments else ""
        rank = int(arguments[1]) if len(arguments) > 1 and kind in ("join", "claim") else None
        if kind == "join":
            return Join(NodeDesc(node, rank=rank), self.settings, self.known.get(node, (0, -1)))
        if kind == "claim":
            return Claim(Join(NodeDesc(node, rank=rank), self.settings))
        if kind == "resume":
            return Resume(NodeDesc(node), self.settings, *self.held[node])
        if kind in ("arrive", "withdraw"):
            place = (node, *self.held[node][:2], arguments[1])
            brought: Any = ("sum", arguments[2].encode()) if len(arguments) > 2 else ()
            return Arrive(*place, 0, *brought) if kind == "arrive" else Withdraw(*place)
        if kind == "step":
            return Progress(node, int(arguments[1]))
        simple: dict[str, Operation] = {
            "tick": Tick(),
            "beat": KeepAlive(node),
            "cut": Disconnect(node),
            "leave": Leave(node),
            "finish": Leave(node, cause=Cause.FINISHED),
            "close": Close(node),
            "reopen": Reopen(self.state.incarnation, node),
        }
        return Drain(node, float(arguments[1])) if kind == "drain" else simple[kind]

    def lists(self) -> str:
        """The state in one line."""
        state = self.state
        ranks = sorted(state.participants.items(), key=lambda item: item[1])
        shown = " ".join(f"{n}={r}" if state.complete else n for n, r in ranks) or "-"
        phase = "complete" if state.complete else "gathering"
        parts = [f"{state.incarnation}.{state.round} {phase}: {shown}"]
        parts += [f"wait: {' '.join(state.wait_list)}"] * bool(state.wait_list)
        parts += [f"spares: {' '.join(state.redundancy_list)}"] * bool(state.redundancy_list)
        parts += [f"members may come back until {state.recovery}"] * (state.recovery is not None)
        parts += [f"last call ends at {state.deadline}"] * (state.deadline is not None)
        parts += ["closed"] * (state.closed is not None)
        return " | ".join(parts)


def told(event: LawEvent) -> str:  # noqa: C901 - a table, one line for each kind
    """An event in a few words."""
    match event:
        case NodeJoined(node, phase):
            return f"{node} joins, {phase.value}"
        case NodePromoted(node, phase):
            return f"{node} moves, {phase.value}"
        case NodeDeparted(node, phase, cause, reason):
            return f"{node} was {phase.value} and is gone: {cause.value}{f' ({reason})' if reason else ''}"
        case MemberDraining(node, seconds, _):
            return f"{node} drains for {seconds:g} s"
        case WaitingChanged(count):
            return f"members hear that {count} wait"
        case RoundOpened(number):
            return f"round {number} opens"
        case RoundCompleted(number, world_size):
            return f"round {number} is complete with {world_size}"
        case RunClosed(by, _):
            return f"closed by {by}"
        case RunReopened(incarnation, by):
            return f"incarnation {incarnation} is opened by {by}"
        case BarrierPassed(name, _):
            return f"barrier {name} passes"
        case RoundBroken(number):
            return f"round {number} is whole no more"
        case NodeUpdated(node, said):
            return f"{node} is {said.decode()}"
        case MemberStalled(node, step, seconds):
            return f"{node} stalls at step {step}, for {seconds:g} s"
        case _:
            return event_text(event)


def met_text(met: Met) -> str:
    """How a barrier stands, in a few words."""
    if met.passed:
        return f"passed with {met.value.decode()}" if met.value else "passed"
    return f"missing: {' '.join(met.missing)}"


def replay(text: str) -> str:
    """The transcript with its indented lines as they are now."""
    first, *rest = text.splitlines()
    run, lines = Replay(first), [first]
    for line in rest:
        if line.startswith("  "):
            continue
        lines.append(line)
        if line and not line.startswith("#"):
            lines += [f"  {outcome}" for outcome in run.line(line)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_law_replays_the_transcript(path: Path) -> None:
    expected = path.read_text()
    actual = replay(expected)
    if os.environ.get("ARENDEZVOUS_REGENERATE"):
        path.write_text(actual)
    else:
        assert actual == expected


def test_there_is_a_transcript_of_each_part_of_the_theory() -> None:
    assert [path.stem for path in FILES] == [
        "amnesia", "barrier", "close_and_reopen", "completion_at_max", "drain", "first_round_with_last_call",
        "given_ranks", "identity", "late_node", "loss_and_sticky_ranks", "progress", "restart",
        "spare_promoted",
    ]  # fmt: skip

"""Our events and torch's are the same, byte for byte: one script plays the same scenes with both."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = """
import importlib
import inspect
import json
import logging
import sys
from dataclasses import asdict, fields


class Keep(logging.Handler):
    def __init__(self):
        super().__init__()
        self.records = []

    def emit(self, record):
        self.records.append([record.name, record.levelname, record.getMessage()])


class Joiner:
    def __init__(self, events):
        self.events = events

    def join(self, **given):
        self.events.construct_and_record_rdzv_event("job", "m", self.events.NodeState.RUNNING, **given)

    def fail(self, **given):
        self.events.construct_and_record_rdzv_event("job", "m", self.events.NodeState.FAILED, **given)


def recorded(events, keep):
    joiner = Joiner(events)
    joiner.join(hostname="host", pid=1)
    joiner.join(hostname="host", pid=0, name="Handler.join", rank=3, local_id=2, master_endpoint="e:1")
    joiner.fail(hostname="host")
    try:
        {}["the reason"]
    except KeyError:
        joiner.fail(hostname="host", rank=0)
    (lambda: joiner.join(hostname="host"))()
    events.construct_and_record_rdzv_event("job", "top", events.NodeState.INIT, hostname="host")
    events.record_rdzv_event(events.RdzvEvent("n", "r", "m", "h", 1, events.NodeState.SUCCEEDED))
    return keep.records


def play(events, keep, given):
    result = {"json": [], "rdzv_json": []}
    for one in given["events"]:
        event = events.Event(one[0], events.EventSource[one[1]], *one[2:])
        result["json"].append([event.serialize(), str(event), repr(event)])
        assert events.Event.deserialize(event.serialize()).serialize() == event.serialize()
    for one in given["rdzv_events"]:
        event = events.RdzvEvent(*one[:5], events.NodeState[one[5]], *one[6:])
        result["rdzv_json"].append([event.serialize(), str(event), repr(event)])
        assert events.RdzvEvent.deserialize(event.serialize()) == event
    result["signatures"] = {
        name: [
            [one.name, one.kind.name, repr(one.default)]
            for one in inspect.signature(getattr(events, name)).parameters.values()
        ]
        for name in given["functions"]
    }
    result["fields"] = [[f.name for f in fields(kind)] for kind in (events.Event, events.RdzvEvent)]
    result["members"] = [[str(m), m.value, m == m.value] for m in [*events.EventSource, *events.NodeState]]
    result["dict"] = asdict(events.Event("n", events.EventSource.AGENT))
    result["handlers"] = [
        [isinstance(handler, logging.NullHandler), isinstance(handler, logging.StreamHandler)]
        for handler in map(events.get_logging_handler, ["null", "console"])
    ]
    result["recorded"] = recorded(events, keep)
    logger = logging.getLogger("torchelastic-events-dynamic_rendezvous")
    result["logger"] = [logger.level, logger.propagate]
    return result


given = json.load(sys.stdin)
from arendezvous import events as ours

our_keep = Keep()
ours.register_logging_handler("dynamic_rendezvous", our_keep)
our_result = play(ours, our_keep, given)

from torch.distributed.elastic import events as torchs
from torch.distributed.elastic.events import handlers

torch_keep = Keep()
handlers._log_handlers["dynamic_rendezvous"] = torch_keep
torch_result = play(torchs, torch_keep, given)
crossed = [
    ours.Event.deserialize(line[0]).serialize() == line[0] for line in torch_result["json"]
] + [torchs.Event.deserialize(line[0]).serialize() == line[0] for line in our_result["json"]]
seen_by_ours = len(our_keep.records)

for events in (torchs, ours, torchs):
    events.record(events.Event(events.__name__, events.EventSource.AGENT), "console")
result = {"ours": our_result, "torch": torch_result, "crossed": crossed, "seen_by_ours": seen_by_ours}
print(json.dumps(result))
"""

FUNCTIONS = ["get_logging_handler", "record", "record_rdzv_event", "construct_and_record_rdzv_event"]


def _given() -> dict[str, Any]:
    """Events that JSON may write in more than one way, and some at random."""
    chance = random.Random(7)
    odd: list[Any] = [
        "",
        "ü\u2028\ud800\x7f",
        '"\\/\n\t\0',
        0,
        -1,
        2**70,
        0.1,
        1e300,
        -0.0,
        math.nan,
        math.inf,
        True,
        None,
    ]
    events = [
        ["e", "AGENT"],
        ["ünï", "WORKER", 5],
        ["e", "AGENT", 0, {str(n): one for n, one in enumerate(odd)}],
    ]
    events += [
        [
            chance.choice(["a", "b c"]),
            "WORKER",
            chance.randrange(2**40),
            {str(k): chance.choice(odd) for k in range(n)},
        ]
        for n in range(40)
    ]
    rdzv_events: list[list[Any]] = [
        ["n", "r", "m", "h", 1, "INIT"],
        ["n", "r", "m", "h", 1, "FAILED", "e:1", 0, 0, "T\n"],
    ]
    rdzv_events += [
        [f"n{n}", "r", "message \ud83d\ude00", "h", n, "RUNNING", "", chance.choice([None, 3]), None, ""]
        for n in range(10)
    ]
    return {"events": events, "rdzv_events": rdzv_events, "functions": FUNCTIONS}


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    script: Path = tmp_path_factory.mktemp("scenes") / "scenes.py"
    script.write_text(SCRIPT)
    # Not run as a script, because then the folder of this checkout would not be on the path.
    code = f"import runpy; runpy.run_path({str(script)!r}, run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(_given()), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return {**json.loads(done.stdout.splitlines()[-1]), "stderr": done.stderr}


@pytest.mark.parametrize(
    "what", ["json", "rdzv_json", "fields", "members", "dict", "signatures", "handlers", "logger"]
)
def test_what_torch_has_we_have(played: dict[str, Any], what: str) -> None:
    expected, actual = played["torch"][what], played["ours"][what]

    assert len(expected) > 0
    assert actual == expected


def test_what_is_recorded_is_the_same_with_caller_traceback_logger_and_level(played: dict[str, Any]) -> None:
    expected, actual = played["torch"]["recorded"], played["ours"]["recorded"]

    assert actual == expected
    names = [json.loads(text)["name"] for _, _, text in actual]
    assert names[:3] == ["scenes.py:join", "scenes.py:Handler.join", "scenes.py:fail"]
    assert names[4:6] == ["scenes.py:join", "scenes.py:recorded"]


def test_each_reads_what_the_other_writes(played: dict[str, Any]) -> None:
    assert played["crossed"] == [True] * (2 * len(_given()["events"]))


def test_in_one_process_with_torch_every_event_comes_out_once(played: dict[str, Any]) -> None:
    lines = [json.loads(line)["name"] for line in played["stderr"].splitlines() if line.startswith("{")]

    torchs, ours = "torch.distributed.elastic.events", "arendezvous.events"
    assert lines == [torchs, ours, torchs]
    assert played["seen_by_ours"] == len(played["ours"]["recorded"])

"""The bodies of HTTP have every field of the law's types, without anybody writing it down for HTTP."""

from __future__ import annotations

import enum
import json
import os
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec
import pytest
from msgspec import structs

from arendezvous.errors import RendezvousSettingsError
from arendezvous.law.events import LawEvent, MemberDraining, MemberStalled
from arendezvous.law.operations import (
    Close,
    Drain,
    Hold,
    Join,
    KeepAlive,
    Leave,
    Pardon,
    Quarantine,
    Release,
    Reopen,
    Resize,
    Resume,
)
from arendezvous.law.rules import Brought, Role, RoundRules
from arendezvous.law.state import Closure, NodeDesc, NodeView, Phase, RunSettings
from arendezvous.law.status import RunStatus
from arendezvous.wire.http import bodies
from arendezvous.wire.http.bodies import EventBody, JoinedBody, MembersBody, RunBody, RunsBody
from arendezvous.wire.native.messages import RunSummary
from tests.kit import ROOT

CHECKED: dict[tuple[Any, str], Any] = {  # what the law takes for these fields is not any value of their types
    (RunSettings, "min_nodes"): 2,
    (RunSettings, "max_nodes"): 3,
    (RunSettings, "rank_policy"): "topology",
    (RoundRules, "facts"): {"step": "max"},
    (RoundRules, "node_unit"): 3,
    (Role, "min_nodes"): 2,
    (Role, "max_nodes"): 3,
    (Brought, "data"): b'{"url":["x",1]}',
}
OPERATIONS = {
    KeepAlive: bodies.KEEP_ALIVE,
    Drain: bodies.DRAIN,
    Close: bodies.CLOSE,
    Reopen: bodies.REOPEN,
    Leave: bodies.LEAVE,
    Resize: bodies.RESIZE,
    Hold: bodies.HOLD,
    Release: bodies.RELEASE,
    Quarantine: bodies.QUARANTINE,
    Pardon: bodies.PARDON,
}


def sample(kind: Any) -> Any:
    """A value of a type, other than the default of any field."""
    if get_origin(kind) in (Union, types.UnionType):
        return sample(next(one for one in get_args(kind) if one is not type(None)))
    if get_origin(kind) is Annotated:
        return b'{"url":["x",1]}'
    if get_origin(kind) is Literal:
        return get_args(kind)[-1]
    if get_origin(kind) is tuple:
        arguments = get_args(kind)
        return (sample(arguments[0]),) if arguments[-1] is Ellipsis else tuple(map(sample, arguments))
    if get_origin(kind) is dict:
        return {sample(get_args(kind)[0]): sample(get_args(kind)[1])}
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return kind(**{field.name: sample_of(kind, field) for field in structs.fields(kind)})
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return list(kind)[-1]
    return {int: 5, float: 8.5, str: "text", bool: True, bytes: b"data", Any: 7.5}[kind]


def sample_of(kind: type[msgspec.Struct], field: structs.FieldInfo) -> Any:
    """A value of a field."""
    if field.name in ("at", "now"):  # what was decoded is dated by a clock that shows 0
        return {"at": -8.5, "now": 0.0}[field.name]
    checked = CHECKED.get((kind, field.name))
    return sample(field.type) if checked is None else checked


def over_json(value: msgspec.Struct) -> Any:
    """What comes out at the other end."""
    if isinstance(value, NodeView):
        return bodies.VIEW.decode(bodies.VIEW.encode(value))
    if isinstance(value, RunStatus):
        return bodies.RUN.decode(bodies.RUN.encode(RunBody.of(value, ""))).status
    if isinstance(value, RunSummary):
        page = RunsBody(runs=(value,), next=None)
        return bodies.RUNS.decode(bodies.RUNS.encode(page)).runs[0]
    if isinstance(value, NodeDesc):
        members = MembersBody(incarnation=1, round=1, members=(value,))
        return bodies.MEMBERS.decode(bodies.MEMBERS.encode(members)).members[0]
    if isinstance(value, Join | Resume):
        assert bodies.REJOIN.decode(bodies.REJOIN.encode(value)) == value
        return bodies.JOIN.decode(bodies.JOIN.encode(value))
    codec: Any = OPERATIONS[type(value)]
    node = getattr(value, "node", "")
    if isinstance(value, Leave):
        assert codec.of_texts(codec.texts(value), node) == value
    return codec.decode(codec.encode(value), node)


KINDS = (NodeView, RunStatus, RunSummary, NodeDesc, Join, Resume, *OPERATIONS)


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_of_the_law_survives_the_way_over_http(kind: type[msgspec.Struct]) -> None:
    whole = sample(kind)
    for field in structs.fields(kind):
        if not field.required and field.name != "now":
            default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
            assert getattr(whole, field.name) != default, f"{field.name} is not put to the test"
    assert over_json(whole) == whole
    least = kind(**{field.name: sample_of(kind, field) for field in structs.fields(kind) if field.required})
    assert over_json(least) == least


@pytest.mark.parametrize(
    ("codec", "body"),
    [
        (bodies.CLOSE, "{}"),
        (bodies.KEEP_ALIVE, "{}"),
        (bodies.DRAIN, '{"seconds": 1}'),
        (bodies.JOIN, '{"node": {"name": "a"}, "settings": {"min_nodes": 1, "max_nodes": 2}}'),
    ],
)
def test_what_is_left_out_has_the_laws_default_and_what_is_not_known_is_refused(
    codec: Any, body: str
) -> None:
    codec.decode(body.encode())
    whole = json.loads(body)
    for place in (whole, *(value for value in whole.values() if isinstance(value, dict))):
        place["unheard_of"] = 1
        with pytest.raises(msgspec.ValidationError, match="unheard_of"):
            codec.decode(json.dumps(whole).encode())
        del place["unheard_of"]


def test_an_answer_of_a_later_version_may_say_more() -> None:
    said = json.loads(bodies.VIEW.encode(NodeView("a", 1, 1, 0, Phase.GATHERING)))
    assert bodies.VIEW.decode(json.dumps({**said, "unheard_of": 1}).encode()).node == "a"


def test_times_leave_the_server_as_ages() -> None:
    view = NodeView("a", 1, 1, 0, Phase.GATHERING, closed=Closure("me", "over", 60.0), now=100.0)
    for encoded in (
        json.loads(bodies.VIEW.encode(view)),
        json.loads(bodies.JOINED.encode(JoinedBody(node="a", session="", server="", expiry=1.0, view=view)))[
            "view"
        ],
    ):
        assert encoded["closed"] == {"by": "me", "reason": "over", "age": 40.0, "by_node": False}
        assert "now" not in encoded


@pytest.mark.parametrize("decode", [bodies.JOIN.decode, bodies.REJOIN.decode])
def test_what_the_law_does_not_allow_is_the_laws_own_error(decode: Callable[[bytes], Any]) -> None:
    body = b'{"node": {"name": "a"}, "settings": {"min_nodes": 3, "max_nodes": 2}}'
    with pytest.raises(RendezvousSettingsError) as caught:
        decode(body)
    assert caught.value.data["name"] == "max_nodes"


NEW_FIELDS = {
    "law/state.py": [
        ('    rank_policy: str = "sticky"\n', '    rank_policy: str = "sticky"\n    tide: float = 0.5\n'),
        ('    label: str = ""\n', '    label: str = ""\n    berths: tuple[int, ...] = ()\n'),
    ],
    "law/operations.py": [
        ("    cause: Cause = Cause.LEFT\n", "    cause: Cause = Cause.LEFT\n    log: str = ''\n")
    ],
}
SCRIPT = """
import asyncio, json, sys
import arendezvous as ar
from arendezvous.backends.http.backend import HttpBackend
from arendezvous.law.operations import Join, Leave
from arendezvous.law.state import NodeDesc, RunSettings

async def main():
    async with ar.serve("127.0.0.1:0", http="127.0.0.1:0") as server:
        left = []
        coordinator, propose = server.coordinator, server.coordinator.propose
        coordinator.propose = lambda who, operation: left.append(operation) or propose(who, operation)
        async with HttpBackend("127.0.0.1", int(server.http_url.rsplit(":", 1)[1]), "job") as backend:
            await backend.propose(Join(NodeDesc("a", berths=(3, 4)), RunSettings(1, 2, tide=7.5)))
            status = await backend.status()
            await backend.propose(Leave("a", log="aground"))
        print(json.dumps([status.settings.tide, status.nodes[0].desc.berths, left[-1].log]))

asyncio.run(main())
"""


def test_a_field_that_the_law_gains_travels_over_http_with_nothing_else_changed(tmp_path: Path) -> None:
    package = tmp_path / "arendezvous"
    shutil.copytree(ROOT / "arendezvous", package, ignore=shutil.ignore_patterns("__pycache__"))
    for name, changes in NEW_FIELDS.items():
        text = (package / name).read_text()
        for before, after in changes:
            assert before in text
            text = text.replace(before, after, 1)
        (package / name).write_text(text)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [7.5, [3, 4], "aground"]


@pytest.mark.parametrize("event", [MemberDraining("a", 1.0, "why"), MemberStalled("a", 5, 8.5)])
def test_events_have_the_names_over_http_that_everybody_knows_them_by(event: LawEvent) -> None:
    body = EventBody.of("job", 1, 0.0, 0.0, event)
    assert (body.type, body.event) == (event.name, event)

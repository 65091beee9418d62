"""Peers of the first version of the protocol get on with those of this one, or are told why not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest

import arendezvous as ar
from arendezvous.backends.http.backend import HttpBackend
from arendezvous.backends.port import RendezvousBackend
from arendezvous.backends.tcp.session import SessionBackend
from arendezvous.law.events import LawEvent, NodeDeparted, NodeJoined
from arendezvous.law.operations import Join, Resume
from arendezvous.law.rules import Brought, Role, RoundRules
from arendezvous.law.state import Cause, Departure, NodeDesc, NodeView, Notice, Phase, RunSettings
from arendezvous.law.status import DepartedStatus, RunStatus
from arendezvous.server.http import listener as http_listener
from arendezvous.server.tcp import listener
from arendezvous.wire.native import versions
from arendezvous.wire.native.messages import (
    PREFACE,
    VERSION,
    Failed,
    FrameParser,
    Hello,
    Propose,
    ServerMessage,
    View,
    Welcome,
    decode_server,
    encode,
)

PLAIN = RunSettings(1, 4)
RULED = RunSettings(1, 4, rules=RoundRules(roles={"worker": Role(1, 4)}, facts={"step": "max"}))
WORKER = Brought("worker", facts={"step": 1})
NEEDING = {
    "reopen": Join(NodeDesc("a"), PLAIN, reopen="ended"),
    "roles, facts": Join(NodeDesc("a"), RULED),
    "data": Join(NodeDesc("a", brings=Brought(data=b"1")), PLAIN),
    "node_unit, slots": Join(
        NodeDesc("a", brings=Brought(slots=2)), RunSettings(1, 4, rules=RoundRules(node_unit=2))
    ),
}


@asynccontextmanager
async def at_server(scheme: str) -> AsyncIterator[RendezvousBackend]:
    async with ar.serve("127.0.0.1:0", http="127.0.0.1:0") as server:
        kind = SessionBackend if scheme == "tcp" else HttpBackend
        port = server.port if scheme == "tcp" else int((server.http_url or "").rpartition(":")[2])
        async with kind("127.0.0.1", port, "job", read_timeout=30.0) as backend:
            yield backend


@pytest.mark.parametrize("scheme", ["tcp", "http"])
async def test_a_node_says_at_once_what_a_server_of_version_1_lacks(
    monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    monkeypatch.setattr(listener, "VERSION", 1)
    monkeypatch.setattr(http_listener, "VERSION", 1)
    async with at_server(scheme) as backend:
        for names, join in NEEDING.items():
            with pytest.raises(ar.RendezvousSettingsError, match=f"^{names} must be left out: .* version 1"):
                await backend.propose(join)
        assert (await backend.propose(Join(NodeDesc("a"), PLAIN))).phase in (Phase.GATHERING, Phase.MEMBER)


async def of_version_1(port: int, *messages: Propose) -> list[ServerMessage]:
    """What a server says to a client of version 1, with its welcome first."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(PREFACE + encode(Hello(1, "job", bytes(16))) + b"".join(map(encode, messages)))
    parser, said = FrameParser(1 << 20), list[ServerMessage]()
    async with asyncio.timeout(30):
        while len(said) < 1 + len(messages):
            said += map(decode_server, parser.feed(await reader.read(1 << 16)))
    writer.close()
    return said


@pytest.mark.parametrize(("settings", "brings"), [(PLAIN, None), (RULED, WORKER)])
async def test_a_node_of_version_1_joins_nodes_of_this_one_unless_their_run_has_rules(
    settings: RunSettings, brings: Brought | None
) -> None:
    async with (
        ar.serve("127.0.0.1:0") as server,
        SessionBackend("127.0.0.1", server.port, "job") as backend,
    ):
        ours = await backend.propose(Join(NodeDesc("ours", brings=brings), settings))
        held = (ours.incarnation, 0, 0, 1, "digest")
        welcome, joined, resumed = await of_version_1(
            server.port,
            Propose(1, Join(NodeDesc("old"), PLAIN)),
            Propose(2, Resume(NodeDesc("older"), PLAIN, *held)),
        )
    assert isinstance(welcome, Welcome)
    assert welcome.version == 1
    if settings is PLAIN:
        assert isinstance(joined, View)
        return
    for refused in (joined, resumed):
        assert isinstance(refused, Failed)
        assert refused.kind == "RendezvousSettingsError"
        assert "agree on roles, facts, which this node does not know" in refused.message


def test_version_1_hears_of_causes_and_events_that_it_does_not_know_in_words_that_it_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(versions, "_CAUSES_1", frozenset({"left", "failed"}))
    monkeypatch.setattr(versions, "_EVENTS_1", frozenset({"NodeDeparted"}))
    lost, failed = Cause.CONNECTION_LOST, Cause.FAILED
    notices = (Notice(1, "b", lost, "cut off"), Notice(2, "c", failed, "broke"), Notice(3, "d", None, "soon"))
    view = NodeView("a", 1, 1, 0, Phase.MEMBER, notices=notices, gone=Departure(lost, "", 0, 5.0))
    told = versions.view_for_1(view)
    assert [(n.node, n.cause, n.reason) for n in told.notices] == [
        ("b", Cause.LEFT, "cut off"), ("c", failed, "broke"), ("d", None, "soon"),
    ]  # fmt: skip
    assert told.gone == Departure(Cause.LEFT, "connection lost", 0, 5.0)
    events: tuple[LawEvent, ...] = (
        NodeJoined("a", Phase.GATHERING), NodeDeparted("b", Phase.MEMBER, lost, "cut off"),
    )  # fmt: skip
    assert versions.events_for_1(events) == (NodeDeparted("b", Phase.MEMBER, Cause.LEFT, "cut off"),)
    status = RunStatus("job", departed=(DepartedStatus("b", lost, "", 0, 1.0),))
    assert versions.status_for_1(status).departed[0].cause is Cause.LEFT


def test_what_version_1_knows_is_said_as_it_is() -> None:
    view = NodeView("a", 1, 1, 0, Phase.MEMBER, notices=(Notice(1, "b", Cause.FAILED, "broke"),))
    assert versions.view_for_1(view) is view
    for cause in ("left", "no heartbeat", "rank taken"):
        assert versions.is_known(Cause(cause))


def test_a_peer_of_version_1_leaves_fields_unread_that_it_does_not_know() -> None:
    class OldSettings(msgspec.Struct, array_like=True):
        min_nodes: int
        max_nodes: int

    assert msgspec.msgpack.decode(msgspec.msgpack.encode(RULED), type=OldSettings) == OldSettings(1, 4)
    assert VERSION == 2

"""Answers that are held back: as long as nodes keep joining, but never for long, and none is lost."""

from __future__ import annotations

import asyncio

import pytest

from arendezvous.coordinator.coordinator import Coordinator
from arendezvous.coordinator.journal import Batch, Done
from arendezvous.coordinator.late_answers import LONGEST, QUIET
from arendezvous.coordinator.recovery import recover
from arendezvous.keyspace.host import KeyspaceHost
from arendezvous.law.operations import Join, KeepAlive, Leave
from arendezvous.law.state import NodeDesc, Phase, RunSettings
from arendezvous.server.access.admission import FailureThrottle
from arendezvous.server.access.limits import ServerLimits
from arendezvous.server.context import ServerContext
from arendezvous.server.tcp.session import NativeSession, SessionContext
from arendezvous.server.tcp.sharing import Shared
from arendezvous.testing.journal_checks import MemoryJournal
from arendezvous.wire.native.messages import (
    PREFACE,
    Ack,
    ClientMessage,
    FrameParser,
    Hello,
    Propose,
    ServerMessage,
    View,
    Welcome,
    decode_server,
    encode,
)

pytestmark = pytest.mark.virtual

PAIR = RunSettings(2, 2)


class Wire(asyncio.Transport):
    """Keeps what is written to it, and when."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[tuple[float, ServerMessage]] = []
        self.writes = 0
        self._parser = FrameParser(2**20)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writes += 1
        now = asyncio.get_running_loop().time()
        self.written += [(now, decode_server(frame)) for frame in self._parser.feed(bytes(data))]

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0


class Sessions:
    """A coordinator, and sessions that talk to it without sockets."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.coordinator = Coordinator(loop)
        shared = Shared(ServerLimits(), FailureThrottle())
        context = ServerContext(self.coordinator, KeyspaceHost(), shared)
        self.context = SessionContext(context, Welcome(1, "id"))

    def open(self, secret: bytes) -> tuple[NativeSession, Wire]:
        wire = Wire()
        session = NativeSession(self.context)
        session.connection_made(wire)
        session.data_received(PREFACE + encode(Hello(1, "job", secret)))
        wire.written.clear()
        wire.writes = 0
        return session, wire


def ask(session: NativeSession, *messages: ClientMessage) -> None:
    session.data_received(b"".join(map(encode, messages)))


async def test_a_round_costs_each_member_one_message() -> None:
    sessions = Sessions()
    members = [sessions.open(bytes([n])) for n in range(8)]
    for n, (session, _) in enumerate(members):
        ask(session, Propose(5, Join(NodeDesc(f"n{n}"), RunSettings(8, 8))))
        await asyncio.sleep(QUIET / 4)
    await asyncio.sleep(1)
    for n, (_, wire) in enumerate(members):
        assert wire.writes == 1
        ((_, answer),) = wire.written
        assert isinstance(answer, View)
        assert (answer.id, answer.view.rank, answer.view.world_size) == (5, n, 8)


class LateJournal(MemoryJournal):
    """Takes so many seconds for each commit."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds

    def commit(self, batch: Batch, done: Done) -> None:
        asyncio.get_running_loop().call_later(self._seconds, super().commit, batch, done)


@pytest.mark.parametrize(("seconds", "answers"), [(3 * QUIET, 1), (2 * LONGEST, 2)])
async def test_while_a_round_is_recorded_nobody_hears_that_it_waits_unless_that_takes_long(
    seconds: float, answers: int
) -> None:
    sessions = Sessions()
    async with LateJournal(seconds) as journal:
        await recover(journal, sessions.coordinator, KeyspaceHost(ServerLimits().store))
        members = [sessions.open(bytes([n])) for n in range(2)]
        for n, (session, _) in enumerate(members):
            ask(session, Propose(5, Join(NodeDesc(f"n{n}"), PAIR)))
        await asyncio.sleep(1)
    for n, (_, wire) in enumerate(members):
        assert wire.writes == answers
        _, told = wire.written[-1]
        assert isinstance(told, View)
        assert (told.view.rank, told.view.world_size) == (n, 2)


async def test_a_join_that_completes_nothing_is_answered_once_it_is_quiet() -> None:
    session, wire = Sessions().open(b"a")
    began = asyncio.get_running_loop().time()
    ask(session, Propose(1, Join(NodeDesc("a"), PAIR)))
    await asyncio.sleep(1)
    ((when, answer),) = wire.written
    assert isinstance(answer, View)
    assert (answer.id, answer.view.phase) == (1, Phase.GATHERING)
    assert when - began == pytest.approx(QUIET)


async def test_nobody_waits_long_for_an_answer_however_many_keep_joining() -> None:
    sessions = Sessions()
    session, wire = sessions.open(b"a")
    crowd, _ = sessions.open(b"crowd")
    big = RunSettings(1000, 1000)
    began = asyncio.get_running_loop().time()
    ask(session, Propose(1, Join(NodeDesc("a"), big)))
    for n in range(60):
        await asyncio.sleep(QUIET / 2)
        ask(crowd, Propose(n + 1, Join(NodeDesc(f"n{n}"), big)))
    ((when, answer),) = wire.written
    assert isinstance(answer, View)
    assert LONGEST <= when - began < LONGEST + QUIET


async def test_a_leave_after_a_join_is_answered_after_it() -> None:
    session, wire = Sessions().open(b"a")
    ask(session, Propose(1, Join(NodeDesc("a"), PAIR)), Propose(2, Leave("a")))
    await asyncio.sleep(1)
    first, second = (message for _, message in wire.written)
    assert isinstance(first, View)
    assert (first.id, first.view.phase) == (1, Phase.GATHERING)
    assert isinstance(second, View)
    assert (second.id, second.view.phase) == (2, Phase.GONE)


async def test_every_join_that_is_repeated_is_answered() -> None:
    session, wire = Sessions().open(b"a")
    join = Join(NodeDesc("a"), PAIR)
    ask(session, Propose(1, join), Propose(2, KeepAlive("a")), Propose(3, join))
    await asyncio.sleep(1)
    answers = [message for _, message in wire.written]
    assert {answer.id for answer in answers if isinstance(answer, View | Ack)} == {1, 2, 3}
    assert len(answers) == 3


async def test_a_session_that_is_gone_is_told_nothing() -> None:
    sessions = Sessions()
    session, wire = sessions.open(b"a")
    ask(session, Propose(1, Join(NodeDesc("a"), PAIR)))
    session.connection_lost(None)
    await asyncio.sleep(0.5)
    assert wire.written == []

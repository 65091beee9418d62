"""Whatever one connection does, it gets a clear error or is dropped, and nobody else notices."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import msgspec
import pytest

import arendezvous as ar
from arendezvous.backends.tcp.session import SessionBackend
from arendezvous.coordinator.budget import CoordinatorLimits
from arendezvous.law.events import NodeDeparted
from arendezvous.law.operations import (
    Close,
    Disconnect,
    Drain,
    Join,
    KeepAlive,
    Leave,
    Operation,
    Reopen,
    Tick,
)
from arendezvous.law.state import NodeDesc, Phase, RunSettings
from arendezvous.server.access.limits import ServerLimits
from arendezvous.wire.native.messages import (
    PREFACE,
    Ack,
    ClientMessage,
    Failed,
    FrameParser,
    GetMembers,
    GetRuns,
    GetStatus,
    Happened,
    Hello,
    Members,
    Propose,
    Runs,
    ServerMessage,
    Status,
    View,
    WatchRun,
    Welcome,
    decode_server,
    encode,
)

PAIR = RunSettings(2, 2)
HELLO = Hello(1, "job", b"secret of this test")


class Raw:
    """A client that sends whatever it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.parser = FrameParser(2**30)
        self.frames: list[bytes] = []

    def send(self, *messages: ClientMessage) -> None:
        self.raw(b"".join(encode(message) for message in messages))

    def raw(self, data: bytes) -> None:
        self.writer.write(data)

    async def read(self) -> ServerMessage | None:
        """Returns the next message; None when the server has closed the connection."""
        with anyio.fail_after(120):
            while not self.frames:
                try:
                    data = await self.reader.read(65_536)
                except ConnectionError:
                    data = b""
                if not data:
                    return None
                self.frames += self.parser.feed(data)
        return decode_server(self.frames.pop(0))

    async def read_all(self) -> list[ServerMessage]:
        """Returns everything that comes until the server closes the connection."""
        messages = []
        while (message := await self.read()) is not None:
            messages.append(message)
        return messages

    async def propose(self, number: int, operation: Operation) -> ServerMessage | None:
        self.send(Propose(number, operation))
        return await self.read()


@asynccontextmanager
async def connect(server: ar.Server, *, hello: Hello | None = HELLO) -> AsyncIterator[Raw]:
    reader, writer = await asyncio.open_connection(server.host, server.port)
    raw = Raw(reader, writer)
    try:
        if hello is not None:
            raw.raw(PREFACE + encode(hello))
            assert isinstance(await raw.read(), Welcome)
        yield raw
    finally:
        writer.transport.abort()


@asynccontextmanager
async def members_that_notice_nothing(server: ar.Server) -> AsyncIterator[None]:
    """Two members of another run, who still are members when the block ends, and meet again at once."""

    def node(name: str) -> ar.AsyncRendezvousHandler:
        return ar.open_rendezvous(server.tcp_url, run_id="calm", min_nodes=2, node=name, is_host=False)

    async def meet(*nodes: ar.AsyncRendezvousHandler) -> None:
        with anyio.fail_after(120):
            async with anyio.create_task_group() as tasks:
                for one in nodes:
                    tasks.start_soon(one.next_rendezvous)

    async with node("a") as a, node("b") as b:
        await meet(a, b)
        yield
        await meet(a, b)
        run = server.coordinator.runs["calm"]
        assert not [event for _, event in run.history if isinstance(event, NodeDeparted)]
        assert (run.state.round, run.state.complete) == (1, True)


@asynccontextmanager
async def serving(**limits: Any) -> AsyncIterator[ar.Server]:
    """A server, with two members that must not notice what the test does."""
    async with (
        ar.serve("127.0.0.1:0", limits=ServerLimits(**limits)) as server,
        members_that_notice_nothing(server),
    ):
        yield server


async def error_of_drop(raw: Raw) -> str:
    """The last words of the server, which must be about the whole connection."""
    messages = await raw.read_all()
    assert messages
    last = messages[-1]
    assert isinstance(last, Failed)
    assert last.id == 0
    return last.message


def message(*fields: Any) -> bytes:
    payload = msgspec.msgpack.encode(list(fields))
    return len(payload).to_bytes(4, "big") + payload


# Broken connections


@pytest.mark.parametrize("garbage", [b"garbage\r\n", b"\xff" * 1000])
async def test_garbage_is_dropped(garbage: bytes) -> None:
    async with serving() as server, connect(server, hello=None) as raw:
        raw.raw(garbage)
        assert await raw.read() is None


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (PREFACE[:2] + b"xx", "not the preface of a native session"),
        (PREFACE + b"\x80\x00\x00\x00", "a frame of 2147483648 bytes; allowed are 1 to 4096"),
        (PREFACE + b"\x00\x00\x00\x00", "a frame of 0 bytes"),
        (PREFACE + encode(GetStatus(1)), "GetStatus before Hello"),
        (PREFACE + encode(Propose(1, Join(NodeDesc("x"), PAIR))), "Propose before Hello"),
        (PREFACE + encode(HELLO) * 2, "a second Hello"),
        (PREFACE + encode(Hello(0, "job")), "protocol version 0; this server speaks 1 to 2"),
        (PREFACE + encode(Hello(1, "job", b"x" * 65)), "a secret of 65 bytes; allowed are 64"),
        (PREFACE + encode(Hello(1, "a\x00b")), "run id is 'a\\x00b'"),
        (PREFACE + encode(Hello(1, "r" * 300)), "1 to 256 printable characters"),
        (PREFACE + encode(HELLO) + encode(GetStatus(0)), "GetStatus has the id 0; expected 1 or more"),
        (PREFACE + encode(HELLO) + encode(GetStatus(-5)), "GetStatus has the id -5"),
        (PREFACE + encode(HELLO) + message("Explode", 1), "Invalid value 'Explode'"),
        (PREFACE + encode(HELLO) + message("Propose", 1, ["Explode", "x"]), "Invalid value 'Explode'"),
        (
            PREFACE + encode(HELLO) + message("Propose", 1, ["KeepAlive", "n" * 2**20]),
            "allowed are 1 to 65536",
        ),
        (PREFACE + encode(HELLO) + message("Propose", 1, ["Join", ["n" * 300], [1, 1]]), "node name is"),
        (PREFACE + encode(HELLO) + b"\x00\x00\xff\xff" + b"\x91" * 0xFFFF, "not a valid message"),
        (PREFACE + encode(HELLO) + encode(Welcome(1, "me")), "Invalid value 'Welcome'"),
    ],
)
@pytest.mark.parametrize("single", [False, True])
async def test_what_breaks_the_protocol_is_told_and_dropped(data: bytes, expected: str, single: bool) -> None:
    async with serving() as server, connect(server, hello=None) as raw:
        if single and len(data) < 1000:
            for byte in data:
                raw.raw(bytes([byte]))
                await asyncio.sleep(0)
        else:
            raw.raw(data)
        assert expected in await error_of_drop(raw)


async def test_requests_before_the_broken_one_are_answered() -> None:
    async with serving() as server, connect(server) as raw:
        raw.send(GetStatus(1), GetStatus(0), GetStatus(2))
        first, last = await raw.read_all()
        assert isinstance(first, Status)
        assert isinstance(last, Failed)


@pytest.mark.parametrize("beginning", [b"", PREFACE[:1], PREFACE, PREFACE + encode(HELLO)[:-1]])
async def test_whoever_does_not_say_hello_in_time_is_dropped(beginning: bytes) -> None:
    async with serving(handshake_timeout=0.1) as server, connect(server, hello=None) as raw:
        raw.raw(beginning)
        messages = await raw.read_all()
        expected = ["no hello within 0.1 s"] if beginning else []
        assert [m.message for m in messages if isinstance(m, Failed)] == expected


async def test_whoever_said_hello_may_be_silent() -> None:
    async with serving(handshake_timeout=1.0) as server, connect(server) as raw:
        async with connect(server, hello=None) as silent:
            assert await silent.read() is None  # who is as old, and said nothing
        raw.send(GetRuns(1))
        assert isinstance(await raw.read(), Runs)


async def test_half_a_frame_and_then_nothing_more_leaves_no_trace() -> None:
    async with serving() as server:
        async with connect(server) as raw:
            raw.raw(encode(Propose(1, Join(NodeDesc("x"), PAIR)))[:-3])
            raw.writer.write_eof()
            assert await raw.read() is None
        assert "job" not in server.coordinator.runs


async def test_a_flood_of_connections_is_refused_at_the_limit_and_recovers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving(max_connections=10) as server:
        socks = []
        for _ in range(40):
            sock = socket.create_connection((server.host, server.port))
            sock.setblocking(False)
            socks.append(sock)
        async with connect(server, hello=None) as raw:
            assert await raw.read() is None
        assert "refused: 10 connections are open" in caplog.text
        assert caplog.text.count("refused:") < 10
        for sock in socks:
            sock.close()
        with anyio.fail_after(120):
            while True:
                async with connect(server, hello=None) as raw:
                    raw.raw(PREFACE + encode(HELLO))
                    if await raw.read() is not None:
                        break


# Requests that are refused, each by an answer of its own


@pytest.mark.parametrize("operation", [Tick(), Disconnect("a")], ids=["Tick", "Disconnect"])
async def test_what_only_the_server_decides_is_refused(operation: Operation) -> None:
    async with serving() as server, connect(server) as raw:
        answer = await raw.propose(7, operation)
        assert isinstance(answer, Failed)
        assert (answer.id, answer.kind) == (7, "RendezvousStateError")
        assert "is for the server alone to decide" in answer.message
        raw.send(GetRuns(8))
        assert isinstance(await raw.read(), Runs)


async def test_a_session_without_a_run_may_only_look_at_the_server() -> None:
    async with serving() as server, connect(server, hello=Hello(1)) as raw:
        raw.send(GetRuns(1), GetStatus(2))
        runs, failed = await raw.read(), await raw.read()
        assert isinstance(runs, Runs)
        assert [(run.run_id, run.participants, run.complete) for run in runs.runs] == [("calm", 2, True)]
        assert isinstance(failed, Failed)
        assert "names no run" in failed.message


async def test_nobody_speaks_for_the_node_of_another_session() -> None:
    async with serving() as server, connect(server) as owner:
        assert isinstance(await owner.propose(1, Join(NodeDesc("x"), PAIR)), View)
        async with connect(server, hello=Hello(1, "job", b"another secret")) as other:
            operations: list[Operation] = [KeepAlive("x"), Leave("x"), Join(NodeDesc("x"), PAIR)]
            phases = []
            for number, operation in enumerate(operations, 1):
                answer = await other.propose(number, operation)
                assert isinstance(answer, View)
                phases.append(answer.view.phase)
            assert phases == [Phase.GONE, Phase.GONE, Phase.CLAIMING]
            assert isinstance(await owner.propose(2, KeepAlive("x")), Ack)
            refused = await other.read()
            assert isinstance(refused, View)
            assert refused.view.gone is not None
            assert "'x' is in use" in refused.view.gone.reason
        assert server.coordinator.runs["job"].state.phase("x") is Phase.GATHERING


async def test_a_node_leaves_by_a_new_connection_of_its_session() -> None:
    async with serving() as server:
        async with connect(server) as first:
            await first.propose(1, Join(NodeDesc("x"), PAIR))
        async with connect(server) as second:
            answer = await second.propose(1, Leave("x", "bye"))
            assert isinstance(answer, View)
            assert answer.view.phase is Phase.GONE
        assert server.coordinator.status("job").departed[-1].reason == "bye"


async def test_a_session_speaks_for_many_nodes_and_no_more() -> None:
    big = RunSettings(5000, 5000)
    async with serving() as server, connect(server) as raw:
        raw.send(*(Propose(n, Join(NodeDesc(f"n{n}"), big)) for n in range(1, 4098)))
        answers = [await raw.read() for _ in range(4097)]
        views = [answer.view for answer in answers if isinstance(answer, View)]
        assert {view.node for view in views} == {f"n{n}" for n in range(1, 4097)}
        (refused,) = (answer for answer in answers if isinstance(answer, Failed))
        assert refused.id == 4097
        assert "speaks for 4096 nodes at most" in refused.message
        answer = await raw.propose(5000, Leave("n1"))
        assert isinstance(answer, View)
        assert isinstance(await raw.propose(5001, Join(NodeDesc("other"), big)), View)


async def test_a_run_that_is_full_says_so() -> None:
    async with serving(coordinator=CoordinatorLimits(max_nodes=2)) as server, connect(server) as raw:
        settings = RunSettings(3, 3)
        await raw.propose(1, Join(NodeDesc("x"), settings))
        await raw.propose(2, Join(NodeDesc("y"), settings))
        answer = await raw.propose(3, Join(NodeDesc("z"), settings))
        assert isinstance(answer, Failed)
        assert "run 'job' has 2 nodes, which is this server's limit" in answer.message


async def test_anybody_may_close_drain_and_look() -> None:
    async with serving() as server, connect(server) as raw, connect(server, hello=Hello(1, "job")) as other:
        await raw.propose(1, Join(NodeDesc("x"), RunSettings(1, 1)))
        drained = await other.propose(1, Drain("x", 60, "by the operator"))
        assert isinstance(drained, View)
        assert drained.view.phase is Phase.MEMBER
        other.send(GetMembers(2, 1, 0), GetMembers(3, 1, 7))
        members, failed = await other.read(), await other.read()
        assert isinstance(members, Members)
        assert [desc.name for desc in members.members] == ["x"]
        assert isinstance(failed, Failed)
        closed = await other.propose(4, Close("operator", "enough"))
        assert isinstance(closed, View)
        pushed = [await raw.read(), await raw.read()]
        assert all(isinstance(push, View) and push.id == 0 for push in pushed)


async def test_a_session_that_watches_is_told_all_that_happens_in_order() -> None:
    async with serving() as server, connect(server) as raw, connect(server, hello=Hello(1, "job")) as watcher:
        watcher.send(WatchRun(1))
        before = await watcher.read()
        assert isinstance(before, Status)
        assert before.status.settings is None
        await raw.propose(1, Join(NodeDesc("x"), RunSettings(1, 1)))
        await raw.propose(2, Leave("x"))
        events: list[str] = []
        while "NodeDeparted" not in events:
            happened = await watcher.read()
            assert isinstance(happened, Happened)
            assert (happened.id, happened.missed) == (0, 0)
            events += [type(event).__name__ for event in happened.events]
        assert events[:3] == ["NodeJoined", "RoundCompleted", "NodeDeparted"]


# Peers that read slowly


BIG = RunSettings(5000, 5000)


def crowd(server: ar.Server, run: str = "job", count: int = 2000) -> None:
    """Fills a run with so many nodes that its status takes hundreds of kilobytes."""
    for number in range(count):
        name = f"n{number}"
        attachment = server.coordinator.attach(run, name, b"crowd", lambda view: None)
        server.coordinator.propose(attachment, Join(NodeDesc(name, addr="a" * 200), BIG))


async def ask_without_reading(server: ar.Server, raw: Raw, *requests: ClientMessage) -> None:
    """Sends requests, and returns once the server has done what it will do before the answers are read."""
    raw.reader._limit = 1  # type: ignore[attr-defined]  # pauses reading at the first byte
    raw.send(*requests)
    async with connect(server, hello=Hello(1)) as other:
        for number in range(1, 6):
            other.send(GetRuns(number))
            await other.read()


async def test_a_peer_that_asks_without_reading_is_answered_no_faster_than_it_reads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serving() as server, connect(server) as raw:
        crowd(server)
        real, asked = server.coordinator.status, 0

        def status(run_id: str) -> ar.RunStatus:
            nonlocal asked
            asked += 1
            return real(run_id)

        monkeypatch.setattr(server.coordinator, "status", status)
        await ask_without_reading(server, raw, *(GetStatus(number) for number in range(1, 101)))
        assert asked < 40
        got = [await raw.read() for _ in range(100)]
        assert [message.id for message in got if isinstance(message, Status)] == list(range(1, 101))
        assert asked == 100


async def test_a_peer_that_reads_late_gets_the_latest_of_its_views_alone() -> None:
    async with serving() as server, connect(server) as raw:
        crowd(server)
        await raw.propose(1, Join(NodeDesc("x"), BIG))
        await ask_without_reading(server, raw, *(GetStatus(number) for number in range(2, 102)))
        for operation in (Close("op"), Reopen(1, "op"), Close("op")):
            server.coordinator.steer("job", operation)
            for _ in range(50):  # turns of the loop, in which all 2001 are told
                await asyncio.sleep(0)
        got: list[ServerMessage | None] = []
        while len([message for message in got if isinstance(message, Status)]) < 100:
            got.append(await raw.read())
        raw.send(GetRuns(200))
        while not isinstance(got[-1], Runs):
            got.append(await raw.read())
        phases = [message.view.phase for message in got if isinstance(message, View)]
        assert phases == [Phase.GONE]


async def test_a_peer_that_never_reads_is_dropped_over_the_limit() -> None:
    async with serving(max_unread=20_000) as server, connect(server) as raw:
        crowd(server)
        await ask_without_reading(server, raw, *(GetStatus(number) for number in range(1, 201)))
        assert len(await raw.read_all()) < 200


async def test_stopping_the_server_does_not_wait_for_a_peer_that_does_not_read() -> None:
    with anyio.fail_after(120):
        async with ar.serve("127.0.0.1:0") as server:
            reader, writer = await asyncio.open_connection(server.host, server.port)
            raw = Raw(reader, writer)
            raw.raw(PREFACE + encode(HELLO))
            crowd(server)
            await ask_without_reading(server, raw, *(GetStatus(number) for number in range(1, 101)))
        got = await raw.read_all()
        writer.close()
    assert len([message for message in got if isinstance(message, Status)]) < 100


async def test_the_server_that_is_stopped_closes_its_connections_and_its_port(free_port: int) -> None:
    async with ar.serve(f"127.0.0.1:{free_port}") as server:
        reader, writer = await asyncio.open_connection(server.host, server.port)
        writer.write(PREFACE + encode(HELLO))
        raw = Raw(reader, writer)
        assert isinstance(await raw.read(), Welcome)
    assert await raw.read() is None
    writer.close()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(server.host, server.port)
    async with ar.serve(f"{server.host}:{server.port}"):
        pass


# Addresses


async def test_a_port_that_is_taken_is_named_in_the_error() -> None:
    async with ar.serve("127.0.0.1:0") as server:
        with pytest.raises(
            ar.RendezvousConnectionError, match="it is in use; choose another address or port 0"
        ):
            async with ar.serve(f"127.0.0.1:{server.port}"):
                pass


async def test_an_address_of_another_machine_cannot_be_listened_on() -> None:
    with pytest.raises(ar.RendezvousConnectionError, match=r"cannot listen on 192\.0\.2\.1:1"):
        async with ar.serve("192.0.2.1:1", insecure=True):
            pass


async def test_names_of_this_machine_need_no_permission_and_others_do() -> None:
    async with ar.serve("localhost:0") as server, SessionBackend("localhost", server.port, "job") as backend:
        assert (await backend.status()).settings is None
    with pytest.raises(ar.RendezvousSettingsError, match="a loopback address, or come with tokens"):
        async with ar.serve("host.example:0"):
            pass


async def test_ipv6_is_served() -> None:
    async with ar.serve("[::1]:0") as server:
        assert server.tcp_url == f"tcp://[::1]:{server.port}"
        async with SessionBackend("::1", server.port, "job") as backend:
            assert (await backend.status()).run_id == "job"
            assert backend.addresses() == ("::1",)


async def test_all_interfaces_are_served_over_both_protocols() -> None:
    async with ar.serve("[::]:0", insecure=True) as server:
        for host in ("127.0.0.1", "::1"):
            async with SessionBackend(host, server.port, "job") as backend:
                assert (await backend.status()).run_id == "job"


async def test_an_answer_says_when_an_operation_changed_nothing() -> None:
    async with serving() as server, connect(server) as raw:
        await raw.propose(1, Join(NodeDesc("x"), PAIR))
        assert await raw.propose(2, KeepAlive("x")) == Ack(2)

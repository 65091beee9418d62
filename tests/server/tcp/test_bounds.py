"""No client, however much it asks for, holds up the others or fills the server."""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import arendezvous as ar
from arendezvous.coordinator.budget import CoordinatorLimits
from arendezvous.keyspace.grants import EVERYTHING, Grant, Scope
from arendezvous.keyspace.messages import (
    Add,
    Append,
    Check,
    Get,
    ListKeys,
    MultiGet,
    MultiSet,
    NumKeys,
    Ping,
    QueuePop,
    QueuePush,
    Set,
    StoreRequest,
    Validate,
    Wait,
)
from arendezvous.keyspace.regions import KeyspaceLimits
from arendezvous.law.operations import Close, Drain, Join, Leave, Reopen, Resume
from arendezvous.law.state import NodeDesc, RunSettings
from arendezvous.server.access.authority import Authority
from arendezvous.server.access.limits import ServerLimits
from arendezvous.stores.tcp.store import TcpStore
from arendezvous.wire.c10d.protocol import MAGIC
from arendezvous.wire.c10d.requests import encode_request
from arendezvous.wire.native.login import AnswerParser, encode_login
from arendezvous.wire.native.messages import (
    PREFACE,
    Failed,
    FrameParser,
    GetMembers,
    GetRuns,
    GetStatus,
    Hello,
    Members,
    Propose,
    Runs,
    ServerMessage,
    Status,
    View,
    Welcome,
    decode_server,
    encode,
)

PATIENCE = 120.0
HELLO = Hello(1, "job", b"the secret of this test")
FULL = "f" * 32
OF_JOB = "j" * 32
JOB = b"/arendezvous/job/"
LONG_VALUE = b"x" * 3000


class Peer:
    """A connection that is sent whatever a test likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._parser = FrameParser(2**30)
        self._frames: list[bytes] = []

    @property
    def name(self) -> str:
        """As the server's log has it."""
        return "{}:{}".format(*self.writer.get_extra_info("sockname"))

    def ask(self, *requests: StoreRequest) -> None:
        """Sends requests to the store."""
        self.writer.write(b"".join(map(encode_request, requests)))

    def say(self, *messages: Any) -> None:
        """Sends native messages."""
        self.writer.write(b"".join(map(encode, messages)))

    async def read(self, size: int) -> bytes:
        async with asyncio.timeout(PATIENCE):
            return await self.reader.readexactly(size)

    async def number(self) -> int:
        """Reads a number that the store answers."""
        return int(struct.unpack("=q", await self.read(8))[0])

    async def string(self) -> bytes:
        """Reads a string that the store answers."""
        return await self.read(await self.number())

    async def heard(self) -> ServerMessage:
        """Reads a native message."""
        async with asyncio.timeout(PATIENCE):
            while not self._frames:
                data = await self.reader.read(2**16)
                assert data, "the server closed the connection"
                self._frames += self._parser.feed(data)
        return decode_server(self._frames.pop(0))

    async def dropped(self) -> bytes:
        """Reads all that comes until the server drops the connection."""
        async with asyncio.timeout(PATIENCE):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""


@asynccontextmanager
async def peer(server: ar.Server) -> AsyncIterator[Peer]:
    reader, writer = await asyncio.open_connection(server.host, server.port)
    try:
        yield Peer(reader, writer)
    finally:
        writer.transport.abort()


@asynccontextmanager
async def client(server: ar.Server, token: str = "") -> AsyncIterator[Peer]:
    """A client of the store, which has greeted it."""
    async with peer(server) as connected:
        if token:
            connected.writer.write(encode_login(token))
            parser = AnswerParser()
            while parser.feed(await connected.read(1)) is None:
                pass
        connected.ask(Validate(MAGIC))
        yield connected


@asynccontextmanager
async def session(server: ar.Server, hello: Hello = HELLO) -> AsyncIterator[Peer]:
    """A native session, which has been welcomed."""
    async with peer(server) as connected:
        connected.writer.write(PREFACE + encode(hello))
        assert isinstance(await connected.heard(), Welcome)
        yield connected


@asynccontextmanager
async def serving(**limits: Any) -> AsyncIterator[ar.Server]:
    async with ar.serve("127.0.0.1:0", limits=ServerLimits(**limits)) as server:
        yield server


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the server has logged."""
    return [record.getMessage() for record in caplog.records if record.name.startswith("arendezvous.server")]


async def served(other: TcpStore, times: int = 50) -> None:
    """Has the server serve somebody else for a while."""
    for _ in range(times):
        await other.check([])


# The store


async def test_a_request_with_the_most_keys_is_answered_whole_and_others_are_served_meanwhile() -> None:
    keys = [b"%d" % number for number in range(131_072)]
    async with serving() as server, client(server) as big, client(server) as other:
        big.ask(MultiSet([(key, b"<%s>" % key) for key in keys]))
        big.ask(NumKeys(), Check(keys), Check([*keys[1:], b"none"]), Wait(keys), MultiGet(keys[::-1]))
        other.ask(Set(b"begun", b""), Get(b"begun"))
        assert await other.string() == b""
        assert await big.number() >= 131_072
        assert await big.read(3) == b"\x00\x01\x00"
        for key in reversed(keys):
            assert await big.string() == b"<%s>" % key
        other.ask(NumKeys())
        assert await other.number() == 131_073


async def test_a_wait_for_the_most_keys_ends_with_the_last_of_them() -> None:
    keys = [b"%d" % number for number in range(131_072)]
    async with serving() as server, client(server) as waiting, client(server) as other:
        waiting.ask(Wait(keys), NumKeys())
        assert await waiting.number() == 0
        other.ask(MultiSet([(key, b"") for key in keys[1:]]), Ping(1))
        await other.read(4)
        waiting.ask(NumKeys())
        assert await waiting.number() == 131_071
        other.ask(Set(keys[0], b""))
        assert await waiting.read(1) == b"\x00"


async def test_long_lists_of_keys_come_whole_and_those_of_a_run_to_its_token_alone() -> None:
    names = {JOB + b"1.0.x/%d" % number for number in range(3000)}
    authority = Authority([(FULL, EVERYTHING), (OF_JOB, Grant(Scope.RUN, "job"))])
    async with (
        ar.serve("127.0.0.1:0", authority=authority) as server,
        client(server, FULL) as full,
        client(server, OF_JOB) as limited,
    ):
        full.ask(MultiSet([(name, b"") for name in names]), Set(b"/other", b""), Get(b"/other"))
        await full.string()
        for asker, expected in ((full, names | {b"/other"}), (limited, names)):
            asker.ask(NumKeys(), ListKeys(), NumKeys())
            assert await asker.number() == len(expected)
            count = await asker.number()
            assert {await asker.string() for _ in range(count)} == expected
            assert await asker.number() == len(expected)


@pytest.mark.parametrize("size", [65_536, 65_537, 3_000_000])
async def test_long_values_come_whole_however_they_were_made_and_in_order(size: int) -> None:
    value = bytes(range(256)) * (size // 256 + 1)
    value = value[:size]
    async with serving() as server, client(server) as asker:
        asker.ask(Set(b"set", value), QueuePush(b"q", value), QueuePush(b"q", b"short"))
        for start in range(0, size, 1_000_000):
            asker.ask(Append(b"appended", value[start : start + 1_000_000]))
        asker.ask(Get(b"set"), NumKeys(), Get(b"appended"), MultiGet([b"none", b"appended", b"set"]))
        asker.ask(QueuePop(b"q"), QueuePop(b"q"), NumKeys())
        assert await asker.string() == value
        assert await asker.number() == 2
        assert await asker.string() == value
        assert [await asker.string() for _ in range(3)] == [b"", value, value]
        assert (await asker.number(), await asker.string()) == (2, value)
        assert (await asker.number(), await asker.string()) == (1, b"short")
        assert await asker.number() == 2


async def test_a_value_that_is_replaced_while_it_is_sent_arrives_as_it_was() -> None:
    value = b"old" * 2_000_000
    async with serving() as server, client(server) as slow, client(server) as other:
        other.ask(Set(b"k", value), Get(b"none"))
        await other.string()
        slow.reader._limit = 1  # type: ignore[attr-defined]  # pauses reading at the first byte
        slow.ask(Get(b"k"))
        other.ask(Append(b"k", b"more"), Set(b"k", b"new"), Get(b"k"))
        assert await other.string() == b"new"
        slow.reader._limit = 2**16  # type: ignore[attr-defined]
        assert await slow.string() == value


async def test_a_client_that_is_woken_while_it_is_sent_a_long_value_is_told_so_afterwards() -> None:
    value = b"x" * 8_000_000
    async with serving() as server, client(server) as slow, client(server) as other:
        slow.reader._limit = 1  # type: ignore[attr-defined]  # pauses reading at the first byte
        slow.ask(Set(b"k", value), Wait([b"late"]), Get(b"k"))
        async with TcpStore(server.host, server.port) as third:
            await served(third)
        other.ask(Set(b"late", b""), Get(b"late"))
        await other.string()
        slow.reader._limit = 2**16  # type: ignore[attr-defined]
        assert await slow.string() == value
        assert await slow.read(1) == b"\x00"


async def test_a_store_that_is_full_drops_a_stock_client_and_the_log_says_why_without_its_key(
    caplog: pytest.LogCaptureFixture,
) -> None:
    limits = KeyspaceLimits(max_bytes=10_000)
    async with serving(store=limits) as server, client(server) as asker, client(server) as other:
        asker.ask(Set(b"/some key", b"x" * 10_000), NumKeys())
        assert await asker.dropped() == b""
        other.ask(NumKeys(), Set(b"fits", b""), NumKeys())
        assert (await other.number(), await other.number()) == (0, 1)
        [line] = lines(caplog)
        assert line.startswith(f"{asker.name}: dropped: all keys, with their values")
        assert "--limit store.max_bytes=" in line
        assert "some key" not in line


@pytest.mark.parametrize(
    "change",
    [
        lambda store: store.set("new", LONG_VALUE),
        lambda store: store.append("new", LONG_VALUE),
        lambda store: store.compare_set("new", "", LONG_VALUE),
        lambda store: store.multi_set(["new"], [LONG_VALUE]),
        lambda store: store.queue_push("new", LONG_VALUE),
        lambda store: store.add("new" * 700, 1),
        lambda store: store.barrier("new" * 700, 2),
    ],
)
async def test_our_client_of_a_store_that_is_full_says_where_it_is_written_why_it_was_dropped(
    change: Any,
) -> None:
    async with (
        serving(store=KeyspaceLimits(max_bytes=2000)) as server,
        TcpStore(server.host, server.port) as store,
    ):
        with pytest.raises(ar.RendezvousConnectionError, match=r"in its log why .*a full store"):
            await change(store)
        assert await store.num_keys() == 0


async def test_a_value_that_is_no_number_is_not_shown_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as server, client(server) as asker:
        asker.ask(Set(b"/some key", b"some value"), Add(b"/some key", 1))
        assert await asker.dropped() == b""
    [line] = lines(caplog)
    assert "does not start with an integer" in line
    assert not [word for word in ("some key", "some value") if word in line]


async def test_large_values_that_do_not_end_hold_up_only_other_large_values() -> None:
    limits = {"request_timeout": 1.0}
    large = encode_request(Set(b"large", b"x" * 1_000_000))
    async with serving(**limits) as server, client(server) as other:
        hostile = [await asyncio.open_connection(server.host, server.port) for _ in range(16)]
        for _, writer in hostile:
            writer.write(encode_request(Validate(MAGIC)) + large[:-1])
        async with TcpStore(server.host, server.port) as store:
            await served(store)
            await store.set("small", "v")
            assert await store.get("small") == b"v"
        other.writer.write(large)
        other.ask(NumKeys())
        assert await other.number() == 2, "it came when those before it had had their time"
        for _, writer in hostile:
            writer.transport.abort()


async def test_whoever_has_not_finished_a_request_for_the_longest_is_dropped_when_they_are_too_many(
    caplog: pytest.LogCaptureFixture,
) -> None:
    request = encode_request(Set(b"k", b"x" * 30_000))
    async with serving(max_unfinished=100_000) as server, client(server) as first, client(server) as second:
        async with TcpStore(server.host, server.port) as store:
            first.writer.write(request[:-1])
            await served(store)
            second.writer.write(request[:-1])
            await served(store)
            others = [await asyncio.open_connection(server.host, server.port) for _ in range(2)]
            for _, writer in others:
                writer.write(encode_request(Validate(MAGIC)) + request[:-1])
            assert await first.dropped() == b""
            second.writer.write(request[-1:])
            second.ask(NumKeys())
            assert await second.number() == 1
        for _, writer in others:
            writer.transport.abort()
    assert [line for line in lines(caplog) if line.startswith(f"{first.name}: dropped: it has left ")]


# Native sessions


async def test_first_messages_that_do_not_end_are_kept_up_to_a_limit_for_one_address() -> None:
    begun = PREFACE + (3000).to_bytes(4, "big") + b"x" * 2000
    async with serving(max_greetings=10_000) as server, session(server) as good:
        peers = [Peer(*await asyncio.open_connection(server.host, server.port)) for _ in range(8)]
        for each in peers:
            each.writer.write(begun)
        dropped = [each for each in peers[-3:] if b"not complete" in await each.dropped()]
        assert len(dropped) == 3
        for each in peers:
            each.writer.transport.abort()
        good.say(GetRuns(1))
        assert isinstance(await good.heard(), Runs)
        async with session(server):
            pass  # there is room again


async def test_a_first_message_is_short_and_those_after_it_may_be_long() -> None:
    desc = NodeDesc("a", addresses=tuple("x" * 250 + str(number) for number in range(16)))
    async with serving() as server:
        async with peer(server) as connected:
            connected.writer.write(
                PREFACE + encode(HELLO) + encode(Propose(1, Join(desc, RunSettings(1, 1))))
            )
            assert isinstance(await connected.heard(), Welcome)
            assert isinstance(await connected.heard(), View)
        async with peer(server) as connected:
            connected.writer.write(PREFACE + encode(Hello(1, "job", b"", "t" * 5000)))
            assert b"allowed are 1 to 4096" in await connected.dropped()


async def test_lists_of_many_runs_are_made_in_turns_and_complete() -> None:
    async with serving() as server, session(server, Hello(1)) as looking, session(server) as other:
        for number in range(2000):
            server.coordinator.steer(f"run{number}", Close("me", "x"))
        looking.say(*(GetRuns(number) for number in range(1, 51)))
        other.say(GetStatus(1))
        assert isinstance(await other.heard(), Status)
        for number in range(1, 51):
            runs = await looking.heard()
            assert isinstance(runs, Runs)
            assert (runs.id, len(runs.runs)) == (number, 2000)


async def test_a_token_of_one_run_is_told_of_no_other() -> None:
    authority = Authority([(FULL, EVERYTHING), (OF_JOB, Grant(Scope.RUN, "job"))])
    async with ar.serve("127.0.0.1:0", authority=authority) as server:
        server.coordinator.steer("secret run", Close("me", "x"))
        async with session(server, Hello(1, "job", b"secret", OF_JOB)) as limited:
            limited.say(GetRuns(1), Propose(2, Drain("a", 1.0)), Propose(3, Reopen(1)))
            said = [await limited.heard() for _ in range(3)]
            assert said[0] == Runs(1, ())
            assert all(isinstance(answer, Failed) for answer in said[1:])
            assert "secret" not in repr(said)


async def test_all_members_who_ask_are_sent_the_same_list_and_a_later_one_who_is_left() -> None:
    settings = RunSettings(2, 2, 0.0)
    async with serving() as server, session(server) as one, session(server) as two:
        one.say(Propose(1, Join(NodeDesc("a"), settings)))
        two.say(Propose(1, Join(NodeDesc("b"), settings)))
        await one.heard()
        await two.heard()
        for asker in (one, two):
            asker.say(GetMembers(2, 1, 0))
            assert await asker.heard() == Members(2, (NodeDesc("a"), NodeDesc("b")))
        two.say(Propose(3, Leave("b")))
        await two.heard()
        one.say(GetMembers(4, 1, 0), GetMembers(5, 1, 7))
        while isinstance(said := await one.heard(), View):
            pass  # of the leave it hears as one who keeps what is agreed, and as a member
        assert said == Members(4, (NodeDesc("a"),))
        assert isinstance(await one.heard(), Failed)


async def test_the_nodes_of_a_session_that_is_gone_all_get_their_grace() -> None:
    settings = RunSettings(500, 500, disconnect_grace=0.0)
    async with serving() as server:
        async with session(server) as crowd:
            crowd.say(*(Propose(n + 1, Join(NodeDesc(f"n{n}"), settings)) for n in range(500)))
            while (
                len(server.coordinator.runs["job"].state.participants if server.coordinator.runs else ())
                < 500
            ):
                await crowd.heard()
        async with asyncio.timeout(PATIENCE), session(server, Hello(1)) as other:
            while server.coordinator.runs["job"].state.nodes:
                other.say(GetRuns(1))
                await other.heard()


async def test_a_claimed_world_is_restored_up_to_the_limit_of_nodes() -> None:
    limits = CoordinatorLimits(max_nodes=300)

    def resume(world: int) -> Resume:
        settings = RunSettings(1, 1000)
        return Resume(NodeDesc("a"), settings, 1, 3, 0, world, "d")

    async with serving(coordinator=limits) as server, session(server) as claiming:
        claiming.say(Propose(1, resume(301)), Propose(2, resume(300)))
        refused, restored = await claiming.heard(), await claiming.heard()
        assert isinstance(refused, Failed)
        assert "a round of 301 nodes is over this server's limit, 300" in refused.message
        assert isinstance(restored, View)
        assert (restored.id, restored.view.rank, restored.view.world_size) == (2, 0, 300)


async def test_later_rounds_that_somebody_claims_count_as_the_first_one_does() -> None:
    limits = CoordinatorLimits(max_nodes=300)

    def resume(round_: int, world: int) -> Propose:
        operation = Resume(NodeDesc(f"a{round_}"), RunSettings(1, 1_000_000), 1, round_, 0, world, "d")
        return Propose(round_, operation)

    async with serving(coordinator=limits) as server, session(server) as claiming:
        claiming.say(resume(1, 2), resume(2, 1_000_000), resume(3, 299))
        told = [await claiming.heard() for _ in range(4)]
        [refused] = [message for message in told if isinstance(message, Failed)]
        assert (refused.id, "a round of 1000000 nodes is over" in refused.message) == (2, True)
        [restored] = [message for message in told if isinstance(message, View) and message.id == 3]
        assert (restored.view.round, restored.view.world_size) == (3, 299)


# The log


@pytest.mark.parametrize(
    "sent",
    [
        PREFACE + b"\x00\x00\x00\x01\xc1",
        encode_request(Validate(MAGIC)) + b"\xff",
        b"\x00\x01\x02\x03\x04",
        b"GET / HTTP/1.1",
    ],
    ids=["native", "c10d", "greeting", "http"],
)
async def test_whoever_is_dropped_again_and_again_does_not_fill_the_log(
    sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as server:
        for _ in range(60):
            async with peer(server) as connected:
                connected.writer.write(sent)
                await connected.dropped()
    assert 15 <= len(lines(caplog)) <= 40


async def test_a_broken_handshake_of_tls_does_not_fill_the_log_either(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from tests.kit.tls_kit import make_pki

    pki = make_pki(tmp_path)
    async with ar.serve("127.0.0.1:0", tls=pki.server()) as server:
        for _ in range(60):
            async with peer(server) as connected:
                connected.writer.write(b"this is not TLS")
                await connected.dropped()
    assert 15 <= len(lines(caplog)) <= 40


async def test_what_a_peer_sends_comes_into_the_log_in_one_short_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    noise = "Evil\n\x1b[31m" + "x" * 3000
    name = noise.encode()
    message = b"\x91\xda" + len(name).to_bytes(2, "big") + name
    async with serving() as server, peer(server) as connected:
        connected.writer.write(PREFACE + encode(HELLO) + len(message).to_bytes(4, "big") + message)
        await connected.dropped()
    [line] = lines(caplog)
    assert line.isprintable()
    assert len(line) < 500

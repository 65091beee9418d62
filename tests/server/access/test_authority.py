"""Tokens: where they come from, what each is good for at the TCP port, and that nobody gets to see them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest

import arendezvous as ar
from arendezvous.backends.tcp.session import SessionBackend
from arendezvous.backends.tcp.watching import RunWatch, watch_server
from arendezvous.keyspace.grants import Grant, Scope, run_prefix
from arendezvous.law.operations import Close, Drain, Join, KeepAlive, Leave, Reopen
from arendezvous.law.state import NodeDesc, RunSettings
from arendezvous.law.status import RunStatus
from arendezvous.net.credentials import Credentials
from arendezvous.net.servers import Servers
from arendezvous.net.tokens import read_token
from arendezvous.server.access.admission import Allowance, FailureThrottle
from arendezvous.server.access.authority import Authority, read_token_file
from arendezvous.server.access.limits import ServerLimits
from arendezvous.stores.port import PrefixStore
from arendezvous.wire.native.login import Login
from arendezvous.wire.native.messages import Hello
from tests.kit.tls_kit import OTHER, TOKEN
from tests.kit.torch_process import run_torch
from tests.kit.waiting import until

RUN_TOKEN = "a-token-of-run-job-0123456789"
READ_TOKEN = "a-token-for-looking-0123456789"
READ_RUN_TOKEN = "a-token-for-looking-at-job-0123"
ALL = (TOKEN, RUN_TOKEN, READ_TOKEN, READ_RUN_TOKEN)
ALONE = RunSettings(1, 1)


def authority() -> Authority:
    return Authority(
        [
            (TOKEN, Grant(Scope.SERVER)),
            (RUN_TOKEN, Grant(Scope.RUN, "job")),
            (READ_TOKEN, Grant(Scope.READ)),
            (READ_RUN_TOKEN, Grant(Scope.READ, "job")),
        ]
    )


@asynccontextmanager
async def server(**options: Any) -> AsyncIterator[ar.Server]:
    options.setdefault("authority", authority())
    async with ar.serve("127.0.0.1:0", **options) as running:
        yield running


def backend(at: ar.Server, token: str, run_id: str = "job") -> SessionBackend:
    credentials = Credentials(token=token)
    return SessionBackend(at.host, at.port, run_id, read_timeout=60, credentials=credentials)


def store(at: ar.Server, token: str = "", seconds: float = 60) -> ar.TcpStore:
    return ar.TcpStore(
        at.host,
        at.port,
        read_timeout=seconds,
        connect_timeout=seconds,
        credentials=Credentials(token=token),
    )


def http_store(at: ar.Server, token: str = "") -> ar.HttpStore:
    assert at.http_url is not None
    return ar.HttpStore(at.http_url, read_timeout=60, credentials=Credentials(token=token))


# Where tokens come from


def test_a_token_file_names_tokens_and_their_scopes(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(
        "# the fleet\n\n"
        f"{TOKEN}   # everything\n"
        f"  {RUN_TOKEN} run=a%20job\n"
        f"{READ_TOKEN}\tread-only\n"
        f"{READ_RUN_TOKEN} read-only run=job\n"
    )
    file.chmod(0o600)
    expected = [
        (TOKEN, Grant(Scope.SERVER)),
        (RUN_TOKEN, Grant(Scope.RUN, "a job")),
        (READ_TOKEN, Grant(Scope.READ)),
        (READ_RUN_TOKEN, Grant(Scope.READ, "job")),
    ]
    assert read_token_file(file) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no token"),
        ("# nothing\n\n", "holds no token"),
        ("short\n", "bad token in line 1: it must be 16 to 1024"),
        (f"{TOKEN}\n{'x' * 1025}\n", "bad token in line 2: it must be 16 to 1024"),
        (f"{TOKEN}\u00e9\n", "bad token in line 1"),
        (f"{TOKEN}\n\n{TOKEN} run=job\n", "has the token of line 1 again in line 3"),
        (f"{TOKEN} runs=job\n", "bad word 2 in line 1"),
        (f"{TOKEN} run=job run=other\n", "bad word 3 in line 1"),
        (f"{TOKEN} {OTHER}\n", "bad word 2 in line 1"),
        (f"{TOKEN} run=\n", "bad run in line 1"),
        (f"{TOKEN} run={'x' * 1000}\n", "bad run in line 1"),
        (b"\xff\xfe", "is no text: byte 0 is not UTF-8"),
    ],
)
def test_a_bad_token_file_is_refused_by_its_line_and_without_the_token(
    tmp_path: Path, text: str | bytes, said: str
) -> None:
    file = tmp_path / "tokens"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ar.RendezvousSettingsError) as caught:
        Authority.from_file(file)
    assert said in caught.value.message
    assert str(file) in caught.value.message
    assert TOKEN[:8] not in caught.value.message
    assert OTHER[:8] not in caught.value.message


def test_a_token_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ar.RendezvousSettingsError, match="cannot be read: No such file"):
        Authority.from_file(tmp_path / "absent")


@pytest.mark.parametrize("read", [Authority.from_file, lambda file: read_token(str(file))])
@pytest.mark.parametrize(("mode", "who"), [(0o602, "everybody on this machine"), (0o620, "its group")])
def test_a_token_file_that_others_may_write_is_refused(
    tmp_path: Path, read: Callable[[Path], object], mode: int, who: str
) -> None:
    file = tmp_path / "tokens"
    file.write_text(TOKEN)
    file.chmod(mode)
    with pytest.raises(
        ar.RendezvousSettingsError, match=f"can be written by {who}, .* 'chmod 600'"
    ) as caught:
        read(file)
    assert TOKEN not in str(caught.value)
    file.chmod(0o600)
    assert read(file)


def test_a_token_file_that_everybody_may_read_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "tokens"
    file.write_text(TOKEN)
    file.chmod(0o640)
    Authority.from_file(file)
    assert caplog.messages == []
    file.chmod(0o644)
    Authority.from_file(file)
    assert caplog.messages == [
        f"{file} can be read by everybody on this machine; chmod 600 keeps the tokens secret"
    ]


@pytest.mark.parametrize(
    ("given", "environ", "expected"),
    [
        ({}, {}, ""),
        ({}, {"ARENDEZVOUS_TOKEN": f" {TOKEN}\n"}, TOKEN),
        ({}, {"ARENDEZVOUS_TOKEN_FILE": "FILE"}, OTHER),
        ({}, {"ARENDEZVOUS_TOKEN": TOKEN, "ARENDEZVOUS_TOKEN_FILE": "FILE"}, TOKEN),
        ({"token_file": "FILE"}, {"ARENDEZVOUS_TOKEN": TOKEN}, OTHER),
        ({"token": TOKEN}, {"ARENDEZVOUS_TOKEN_FILE": "FILE"}, TOKEN),
        ({"token": ""}, {"ARENDEZVOUS_TOKEN": TOKEN}, ""),
    ],
)
def test_what_is_given_goes_before_the_environment(
    tmp_path: Path, given: dict[str, str], environ: dict[str, str], expected: str
) -> None:
    file = tmp_path / "token"
    file.write_text(f"# ours\n{OTHER} run=job\n")

    def named(values: dict[str, str]) -> dict[str, str]:
        return {name: str(file) if value == "FILE" else value for name, value in values.items()}

    assert Credentials.of(**named(given), environ=named(environ)).token == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "token", ["short", "x" * 1025, "a token with spaces in it", "t\u00f6ken-0123456789-abc"]
)
def test_what_can_be_no_token_is_refused_without_showing_it(token: str) -> None:
    with pytest.raises(ar.RendezvousSettingsError) as caught:
        Credentials(token=token)
    assert "visible ASCII" in caught.value.message
    assert token not in caught.value.message


# What each is good for


def join(name: str = "a") -> Join:
    return Join(NodeDesc(name), ALONE)


OPERATIONS: dict[str, Callable[[SessionBackend], Awaitable[Any]]] = {
    "join": lambda at: at.propose(join()),
    "keep-alive": lambda at: at.propose(KeepAlive("a")),
    "drain": lambda at: at.propose(Drain("a", 5.0, "")),
    "close": lambda at: at.propose(Close("me", "", 1)),
    "reopen": lambda at: at.propose(Reopen(1, "me")),
    "leave": lambda at: at.propose(Leave("a")),
    "status": lambda at: at.status(),
    "members": lambda at: at.roster(1, 1),
}
CHANGES = {"join", "keep-alive", "drain", "close", "reopen", "leave"}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("token", ALL)
async def test_a_token_is_good_for_its_scope_in_a_native_session(token: str, operation: str) -> None:
    async with server() as at, backend(at, token) as node:
        if operation in CHANGES and token not in (TOKEN, RUN_TOKEN):
            with pytest.raises(ar.RendezvousPermissionError, match="changes nothing") as caught:
                await OPERATIONS[operation](node)
            assert caught.value.authenticated
        else:
            with suppress(ar.RendezvousStateError):  # nobody has joined: it was let through to the law
                await OPERATIONS[operation](node)


@pytest.mark.parametrize("operation", [Drain("a", 5.0, ""), Reopen(1, "me")])
async def test_who_may_steer_one_run_is_not_told_the_names_of_others(operation: Drain | Reopen) -> None:
    async with server() as at, backend(at, TOKEN, "secret-run") as other:
        await other.propose(Join(NodeDesc("a"), RunSettings(2, 2)))
        async with backend(at, RUN_TOKEN) as node:
            with pytest.raises(ar.RendezvousStateError) as caught:
                await node.propose(operation)
            assert "secret-run" not in f"{caught.value}{caught.value.data}"
            assert await node.runs() == ()


@pytest.mark.parametrize(
    ("token", "run_id", "may_come_in"),
    [
        (TOKEN, "other", True),
        (RUN_TOKEN, "other", False),
        (READ_TOKEN, "other", True),
        (READ_RUN_TOKEN, "other", False),
        (READ_RUN_TOKEN, "job", True),
    ],
)
async def test_a_token_of_one_run_opens_no_session_for_another(
    token: str, run_id: str, may_come_in: bool
) -> None:
    async with server() as at:
        if may_come_in:
            async with backend(at, token, run_id) as node:
                assert (await node.status()).run_id == run_id
            return
        with pytest.raises(ar.RendezvousPermissionError, match="run 'job', and not run 'other'") as caught:
            async with backend(at, token, run_id):
                pass
        assert caught.value.authenticated


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        (TOKEN, {"job", "other"}),
        (READ_TOKEN, {"job", "other"}),
        (RUN_TOKEN, {"job"}),
        (READ_RUN_TOKEN, {"job"}),
    ],
)
async def test_a_token_of_one_run_sees_no_other_among_the_runs(token: str, expected: set[str]) -> None:
    async with server() as at, backend(at, TOKEN) as one, backend(at, TOKEN, "other") as two:
        await one.propose(join())
        await two.propose(join())
        async with backend(at, token, "") as looking:
            assert {run.run_id for run in await looking.runs()} == expected


@pytest.mark.parametrize(
    ("token", "said"),
    [
        ("", "asks for a token, and none was given; give one by token= or token_file="),
        (OTHER, "does not know the token"),
    ],
)
async def test_without_a_good_token_nobody_comes_in(token: str, said: str) -> None:
    async with server() as at:
        for attempt in (backend(at, token), backend(at, token, "")):
            with pytest.raises(ar.RendezvousPermissionError, match=said) as caught:
                async with attempt:
                    pass
            assert not caught.value.authenticated
        with pytest.raises(ar.RendezvousPermissionError, match=said):
            async with watch_server(
                Servers([(at.host, at.port)]), RunWatch, "job", credentials=Credentials(token=token)
            ) as news:
                await anext(news)
        async with watch_server(
            Servers([(at.host, at.port)]), RunWatch, "job", credentials=Credentials(token=TOKEN)
        ) as news:
            assert isinstance(await anext(news), RunStatus)


# The store


def in_run(at: ar.Store, run_id: str = "job") -> PrefixStore:
    return PrefixStore(run_prefix(run_id), at)


STORE_READS: dict[str, Callable[[ar.Store], Awaitable[Any]]] = {
    "get": lambda keys: keys.get("k"),
    "multi_get": lambda keys: keys.multi_get(["k", "n"]),
    "check": lambda keys: keys.check(["k"]),
    "wait": lambda keys: keys.wait(["k"]),
    "queue_len": lambda keys: keys.queue_len("q"),
}
STORE_WRITES: dict[str, Callable[[ar.Store], Awaitable[Any]]] = {
    "set": lambda keys: keys.set("k", "v"),
    "compare_set": lambda keys: keys.compare_set("k", "v", "w"),
    "add": lambda keys: keys.add("n", 1),
    "delete_key": lambda keys: keys.delete_key("k"),
    "append": lambda keys: keys.append("k", "v"),
    "multi_set": lambda keys: keys.multi_set(["k", "l"], ["v", "w"]),
    "queue_push": lambda keys: keys.queue_push("q", "v"),
    "queue_pop": lambda keys: keys.queue_pop("q"),
    "barrier": lambda keys: keys.barrier("b", 1),
}


@pytest.mark.parametrize("listener", ["tcp", "http"])
@pytest.mark.parametrize("run_id", ["job", "other"])
@pytest.mark.parametrize("token", ALL)
async def test_a_token_is_good_for_its_scope_in_the_store(token: str, run_id: str, listener: str) -> None:
    async with (
        server(http="127.0.0.1:0") as at,
        store(at, TOKEN) as full,
        (store if listener == "tcp" else http_store)(at, token) as limited,
    ):
        mine = run_id == "job" or token in (TOKEN, READ_TOKEN)
        for name, operation in (STORE_READS | STORE_WRITES).items():
            keys = in_run(full, run_id)
            await keys.multi_set(["k", "n"], ["v", "1"])
            await keys.queue_push("q", "v")
            allowed = mine and (name in STORE_READS or token in (TOKEN, RUN_TOKEN))
            if allowed:
                await operation(in_run(limited, run_id))
            else:
                with pytest.raises(ar.RendezvousPermissionError):
                    await operation(in_run(limited, run_id))
        await full.set(f"{run_prefix(run_id)}x/k", "of no run's")
        if token in (RUN_TOKEN, READ_RUN_TOKEN):
            with pytest.raises(ar.RendezvousPermissionError, match="not of run 'job'"):
                await limited.get(f"{run_prefix('job')}x/k")


@pytest.mark.parametrize("listener", ["tcp", "http"])
async def test_a_token_of_one_run_counts_and_lists_the_keys_of_that_run_alone(listener: str) -> None:
    async with (
        server(http="127.0.0.1:0") as at,
        store(at, TOKEN) as full,
        (store if listener == "tcp" else http_store)(at, RUN_TOKEN) as limited,
    ):
        await in_run(full).set("mine", "1")
        await in_run(full, "other").set("theirs", "1")
        await full.set("shared", "1")
        assert (await full.num_keys(), await limited.num_keys()) == (3, 1)
        assert await limited.list_keys() == [f"{run_prefix('job')}/mine"]


async def test_the_server_itself_drops_a_client_that_goes_beyond_its_token(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with server() as at, store(at, RUN_TOKEN, seconds=1) as limited:
        link = limited._links._main
        assert link is not None
        link.grant = None  # a client that does not care
        with pytest.raises(ar.RendezvousConnectionError, match="closed the connection"):
            await limited.set("of no run", "v")
        assert any("good for run 'job', and Set was for something else" in line for line in caplog.messages)
        assert "of no run" not in caplog.text
        async with store(at, TOKEN) as full:
            assert await full.num_keys() == 0


@pytest.mark.parametrize("token", [OTHER, READ_RUN_TOKEN + "x"])
async def test_a_store_with_a_wrong_token_is_told_so_at_once(token: str) -> None:
    async with server() as at:
        with (
            anyio.fail_after(120),
            pytest.raises(ar.RendezvousPermissionError, match="does not know the token"),
        ):
            async with store(at, token, seconds=600):
                pass


async def test_a_store_without_a_token_is_dropped_and_the_log_says_what_to_do(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with server() as at:
        with pytest.raises(ar.RendezvousConnectionError):
            async with store(at, seconds=0.2):
                pass
    assert any(
        "TCPStore that shows no token" in line and "--allow-plain-stores" in line for line in caplog.messages
    )


async def test_a_store_with_a_token_at_a_server_that_asks_for_none_works() -> None:
    async with server(authority=None) as at, store(at, TOKEN) as keys:
        await keys.set("k", "v")
        assert await keys.get("k") == b"v"


async def test_a_login_byte_by_byte_is_understood_and_a_broken_one_is_dropped() -> None:
    from arendezvous.wire.native.login import encode_login

    async with server() as patient, server(limits=ServerLimits(handshake_timeout=0.3)) as impatient:
        for data, answer in (
            (encode_login(TOKEN), b"LoggedIn"),
            (encode_login(OTHER), b"RendezvousPermissionError"),
            (b"\xa5AR1\xff\xff\xff\xff", b"FrameError"),
            (b"\xa5AR2", b"FrameError"),
            (b"\xa5AR1\x00\x00\x00\x01\xc0", b"FrameError"),
            (b"\xa5AR1\x00\x00", b"not complete after 0.3 s"),
            (encode_login("x" * 3000), b"FrameError"),
        ):
            at = impatient if answer.startswith(b"not complete") else patient
            reader, writer = await asyncio.open_connection(at.host, at.port)
            try:
                for byte in data[:7]:
                    writer.write(bytes([byte]))
                    await asyncio.sleep(0)
                writer.write(data[7:])
                if answer == b"LoggedIn":
                    writer.write_eof()
                with anyio.fail_after(120):
                    assert answer in await reader.read()
            finally:
                writer.transport.abort()


PLAIN = """
import sys
from datetime import timedelta
import torch.distributed as dist
try:
    store = dist.TCPStore("127.0.0.1", int(sys.argv[1]), is_master=False, wait_for_workers=False,
                          timeout=timedelta(seconds=int(sys.argv[2])))
    store.set("k", "v")
    print("served", store.get("k").decode())
except dist.DistError as error:
    print("refused")
"""


async def test_stock_torch_clients_are_refused_where_tokens_are_asked_for_unless_they_are_allowed() -> None:
    async with server() as strict, server(plain_stores=True) as lenient:
        outputs = [await run_torch(PLAIN, at.port, seconds) for at, seconds in ((strict, 2), (lenient, 60))]
        with pytest.raises(ar.RendezvousPermissionError):
            async with backend(lenient, ""):
                pass
    assert [text.strip() for text in outputs] == ["refused", "served v"]


# Rotation


async def test_a_changed_token_file_lets_new_tokens_in_and_drops_those_that_are_gone(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"{TOKEN}\n{RUN_TOKEN} run=job\n")
    file.chmod(0o600)
    tokens = Authority.from_file(file)
    async with (
        server(authority=tokens) as at,
        backend(at, TOKEN) as stays,
        backend(at, RUN_TOKEN) as goes,
        store(at, RUN_TOKEN, seconds=1) as keys,
    ):
        kept, lost = stays._connection, goes._connection
        assert kept is not None
        assert lost is not None
        file.write_text(f"{TOKEN}\n{OTHER}\n")
        assert at.reload()
        await until(lambda: lost.lost)
        with pytest.raises((ar.RendezvousPermissionError, ar.RendezvousConnectionError)):
            await in_run(keys).set("k", "v")
        async with backend(at, OTHER) as new:
            assert (await new.status()).run_id == "job"
        assert not kept.lost


async def test_a_changed_token_file_is_noticed_without_being_told(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(TOKEN)
    tokens = Authority.from_file(file)
    assert tokens.grant(OTHER) is None
    file.write_text(f"{TOKEN}\n{OTHER}\n")
    tokens._looked -= 2  # as if that had been two seconds ago
    assert tokens.grant(OTHER) == Grant(Scope.SERVER)


async def test_a_bad_token_file_leaves_the_tokens_as_they_were(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "tokens"
    file.write_text(TOKEN)
    file.chmod(0o600)
    async with server(authority=Authority.from_file(file)) as at:
        file.write_text("short")
        assert not at.reload()
        async with backend(at, TOKEN) as node:
            assert (await node.status()).run_id == "job"
    assert "the tokens stay as they are" in caplog.text


# What failing costs


def test_failures_are_logged_up_to_a_limit_and_peers_are_forgotten(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    allowance = Allowance(3, 1.0, max_peers=2, clock=lambda: now)
    throttle = FailureThrottle(allowance)
    assert [throttle.failed(f"10.0.0.1:{port}", "wrong") for port in range(5)] == [False] * 3 + [True] * 2
    assert len(caplog.messages) == 5
    assert throttle.failed("10.0.0.2:1", "wrong") is False
    now = 1.0
    assert [throttle.failed("10.0.0.1:9", "wrong") for _ in range(2)] == [False, True]
    for last in range(100):
        throttle.failed(f"[2001:db8::{last:x}]:1", "wrong")
    assert len(allowance) == 2
    assert throttle.failed("[2001:db8::ffff]:1", "wrong") is True, "the addresses of one network are one peer"
    throttle.failed("10.0.0.3:1", "wrong")
    assert throttle.failed("10.0.0.1:9", "wrong") is False, "it was forgotten"
    assert len(caplog.messages) < 20


async def test_wrong_tokens_do_not_flood_the_log_or_lock_out_a_good_one_from_the_same_address(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with server() as at:
        for _ in range(60):
            with pytest.raises(ar.RendezvousPermissionError):
                async with backend(at, OTHER):
                    pass
        async with backend(at, TOKEN) as node:
            assert (await node.status()).run_id == "job"
    assert 20 <= len([line for line in caplog.messages if "refused" in line]) <= 32


# Where it is needed


@pytest.mark.parametrize("options", [{}, {"authority": Authority()}])
async def test_an_address_that_others_reach_is_refused_without_tokens(options: dict[str, Any]) -> None:
    with pytest.raises(ar.RendezvousSettingsError, match=r"--token-file.*--tls-ca.*--insecure"):
        async with ar.serve("0.0.0.0:0", **options):
            pass
    async with ar.serve("127.0.0.1:0", **options):
        pass


async def test_an_address_that_others_reach_is_served_with_tokens() -> None:
    async with ar.serve("0.0.0.0:0", authority=authority()) as at:
        with pytest.raises(ar.RendezvousPermissionError):
            async with SessionBackend("127.0.0.1", at.port, "job"):
                pass


async def test_nodes_with_one_token_meet_and_the_one_that_hosts_asks_for_it(free_port: int) -> None:
    def node(name: str, token: str) -> ar.AsyncRendezvousHandler:
        url = f"tcp://127.0.0.1:{free_port}"
        return ar.open_rendezvous(url, run_id="job", min_nodes=2, node=name, token=token)

    async with node("a", TOKEN) as first, node("b", TOKEN) as second:
        with pytest.raises(ar.RendezvousPermissionError, match="none was given"):
            async with node("c", ""):
                pass
        infos: list[ar.RendezvousInfo] = []
        async with anyio.create_task_group() as tasks:
            for each in (first, second):
                tasks.start_soon(_meet, each, infos)
        assert sorted(info.rank for info in infos) == [0, 1]
        await infos[0].store.set("k", "v")
        assert await infos[1].store.get("k") == b"v"


async def _meet(node: ar.AsyncRendezvousHandler, infos: list[ar.RendezvousInfo]) -> None:
    infos.append(await node.next_rendezvous())


async def test_a_token_in_the_environment_is_enough(free_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARENDEZVOUS_TOKEN", TOKEN)
    url = f"tcp://127.0.0.1:{free_port}"
    async with ar.open_rendezvous(url, run_id="job", min_nodes=1) as node:
        assert (await node.next_rendezvous()).rank == 0
        with pytest.raises(ar.RendezvousPermissionError):
            async with SessionBackend("127.0.0.1", free_port, "job"):
                pass


@pytest.mark.parametrize("scheme", ["c10d", "memory", "static", "etcd-v2"])
def test_a_token_that_would_be_ignored_is_refused(scheme: str) -> None:
    with pytest.raises(ar.RendezvousSettingsError, match=f"token must be left out for {scheme}://"):
        ar.open_rendezvous(
            f"{scheme}://127.0.0.1:29400", run_id="job", min_nodes=1, node="a", rank=0, token=TOKEN
        )


# Nobody sees it


def test_no_representation_shows_a_token() -> None:
    credentials = Credentials(token=TOKEN)
    shown = [
        repr(thing)
        for thing in (
            credentials,
            [credentials],
            Hello(1, "job", b"secret", TOKEN),
            Login(1, TOKEN),
            Authority.of(TOKEN),
            SessionBackend("127.0.0.1", 1, "job", credentials=credentials),
            ar.TcpStore("127.0.0.1", 1, credentials=credentials),
        )
    ]
    assert not [text for text in shown if TOKEN in text]
    assert "secret" not in shown[2]


async def test_no_log_event_error_or_status_shows_a_token(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("ARENDEZVOUS_EVENTS", "console")
    errors: list[str] = []
    async with server() as at, backend(at, TOKEN) as looking:
        for token in (OTHER, RUN_TOKEN, READ_TOKEN):
            try:
                async with backend(at, token, "other") as node:
                    await node.propose(join())
            except ar.RendezvousError as error:
                errors += [repr(error), str(error.data)]
            try:
                async with store(at, token) as keys:
                    await keys.set("k", "v")
            except ar.RendezvousError as error:
                errors += [repr(error), str(error.data)]
        url = f"tcp://127.0.0.1:{at.port}"
        async with ar.open_rendezvous(url, run_id="job", min_nodes=1, token=TOKEN) as node:
            await node.next_rendezvous()
            errors += [repr(await node.explain()), repr(node.history), repr(vars(node)), node.endpoint]
        errors += [repr(await looking.status()), repr(await looking.runs())]
    out, err = capfd.readouterr()
    assert len(errors) >= 10
    everything = "\n".join([caplog.text, out, err, *errors])
    assert not [token for token in (TOKEN, OTHER, RUN_TOKEN, READ_TOKEN) if token in everything]

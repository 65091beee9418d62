"""A bug in work in the background reaches those who wait for its owner, and never the task that opened it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import NoReturn

import anyio
import pytest

import arendezvous as ar
from arendezvous.backends.http.backend import HttpBackend
from arendezvous.backends.port import RendezvousBackend
from arendezvous.backends.shared_state.compare_and_set import CompareAndSetBackend
from arendezvous.backends.tcp.session import SessionBackend
from arendezvous.law.operations import Join, KeepAlive
from arendezvous.law.state import NodeDesc, RunSettings
from arendezvous.server.listening import ServerListener
from arendezvous.stores.memory import MemoryStore
from arendezvous.testing.fault_proxy import FaultProxy
from tests.kit.tls_kit import make_pki
from tests.kit.waiting import until

PAIR = RunSettings(2, 2)


class Bug(Exception):
    """Of ours: nobody expects it."""


def fail(*_: object) -> NoReturn:
    raise Bug


Case = tuple[RendezvousBackend, Callable[[], object]]


@asynccontextmanager
async def tcp(_: pytest.MonkeyPatch) -> AsyncIterator[Case]:
    async with ar.serve("127.0.0.1:0") as server, FaultProxy("127.0.0.1", server.port) as proxy:
        backend = SessionBackend("127.0.0.1", proxy.port, "run")

        def strike() -> None:
            backend._connect = fail  # type: ignore[method-assign]
            proxy.cut()

        yield backend, strike


@asynccontextmanager
async def http(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Case]:
    async with ar.serve("127.0.0.1:0", http="127.0.0.1:0") as server:
        assert server.http_url is not None
        async with FaultProxy("127.0.0.1", int(server.http_url.rpartition(":")[2])) as proxy:

            def strike() -> None:
                monkeypatch.setattr("arendezvous.backends.http.member.HttpMember._restored", fail)
                proxy.cut()

            yield HttpBackend("127.0.0.1", proxy.port, "run"), strike


@asynccontextmanager
async def shared_state(_: pytest.MonkeyPatch) -> AsyncIterator[Case]:
    backend = CompareAndSetBackend.over(MemoryStore(), "run")

    def strike() -> None:
        backend._look = fail  # type: ignore[method-assign]

    yield backend, strike


CASES: dict[str, Callable[[pytest.MonkeyPatch], AbstractAsyncContextManager[Case]]] = {
    "tcp": tcp,
    "http": http,
    "shared state": shared_state,
}


@pytest.mark.parametrize("case", CASES)
async def test_a_bug_ends_the_waits_of_its_backend_and_cancels_nobody(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised: list[ar.RendezvousError] = []
    async with CASES[case](monkeypatch) as (backend, strike):
        await backend.__aenter__()
        view = await backend.propose(Join(NodeDesc("a"), PAIR))

        async def wait() -> None:
            with pytest.raises(ar.RendezvousError) as caught:
                await backend.changed("a", view.revision)
            raised.append(caught.value)

        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait)
                await anyio.wait_all_tasks_blocked()
                strike()
            monkeypatch.undo()
            for call in (lambda: backend.propose(KeepAlive("a")), backend.status):
                with pytest.raises(ar.RendezvousError) as caught:
                    await call()
                raised.append(caught.value)
        await backend.__aexit__(None, None, None)
    assert [type(error.__cause__) for error in raised] == [Bug] * 3
    assert "work in the background failed, and it cannot go on: Bug()" in str(raised[0])
    await asyncio.sleep(0)  # this task goes on


async def test_a_tls_listener_that_cannot_go_on_serves_nobody_and_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with ar.serve("127.0.0.1:0", tls=make_pki(tmp_path).server()) as server:
        monkeypatch.setattr(ServerListener, "_refuse", fail)
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.send(b"this is no handshake")
            await until(lambda: not is_open(server.port))
        await asyncio.sleep(0)  # this task goes on


def is_open(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return False
    return True


async def test_a_proxy_that_has_failed_says_so_when_it_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    async with ar.serve("127.0.0.1:0") as server:
        proxy = await FaultProxy("127.0.0.1", server.port).__aenter__()
        monkeypatch.setattr(proxy, "_pump", fail)
        with socket.create_connection(("127.0.0.1", proxy.port)) as client:
            client.settimeout(0)
            await until(lambda: is_over(client))
        with pytest.raises(ar.RendezvousError, match="cannot go on: Bug") as caught:
            await proxy.__aexit__(None, None, None)
        assert isinstance(caught.value.__cause__, Bug)


def is_over(client: socket.socket) -> bool:
    try:
        return client.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True

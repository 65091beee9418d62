"""A server finds out whether it follows another, and only then has a run wait for members that it forgot."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

import anyio
import pytest

import arendezvous as ar
from arendezvous.backends.tcp.session import SessionBackend
from arendezvous.law import rounds
from arendezvous.server.binding import was_served


async def meet(url: str) -> set[int]:
    """Has two newcomers meet; returns the number of their round."""
    pair: dict[str, Any] = {"run_id": "job", "min_nodes": 2, "is_host": False}
    numbers: set[int] = set()

    async def join(node: ar.AsyncRendezvousHandler) -> None:
        numbers.add((await node.next_rendezvous()).round)

    async with (
        ar.open_rendezvous(url, node="a", **pair) as a,
        ar.open_rendezvous(url, node="b", **pair) as b,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(join, a)
        tasks.start_soon(join, b)
    return numbers


async def test_a_run_at_a_fresh_server_begins_with_round_0_at_once(
    free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "RESUME_GRACE", 600.0)
    async with ar.serve(f"127.0.0.1:{free_port}") as server:
        assert not was_served(free_port)
        with anyio.fail_after(120):
            assert await meet(server.tcp_url) == {0}


async def test_a_server_that_follows_one_whose_clients_were_still_there_gives_no_number_again(
    free_port: int,
) -> None:
    address = f"127.0.0.1:{free_port}"
    async with AsyncExitStack() as running:
        first = await running.enter_async_context(ar.serve(address))
        assert await meet(first.tcp_url) == {0}
        async with SessionBackend("127.0.0.1", free_port, "another run"):
            await running.aclose()
            second = await running.enter_async_context(ar.serve(address))
            assert was_served(free_port)
            (number,) = await meet(second.tcp_url)
            assert number > 0


async def test_a_server_at_any_free_port_follows_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can have known its address before; another program's connections may have ended there."""
    monkeypatch.setattr("arendezvous.server.serve.was_served", lambda _: True)
    async with ar.serve("127.0.0.1:0", http="127.0.0.1:0") as server:
        assert await meet(server.tcp_url) == {0}


async def test_a_server_that_is_told_so_follows_another_wherever_that_was(free_port: int) -> None:
    async with ar.serve(f"127.0.0.1:{free_port}", follows=True) as server:
        (number,) = await meet(server.tcp_url)
        assert number > 0

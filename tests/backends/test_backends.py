"""Every backend keeps the contract of the port."""

from __future__ import annotations

import pytest

import arendezvous as ar
from arendezvous.backends.memory import LocalBackend
from arendezvous.backends.tcp.session import SessionBackend
from arendezvous.testing.backend_checks import BACKEND_CHECKS, check_backend, run_check
from arendezvous.testing.check_tools import BackendCheck

every_check = pytest.mark.parametrize("check", BACKEND_CHECKS, ids=lambda check: check.__name__[6:])


@pytest.mark.virtual
@every_check
async def test_memory(check: BackendCheck) -> None:
    await run_check(check, LocalBackend)


@every_check
async def test_tcp(check: BackendCheck) -> None:
    async with ar.serve("127.0.0.1:0") as server:
        await run_check(check, lambda run_id: SessionBackend(server.host, server.port, run_id))


@pytest.mark.virtual
async def test_check_backend_runs_every_check() -> None:
    runs: set[str] = set()

    def make(run_id: str) -> LocalBackend:
        runs.add(run_id.removesuffix("-other"))
        return LocalBackend(run_id)

    await check_backend(make)
    assert len(runs) == len(BACKEND_CHECKS)

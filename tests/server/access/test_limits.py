"""Limits as people write them, on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import arendezvous as ar
from arendezvous.errors import RendezvousSettingsError
from arendezvous.server.access.limits import DEFAULT_LIMITS, MIB, limit_names, with_limits
from tests.kit.cli_kit import run, running

ROOT = Path(__file__).parents[3]


def test_limits_are_set_by_their_names_and_the_others_stay() -> None:
    changes = ["store.max_bytes=2GiB", "coordinator.max_nodes=5", "request_timeout=0.5", "max_unread=64 MiB"]
    limits = with_limits(DEFAULT_LIMITS, changes)
    assert limits.store.max_bytes == 2 * 2**30
    assert (limits.coordinator.max_nodes, type(limits.coordinator.max_nodes)) == (5, int)
    assert (limits.request_timeout, limits.max_unread) == (0.5, 64 * 2**20)
    assert limits.store.max_run_bytes == DEFAULT_LIMITS.store.max_run_bytes
    assert with_limits(DEFAULT_LIMITS, []) == DEFAULT_LIMITS


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("max_bites=1", r"limit is 'max_bites', but must be one of: .*max_connections.*store\.max_bytes"),
        ("store=1", "limit is 'store'"),
        ("store.max_nodes=1", "limit is 'store.max_nodes'"),
        ("", "limit is ''"),
        ("max_unread", "max_unread is '', but must be a number greater than 0"),
        ("max_unread=0", "max_unread is '0'"),
        ("max_unread=-5", "max_unread is '-5'"),
        ("max_unread=1.5", "max_unread is '1.5'"),
        ("max_unread=5 miles", "max_unread is '5 miles'"),
        ("request_timeout=inf", "request_timeout is 'inf'"),
    ],
)
def test_what_is_no_limit_is_refused_with_what_would_be_one(change: str, why: str) -> None:
    with pytest.raises(RendezvousSettingsError, match=why):
        with_limits(DEFAULT_LIMITS, [change])


def shown(name: str, value: float) -> str:
    """A limit as the page writes it."""
    if isinstance(value, int) and value >= MIB:
        return f"{value // MIB} MiB" if value < 1024 * MIB else f"{value // (1024 * MIB)} GiB"
    if isinstance(value, int):
        return f"{value:,}"
    return {7 * 86_400.0: "7 days", 3600.0: "1 h"}.get(value, f"{value:g} s")


@pytest.mark.parametrize(
    "name", [name for name in limit_names() if name not in ("connection_rate", "connection_burst")]
)
def test_every_limit_is_on_the_page_about_them_with_its_default(name: str) -> None:
    page = (ROOT / "docs" / "reference" / "limits.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("|")]
    value: Any = DEFAULT_LIMITS
    for part in name.split("."):
        value = getattr(value, part)
    [row] = [row for row in rows if f"`{name}`" in row]
    assert shown(name, value) in row


def test_the_sums_fit_a_machine_of_four_gigabytes() -> None:
    limits = DEFAULT_LIMITS
    kept = [limits.max_unread, limits.max_unfinished, limits.max_bodies, limits.store.max_bytes]
    kept += [limits.coordinator.max_node_bytes, limits.coordinator.max_history_bytes]
    connections = limits.max_connections * 3 * 1024
    assert sum(kept) + connections < 2.8 * 2**30
    assert all(limits.max_greetings < size for size in kept)


async def test_the_command_line_takes_limits_and_says_what_is_wrong_with_one() -> None:
    async with running(
        "serve", "--port", "0", "--limit", "store.max_bytes=10KiB", "--limit", "max_unread=5"
    ) as server:
        assert (await server.line()).startswith("serving tcp://")
    result = await run("serve", "--limit", "max_bites=1")
    assert result.code == 2
    assert "limit is 'max_bites', but must be one of" in result.err


async def test_a_node_that_is_one_too_many_is_told_so_over_every_listener() -> None:
    limits = ("coordinator.max_nodes=1", "coordinator.max_seconds=60")
    options = [word for limit in limits for word in ("--limit", limit)]
    async with running("serve", "--port", "0", "--http-port", "0", *options) as server:
        for number, url in enumerate((await server.line()).split()[1:]):
            pair: dict[str, Any] = {"min_nodes": 1, "max_nodes": 2, "last_call_timeout": 0.0}
            full = f"full{number}"
            async with (
                ar.open_rendezvous(url, run_id=full, **pair) as first,
                ar.open_rendezvous(url, run_id=full, **pair) as second,
            ):
                await first.next_rendezvous()
                with pytest.raises(ar.RendezvousStateError, match="1 nodes, which is this server's limit"):
                    await second.next_rendezvous()
            pair["last_call_timeout"] = 3600.0
            async with ar.open_rendezvous(url, run_id=f"long{number}", **pair) as third:
                with pytest.raises(ar.RendezvousSettingsError, match="at most 60 seconds on this server"):
                    await third.next_rendezvous()

"""What one hostile client does is played against a server, and what it costs the others is shown."""

from __future__ import annotations

from pathlib import Path

import msgspec

from arendezvous.cli.exits import ExitCode
from benchmarks.attacks import ATTACKS
from benchmarks.attacks_http import HTTP_ATTACKS
from benchmarks.hostile import IDLE, Latency, Outcome, table
from tests.kit import ROOT
from tests.kit.cli_kit import running


async def test_an_attack_is_played_while_honest_clients_work_and_the_table_shows_how_long_they_took(
    tmp_path: Path,
) -> None:
    path = tmp_path / "outcomes.json"
    short = ("--only", IDLE, "--only", "wrong-tokens", "--seconds", "0.2", "--json", str(path))
    async with running("hostile", *short, module="benchmarks") as command:
        result = await command.end()
    outcomes = msgspec.json.decode(path.read_bytes(), type=list[Outcome])
    assert result.code == (ExitCode.OK if all(outcome.is_good for outcome in outcomes) else 1), result.err
    assert [outcome.name for outcome in outcomes] == [IDLE, "wrong-tokens"]
    for outcome in outcomes:
        assert min(outcome.get.count, outcome.put.count, outcome.join.count) > 10
    assert "nobody is hostile" in result.out


async def test_an_attack_that_does_not_exist_is_refused_with_those_that_do() -> None:
    async with running("hostile", "--only", "kindness", module="benchmarks") as command:
        result = await command.end()
    assert result.code == ExitCode.USAGE
    assert "http-streams" in result.err


def test_whoever_is_not_served_in_time_is_not_served_well() -> None:
    quick, slow = Latency(0.001, 0.05, 10), Latency(0.001, 0.2, 10)
    assert Outcome(IDLE, quick, quick, quick, 0, 0).is_good
    for outcome in (
        Outcome(IDLE, slow, quick, quick, 0, 0),
        Outcome(IDLE, quick, slow, quick, 0, 0),
        Outcome(IDLE, quick, quick, slow, 0, 0),
    ):
        assert not outcome.is_good
    assert table([Outcome(IDLE, quick, quick, quick, 0, 0)]).row_count == 1


def test_the_page_about_performance_shows_every_attack() -> None:
    page = (ROOT / "docs" / "explanation" / "performance.md").read_text()
    attacks = ATTACKS | HTTP_ATTACKS
    assert {name for name, attack in attacks.items() if f"| {attack.what} |" not in page} == set()

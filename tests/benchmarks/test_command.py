"""The command measures, writes and shows again, and says what is wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from arendezvous.cli.exits import ExitCode
from tests.kit import ROOT
from tests.kit.cli_kit import Result, running


async def run(*args: str) -> Result:
    async with running(*args, module="benchmarks") as command:
        return await command.end()


async def test_the_command_prints_the_table_writes_json_and_shows_it_again(tmp_path: Path) -> None:
    path, page = tmp_path / "report.json", tmp_path / "page.md"
    page.write_text("<!-- bench:rendezvous -->\n<!-- end -->\n")
    few = ("--quick", "--only", "rendezvous,memory,floor", "--nodes", "2", "--repeat", "1")
    first = await run(*few, "--json", str(path))
    assert (first.code, first.err) == (ExitCode.OK, "")
    assert "ours, memory" in first.out
    again = await run("--load", str(path), "--markdown", str(page))
    assert (again.code, again.out) == (ExitCode.OK, first.out)
    assert "| ours, memory |" in page.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--only", "speed"), "only is 'speed'"),
        (("--load", "nowhere.json"), "nowhere.json"),
        (("--plot", "x.txt"), "plot is 'x.txt'"),
    ],
)
async def test_the_command_says_what_is_wrong_before_it_measures(
    arguments: tuple[str, ...], message: str
) -> None:
    result = await run(*arguments)
    assert (result.code, result.out) == (ExitCode.USAGE, "")
    assert message in result.err


async def test_the_page_about_performance_names_every_option() -> None:
    page = (ROOT / "docs" / "explanation" / "performance.md").read_text()
    shown = (await run("--help")).out
    options = set(re.findall(r"(--[a-z][a-z-]+)", shown)) - {"--help"}
    assert len(options) > 10
    assert {option for option in options if f"| `{option}" not in page} == set()

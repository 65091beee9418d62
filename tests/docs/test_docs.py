"""What the README and the documents say is true: examples run, commands exist, links lead somewhere."""

from __future__ import annotations

import ast
import asyncio
import re
import shlex
import sys
from pathlib import Path

import pytest

import arendezvous as ar
from arendezvous.cli.exits import ExitCode
from tests.kit import ROOT, option_page
from tests.kit.cli_kit import ENV, PATIENCE, run_here
from tests.kit.process_kit import ended

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
DEMO = "python3 -m venv .venv && .venv/bin/pip install -q . && .venv/bin/arendezvous demo"
TESTS = "python3 -m venv .venv && .venv/bin/pip install -q -e '.[test]' && .venv/bin/python -m pytest -q"


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page that are in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def python_blocks(*, programs: bool) -> list[object]:
    """The Python examples of all pages: whole programs, which import what they use, or else fragments."""
    return [
        pytest.param(code, id=f"{page.name}-{number}")
        for page in PAGES
        for number, code in enumerate(blocks(page, "python"), 1)
        if bool(re.search("^(import|from) ", code, re.MULTILINE)) is programs
    ]


PROGRAMS, FRAGMENTS = python_blocks(programs=True), python_blocks(programs=False)
COMMANDS = sorted({
    line
    for page in PAGES
    for code in blocks(page, "sh")
    for line in code.splitlines()
    if line.startswith("arendezvous ")
})  # fmt: skip


def test_the_readme_begins_with_the_commands_for_the_demo_and_for_the_tests() -> None:
    assert blocks(ROOT / "README.md", "sh")[:2] == [f"{DEMO}\n", f"{TESTS}\n"]


@pytest.mark.parametrize("code", PROGRAMS)
async def test_an_example_runs(code: str, free_port: int, tmp_path: Path) -> None:
    program = tmp_path / "example.py"
    program.write_text(code.replace("127.0.0.1:29400", f"127.0.0.1:{free_port}"))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", str(program), env=ENV,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    async with ended(process), asyncio.timeout(PATIENCE):
        out, _ = await process.communicate()
    assert process.returncode == 0, out.decode()


@pytest.mark.parametrize("code", FRAGMENTS)
def test_a_fragment_of_an_example_is_valid_and_uses_public_names(code: str) -> None:
    compile(code, "fragment", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    assert [name for name in re.findall(r"\bar\.(\w+)", code) if name not in ar.__all__] == []


def test_there_are_examples_and_commands_to_check() -> None:
    assert (len(PROGRAMS) >= 5, len(COMMANDS) >= 6) == (True, True)


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_documents_exists_with_its_options(line: str) -> None:
    _, command, *rest = shlex.split(line)
    text = run_here(command, "--help").out
    assert [word for word in rest if word.startswith("--") and f" {word} " not in text] == []


def test_the_page_of_settings_has_every_option_as_it_is_declared() -> None:
    page = option_page.PAGE.read_text()
    assert page == option_page.filled(page), "run python -m tests.kit.option_page"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    ours = [link for link in links if not link.startswith("https://")]
    assert [link for link in ours if not (page.parent / link).exists()] == []


def test_the_reference_of_the_command_line_names_every_command_and_option() -> None:
    page = (ROOT / "docs" / "reference-cli.md").read_text()
    commands = re.findall(r"^  ([a-z]+)  ", run_here("--help").out, re.MULTILINE)
    described = re.findall(r"^## `arendezvous ([a-z]+)", page, re.MULTILINE)
    assert (len(commands) > 8, sorted(described)) == (True, sorted(commands))
    helps = [run_here(command, "--help") for command in commands]
    pattern = re.compile(r"^  (?:-\w, )?(--[a-z-]+)", re.MULTILINE)
    options = {option for help_ in helps for option in pattern.findall(help_.out)}
    assert {option for option in options if f"`{option}" not in page} == set()


def test_the_reference_of_the_command_line_names_every_exit_code() -> None:
    page = (ROOT / "docs" / "reference-cli.md").read_text()
    told = {int(code) for code in re.findall(r"^\| (\d) \|", page, re.MULTILINE)}
    assert told == {code.value for code in ExitCode if code is not ExitCode.INTERRUPTED}

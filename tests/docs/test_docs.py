"""What the README and the documents say is true: examples run, commands exist, links lead somewhere."""

from __future__ import annotations

import ast
import asyncio
import importlib.util
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

import arendezvous as ar
from arendezvous.cli.app import app
from arendezvous.cli.exits import ExitCode
from tests.kit import ROOT, generated_pages
from tests.kit.cli_kit import ENV, PATIENCE
from tests.kit.process_kit import ended

EXPLANATIONS = sorted((ROOT / "docs" / "explanation").glob("*.md"))
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
DEMO = "python3 -m venv .venv && .venv/bin/pip install -q . && .venv/bin/arendezvous demo"
TESTS = "python3 -m venv .venv && .venv/bin/pip install -q -e '.[test]' && .venv/bin/python -m pytest -q"


OUTPUT = "```\n\n```output\n"  # what a program shows may come right after it


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page that are in one language."""
    block = rf"^```{language}\n(.*?(?:^{OUTPUT}.*?)?)^```$"
    return re.findall(block, page.read_text(), re.MULTILINE | re.DOTALL)


def is_program(code: str) -> bool:
    imported = re.findall(r"^(?:import|from) (\w+)", code, re.MULTILINE)
    return bool(imported) and all(map(importlib.util.find_spec, imported))


def python_blocks(*, programs: bool) -> list[object]:
    """The examples of all pages: programs, which import what they use, and that is there; or fragments."""
    return [
        pytest.param(code, id=f"{page.name}-{number}")
        for page in PAGES
        for number, code in enumerate(blocks(page, "python"), 1)
        if is_program(code) is programs
    ]


PROGRAMS, FRAGMENTS = python_blocks(programs=True), python_blocks(programs=False)
COMMANDS = sorted({
    line
    for page in PAGES
    for language in ("sh", "text", "console")
    for code in blocks(page, language)
    for line in code.replace("\\\n", " ").removeprefix("$ ").splitlines()
    if re.match("arendezvous [a-z]+ ", line) and "URL" not in line
})  # fmt: skip


def test_the_readme_begins_with_the_commands_for_the_demo_and_for_the_tests() -> None:
    assert blocks(ROOT / "README.md", "sh")[:2] == [f"{DEMO}\n", f"{TESTS}\n"]


@pytest.mark.parametrize("code", PROGRAMS)
async def test_an_example_runs(code: str, free_port: int, tmp_path: Path) -> None:
    """Runs it, and compares what is shown."""
    code, _, shown = code.partition(OUTPUT)
    program = tmp_path / "example.py"
    program.write_text(code.replace("127.0.0.1:29400", f"127.0.0.1:{free_port}"))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", str(program), env=ENV,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    async with ended(process), asyncio.timeout(PATIENCE):
        out, _ = await process.communicate()
    assert process.returncode == 0, out.decode()
    assert shown in ("", out.decode())


@pytest.mark.parametrize("code", FRAGMENTS)
def test_a_fragment_of_an_example_is_valid_and_uses_public_names(code: str) -> None:
    compile(code, "fragment", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    assert [name for name in re.findall(r"\bar\.(\w+)", code) if name not in ar.__all__] == []


def test_there_are_examples_and_commands_to_check() -> None:
    assert (len(PROGRAMS) >= 5, len(COMMANDS) >= 6) == (True, True)


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_documents_exists_with_its_options(line: str) -> None:
    _, name, *rest = shlex.split(line)
    command: Any = typer.main.get_command(app)
    known = {option for parameter in command.commands[name].params for option in parameter.opts}
    assert [word for word in rest if word.startswith("--") and word not in known] == []


def test_pages_say_what_the_program_says() -> None:
    wrong = [path.name for path, text in generated_pages.generated().items() if path.read_text() != text]
    assert wrong == [], "run python -m tests.kit.generated_pages"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    ours = [link for link in links if not link.startswith("https://")]
    assert [link for link in ours if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", EXPLANATIONS, ids=lambda page: page.name)
def test_the_modules_that_a_page_names_are_there(page: Path) -> None:
    named = re.findall(r"`([a-z0-9_/]+\.py)`", page.read_text())
    assert [name for name in named if not (ROOT / "arendezvous" / name).exists()] == []


def test_the_reference_of_the_command_line_names_every_exit_code() -> None:
    page = (ROOT / "docs" / "reference" / "cli.md").read_text()
    told = {int(code) for code in re.findall(r"^\| (\d) \|", page, re.MULTILINE)}
    assert told == {code.value for code in ExitCode if code is not ExitCode.INTERRUPTED}


def test_the_table_of_the_environment_has_every_variable_of_ours() -> None:
    sources = [path.read_text() for path in (ROOT / "arendezvous").rglob("*.py")]
    read = {name for source in sources for name in re.findall(r"ARENDEZVOUS_[A-Z_]+[A-Z]", source)}
    page = (ROOT / "docs" / "reference" / "settings.md").read_text()
    assert set(re.findall(r"^\| `(ARENDEZVOUS_\w+)` \|", page, re.MULTILINE)) == read


LANGUAGES = {"python", "sh", "text", "console", "output", "toml", "yaml", "nginx"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_block_says_what_it_is(page: Path) -> None:
    """Those without a language, or in one that nobody looks at, would be run and compiled by nobody."""
    opened = re.findall(r"^```(.*)\n(?:.*\n)*?^```$", page.read_text(), re.MULTILINE)
    assert [language for language in opened if language.partition(" title=")[0] not in LANGUAGES] == []

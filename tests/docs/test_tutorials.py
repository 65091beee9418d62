"""The tutorials work as printed: pasted line by line into a shell that has nothing but a new home."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from asyncio.subprocess import PIPE, STDOUT
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.kit import ROOT
from tests.kit.ports import held_ports
from tests.kit.process_kit import ended

PATIENCE = 60.0
TUTORIALS = ROOT / "docs" / "tutorials"
BLOCK = re.compile(r'^```(?:python title="(\S+)"|console)\n(.*?)^```$', re.MULTILINE | re.DOTALL)
KILLED = re.compile(r"bash: line \d+: +\d+ Killed")


class Step(NamedTuple):
    """What a reader does, and sees: saves a file, or else enters a command."""

    file: str
    text: str
    shown: list[str]


def steps(page: str) -> list[Step]:
    """What a reader of a page does, in order."""
    found: list[Step] = []
    for file, text in BLOCK.findall(page):
        if file:
            found.append(Step(file, text, []))
            continue
        for line in text.splitlines():
            if line.startswith("$ "):
                found.append(Step("", line[2:], []))
            else:
                found[-1].shown.append(line)
    return found


def alike(line: str) -> str:
    """A line without what differs from one time to the next: ages, and names that are made up."""
    return re.sub(r"\b\w+_\d+_\d+_[0-9a-f]{4}\b", "NAME", re.sub(r"\b\d+(\.\d+)? (s|ms)\b", "N s", line))


async def line_of(stream: asyncio.StreamReader) -> str:
    """The next line, but for what the shell says of a process that was killed, in words of its own."""
    line = (await stream.readline()).decode().rstrip("\n")
    return await line_of(stream) if KILLED.match(line) else line


async def play(page: str, home: Path) -> None:
    """Does what the page says, and compares what is seen; in which order several processes speak is open."""
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    environment = {"HOME": str(home), "PATH": path, "PYTHONPATH": str(ROOT)}
    environment["PYTHONWARNINGS"] = "ignore:Failed to initialize NumPy"  # as torch does
    shell = await asyncio.create_subprocess_exec(
        "bash", "--noprofile", "--norc", stdin=PIPE, stdout=PIPE, stderr=STDOUT, cwd=home, env=environment,
        process_group=0,
    )  # fmt: skip
    assert shell.stdin is not None
    assert shell.stdout is not None
    async with ended(shell), asyncio.timeout(PATIENCE):
        try:
            for step in steps(page):
                if step.file:
                    (home / step.file).write_text(step.text)
                    continue
                shell.stdin.write(f"{step.text}\n".encode())
                seen = [await line_of(shell.stdout) for _ in step.shown]
                assert sorted(map(alike, seen)) == sorted(map(alike, step.shown)), step.text
            rest, _ = await shell.communicate(b"wait\n")
        finally:
            with suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
    assert [line for line in rest.decode().splitlines() if not KILLED.match(line)] == []


@pytest.mark.parametrize(
    "text", [pytest.param(page.read_text(), id=page.stem) for page in sorted(TUTORIALS.glob("*.md"))]
)
async def test_a_tutorial_works_as_it_is_printed(text: str, tmp_path: Path) -> None:
    if "import torch" in text:
        pytest.importorskip("torch")
    assert len(steps(text)) >= 3
    with held_ports(2) as ports:
        for port, free in zip(("29400", "29401"), ports, strict=True):
            text = text.replace(port, str(free))
        await play(text, tmp_path)

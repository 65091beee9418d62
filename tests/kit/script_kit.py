"""Runs small Python programs in processes of their own, line by line, with every wait bounded."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

from tests.kit import ROOT
from tests.kit.process_kit import ended, send_signal

PATIENCE = 120.0


class Script:
    """A program that runs."""

    def __init__(self, process: Process) -> None:
        assert process.stdout is not None
        self.process = process
        self.stdout = process.stdout
        self.said: list[str] = []

    async def line(self) -> str:
        """The next line that it prints, errors included; empty at its end."""
        try:
            async with asyncio.timeout(PATIENCE):
                line = (await self.stdout.readline()).decode()
        except TimeoutError:
            raise AssertionError(f"nothing for {PATIENCE:g} s; before that:\n{self.output}") from None
        self.said.append(line)
        return line.rstrip("\n")

    async def line_with(self, text: str) -> str:
        """The next line with `text` in it."""
        while True:
            line = await self.line()
            if text in line:
                return line
            assert self.said[-1], f"it ended without {text!r}; it said:\n{self.output}"

    def go_on(self) -> None:
        """Gives it a line to read."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")

    async def end(self) -> int:
        """Reads what it still says, and returns its exit status."""
        while await self.line() or self.said[-1]:
            pass
        async with asyncio.timeout(PATIENCE):
            return await self.process.wait()

    def send_signal(self, number: int) -> None:
        """Sends a signal to it alone."""
        send_signal(self.process, number)

    def kill(self) -> None:
        """Kills it and all processes that it started in its group."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    @property
    def output(self) -> str:
        """All that it has said so far."""
        return "".join(self.said)


@asynccontextmanager
async def script(
    *command: str, python: Sequence[str] = (sys.executable,), **environment: str
) -> AsyncIterator[Script]:
    """Runs Python with `command`, in a process group of its own that is killed when the block is left."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    process = await asyncio.create_subprocess_exec(
        *python, *command, stdin=PIPE, stdout=PIPE, stderr=STDOUT, env=env,
        process_group=0, limit=2**20,
    )  # fmt: skip
    running = Script(process)
    async with ended(process):
        try:
            yield running
        finally:
            running.kill()

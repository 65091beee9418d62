"""Runs the real commands, most of them in processes of their own, and bounds every wait."""

from __future__ import annotations

import asyncio
import io
import json
import os
import sys
import threading
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any
from unittest import mock

import typer

from arendezvous.cli.app import app
from tests.kit import ROOT
from tests.kit.process_kit import ended, send_signal

PATIENCE = 120.0
ASKING = frozenset({
    "status", "explain", "close", "reopen", "drain", "doctor",
    "resize", "hold", "release", "quarantine", "pardon",
})  # fmt: skip
_TURN = threading.Lock()  # of those who take the place of stdout
ENV = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", "NO_COLOR": "1"}


@dataclass
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        """What it wrote as JSON, but for the time."""
        found = json.loads(self.out)
        if isinstance(found, dict):
            del found["time"]
        return found


class Running:
    """A command that runs."""

    def __init__(self, process: Process) -> None:
        self.process = process
        assert process.stdout is not None
        self.stdout = process.stdout
        self.pid = process.pid

    async def line(self) -> str:
        """The next line of its stdout, without the line's end."""
        async with asyncio.timeout(PATIENCE):
            return (await self.stdout.readline()).decode().rstrip("\n")

    async def line_with(self, text: str) -> str:
        """The next line with `text` in it."""
        seen = []
        while line := await self.line():
            seen.append(line)
            if text in line:
                return line
        raise AssertionError(f"stdout ended without {text!r}; it said {seen}")

    async def report(self, what: str) -> dict[str, Any]:
        """The next JSON line whose ``what``, ``change`` or ``event`` it is."""
        while line := await self.line():
            found: dict[str, Any] = json.loads(line)
            if what in (found.get("what"), found.get("change"), found.get("event")):
                return found
        raise AssertionError(f"stdout ended without {what!r}")

    def send_signal(self, number: int) -> None:
        send_signal(self.process, number)

    async def end(self) -> Result:
        """Waits for its end, with stdin closed."""
        async with asyncio.timeout(PATIENCE):
            out, err = await self.process.communicate()
        assert self.process.returncode is not None
        return Result(self.process.returncode, out.decode(), err.decode())


@asynccontextmanager
async def running(
    *args: str,
    module: str = "arendezvous",
    preexec: Callable[[], None] | None = None,
    env: Mapping[str, str] | None = None,
) -> AsyncIterator[Running]:
    """Runs a command while the block runs; kills it at the end if it still runs."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, *args, stdin=PIPE, stdout=PIPE, stderr=PIPE, env={**ENV, **(env or {})},
        preexec_fn=preexec,
    )  # fmt: skip
    async with ended(process):
        yield Running(process)


async def run(*args: str, env: Mapping[str, str] | None = None) -> Result:
    """Runs a command to its end, with some more in its environment.

    Those that only ask something of a server are run in a thread of this process, in a tenth of the time;
    the others heed signals.
    """
    if args and args[0] in ASKING:
        return await asyncio.to_thread(run_here, *args, env=env)
    return await run_apart(*args, env=env)


async def run_apart(*args: str, env: Mapping[str, str] | None = None) -> Result:
    """Runs a command to its end in a process of its own.

    For what its environment has it import; and over TLS, whose connections outlive the loop by a moment.
    """
    async with running(*args, env=env) as command:
        return await command.end()


def run_here(*args: str, env: Mapping[str, str] | None = None) -> Result:
    """Runs a command to its end in this process; not within an event loop."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    command: Any = typer.main.get_command(app)
    code: object = 0
    with (
        _TURN,
        mock.patch.dict(os.environ, {**ENV, **(env or {})}),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            command.main(list(args), prog_name="arendezvous")
        except SystemExit as end:
            code = end.code or 0
    shown = (each.buffer.getvalue().decode() for each in (out, err))
    return Result(int(str(code)), *shown)


@asynccontextmanager
async def a_server() -> AsyncIterator[tuple[str, Running]]:
    """Runs ``arendezvous serve`` on a free port; yields its URL."""
    async with running("serve", "--port", "0") as server:
        first = await server.line()
        yield first.removeprefix("serving "), server


@asynccontextmanager
async def nodes(url: str, run_id: str, *names: str) -> AsyncIterator[list[Running]]:
    """Runs nodes until all of them are members of one round."""
    sizes = ("--min-nodes", "1", "--max-nodes", str(len(names)))
    async with AsyncExitStack() as stack:
        started = [
            await stack.enter_async_context(
                running(*sizes, url, run_id, name, module="arendezvous.cli.demo_node")
            )
            for name in names
        ]
        for node in started:
            await node.report("member")
        yield started


async def screen_until(terminal: int, text: str) -> str:
    """Reads what is written to a terminal until `text` is there."""
    loop, seen = asyncio.get_running_loop(), ""
    arrived = asyncio.Event()
    loop.add_reader(terminal, arrived.set)
    try:
        async with asyncio.timeout(PATIENCE):
            while text not in seen:
                await arrived.wait()
                seen += os.read(terminal, 65536).decode(errors="replace")
                arrived.clear()
    finally:
        loop.remove_reader(terminal)
    return seen

"""Agents of torchrun in processes of their own, and a gate at which their workers wait."""

from __future__ import annotations

import asyncio
import sys
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress

from tests.kit import DATA, torch_python
from tests.kit.script_kit import PATIENCE, Script, script

TRAIN = str(DATA / "train.py")
QUICK = "last_call_timeout=0.1,disconnect_grace=0.2"
QUICK_DNS = {"RES_OPTIONS": "timeout:1 attempts:1"}  # torch's server asks DNS for each client's name


class Gate:
    """Where workers tell that they are in a round, and wait until they may end."""

    def __init__(self) -> None:
        self.port = 0
        self._arrived: asyncio.Queue[str] = asyncio.Queue()
        self._latest: dict[str, StreamWriter] = {}
        self._all: list[StreamWriter] = []

    async def arrived(self, *expected: str) -> None:
        """Waits for the next workers: exactly `expected`, each as its node and the size of its world."""
        seen: list[str] = []
        try:
            async with asyncio.timeout(PATIENCE):
                while len(seen) < len(expected):
                    seen.append(await self._arrived.get())
        except TimeoutError:
            raise AssertionError(f"only {seen} arrived, expected {expected}") from None
        assert sorted(seen) == sorted(expected)

    async def next(self) -> tuple[str, int]:
        """Waits for the next worker; returns its node and the size of its world."""
        async with asyncio.timeout(PATIENCE):
            node, size = (await self._arrived.get()).split()
        return node, int(size)

    def open(self, *nodes: str) -> None:
        """Lets the latest workers of `nodes` go on."""
        for node in nodes:
            self._latest[node].write(b"!")

    async def take(self, reader: StreamReader, writer: StreamWriter) -> None:
        self._all.append(writer)
        line = (await reader.readline()).decode().strip()
        if not line:  # its agent ended it as it came
            return
        self._latest[line.split()[0]] = writer
        self._arrived.put_nowait(line)

    async def close(self) -> None:
        """Ends all workers that wait here still."""
        for writer in self._all:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


@asynccontextmanager
async def a_gate() -> AsyncIterator[Gate]:
    gate = Gate()
    async with await asyncio.start_server(gate.take, "127.0.0.1", 0) as server:
        gate.port = server.sockets[0].getsockname()[1]
        try:
            yield gate
        finally:
            await gate.close()


def agent(
    node: str, endpoint: str, nnodes: str, *options: str, gate: int = 0, mode: str = "plain",
    run_id: str = "job", conf: str = QUICK, **environment: str,
) -> AbstractAsyncContextManager[Script]:  # fmt: skip
    """Runs a torchrun agent with one worker."""
    python = torch_python.command()
    return script(
        "-W", "ignore", "-m", "torch.distributed.run", "--nproc-per-node=1", "--monitor-interval=0.05",
        "--rdzv-backend=arendezvous", f"--rdzv-endpoint={endpoint}", f"--rdzv-id={run_id}",
        f"--rdzv-conf={conf}", f"--nnodes={nnodes}", *options, "--no-python", *python, TRAIN, mode, str(gate),
        NODE=node, **QUICK_DNS, **environment,
        python=(sys.executable,) if "LOGLEVEL" in environment else python,
    )  # fmt: skip

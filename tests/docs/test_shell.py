"""The shell blocks of the guides and of the reference work when they are pasted."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

import arendezvous as ar
from tests.kit import ROOT
from tests.kit.ports import held_ports
from tests.kit.process_kit import ended

PATIENCE = 60.0
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ALL = [
    pytest.param(block, id=page.stem)
    for page in sorted((ROOT / "docs").rglob("*.md"))
    for block in BLOCK.findall(page.read_text())
    if page.stem != "security"
    and "$RUN" not in block
    and "RUN=" not in block  # these have tests of their own
]
SERVERS = [block for block in ALL if "arendezvous serve" in str(block.values)]
QUESTIONS = [block for block in ALL if block not in SERVERS]


@pytest.fixture
def ports() -> Iterator[list[int]]:
    with held_ports(2) as held:
        yield held


def pasted(block: str, ports: list[int]) -> str:
    """A block with ports of its own, where the default is meant, too."""
    for port, free in zip(("29400", "29401"), ports, strict=True):
        block = block.replace(port, str(free))
    return block if "--port" in block else block.replace(" serve ", f" serve --port {ports[0]} ")


@asynccontextmanager
async def shell(code: str, folder: Path) -> AsyncIterator[Process]:
    """A shell that does this in a folder; it and all that it started is killed at the end of the block."""
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    process = await asyncio.create_subprocess_exec(
        "bash", "-euc", code, stdout=PIPE, stderr=STDOUT, cwd=folder, process_group=0,
        env={"HOME": str(folder), "PATH": path, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    async with ended(process), asyncio.timeout(PATIENCE):
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


async def does(code: str, folder: Path) -> str:
    """Does it to the end, which is a good one, and returns what was shown."""
    async with shell(code, folder) as process:
        out, _ = await process.communicate()
    assert process.returncode == 0, out.decode()
    return out.decode()


async def serving(process: Process) -> None:
    """Waits until a server accepts connections."""
    assert process.stdout is not None
    seen = ""
    while not (line := (await process.stdout.readline()).decode()).startswith("serving tcp://"):
        seen += line
        assert line, seen


@pytest.mark.parametrize("block", QUESTIONS)
async def test_what_is_asked_of_a_server_is_answered(block: str, ports: list[int], tmp_path: Path) -> None:
    tcp, http = (f"127.0.0.1:{port}" for port in ports)
    async with ar.serve(tcp, http=http):
        nodes = [
            ar.open_rendezvous(f"tcp://{tcp}", run_id="job1", min_nodes=2, node=f"node{n}") for n in (3, 4)
        ]
        for node in nodes:
            await node.__aenter__()
        await asyncio.gather(*(node.next_rendezvous() for node in nodes))
        asked = await does(pasted(block, ports), tmp_path)
        for node in nodes:
            await node.__aexit__(None, None, None)
    assert "urn:arendezvous:problem" not in asked


@pytest.mark.parametrize("block", SERVERS)
async def test_a_server_of_the_documents_serves(block: str, ports: list[int], tmp_path: Path) -> None:
    async with shell(f"exec {pasted(block, ports)}", tmp_path) as process:
        await serving(process)
        process.terminate()
        assert await process.wait() == 0


async def test_tokens_and_tls_in_short_are_enough(ports: list[int], tmp_path: Path) -> None:
    short, nodes, authority = BLOCK.findall((ROOT / "docs" / "guides" / "security.md").read_text())
    async with shell(pasted(short, ports), tmp_path) as server:
        await serving(server)
        assert "ok" in await does(pasted(nodes, ports), tmp_path)
    await does(f"{authority}\nopenssl verify -x509_strict -CAfile ca.pem server.pem", tmp_path)

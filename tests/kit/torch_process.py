"""Torch in processes of its own: a store server, and scripts that use torch's clients."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from tests.kit import torch_python
from tests.kit.process_kit import ended

SERVER = """
import sys
from torch.distributed import TCPStore
store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
print(store.port, flush=True)
sys.stdin.read()
"""

# Torch's server asks DNS for the name of each client, on its one thread: without an answer, all wait.
_QUICK_DNS = {"RES_OPTIONS": "timeout:1 attempts:1"}


@contextmanager
def torch_store_server() -> Iterator[int]:
    """Runs torch's own store server; yields its port."""
    with subprocess.Popen(
        [*torch_python.command(), "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # it logs each connection that it drops
        text=True,
        env={**os.environ, **_QUICK_DNS},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.stdin.close()


async def run_torch(script: str, *arguments: object, seconds: float = 200, **environment: str) -> str:
    """Runs a script in a process of its own, and returns what it printed; it must end well."""
    process = await asyncio.create_subprocess_exec(
        *torch_python.command(),
        "-c",
        script,
        *map(str, arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **_QUICK_DNS, "OMP_NUM_THREADS": "1", **environment},
    )
    async with ended(process), asyncio.timeout(seconds):
        out, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()[-3000:]
    return out.decode()

"""Signals to the processes of an event loop, and their end, of which the loop learns the real exit code."""

from __future__ import annotations

import os
import signal
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import anyio

PATIENCE = 60.0


def send_signal(process: Process, number: int) -> None:
    """Sends a signal to a process; nothing happens if it has ended.

    Not by the process's own `send_signal` or `kill`: before Python 3.13 these first ask whether it has ended,
    and take the exit code of one that just has from the event loop, which then makes one up and complains.
    """
    if process.returncode is None:
        with suppress(ProcessLookupError):
            signal_child(process.pid, number)


def signal_child(pid: int, number: int) -> None:
    """Sends a signal to a child; one that is stopped or killed does nothing any more when this returns.

    A process is not stopped by the time that `os.kill` returns: its threads stop one after the other, and one
    of them may answer yet.
    """
    os.kill(pid, number)
    if number in (signal.SIGSTOP, signal.SIGKILL):
        with suppress(ChildProcessError):  # the event loop has taken its exit code
            os.waitid(os.P_PID, pid, os.WEXITED | os.WSTOPPED | os.WNOWAIT)


@asynccontextmanager
async def ended(process: Process) -> AsyncIterator[None]:
    """Kills a process when the block is left, if it still runs, and waits for its end.

    Its pipes are closed, too: a process that it has started may hold the other ends for long.
    """
    try:
        yield
    finally:
        send_signal(process, signal.SIGKILL)
        with anyio.fail_after(PATIENCE, shield=True):
            for number in range(3):
                pipe = process._transport.get_pipe_transport(number)  # type: ignore[attr-defined]  # no other way
                if pipe is not None:
                    pipe.close()
            await process.wait()
            process._transport.close()  # type: ignore[attr-defined]  # that may be due to come later

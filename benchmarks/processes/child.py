"""Answers requests in a process that measures: one JSON object a line in on stdin, one out on stdout.

It needs nothing but the standard library, and uvloop where that is asked for.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import resource
import sys
import threading
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

Answer = dict[str, Any]

THRESHOLDS: Final = (10_000, 50, 50)  # of the garbage collector, as of `arendezvous serve`


def serve_requests(
    handle: Callable[[Answer], Answer], packages: tuple[str, ...] = (), facts: Answer | None = None
) -> None:
    """Says that it is ready, and answers requests until stdin ends.

    The garbage collector rests meanwhile, as in `timeit`, and collects before each answer: a process that
    holds N members stands for N processes, whose collectors would have next to nothing to look at.

    Args:
        handle: Answers one request; what it raises becomes the answer's ``error``.
        packages: Distributions whose versions are worth telling.
        facts: What else is to be known; None: nothing.
    """
    replies = _take_stdout()
    gc.disable()
    _reply(replies, {"ready": True, "versions": _versions(packages), **(facts or {})})
    for line in sys.stdin:
        try:
            answer = handle(json.loads(line))
        except Exception as error:  # noqa: BLE001 - whatever it is, the one who asked wants to know
            answer = {"error": _in_words(error)}
        gc.collect()
        _reply(replies, answer)


def announce(**facts: Any) -> None:
    """Says that it is ready, and what else is to be known."""
    _reply(_take_stdout(), {"ready": True, **facts})


def skip(reason: str) -> None:
    """Says, instead of being ready, why this contender cannot run."""
    _reply(_take_stdout(), {"skip": reason})


def forked(work: Callable[[], Answer]) -> Answer:
    """Does `work` in a fork of this process, so that whatever it leaves behind is gone with it.

    Raises:
        RuntimeError: It failed, or ended without a result.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        try:
            answer = work()
        except BaseException as error:  # noqa: BLE001 - the fork must not go on with the parent's work
            answer = {"error": _in_words(error)}
        with os.fdopen(writing, "w") as pipe:
            json.dump(answer, pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    if not text:
        raise RuntimeError("the process of this run ended without a result")
    answer = json.loads(text)
    if "error" in answer:
        raise RuntimeError(answer["error"])
    return dict(answer)


def all_at_once(count: int, work: Callable[[int], object]) -> float:
    """Runs `work(i)` in `count` threads that begin together; returns seconds until the last ends."""
    threading.stack_size(256 * 1024)
    barrier = threading.Barrier(count + 1)
    ends: list[float] = []
    errors: list[BaseException] = []

    def one(index: int) -> None:
        barrier.wait()
        try:
            work(index)
            ends.append(time.perf_counter())
        except Exception as error:  # noqa: BLE001 - it is raised below
            errors.append(error)

    threads = [threading.Thread(target=one, args=(index,), daemon=True) for index in range(count)]
    for thread in threads:
        thread.start()
    barrier.wait()
    start = time.perf_counter()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return max(ends) - start


def runner(loop: str) -> asyncio.Runner:
    """Makes a runner with asyncio's own event loop, or with uvloop's."""
    factory: Callable[[], Any] | None = None
    if loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    return asyncio.Runner(loop_factory=factory)


def tune_collector() -> None:
    """Tunes the garbage collector of a server in Python, as `arendezvous serve` does with its own."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)


def raise_open_files() -> None:
    """Raises the soft limit on open files to the hard one, as far as the system lets us."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        return


def resident(pid: int | str = "self") -> int:
    """Returns the bytes of memory that a process holds at the moment."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def cpu_seconds(pid: int) -> float:
    """Returns the seconds of a processor that a process has used, to a hundredth or so."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _in_words(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"


def _take_stdout() -> int:
    """Keeps stdout for the answers: whatever else prints, prints to stderr."""
    replies = os.dup(1)
    os.dup2(2, 1)
    return replies


def _reply(replies: int, answer: Answer) -> None:
    data = json.dumps(answer).encode() + b"\n"
    while data:
        data = data[os.write(replies, data) :]


def _versions(packages: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found

"""Starts a process that measures, asks it for one run at a time, and ends it with its forks."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Final, Self

import arendezvous

START_LIMIT: Final = 60.0
PACKAGE: Final = Path(arendezvous.__file__).parent
BENCHMARKS: Final = Path(__file__).parent


class SkippedError(Exception):
    """Says why a contender cannot run, or not this far."""


class Process:
    """Runs one of the programs of `benchmarks.processes`.

    Args:
        module: The program's name.
        arguments: Its arguments.
        python: The interpreter; it needs not have us installed.
        package: The directory of the package ``arendezvous`` that it imports.
        verbose: Whether its stderr is ours; else it goes nowhere.

    Attributes:
        hello: What it said of itself when it was ready.

    Raises:
        SkippedError: It cannot run.
    """

    def __init__(
        self,
        module: str,
        *arguments: object,
        python: str = sys.executable,
        package: Path = PACKAGE,
        verbose: bool = False,
    ) -> None:
        self._dead = ""
        self._buffer = b""
        self._path = TemporaryDirectory(prefix="arendezvous-bench-")
        for imported in (BENCHMARKS, package):
            (Path(self._path.name) / imported.name).symlink_to(imported)
        command = [python, "-m", f"benchmarks.processes.{module}", *map(str, arguments)]
        environment = {
            **os.environ,
            "PYTHONPATH": self._path.name,
            "PYTHONSAFEPATH": "1",
            "PYTHONWARNINGS": "ignore",
        }
        try:
            self._process = _start(command, environment, verbose)
        except OSError as error:
            self._path.cleanup()
            raise SkippedError(f"{python} cannot be run: {error.strerror}") from error
        try:
            hello = self._read(START_LIMIT)
        except BaseException:
            self.close()
            raise
        if "skip" in hello:
            self.close()
            raise SkippedError(hello["skip"])
        self.hello: Mapping[str, Any] = hello

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def versions(self) -> Mapping[str, str]:
        """The versions of the packages that it runs, by their names."""
        versions: Mapping[str, str] = self.hello.get("versions", {})
        return versions

    def ask(self, limit: float, **request: Any) -> dict[str, Any]:
        """Has it do one thing.

        Args:
            limit: Seconds that it may take; then the process is ended, and never answers again.
            request: What to do.

        Raises:
            SkippedError: It took too long, failed, or is dead already.
        """
        if self._dead:
            raise SkippedError(self._dead)
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            self._give_up(f"its process has ended: exit code {self._process.poll()}")
        answer = self._read(limit)
        if "error" in answer:
            raise SkippedError(answer["error"])
        return answer

    def close(self) -> None:
        """Ends it: it has a second to end in good order, its forks have none."""
        self._dead = self._dead or "it was ended"
        with contextlib.suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._path.cleanup()

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the process."""
        self.close()

    def _read(self, limit: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        deadline = time.monotonic() + limit
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
                self._give_up(f"not done in {limit:g} s")
            data = os.read(self._process.stdout.fileno(), 65536)
            if not data:
                self._give_up(f"its process ended: exit code {self._process.wait()}")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _give_up(self, reason: str) -> None:
        self._dead = reason
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        raise SkippedError(reason)


def _start(command: Sequence[str], environment: Mapping[str, str], verbose: bool) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=None if verbose else subprocess.DEVNULL,
        start_new_session=True,
    )

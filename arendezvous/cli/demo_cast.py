"""The processes of the demo: started, listened to, waited for, and never left behind."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import PIPE
from typing import Final, TypeVar

import anyio
import anyio.abc
from anyio.streams.buffered import BufferedByteReceiveStream

from arendezvous.cli.demo_node import Report
from arendezvous.wire.foreign import decode_foreign, json_decoder

MAX_LINE: Final = 16_384
END_TIMEOUT: Final = 30.0
_ROOT: Final = str(Path(__file__).parents[2])  # last on the path: of use only where this is not installed
_PROGRAM: Final = (
    f"import sys; sys.path.append({_ROOT!r}); from arendezvous.cli.demo_node import main; main()"
)
_decode: Final = json_decoder(Report)

T = TypeVar("T")


class DemoError(Exception):
    """A step of the demo was not observed."""


@dataclass(eq=False)
class Actor:
    """One node's process, and what it has reported.

    Attributes:
        name: The node.
        process: The process.
        reports: What it has reported, the oldest first.
        fate: How it stands, for people: ``starting``, ``member``, ``killed``, ...
        exit_code: Once it has ended; negative if a signal ended it.
        complaints: The last lines of its stderr.
    """

    name: str
    process: anyio.abc.Process
    reports: list[Report] = field(default_factory=list)
    fate: str = "starting"
    exit_code: int | None = None
    complaints: deque[str] = field(default_factory=lambda: deque(maxlen=8))

    def last(self, what: str) -> Report | None:
        """The latest report of that kind."""
        return next((report for report in reversed(self.reports) if report.what == what), None)

    def told(self, change: str, about: str, since: float) -> Report | None:
        """The report, not older than `since`, of a change about a node; ``""`` is about none."""
        wanted = (change, about)
        told = (one for one in self.reports if (one.change, one.about) == wanted and one.at >= since)
        return next(told, None)

    async def send(self, line: str) -> None:
        """Writes a line to its stdin."""
        assert self.process.stdin is not None  # noqa: S101 - started with a pipe
        await self.process.stdin.send(f"{line}\n".encode())

    async def release(self) -> None:
        """Closes its stdin, which lets it end."""
        assert self.process.stdin is not None  # noqa: S101 - started with a pipe
        await self.process.stdin.aclose()

    def send_signal(self, number: signal.Signals) -> float:
        """Sends a signal, and returns when; nothing happens if it has ended."""
        if number is signal.SIGKILL:
            self.fate = "killed"
        now = time.monotonic()
        _signal(self.process, number)
        return now


class Cast:
    """All actors, by name; see `assembled`."""

    def __init__(self, tasks: anyio.abc.TaskGroup, changed: Callable[[], None]) -> None:
        self.actors: dict[str, Actor] = {}
        self._tasks = tasks
        self._changed = changed
        self._news = anyio.Event()

    async def start(self, name: str, *args: str) -> Actor:
        """Starts a node with `args`; when the cast is dismissed, it is killed if it still runs."""
        process = await anyio.open_process(
            [sys.executable, "-P", "-c", _PROGRAM, *args, name],
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            start_new_session=True,
        )
        actor = self.actors[name] = Actor(name, process)
        self._tasks.start_soon(self._follow, actor)
        self._tell()
        return actor

    async def until(self, what: str, observed: Callable[[], T | None], seconds: float) -> T:
        """Waits until `observed` returns something, and returns that; `DemoError`: it did not in time."""
        with anyio.move_on_after(seconds):
            while True:
                if (result := observed()) is not None:
                    return result
                for actor in self.actors.values():
                    if actor.exit_code and actor.fate != "killed":
                        why = " | ".join(actor.complaints) or "it said nothing"
                        raise DemoError(f"{actor.name} failed with exit code {actor.exit_code}: {why}")
                self._news = anyio.Event()
                await self._news.wait()
        raise DemoError(f"not observed within {seconds:g} s: {what}")

    async def ended(self, actors: list[Actor], *, fate: str = "gone") -> None:
        """Waits until all of `actors` have ended with exit code 0, and gives them their `fate`."""
        what = f"{', '.join(actor.name for actor in actors)} end with exit code 0"
        await self.until(what, lambda: all(one.exit_code == 0 for one in actors) or None, END_TIMEOUT)
        for actor in actors:
            actor.fate = fate
        self._tell()

    async def _follow(self, actor: Actor) -> None:
        """Takes in what an actor says; kills it in the end if it still runs, and waits for its end."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._listen, actor)
                tasks.start_soon(self._overhear, actor)
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(END_TIMEOUT):
                _signal(actor.process, signal.SIGKILL)
                await actor.process.aclose()

    async def _listen(self, actor: Actor) -> None:
        """Takes in an actor's reports, and in the end its exit code."""
        assert actor.process.stdout is not None  # noqa: S101 - started with a pipe
        stream = BufferedByteReceiveStream(actor.process.stdout)
        try:
            while True:
                line = await stream.receive_until(b"\n", MAX_LINE)
                report = decode_foreign(_decode, line, DemoError)
                actor.reports.append(report)
                actor.fate = _FATES.get(report.change, actor.fate) if report.change else report.what
                self._tell()
        except (anyio.IncompleteRead, anyio.EndOfStream):
            pass
        except (anyio.DelimiterNotFound, DemoError) as error:
            actor.complaints.append(f"its report cannot be read: {error}")
            _signal(actor.process, signal.SIGKILL)
        actor.exit_code = await actor.process.wait()
        self._tell()

    async def _overhear(self, actor: Actor) -> None:
        assert actor.process.stderr is not None  # noqa: S101 - started with a pipe
        async for text in actor.process.stderr:
            actor.complaints.extend(text.decode(errors="replace").strip().splitlines()[-8:])

    def _tell(self) -> None:
        self._news.set()
        self._changed()


_FATES: Final = {"NodeDraining": "draining", "Evicted": "drained", "Closed": "closed"}


@asynccontextmanager
async def assembled(changed: Callable[[], None]) -> AsyncIterator[Cast]:
    """Runs a cast; whatever happens in the block, none of its processes survives it.

    It calls `changed` whenever something about an actor has changed. Should this very process be killed, the
    actors notice the end of their stdin, and end too.
    """
    failure: DemoError | None = None
    async with anyio.create_task_group() as tasks:
        try:
            yield Cast(tasks, changed)
        except DemoError as error:  # not through the task group, which would wrap it
            failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure


def _signal(process: anyio.abc.Process, number: signal.Signals) -> None:
    """Sends a signal to a process; nothing happens if it has ended.

    Not by the process's own `send_signal`: before Python 3.13 that first asks whether the process has ended,
    and takes the exit code of one that just has from the event loop, which then makes one up and complains.
    """
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)

"""The story that the demo tells: each step does something to real processes and waits until they noticed.

They are started, listened to, waited for, and never left behind.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import PIPE
from typing import Final, Self, TypeVar

import anyio
import anyio.abc
import msgspec
from anyio.streams.buffered import BufferedByteReceiveStream
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from arendezvous.cli.demo_node import Report
from arendezvous.cli.exits import ExitCode, cancelled_by_signals
from arendezvous.wire.foreign import decode_foreign, json_decoder, printable

MIN_NODES: Final = 2
MAX_NODES: Final = 4
RUN_ID: Final = "demo"
START: Final = 60.0  # seconds that starting processes may take on a busy machine
STEP: Final = 30.0
REASON: Final = "the work is done"
_STYLES: Final = {
    "member": "green",
    "joining": "yellow",
    "starting": "dim",
    "draining": "magenta",
    "drained": "magenta",
    "killed": "bold red",
}
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


class Show:
    """The screen; plain lines if stdout is no terminal.

    Args:
        steps: How many steps the story has.
    """

    def __init__(self, steps: int) -> None:
        self._console = console = Console(highlight=False)
        self._steps = steps
        self._step = 0
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def step(self, title: str) -> None:
        """Begins the next step."""
        self._step += 1
        self.print(f"{self._step}/{self._steps} {title}", "bold")

    def line(self, text: str) -> None:
        """Tells something that was observed in this step."""
        self.print(f"    {text}", "")

    def failure(self, text: str) -> None:
        """Ends the story badly."""
        self.print(f"failed in step {self._step} of {self._steps}: {text}", "bold red")

    def nodes(self, actors: Iterable[Actor]) -> None:
        """Shows how the nodes stand; does nothing on a plain stdout."""
        if self._live is None:
            return
        table = Table(title_justify="left", expand=False)
        for heading in ("node", "pid", "state", "rank", "round", "last news"):
            table.add_column(heading, justify="right" if heading in ("pid", "rank", "round") else "left")
        for actor in actors:
            member = actor.last("member") if actor.fate in ("member", "draining") else None
            news = next((report.text for report in reversed(actor.reports) if report.text), "")
            table.add_row(
                actor.name,
                str(actor.process.pid),
                actor.fate,
                f"{member.rank} of {member.world_size}" if member else "-",
                str(member.round) if member else "-",
                Text(printable(news)),
                style=_STYLES.get(actor.fate, ""),
            )
        self._live.update(table, refresh=True)

    def print(self, text: str, style: str) -> None:
        """Writes lines, whatever is in them."""
        for line in text.split("\n"):
            self._console.print(printable(line), style=style, soft_wrap=True, markup=False)


class Meeting(msgspec.Struct, frozen=True):
    """A complete round, as all of its members reported it, with their names by rank.

    The last of them had called for it at `called`, and had its rank at `at`, by the monotonic clock.
    """

    round: int
    names: tuple[str, ...]
    at: float
    called: float

    def __str__(self) -> str:
        ranks = ", ".join(f"{name} rank {rank}" for rank, name in enumerate(self.names))
        return f"round {self.round} of {len(self.names)}: {ranks}"


async def show_demo() -> int:
    """Tells the story, and returns the exit code."""
    code: int = ExitCode.OK
    began = time.monotonic()
    with Show(Story.STEPS) as show, cancelled_by_signals() as came:
        try:
            async with assembled(lambda: show.nodes(cast.actors.values())) as cast:
                await Story(cast, show).tell()
            show.print(f"every step was observed, in {time.monotonic() - began:.1f} s", "bold green")
        except DemoError as error:
            show.failure(str(error))
            code = ExitCode.FAILED
    return 128 + came[-1] if came else code


class Story:
    """The steps, in order; each raises `DemoError` if it was not observed in time."""

    STEPS: Final = 5

    def __init__(self, cast: Cast, show: Show) -> None:
        self._cast = cast
        self._show = show
        self._endpoint = ""
        self._here: list[Actor] = []
        self._round = -1

    async def tell(self) -> None:
        """Tells it from the beginning to the end."""
        with held_port() as port:
            self._endpoint = f"tcp://127.0.0.1:{port}"
            await self._meet()
            await self._kill()
            await self._admit()
            await self._drain()
            await self._close()

    async def _meet(self) -> None:
        names = [f"node-{number}" for number in range(MAX_NODES)]
        self._show.step(f"{', '.join(names)} start; {names[0]} hosts the server, {self._endpoint}")
        for name in names:
            await self._start(name, host=name == names[0])
        meeting = await self._met(START)
        pids = ", ".join(str(actor.process.pid) for actor in self._here)
        after = ms(meeting.called, meeting.at)
        self._show.line(f"{meeting}; {after} after the last one called (pids {pids})")

    async def _kill(self) -> None:
        victim = self._here.pop(2)
        self._show.step(f"{victim.name} is killed with SIGKILL; it has the grace of 1 s to come back")
        killed = victim.send_signal(signal.SIGKILL)
        told = await self._told("NodeLost", victim.name, killed)
        self._show.line(f'the others are told "{told.text}"; {ms(killed, told.at)} after the kill')
        meeting = await self._met(STEP)
        later, after = ms(told.at, meeting.at), ms(killed, meeting.at)
        self._show.line(f"{meeting}; {later} later, {after} after the kill")

    async def _admit(self) -> None:
        name = f"node-{MAX_NODES}"
        self._show.step(f"{name} comes late")
        since = time.monotonic()
        late = await self._start(name)
        members = [actor for actor in self._here if actor is not late]
        told = await self._told("NodesWaiting", "", since, members, START)
        meeting = await self._met(STEP)
        joined = late.last("joining")
        called = meeting.called if joined is None else joined.at
        self._show.line(f'the others are told "{told.text}"; {ms(called, told.at)} after it called')
        self._show.line(f"{meeting}; {ms(called, meeting.at)} after it called")

    async def _drain(self) -> None:
        leaver = self._here.pop(1)
        self._show.step(f"{leaver.name} gets SIGTERM, as when its machine is taken away, and drains")
        asked = leaver.send_signal(signal.SIGTERM)
        told = await self._told("NodeDraining", leaver.name, asked)
        self._show.line(f'the others are told "{told.text}"; {ms(asked, told.at)} after the signal')
        meeting = await self._met(STEP)
        self._show.line(f"{meeting}; {ms(asked, meeting.at)} after the signal")
        await self._cast.ended([leaver], fate="drained")
        self._show.line(f"{leaver.name} is released and exits with code 0")

    async def _close(self) -> None:
        closer = self._here[-1]
        self._show.step(f"{closer.name} closes the run: {REASON}")
        asked = time.monotonic()
        await closer.send(f"close {REASON}")
        told = await self._told("Closed", "", asked)
        self._show.line(f'everybody is told "{told.text}"; {ms(asked, told.at)} after the word')
        host, *guests = self._here
        await self._cast.until(
            "all have left", lambda: all(actor.last("left") for actor in self._here) or None, STEP
        )
        await self._cast.ended(guests)
        await host.release()
        await self._cast.ended([host])
        self._show.line(f"{', '.join(actor.name for actor in self._here)} exit with code 0, the host last")

    async def _start(self, name: str, *, host: bool = False) -> Actor:
        sizes = ("--min-nodes", str(MIN_NODES), "--max-nodes", str(MAX_NODES))
        flags = ("--host",) if host else ()
        actor = await self._cast.start(name, *sizes, *flags, self._endpoint, RUN_ID)
        self._here.append(actor)
        return actor

    async def _met(self, seconds: float) -> Meeting:
        """Waits for the next round with exactly those who are here, and checks that they agree on it."""
        here, after = list(self._here), self._round
        names = ", ".join(actor.name for actor in here)
        meeting = await self._cast.until(
            f"{names} meet in a round after round {after}", lambda: agreement(here, after), seconds
        )
        self._round = meeting.round
        return meeting

    async def _told(
        self, change: str, about: str, since: float, who: Sequence[Actor] = (), seconds: float = STEP
    ) -> Report:
        """Waits until everybody (or `who`) is told; returns the last one's report."""
        listeners = list(who or self._here)

        def reports() -> list[Report] | None:
            found = [report for actor in listeners if (report := actor.told(change, about, since))]
            return found if len(found) == len(listeners) else None

        names = ", ".join(actor.name for actor in listeners)
        what = f"{names} are told {change}{f' of {about}' if about else ''}"
        return max(await self._cast.until(what, reports, seconds), key=lambda report: report.at)


def agreement(actors: Sequence[Actor], after: int) -> Meeting | None:
    """The complete round, later than `after`, that all of `actors` are in; None while there is none.

    Raises `DemoError` if they are in one round, and contradict each other about it.
    """
    reports = {actor.name: actor.last("member") for actor in actors}
    members = {name: one for name, one in reports.items() if one is not None and one.round > after}
    size, found = len(actors), members.values()
    if len(members) < size or len({one.round for one in found}) > 1:
        return None
    if {one.world_size for one in found} != {size}:
        return None
    number = next(iter(found)).round
    ranked = {one.rank: name for name, one in members.items()}
    if sorted(ranked) != list(range(size)) or len({one.digest for one in found}) > 1:
        raise DemoError(f"the members of round {number} do not agree: {members}")
    return Meeting(
        round=number,
        names=tuple(ranked[rank] for rank in range(size)),
        at=max(one.at for one in found),
        called=max(call.at for actor in actors if (call := actor.last("joining"))),
    )


def ms(begin: float, end: float) -> str:
    """The time from `begin` to `end`, for people."""
    milliseconds = (end - begin) * 1000
    return f"{milliseconds:.1f} ms" if milliseconds < 100 else f"{milliseconds:.0f} ms"


@contextmanager
def held_port() -> Iterator[int]:
    """A port of 127.0.0.1 where nobody listens, and that only a server which wants just this one can get.

    No other process is given the port of a bound socket; to servers, which set ``SO_REUSEADDR``, it is free.
    """
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        yield port

"""What one hostile client costs the others: ``python -m benchmarks hostile``.

Each attack of `benchmarks.attacks`, `attacks_http` and `attacks_rounds` is played against a fresh server
while an honest client gets a key, another sets one over HTTP, and an honest node joins, over and over; and
two more are the members of a round. What counts is how long these take, half of them within 20 ms, and all
of them within 100 ms; and that the members keep their ranks. With ``--server`` the server is that of another
checkout, for a comparison.

With ``--together`` all attacks are played against one server, each over and over. Then the clients of some
fifty attackers wait for two processors, so how long that takes says nothing; what counts is that all of them
are served, the members keep their ranks, and the server stays under the sum of its limits.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from multiprocessing.synchronize import Event
from pathlib import Path
from statistics import median
from typing import Annotated, Final

import msgspec
import typer
from rich.console import Console
from rich.table import Table

import arendezvous
from arendezvous.keyspace.messages import Get, Set, Validate
from arendezvous.law.operations import Join, KeepAlive, Leave
from arendezvous.law.state import NodeDesc, NodeView, Phase, RunSettings
from arendezvous.server.access.limits import DEFAULT_LIMITS, ServerLimits
from arendezvous.server.http.repeats import MAX_BYTES
from arendezvous.wire.c10d.protocol import MAGIC
from arendezvous.wire.c10d.requests import encode_request
from arendezvous.wire.native.login import AnswerParser, encode_login
from arendezvous.wire.native.messages import (
    MAX_REPLY,
    PREFACE,
    VERSION,
    FrameParser,
    Hello,
    Propose,
    View,
    decode_server,
    encode,
)
from benchmarks.attacks import ATTACKS, FULL_TOKEN, HOST, TOKENS, Attack, Target, nothing
from benchmarks.attacks_http import HTTP_ATTACKS, request_of
from benchmarks.attacks_rounds import ROUND_ATTACKS

GOAL_MEDIAN: Final = 0.020  # seconds
GOAL_WORST: Final = 0.100
SECONDS: Final = 5.0
PAUSE: Final = 0.002  # seconds between two operations that are measured
PATIENCE: Final = 60.0  # seconds that one of them may take
PREPARED_IN: Final = 300.0
LINGER: Final = 1.5  # seconds that are measured after an attack that ends by itself
CHECKOUT: Final = Path(arendezvous.__file__).parent.parent
MIB: Final = 1024 * 1024
IDLE: Final = "idle"
_NOBODY: Final = Attack("nobody is hostile", nothing, lambda _: time.sleep(SECONDS))
_BUSY: Final = Attack("nobody is hostile, one is busy with itself", nothing, lambda _: _compute(SECONDS))
CONTROLS: Final = {IDLE: _NOBODY, "busy": _BUSY}  # what is slow beside these, too, is the machine's
EVERY_ATTACK: Final = ATTACKS | ROUND_ATTACKS | HTTP_ATTACKS
EVERYTHING: Final = CONTROLS | EVERY_ATTACK


def _compute(seconds: float) -> None:
    """Takes one processor, and the memory's attention, as a client does that sends as much as it can."""
    end, block = time.monotonic() + seconds, bytearray(8 * MIB)
    while time.monotonic() < end:
        block = bytearray(bytes(block))


class Latency(msgspec.Struct, frozen=True):
    """How long one kind of operation took, in seconds; infinite if one failed, or none was done."""

    median: float
    worst: float
    count: int


class Outcome(msgspec.Struct, frozen=True):
    """What came of one attack.

    Attributes:
        name: The attack's.
        get: An honest client's reads.
        put: The writes of one over HTTP.
        join: An honest node's joins.
        memory: Bytes by which the server grew, at most.
        log: Lines that it logged.
        together: Whether it stands for several attacks at once, so that the goal is another.
        failure: Which honest client was not served, or lost its rank; empty: none.
    """

    name: str
    get: Latency
    put: Latency
    join: Latency
    memory: int
    log: int
    together: bool = False
    failure: str = ""

    @property
    def is_good(self) -> bool:
        """Whether the goals are met."""
        if self.failure:
            return False
        if self.together:
            return self.memory <= promised(DEFAULT_LIMITS)
        latencies = (self.get, self.put, self.join)
        return all(each.median <= GOAL_MEDIAN and each.worst <= GOAL_WORST for each in latencies)


def promised(limits: ServerLimits) -> int:
    """Adds up the bytes that a server may take for its clients, as docs/reference/limits.md does."""
    kept = limits.store.max_bytes + limits.coordinator.max_node_bytes + limits.coordinator.max_history_bytes
    under_way = limits.max_unread + limits.max_unfinished + limits.max_greetings + limits.max_bodies
    return kept + under_way + MAX_BYTES


class Server:
    """A server in a process of its own, from some checkout.

    Attributes:
        target: Its ports.
    """

    def __init__(self, checkout: Path, options: list[str]) -> None:
        environment = {**os.environ, "PYTHONPATH": str(checkout), "PYTHONSAFEPATH": "1"}
        self._files = tempfile.TemporaryDirectory(prefix="arendezvous-bench-")
        tokens, self._log = Path(self._files.name, "tokens"), Path(self._files.name, "log")
        tokens.touch(0o600)
        tokens.write_text(TOKENS)
        command = [sys.executable, "-m", "arendezvous", "serve", "--port", "0", "--http-port", "0"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, "--token-file", str(tokens), *options],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self._process.stdout is not None
        urls = self._process.stdout.readline().split()[1:]
        if len(urls) != len(Target._fields):
            raise RuntimeError(f"the server of {checkout} did not start: {self._log.read_text()}")
        self.target = Target(*(int(url.rpartition(":")[2]) for url in urls))

    def memory(self, which: str) -> int:
        """Bytes of memory that it holds (``VmRSS``), or has held at most (``VmHWM``)."""
        with Path(f"/proc/{self._process.pid}/status").open() as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith(f"{which}:"))

    def forget_peak(self) -> None:
        """Has ``VmHWM`` begin anew."""
        Path(f"/proc/{self._process.pid}/clear_refs").write_text("5")

    def stop(self) -> int:
        """Ends it; returns how many lines it has logged."""
        self._process.kill()
        self._process.wait()
        with self._log.open("rb") as log:
            lines = sum(1 for _ in log)
        self._files.cleanup()
        return lines


@contextmanager
def attacker(
    name: str, target: Target, go: Event, *, again: bool = False
) -> Iterator[multiprocessing.process.BaseProcess]:
    """Prepares an attack in a process of its own, which attacks from `go` to the end of the block.

    Args:
        name: The attack's.
        target: The server.
        go: Is set when it is to attack.
        again: Whether it begins anew when it has ended, or was dropped.
    """
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_attack, args=(name, target, ready, go, again), daemon=True)
    process.start()
    try:
        deadline = time.monotonic() + PREPARED_IN
        while not ready.wait(0.1):
            if not process.is_alive() or time.monotonic() > deadline:
                raise RuntimeError(f"the attack {name!r} could not be prepared")
        yield process
    finally:
        process.kill()
        process.join()


def _attack(name: str, target: Target, ready: Event, go: Event, again: bool) -> None:
    attack = EVERYTHING[name]
    os.nice(19)  # a hostile client has a machine of its own: it takes no processor from those measured
    attack.prepare(target)
    ready.set()
    go.wait()
    while True:
        with suppress(OSError) if again else nullcontext():
            attack.attack(target)
        if not again:
            break
        time.sleep(PAUSE)


class Honest:
    """Honest clients of the store and an honest node, who do the same over and over, and how long it takes.

    Attributes:
        gets: Seconds of each read of a key of 32 bytes.
        puts: Seconds of each write of such a key over HTTP.
        joins: Seconds of each join of a run of one, up to the rank.
        over: Whether they are to stop.
        failure: Which of them was not served, or lost its rank; empty: none.
    """

    def __init__(self) -> None:
        self.gets: list[float] = []
        self.puts: list[float] = []
        self.joins: list[float] = []
        self.over = False
        self.failure = ""

    async def read(self, target: Target) -> None:
        """Reads a key over and over."""
        reader, writer = await asyncio.open_connection(HOST, target.tcp)
        writer.write(encode_login(FULL_TOKEN))
        parser = AnswerParser()
        while parser.feed(await reader.readexactly(1)) is None:
            pass
        writer.write(encode_request(Validate(MAGIC)) + encode_request(Set(b"/honest", b"v" * 32)))
        request = encode_request(Get(b"/honest"))

        async def once() -> None:
            writer.write(request)
            await reader.readexactly(8 + 32)

        while not self.over:
            await _timed(once, self.gets)
            await asyncio.sleep(PAUSE)
        writer.close()

    async def write(self, target: Target) -> None:
        """Sets a key over HTTP over and over, on one connection."""
        reader, writer = await asyncio.open_connection(HOST, target.http)
        request = request_of("PUT /v1/kv/honest-too", b"v" * 32, FULL_TOKEN)

        async def once() -> None:
            writer.write(request)
            status = (await reader.readuntil(b"\r\n\r\n")).split()[1]
            if status not in (b"201", b"204"):
                raise ConnectionError(f"a write was answered with {status.decode()}")

        await once()
        while not self.over:
            await _timed(once, self.puts)
            await asyncio.sleep(PAUSE)
        writer.close()

    async def join(self, target: Target) -> None:
        """Joins a run and leaves it, over and over."""
        reader, writer = await asyncio.open_connection(HOST, target.tcp)
        writer.write(PREFACE + encode(Hello(VERSION, "honest", b"honest" * 3, FULL_TOKEN)))
        operations = (Join(NodeDesc("node"), RunSettings(1, 1, 0.0)), Leave("node"))
        join, leave = (encode(Propose(1, operation)) for operation in operations)

        async def answered() -> None:
            await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big"))

        async def once() -> None:
            writer.write(join)
            await answered()

        await answered()
        while not self.over:
            await _timed(once, self.joins)
            writer.write(leave)
            await answered()
            await asyncio.sleep(PAUSE)
        writer.close()

    async def stay(self, target: Target) -> None:
        """Is both members of a round, who say that they are alive and hear of nothing else."""
        settings = RunSettings(2, 2, 0.0, PATIENCE, 1)
        async with asyncio.TaskGroup() as tasks:
            for node in ("stays", "stays-too"):
                tasks.create_task(self._stay(target, node, settings))

    async def _stay(self, target: Target, node: str, settings: RunSettings) -> None:
        reader, writer = await asyncio.open_connection(HOST, target.tcp)
        writer.write(PREFACE + encode(Hello(VERSION, "honest-round", node.encode() * 2, FULL_TOKEN)))
        writer.write(encode(Propose(1, Join(NodeDesc(node), settings))))
        parser, views = FrameParser(MAX_REPLY), asyncio.Queue[NodeView]()

        async def hear() -> None:
            while data := await reader.read(1 << 16):
                for message in map(decode_server, parser.feed(data)):
                    if isinstance(message, View):
                        views.put_nowait(message.view)
            raise ConnectionError(f"the server closed the connection of the member {node}")

        async with asyncio.TaskGroup() as tasks:
            hearing = tasks.create_task(hear())
            while (joined := await views.get()).phase is not Phase.MEMBER:
                pass
            while not self.over:
                writer.write(encode(Propose(2, KeepAlive(node))))
                await asyncio.sleep(LINGER / 2)
                while not views.empty():
                    now = views.get_nowait()
                    if (now.phase, now.round, now.rank) != (joined.phase, joined.round, joined.rank):
                        raise ConnectionError(f"the member {node} lost its rank: {now}")
            hearing.cancel()
        writer.close()


async def _timed(operation: Callable[[], Awaitable[None]], taken: list[float]) -> None:
    """Does it once; raises `ConnectionError` if it fails, or takes more than a minute."""
    began = time.monotonic()
    try:
        await asyncio.wait_for(operation(), PATIENCE)
    except (OSError, EOFError) as error:  # a time-out, too
        taken.append(float("inf"))
        raise ConnectionError(f"an honest client was not served: {error!r}") from error
    taken.append(time.monotonic() - began)


def latency(taken: list[float]) -> Latency:
    """What was measured."""
    return Latency(median(taken), max(taken), len(taken)) if taken else Latency(float("inf"), float("inf"), 0)


async def suffer(target: Target, seconds: float, go: Callable[[], None], going: Callable[[], bool]) -> Honest:
    """Has honest clients work during an attack: for `seconds`, or until it ends, and a while longer."""
    honest = Honest()
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(honest.read(target))
            tasks.create_task(honest.write(target))
            tasks.create_task(honest.join(target))
            tasks.create_task(honest.stay(target))
            await asyncio.sleep(LINGER)
            honest.gets.clear()
            honest.puts.clear()
            honest.joins.clear()
            go()
            end = time.monotonic() + seconds
            while going() and time.monotonic() < end:  # noqa: ASYNC110 - another process is looked at
                await asyncio.sleep(0.1)
            await asyncio.sleep(LINGER)
            honest.over = True
    except* ConnectionError as errors:
        honest.failure = _first(errors)
    return honest


def _first(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error)


def play(names: list[str], checkout: Path, options: list[str], seconds: float) -> Outcome:
    """Plays attacks at once against one server."""
    server = Server(checkout, options)
    go = multiprocessing.get_context("spawn").Event()
    lines, together = 0, len(names) > 1
    try:
        with ExitStack() as attackers:
            playing = [
                attackers.enter_context(attacker(name, server.target, go, again=together)) for name in names
            ]
            before = server.memory("VmRSS")
            server.forget_peak()
            is_going = lambda: any(process.is_alive() for process in playing)  # noqa: E731
            honest = asyncio.run(suffer(server.target, seconds, go.set, is_going))
            grown = server.memory("VmHWM") - before
    finally:
        lines = server.stop()
    get, put, join = map(latency, (honest.gets, honest.puts, honest.joins))
    return Outcome(" ".join(names), get, put, join, max(0, grown), lines, together, honest.failure)


def table(outcomes: list[Outcome]) -> Table:
    """What came of them, for people."""
    shown = Table("attack", "get", "worst", "HTTP put", "worst", "join", "worst", "grew by", "log", "")
    for outcome in outcomes:
        latencies = (outcome.get, outcome.put, outcome.join)
        figures = [figure for each in latencies for figure in (each.median, each.worst)]
        milliseconds = [f"{1000 * figure:.1f} ms" for figure in figures]
        what = EVERYTHING[outcome.name].what if outcome.name in EVERYTHING else "all of them together"
        memory = f"{outcome.memory / MIB:.0f} MiB"
        good = outcome.failure or ("" if outcome.is_good else "over")
        shown.add_row(what, *milliseconds, memory, f"{outcome.log} lines", good)
    return shown


def hostile(
    only: Annotated[list[str] | None, typer.Option(help="Only these attacks; several times.")] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long each is played at most.")] = SECONDS,
    server: Annotated[Path, typer.Option(metavar="CHECKOUT", help="Where the server's code is.")] = CHECKOUT,
    together: Annotated[
        bool, typer.Option("--together", help="Play all of them at once, against one server.")
    ] = False,
    option: Annotated[list[str] | None, typer.Option(help="A further word for the server's command.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write all values to this file.")] = None,
) -> None:
    """Play what one hostile client may do, and measure what it costs an honest one.

    Fails if an honest get, put or join takes more than 20 ms in the median, or more than 100 ms at worst; or,
    of all attacks together, if the server takes more memory than its limits allow. Fails, too, if an honest
    client is not served, or a member loses its rank.
    """
    names = only or list(EVERY_ATTACK if together else EVERYTHING)
    for name in names:
        if name not in EVERYTHING:
            raise typer.BadParameter(f"there is no attack {name!r}; expected one of {', '.join(EVERYTHING)}")
    outcomes: list[Outcome] = []
    for group in [names] if together else [[name] for name in names]:
        print(*group, flush=True, file=sys.stderr)  # noqa: T201 - as above
        outcomes.append(play(group, server, option or [], seconds))
    Console(width=140).print(table(outcomes))
    if json is not None:
        json.write_bytes(msgspec.json.encode(outcomes))
    raise typer.Exit(0 if all(outcome.is_good for outcome in outcomes) else 1)

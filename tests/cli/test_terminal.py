"""What a server, or a member of a run, has written reaches a terminal as text and never as a command."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec
import pytest
from rich.console import Console

from arendezvous.cli.demo_story import Show
from arendezvous.cli.watch_screen import Narrator, WatchScreen
from arendezvous.law.events import NodeDeparted
from arendezvous.law.state import Cause, NodeDesc, NodeView, Phase, RunSettings
from arendezvous.law.status import ClosedStatus, DepartedStatus, NodeStatus, RunStatus
from arendezvous.wire.native.messages import (
    PREFACE,
    VERSION,
    Failed,
    FrameParser,
    GetRuns,
    Happened,
    Hello,
    Propose,
    Runs,
    RunSummary,
    ServerMessage,
    Status,
    View,
    WatchRun,
    Welcome,
    decode_client,
    encode,
)
from tests.kit.cli_kit import Result, run, running

EVIL = "x\x1b]0;owned\x07\x9b31m\r\u202egnp.\u2066\u200f"
"""A title for the window, red by a single byte, a carriage return, and two ways of writing right to left."""
SHOWN = r"x\x1b]0;owned\x07\x9b31m\r\u202egnp.\u2066\u200f"

SERVING = Welcome(VERSION, EVIL)
CLOSING = ClosedStatus(EVIL, EVIL, 1.0)
SETTINGS = RunSettings(1, 2)


def _status(name: str = "node") -> RunStatus:
    """The status of a run that is closed, with a node, and another that was dropped."""
    desc = NodeDesc("node", "10.0.0.1")
    msgspec.structs.force_setattr(desc, "name", name)
    gone = DepartedStatus("other", Cause.FAILED, EVIL, 0, 1.0)
    node = NodeStatus(desc, Phase.MEMBER, 0, 1.0, 1.0, drain_left=3.0, drain_reason=EVIL)
    return RunStatus(
        "job", SETTINGS, complete=True, world_size=1, nodes=(node,), closed=CLOSING, departed=(gone,)
    )


def _answer(message: Any) -> ServerMessage:
    if isinstance(message, GetRuns):
        return Runs(message.id, (RunSummary(EVIL, 1, 0, False, False, 0, 0, 0),))
    if isinstance(message, Propose):
        return View(message.id, NodeView("node", 1, 1, 0, Phase.GONE))
    return Status(message.id, _status())


def _refusal(message: Any) -> ServerMessage:
    return Failed(message.id, EVIL, EVIL)


def _bad_name(message: Any) -> ServerMessage:
    return Status(message.id, _status(EVIL))


@asynccontextmanager
async def hostile(answer: Any) -> AsyncIterator[str]:
    """Runs a server that gives such answers; yields its URL."""
    serving: set[asyncio.Task[Any] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.current_task())
        parser = FrameParser(1 << 16)
        with suppress(ConnectionError, EOFError):
            await reader.readexactly(len(PREFACE))
            while data := await reader.read(4096):
                for frame in parser.feed(data):
                    message = decode_client(frame)
                    writer.write(encode(SERVING if isinstance(message, Hello) else answer(message)))
                    if isinstance(message, WatchRun):
                        event = NodeDeparted("node", Phase.MEMBER, Cause.FAILED, EVIL)
                        writer.write(encode(Happened(0, 0.0, (event,))))
                await writer.drain()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        await asyncio.gather(*filter(None, serving))  # the clients have gone


def _is_plain(text: str) -> bool:
    return all(line.isprintable() for line in text.split("\n"))


COMMANDS = {
    "status": ("status", "URL", "--timeout", "0.5"),
    "status of a run": ("status", "URL", "job", "--timeout", "0.5"),
    "explain": ("explain", "URL", "job", "--timeout", "0.5"),
    "close": ("close", "URL", "job", "--timeout", "0.5"),
    "reopen": ("reopen", "URL", "job", "--timeout", "0.5"),
    "drain": ("drain", "URL", "job", "node", "--timeout", "0.5"),
    "drain of another": ("drain", "URL", "job", EVIL, "--timeout", "0.5"),
    "doctor": ("doctor", "URL", "job"),
    "json": ("status", "URL", "job", "--json", "--timeout", "0.5"),
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS.keys())
@pytest.mark.parametrize("answer", [_answer, _refusal, _bad_name])
async def test_no_command_writes_what_a_terminal_obeys(command: tuple[str, ...], answer: Any) -> None:
    async with hostile(answer) as url:
        result: Result = await run(*(url if word == "URL" else word for word in command))

    assert _is_plain(result.out), result.out
    assert _is_plain(result.err), result.err
    assert result.out or result.err


async def test_what_is_escaped_is_still_told() -> None:
    async with hostile(_answer) as url:
        assert SHOWN in (await run("status", url)).out
        explained = (await run("explain", url, "job")).out
    assert f"closed by {SHOWN}" in explained
    assert explained.count(SHOWN) >= 3


async def test_watch_writes_nothing_that_a_terminal_obeys() -> None:
    async with hostile(_answer) as url, running("watch", url, "job") as watching:
        line = await watching.line_with("failed")
        assert SHOWN in line
        assert line.isprintable()


def test_the_screen_of_watch_shows_names_and_reasons_as_text() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=False, width=300, height=40)
    with WatchScreen(console) as screen:
        happened = Happened(0, 0.0, (NodeDeparted("node", Phase.MEMBER, Cause.FAILED, EVIL),))
        screen.show([_status(EVIL), happened], Narrator())

    assert _is_plain(file.getvalue())
    assert SHOWN in file.getvalue()


def test_the_demo_shows_what_its_processes_said_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    with Show(1) as show:
        show.step(EVIL)
        show.failure(f"two\nlines {EVIL}")

    assert _is_plain(capsys.readouterr().out)


async def test_the_log_of_a_server_is_written_as_text() -> None:
    async with running("serve", "--port", "0", "--http-port", "0", "--verbose") as server:
        port = (await server.line()).rpartition(":")[2]
        reader, writer = await asyncio.open_connection("127.0.0.1", int(port))
        writer.write(b"GET /\x1b]0;owned\x07 HTTP/1.1\r\nHost: \x1b[31m\r\n\r\n")
        await reader.read()
        writer.close()
        server.process.terminate()
        result = await server.end()

    assert _is_plain(result.err), result.err

"""The demo tells its story with real processes, fails if a step is not observed, and leaves nothing."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import cast

import anyio
import anyio.abc
import pytest

from arendezvous.cli import demo_story
from arendezvous.cli.demo_node import Report
from arendezvous.cli.demo_story import Actor, DemoError
from tests.kit.cli_kit import ENV, PATIENCE, run, running, screen_until
from tests.kit.process_kit import ended

STEPS = (
    r"1/5 node-0, node-1, node-2, node-3 start; node-0 hosts the server, tcp://127\.0\.0\.1:\d+",
    r"    round 0 of 4: (node-\d rank \d(, |; )){4}[\d.]+ ms after the last one called \(pids .*\)",
    r"2/5 node-\d is killed with SIGKILL; .*",
    r'    the others are told "node-\d is lost: its connection broke .*"; \d+ ms after the kill',
    r"    round 1 of 3: (node-\d rank \d(, |; )){3}[\d.]+ ms later, \d+ ms after the kill",
    r"3/5 node-4 comes late",
    r'    the others are told "1 node waits for the next round"; [\d.]+ ms after it called',
    r"    round 2 of 4: (node-\d rank \d(, |; )){4}[\d.]+ ms after it called",
    r"4/5 node-\d gets SIGTERM, .*",
    r'    the others are told "node-\d is draining .* within 5 s: preempted: .*"; [\d.]+ ms after the signal',
    r"    round 3 of 3: (node-\d rank \d(, |; )){3}[\d.]+ ms after the signal",
    r"    node-\d is released and exits with code 0",
    r"5/5 node-4 closes the run: the work is done",
    r'    everybody is told "the run was closed by node-4: the work is done"; [\d.]+ ms after the word',
    r"    node-0, node-\d, node-4 exit with code 0, the host last",
    r"every step was observed, in [\d.]+ s",
)


async def test_the_demo_tells_the_whole_story_line_by_line_and_leaves_nothing_behind() -> None:
    result = await run("demo")
    lines = result.out.splitlines()
    unlike = [(line, step) for line, step in zip(lines, STEPS, strict=True) if not re.fullmatch(step, line)]
    assert (result.code, unlike, result.err) == (0, [], "")
    assert processes_of(lines[0]) == []


async def test_the_demo_shows_its_nodes_on_a_terminal() -> None:
    ours, theirs = pty.openpty()
    try:
        command = (sys.executable, "-m", "arendezvous", "demo")
        process = await asyncio.create_subprocess_exec(*command, stdout=theirs, env={**ENV, "TERM": "xterm"})
        os.close(theirs)
        async with ended(process):
            seen = await screen_until(ours, "every step was observed")
            async with asyncio.timeout(PATIENCE):
                assert await process.wait() == 0
    finally:
        os.close(ours)
    seen = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", seen)  # colours and cursor movements
    for state in ("starting", "member", "killed", "draining", "drained"):
        assert re.search(rf"│ node-\d │ +\d+ │ {state} ", seen), state


@pytest.mark.parametrize(("ending", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_a_demo_that_is_ended_by_a_signal_leaves_nothing_behind(
    ending: signal.Signals, code: int
) -> None:
    async with running("demo") as command:
        first = await command.line_with("1/5")
        await command.line_with("round 0")
        assert len(processes_of(first)) >= 3  # one of the four is being killed
        command.send_signal(ending)
        result = await command.end()
    assert (result.code, result.err) == (code, "")
    assert processes_of(first) == []


async def test_the_nodes_end_by_themselves_if_the_demo_is_killed() -> None:
    async with running("demo") as command:
        first = await command.line_with("1/5")
        await command.line_with("round 0")
        pids = processes_of(first)
        watched = []
        for pid in pids:
            with suppress(ProcessLookupError):  # the demo has just killed one
                watched.append(os.pidfd_open(pid))
        command.send_signal(signal.SIGKILL)
        try:
            for number in watched:
                assert await asyncio.to_thread(select.select, [number], [], [], PATIENCE) == (
                    [number],
                    [],
                    [],
                )
        finally:
            for number in watched:
                os.close(number)
    assert len(watched) >= 3  # one of the four is being killed


async def test_a_step_that_is_not_observed_in_time_fails_the_demo(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo_story, "START", 0.0)
    assert await demo_story.show_demo() == 1
    last = capsys.readouterr().out.splitlines()[-1]
    expected = "not observed within 0 s: node-0, node-1, node-2, node-3 meet in a round after round -1"
    assert last == f"failed in step 1 of 5: {expected}"


async def test_a_node_that_fails_ends_the_demo_with_its_last_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo_story, "RUN_ID", "")
    assert await demo_story.show_demo() == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert re.match(r"failed in step 1 of 5: node-\d failed with exit code 1: .*run_id is ''", last), last


async def test_a_node_whose_report_cannot_be_read_ends_the_demo(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo_story, "_PROGRAM", "print('hello', flush=True); input()")
    assert await demo_story.show_demo() == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert re.match(
        r"failed in step 1 of 5: node-\d failed with exit code -9: its report cannot be read", last
    ), last


async def test_a_signal_to_a_node_that_has_just_ended_does_not_lose_its_exit_code() -> None:
    with noticed_by_the_loop():
        process = await anyio.open_process([sys.executable, "-c", "input()"])
        die_unnoticed(process.pid)
        Actor("node-0", process).send_signal(signal.SIGTERM)
        async with process:
            assert await process.wait() == -signal.SIGKILL


def test_a_round_counts_only_if_all_members_agree_on_it() -> None:
    def member(name: str, rank: int, *, number: int = 1, world_size: int = 2, digest: str = "d") -> Actor:
        actor = Actor(name, cast(anyio.abc.Process, FakeProcess()))
        actor.reports = [
            Report("joining", 1.0 + rank),
            Report("member", 3.0 + rank, number, rank, world_size, digest),
        ]
        return actor

    agreed = demo_story.agreement([member("a", 1), member("b", 0)], 0)
    assert agreed == demo_story.Meeting(1, ("b", "a"), at=4.0, called=2.0)
    assert demo_story.agreement([member("a", 0), member("b", 1)], 1) is None
    assert demo_story.agreement([member("a", 0), member("b", 1, number=2)], 0) is None
    assert demo_story.agreement([member("a", 0), member("b", 1, world_size=3)], 0) is None
    for contradiction in (member("b", 0), member("b", 2), member("b", 1, digest="e")):
        with pytest.raises(DemoError, match="do not agree"):
            demo_story.agreement([member("a", 0), contradiction], 0)


class FakeProcess:
    pid = 1


def die_unnoticed(pid: int) -> None:
    """Kills a child and waits for its end, which the event loop had no chance to see."""
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


@contextmanager
def noticed_by_the_loop() -> Iterator[None]:
    """The end of a child is noticed by the event loop and not by a thread: the default since Python 3.12."""
    if sys.version_info >= (3, 12):
        yield
        return
    before = asyncio.get_child_watcher()
    watcher = asyncio.PidfdChildWatcher()
    watcher.attach_loop(asyncio.get_running_loop())
    asyncio.set_child_watcher(watcher)
    try:
        yield
    finally:
        asyncio.set_child_watcher(before)


def processes_of(first_line: str) -> list[int]:
    """The processes that still run with the endpoint of the demo whose first line is given."""
    endpoint = first_line.rpartition(" ")[2].encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if endpoint in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found

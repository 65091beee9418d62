"""The command line, as its users meet it: what it prints, and how it exits."""

from __future__ import annotations

import asyncio
import io
import os
import pty
import re
import resource
import signal
import subprocess
import sys

import pytest
from rich.console import Console

import arendezvous as ar
from arendezvous import connecting
from arendezvous.cli import serve
from arendezvous.cli.exits import ExitCode
from arendezvous.cli.watch_screen import Narrator, WatchScreen
from arendezvous.law.events import (
    LawEvent,
    MemberDraining,
    NodeDeparted,
    NodeJoined,
    NodePromoted,
    RoundCompleted,
    RoundOpened,
    RunClosed,
    RunReopened,
    WaitingChanged,
)
from arendezvous.law.state import Cause, NodeDesc, Phase
from arendezvous.law.status import NodeStatus, RunStatus
from arendezvous.law.words import event_text
from arendezvous.wire.native.messages import Happened
from tests.kit.cli_kit import ENV, PATIENCE, Running, a_server, nodes, run, run_here, running, screen_until
from tests.kit.process_kit import ended, send_signal

COMMANDS = ("demo", "serve", "status", "watch", "explain", "close", "reopen", "drain", "doctor",
            "resize", "hold", "release", "quarantine", "pardon")  # fmt: skip
LOOKING = (
    ("status",),
    ("status", "job"),
    ("watch", "job"),
    ("explain", "job"),
    ("close", "job"),
    ("reopen", "job"),
    ("drain", "job", "node"),
    ("resize", "job", "2:4"),
    ("hold", "job"),
    ("release", "job"),
    ("quarantine", "job", "node"),
    ("pardon", "job", "node"),
)


async def test_the_first_help_names_every_command_and_the_exit_codes() -> None:
    result = await run("--help")
    assert result.code == 0
    assert [name for name in COMMANDS if f" {name} " not in result.out] == []
    assert "Exit codes: 0 done; 1 failed; 2 wrong usage; 3 the server cannot be reached" in result.out


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_tells_its_exit_codes(command: str) -> None:
    result = run_here(command, "--help")
    assert (result.code, f"Usage: arendezvous {command}" in result.out) == (0, True)
    assert "Exit codes: 0 done" in result.out


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from arendezvous.cli import main\n"
        "sys.argv = ['arendezvous', '--help']\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([name for name in ('aiohttp', 'torch', 'anyio', 'msgspec', 'asyncio') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, env=ENV, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.stdout.splitlines()[-1] == "[]"


async def test_the_version_is_told() -> None:
    result = await run("--version")
    assert (result.code, result.out.startswith("arendezvous")) == (0, True)


async def test_no_command_is_wrong_usage() -> None:
    assert (await run()).code == ExitCode.USAGE


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
async def test_serve_says_where_and_ends_in_order_when_told(ending: signal.Signals) -> None:
    async with running("serve", "--port", "0") as server:
        first = await server.line()
        host, _, port = first.removeprefix("serving tcp://").rpartition(":")
        assert (first.startswith("serving tcp://"), host, int(port) > 0) == (True, "127.0.0.1", True)
        server.send_signal(ending)
        result = await server.end()
    assert (result.code, result.out, result.err) == (0, "", f"stopped by {ending.name}\n")


async def test_serve_refuses_an_address_that_is_not_loopback() -> None:
    result = await run("serve", "--host", "0.0.0.0", "--port", "0")
    assert (result.code, result.out) == (ExitCode.USAGE, "")
    assert "'0.0.0.0:0'" in result.err
    assert "--insecure" in result.err


async def test_serve_takes_any_address_if_told_that_it_is_insecure() -> None:
    async with running("serve", "--host", "0.0.0.0", "--port", "0", "--insecure") as server:
        url = (await server.line()).removeprefix("serving ")
        assert "0.0.0.0" not in url
        assert (await run("status", url)).out == f"{url} keeps 0 runs\n", (
            "others can use the address as it is"
        )


async def test_serve_fails_on_a_port_in_use() -> None:
    async with a_server() as (url, _):
        port = url.rpartition(":")[2]
        result = await run("serve", "--port", port)
    assert result.code == ExitCode.FAILED
    assert result.err == (
        f"error: cannot listen on 127.0.0.1:{port}: it is in use; choose another address or port 0\n"
    )


async def test_serve_raises_the_limit_on_open_files() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]

    def lower() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))

    async with running("serve", "--port", "0", preexec=lower) as server:
        await server.line()
        assert resource.prlimit(server.pid, resource.RLIMIT_NOFILE) == (hard, hard)


@pytest.mark.parametrize("scheme", ["tcp", "http"])
@pytest.mark.parametrize("command", LOOKING, ids=" ".join)
def test_a_server_that_is_not_there_has_its_own_exit_code(
    command: tuple[str, ...], scheme: str, free_port: int
) -> None:
    url = f"{scheme}://127.0.0.1:{free_port}"
    result = run_here(command[0], url, *command[1:], "--timeout", "0.2")
    assert (result.code, result.out) == (ExitCode.UNREACHABLE, "")
    assert f"error: {url} could not be reached" in result.err


@pytest.mark.parametrize("url", ["memory://here", "tpc://127.0.0.1:1", "127.0.0.1:1"])
def test_a_url_that_is_of_no_server_is_wrong_usage(url: str) -> None:
    commands = (("status", url), ("watch", url, "job"), ("close", url, "job"), ("doctor", url))
    for result in (run_here(*command) for command in commands):
        assert (result.code, result.out) == (ExitCode.USAGE, "")
        assert repr(url) in result.err


async def test_a_run_or_node_that_is_not_there_has_its_own_exit_code() -> None:
    async with a_server() as (url, _), nodes(url, "train-1", "alpha"):
        for command in ("status", "explain", "close", "reopen"):
            result = await run(command, url, "train-2")
            assert (command, result.code, result.out) == (command, ExitCode.NOT_FOUND, "")
            assert "did you mean train-1?" in result.err
        result = await run("drain", url, "train-1", "alhpa")
    assert (result.code, result.out) == (ExitCode.NOT_FOUND, "")
    assert "did you mean alpha? Known: alpha" in result.err


async def test_status_and_explain_tell_how_runs_stand() -> None:
    async with a_server() as (url, _):
        empty = await run("status", url)
        assert (empty.code, empty.out) == (0, f"{url} keeps 0 runs\n")
        async with nodes(url, "job", "alpha", "beta"):
            runs = await run("status", url)
            headings, row = (line.split() for line in runs.out.splitlines()[1:])
            shown = dict(zip(headings, row, strict=True))
            expected = {"RUN": "job", "STATE": "complete", "ROUND": "0", "NODES": "2", "WAITING": "0"}
            assert shown == {**expected, "SPARES": "0", "INCARNATION": "1"}
            data = (await run("status", url, "--json")).data
            assert [found["run_id"] for found in data["runs"]] == ["job"]
            job = await run("status", url, "job")
            assert job.out.startswith("run 'job': round 0 is complete with 2 nodes\nNODE ")
            ranks = {line.split()[0]: line.split()[1:3] for line in job.out.splitlines()[2:]}
            assert sorted(ranks) == ["alpha", "beta"]
            assert sorted(ranks.values()) == [["member", "0"], ["member", "1"]]
            data = (await run("status", url, "job", "--json")).data
            assert {node["desc"]["name"] for node in data["nodes"]} == {"alpha", "beta"}
            assert (data["complete"], data["world_size"]) == (True, 2)
            words = await run("explain", url, "job")
            assert (words.code, words.out) == (0, "run 'job': round 0 is complete with 2 nodes\n")
            assert (await run("explain", url, "job", "--json")).data["explain"] == words.out.splitlines()


async def test_close_tells_all_nodes_why_and_reopen_begins_the_next_incarnation() -> None:
    async with a_server() as (url, _):
        async with nodes(url, "job", "alpha", "beta") as members:
            refused = await run("reopen", url, "job")
            assert (refused.code, "is not closed" in refused.err) == (ExitCode.FAILED, True)
            closed = await run("close", url, "job", "--reason", "out of budget")
            assert (closed.code, closed.out) == (0, "run 'job' is closed\n")
            for member in members:
                assert (await member.report("Closed"))["text"].endswith(": out of budget")
                assert (await member.end()).code == 0
        again = await run("close", url, "job", "--reason", "another", "--json")
        assert (again.code, again.data["already"], again.data["reason"]) == (0, True, "out of budget")
        assert "closed by" in (await run("status", url, "job")).out
        reopened = await run("reopen", url, "job", "--json")
        assert (reopened.code, reopened.data) == (0, {"run_id": "job", "incarnation": 2})
        async with nodes(url, "job", "gamma"):
            assert (await run("status", url, "job", "--json")).data["incarnation"] == 2


async def test_a_run_whose_nodes_have_all_finished_has_ended_and_a_closed_one_says_how_to_go_on() -> None:
    async with a_server() as (url, _):
        async with ar.open_rendezvous(url, run_id="job", min_nodes=1) as rdzv:
            await rdzv.next_rendezvous()
            await rdzv.set_closed("converged")
            await rdzv.leave("converged", cause=ar.Cause.FINISHED)
        table, one, told = await asyncio.gather(
            run("status", url), run("status", url, "job"), run("explain", url, "job", "--json")
        )
        assert table.out.splitlines()[2].split()[:2] == ["job", "ended"]
        assert one.out.startswith("run 'job': ended; all nodes of its last round have finished")
        assert told.data["ended"] is True
        async with ar.open_rendezvous(url, run_id="job", min_nodes=1) as rdzv:
            with pytest.raises(
                ar.RendezvousClosedError, match=r"arendezvous reopen URL RUN_ID.* --run-retention"
            ):
                await rdzv.next_rendezvous()


async def test_serve_forgets_a_closed_run_when_it_is_told_to() -> None:
    async with running("serve", "--port", "0", "--run-retention", "0") as server:
        url = (await server.line()).removeprefix("serving ")
        for _ in range(2):
            async with ar.open_rendezvous(url, run_id="job", min_nodes=1) as rdzv:
                assert (await rdzv.next_rendezvous()).world_size == 1
                await rdzv.set_closed("converged")


async def test_drain_lets_the_others_meet_without_the_node() -> None:
    async with a_server() as (url, _), nodes(url, "job", "alpha", "beta") as (alpha, beta):
        result = await run("drain", url, "job", "alpha", "--deadline", "20", "--reason", "maintenance")
        assert (result.code, result.out) == (0, "alpha is draining, and will be gone within 20 s\n")
        expected = "alpha is draining and will be gone within 20 s: maintenance"
        assert (await beta.report("NodeDraining"))["text"] == expected
        assert (await beta.report("member"))["world_size"] == 1
        assert (await alpha.report("Evicted"))["text"] == "this node was evicted (drained): maintenance"
        assert (await alpha.end()).code == 0


async def test_watch_says_what_happens_as_it_happens_and_ends_well_when_told() -> None:
    async with a_server() as (url, _), running("watch", url, "job") as watch:
        assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3}  run 'job': nobody has joined it yet", await watch.line())
        async with nodes(url, "job", "alpha"):
            await watch.line_with("alpha joins the round")
            await watch.line_with("round 0 is complete with 1 node")
        await watch.line_with("alpha is lost: its connection broke")
        watch.send_signal(signal.SIGINT)
        assert (await watch.end()).code == 0


async def test_watch_writes_a_status_and_then_events_as_json_lines() -> None:
    async with (
        a_server() as (url, _),
        nodes(url, "job", "alpha"),
        running("watch", url, "job", "--json") as watch,
    ):
        assert '"complete": true' in await watch.line_with('{"status": ')
        async with nodes(url, "other", "beta"):
            await run("close", url, "job", "--reason", "enough")
        event = await watch.report("RunClosed")
        assert (event["reason"], event["at"] > 0) == ("enough", True)


@pytest.mark.parametrize("json", [True, False])
async def test_watch_goes_on_when_its_server_is_started_again(json: bool, free_port: int) -> None:
    serving = ("serve", "--port", str(free_port))
    url = f"tcp://127.0.0.1:{free_port}"
    async with running(*serving) as server:
        await server.line()
        watch = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "arendezvous", "watch", url, "job", *["--json"] * json,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=ENV,
        )  # fmt: skip
        seen = Running(watch)
        await seen.line()
        server.send_signal(signal.SIGKILL)
    async with ended(watch):
        await seen.line_with('"Outage"' if json else f"the connection to {url} is lost")
        async with running(*serving) as server:
            await server.line()
            await seen.line_with('"status"' if json else "nobody has joined it yet")
            async with nodes(url, "job", "alpha"):
                await seen.line_with('"NodeJoined"' if json else "alpha joins the round")
            send_signal(watch, signal.SIGINT)
            assert (await seen.end()).code == 0


async def test_watch_shows_a_table_on_a_terminal() -> None:
    ours, theirs = pty.openpty()
    try:
        async with a_server() as (url, _), nodes(url, "job", "alpha"):
            args = (sys.executable, "-m", "arendezvous", "watch", url, "job")
            process = await asyncio.create_subprocess_exec(*args, stdout=theirs, env={**ENV, "TERM": "xterm"})
            os.close(theirs)
            async with ended(process):
                seen = await screen_until(ours, "alpha │ member")
                async with nodes(url, "job2", "beta"):
                    await run("close", url, "job", "--reason", "enough")
                seen += await screen_until(ours, "the run was closed by")
                send_signal(process, signal.SIGINT)
                async with asyncio.timeout(PATIENCE):
                    assert await process.wait() == 0
    finally:
        os.close(ours)
    assert "run 'job': round 0 is complete with 1 node" in seen


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (NodeJoined("a", Phase.GATHERING), "a joins the round"),
        (NodeJoined("a", Phase.MEMBER), "a is back, with its rank"),
        (NodePromoted("a", Phase.WAITING), "a waits for the next round"),
        (NodePromoted("a", Phase.REDUNDANT), "a is a spare"),
        (NodeDeparted("a", Phase.MEMBER, Cause.FAILED, "disk full"), "a failed: disk full"),
        (MemberDraining("a", 5.0, ""), "a is draining and will be gone within 5 s"),
        (WaitingChanged(2), "the members are told: 2 nodes wait for the next round"),
        (RoundOpened(3), "round 3 gathers"),
        (RoundCompleted(3, 4), "round 3 is complete with 4 nodes"),
        (RunClosed("", "enough"), "the run was closed: enough"),
        (RunReopened(2, "me"), "the run is open again by me: incarnation 2"),
    ],
)
def test_every_event_has_its_words(event: LawEvent, expected: str) -> None:
    assert event_text(event) == expected


def test_a_watcher_that_missed_events_is_told_how_many() -> None:
    assert Narrator().tell([Happened(0, 1.0, (RoundOpened(1),), missed=7)]) == [
        "round 1 gathers",
        "7 events missed, as they came too fast",
    ]


def test_what_happens_to_many_nodes_together_is_one_line_and_hides_nothing() -> None:
    narrator, names = Narrator(), [f"n{number}" for number in range(12)]
    came = [NodeJoined(name, Phase.GATHERING) for name in names]
    listed = "n0, n1, n2, n3, n4, n5, n6, n7 and 4 more"
    assert narrator.tell([Happened(0, 1.0, (event,)) for event in came]) == [
        f"12 nodes join the round ({listed})"
    ]
    lost = NodeDeparted("n11", Phase.MEMBER, Cause.NO_HEARTBEAT, "no heartbeat for 15.0 s")
    again = [NodeJoined(name, Phase.WAITING) for name in names[:10]]
    waiting = [WaitingChanged(number) for number in range(1, 11)]
    newcomer = NodeJoined("late", Phase.WAITING)
    assert narrator.tell([Happened(0, 2.0, (*again[:5], lost, *waiting, *again[5:], newcomer))]) == [
        "10 nodes join again (n0, n1, n2, n3, n4, n5, n6, n7 and 2 more)",
        "n11 is lost: no heartbeat for 15.0 s",
        "the members are told: 10 nodes wait for the next round",
        "late waits for the next round",
    ]
    gone = [NodeDeparted(name, Phase.MEMBER, Cause.DRAINED, "power") for name in ("n1", "n2")]
    assert narrator.tell([Happened(0, 3.0, tuple(gone))]) == ["2 nodes were drained (n1, n2): power"]


def test_events_are_seen_on_a_small_screen_beside_five_hundred_nodes() -> None:
    troubled = NodeStatus(NodeDesc("n300"), Phase.MEMBER, 300, 1.0, 1.0, grace_left=0.5)
    nodes = [NodeStatus(NodeDesc(f"n{rank}"), Phase.MEMBER, rank, 1.0, 1.0) for rank in range(510)]
    status = RunStatus("job", complete=True, world_size=510, nodes=(*nodes[:300], troubled, *nodes[301:]))
    events = Happened(0, 1.0, tuple(NodeJoined(node.desc.name, Phase.WAITING) for node in nodes))
    text = io.StringIO()
    screen = WatchScreen(Console(file=text, force_terminal=True, width=100, height=24))
    with screen:
        assert screen.show([status, events], Narrator())
    shown = text.getvalue()
    assert "510 nodes wait for the next round (n0, n1" in shown
    assert "connection lost, expires in 0.5 s" in shown


def test_a_user_without_a_name_can_steer_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 1000")

    monkeypatch.setattr("getpass.getuser", nameless)
    assert connecting.operator().startswith("somebody@")


def test_a_limit_on_open_files_that_cannot_be_raised_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("not allowed to raise maximum limit")

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with monkeypatch.context() as patched:
        patched.setattr(resource, "getrlimit", lambda _: (256, 1024))
        patched.setattr(resource, "setrlimit", refuse)
        serve.raise_open_files()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before


async def test_what_operators_decide_is_done_said_and_taken_back() -> None:
    async with a_server() as (url, _):
        assert (await run("hold", url, "job")).code == ExitCode.NOT_FOUND
        async with ar.open_rendezvous(url, run_id="job", node="n1", min_nodes=1) as node:
            await node.next_rendezvous()
            held = await run("hold", url, "job", "--seconds", "60", "--reason", "storage", "--json")
            assert (held.code, held.data["held"]["reason"]) == (0, "storage")
            assert (await run("resize", url, "job", "2:4")).out == "run 'job' has rounds of 2:4 nodes now\n"
            kept = await run("quarantine", url, "job", "rack7", "--label", "--reason", "heat")
            assert kept.out == "label rack7 is quarantined until pardoned\n"
            said = (await run("explain", url, "job")).out
            for part in ("was resized by", "to 2 to 4 nodes", "was held by", ": storage", "label rack7 was"):
                assert part in said
            assert (await run("release", url, "job")).out == "run 'job' is not held\n"
            assert (await run("pardon", url, "job", "rack7", "--label")).out == "label rack7 may come in\n"
            agreed = await run("resize", url, "job", "agreed", "--json")
            assert agreed.data == {"run_id": "job", "resized": [], "held": None, "quarantined": []}
        bad = await run("resize", url, "job", "many")
        assert (bad.code, "a number, MIN:MAX, or agreed" in bad.err) == (ExitCode.USAGE, True)

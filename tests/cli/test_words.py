"""The words of a command: a URL from the environment, times with units, errors in one line, completion."""

from __future__ import annotations

import datetime
import json

import pytest
import typer

import arendezvous as ar
from arendezvous.cli.command import local_url, time_of
from tests.kit.cli_kit import run, run_here


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5", 5), ("0.5", 0.5), ("90s", 90), ("10min", 600), ("1h30m", 5400), ("1.5h", 5400), ("2d", 172_800)],
)
def test_a_time_is_seconds_or_has_units(text: str, seconds: float) -> None:
    assert time_of(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "10q", "1.2.3", "-5", "1m1h", "nan", "inf"])
def test_what_is_no_time_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="such as 10m"):
        time_of(text)


async def test_the_url_may_come_from_the_environment() -> None:
    async with ar.serve("127.0.0.1:0") as server:
        known = {"ARENDEZVOUS_URL": server.tcp_url}
        assert "keeps 0 runs" in (await run("status", env=known)).out
        assert "there is no run 'job'" in (await run("explain", "job", env=known)).err
        assert (
            "there is no run 'job'"
            in (await run("drain", "job", "node3", "--deadline", "10m", env=known)).err
        )
        elsewhere = await run("status", "tcp://127.0.0.1:1", "--timeout", "0.1s", env=known)
        assert "tcp://127.0.0.1:1" in elsewhere.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["explain"], "missing argument 'URL'"),
        (["explane"], "did you mean 'explain'"),
        (["close", "tcp://a", "r", "--reasn", "x"], "--reason"),
        (["drain", "tcp://a", "r", "n", "--deadline", "soon"], "'soon' is no time: give seconds, or"),
    ],
)
def test_wrong_words_are_one_line_that_says_where_help_is(words: list[str], said: str) -> None:
    ended = run_here(*words)
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert ended.err.startswith("error: ")
    assert said in ended.err
    assert ended.err.endswith("--help\n")


async def test_json_says_when_it_was_by_the_wall_clock() -> None:
    async with ar.serve("127.0.0.1:0") as server:
        data = json.loads((await run("status", server.tcp_url, "--json")).out)
    then = datetime.datetime.fromisoformat(data["time"])
    assert abs((datetime.datetime.now(datetime.UTC) - then).total_seconds()) < 60


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
async def test_there_is_completion_for_every_shell(shell: str) -> None:
    assert "_ARENDEZVOUS_COMPLETE" in (await run("--show-completion", shell)).out


async def test_a_server_on_this_machine_is_found() -> None:
    assert local_url() is None or str(local_url()).startswith("tcp://127.0.0.1:")

"""Processes that measure are asked, fail and end in good order."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack

import pytest

from arendezvous.cli import serve
from benchmarks.contenders import server, start
from benchmarks.process import Process, SkippedError
from benchmarks.processes import child, ports
from benchmarks.processes.ports import held_port, until_listening
from tests.kit.benchmarks_kit import TINY


def test_a_process_that_takes_too_long_is_ended_with_all_that_it_has_started() -> None:
    with ExitStack() as resources:
        peer = start("memory", resources, TINY)
        with pytest.raises(SkippedError, match=r"not done in 0\.01 s"):
            peer.ask(0.01, do="idle", nodes=1, seconds=60, interval=60, server=os.getpid())
        with pytest.raises(SkippedError, match=r"not done in 0\.01 s"):
            peer.ask(30, do="meet", nodes=2)
    with pytest.raises(ProcessLookupError):
        os.kill(peer.pid, 0)


def test_what_a_process_fails_with_is_told_and_it_goes_on() -> None:
    with Process("members", "memory://x", '{"rank_policy": "best"}', "asyncio") as broken:
        with pytest.raises(SkippedError, match="rank_policy is 'best'"):
            broken.ask(30, do="meet", nodes=2)
        with pytest.raises(SkippedError, match="KeyError"):
            broken.ask(30, nodes=2)


def test_a_process_that_ends_is_told_of() -> None:
    with ExitStack() as resources:
        serving = server(resources, TINY, "asyncio")
        os.kill(serving.pid, 9)
        with pytest.raises(SkippedError, match="process"):
            serving.ask(30)


def test_a_port_that_is_held_is_for_the_server_that_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "START_LIMIT", 0.01)
    with held_port() as port:
        with socket.socket() as another, pytest.raises(OSError, match="in use"):
            another.bind((ports.HOST, port))
        with pytest.raises(TimeoutError, match=f"nobody listens on 127.0.0.1:{port} after 0.01 s"):
            until_listening(port)
        monkeypatch.undo()
        with socket.create_server((ports.HOST, port)):
            until_listening(port)


def test_the_collector_is_tuned_in_what_is_measured_as_in_the_command() -> None:
    assert child.THRESHOLDS == serve.THRESHOLDS

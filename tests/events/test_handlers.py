"""Events reach the handlers of their destination, and no handler stands in their way."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from arendezvous import events
from arendezvous.errors import RendezvousSettingsError
from arendezvous.events.recorder import Destinations, JsonLinesHandler
from tests.kit.events_kit import Broken, Kept, event, fresh, record_rdzv

__all__ = ["fresh"]  # a fixture for every test here, which pytest finds by being in this module


def test_everything_is_silent_by_default(capfd: pytest.CaptureFixture[str]) -> None:
    events.record(event())
    record_rdzv()

    assert capfd.readouterr() == ("", "")
    for name in ("null", "dynamic_rendezvous"):
        assert isinstance(events.get_logging_handler(name), logging.NullHandler)
    assert isinstance(events.get_logging_handler(), logging.NullHandler)


def test_the_console_is_standard_error_as_it_is_now(capsys: pytest.CaptureFixture[str]) -> None:
    replaced = io.StringIO()
    events.record(event("one"), "console")
    with contextlib.redirect_stderr(replaced):
        events.record(event("two"), "console")

    assert capsys.readouterr() == ("", event("one").serialize() + "\n")
    assert replaced.getvalue() == event("two").serialize() + "\n"


def test_a_registered_handler_gets_the_json_of_rendezvous_events() -> None:
    handler = Kept()
    silent = events.get_logging_handler("dynamic_rendezvous")
    assert events.register_logging_handler("dynamic_rendezvous", handler) is silent

    record_rdzv()
    events.record(event("not for it"))

    assert handler.lines == [events.history()[0].event.serialize()]
    assert json.loads(handler.lines[0])["message"] == "joined"
    assert events.get_logging_handler("dynamic_rendezvous") is handler


def test_a_new_destination_can_be_registered_and_replaced() -> None:
    first, second = Kept(), Kept()

    assert events.register_logging_handler("mine", first) is None
    events.record(event("one"), "mine")
    assert events.register_logging_handler("mine", second) is first
    events.record(event("two"), destination="mine")

    assert first.lines == [event("one").serialize()]
    assert second.lines == [event("two").serialize()]


def test_an_unknown_destination_is_refused_and_nothing_is_recorded() -> None:
    with pytest.raises(
        RendezvousSettingsError, match=r"'cosnole', but must be one of console, dynamic_r.*, null"
    ):
        events.record(event(), "cosnole")
    with pytest.raises(RendezvousSettingsError, match="destination of events is 'nowhere'"):
        events.get_logging_handler("nowhere")

    assert events.history() == []


def test_a_handler_that_is_none_is_refused() -> None:
    not_a_handler: Any = print

    with pytest.raises(
        RendezvousSettingsError, match=r"destination 'mine' is .*, but must be a logging\.Handler"
    ):
        events.register_logging_handler("mine", not_a_handler)
    with pytest.raises(RendezvousSettingsError, match="name of an event destination is ''"):
        events.register_logging_handler("", Kept())


def test_the_loggers_have_torchs_names_and_their_own_handlers_and_filters_count() -> None:
    handler, strict = Kept(), Kept(logging.WARNING)
    logger = logging.getLogger("torchelastic-events-dynamic_rendezvous")
    logger.addHandler(handler)
    logger.addHandler(strict)
    events.set_history_size(0)

    record_rdzv("one")
    logger.addFilter(lambda record: "two" not in record.getMessage())
    record_rdzv("two")
    record_rdzv("three")
    logger.disabled = True
    record_rdzv("four")

    assert [json.loads(line)["message"] for line in handler.lines] == ["one", "three"]
    assert strict.lines == []


def test_events_do_not_reach_the_root_logger_unless_asked_to(caplog: pytest.LogCaptureFixture) -> None:
    record_rdzv("one")
    assert caplog.messages == []

    logging.getLogger("torchelastic-events-dynamic_rendezvous").propagate = True
    record_rdzv("two")
    assert [json.loads(line)["message"] for line in caplog.messages] == ["two"]


def test_an_event_comes_out_once_when_a_handler_is_there_twice(capsys: pytest.CaptureFixture[str]) -> None:
    handler = Kept()
    events.register_logging_handler("mine", handler)
    logging.getLogger("torchelastic-events-mine").addHandler(handler)
    logging.getLogger("torchelastic-events-console").addHandler(logging.StreamHandler())

    events.record(event(), "mine")
    events.record(event(), "console")

    assert handler.lines == [event().serialize()]
    assert capsys.readouterr().err == event().serialize() + "\n"


@pytest.mark.parametrize(
    ("level", "heard"), [("WARNING", False), ("debug", True), ("nonsense", True), ("", True)]
)
def test_loglevel_above_info_silences_destinations(level: str, heard: bool) -> None:
    destinations = Destinations({"LOGLEVEL": level})
    destinations.register("mine", Kept())

    assert destinations.heard("mine") is heard


# A handler that raises


def test_a_handler_that_raises_is_reported_once_and_disturbs_nobody(caplog: pytest.LogCaptureFixture) -> None:
    after = Kept()
    events.register_logging_handler("dynamic_rendezvous", Broken())
    logging.getLogger("torchelastic-events-dynamic_rendezvous").addHandler(after)

    record_rdzv("one")
    record_rdzv("two")

    assert [json.loads(line)["message"] for line in after.lines] == ["one", "two"]
    assert len(events.history()) == 2
    assert len(caplog.records) == 1
    assert "RuntimeError: the collector is down" in caplog.text


def test_a_report_that_cannot_be_made_is_no_error_either() -> None:
    reports = logging.getLogger("arendezvous.events")
    broken = Broken()
    reports.addHandler(broken)
    try:
        events.register_logging_handler("dynamic_rendezvous", Broken())
        record_rdzv()
    finally:
        reports.removeHandler(broken)

    assert len(events.history()) == 1


def test_an_event_that_has_no_json_is_reported_and_kept(caplog: pytest.LogCaptureFixture) -> None:
    handler = Kept()
    events.register_logging_handler("mine", handler)

    events.record(event(thing=object()), "mine")

    assert handler.lines == []
    assert len(events.history()) == 1
    assert "could not be prepared: TypeError" in caplog.text


# ARENDEZVOUS_EVENTS


@pytest.mark.parametrize("value", ["cosnole", "Console", "jsonl", "jsonl:", "file:/tmp/x", " ", "console:x"])
def test_a_bad_value_of_the_variable_is_named_with_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("ARENDEZVOUS_EVENTS", value)
    expected = f"ARENDEZVOUS_EVENTS is {value!r}, but must be console, null or jsonl:PATH"

    for _ in range(2):
        with pytest.raises(RendezvousSettingsError) as caught:
            record_rdzv()
        assert str(caught.value) == expected
    with pytest.raises(RendezvousSettingsError, match="ARENDEZVOUS_EVENTS"):
        events.get_logging_handler()

    assert events.history() == []


def test_a_file_that_cannot_be_opened_is_a_bad_value_and_says_why(tmp_path: Path) -> None:
    value = f"jsonl:{tmp_path}/absent/events.jsonl"

    with pytest.raises(RendezvousSettingsError, match="No such file or directory") as caught:
        Destinations({"ARENDEZVOUS_EVENTS": value})
    with pytest.raises(RendezvousSettingsError, match=r"null (byte|character)"):
        Destinations({"ARENDEZVOUS_EVENTS": "jsonl:a\0b"})

    assert caught.value.name == "ARENDEZVOUS_EVENTS"


def test_the_file_is_for_its_owner_alone_and_no_link_is_followed(tmp_path: Path) -> None:
    path, other = tmp_path / "events.jsonl", tmp_path / "other"
    other.write_text("")
    Destinations({"ARENDEZVOUS_EVENTS": f"jsonl:{path}"}).handler("null").close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600

    for target in (other, tmp_path / "absent"):
        link = tmp_path / f"link-to-{target.name}"
        link.symlink_to(target)
        with pytest.raises(RendezvousSettingsError, match="symbolic link, which is not followed"):
            Destinations({"ARENDEZVOUS_EVENTS": f"jsonl:{link}"})
    assert not (tmp_path / "absent").exists()


def test_a_pipe_that_nobody_reads_is_a_bad_value_and_not_a_standstill(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(RendezvousSettingsError, match="No such device or address"):
        Destinations({"ARENDEZVOUS_EVENTS": f"jsonl:{tmp_path}/pipe"})


@pytest.mark.parametrize("value", ["", "null"])
def test_null_and_nothing_are_silent(value: str) -> None:
    destinations = Destinations({"ARENDEZVOUS_EVENTS": value})

    assert not destinations.heard("null")
    assert not destinations.heard("dynamic_rendezvous")


def test_console_shows_rendezvous_events_and_those_without_a_destination(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ARENDEZVOUS_EVENTS", "console")

    record_rdzv()
    events.record(event())

    assert capsys.readouterr().err.splitlines() == [one.event.serialize() for one in events.history()]


def test_a_registered_handler_comes_before_the_variable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ARENDEZVOUS_EVENTS", "console")
    handler = Kept()

    events.register_logging_handler("dynamic_rendezvous", handler)
    record_rdzv()

    assert len(handler.lines) == 1
    assert capsys.readouterr().err == ""


def test_jsonl_appends_one_line_an_event(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text("before\n")
    monkeypatch.setenv("ARENDEZVOUS_EVENTS", f"jsonl:{path}")

    record_rdzv("two\nlines")
    events.record(event())
    events.get_logging_handler().close()
    record_rdzv("after the end")

    assert path.read_text().splitlines() == ["before", *(one.event.serialize() for one in events.history())]
    events.get_logging_handler().close()


def test_jsonl_may_be_given_a_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    handler = Destinations({"ARENDEZVOUS_EVENTS": "jsonl:~/events.jsonl"}).handler("null")
    handler.close()

    assert (tmp_path / "events.jsonl").exists()


def test_a_short_write_is_completed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    handler = JsonLinesHandler(str(tmp_path / "events.jsonl"))
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, bytes(data)[:3]))
    handler.emit(logging.makeLogRecord({"msg": "0123456789"}))
    monkeypatch.undo()
    handler.close()

    assert (tmp_path / "events.jsonl").read_text() == "0123456789\n"


WRITER = """
import sys
from arendezvous.events import Event, EventSource, record
writer, count = int(sys.argv[1]), int(sys.argv[2])
record(Event("ready", EventSource.AGENT, 0, {"writer": writer, "number": -1}))
print("ready", flush=True)
sys.stdin.readline()
for number in range(count):
    record(Event("x" * (number % 500), EventSource.WORKER, 0, {"writer": writer, "number": number}))
"""


def test_processes_that_share_a_file_lose_and_tear_no_line(tmp_path: Path) -> None:
    path, writers, count = tmp_path / "events.jsonl", 4, 1000
    environment = {**os.environ, "ARENDEZVOUS_EVENTS": f"jsonl:{path}"}
    with contextlib.ExitStack() as stack:
        processes = []
        for writer in range(writers):
            command = [sys.executable, "-c", WRITER, str(writer), str(count)]
            process = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            processes.append(stack.enter_context(process))
        assert [process.stdout.readline() for process in processes if process.stdout] == ["ready\n"] * writers
        for process in processes:
            assert process.stdin
            process.stdin.write("go\n")
            process.stdin.flush()
        assert [process.wait(120) for process in processes] == [0] * writers

    read = [json.loads(line)["metadata"] for line in path.read_text().splitlines()]
    expected = {(writer, number) for writer in range(writers) for number in range(-1, count)}

    assert len(read) == len(expected)
    assert {(one["writer"], one["number"]) for one in read} == expected

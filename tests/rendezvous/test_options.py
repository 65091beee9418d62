"""Options are spelled once: one line makes a keyword, its check, its text form and its help."""

from __future__ import annotations

import inspect
from dataclasses import replace
from datetime import timedelta
from typing import Annotated, Any, TypedDict

import msgspec
import pytest

import arendezvous as ar
from arendezvous import schemes, sync
from arendezvous.law.state import RunSettings
from arendezvous.rendezvous import settings as settings_module
from arendezvous.rendezvous.option_groups import CommonOptions, RendezvousOptions, RunOptions, TimeOptions
from arendezvous.rendezvous.options import Option, settings_of

ALL = settings_of(RendezvousOptions)
TOKEN = "0123456789abcdef"


def opened(url: str = "memory://", **options: Any) -> ar.RendezvousSettings:
    """The settings of a handler that is opened with `options`."""
    return ar.open_rendezvous(url, run_id="job", **options).settings


def read(backend: str = "memory", **config: Any) -> ar.RendezvousSettings:
    """The settings of a handler that torchrun would make of ``--rdzv-conf``."""
    return ar.get_rendezvous_handler(ar.RendezvousParameters(backend, "h", "job", 2, 4, **config)).settings


@pytest.mark.parametrize("function", [ar.open_rendezvous, sync.open_rendezvous])
def test_every_option_is_a_keyword_with_its_type_and_default_and_is_in_the_help(function: Any) -> None:
    shown = inspect.signature(function).parameters
    assert list(shown) == ["endpoint", "run_id", *ALL]
    assert shown["join_timeout"].default == 600.0
    assert shown["join_timeout"].annotation == float | timedelta | None
    assert "sticky" in str(shown["rank_policy"].annotation)
    help_ = inspect.getdoc(function) or ""
    assert [name for name in ALL if f"    {name}: " not in help_] == []


def test_every_setting_that_nodes_agree_on_is_an_option_and_has_the_law_s_default() -> None:
    agreed = {*settings_of(RunOptions), "min_nodes", "max_nodes", "last_call", "rules"}
    assert agreed == set(RunSettings.__struct_fields__)
    assert opened(min_nodes=1).run == RunSettings(1, 1)
    assert {name: option.default for name, option in settings_of(RunOptions).items()} == {
        name: getattr(RunSettings(1, 1), name) for name in settings_of(RunOptions)
    }


def test_a_setting_that_is_added_to_the_law_needs_one_line_to_be_an_option_everywhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = Annotated[int | None, Option("A world is a multiple of so many.", default=1, also=("tide",))]
    group: Any = TypedDict("group", {**RunOptions.__annotations__, "tide_turns": line}, total=False)  # type: ignore[misc]  # made of two
    law: Any = msgspec.defstruct("RunSettings", [("tide_turns", int, 1)], bases=(RunSettings,), frozen=True)
    monkeypatch.setattr(settings_module, "RunOptions", group)
    monkeypatch.setattr(settings_module, "RunSettings", law)
    monkeypatch.setitem(
        schemes._TABLE, "memory", replace(schemes._TABLE["memory"], options=(group, TimeOptions))
    )
    for settings in (opened(nnodes=4, tide_turns=2), read(tide_turns="2")):
        assert (settings.run.tide_turns, settings.run.rank_policy) == (2, "sticky")  # type: ignore[attr-defined]  # as above
    assert opened(nnodes=4).run.tide_turns == 1  # type: ignore[attr-defined]  # as above
    with pytest.raises(TypeError, match="tide_turns is '2', but must be a whole number"):
        opened(nnodes=4, tide_turns="2")
    with pytest.raises(ar.RendezvousSettingsError, match="left out for tcp://: it is an option of memory://"):
        opened("tcp://h", nnodes=4, tide_turns=2)
    with pytest.raises(ar.RendezvousSettingsError, match="did you mean tide_turns"):
        opened(nnodes=4, tide=2)


def test_the_time_outs_go_by_torchs_names_in_a_program_and_among_torchs_parameters() -> None:
    names = ("join", "last_call", "close", "heartbeat")
    seconds: dict[str, Any] = {f"{name}_timeout": number for number, name in enumerate(names, 1)}
    times: dict[str, Any] = {name: timedelta(seconds=number) for name, number in seconds.items()}
    texts = {name: str(number) for name, number in seconds.items()}
    for settings in (opened(min_nodes=1, **seconds), opened(min_nodes=1, **times), read(**texts)):
        assert [getattr(settings.timeout, name) for name in names] == [1.0, 2.0, 3.0, 4.0]
        assert settings.run.last_call == 2.0


def test_all_time_outs_in_one_and_one_by_one_contradict_each_other() -> None:
    assert opened(min_nodes=1, timeout=ar.RendezvousTimeout(join=7)).timeout.join == 7.0
    with pytest.raises(ar.RendezvousSettingsError, match=r"beside timeout, or given as .*\(last_call=3\)"):
        opened(min_nodes=1, timeout=ar.RendezvousTimeout(), last_call_timeout=3)


@pytest.mark.parametrize(
    ("options", "least", "most"),
    [
        ({"nnodes": "1:4"}, 1, 4), ({"nnodes": "3"}, 3, 3), ({"nnodes": 3}, 3, 3),
        ({"min_nodes": 2}, 2, 2), ({"min_nodes": 2, "max_nodes": 5, "nnodes": None}, 2, 5),
    ],
)  # fmt: skip
def test_the_number_of_nodes_is_said_as_torchrun_has_it_or_by_two_numbers(
    options: dict[str, Any], least: int, most: int
) -> None:
    settings = opened(**options)
    assert (settings.min_nodes, settings.max_nodes) == (least, most)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "min_nodes is None, but must be a whole number, or nnodes such as '1:4' in its place"),
        ({"nnodes": "1:4", "min_nodes": 1}, "nnodes is '1:4', but must be left out beside min_nodes"),
        ({"nnodes": "1:4", "max_nodes": 4}, "nnodes is '1:4', but must be left out beside min_nodes"),
        ({"nnodes": "a few"}, "nnodes is 'a few', but must be a number of nodes, or MIN:MAX"),
        ({"nnodes": "1:2:3"}, "nnodes is '1:2:3', but must be a number of nodes, or MIN:MAX"),
        ({"nnodes": "4:1"}, "max_nodes is 1, but must be from min_nodes (4)"),
    ],
)
def test_a_number_of_nodes_that_cannot_be_meant_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ar.RendezvousSettingsError) as caught:
        opened(**options)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("last_call", "last_call_timeout"), ("join", "join_timeout"), ("heartbeat", "heartbeat_timeout"),
        ("name", "node"), ("node_rank", "rank"), ("address", "local_addr"), ("grace", "disconnect_grace"),
        ("world_size", "nnodes"), ("host", "is_host"), ("ca", "tls_ca"), ("rdzv_id", "run_id"),
        ("keep_alive_max_attempts", "keep_alive_max_attempt"), ("lable", "label"),
    ],
)  # fmt: skip
def test_a_name_that_does_not_exist_is_refused_with_the_one_that_was_meant(written: str, meant: str) -> None:
    with pytest.raises(TypeError, match=f"^{written} is no setting of .*; did you mean {meant}\\?") as caught:
        opened("tcp://h", min_nodes=1, **{written: 1})
    assert isinstance(caught.value, ar.RendezvousSettingsError)
    if meant not in ("nnodes", "local_addr", "run_id"):
        said = rf"no option '{written}' \(did you mean '{meant}'\?\)"
        with pytest.raises(ar.RendezvousSettingsError, match=said):
            read("tcp", **{written: "1"})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"run_id": 5}, "run_id is 5, but must be text: write run_id='5'"),
        ({"node": 5}, "node is 5, but must be text: write node='5'"),
        ({"timeout": 60}, "a RendezvousTimeout; for the time to wait for a round write join_timeout=60"),
        ({"join_timeout": "60"}, "join_timeout is '60', but must be a number of seconds or a timedelta"),
        ({"min_nodes": "2"}, "min_nodes is '2', but must be a whole number"),
        ({"is_host": "yes"}, "is_host is 'yes', but must be True or False"),
        ({"is_host": 1}, "is_host is 1, but must be True or False"),
        ({"nnodes": True}, "nnodes is True, but must be text or a whole number"),
        ({"rank_policy": 1}, "rank_policy is 1, but must be one of sticky, natural, given, topology"),
        ({"endpoint": 5}, "endpoint is 5, but must be a URL such as tcp://host:29400"),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_a_type_error_that_says_what_to_write(
    options: dict[str, Any], said: str
) -> None:
    given = {"endpoint": "tcp://h", "run_id": "job", "min_nodes": 1, **options}
    with pytest.raises(TypeError) as caught:
        ar.open_rendezvous(**given)
    assert said in str(caught.value)
    assert isinstance(caught.value, ar.RendezvousTypeError)
    assert caught.value.name in options


def test_none_is_the_same_as_leaving_an_option_out() -> None:
    nothing: dict[str, Any] = dict.fromkeys(ALL)
    for url in ("memory://", "tcp://h", "etcd://h", "c10d://h"):
        assert repr(opened(url, **{**nothing, "min_nodes": 1})) == repr(opened(url, min_nodes=1))


def test_a_rank_is_asked_for_only_where_ranks_are_given() -> None:
    said = r"rank is 0, but must be left out, or come with rank_policy='given'"
    with pytest.raises(ar.RendezvousSettingsError, match=said):
        opened(min_nodes=1, rank=0)
    with pytest.raises(ar.RendezvousSettingsError, match=said):
        read(rank="0")
    assert opened(min_nodes=1, rank=0, rank_policy="given").run.rank_policy == "given"
    assert opened("static://h", min_nodes=1, rank=0).run.rank_policy == "given"


@pytest.mark.parametrize(
    ("url", "option", "value", "takers"),
    [
        ("memory://", "token", TOKEN, "tcp://, http://, https:// and etcd://"),
        ("etcd://h", "tls_ca", "ca.pem", "tcp://, http:// and https://"),
        ("http://h", "is_host", True, "tcp://, c10d:// and etcd://"),
        ("tcp://h", "user", "ann", "etcd:// and etcd-v2://"),
        ("static://h", "keep_alive_interval", 5, "tcp://, http://, https://, c10d://, etcd://, etcd-v2:// and memory://"),
    ],
)  # fmt: skip
def test_an_option_that_the_scheme_does_not_take_is_refused_with_those_that_do(
    url: str, option: str, value: object, takers: str
) -> None:
    scheme = url.partition(":")[0]
    with pytest.raises(ar.RendezvousSettingsError) as caught:
        opened(url, min_nodes=1, **{option: value})
    assert str(caught.value) == f"{option} must be left out for {scheme}://: it is an option of {takers}"
    assert caught.value.name == option
    with pytest.raises(ar.RendezvousSettingsError) as caught:
        read(scheme, **{option: str(value)})
    assert str(caught.value) == f"{option} must be left out for {scheme}://: it is an option of {takers}"


@pytest.mark.parametrize("nothing", [{"token": ""}, {"tls": False}, {"is_host": False}, {"tls_ca": ""}])
def test_an_option_that_asks_for_nothing_is_taken_by_every_scheme(nothing: dict[str, Any]) -> None:
    for url in ("memory://", "etcd://h", "c10d://h", "static://h", "http://h"):
        rank = {"rank": 0} if url.startswith("static") else {}
        assert opened(url, min_nodes=1, **nothing, **rank).min_nodes == 1


def test_every_option_of_a_scheme_can_be_text_among_torchs_parameters() -> None:
    texts = {
        "node": "n", "label": "rack", "rank": "3", "join_timeout": "1.5", "keep_alive_interval": "2",
        "keep_alive_max_attempt": "7", "disconnect_grace": "0", "rank_policy": "GIVEN",
        "last_call_timeout": "0", "close_timeout": "3", "heartbeat_timeout": "4", "read_timeout": "5",
        "is_host": "false",
        "token": TOKEN, "tls": "no", "tls_ca": "", "tls_cert": "", "tls_key": "", "tls_server_name": "s",
    }  # fmt: skip
    handler = ar.get_rendezvous_handler(ar.RendezvousParameters("tcp", "h", "job", 2, 4, "10.0.0.1", **texts))
    assert handler.node == "n"
    assert handler.settings.run == RunSettings(2, 4, 0.0, 2.0, 7, 0.0, "given")
    settable = {
        name for name in settings_of(CommonOptions) if name not in ("nnodes", "timeout", "local_addr")
    }
    assert settable - {"min_nodes", "max_nodes"} <= set(texts)


def test_torchs_timeout_is_the_time_to_join_but_never_shortens_it() -> None:
    assert read(timeout="900").timeout.join == 900.0
    assert read(timeout=5).timeout.join == 600.0
    assert read(timeout=900, join_timeout=5).timeout.join == 5.0
    with pytest.raises(ar.RendezvousSettingsError, match=r"^timeout is -1\.0, but must be 0 or more seconds"):
        read(timeout=-1)

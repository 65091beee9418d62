"""What nodes and settings may be, and what is said of a value that they may not have."""

from __future__ import annotations

import math

import pytest

from arendezvous.errors import RendezvousSettingsError
from arendezvous.law.checks import MAX_NAME
from arendezvous.law.operations import Close, Drain, Join, Leave, Reopen, Resume
from arendezvous.law.state import (
    MAX_ADDRESSES,
    MAX_ROUND,
    MAX_WORLD,
    Cause,
    NodeDesc,
    NodeView,
    Phase,
    RunSettings,
)

PAIR = RunSettings(2, 2)


@pytest.mark.parametrize(
    ("setting", "value", "expected"),
    [
        ("min_nodes", 0, "from 1 to 1000000"),
        ("min_nodes", MAX_WORLD + 1, "from 1 to 1000000"),
        ("max_nodes", 1, "from min_nodes (2) to 1000000"),
        ("max_nodes", MAX_WORLD + 1, "from min_nodes (2) to 1000000"),
        ("last_call", -1.0, "0 or more seconds"),
        ("last_call", math.nan, "0 or more seconds"),
        ("keep_alive_interval", 0, "more than 0 seconds"),
        ("keep_alive_interval", math.inf, "more than 0 seconds"),
        ("keep_alive_max_attempt", 0, "from 1 to 1000"),
        ("keep_alive_max_attempt", 1001, "from 1 to 1000"),
        ("disconnect_grace", -0.5, "0 or more seconds"),
        ("rank_policy", "random", "one of sticky, natural, given, topology"),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name_with_what_is_allowed(
    setting: str, value: object, expected: str
) -> None:
    with pytest.raises(RendezvousSettingsError) as caught:
        RunSettings(**{"min_nodes": 2, "max_nodes": 4, setting: value})  # type: ignore[arg-type]  # on purpose
    assert (caught.value.name, caught.value.value, caught.value.expected) == (setting, repr(value), expected)
    assert caught.value.message == f"{setting} is {value!r}, but must be {expected}"


def test_zero_seconds_are_allowed_for_last_call_and_grace() -> None:
    settings = RunSettings(1, 1, last_call=0, disconnect_grace=0)
    assert (settings.last_call, settings.disconnect_grace, settings.expiry) == (0, 0, 15.0)


@pytest.mark.parametrize(
    ("field", "value", "name"),
    [
        ("name", "", "node name"),
        ("name", "x" * (MAX_NAME + 1), "node name"),
        ("name", "a\nb", "node name"),
        ("addr", "a\x00", "node address"),
        ("addresses", ("ok", "a\tb"), "node address"),
        ("addresses", ("a",) * (MAX_ADDRESSES + 1), "addresses"),
        ("label", "\x1b[31m", "topology label"),
        ("rank", -1, "rank"),
        ("rank", MAX_WORLD, "rank"),
    ],
)
def test_a_node_that_cannot_be_shown_or_is_too_large_is_refused(field: str, value: object, name: str) -> None:
    with pytest.raises(RendezvousSettingsError) as caught:
        NodeDesc(**{"name": "a", field: value})  # type: ignore[arg-type]  # on purpose
    assert caught.value.name == name
    assert len(caught.value.value) <= 80


def test_a_node_may_use_all_that_is_allowed() -> None:
    node = NodeDesc("x" * MAX_NAME, addresses=("a",) * MAX_ADDRESSES, rank=MAX_WORLD - 1)
    assert (len(node.name), len(node.addresses), node.rank) == (256, 16, 999_999)


def test_operations_refuse_text_that_cannot_be_shown_and_times_that_cannot_be() -> None:
    for refused in (
        lambda: Leave("a", "x\ny"),
        lambda: Drain("a", 1.0, "x\ny"),
        lambda: Drain("a", -1.0),
        lambda: Drain("a", math.nan),
        lambda: Close("x\ny"),
        lambda: Close("a", "x\ny"),
        lambda: Reopen(1, "x\ny"),
        lambda: Resume(NodeDesc("a"), PAIR, 1, 0, 0, 2, "x\ny"),
    ):
        with pytest.raises(RendezvousSettingsError):
            refused()


@pytest.mark.parametrize("after", [(-1, 0), (0, -2), (MAX_ROUND + 1, 0), (0, MAX_ROUND + 1)])
def test_a_generation_that_no_run_can_have_is_refused(after: tuple[int, int]) -> None:
    with pytest.raises(RendezvousSettingsError, match="after is"):
        Join(NodeDesc("a"), PAIR, after)
    with pytest.raises(RendezvousSettingsError, match="incarnation, round"):
        Resume(NodeDesc("a"), PAIR, *after, rank=0, world_size=2, digest="")


def test_operations_know_their_node() -> None:
    assert Join(NodeDesc("a"), PAIR).node == "a"
    assert Resume(NodeDesc("b"), PAIR, 1, 0, 0, 2, "").node == "b"


def test_only_a_lost_node_counts_as_lost() -> None:
    assert {cause for cause in Cause if cause.is_loss} == {Cause.CONNECTION_LOST, Cause.NO_HEARTBEAT}


def test_a_view_tells_its_generation() -> None:
    assert NodeView("a", 7, 2, 5, Phase.WAITING).generation == (2, 5)

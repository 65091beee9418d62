"""Rank policies: each is a permutation of the participants, with the order that its name promises."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arendezvous.law.ranking import RANK_POLICIES, natural_key
from arendezvous.law.state import RANK_POLICY_NAMES, NodeDesc, NodeRecord

NAMES = st.lists(st.sampled_from([f"n{i}" for i in range(12)]), min_size=1, unique=True)


def records(*names: str) -> list[NodeRecord]:
    """Nodes in the order of their arrival."""
    return [NodeRecord(NodeDesc(name), i, 0.0) for i, name in enumerate(names)]


def test_every_policy_that_settings_allow_exists() -> None:
    assert tuple(RANK_POLICIES) == RANK_POLICY_NAMES


@settings(deadline=None)
@given(policy=st.sampled_from(RANK_POLICY_NAMES), names=NAMES, before=NAMES, shuffled=st.randoms())
def test_every_policy_ranks_each_node_once_whatever_the_order_they_are_listed_in(
    policy: str, names: list[str], before: list[str], shuffled: Random
) -> None:
    nodes = records(*names)
    previous = {name: rank for rank, name in enumerate(before) if name in names}
    order = RANK_POLICIES[policy](nodes, previous)
    assert sorted(order) == sorted(names)
    shuffled.shuffle(nodes)
    assert RANK_POLICIES[policy](nodes, previous) == order


@settings(deadline=None)
@given(names=NAMES, before=NAMES)
def test_sticky_moves_nobody_whose_rank_still_exists(names: list[str], before: list[str]) -> None:
    previous = {name: rank for rank, name in enumerate(before) if name in names}
    order = RANK_POLICIES["sticky"](records(*names), previous)
    for name, rank in previous.items():
        if rank < len(names):
            assert order[rank] == name


@pytest.mark.parametrize(
    ("names", "previous", "expected"),
    [
        ("abc", {}, "abc"),  # the oldest first
        ("abc", {"a": 0, "b": 1, "c": 2}, "abc"),
        ("bc", {"b": 1, "c": 2}, "cb"),  # rank 2 is no more: c takes the free rank 0
        ("dbc", {"b": 1, "c": 2}, "dbc"),  # a newcomer takes the gap
        ("deb", {"b": 3}, "bde"),  # whoever had a rank comes before newcomers
        ("ab", {"a": 5, "b": 4}, "ba"),  # by their ranks of before
    ],
)
def test_sticky_by_example(names: str, previous: dict[str, int], expected: str) -> None:
    assert "".join(RANK_POLICIES["sticky"](records(*names), previous)) == expected


def test_natural_sorts_numbers_by_value_then_by_process() -> None:
    nodes = [
        NodeDesc("x", "node10"),
        NodeDesc("y", "node2", pid=9, local_id=1),
        NodeDesc("z", "node2", pid=9, local_id=0),
        NodeDesc("w", "node2", pid=8),
        NodeDesc("node1"),
    ]
    order = RANK_POLICIES["natural"]([NodeRecord(desc, 0, 0.0) for desc in nodes], {"x": 0})
    assert order == ["node1", "w", "z", "y", "x"]


def test_natural_keys_put_numbers_before_letters_and_tell_zeros_apart() -> None:
    assert sorted(["b", "a10", "a2", "10", "9", "a02", ""], key=natural_key) == [
        "", "9", "10", "a02", "a2", "a10", "b",
    ]  # fmt: skip


def test_given_closes_gaps_and_puts_those_without_a_rank_last() -> None:
    nodes = [
        NodeDesc("c", rank=7),
        NodeDesc("x"),
        NodeDesc("a", rank=0),
        NodeDesc("b", rank=3),
        NodeDesc("y"),
    ]
    order = RANK_POLICIES["given"]([NodeRecord(desc, i, 0.0) for i, desc in enumerate(nodes)], {})
    assert order == ["a", "b", "c", "x", "y"]


def test_topology_keeps_nodes_of_one_label_together() -> None:
    nodes = [NodeDesc(f"n{i}", label=f"rack{10 - i % 3}") for i in range(6)]
    order = RANK_POLICIES["topology"]([NodeRecord(desc, 0, 0.0) for desc in nodes], {})
    assert order == ["n2", "n5", "n1", "n4", "n0", "n3"]

"""What two views of a member tell of the time between them, in words and as data."""

from __future__ import annotations

import msgspec
import pytest

from arendezvous.law.state import Cause, Closure, Departure, NodeView, Notice, Phase
from arendezvous.rendezvous.changes import (
    Change,
    Closed,
    Evicted,
    NodeDraining,
    NodeLeft,
    NodeLost,
    NodesWaiting,
    difference,
    outlook,
)

BEGIN = NodeView("a", 1, 1, 0, Phase.MEMBER, 0, 3, "d")
LOST = Notice(1, "b", Cause.NO_HEARTBEAT, "no heartbeat for 15.0 s")
LEFT = Notice(2, "c", Cause.LEFT, "")
DRAINS = Notice(3, "c", None, "power", 60.0)


def later(**fields: object) -> NodeView:
    return msgspec.structs.replace(BEGIN, **fields)


@pytest.mark.parametrize(
    ("after", "expected", "words"),
    [
        (later(), [], []),
        (later(waiting=1), [NodesWaiting(1)], ["1 node waits for the next round"]),
        (later(waiting=2), [NodesWaiting(2)], ["2 nodes wait for the next round"]),
        (
            later(notices=(LOST, LEFT)),
            [NodeLost("b", Cause.NO_HEARTBEAT, LOST.reason), NodeLeft("c", Cause.LEFT, "")],
            ["b is lost: no heartbeat for 15.0 s", "c left"],
        ),
        (
            later(notices=(DRAINS,), closed=Closure("", "", 0.0)),
            [NodeDraining("c", 60.0, "power"), Closed("", "")],
            ["c is draining and will be gone within 60 s: power", "the run was closed"],
        ),
        (later(notices=(Notice(1, "b", Cause.CONNECTION_LOST, ""),)),
         [NodeLost("b", Cause.CONNECTION_LOST, "connection lost")],
         ["b is lost: connection lost"]),
        (
            later(phase=Phase.GONE, gone=Departure(Cause.DRAINED, "", 0, 0.0)),
            [Evicted(Cause.DRAINED, "drained")],
            ["this node was evicted (drained)"],
        ),
        (
            later(phase=Phase.GONE),
            [Evicted(Cause.SUPERSEDED, "the coordinator does not know this node any more")],
            ["this node was evicted (superseded): the coordinator does not know this node any more"],
        ),
        (later(phase=Phase.WAITING, waiting=1), [], []),
        (later(round=1, notices=(LOST,)), [], []),
    ],
)  # fmt: skip
def test_the_difference_of_two_views_is_what_happened(
    after: NodeView, expected: list[Change], words: list[str]
) -> None:
    changes = difference(BEGIN, after)
    assert changes == expected
    assert [str(change) for change in changes] == words


def test_a_notice_is_told_once() -> None:
    assert difference(later(notices=(LOST,)), later(notices=(LOST, LEFT))) == [NodeLeft("c", Cause.LEFT, "")]


def test_notices_whose_numbers_began_anew_are_told() -> None:
    after = later(notices=(Notice(1, "c", Cause.LEFT, ""),))
    assert difference(later(notices=(LOST, LEFT)), after) == [NodeLeft("c", Cause.LEFT, "")]


@pytest.mark.parametrize(
    ("latest", "departed"),
    [
        (later(waiting=2), False),
        (later(notices=(LOST,)), True),
        (later(notices=(LEFT,)), True),
        (later(notices=(DRAINS,)), True),
        (later(notices=(Notice(1, "c", Cause.FINISHED, "done"),)), False),
        (later(notices=(Notice(1, "a", None, "power", 60.0),)), False),
        (later(phase=Phase.GONE), True),
    ],
)
def test_a_peer_that_is_gone_before_its_work_is_done_is_a_reason_to_meet_again(
    latest: NodeView, departed: bool
) -> None:
    assert outlook(BEGIN, latest).departed is departed
    assert outlook(BEGIN, latest).waiting == latest.waiting


def test_what_came_with_the_completion_itself_counts_too() -> None:
    first = later(notices=(LOST,), closed=Closure("b", "", 0.0))
    assert outlook(first, first).departed
    assert outlook(first, first).closed

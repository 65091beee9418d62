"""Who watches all runs is told of each what it looks like in the end, whatever comes in between."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import cast

import pytest

from arendezvous.coordinator.coordinator import Coordinator
from arendezvous.keyspace.grants import EVERYTHING, Grant, Scope
from arendezvous.law.operations import Close, Join
from arendezvous.law.state import NodeDesc, RunSettings
from arendezvous.server.tcp import watching
from arendezvous.server.tcp.sharing import Turns
from arendezvous.server.tcp.watching import INTERVAL, RunsWatching
from arendezvous.wire.native.messages import HEADER, RunsChanged, decode_server

pytestmark = pytest.mark.virtual
SETTINGS = RunSettings(2, 2)


@dataclass(eq=False)
class Watcher:
    grant: Grant = EVERYTHING
    told: list[tuple[str, int, bool]] = field(default_factory=list)
    forgotten: list[str] = field(default_factory=list)
    frames: int = 0
    lists: int = 0

    def tell(self, frame: bytes) -> None:
        message = cast(RunsChanged, decode_server(frame[HEADER:]))
        self.told += [(run.run_id, run.participants, run.closed) for run in message.runs]
        self.forgotten += message.forgotten
        self.frames += 1

    def list_again(self) -> None:
        self.lists += 1


class Place:
    """A coordinator, and who watches its runs."""

    def __init__(self, *watchers: Watcher) -> None:
        self.coordinator = Coordinator(asyncio.get_running_loop())
        self.watching = RunsWatching(self.coordinator, Turns())
        for watcher in watchers:
            self.watching.watch(watcher)
            self.watching.listed(watcher)

    def join(self, run_id: str, node: str) -> None:
        attachment = self.coordinator.attach(run_id, node, node.encode(), lambda _: None)
        self.coordinator.propose(attachment, Join(NodeDesc(node), SETTINGS))

    async def batch(self) -> None:
        await asyncio.sleep(1.5 * INTERVAL)


async def test_many_changes_are_one_message_with_the_latest_of_each_run() -> None:
    one, other = Watcher(), Watcher(Grant(Scope.RUN, "y"))
    place = Place(one, other)
    place.join("x", "a")
    place.join("x", "b")
    place.join("y", "a")
    await place.batch()
    assert (one.told, one.frames) == ([("x", 2, False), ("y", 1, False)], 1)
    assert other.told == [("y", 1, False)]
    place.coordinator.steer("x", Close("op"))
    await place.batch()
    assert one.told[2:] == [("x", 2, True)]
    assert other.frames == 1


async def test_who_did_not_read_lists_all_runs_again_and_nobody_else_does() -> None:
    slow, idle, quick = Watcher(), Watcher(), Watcher()
    place = Place(slow, idle, quick)
    place.watching.pause(slow)
    place.join("x", "a")
    await place.batch()
    place.watching.pause(idle)
    for watcher in (slow, idle):
        place.watching.resume(watcher)
    assert [(one.frames, one.lists) for one in (slow, idle, quick)] == [(0, 1), (1, 0), (1, 0)]


async def test_what_changes_while_the_list_is_made_is_told_after_it() -> None:
    watcher = Watcher()
    place = Place(Watcher())
    place.watching.watch(watcher)
    place.join("x", "a")
    await place.batch()
    assert watcher.told == []
    place.watching.listed(watcher)
    await asyncio.sleep(0)
    assert watcher.told == [("x", 1, False)]


async def test_a_large_batch_is_told_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "BATCH", 3)
    watcher = Watcher()
    place = Place(watcher)
    for number in range(7):
        place.join(f"r{number}", "a")
    await place.batch()
    assert watcher.frames == 1
    await asyncio.sleep(3 * INTERVAL)
    assert [name for name, *_ in watcher.told] == [f"r{number}" for number in range(7)]
    assert watcher.frames == 3


async def test_nothing_goes_on_once_nobody_watches() -> None:
    watcher = Watcher()
    place = Place(watcher)
    place.join("x", "a")
    place.watching.leave(watcher)
    place.join("y", "a")
    await place.batch()
    assert watcher.frames == 0

"""The coordinator arms the clock, wakes exactly those whose view changed, and forgets who is gone."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

import anyio
import pytest

from arendezvous.coordinator.budget import CoordinatorLimits
from arendezvous.coordinator.clock import StallProofClock
from arendezvous.coordinator.coordinator import Coordinator
from arendezvous.coordinator.rosters import remaining_members
from arendezvous.coordinator.run import Attachment
from arendezvous.coordinator.telling import PAUSE
from arendezvous.errors import (
    RendezvousClosedError,
    RendezvousError,
    RendezvousSettingsError,
    RendezvousStateError,
)
from arendezvous.law.events import LawEvent, NodeJoined, RoundCompleted, RunClosed
from arendezvous.law.operations import Close, Drain, Join, KeepAlive, Leave, Reopen, Resume
from arendezvous.law.state import Cause, NodeDesc, NodeView, Phase, RunSettings

pytestmark = pytest.mark.virtual

PAIR = RunSettings(2, 2)


class World:
    """A coordinator, and what each node was told besides the answers to its own requests."""

    def __init__(self, limits: CoordinatorLimits | None = None) -> None:
        self.coordinator = Coordinator(asyncio.get_running_loop(), limits=limits)
        self.told: dict[str, list[NodeView]] = {}
        self.attachments: dict[str, Attachment] = {}

    def attach(self, node: str, run: str = "job", secret: bytes = b"") -> Attachment:
        told = self.told.setdefault(node, [])
        attachment = self.coordinator.attach(run, node, secret or node.encode(), told.append)
        self.attachments[node] = attachment
        return attachment

    def join(
        self, node: str, settings: RunSettings = PAIR, after: tuple[int, int] = (0, -1), run: str = "job"
    ) -> NodeView | None:
        attachment = self.attachments.get(node) or self.attach(node, run)
        return self.coordinator.propose(attachment, Join(NodeDesc(node), settings, after))

    def counts(self) -> dict[str, int]:
        counted = {node: len(told) for node, told in self.told.items()}
        for told in self.told.values():
            told.clear()
        return counted


@pytest.fixture
async def world() -> World:
    return World()


async def turn() -> None:
    """Lets the coordinator tell what happened in this turn of the loop."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)


# Who is woken, and how often


async def test_n_joins_cost_n_replies_and_one_fan_out(world: World) -> None:
    settings = RunSettings(64, 64)
    replies = []
    for number in range(64):
        replies.append(world.join(f"n{number}", settings))
        await turn()
    assert [reply.phase for reply in replies if reply] == [Phase.GATHERING] * 63 + [Phase.MEMBER]
    assert world.counts() == {f"n{number}": int(number < 63) for number in range(64)}


async def test_many_losses_in_a_row_are_few_fan_outs_and_the_last_is_told_soon(world: World) -> None:
    settings = RunSettings(1, 200)
    for number in range(200):
        world.join(f"n{number}", settings)
    await turn()
    world.counts()
    began = asyncio.get_running_loop().time()
    for number in range(100, 200):
        world.coordinator.propose(world.attachments[f"n{number}"], Leave(f"n{number}"))
        await asyncio.sleep(0.001)
    lasted = asyncio.get_running_loop().time() - began
    await asyncio.sleep(1)
    assert len(world.told["n0"][-1].notices) == 64
    assert {view.phase for view in world.told["n99"]} == {Phase.MEMBER}
    fan_outs = world.counts()["n0"]
    assert 2 <= fan_outs <= 2 + lasted / (100 * PAUSE)


async def test_the_first_loss_is_told_at_once_and_a_close_does_not_wait_for_the_next_telling(
    world: World,
) -> None:
    settings = RunSettings(1, 200)
    for number in range(200):
        world.join(f"n{number}", settings)
    await asyncio.sleep(1)
    world.counts()
    world.coordinator.propose(world.attachments["n5"], Leave("n5"))
    await turn()
    assert world.counts()["n0"] == 1
    world.coordinator.propose(world.attachments["n6"], Leave("n6"))
    await turn()
    assert world.counts()["n0"] == 0
    world.coordinator.steer("job", Close("n7", "enough"))
    await turn()
    (view,) = world.told["n0"]
    assert view.closed is not None
    assert [notice.node for notice in view.notices] == ["n5", "n6"]


async def test_a_member_that_was_answered_is_told_of_what_happens_later_in_the_same_turn(
    world: World,
) -> None:
    settings = RunSettings(1, 3)
    for node in "abc":
        world.join(node, settings)
    await turn()
    world.counts()
    world.coordinator.propose(world.attachments["c"], Leave("c"))
    assert world.coordinator.propose(world.attachments["a"], KeepAlive("a")) is not None
    world.coordinator.propose(world.attachments["b"], Leave("b"))
    await turn()
    (view,) = world.told["a"]
    assert [notice.node for notice in view.notices] == ["c", "b"]


async def test_joins_in_one_turn_of_the_loop_are_told_in_one_go(world: World) -> None:
    settings = RunSettings(64, 64)
    for number in range(64):
        world.join(f"n{number}", settings)
    await turn()
    assert world.counts() == {f"n{number}": int(number < 63) for number in range(64)}


@pytest.mark.parametrize("apart", [False, True])
async def test_a_storm_of_rejoins_wakes_each_member_a_constant_number_of_times(
    world: World, apart: bool
) -> None:
    count, settings = 256, RunSettings(256, 256)
    for number in range(count):
        world.join(f"n{number}", settings)
    await turn()
    world.counts()
    for number in range(count):
        world.join(f"n{number}", settings, (1, 0))
        if apart:
            await turn()
    await turn()
    counts = world.counts()
    assert max(counts.values()) <= 3
    assert all(world.coordinator.view("job", f"n{number}").rank == number for number in range(count))  # type: ignore[union-attr]


async def test_heartbeats_wake_nobody_and_are_answered_without_a_view(world: World) -> None:
    world.join("a")
    world.join("b")
    await turn()
    world.counts()
    for _ in range(100):
        assert world.coordinator.propose(world.attachments["a"], KeepAlive("a")) is None
    await turn()
    assert world.counts() == {"a": 0, "b": 0}


async def test_a_reply_holds_what_was_about_to_be_told_and_is_not_told_again(world: World) -> None:
    world.join("a")
    world.join("b")  # a is to be told, at the end of this turn
    reply = world.coordinator.propose(world.attachments["a"], KeepAlive("a"))
    assert reply is not None
    assert reply.phase is Phase.MEMBER
    await turn()
    assert world.counts() == {"a": 0, "b": 0}


async def test_one_listener_that_fails_keeps_nobody_else_from_being_told(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(view: NodeView) -> None:
        raise RendezvousError("broken listener")

    attachment = world.coordinator.attach("job", "a", b"a", broken)
    world.coordinator.propose(attachment, Join(NodeDesc("a"), RunSettings(3, 3)))
    world.join("b", RunSettings(3, 3))
    world.join("c", RunSettings(3, 3))
    await turn()
    assert world.counts() == {"b": 1, "c": 0}
    assert "telling node a failed" in caplog.text


async def test_observers_see_every_event_until_they_stop(world: World) -> None:
    seen: list[tuple[str, LawEvent]] = []
    stop = world.coordinator.observe(lambda run, now, event: seen.append((run, event)))
    world.join("a")
    world.join("b")
    stop()
    world.coordinator.steer("job", Close())
    assert [(run, type(event)) for run, event in seen] == [
        ("job", NodeJoined),
        ("job", NodeJoined),
        ("job", RoundCompleted),
    ]


async def test_observers_of_some_kinds_see_those_alone(world: World) -> None:
    seen: list[type[LawEvent]] = []
    kinds = (RoundCompleted, RunClosed)
    stop = world.coordinator.observe(lambda run, now, event: seen.append(type(event)), *kinds)
    world.join("a")
    world.join("b")
    world.coordinator.steer("job", Close())
    stop()
    world.coordinator.steer("job", Reopen(1))
    world.coordinator.steer("job", Close())
    assert seen == [RoundCompleted, RunClosed]


async def test_whoever_enacts_an_operation_takes_the_view_itself_if_there_is_news_in_it(world: World) -> None:
    a = world.attach("a")
    assert world.coordinator.enact(a, Join(NodeDesc("a"), PAIR))
    assert not world.coordinator.enact(a, KeepAlive("a"))
    await turn()
    assert world.told["a"] == []
    world.join("b")
    assert a.phase is Phase.MEMBER
    assert world.coordinator.enact(a, KeepAlive("a"))
    await turn()
    assert world.told["a"] == []


async def test_what_is_news_for_the_asker_alone_takes_no_turn_of_the_loop(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    asked = 0

    def call_soon(call: Callable[..., object], *args: object) -> asyncio.Handle:
        nonlocal asked
        asked += 1
        return plain(call, *args)

    plain = loop.call_soon
    settings = RunSettings(3, 3)
    with monkeypatch.context() as patched:
        patched.setattr(loop, "call_soon", call_soon)
        world.join("a", settings)
        world.join("b", settings)
        assert asked == 0
        world.join("c", settings)
        assert asked == 1


# Timers


async def test_the_last_call_ends_by_the_timer(world: World) -> None:
    world.join("a", RunSettings(1, 2, last_call=7))
    await anyio.sleep(6.99)
    assert world.told["a"] == []
    await anyio.sleep(0.02)
    assert [view.phase for view in world.told["a"]] == [Phase.MEMBER]


async def test_a_shorter_time_brings_the_timer_forward(world: World) -> None:
    settings = RunSettings(2, 2, keep_alive_interval=100, disconnect_grace=1)
    world.join("a", settings)
    world.join("b", settings)
    await turn()
    world.counts()
    world.coordinator.detach(world.attachments["b"])
    await anyio.sleep(1.01)
    assert [view.notices[-1].cause for view in world.told["a"]] == [Cause.CONNECTION_LOST]


async def test_heartbeats_put_off_the_expiry_and_silence_brings_it(world: World) -> None:
    world.join("a")
    world.join("b")
    await turn()
    for _ in range(12):
        await anyio.sleep(5)
        world.coordinator.propose(world.attachments["a"], KeepAlive("a"))
    notices = [view.notices[-1] for view in world.told["a"] if view.notices]
    assert [(notice.node, notice.cause) for notice in notices] == [("b", Cause.NO_HEARTBEAT)]
    assert world.told["b"][-1].phase is Phase.GONE
    await anyio.sleep(15.01)
    assert world.told["a"][-1].phase is Phase.GONE
    assert world.coordinator.runs["job"].timer is None


async def test_what_is_due_happens_before_an_operation_even_if_the_timer_is_late(world: World) -> None:
    now = 0.0
    world.coordinator.clock = lambda: now
    world.join("a")
    world.join("b")
    now = 20.0
    reply = world.coordinator.propose(world.attachments["a"], KeepAlive("a"))
    assert reply is not None
    assert reply.phase is Phase.GONE


async def test_an_illegal_operation_still_publishes_what_was_due_before_it(world: World) -> None:
    now = 0.0
    world.coordinator.clock = lambda: now
    world.join("a")
    await turn()
    world.coordinator.attach("job", "b", b"b", lambda view: None)
    now = 20.0
    with pytest.raises(RendezvousStateError):
        world.coordinator.steer("job", Reopen(5))
    await turn()
    assert [view.phase for view in world.told["a"]] == [Phase.GONE]


async def test_a_clock_that_falls_behind_the_loop_only_delays_the_timer(world: World) -> None:
    loop = asyncio.get_running_loop()
    world.coordinator.clock = lambda: loop.time() / 2
    world.join("a", RunSettings(1, 2, last_call=10))
    await anyio.sleep(19.9)
    assert world.told["a"] == []
    await anyio.sleep(0.2)
    assert [view.phase for view in world.told["a"]] == [Phase.MEMBER]


async def test_a_closed_coordinator_has_no_timer_and_no_work_left(world: World) -> None:
    world.join("a")
    world.join("b")
    run = world.coordinator.runs["job"]
    world.coordinator.close()
    world.coordinator.detach(world.attachments["a"])
    assert run.timer is not None
    assert run.timer.cancelled()
    await anyio.sleep(100)
    assert world.counts() == {"a": 0, "b": 0}


# Who owns a name


class Rival:
    """Another process that comes under the name of a node, or for its rank; `told` has what it was told."""

    def __init__(
        self, world: World, node: str, settings: RunSettings = PAIR, rank: int | None = None
    ) -> None:
        self.told: list[NodeView] = []
        self._coordinator = world.coordinator
        self._join = Join(NodeDesc(node, rank=rank), settings)
        self.attachment = self._coordinator.attach("job", node, f"another {node}".encode(), self.told.append)

    def join(self) -> Phase:
        """Joins; returns where it stands then."""
        view = self._coordinator.propose(self.attachment, self._join)
        return self.attachment.phase if view is None else view.phase

    def say(self, operation: KeepAlive | Leave | Resume) -> NodeView | None:
        return self._coordinator.propose(self.attachment, operation)


async def test_a_name_belongs_to_its_process_until_the_node_is_gone(world: World) -> None:
    world.join("a")
    rival = Rival(world, "a")
    assert rival.join() is Phase.CLAIMING
    world.coordinator.propose(world.attachments["a"], Leave("a"))
    await turn()
    assert [view.phase for view in rival.told] == [Phase.GATHERING]


async def test_another_process_is_refused_once_the_one_that_has_the_name_is_heard_of(world: World) -> None:
    world.join("a")
    rival = Rival(world, "a")
    rival.join()
    await anyio.sleep(3)
    assert rival.told == []
    world.coordinator.propose(world.attachments["a"], KeepAlive("a"))
    (refused,) = rival.told
    assert refused.phase is Phase.GONE
    assert refused.gone is not None
    assert refused.gone.cause is Cause.NAME_TAKEN
    assert "'a' is in use in run 'job': process 0 at an unknown address has it" in refused.gone.reason
    assert world.coordinator.runs["job"].claims == {}


async def test_another_process_takes_the_place_of_one_whose_connection_broke(world: World) -> None:
    world.join("a")
    world.join("b")
    await turn()
    world.counts()
    world.coordinator.detach(world.attachments["b"])
    rival = Rival(world, "b")
    assert rival.join() is Phase.WAITING
    await turn()
    (view,) = world.told["a"]
    assert ([(notice.node, notice.cause) for notice in view.notices], view.waiting) == (
        [("b", Cause.CONNECTION_LOST)],
        1,
    )
    world.join("a", after=(1, 0))
    await turn()
    assert [view.phase for view in rival.told] == [Phase.MEMBER]


async def test_a_connection_that_breaks_after_another_process_came_gives_it_the_place(world: World) -> None:
    world.join("a")
    world.join("b")
    rival = Rival(world, "b")
    assert rival.join() is Phase.CLAIMING
    world.coordinator.detach(world.attachments["b"])
    await turn()
    assert [view.phase for view in rival.told] == [Phase.WAITING]


async def test_a_frozen_process_loses_its_name_with_its_place_and_hears_of_it_when_it_wakes(
    world: World,
) -> None:
    world.join("a")
    world.join("b")
    await turn()
    frozen, told = world.attachments["b"], world.told["b"]
    rival = Rival(world, "b")
    rival.join()
    for _ in range(4):  # a is alive, and b is not heard of, though its connection stands
        world.coordinator.propose(world.attachments["a"], KeepAlive("a"))
        await anyio.sleep(5)
    assert [view.phase for view in rival.told] == [Phase.WAITING]
    (evicted,) = told
    assert evicted.gone is not None
    assert evicted.gone.cause is Cause.NO_HEARTBEAT
    for operation in (KeepAlive("b"), Leave("b"), Resume(NodeDesc("b"), PAIR, 1, 0, 1, 2, "digest")):
        answer = world.coordinator.propose(frozen, operation)
        assert answer is not None
        assert answer.phase is Phase.GONE
    assert rival.attachment.phase is Phase.WAITING
    world.coordinator.detach(frozen)
    assert world.coordinator.runs["job"].state.suspects == {}


async def test_a_process_that_comes_back_after_another_has_taken_its_place_is_told_so(world: World) -> None:
    world.join("a")
    world.join("b")
    world.coordinator.detach(world.attachments["b"])
    Rival(world, "b").join()
    back = world.attach("b")
    gone = world.coordinator.propose(back, Resume(NodeDesc("b"), PAIR, 1, 0, 1, 2, "digest"))
    assert gone is not None
    assert gone.gone is not None
    assert (gone.phase, gone.gone.cause) == (Phase.GONE, Cause.SUPERSEDED)
    assert back.phase is Phase.GONE


async def test_processes_that_wait_for_one_name_get_it_in_the_order_in_which_they_came(world: World) -> None:
    world.join("a")
    first, second = Rival(world, "a"), Rival(world, "a")
    second.attachment.secret = b"a third one"
    first.join()
    second.join()
    world.coordinator.detach(world.attachments["a"])
    await turn()
    assert (first.attachment.phase, second.attachment.phase) == (Phase.GATHERING, Phase.CLAIMING)
    first.say(KeepAlive("a"))
    assert [view.phase for view in second.told] == [Phase.GONE]


@pytest.mark.parametrize("way", ["leaves", "breaks off"])
async def test_a_process_that_does_not_wait_any_more_gets_no_name(world: World, way: str) -> None:
    world.join("a")
    rival = Rival(world, "a")
    rival.join()
    assert rival.say(KeepAlive("a")) is None
    if way == "leaves":
        gone = rival.say(Leave("a"))
        assert gone is not None
        assert gone.phase is Phase.GONE
    else:
        world.coordinator.detach(rival.attachment)
    world.coordinator.propose(world.attachments["a"], Leave("a"))
    assert world.coordinator.runs["job"].claims == {}
    assert world.coordinator.status("job").nodes == ()


async def test_whoever_waits_for_a_name_of_a_run_that_is_closed_is_told_that(world: World) -> None:
    world.join("a")
    rival = Rival(world, "a")
    rival.join()
    world.coordinator.steer("job", Close("admin", "enough"))
    (view,) = rival.told
    assert (view.phase, view.closed is not None) == (Phase.GONE, True)


async def test_a_join_that_would_be_refused_anyway_does_not_wait(world: World) -> None:
    world.join("a")
    with pytest.raises(RendezvousSettingsError, match="max_nodes is 3"):
        Rival(world, "a", RunSettings(2, 3)).join()
    world.coordinator.steer("job", Close("admin", "enough"))
    with pytest.raises(RendezvousClosedError):
        Rival(world, "a").join()


async def test_a_given_rank_is_waited_for_like_a_name(world: World) -> None:
    given = RunSettings(2, 3, rank_policy="given")
    holder = Rival(world, "a", given, rank=1)
    holder.join()
    refused, waiting = Rival(world, "b", given, rank=1), Rival(world, "c", given, rank=1)
    assert refused.join() is Phase.CLAIMING
    holder.say(KeepAlive("a"))
    assert refused.told[-1].gone is not None
    assert refused.told[-1].gone.cause is Cause.RANK_TAKEN
    assert waiting.join() is Phase.CLAIMING
    await anyio.sleep(15.1)
    assert waiting.told[-1].phase is Phase.GATHERING


async def test_a_node_that_was_refused_a_rank_and_got_it_later_is_told_why_it_is_gone_then(
    world: World,
) -> None:
    given = RunSettings(2, 3, rank_policy="given")
    holder, other = Rival(world, "a", given, rank=1), Rival(world, "b", given, rank=1)
    holder.join()
    other.join()
    holder.say(KeepAlive("a"))
    holder.say(Leave("a"))
    assert other.join() is Phase.GATHERING
    left = other.say(Leave("b"))
    assert left is not None
    assert left.gone is not None
    assert left.gone.cause is Cause.LEFT
    for rival in (holder, other):
        world.coordinator.detach(rival.attachment)
    run = world.coordinator.runs["job"]
    assert (run.attachments, run.secrets, run.claims) == ({}, {}, {})


async def test_whoever_waits_for_a_rank_of_a_round_that_becomes_full_is_a_spare(world: World) -> None:
    given = RunSettings(2, 2, rank_policy="given")
    holder, other = Rival(world, "a", given, rank=0), Rival(world, "b", given, rank=1)
    holder.join()
    spare = Rival(world, "c", given, rank=0)
    assert spare.join() is Phase.CLAIMING
    other.join()
    await turn()
    phases = [spare.told[-1].phase]
    holder.say(KeepAlive("a"))
    await anyio.sleep(10)
    other.say(KeepAlive("b"))
    spare.say(KeepAlive("c"))
    await anyio.sleep(6)
    assert [*phases, spare.told[-1].phase] == [Phase.REDUNDANT, Phase.WAITING]


async def test_a_name_is_free_for_another_process_that_comes_when_its_holder_is_overdue(world: World) -> None:
    now = 0.0
    world.coordinator.clock = lambda: now
    world.join("a")
    rival = Rival(world, "a")
    now = 20.0  # the timer is late
    assert rival.join() is Phase.GATHERING


# A coordinator that follows another


async def test_a_coordinator_that_follows_another_lets_members_come_back_before_newcomers_meet(
    world: World,
) -> None:
    world.coordinator.follow()
    world.join("x")
    world.join("y")
    await anyio.sleep(0.9)
    assert world.coordinator.view("job", "x").phase is Phase.GATHERING  # type: ignore[union-attr]
    member = world.attach("a")
    restored = world.coordinator.propose(member, Resume(NodeDesc("a"), PAIR, 1, 0, 0, 2, "digest"))
    assert restored is not None
    assert (restored.phase, restored.round) == (Phase.MEMBER, 0)


async def test_newcomers_meet_soon_after_under_a_number_that_was_not_given_before(world: World) -> None:
    world.coordinator.follow()
    world.join("x")
    world.join("y")
    await anyio.sleep(1.01)
    first = world.coordinator.view("job", "x")
    assert first is not None
    assert (first.phase, first.round > 0) == (Phase.MEMBER, True)


async def test_a_run_that_begins_later_does_not_wait(world: World) -> None:
    world.coordinator.follow()
    await anyio.sleep(1.01)
    world.join("x")
    reply = world.join("y")
    assert reply is not None
    assert (reply.phase, reply.round) == (Phase.MEMBER, 0)


async def test_a_name_is_free_again_once_its_node_has_expired(world: World) -> None:
    world.join("a")
    world.coordinator.detach(world.attachments["a"])
    await anyio.sleep(2)
    assert world.coordinator.runs["job"].secrets == {}
    world.coordinator.attach("job", "a", b"somebody else", lambda view: None)


async def test_whoever_comes_back_with_the_secret_takes_over_and_hears_what_it_missed(world: World) -> None:
    world.join("a")
    old = world.attachments["a"]
    world.coordinator.detach(old)
    world.join("b")
    await turn()
    assert world.told["a"] == []
    new = world.attach("a")
    reply = world.coordinator.propose(new, KeepAlive("a"))
    assert reply is not None
    assert reply.phase is Phase.MEMBER
    world.coordinator.detach(old)  # the old connection is noticed to be gone after the new one came
    await anyio.sleep(5)
    assert world.coordinator.view("job", "a").phase is Phase.MEMBER  # type: ignore[union-attr]


async def test_an_attachment_of_a_forgotten_run_has_no_say_over_its_namesake() -> None:
    world = World(CoordinatorLimits(run_retention=60))
    world.join("a")
    old = world.attachments["a"]
    world.coordinator.propose(old, Leave("a"))
    await anyio.sleep(61)
    assert "job" not in world.coordinator.runs
    new = world.coordinator.attach("job", "a", b"new owner", lambda view: None)
    world.coordinator.propose(new, Join(NodeDesc("a"), PAIR))
    world.coordinator.propose(old, Leave("a"))
    assert world.coordinator.view("job", "a").phase is Phase.GATHERING  # type: ignore[union-attr]


async def test_nothing_is_kept_of_those_who_came_and_went(world: World) -> None:
    world.join("stays", RunSettings(2, 2000))
    for number in range(300):
        name = f"n{number}"
        if number % 2:
            world.join(name, RunSettings(2, 2000))
            world.coordinator.propose(world.attachments[name], Leave(name))
        else:
            with pytest.raises(RendezvousSettingsError):
                world.join(name, RunSettings(2, 1999))
        world.coordinator.detach(world.attachments[name])
    run = world.coordinator.runs["job"]
    assert set(run.attachments) == set(run.secrets) == {"stays"}
    assert run.dirty <= {"stays"}
    await turn()
    assert run.dirty == set()


# Limits


async def test_a_run_is_full_at_its_limit_and_whoever_is_in_may_join_again() -> None:
    world = World(CoordinatorLimits(max_nodes=2))
    world.join("a", RunSettings(3, 3))
    world.join("b", RunSettings(3, 3))
    with pytest.raises(RendezvousStateError, match="run 'job' has 2 nodes, which is this server's limit"):
        world.join("c", RunSettings(3, 3))
    world.join("a", RunSettings(3, 3))
    assert len(world.coordinator.status("job").nodes) == 2


async def test_a_run_that_nobody_is_in_makes_room_for_another() -> None:
    world = World(CoordinatorLimits(max_runs=2))
    world.join("a", run="one")
    world.join("b", run="two")
    with pytest.raises(RendezvousStateError, match="keeps 2 runs already"):
        world.join("c", run="three")
    world.coordinator.propose(world.attachments["a"], Leave("a"))
    assert world.join("c", run="three") is not None
    assert set(world.coordinator.runs) == {"two", "three"}


async def test_a_run_that_made_room_and_comes_back_has_its_timer_again() -> None:
    world = World(CoordinatorLimits(max_runs=1))
    world.join("a", RunSettings(1, 2, last_call=7), run="one")
    world.coordinator.propose(world.attachments["a"], Leave("a"))
    world.join("b", RunSettings(1, 1), run="two")
    world.coordinator.propose(world.attachments["b"], Leave("b"))
    world.join("a", RunSettings(1, 2, last_call=7))
    await anyio.sleep(7.01)
    assert [view.phase for view in world.told["a"]] == [Phase.MEMBER]


async def test_an_idle_run_is_remembered_for_its_time() -> None:
    world = World(CoordinatorLimits(run_retention=60))
    world.join("a", run="one")
    world.coordinator.steer("one", Close("a"))
    world.coordinator.propose(world.attachments["a"], Leave("a"))
    await anyio.sleep(59)
    world.join("b", run="two")
    with pytest.raises(RendezvousClosedError):
        world.join("c", run="one")
    assert list(world.coordinator.runs) == ["one", "two"]
    await anyio.sleep(2)
    assert list(world.coordinator.runs) == ["two"]


async def test_idle_runs_are_forgotten_each_in_its_time() -> None:
    world = World(CoordinatorLimits(run_retention=60))
    forgotten: list[tuple[float, str]] = []
    world.coordinator.retention.observe(
        lambda run_id: forgotten.append((round(anyio.current_time() - began), run_id))
    )
    began = anyio.current_time()
    for name in ("one", "two", "three"):
        world.join(name, run=name)
        world.coordinator.propose(world.attachments[name], Leave(name))
        await anyio.sleep(10)
    world.join("two", RunSettings(2, 2, keep_alive_interval=1000), run="two")  # somebody is in it again
    await anyio.sleep(200)
    assert forgotten == [(60, "one"), (80, "three")]


async def test_a_run_with_a_node_is_never_forgotten() -> None:
    world = World(CoordinatorLimits(run_retention=60))
    settings = RunSettings(2, 2, keep_alive_interval=1000)
    world.join("a", settings, run="one")
    await anyio.sleep(600)
    world.join("b", settings, run="two")
    assert set(world.coordinator.runs) == {"one", "two"}


async def test_the_history_of_a_run_is_bounded(world: World) -> None:
    for _ in range(500):
        world.join("a")
        world.coordinator.propose(world.attachments["a"], Leave("a"))
    assert len(world.coordinator.runs["job"].history) == 256


# What anybody may ask


async def test_an_unknown_run_can_be_closed_before_anybody_comes(world: World) -> None:
    view = world.coordinator.steer("job", Close("operator", "not today"))
    assert view.closed is not None
    with pytest.raises(RendezvousClosedError, match="not today"):
        world.join("a")


@pytest.mark.parametrize("operation", [Reopen(1), Drain("a", 1)])
async def test_an_unknown_run_cannot_be_steered_otherwise(world: World, operation: Reopen | Drain) -> None:
    world.join("x", run="other")
    with pytest.raises(RendezvousStateError, match="no run 'job' here") as caught:
        world.coordinator.steer("job", operation)
    assert "other" not in str(caught.value)


async def test_looking_at_an_unknown_run_makes_none(world: World) -> None:
    assert world.coordinator.status("job").settings is None
    assert world.coordinator.view("job", "a") is None
    with pytest.raises(RendezvousStateError, match="round 0 of run 'job' is over"):
        remaining_members(world.coordinator, "job", (1, 0))
    attachment = world.attach("a")
    gone = world.coordinator.propose(attachment, KeepAlive("a"))
    assert gone is not None
    assert gone.phase is Phase.GONE
    world.coordinator.detach(attachment)
    assert world.coordinator.runs == {}


# The clock of a server


async def test_the_clock_of_a_server_runs_with_the_loop_s() -> None:
    loop = asyncio.get_running_loop()
    clock = StallProofClock(loop)
    begin = clock()
    await anyio.sleep(1000)
    assert clock() - begin == pytest.approx(1000)
    clock.stop()


async def test_the_clock_of_a_server_leaves_out_its_own_pauses() -> None:
    loop = asyncio.get_running_loop()
    clock = StallProofClock(loop)
    begin = clock()
    await anyio.sleep(10)
    loop._virtual_now += 3600  # type: ignore[attr-defined]  # the process is stopped for an hour
    assert clock() - begin == pytest.approx(10)
    await anyio.sleep(10)
    assert clock() - begin == pytest.approx(20)
    clock.stop()


async def test_nobody_is_dropped_since_the_server_stood_still() -> None:
    loop = asyncio.get_running_loop()
    clock = StallProofClock(loop)
    world = World()
    world.coordinator.clock = clock
    world.join("a")
    world.join("b")
    await anyio.sleep(10)
    loop._virtual_now += 3600  # type: ignore[attr-defined]
    await anyio.sleep(4.9)
    phases = Counter(world.coordinator.view("job", node).phase for node in "ab")  # type: ignore[union-attr]
    assert phases == {Phase.MEMBER: 2}
    await anyio.sleep(0.7)
    phases = Counter(world.coordinator.view("job", node).phase for node in "ab")  # type: ignore[union-attr]
    assert phases == {Phase.GONE: 2}
    clock.stop()
    world.coordinator.close()

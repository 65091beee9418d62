"""What happens to a run as a stream: its history, then what happens, without a gap and without repetition."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

import arendezvous as ar
from arendezvous.backends.http import watching
from arendezvous.backends.http.watching import watch_run
from arendezvous.coordinator.budget import CoordinatorLimits
from arendezvous.coordinator.coordinator import Coordinator
from arendezvous.coordinator.run import HISTORY
from arendezvous.keyspace.grants import Grant, Scope
from arendezvous.law.events import RoundOpened, RunClosed, RunReopened
from arendezvous.law.operations import Close, Reopen
from arendezvous.law.status import RunStatus
from arendezvous.server.access.authority import Authority
from arendezvous.server.access.limits import ServerLimits
from arendezvous.server.http import event_tail, stream
from arendezvous.server.http.event_tail import EventHub, RunFollower
from arendezvous.server.metrics import package_version
from arendezvous.testing.fault_proxy import FaultProxy
from arendezvous.wire.http.sse import EventParser
from arendezvous.wire.native.messages import Happened
from tests.kit.http_kit import Events, following, join, problem_of, served
from tests.kit.waiting import until_said


def turn(coordinator: Coordinator, times: int, run_id: str = "job") -> None:
    """Closes and reopens a run: three events each time."""
    for _ in range(times):
        run = coordinator.runs.get(run_id)
        incarnation = 1 if run is None else run.state.incarnation
        coordinator.steer(run_id, Close("me", "over"))
        coordinator.steer(run_id, Reopen(incarnation, "me"))


async def types_of(events: Events, count: int) -> list[str]:
    """The types of the next events."""
    return [json.loads((await events.next()).data)["type"] for _ in range(count)]


async def test_a_stream_begins_with_the_history_and_goes_on_with_what_happens() -> None:
    async with asyncio.timeout(120), served() as (server, client):
        await join(client, "a")
        async with following(client, "/v1/runs/job/events") as events:
            first = await events.next()
            await join(client, "b")
            assert await types_of(events, 2) == ["NodeJoined", "RoundCompleted"]
            turn(server.coordinator, 1)
            assert await types_of(events, 1) == ["RunClosed"]
    body = json.loads(first.data)
    assert (first.name, body["type"], body["number"]) == ("happened", "NodeJoined", 1)
    assert body["data"] == {"node": "a", "phase": "gathering"}
    assert (body["run_id"], body["text"]) == ("job", "a joins the round")
    assert 0 <= body["age"] < 10


async def test_a_stream_that_is_resumed_has_neither_a_gap_nor_a_repetition() -> None:
    async with asyncio.timeout(120), served() as (server, client):
        turn(server.coordinator, 2)
        seen: list[int] = []
        last = ""
        for _ in range(3):
            headers = {"Last-Event-ID": last} if last else {}
            async with following(client, "/v1/runs/job/events", headers) as events:
                for _ in range(2):
                    event = await events.next()
                    seen.append(json.loads(event.data)["number"])
                    last = event.id
        assert seen == [1, 2, 3, 4, 5, 6]
        async with following(client, f"/v1/runs/job/events?after={last}") as events:
            turn(server.coordinator, 1)
            assert json.loads((await events.next()).data)["number"] == 7


async def test_a_reader_goes_on_from_the_state_that_it_has_seen() -> None:
    async with asyncio.timeout(120), served() as (server, client):
        turn(server.coordinator, 1)
        async with client.get("/v1/runs/job") as answer:
            last = (await answer.json())["last_event"]
        async with following(client, f"/v1/runs/job/events?after={last}") as events:
            turn(server.coordinator, 1)
            assert json.loads((await events.next()).data)["number"] == 4


async def test_a_reader_that_was_away_for_too_long_is_told_how_much_it_missed() -> None:
    async with asyncio.timeout(120), served() as (server, client):
        turn(server.coordinator, 1)
        async with client.get("/v1/runs/job") as answer:
            last = (await answer.json())["last_event"]
        turn(server.coordinator, 100)
        async with following(client, "/v1/runs/job/events", {"Last-Event-ID": last}) as events:
            reset, first = await events.next(), await events.next()
        assert (reset.name, json.loads(reset.data)) == ("reset", {"missed": 300 - HISTORY})
        assert json.loads(first.data)["number"] == 303 - HISTORY + 1


async def test_an_event_of_an_earlier_start_of_the_server_begins_anew() -> None:
    async with asyncio.timeout(120), served() as (server, client):
        turn(server.coordinator, 1)
        async with following(client, "/v1/runs/job/events", {"Last-Event-ID": "0123abcd.2"}) as events:
            reset, first = await events.next(), await events.next()
        assert (reset.name, json.loads(reset.data)) == ("reset", {"missed": None})
        assert json.loads(first.data)["number"] == 1


async def test_a_server_that_goes_on_with_a_record_tells_no_event_again(tmp_path: Path) -> None:
    async with asyncio.timeout(120):
        async with served(data_dir=tmp_path) as (server, client):
            await join(client, "a")
            await join(client, "b")
            turn(server.coordinator, 1)
            async with following(client, "/v1/runs/job/events") as events:
                seen = [await events.next() for _ in range(4)]
        for is_recorded in (True, False):  # what the reader has seen of the server before
            async with served(data_dir=tmp_path) as (server, client):
                known = server.coordinator.runs["job"].happened
                turn(server.coordinator, 1)
                last = seen[-1].id if is_recorded else f"{seen[-1].id}99"
                numbers = list(range(5 if is_recorded else known + 1, known + 2))
                async with following(client, "/v1/runs/job/events", {"Last-Event-ID": last}) as events:
                    reset, *more = [await events.next() for _ in (0, *numbers)]
            assert (reset.name, json.loads(reset.data)) == ("reset", {"missed": None})
            assert [json.loads(event.data)["number"] for event in more] == numbers


async def test_what_is_no_id_of_an_event_is_refused() -> None:
    async with (
        asyncio.timeout(120),
        served() as (_, client),
        client.get("/v1/runs/job/events", headers={"Last-Event-ID": "x.y"}) as answer,
    ):
        assert await problem_of(answer) == (400, "bad-event-id")


async def test_numbers_are_not_used_again_for_a_run_that_was_forgotten() -> None:
    coordinator = Coordinator(asyncio.get_running_loop())
    turn(coordinator, 2)
    coordinator.retention.forget("job")
    turn(coordinator, 1)
    assert coordinator.runs["job"].happened == 9
    coordinator.close()


async def test_a_run_that_does_not_exist_yet_can_be_followed() -> None:
    async with (
        asyncio.timeout(120),
        served() as (_, client),
        following(client, "/v1/runs/job/events") as events,
    ):
        await join(client, "a")
        assert await types_of(events, 1) == ["NodeJoined"]


async def test_a_silent_stream_says_that_it_is_still_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "PING", 0.01)
    async with asyncio.timeout(120), served() as (_, client), client.get("/v1/runs/job/events") as answer:
        lines = [await answer.content.readline() for _ in range(6)]
    assert lines == [b": still here\n", b"\n"] * 3


def taken(follower: RunFollower) -> list[tuple[str, object]]:
    """What a stream is told: how many events it has missed, and the numbers of the others."""
    parser, found = EventParser(), []
    while frames := follower.take():
        for event in parser.feed(frames):
            body = json.loads(event.data)
            found.append((event.name, body.get("number", body.get("missed"))))
    return found


async def test_a_reader_that_is_too_slow_costs_no_more_than_a_bounded_backlog(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(event_tail, "BACKLOG", 4)
    coordinator = Coordinator(asyncio.get_running_loop())
    hub = EventHub(coordinator, "here")
    slow, quick = asyncio.Event(), asyncio.Event()
    with hub.follow("job", slow, None) as behind, hub.follow("job", quick, None) as present:
        told: list[tuple[str, object]] = []
        for _ in range(4):
            turn(coordinator, 1)
            assert quick.is_set()
            told += taken(present)
            quick.clear()
        assert told == [("happened", number) for number in range(1, 13)]
        assert slow.is_set()
        assert taken(behind) == [("reset", 8), *(("happened", number) for number in range(9, 13))]
        turn(coordinator, 1)
        assert taken(behind) == taken(present) == [("happened", number) for number in (13, 14, 15)]
    coordinator.close()


async def test_a_reader_of_all_runs_that_is_too_slow_is_told_of_all_of_them_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(event_tail, "UPDATE_INTERVAL", 0.0)
    coordinator = Coordinator(asyncio.get_running_loop())
    hub = EventHub(coordinator, "here")
    news = asyncio.Event()
    with hub.follow_all(news) as follower:
        for number in range(2):
            turn(coordinator, 1, f"run{number}")
            await asyncio.sleep(0.001)
        assert not follower.has_missed()
        assert [list(batch.names) for batch in iter(follower.take, None)] == [["run0"], ["run1"]]
        for number in range(event_tail.BATCHES + 1):
            turn(coordinator, 1, f"run{number}")
            await asyncio.sleep(0.001)
        assert follower.take() is None
        assert news.is_set()
        assert follower.has_missed()
        assert not follower.has_missed()
    coordinator.close()


async def test_nobody_observes_the_coordinator_when_nobody_listens() -> None:
    coordinator = Coordinator(asyncio.get_running_loop())

    def listening() -> tuple[int, int]:
        return max(map(len, coordinator._observers.values())), len(coordinator.retention._observers)

    hub = EventHub(coordinator, "here")
    with hub.follow("job", asyncio.Event(), None):
        with hub.follow("job", asyncio.Event(), None) as one, hub.follow_all(asyncio.Event()):
            assert listening() == (1, 1)
        assert listening() == (1, 1)
    assert listening() == (0, 0)
    turn(coordinator, 1)
    assert not one.take()
    coordinator.close()


async def test_all_runs_are_followed_in_one_stream() -> None:
    async with asyncio.timeout(120), served() as (server, client):
        await join(client, "a", "one")
        async with following(client, "/v1/events") as events:
            listed = await events.next()
            await join(client, "a", "two")
            changed = await events.next()
            turn(server.coordinator, 1, "one")
            again = await events.next()
    assert (listed.name, changed.name, again.name) == ("runs", "run", "run")
    assert [run["run_id"] for run in json.loads(listed.data)["runs"]] == ["one"]
    assert json.loads(changed.data)["run_id"] == "two"
    assert (json.loads(again.data)["run_id"], json.loads(again.data)["incarnation"]) == ("one", 2)


async def test_a_run_that_the_server_forgets_is_told_of_in_the_stream_of_all_runs() -> None:
    limits = ServerLimits(coordinator=CoordinatorLimits(max_runs=2))
    async with asyncio.timeout(120), served(limits=limits) as (server, client):
        turn(server.coordinator, 1, "first")  # nobody is in it
        await join(client, "a", "second")
        async with following(client, "/v1/events") as events:
            listed = await events.next()
            await join(client, "a", "third")
            told = [await events.next() for _ in range(2)]
    assert [run["run_id"] for run in json.loads(listed.data)["runs"]] == ["first", "second"]
    seen = [(event.name, json.loads(event.data)["run_id"]) for event in told]
    assert seen == [("forgotten", "first"), ("run", "third")]


async def test_a_run_that_comes_back_at_once_is_told_of_as_it_is() -> None:
    limits = ServerLimits(coordinator=CoordinatorLimits(max_runs=1))
    async with asyncio.timeout(120), served(limits=limits) as (server, client):
        turn(server.coordinator, 1, "first")
        async with following(client, "/v1/events") as events:
            await events.next()
            turn(server.coordinator, 1, "second")
            turn(server.coordinator, 1, "first")
            told = [await events.next() for _ in range(2)]
    seen = {(event.name, json.loads(event.data)["run_id"]) for event in told}
    assert seen == {("run", "first"), ("forgotten", "second")}


@pytest.mark.parametrize("grant", [Grant(Scope.RUN, "mine"), Grant(Scope.READ, "mine")])
async def test_with_a_token_of_one_run_the_stream_of_runs_tells_of_that_one_alone(grant: Grant) -> None:
    limits = ServerLimits(coordinator=CoordinatorLimits(max_runs=2))
    headers = {"Authorization": f"Bearer {'t' * 32}"}
    async with (
        asyncio.timeout(120),
        served(authority=Authority([("t" * 32, grant)]), limits=limits) as (server, client),
        following(client, "/v1/events", headers) as events,
    ):
        listed = await events.next()
        for run_id in ("theirs", "mine", "others"):  # one is forgotten on the way
            turn(server.coordinator, 1, run_id)
        first = await events.next()
        turn(server.coordinator, 1, "theirs")
        turn(server.coordinator, 1, "mine")
        turn(server.coordinator, 1, "others")
        turn(server.coordinator, 1, "theirs")
        last = await events.next()
    page = json.loads(listed.data)
    assert (page["runs"], page["next"], page["only"]) == ([], None, "mine")
    assert (page["read_only"], page["version"]) == (grant.scope is Scope.READ, package_version())
    assert (first.name, json.loads(first.data)["run_id"]) == ("run", "mine")
    assert (last.name, json.loads(last.data)) == ("forgotten", {"run_id": "mine"})


async def test_a_watch_begins_with_the_status_and_goes_on_with_what_happens() -> None:
    async with asyncio.timeout(120), served() as (server, _):
        assert server.http_url is not None
        async with watch_run(server.http_url, "job") as watch:
            assert await anext(watch) == RunStatus("job")
            turn(server.coordinator, 1)
            news = [await anext(watch) for _ in range(3)]
            await watch.ask_status()
            status = await anext(watch)
    events = [event for item in news if isinstance(item, Happened) for event in item.events]
    assert events == [RunClosed("me", "over"), RunReopened(2, "me"), RoundOpened(1)]
    assert isinstance(status, RunStatus)
    assert status.incarnation == 2


async def test_a_watch_whose_stream_breaks_goes_on_where_it_broke() -> None:
    async with asyncio.timeout(120), served() as (server, _):
        assert server.http_url is not None
        port = int(server.http_url.rsplit(":", 1)[1])
        async with (
            FaultProxy("127.0.0.1", port) as proxy,
            watch_run(f"http://127.0.0.1:{proxy.port}", "job") as watch,
        ):
            await anext(watch)
            turn(server.coordinator, 1)
            before = [await anext(watch) for _ in range(3)]
            proxy.cut()
            turn(server.coordinator, 1)
            after = [await anext(watch) for _ in range(3)]
    assert all(isinstance(item, Happened) and item.missed == 0 for item in before + after)
    names = [type(event).__name__ for item in after if isinstance(item, Happened) for event in item.events]
    assert names == ["RunClosed", "RunReopened", "RoundOpened"]


async def test_a_watch_says_so_when_its_server_is_gone() -> None:
    with pytest.raises(ar.RendezvousConnectionError, match="could not be reached"):
        async with asyncio.timeout(120), watch_run("http://127.0.0.1:9", "job", timeout=0.1):
            pass


async def test_a_watch_that_nobody_reads_keeps_no_more_than_so_much_and_loses_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watching, "MAX_NEWS", 4)
    async with (
        asyncio.timeout(120),
        served() as (server, client),
        watch_run(str(server.http_url), "job") as watch,
    ):
        turn(server.coordinator, 10)
        async with following(client, "/v1/runs/job/events") as events:
            await types_of(events, 30)  # so they have been sent
        assert len(watch._news) <= 4
        news = [await anext(watch) for _ in range(31)]
        assert len(watch._news) <= 4
    assert isinstance(news[0], RunStatus)
    assert sum(len(item.events) for item in news if isinstance(item, Happened)) == 30


async def test_a_watch_whose_server_goes_for_good_says_so_after_the_news_that_came() -> None:
    began: list[RunStatus | Happened] = []

    async def watched(seconds: float) -> None:
        async with served() as (server, _):
            watch_it = watch_run(str(server.http_url), "job", timeout=seconds)
            watch = await watch_it.__aenter__()
        try:
            began.append(await anext(watch))
            await anext(watch)
        finally:
            await asyncio.create_task(watch_it.__aexit__(None, None, None))  # by another task

    async with asyncio.timeout(120):
        await until_said(watched, "could not be reached for")
    assert began[-1:] == [RunStatus("job")]

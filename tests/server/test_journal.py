"""A server that keeps a journal, as nodes and operators meet it at each listener, over restarts."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import anyio.lowlevel
import pytest

import arendezvous as ar
from arendezvous.errors import RendezvousStateError
from arendezvous.server.http import store_access
from arendezvous.server.serve import Server
from arendezvous.stores.http.store import HttpStore
from arendezvous.stores.tcp.store import TcpStore
from arendezvous.testing.journal_checks import MemoryJournal
from tests.kit.ports import held_ports
from tests.kit.waiting import until

FULL = RendezvousStateError("the journal in memory cannot be written: disk full")
WAYS = ("tcp", "http")
PAIR: dict[str, Any] = {"run_id": "job", "min_nodes": 2, "is_host": False}


class Place:
    """One address where servers follow each other over one journal.

    Attributes:
        journal: The journal.
        server: The server that runs now.
    """

    def __init__(self, way: str, port: int, http_port: int) -> None:
        self.journal = MemoryJournal()
        self.server: Server
        self._way = way
        self._addresses = (f"127.0.0.1:{port}", f"127.0.0.1:{http_port}")
        self._running = AsyncExitStack()

    @property
    def url(self) -> str:
        return (self.server.http_url if self._way == "http" else self.server.tcp_url) or ""

    def open(self, node: str, **options: Any) -> Any:
        wanted = PAIR if self._way == "tcp" else {k: v for k, v in PAIR.items() if k != "is_host"}
        return ar.open_rendezvous(self.url, node=node, **(wanted | options))

    def store(self) -> TcpStore | HttpStore:
        host, _, port = self.url.partition("://")[2].rpartition(":")
        if self._way == "tcp":
            return TcpStore(host, int(port), read_timeout=20.0)
        return HttpStore(self.url)

    async def start(self) -> None:
        address, http = self._addresses
        self.server = await self._running.enter_async_context(
            ar.serve(address, http=http, journal=self.journal)
        )

    @property
    def fails(self) -> bool:
        """Whether the server has noticed that it cannot record anything."""
        assert self.server.coordinator.records is not None
        return bool(self.server.coordinator.records.commits.obstacle)

    async def is_answered(self) -> None:
        """Returns once the server has answered others, which is for long enough to have answered all."""
        async with self.open("observer") as observer:
            for _ in range(3):
                await observer.explain()

    async def stop(self) -> None:
        await self._running.aclose()

    async def restart(self) -> None:
        await self.stop()
        await self.start()


@asynccontextmanager
async def started(way: str) -> AsyncIterator[Place]:
    with held_ports(2) as ports:
        place = Place(way, *ports)
        await place.start()
        try:
            yield place
        finally:
            await place.stop()


@pytest.fixture(params=WAYS)
async def place(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    async with started(request.param) as place:
        yield place


@asynccontextmanager
async def met(place: Place) -> AsyncIterator[tuple[Any, Any]]:
    async with place.open("a") as a, place.open("b") as b:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(a.next_rendezvous)
            tasks.start_soon(b.next_rendezvous)
        yield a, b


async def changes_of(handler: Any, heard: list[str]) -> None:
    async for change in handler.changes():
        heard.append(str(change))


async def test_members_are_where_they_were_and_hear_nothing_of_a_restart(place: Place) -> None:
    heard: list[str] = []
    async with met(place) as (a, b), anyio.create_task_group() as tasks:
        before = await a.explain()
        tasks.start_soon(changes_of, a, heard)
        await place.restart()
        await until(lambda: all(not n.grace_left for n in place.server.coordinator.status("job").nodes))
        after = await b.explain()
        assert (after.round, after.digest, after.incarnation) == (before.round, before.digest, 1)
        assert after.departed == ()
        await b.leave("done", cause=ar.Cause.FINISHED)
        await until(lambda: heard)
        assert ["done" in text for text in heard] == [True]
        tasks.cancel_scope.cancel()


async def test_a_node_that_finished_before_a_restart_is_not_lost_after_it(place: Place) -> None:
    async with met(place) as (a, b):
        await b.leave("done", cause=ar.Cause.FINISHED)
        await place.restart()
        await until(lambda: all(not n.grace_left for n in place.server.coordinator.status("job").nodes))
        await anyio.lowlevel.checkpoint()
        status = await a.explain()
        assert [(gone.node, gone.cause) for gone in status.departed] == [("b", ar.Cause.FINISHED)]
        assert not (await a.outlook()).departed


async def test_rounds_and_events_of_earlier_servers_are_told_after_a_restart() -> None:
    async with started("http") as place, aiohttp.ClientSession() as client, met(place) as (a, _):
        await a.drain(60.0, "maintenance")
        before = await rounds_of(client, place)
        await place.restart()
        why = "a is draining and will be gone within 60 s: maintenance"
        assert await rounds_of(client, place) == before == [(0, 2, why)]
        async with client.get(f"{place.url}/v1/runs/job/events") as answer:
            while "maintenance" not in (await answer.content.readline()).decode():
                pass


async def rounds_of(client: aiohttp.ClientSession, place: Place) -> list[tuple[int, int, str]]:
    async with client.get(f"{place.url}/v1/runs/job/rounds") as answer:
        rounds = (await answer.json())["rounds"]
    return [(one["round"], one["world_size"], one["why"]) for one in rounds]


async def test_a_late_node_of_a_run_that_was_closed_before_a_restart_is_refused(place: Place) -> None:
    async with met(place) as (a, _):
        await a.set_closed("all done")
    await place.restart()
    async with place.open("late") as late:
        with pytest.raises(ar.RendezvousClosedError, match="all done"):
            await late.next_rendezvous()


async def test_nobody_is_told_a_rank_while_it_cannot_be_recorded_and_all_are_told_why(place: Place) -> None:
    place.journal.failure = FULL
    async with place.open("a") as a, place.open("b") as b, anyio.create_task_group() as tasks:
        ranks: list[int] = []

        async def join(handler: Any) -> None:
            ranks.append((await handler.next_rendezvous()).rank)

        tasks.start_soon(join, a)
        tasks.start_soon(join, b)
        with anyio.fail_after(60):
            while not (status := await a.explain()).obstacle:  # noqa: ASYNC110 - it is asked for
                await anyio.sleep(0.01)
        assert "2 came (enough, but the server cannot record the round" in str(status)
        assert ranks == []
        place.journal.failure = None
        await until(lambda: len(ranks) == 2)


async def test_a_join_that_times_out_says_that_the_round_could_not_be_recorded(place: Place) -> None:
    place.journal.failure = FULL
    async with (
        place.open("a", join_timeout=1.0) as a,
        place.open("b") as b,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(b.next_rendezvous)
        with pytest.raises(ar.RendezvousTimeoutError, match=r"could not record the round: .*disk full"):
            await a.next_rendezvous()
        tasks.cancel_scope.cancel()


async def test_closing_while_nothing_can_be_recorded_ends_with_an_error_and_closes_nothing(
    place: Place,
) -> None:
    async with met(place) as (a, _):
        place.journal.failure = FULL
        with pytest.raises(ar.RendezvousError, match=r"cannot record it: .*disk full; ask again"):
            await a.set_closed("enough")
        assert (await a.explain()).closed is None
        place.journal.failure = None
        await a.set_closed("enough")
        assert (await a.explain()).closed is not None


async def test_what_operators_decided_outlives_a_restart(place: Place) -> None:
    async with met(place) as (a, b):
        operator = ar.connect(place.url, by="op")
        await operator.hold("job", "storage")
        await operator.resize("job", 1, 1, reason="budget")
        await operator.quarantine("job", "rack7", reason="heat")
        before = await operator.status("job")
        await place.restart()
        after = await ar.connect(place.url).status("job")
        assert after.held is not None
        assert (after.held.by, after.held.reason, after.held.left) == ("op", "storage", None)
        assert (after.resized, after.excess) == (before.resized, True)
        assert [(one.target, one.reason) for one in after.quarantined] == [("rack7", "heat")]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(a.next_rendezvous)
            tasks.start_soon(b.next_rendezvous)
            await ar.connect(place.url).release("job")
            with anyio.fail_after(60):
                while (await operator.status("job")).world_size != 1:  # noqa: ASYNC110 - it is asked for
                    await anyio.sleep(0.01)
            tasks.cancel_scope.cancel()


async def test_nothing_is_decided_that_cannot_be_recorded(place: Place) -> None:
    async with met(place):
        operator = ar.connect(place.url)
        place.journal.failure = FULL
        for decision in (operator.hold("job"), operator.quarantine("job", "a"), operator.resize("job", 1)):
            with pytest.raises(ar.RendezvousError, match=r"cannot record it: .*disk full; ask again"):
                await decision
        status = await operator.status("job")
        assert (status.held, status.quarantined, status.resized) == (None, (), ())
        assert len(status.nodes) == 2


async def test_what_the_law_decides_by_itself_outlives_a_restart(place: Place) -> None:
    rules = {"min_nodes": 1, "max_nodes": 1, "strikes": 1, "cooldown": 600.0}
    async with place.open("a", **rules) as a:
        await a.next_rendezvous()
        await a.leave("crash", cause=ar.Cause.FAILED)
    await until(lambda: place.server.coordinator.runs["job"].state.decisions.are_any)
    async with place.open("b", **rules) as b:
        await b.next_rendezvous()
        await place.restart()
        async with place.open("a", **rules) as a:
            with pytest.raises(ar.QuarantinedError, match="by the law"):
                await a.next_rendezvous()


async def fail(place: Place, step: int | None = None, **rules: Any) -> None:
    """Has node a be the one member of a round that fails, at once or after it has told of a step."""
    async with place.open("a", min_nodes=1, max_nodes=1, **rules) as a:
        await a.next_rendezvous()
        if step is not None:
            await a.progress(step)
        await a.leave("crash", cause=ar.Cause.FAILED)


async def test_strikes_outlive_a_restart(place: Place) -> None:
    rules: dict[str, Any] = {"strikes": 2, "cooldown": 600.0}
    await fail(place, **rules)
    await place.restart()
    await fail(place, **rules)
    await place.restart()
    with pytest.raises(ar.QuarantinedError, match="it failed, or was lost, 2 times"):
        await fail(place, **rules)


async def test_rounds_without_progress_are_counted_on_after_a_restart(place: Place) -> None:
    await fail(place, stop_after=2)
    await fail(place, stop_after=2, step=7)  # which makes up for both
    await place.restart()
    await fail(place, stop_after=2)
    await place.restart()
    await fail(place, stop_after=2, step=7)  # no further than before
    await place.restart()
    with pytest.raises(ar.RendezvousClosedError, match="2 rounds without progress"):
        await fail(place, stop_after=2)


async def test_a_run_that_ended_and_was_closed_by_its_nodes_begins_anew_after_a_restart(place: Place) -> None:
    async with met(place) as (a, b):
        await a.set_closed("done")
        for node in (a, b):
            await node.leave(cause=ar.Cause.FINISHED)
    await place.restart()
    async with place.open("c", min_nodes=1, max_nodes=1, reopen="ended") as c:
        assert (await c.next_rendezvous()).incarnation == 2
    await place.restart()
    assert place.server.coordinator.status("job").incarnation == 2


async def test_leaving_while_nothing_can_be_recorded_takes_a_moment_longer(place: Place) -> None:
    async with met(place) as (a, b):
        place.journal.failure = FULL
        with anyio.fail_after(30):
            await b.leave("done")
        assert [gone.node for gone in (await a.explain()).departed] == ["b"]


async def test_keys_and_queues_are_there_after_a_restart(place: Place) -> None:
    long = b"x" * 300_000
    async with place.store() as store:
        await store.set("plain", "1")
        await store.set("long", long)
        await store.append("long", b"y")
        await store.add("number", 41)
        await store.set("gone", "x")
        await store.delete_key("gone")
        for value in "abc":
            await store.queue_push("jobs", value)
        assert await store.queue_pop("jobs") == b"a"
    await place.restart()
    async with place.store() as store:
        assert await store.get("plain") == b"1"
        assert await store.get("long") == long + b"y"
        assert await store.add("number", 1) == 42
        assert not await store.check(["gone"])
        assert [await store.queue_pop("jobs") for _ in range(2)] == [b"b", b"c"]
        assert await store.queue_len("jobs") == 0


OPERATIONS: dict[str, Callable[[Any], Awaitable[object]]] = {
    "set": lambda store: store.set("key", "2"),
    "add": lambda store: store.add("number", 1),
    "push": lambda store: store.queue_push("jobs", "x"),
    "pop": lambda store: store.queue_pop("jobs"),
    "compare-set": lambda store: store.compare_set("key", "1", "2"),
    "delete": lambda store: store.delete_key("key"),
    "append": lambda store: store.append("long", "y"),
}


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_no_answer_leaves_before_what_it_may_tell_of_is_recorded(place: Place, operation: str) -> None:
    async with place.store() as store, place.store() as other, anyio.create_task_group() as tasks:
        await store.set("key", "1")
        await store.set("long", b"x" * 200_000)
        await store.queue_push("jobs", "y")
        assert await other.get("key") == b"1"
        answered: list[str] = []

        async def ask(name: str, asked: Awaitable[object]) -> None:
            await asked
            answered.append(name)

        place.journal.failure = FULL
        tasks.start_soon(ask, "change", OPERATIONS[operation](store))
        await until(lambda: place.fails)
        for name, asked in (("read", other.get("long")), ("count", other.num_keys())):
            tasks.start_soon(ask, name, asked)
        await place.is_answered()
        assert answered == []
        place.journal.failure = None
        await until(lambda: len(answered) == 3)


async def test_a_wait_ends_once_what_it_waited_for_is_recorded(place: Place) -> None:
    async with place.store() as store, place.store() as other, anyio.create_task_group() as tasks:
        ended: list[bytes] = []

        async def wait() -> None:
            ended.append(await other.get("key", timeout=60))

        tasks.start_soon(wait)
        await place.is_answered()
        place.journal.failure = FULL
        tasks.start_soon(store.set, "key", "1")
        await until(lambda: place.fails)
        await place.is_answered()
        assert ended == []
        place.journal.failure = None
        await until(lambda: ended == [b"1"])


async def test_http_says_so_when_a_change_cannot_be_recorded_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(store_access, "PATIENCE", 0.1)
    async with started("http") as place:
        place.journal.failure = FULL

        def put() -> tuple[int, Any]:
            request = urllib.request.Request(f"{place.url}/v1/kv/a", b"1", method="PUT")
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(request, timeout=60)
            return caught.value.code, json.load(caught.value)

        status, body = await asyncio.to_thread(put)
        assert status == 503
        assert "cannot record what has changed in the store: the journal in memory cannot" in body["detail"]


async def test_a_client_that_asks_on_and_on_while_nothing_can_be_recorded_is_answered_in_the_end() -> None:
    async with started("tcp") as place, place.store() as store:
        await store.set("key", "1")
        place.journal.failure = FULL
        async with anyio.create_task_group() as tasks:
            for number in range(2000):
                tasks.start_soon(store.set, f"key/{number}", b"x" * 1000)
            await until(lambda: place.fails)
            await place.is_answered()
            place.journal.failure = None
        assert await store.num_keys() == 2001


async def test_a_new_run_waits_for_nobody_where_the_journal_knows_that_there_was_none(place: Place) -> None:
    async with met(place):
        await place.restart()
    async with place.open("a", run_id="new") as a, place.open("b", run_id="new") as b:
        rounds: list[int] = []

        async def join(handler: Any) -> None:
            rounds.append((await handler.next_rendezvous()).round)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(join, a)
            tasks.start_soon(join, b)
        assert rounds == [0, 0]


async def test_a_directory_belongs_to_one_server(tmp_path: Path) -> None:
    async with ar.serve("127.0.0.1:0", data_dir=tmp_path):
        with pytest.raises(ar.RendezvousStateError, match="another server has"):
            async with ar.serve("127.0.0.1:0", data_dir=tmp_path):
                pass
    async with (
        ar.serve("127.0.0.1:0", data_dir=str(tmp_path), sync_full=True) as server,
        TcpStore("127.0.0.1", server.port) as store,
    ):
        await store.set("a", "1")


async def test_metrics_say_that_nothing_can_be_recorded_and_since_when() -> None:
    async with started("http") as place, met(place) as (a, _), place.store() as store:
        assert "arendezvous_journal_failing 0.0" in await metrics(place)
        place.journal.failure = FULL
        await a.leave()
        await until(lambda: place.fails)
        told = await metrics(place)
        assert "arendezvous_journal_failing 1.0" in told
        since = next(
            line for line in told.splitlines() if line.startswith("arendezvous_journal_failing_since")
        )
        assert abs(float(since.split()[1]) - time.time()) < 60
        place.journal.failure = None
        await store.set("key", "value")
        assert "arendezvous_journal_failing 0.0" in await metrics(place)
        assert "arendezvous_journal_failing_since" not in await metrics(place)


async def metrics(place: Place) -> str:
    def look() -> str:
        with urllib.request.urlopen(f"{place.url}/metrics", timeout=60) as response:
            text: str = response.read().decode()
            return text

    return await asyncio.to_thread(look)

"""Looking on and steering from Python: `connect` and `observe`, over each listener of a server."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from msgspec import structs

import arendezvous as ar
from arendezvous.connecting import looking
from arendezvous.law.events import (
    LawEvent,
    NodeDeparted,
    NodeQuarantined,
    RoundCompleted,
    RunHeld,
    RunReleased,
    RunResized,
)
from arendezvous.law.state import Phase
from tests.kit import waiting

PATIENCE = 30.0
ALL = "a-token-for-everything"
LOOK = "a-token-that-only-reads"
URLS = pytest.mark.parametrize("kind", ["tcp", "http"])


PLACES = pytest.mark.parametrize("kind", ["tcp", "http", "memory"])


@asynccontextmanager
async def a_place(kind: str) -> AsyncIterator[str]:
    """A URL of a server, or of this process."""
    if kind == "memory":
        yield "memory://connecting"
    else:
        async with a_server(kind) as (url, _):
            yield url


@asynccontextmanager
async def a_server(kind: str) -> AsyncIterator[tuple[str, ar.Server]]:
    async with ar.serve("127.0.0.1:0", http="127.0.0.1:0") as server:
        yield url_of(kind, server), server


def url_of(kind: str, server: ar.Server) -> str:
    """The server's URL for one of its listeners."""
    url = server.tcp_url if kind == "tcp" else server.http_url
    assert url is not None
    return url


def node(url: str, name: str, **options: object) -> ar.AsyncRendezvousHandler:
    given = {"min_nodes": 2, "max_nodes": 2, "last_call_timeout": 0.0, **options}
    return ar.open_rendezvous(url, run_id="job", node=name, **given)  # type: ignore[arg-type]  # a dict of them


async def until(run: ar.RunObserver, *kinds: type[LawEvent | ar.Missed]) -> list[LawEvent | ar.Missed]:
    """Takes events until there has been one of each kind."""
    seen: list[LawEvent | ar.Missed] = []
    async with asyncio.timeout(PATIENCE):
        while not all(any(isinstance(event, kind) for event in seen) for kind in kinds):
            seen.append(await anext(run))
    return seen


@PLACES
async def test_an_operator_holds_resizes_quarantines_and_takes_it_all_back(kind: str) -> None:
    async with (
        a_place(kind) as url, ar.connect(url, by="op") as server, node(url, "a") as a, node(url, "b") as b,
    ):  # fmt: skip
        first = asyncio.gather(a.next_rendezvous(), b.next_rendezvous())
        await first
        held = await server.hold("job", "storage", seconds=60)
        assert held.held is not None
        assert (held.held.by, held.held.reason) == ("op", "storage")
        again = asyncio.gather(a.next_rendezvous(), b.next_rendezvous())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(again), 0.2)
        assert (await server.release("job")).held is None
        assert {info.round for info in await again} == {1}
        sizes = await server.resize("job", 1, 1, reason="budget")
        assert [(one.max_nodes, one.by, one.reason) for one in sizes.resized] == [(1, "op", "budget")]
        async for change in a.changes():
            assert str(change) == "the run was resized by op to 1 node: budget"
            assert isinstance(change, ar.Resized)
            break
        assert (await a.outlook()).departed
        alone = asyncio.create_task(a.next_rendezvous())
        spare = asyncio.create_task(b.next_rendezvous())
        assert (await alone).world_size == 1
        status = await server.quarantine("job", "b", reason="bad NIC")
        assert [one.target for one in status.quarantined] == ["b"]
        with pytest.raises(ar.QuarantinedError, match="bad NIC") as caught:
            await spare
        assert (caught.value.by, caught.value.seconds) == ("op", None)
        assert not (await server.pardon("job", "b")).quarantined
        assert not (await server.resize("job", None)).resized
        met = asyncio.gather(b.next_rendezvous(), a.next_rendezvous())
        assert [info.world_size for info in await met] == [2, 2]
        assert [(run.run_id, run.participants) for run in await server.runs()] == [("job", 2)]


@PLACES
async def test_an_observer_is_told_what_happens_once_its_status_has_it(kind: str) -> None:
    async with a_place(kind) as url, ar.observe(url, run_id="job") as run:
        assert run.status.settings is None
        async with node(url, "a") as a, node(url, "b") as b:
            await asyncio.gather(a.next_rendezvous(), b.next_rendezvous())
            await until(run, RoundCompleted)
            assert [one.desc.name for one in run.members if one.phase is Phase.MEMBER] == [
                one.desc.name for one in run.members
            ]
            assert len(run.members) == 2
            async with ar.connect(url, by="op") as server:
                await server.hold("job")
                await server.release("job")
                await server.resize("job", 1, 3)
                await server.quarantine("job", "b")
            seen = await until(run, RunHeld, RunReleased, RunResized, NodeQuarantined, NodeDeparted)
            assert [type(event) for event in seen[:4]] == [RunHeld, RunReleased, RunResized, NodeQuarantined]
            assert [one.desc.name for one in run.members] == ["a"]
            assert run.status.sizes == (1, 3)


@URLS
async def test_an_observer_goes_on_at_a_server_that_was_restarted_and_says_that_it_missed_something(
    kind: str,
) -> None:
    async with a_server(kind) as (url, first):
        tcp, http = url_of("tcp", first), url_of("http", first)
    places = tcp.removeprefix("tcp://"), http.removeprefix("http://")
    async with ar.serve(places[0], http=places[1]):
        observing = ar.observe(url, run_id="job", read_timeout=0.5)
        run = await observing.__aenter__()
    try:
        await waiting.until(lambda: bool(run.outage))
        async with ar.serve(places[0], http=places[1]), node(tcp, "a", min_nodes=1) as a:
            await a.next_rendezvous()
            seen = await until(run, ar.Missed)
            assert ar.Missed(None) in seen
            async with asyncio.timeout(PATIENCE):
                while not run.members:
                    await anext(run)
            assert not run.outage
    finally:
        await observing.__aexit__(None, None, None)


@URLS
async def test_an_observer_of_all_runs_is_told_what_becomes_of_each(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("arendezvous.observing", "arendezvous.backends.tcp.watching"):
        monkeypatch.setattr(f"{module}.RUNS_INTERVAL", math.inf)  # nobody is asked twice
    async with a_server(kind) as (url, server), ar.observe(url) as runs, asyncio.timeout(PATIENCE):
        assert dict(runs.runs) == {}
        async with node(url, "a", min_nodes=1) as a:
            await a.next_rendezvous()
            while not (runs.runs.get("job") and runs.runs["job"].complete):
                changed = await anext(runs)
                assert isinstance(changed, ar.RunChanged)
                assert (changed.run_id, changed.summary) == ("job", runs.runs["job"])
        server.coordinator.limits = structs.replace(server.coordinator.limits, run_retention=0.0)
        server.coordinator.retention._on_timer()
        while runs.runs:
            await anext(runs)


async def test_an_observer_of_all_runs_in_this_process_is_told_of_each() -> None:
    url = "memory://connecting"
    async with node(url, "a", min_nodes=1) as a, ar.observe(url) as runs, asyncio.timeout(PATIENCE):
        assert dict(runs.runs) == {}
        await a.next_rendezvous()
        assert await anext(runs) == ar.RunChanged("job", runs.runs["job"])
        await a.set_closed("done")
        while not runs.runs["job"].closed:
            await anext(runs)


async def test_a_server_of_version_1_is_asked_for_its_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arendezvous.server.tcp.listener.VERSION", 1)
    monkeypatch.setattr("arendezvous.backends.tcp.watching.RUNS_INTERVAL", 0.01)
    async with (
        a_server("tcp") as (url, _), ar.observe(url) as runs, node(url, "a", min_nodes=1) as a,
        asyncio.timeout(PATIENCE),
    ):  # fmt: skip
        await a.next_rendezvous()
        while not (runs.runs.get("job") and runs.runs["job"].complete):
            await anext(runs)


@URLS
async def test_a_token_that_only_reads_is_enough_to_look_on_and_not_to_steer(kind: str) -> None:
    authority = ar.Authority([(ALL, ar.Grant(ar.Scope.SERVER)), (LOOK, ar.Grant(ar.Scope.READ))])
    async with ar.serve("127.0.0.1:0", http="127.0.0.1:0", authority=authority) as server:
        url = url_of(kind, server)
        async with node(url, "a", min_nodes=1, token=ALL) as a:
            await a.next_rendezvous()
            async with ar.observe(url, run_id="job", token=LOOK) as run:
                assert run.status.complete
            async with ar.connect(url, token=LOOK) as looking:
                assert (await looking.status("job")).complete
                with pytest.raises(ar.RendezvousPermissionError):
                    await looking.hold("job")
    with pytest.raises(ar.RendezvousConnectionError):
        async with ar.connect(url, read_timeout=0.2):
            raise AssertionError


@URLS
async def test_what_is_not_there_is_said_with_what_is_near(kind: str) -> None:
    async with (
        a_server(kind) as (url, _), ar.connect(url) as server, node(url, "trainer-1", min_nodes=1) as a,
    ):  # fmt: skip
        await a.next_rendezvous()
        with pytest.raises(ar.RendezvousNotFoundError, match="did you mean job"):
            await server.hold("jbo")
        with pytest.raises(ar.RendezvousNotFoundError, match="did you mean trainer-1"):
            await server.drain("job", "trainer-2")
        with pytest.raises(ar.RendezvousStateError, match="is not closed"):
            await server.reopen("job")
        closed = await server.close("job", "enough")
        assert closed.closed is not None
        assert closed.closed.reason == "enough"
        assert (await server.reopen("job")).incarnation == 2


@pytest.mark.parametrize("url", ["c10d://127.0.0.1:1", "etcd-v2://127.0.0.1:1", "static://127.0.0.1:1"])
def test_where_there_is_no_server_nobody_is_connected(url: str) -> None:
    with pytest.raises(ar.RendezvousSettingsError, match="a URL that begins with"):
        ar.connect(url)
    with pytest.raises(ar.RendezvousSettingsError, match="a URL that begins with"):
        ar.observe(url, run_id="job")


def test_an_option_that_a_server_does_not_take_is_named() -> None:
    with pytest.raises(ar.RendezvousSettingsError, match="cacert must be left out for tcp"):
        ar.connect("tcp://127.0.0.1:1", cacert="x")
    with pytest.raises(ar.RendezvousTypeError, match="tokn must be left out for tcp"):
        ar.connect("tcp://127.0.0.1:1", tokn="x")  # type: ignore[call-arg]  # that is the point


def test_who_looks_on_over_etcd_shows_the_token_of_the_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    _, where = looking("etcd://127.0.0.1", 5.0, {"token": LOOK})
    assert where.credentials.token == LOOK
    monkeypatch.setenv("ARENDEZVOUS_TOKEN", ALL)
    _, where = looking("etcd://127.0.0.1", 5.0, {})
    assert where.credentials.token == ALL


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda server: server.quarantine("job"), "the name of a node, or left out for a label"),
        (lambda server: server.quarantine("job", "a", label="b"), "left out for a label"),
        (lambda server: server.quarantine("job", "a", seconds=0), "more than 0 seconds"),
        (lambda server: server.hold("job", seconds=-1), "more than 0 seconds"),
        (lambda server: server.resize("job", 0), "at least 1, or None"),
        (lambda server: server.resize("job", 3, 2), "from min_nodes"),
        (lambda server: server.hold("job", "x" * 300), "printable characters"),
    ],
)
async def test_what_no_decision_can_be_is_refused_before_anybody_is_asked(call: object, said: str) -> None:
    server = ar.connect("tcp://127.0.0.1:1")
    with pytest.raises(ar.RendezvousSettingsError, match=said):
        await call(server)  # type: ignore[operator]  # it takes the server


async def test_an_observer_that_nobody_reads_says_how_many_events_it_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("arendezvous.observing.KEPT", 3)
    async with (
        a_server("tcp") as (url, _), ar.observe(url, run_id="job") as run, node(url, "a", min_nodes=1) as a,
    ):  # fmt: skip
        for _ in range(5):
            await a.next_rendezvous()
        await waiting.until(lambda: run.status.round == 4)
        first = await anext(run)
        assert isinstance(first, ar.Missed)
        assert first.count is not None
        assert first.count > 3


async def test_a_job_with_the_same_id_begins_anew_where_that_is_asked_for() -> None:
    async with a_server("tcp") as (url, _):
        async with node(url, "a", min_nodes=1) as a:
            await a.next_rendezvous()
            await a.set_closed("crash")
            await a.leave(cause=ar.Cause.FAILED)
        with pytest.raises(ar.RendezvousClosedError):
            async with node(url, "b", min_nodes=1, reopen="ended") as b:
                await b.next_rendezvous()
        async with node(url, "b", min_nodes=1, reopen="failed") as b:
            info = await b.next_rendezvous()
            assert (info.incarnation, info.world_size) == (2, 1)


@pytest.mark.parametrize("url", ["c10d://127.0.0.1:1", "etcd-v2://127.0.0.1:1", "static://127.0.0.1:1"])
@pytest.mark.parametrize("option", [{"reopen": "ended"}, {"strikes": 2}, {"stop_after": 3}])
def test_backends_without_a_law_of_their_own_refuse_what_they_cannot_do(
    url: str, option: dict[str, object]
) -> None:
    [name] = option
    with pytest.raises(ar.RendezvousSettingsError, match=f"{name} must be left out for"):
        ar.open_rendezvous(url, run_id="job", min_nodes=1, **option)  # type: ignore[arg-type]  # a dict of them

"""Watching a run from outside: its status, and then everything that happens to it, in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

import arendezvous as ar
from arendezvous.backends.tcp.session import SessionBackend
from arendezvous.backends.tcp.watching import RunWatch, watch_server
from arendezvous.coordinator.coordinator import Coordinator, Observer
from arendezvous.errors import RendezvousConnectionError, RendezvousSettingsError
from arendezvous.law.events import LawEvent, RoundOpened, RunClosed, RunReopened
from arendezvous.law.operations import Close, Reopen
from arendezvous.law.status import RunStatus
from arendezvous.net.servers import Servers
from arendezvous.server.store_server import serve_store
from arendezvous.server.tcp import watching
from arendezvous.server.tcp.session import NativeSession
from arendezvous.server.tcp.sharing import Turns
from arendezvous.server.tcp.watching import Watching
from arendezvous.wire.native.messages import HEADER, VERSION, Happened, decode_server

CLOSED = RunClosed("me", "enough")
REOPENED: tuple[LawEvent, ...] = (RunReopened(2, "me"), RoundOpened(1))


class Watcher:
    """Keeps what it is told of the run ``job``."""

    def __init__(self, watching: Watching) -> None:
        self._watching = watching
        self.version = VERSION
        self.told: list[tuple[tuple[LawEvent, ...], int]] = []
        watching.watch("job", self)

    def tell(self, frame: bytes) -> None:
        news = decode_server(frame[HEADER:])
        assert isinstance(news, Happened)
        assert news.id == 0
        self.told.append((news.events, news.missed))

    def pause(self) -> None:
        self._watching.pause("job", self)

    def resume(self) -> None:
        self._watching.resume("job", self)

    def leave(self) -> None:
        self._watching.leave("job", self)


class Watched:
    """A coordinator, and those who watch its run ``job``."""

    def __init__(self, watchers: int = 1) -> None:
        self.coordinator = Coordinator(asyncio.get_running_loop())
        watching = Watching(self.coordinator, Turns())
        self.watchers = [Watcher(watching) for _ in range(watchers)]

    def close_run(self) -> None:
        self.coordinator.steer("job", Close("me", "enough"))

    def reopen_run(self) -> None:
        self.coordinator.steer("job", Reopen(1, "me"))


async def test_a_watcher_is_told_together_what_one_turn_of_the_loop_brings_and_nothing_of_other_runs() -> (
    None
):
    watched = Watched()
    watched.close_run()
    watched.coordinator.steer("other", Close("me", "not this one"))
    watched.reopen_run()
    assert watched.watchers[0].told == []
    await asyncio.sleep(0)
    assert watched.watchers[0].told == [((CLOSED, *REOPENED), 0)]


async def test_what_happens_is_kept_back_from_a_paused_watcher_until_it_is_resumed_and_not_from_others() -> (
    None
):
    watched = Watched(2)
    paused, other = watched.watchers
    watched.close_run()
    paused.pause()
    await asyncio.sleep(0)
    watched.reopen_run()
    await asyncio.sleep(0)
    assert paused.told == []
    assert other.told == [((CLOSED,), 0), (REOPENED, 0)]
    paused.resume()
    await asyncio.sleep(0)
    assert paused.told == [((CLOSED, *REOPENED), 0)]
    assert len(other.told) == 2


async def test_what_cannot_be_kept_back_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "BACKLOG", 1)
    watched = Watched()
    [watcher] = watched.watchers
    watcher.pause()
    watched.close_run()
    watched.reopen_run()
    watcher.resume()
    await asyncio.sleep(0)
    assert watcher.told == [((RoundOpened(1),), 2)]


@pytest.mark.parametrize("paused", [False, True])
async def test_who_has_left_is_told_nothing_more_and_others_are(paused: bool) -> None:
    watched = Watched(2)
    gone, other = watched.watchers
    watched.close_run()
    if paused:
        gone.pause()
    gone.leave()
    watched.reopen_run()
    await asyncio.sleep(0)
    assert (gone.told, other.told) == ([], [((CLOSED, *REOPENED), 0)])


async def test_a_crowd_of_watchers_is_told_some_at_a_time_and_misses_nothing() -> None:
    watched = Watched(1000)
    watched.close_run()
    await asyncio.sleep(0)
    assert 0 < sum(bool(watcher.told) for watcher in watched.watchers) < 1000
    watched.reopen_run()
    for _ in range(1000):
        await asyncio.sleep(0)
    for watcher in watched.watchers:
        assert [event for events, _ in watcher.told for event in events] == [CLOSED, *REOPENED]
        assert [missed for _, missed in watcher.told if missed] == []


@asynccontextmanager
async def a_watched_run() -> AsyncIterator[tuple[ar.Server, SessionBackend, RunWatch]]:
    """Runs a server, a session that steers the run ``job``, and a watch of it."""
    async with (
        ar.serve("127.0.0.1:0") as server,
        SessionBackend(server.host, server.port, "job", read_timeout=60) as backend,
        watch_server(Servers([(server.host, server.port)]), RunWatch, "job") as watch,
    ):
        yield server, backend, watch


async def test_a_watch_begins_with_the_status_and_goes_on_with_what_happens() -> None:
    async with asyncio.timeout(120), a_watched_run() as (_, backend, watch):
        assert await anext(watch) == RunStatus("job")
        await backend.propose(Close("me", "enough"))
        closed = await anext(watch)
        await backend.propose(Reopen(1, "me"))
        reopened = await anext(watch)
    assert isinstance(closed, Happened)
    assert isinstance(reopened, Happened)
    assert (closed.events, reopened.events) == ((CLOSED,), REOPENED)
    assert 0 < closed.at <= reopened.at


async def test_a_watch_gives_a_fresh_status_when_asked() -> None:
    async with asyncio.timeout(120), a_watched_run() as (_, backend, watch):
        await anext(watch)
        await backend.propose(Close("me", "enough"))
        await anext(watch)
        await watch.ask_status()
        status = await anext(watch)
    assert isinstance(status, RunStatus)
    assert status.closed is not None
    assert status.closed.reason == "enough"


async def test_a_watch_that_was_not_read_for_a_while_is_told_everything_once_it_is_read_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pauses = 0
    pause = NativeSession.pause_writing

    def counted(session: NativeSession) -> None:
        nonlocal pauses
        pauses += 1
        pause(session)

    monkeypatch.setattr(NativeSession, "pause_writing", counted)
    reason = "x" * 256
    async with asyncio.timeout(120), a_watched_run() as (server, _, watch):
        await anext(watch)
        incarnation = 1
        while not pauses:  # until the kernel's buffers and ours are full
            for _ in range(500):
                server.coordinator.steer("job", Close("me", reason))
                server.coordinator.steer("job", Reopen(incarnation, "me"))
                incarnation += 1
            await asyncio.sleep(0)
        server.coordinator.steer("job", Close("me", "the last"))
        told: list[LawEvent] = []
        while RunClosed("me", "the last") not in told:
            news = await anext(watch)
            assert isinstance(news, Happened)
            assert news.missed == 0
            told += news.events
        assert [event.incarnation for event in told if isinstance(event, RunReopened)] == list(
            range(2, incarnation + 1)
        )
        server.coordinator.steer("job", Reopen(incarnation, "me"))
        news = await anext(watch)
        assert isinstance(news, Happened)
        assert news.events[0] == RunReopened(incarnation + 1, "me")


async def test_a_session_that_is_gone_is_not_told_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    async with asyncio.timeout(120), ar.serve("127.0.0.1:0") as server:
        begin, begun, ended = server.coordinator.observe, asyncio.Event(), asyncio.Event()

        def observe(observer: Observer, *kinds: type[LawEvent]) -> Callable[[], None]:
            stop = begin(observer, *kinds)
            begun.set()

            def end() -> None:
                stop()
                ended.set()

            return end

        monkeypatch.setattr(server.coordinator, "observe", observe)
        async with watch_server(Servers([(server.host, server.port)]), RunWatch, "job") as watch:
            await anext(watch)
            assert (begun.is_set(), ended.is_set()) == (True, False)
        await ended.wait()


async def test_a_watch_says_so_when_its_server_ends() -> None:
    async with asyncio.timeout(120), AsyncExitStack() as stack:
        server = await stack.enter_async_context(ar.serve("127.0.0.1:0"))
        async with watch_server(Servers([(server.host, server.port)]), RunWatch, "job") as watch:
            await anext(watch)
            await stack.aclose()
            with pytest.raises(
                RendezvousConnectionError, match=f"the connection to {server.tcp_url} is lost"
            ):
                await anext(watch)


async def test_a_watch_of_a_plain_store_hints_at_the_doctor() -> None:
    async with (
        asyncio.timeout(120),
        serve_store("127.0.0.1") as store,
        watch_server(Servers([("127.0.0.1", store.port)]), RunWatch, "job") as watch,
    ):
        with pytest.raises(RendezvousConnectionError, match="arendezvous doctor"):
            await anext(watch)


async def test_a_watch_where_nobody_listens_fails_at_once(free_port: int) -> None:
    with pytest.raises(RendezvousConnectionError, match="could not be reached"):
        async with watch_server(Servers([("127.0.0.1", free_port)]), RunWatch, "job"):
            pass


async def test_a_watch_of_an_impossible_run_is_refused_with_the_reason() -> None:
    async with (
        asyncio.timeout(120),
        ar.serve("127.0.0.1:0") as server,
        watch_server(Servers([(server.host, server.port)]), RunWatch, "x" * 300) as watch,
    ):
        with pytest.raises(RendezvousSettingsError, match="run id"):
            await anext(watch)

"""Watching our server from outside, over HTTP: one run and all that happens to it, or all runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, closing, suppress
from functools import partial
from typing import Any, Final
from urllib.parse import quote

from arendezvous.backends import feed
from arendezvous.backends.base import BACKOFF
from arendezvous.backends.http.retrying import persist, run_path
from arendezvous.backends.tcp.watching import News
from arendezvous.backends.troubles import Skipped
from arendezvous.errors import RendezvousConnectionError, RendezvousError
from arendezvous.law.events import NodeUpdated
from arendezvous.law.status import RunStatus
from arendezvous.net.background import Background
from arendezvous.net.credentials import NO_CREDENTIALS, Credentials
from arendezvous.net.http_client import EventReader, HttpClient, UnansweredError
from arendezvous.wire.foreign import decode_foreign, json_decoder
from arendezvous.wire.http import bodies
from arendezvous.wire.http.answers import HttpAnswer
from arendezvous.wire.http.sse import ServerEvent
from arendezvous.wire.native.messages import Happened, RunSummary

MAX_NEWS: Final = 1024  # not taken yet; then nothing is read, and the server counts what it leaves out
PAGE: Final = 1000  # runs in one answer
MOST_RUNS: Final = 1_000_000  # in a list: no server keeps as many

_decode_forgotten: Final = json_decoder(bodies.ForgottenBody)
_OF_ONE: Final[Mapping[str, Callable[[bytes], RunSummary | str]]] = {  # what a stream tells of one run
    "run": bodies.SUMMARY.decode,
    "forgotten": lambda data: _decode_forgotten(data).run_id,
}


_NEWS: Final[Mapping[str, tuple[Callable[[bytes], Any], Callable[[Any], Happened]]]] = {
    "happened": (json_decoder(bodies.EventBody), lambda body: Happened(0, body.at, (body.event,))),
    "state": (bodies.STATE.decode, lambda body: Happened(0, 0.0, (NodeUpdated(body.node, body.state),))),
    "reset": (json_decoder(bodies.ResetBody), lambda body: Happened(0, 0.0, (), body.missed or 1)),
}  # of one run


class HttpRunWatch(feed.News[News]):
    """The news of one run: first its status, then what happens; and a status whenever `ask_status` asked.

    It takes no part in the run. A stream that breaks is opened again where it broke.

    Its fields, besides those of `feed.News`:
        _room: Set unless there is so much that nothing more is read.
        _last_event: The id of the latest event that has come; empty: none.
        _skipped: The events that were not understood: each is told of as one that was missed.
    """

    def __init__(self, client: HttpClient, run_id: str, timeout: float) -> None:
        super().__init__()
        self._client = client
        self._run_id = run_id
        self._path = run_path(run_id)
        self._timeout = timeout
        self._room = asyncio.Event()
        self._room.set()
        self._last_event = ""
        self._skipped = Skipped(client.url)

    async def __anext__(self) -> News:
        """Waits for news. Cancellation: safe; nothing is lost.

        Raises:
            RendezvousConnectionError: The server could not be reached for as long as the time-out.
        """
        news = await super().__anext__()
        if len(self._news) < MAX_NEWS:
            self._room.set()
        return news

    async def ask_status(self) -> None:
        """Asks for a fresh status, which will be among the news. Raises as iterating does."""
        await self._take_status()

    async def begin(self, background: Background) -> None:
        """Asks for the status, and for what happens after it; called once, by `watch_run`."""
        self._last_event = await self._take_status()
        background.start(self._follow, await self._opened())

    async def _take_status(self) -> str:
        """Puts the status among the news; returns the id of the latest event that is in it."""
        attempt = partial(self._client.request, "GET", self._path, limit=self._timeout)
        answer = await persist(attempt, self._client.url, self._timeout)
        if answer.kind == "no-such-run":
            self.add(RunStatus(self._run_id))
            return ""
        body = answer.read(bodies.RUN.decode)
        self.add(body.status)
        return body.last_event

    async def _opened(self) -> EventReader:
        headers = {"Last-Event-ID": self._last_event} if self._last_event else {}
        path = f"{self._path}/events"
        attempt = partial(self._client.stream, "GET", path, b"", headers, limit=self._timeout)
        source = await persist(attempt, self._client.url, self._timeout)
        if isinstance(source, HttpAnswer):
            raise source.error()
        return source

    async def _follow(self, source: EventReader) -> None:
        """Takes in what happens, and opens the stream again when it breaks."""
        pauses = BACKOFF.start()
        try:
            while True:
                pauses.succeeded()
                with suppress(UnansweredError), closing(source):
                    while True:
                        await self._room.wait()
                        self._receive(await anext(source))
                await pauses.sleep()
                source = await self._opened()
        except RendezvousError as error:
            self.fail(error)

    def _receive(self, event: ServerEvent) -> None:
        self._last_event = event.id or self._last_event
        if event.name not in _NEWS:
            return
        decode, make = _NEWS[event.name]
        try:
            news = decode_foreign(lambda data: make(decode(data)), event.data, ValueError)
        except ValueError as error:  # by a later version of the server, for instance
            self._skipped.note("an event", str(error))
            news = Happened(0, 0.0, (), 1)
        self.add(news)

    def add(self, news: News) -> None:
        super().add(news)
        if len(self._news) >= MAX_NEWS:
            self._room.clear()


@asynccontextmanager
async def watch_run(
    url: str,
    run_id: str,
    *,
    timeout: float = 5.0,
    credentials: Credentials = NO_CREDENTIALS,
    others: Sequence[str] = (),
) -> AsyncIterator[HttpRunWatch]:
    """Watches a run while the block runs.

    Args:
        url: The server's base URL.
        run_id: The run; it need not exist yet.
        timeout: Seconds that the server may be out of reach.
        credentials: The token that is shown to the server, and the TLS settings.
        others: The base URLs of servers that stand in for it.

    Raises:
        RendezvousConnectionError: The server could not be reached within `timeout`.
        RendezvousPermissionError: The token is missing, or not good for this run.
    """
    client = HttpClient(url, credentials, others=others)
    watch = HttpRunWatch(client, run_id, timeout)
    background = Background(url, watch.fail)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(client.close)
        stack.push_async_callback(background.close)
        await watch.begin(background)
        yield watch


@asynccontextmanager
async def watch_runs(
    url: str, *, timeout: float = 5.0, credentials: Credentials = NO_CREDENTIALS, others: Sequence[str] = ()
) -> AsyncIterator[AsyncIterator[feed.RunsItem]]:
    """Watches all runs while the block runs: all of them first, then one that has changed, or is forgotten.

    Takes, and raises, as `watch_run` does; from the iteration, too, once the stream is over.
    """
    client = HttpClient(url, credentials, others=others)
    try:
        async with aclosing(_items(client, timeout)) as items:
            yield items
    finally:
        await client.close()


async def _items(client: HttpClient, timeout: float) -> AsyncGenerator[feed.RunsItem, None]:
    async def ask(path: str) -> HttpAnswer:
        return await persist(partial(client.request, "GET", path, limit=timeout), client.url, timeout)

    source = await persist(partial(client.stream, "GET", "/v1/events", limit=timeout), client.url, timeout)
    if isinstance(source, HttpAnswer):
        raise source.error()
    try:
        while True:
            event = await anext(source)
            if event.name == "runs":
                page = decode_foreign(bodies.RUNS.decode, event.data, ValueError)
                yield await all_runs(ask, client.url, page)
            elif (read := _OF_ONE.get(event.name)) is not None:
                yield decode_foreign(read, event.data, ValueError)
    except (ValueError, UnansweredError) as error:
        is_lost = isinstance(error, UnansweredError)
        url = client.url
        said = f"the connection to {url} is lost" if is_lost else f"{url} does not speak our protocol"
        raise RendezvousConnectionError(f"{said}: {error}", endpoint=url, doing="watching") from error
    finally:
        source.close()


async def all_runs(
    ask: Callable[[str], Awaitable[HttpAnswer]], url: str, page: bodies.RunsBody
) -> tuple[RunSummary, ...]:
    """Asks a server for the runs that do not fit into the first page of them; returns all."""
    found = list(page.runs)
    while page.next is not None:
        if not page.runs or len(found) > MOST_RUNS:
            said = f"{url} lists runs without end"
            raise RendezvousConnectionError(said, endpoint=url, doing="listing the runs")
        answer = await ask(f"/v1/runs?limit={PAGE}&after={quote(page.next, safe='')}")
        page = answer.read(bodies.RUNS.decode)
        found += page.runs
    return tuple(found)

"""Watching a run at our server from outside, over HTTP: its status first, then all that happens to it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Self

import msgspec

from arendezvous.backends.http.attempts import Attempts, run_path
from arendezvous.backends.http.connection import EventSource
from arendezvous.backends.http.link import Answer, HttpLink, UnansweredError
from arendezvous.backends.tcp.watching import News
from arendezvous.law.status import RunStatus
from arendezvous.net.credentials import NO_CREDENTIALS, Credentials
from arendezvous.wire.http.bodies import RUN, EventBody, ResetBody
from arendezvous.wire.http.sse import ServerEvent
from arendezvous.wire.native.messages import Happened


class HttpRunWatch(AsyncIterator[News]):
    """The news of one run: first its status, then what happens; and a status whenever `ask_status` asked.

    It takes no part in the run. A stream that breaks is opened again where it broke. The iteration ends with
    an error alone.
    """

    def __init__(self, link: HttpLink, run_id: str, timeout: float) -> None:
        self._link = link
        self._run_id = run_id
        self._path = run_path(run_id)
        self._timeout = timeout
        self._news: deque[News] = deque()
        self._woken = asyncio.Event()
        self._source: EventSource | None = None
        self._last_event = ""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> News:
        """Waits for news. Cancellation: safe; nothing is lost.

        Raises:
            RendezvousConnectionError: The server could not be reached for as long as the time-out.
        """
        while not self._news:
            if self._source is None:
                await self._follow()
            await self._woken.wait()
            self._woken.clear()
        return self._news.popleft()

    async def ask_status(self) -> None:
        """Asks for a fresh status, which will be among the news.

        Raises:
            RendezvousConnectionError: The server could not be reached for as long as the time-out.
        """
        await self._take_status()

    async def begin(self) -> None:
        """Asks for the status, and for what happens after it; called once, by `watch_run`."""
        self._last_event = await self._take_status()
        await self._follow()

    def close(self) -> None:
        """Ends the watch."""
        source, self._source = self._source, None
        if source is not None:
            source.close()

    async def _take_status(self) -> str:
        """Puts the status among the news; returns the id of the latest event that is in it."""
        attempts = Attempts(self._link.url, self._timeout)
        while True:
            try:
                answer = await self._link.request("GET", self._path, limit=self._timeout)
                break
            except UnansweredError as error:
                await attempts.failed(error)
        body = None
        if answer.is_good:
            body = RUN.decode(answer.body)
        elif answer.kind != "no-such-run":
            raise answer.error()
        self._add(RunStatus(self._run_id) if body is None else body.status)
        return "" if body is None else body.last_event

    async def _follow(self) -> None:
        attempts = Attempts(self._link.url, self._timeout)
        headers = {"Last-Event-ID": self._last_event} if self._last_event else None
        while True:
            try:
                source = await self._link.stream(
                    "GET", f"{self._path}/events", headers=headers, limit=self._timeout
                )
                break
            except UnansweredError as error:
                await attempts.failed(error)
        if isinstance(source, Answer):
            raise source.error()

        def lost(_: str) -> None:
            if self._source is source:
                self._source = None
                self._woken.set()

        self._source = source
        source.start(self._receive, lost)

    def _receive(self, event: ServerEvent) -> None:
        self._last_event = event.id or self._last_event
        with suppress(msgspec.MsgspecError):  # an event of a later version of the server
            self._take(event)

    def _take(self, event: ServerEvent) -> None:
        if event.name == "happened":
            body = msgspec.json.decode(event.data, type=EventBody)
            self._add(Happened(0, body.at, (body.event,)))
        elif event.name == "reset":
            missed = msgspec.json.decode(event.data, type=ResetBody).missed
            self._add(Happened(0, 0.0, (), missed or 1))

    def _add(self, news: News) -> None:
        self._news.append(news)
        self._woken.set()


@asynccontextmanager
async def watch_run(
    url: str, run_id: str, *, timeout: float = 5.0, credentials: Credentials = NO_CREDENTIALS
) -> AsyncIterator[HttpRunWatch]:
    """Watches a run while the block runs.

    Args:
        url: The server's base URL.
        run_id: The run; it need not exist yet.
        timeout: Seconds that the server may be out of reach.
        credentials: The token that is shown to the server, and the TLS settings.

    Raises:
        RendezvousConnectionError: The server could not be reached within `timeout`.
        RendezvousPermissionError: The token is missing, or not good for this run.
    """
    link = HttpLink(url, credentials)
    link.open()
    watch = HttpRunWatch(link, run_id, timeout)
    try:
        await watch.begin()
        yield watch
    finally:
        watch.close()
        link.close()

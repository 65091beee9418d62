"""Watching a run at our server from outside, over HTTP: its status first, then all that happens to it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Final, Self

from arendezvous.backends.http.retrying import BACKOFF, persist, run_path
from arendezvous.backends.tcp.watching import News
from arendezvous.backends.troubles import Skipped
from arendezvous.errors import RendezvousError
from arendezvous.law.events import NodeUpdated
from arendezvous.law.status import RunStatus
from arendezvous.net.background import Background
from arendezvous.net.credentials import NO_CREDENTIALS, Credentials
from arendezvous.net.http_client import EventReader, HttpClient, UnansweredError
from arendezvous.wire.foreign import decode_foreign, json_decoder
from arendezvous.wire.http.answers import HttpAnswer
from arendezvous.wire.http.bodies import RUN, STATE, EventBody, ResetBody
from arendezvous.wire.http.sse import ServerEvent
from arendezvous.wire.native.messages import Happened

MAX_NEWS: Final = (
    1024  # that nobody has taken; then nothing is read, and the server counts what it leaves out
)


def _read_event(data: bytes) -> Happened:
    body = _decode_event(data)
    return Happened(0, body.at, (body.event,))


def _read_reset(data: bytes) -> Happened:
    return Happened(0, 0.0, (), _decode_reset(data).missed or 1)


def _read_state(data: bytes) -> Happened:
    said = STATE.decode(data)
    return Happened(0, 0.0, (NodeUpdated(said.node, said.state),))


_decode_event: Final = json_decoder(EventBody)
_decode_reset: Final = json_decoder(ResetBody)
_DECODERS: Final[Mapping[str, Callable[[bytes], Happened]]] = {
    "happened": _read_event,
    "state": _read_state,
    "reset": _read_reset,
}


class HttpRunWatch(AsyncIterator[News]):
    """The news of one run: first its status, then what happens; and a status whenever `ask_status` asked.

    It takes no part in the run. A stream that breaks is opened again where it broke. The iteration ends with
    an error alone.

    Its fields:
        _news: What nobody has taken yet.
        _woken: Set when there is more of it, or an error.
        _room: Set unless there is so much that nothing more is read.
        _last_event: The id of the latest event that has come; empty: none.
        _failure: Why no more news come; None as long as they do.
        _skipped: The events that were not understood: each is told of as one that was missed.
    """

    def __init__(self, client: HttpClient, run_id: str, timeout: float) -> None:
        self._client = client
        self._run_id = run_id
        self._path = run_path(run_id)
        self._timeout = timeout
        self._news: deque[News] = deque()
        self._woken = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._last_event = ""
        self._failure: RendezvousError | None = None
        self._skipped = Skipped(client.url)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> News:
        """Waits for news. Cancellation: safe; nothing is lost.

        Raises:
            RendezvousConnectionError: The server could not be reached for as long as the time-out.
        """
        while not self._news:
            if self._failure is not None:
                raise self._failure.with_traceback(None)
            self._woken.clear()
            await self._woken.wait()
        news = self._news.popleft()
        if len(self._news) < MAX_NEWS:
            self._room.set()
        return news

    async def ask_status(self) -> None:
        """Asks for a fresh status, which will be among the news.

        Raises:
            RendezvousConnectionError: The server could not be reached for as long as the time-out.
        """
        await self._take_status()

    async def begin(self, background: Background) -> None:
        """Asks for the status, and for what happens after it; called once, by `watch_run`."""
        self._last_event = await self._take_status()
        background.start(self._follow, await self._opened())

    def fail(self, error: RendezvousError) -> None:
        """Ends the iteration with `error`, once the news that there are have been taken."""
        self._failure = error
        self._woken.set()

    async def _take_status(self) -> str:
        """Puts the status among the news; returns the id of the latest event that is in it."""
        attempt = partial(self._client.request, "GET", self._path, limit=self._timeout)
        answer = await persist(attempt, self._client.url, self._timeout)
        if answer.kind == "no-such-run":
            self._add(RunStatus(self._run_id))
            return ""
        body = answer.read(RUN.decode)
        self._add(body.status)
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
                await self._read(source)
                await pauses.sleep()
                source = await self._opened()
        except RendezvousError as error:
            self.fail(error)

    async def _read(self, source: EventReader) -> None:
        """Takes in what happens until the stream is over."""
        try:
            with suppress(UnansweredError):
                while True:
                    await self._room.wait()
                    self._receive(await anext(source))
        finally:
            source.close()

    def _receive(self, event: ServerEvent) -> None:
        self._last_event = event.id or self._last_event
        decode = _DECODERS.get(event.name)
        if decode is None:
            return
        try:
            news = decode_foreign(decode, event.data, ValueError)
        except ValueError as error:  # by a later version of the server, for instance
            self._skipped.note("an event", str(error))
            news = Happened(0, 0.0, (), 1)
        self._add(news)

    def _add(self, news: News) -> None:
        self._news.append(news)
        self._woken.set()
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
    try:
        await watch.begin(background)
        yield watch
    finally:
        try:
            await background.close()
        finally:
            await client.close()

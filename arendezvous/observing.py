"""Follows a run from outside: over restarts of the server, and with a word on whatever was missed."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, suppress
from types import MappingProxyType, TracebackType
from typing import ClassVar, Final, NoReturn, Self, TypeAlias

import anyio
import msgspec

from arendezvous import guesses
from arendezvous.backends.port import RendezvousBackend
from arendezvous.errors import RendezvousConnectionError, RendezvousError
from arendezvous.law.events import LawEvent
from arendezvous.law.state import Phase
from arendezvous.law.status import NodeStatus, RunStatus
from arendezvous.net.background import Background, require_asyncio
from arendezvous.net.backoff import Backoff
from arendezvous.schemes import BackendSettings, RunNews, Scheme, ServerBackend
from arendezvous.wire.native.messages import Happened, RunSummary

BACKOFF: Final = Backoff(first=0.1, last=5.0)
RUNS_INTERVAL: Final = 1.0  # seconds between two lists of runs, of a server that has to be asked
KEPT: Final = 4096  # events that nobody has taken


class Outage(msgspec.Struct, frozen=True):
    """The server cannot be reached any more; what happens until the next status is not known."""

    reason: str


class Missed(msgspec.Struct, frozen=True):
    """Something has happened that is not told: `RunObserver.status` has what came of it.

    Attributes:
        count: How many events; None: nobody knows, as the server was out of reach.
    """

    count: int | None


Item: TypeAlias = RunStatus | Happened | Outage
RunsItem: TypeAlias = RunSummary | str | Sequence[RunSummary]  # one that changed, is forgotten; or all


class NewsFeed:
    """The news of one run from one server, whatever happens to the server.

    Args:
        connect: Watches the run while the block runs: `Scheme.watch`.

    Its fields:
        _news: The present watch; None while there is none.
    """

    def __init__(self, connect: Callable[[], AbstractAsyncContextManager[RunNews]]) -> None:
        self._connect = connect
        self._news: RunNews | None = None

    async def follow(self, take: Callable[[Item], None]) -> NoReturn:
        """Hands all news to `take`: a status first, and again after each outage. Cancellation: safe.

        Raises:
            RendezvousError: The server could not be reached at the beginning, or refuses.
        """
        pauses = BACKOFF.start()
        reached = down = False
        while True:
            try:
                async with self._connect() as self._news:
                    async for item in self._news:
                        pauses.succeeded()
                        reached, down = True, False
                        take(item)
            except RendezvousConnectionError as error:
                if not reached:
                    raise
                if not down:
                    down = True
                    take(Outage(error.message))
            finally:
                self._news = None
            await pauses.sleep()

    async def ask_status(self) -> None:
        """Asks for a fresh status, if there is a connection. Cancellation: whether it was is then unknown."""
        if self._news is None:
            return
        with suppress(RendezvousConnectionError):  # `follow` finds out, too
            await self._news.ask_status()


class RunChanged(msgspec.Struct, frozen=True):
    """A run is new, or not as it was.

    Attributes:
        run_id: The run.
        summary: What it looks like now, in short.
    """

    run_id: str
    summary: RunSummary


class RunForgotten(msgspec.Struct, frozen=True):
    """The server has forgotten a run, as nobody was in it any more."""

    run_id: str


@asynccontextmanager
async def ask_for_runs(scheme: Scheme, where: BackendSettings) -> AsyncIterator[AsyncIterator[RunsItem]]:
    """Asks a server for its runs again and again while the block runs, as it tells nobody by itself.

    Raises:
        RendezvousConnectionError: The server could not be reached within the read time-out.
    """
    assert scheme.backend is not None  # noqa: S101 - a server has one
    async with scheme.backend(where) as backend, aclosing(_asked(backend)) as runs:
        yield runs


async def _asked(backend: RendezvousBackend) -> AsyncGenerator[RunsItem, None]:
    assert isinstance(backend, ServerBackend)  # noqa: S101 - the entry of its scheme says so
    while True:
        yield await backend.runs()
        await anyio.sleep(RUNS_INTERVAL)


class ServerObserver(guesses.Guessable, AsyncIterator[RunChanged | RunForgotten]):
    """Looks on at all runs of a server that the token is good for.

    An asynchronous context manager; inside the block it iterates over what becomes of the runs, the latest of
    each. A server that ends is waited for; what has changed meanwhile is told then.

    Args:
        connect: Lists the runs, and what becomes of them, while the block runs.
        endpoint: Where, for the log.

    Its fields:
        _runs: The runs, by their ids; None before the first list.
        _told: What has become of which run, and has not been handed over.
        _woken: Set when there is something new, or an error.
        _outage: Why the server is out of reach; empty: it is not.
        _failure: Why the iteration ends; None as long as it does not.
        _background: What follows the server; None outside of the block.
    """

    GUESSES: ClassVar = guesses.OBSERVER

    def __init__(
        self, connect: Callable[[], AbstractAsyncContextManager[AsyncIterator[RunsItem]]], endpoint: str
    ) -> None:
        self._connect = connect
        self._endpoint = endpoint
        self._background: Background | None = None
        self._begin()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: all runs, over {self._endpoint}>"

    def _begin(self) -> None:
        self._runs: dict[str, RunSummary] | None = None
        self._told: dict[str, RunChanged | RunForgotten] = {}
        self._woken = anyio.Event()
        self._outage = ""
        self._failure: RendezvousError | None = None

    async def __aenter__(self) -> Self:
        """Connects, and takes the list of runs. Cancellation: safe; nothing is left open.

        Raises:
            RendezvousConnectionError: The server could not be reached in time.
            RendezvousPermissionError: The token is missing or wrong.
        """
        require_asyncio("an observer")
        self._begin()
        self._background = Background(f"observing {self._endpoint}", self._fail)
        self._background.start(self._follow)
        try:
            while self._runs is None:
                await self._wait()
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        self._told.clear()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnects."""
        background, self._background = self._background, None
        if background is not None:
            await background.close()

    @property
    def runs(self) -> Mapping[str, RunSummary]:
        """The runs as they were told last, by their ids.

        Raises:
            RuntimeError: Outside of the block, before it was ever entered.
        """
        if self._runs is None:
            raise RuntimeError("an observer has runs inside its 'async with' block")
        return MappingProxyType(self._runs)

    @property
    def outage(self) -> str:
        """Says why the server cannot be reached at present; empty if it can."""
        return self._outage

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> RunChanged | RunForgotten:
        """Waits until something becomes of a run. Cancellation: safe; nothing is lost.

        Raises:
            RendezvousError: The server refuses.
            RuntimeError: The observer is used outside of its block.
        """
        if self._background is None:
            raise RuntimeError("an observer is used outside of its 'async with' block")
        while not self._told:
            await self._wait()
        return self._told.pop(next(iter(self._told)))

    async def _wait(self) -> None:
        """Waits until there is something new.

        Raises:
            RendezvousError: Nothing new will come.
        """
        if self._failure is not None:
            raise self._failure.with_traceback(None)
        await self._woken.wait()
        self._woken = anyio.Event()

    async def _follow(self) -> None:
        pauses = BACKOFF.start()
        while True:
            try:
                async with self._connect() as items:
                    async for item in items:
                        pauses.succeeded()
                        self._outage = ""
                        self._take(item)
            except RendezvousConnectionError as error:
                if self._runs is None:
                    self._fail(error)
                    return
                self._outage = error.message
            except RendezvousError as error:
                self._fail(error)
                return
            await pauses.sleep()

    def _take(self, item: RunsItem) -> None:
        before = self._runs or {}
        if isinstance(item, RunSummary):
            self._runs = before | {item.run_id: item}
        elif isinstance(item, str):
            self._runs = {name: run for name, run in before.items() if name != item}
        else:
            self._runs = {run.run_id: run for run in item}
        for name, run in self._runs.items():
            if before.get(name) != run:
                self._tell(RunChanged(name, run))
        for name in before.keys() - self._runs.keys():
            self._tell(RunForgotten(name))
        self._woken.set()

    def _tell(self, event: RunChanged | RunForgotten) -> None:
        """Has an event handed over, in place of an earlier one of its run."""
        self._told.pop(event.run_id, None)
        self._told[event.run_id] = event

    def _fail(self, error: RendezvousError) -> None:
        self._failure = error
        self._woken.set()


class RunObserver(guesses.Guessable, AsyncIterator[LawEvent | Missed]):
    """Looks on at one run, without a rank or a vote in it.

    An asynchronous context manager; inside the block it iterates over what happens to the run, one
    `arendezvous.law.events.LawEvent` after the other. An event is handed over once `status` has what came
    of it. A server that ends is waited for; what was missed meanwhile, or because nobody took the events, is
    told by a `Missed`. The iteration ends with an error alone.

    Args:
        connect: Watches the run while the block runs: `Scheme.watch`.
        run_id: The run.

    Its fields:
        _feed: Where the news come from.
        _status: The latest status; None before the first.
        _ready: Events that may be handed over.
        _pending: Events that wait for a status that has what came of them.
        _asked: How many of these came before the status that was asked for last; -1: none is under way.
        _dropped: How many events were dropped from the front of `_ready`.
        _woken: Set when there is something to hand over, an error, or the first status.
        _stale: Set when a status is to be asked for.
        _outage: Why the server is out of reach; empty: it is not.
        _failure: Why the iteration ends; None as long as it does not.
        _background: What follows the run; None outside of the block.
    """

    GUESSES: ClassVar = guesses.OBSERVER

    def __init__(self, connect: Callable[[], AbstractAsyncContextManager[RunNews]], run_id: str) -> None:
        self.run_id = run_id
        self._feed = NewsFeed(connect)
        self._background: Background | None = None
        self._begin()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: run {self.run_id!r}>"

    def _begin(self) -> None:
        self._status: RunStatus | None = None
        self._ready: deque[LawEvent | Missed] = deque()
        self._pending: deque[LawEvent | Missed] = deque()
        self._asked = -1
        self._dropped = 0
        self._woken = anyio.Event()
        self._stale = anyio.Event()
        self._outage = ""
        self._failure: RendezvousError | None = None

    async def __aenter__(self) -> Self:
        """Connects, and takes the first status. Cancellation: safe; nothing is left open.

        Raises:
            RendezvousConnectionError: The server could not be reached in time.
            RendezvousPermissionError: The token is missing, wrong, or not good for this run.
        """
        require_asyncio("an observer")
        self._begin()
        self._background = Background(f"observing run {self.run_id!r}", self._fail)
        self._background.start(self._follow)
        self._background.start(self._ask)
        try:
            while self._status is None:
                await self._wait()
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnects."""
        background, self._background = self._background, None
        if background is not None:
            await background.close()

    @property
    def status(self) -> RunStatus:
        """The latest status, as `explain()` has it; of a run that nobody has joined, one without settings.

        Raises:
            RuntimeError: Outside of the block, before it was ever entered.
        """
        if self._status is None:
            raise RuntimeError("an observer has a status inside its 'async with' block")
        return self._status

    @property
    def members(self) -> tuple[NodeStatus, ...]:
        """The members of the complete round that are here, by rank; empty while a round gathers."""
        return tuple(self.status.of_phase(Phase.MEMBER))

    @property
    def outage(self) -> str:
        """Says why the server cannot be reached at present; empty if it can."""
        return self._outage

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> LawEvent | Missed:
        """Waits for what happens next. Cancellation: safe; nothing is lost.

        Raises:
            RendezvousError: The server refuses.
            RuntimeError: The observer is used outside of its block.
        """
        if self._background is None:
            raise RuntimeError("an observer is used outside of its 'async with' block")
        while True:
            if self._dropped:
                count, self._dropped = self._dropped, 0
                return Missed(count)
            if self._ready:
                return self._ready.popleft()
            await self._wait()

    async def _wait(self) -> None:
        """Waits until there is something new.

        Raises:
            RendezvousError: Nothing new will come.
        """
        if self._failure is not None:
            raise self._failure.with_traceback(None)
        await self._woken.wait()
        self._woken = anyio.Event()

    async def _follow(self) -> None:
        try:
            await self._feed.follow(self._take)
        except RendezvousError as error:
            self._fail(error)

    async def _ask(self) -> None:
        """Asks for a status whenever one is to be asked for; the next one once that has come."""
        while True:
            await self._stale.wait()
            self._stale = anyio.Event()
            self._asked = len(self._pending)
            await self._feed.ask_status()

    def _take(self, item: Item) -> None:
        if isinstance(item, RunStatus):
            self._take_status(item)
        elif isinstance(item, Outage):
            self._outage, self._asked = item.reason, -1
        else:
            if item.missed:
                self._pending.append(Missed(item.missed))
            self._pending.extend(item.events)
            if self._asked < 0 and not self._stale.is_set():
                self._stale.set()

    def _take_status(self, status: RunStatus) -> None:
        """Takes in a status, and hands over the events that are in it."""
        is_first, self._status = self._status is None, status
        if self._outage and not is_first:
            self._pending.append(Missed(None))
            self._asked = len(self._pending)
        self._outage = ""
        for _ in range(max(0, self._asked)):
            self._ready.append(self._pending.popleft())
        self._asked = -1
        while len(self._ready) > KEPT:
            self._ready.popleft()
            self._dropped += 1
        if self._pending:
            self._stale.set()
        self._woken.set()

    def _fail(self, error: RendezvousError) -> None:
        self._failure = error
        self._woken.set()

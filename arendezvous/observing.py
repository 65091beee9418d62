"""Follows a run from outside: over restarts of the server, and with a word on whatever was missed."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, suppress
from types import MappingProxyType, TracebackType
from typing import Final, Generic, NoReturn, Protocol, Self, TypeAlias, TypeVar, runtime_checkable

import anyio
import msgspec

from arendezvous import guesses
from arendezvous.backends.feed import RUNS_INTERVAL, RunsItem
from arendezvous.backends.port import RendezvousBackend
from arendezvous.errors import RendezvousConnectionError, RendezvousError
from arendezvous.law.events import LawEvent
from arendezvous.law.state import Phase
from arendezvous.law.status import NodeStatus, RunStatus
from arendezvous.net.background import Background, require_asyncio
from arendezvous.net.backoff import Backoff
from arendezvous.schemes import BackendSettings, Scheme
from arendezvous.wire.native.messages import Happened, RunSummary

BACKOFF: Final = Backoff(first=0.1, last=5.0)
KEPT: Final = 4096  # events that nobody has taken


@runtime_checkable
class ServerBackend(Protocol):
    """Adds what the backends of a server have besides the methods of their port."""

    server_id: str  # tells one start of the server from another

    async def runs(self) -> Sequence[RunSummary]:
        """Lists all runs of the server."""


@runtime_checkable
class RunNews(Protocol):
    """The news of one run: first its status, then what happens; and a status whenever `ask_status` asked."""

    def __aiter__(self) -> AsyncIterator[RunStatus | Happened]:
        """Iterates over the news; ends with an error alone."""

    async def ask_status(self) -> None:
        """Asks for a fresh status, which will be among the news."""


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
ItemT = TypeVar("ItemT")
EventT = TypeVar("EventT")
LatestT = TypeVar("LatestT")
Connect: TypeAlias = Callable[[], AbstractAsyncContextManager[AsyncIterable[ItemT]]]


class NewsFeed(Generic[ItemT]):
    """The news of one run, or of all, from one server, whatever happens to the server.

    Its fields:
        _connect: Watches while the block runs: `Scheme.watch`, or `Scheme.watch_runs`.
        _news: The present watch; None while there is none.
    """

    def __init__(self, connect: Connect[ItemT]) -> None:
        self._connect = connect
        self._news: AsyncIterable[ItemT] | None = None

    async def follow(self, take: Callable[[ItemT | Outage], None]) -> NoReturn:
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
        news: object = self._news
        if isinstance(news, RunNews):
            with suppress(RendezvousConnectionError):  # `follow` finds out, too
                await news.ask_status()


class RunChanged(msgspec.Struct, frozen=True):
    """A run is new, or not as it was; `summary` tells in short what it looks like now."""

    run_id: str
    summary: RunSummary


class RunForgotten(msgspec.Struct, frozen=True):
    """The server has forgotten a run, as nobody was in it any more."""

    run_id: str


@asynccontextmanager
async def ask_for_runs(scheme: Scheme, where: BackendSettings) -> AsyncIterator[AsyncIterator[RunsItem]]:
    """Asks a server for its runs again and again while the block runs, as it tells nobody by itself."""
    assert scheme.backend is not None  # noqa: S101 - a server has one
    async with scheme.backend(where) as backend, aclosing(_asked(backend)) as runs:
        yield runs


async def _asked(backend: RendezvousBackend) -> AsyncGenerator[RunsItem, None]:
    assert isinstance(backend, ServerBackend)  # noqa: S101 - the entry of its scheme says so
    while True:
        yield await backend.runs()
        await anyio.sleep(RUNS_INTERVAL)


class _Observer(guesses.Guessable, AsyncIterator[EventT], Generic[EventT, LatestT, ItemT]):
    """Follows a server in the background, and iterates over what is told.

    Its fields:
        _what: What is observed, as the log calls it.
        _feed: Where the news come from.
        _latest: What was told last of how things stand; None before the first.
        _woken: Set when there is something to hand over, an error, or the first of `_latest`.
        _outage: Why the server is out of reach; empty: it is not.
        _failure: Why the iteration ends; None as long as it does not.
        _background: What follows the server; None outside of the block.
    """

    GUESSES = guesses.OBSERVER

    def __init__(self, what: str, connect: Connect[ItemT]) -> None:
        self._what = what
        self._feed = NewsFeed(connect)
        self._background: Background | None = None
        self._begin()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self._what}>"

    def _begin(self) -> None:
        self._latest: LatestT | None = None
        self._woken = anyio.Event()
        self._outage = ""
        self._failure: RendezvousError | None = None

    @abstractmethod
    def _next(self) -> EventT | None:
        """Takes what is to be handed over next; None: there is nothing."""

    @abstractmethod
    def _take(self, item: ItemT | Outage) -> None:
        """Takes in what is told."""

    def _start(self, background: Background) -> None:
        background.start(self._follow)

    async def _follow(self) -> None:
        try:
            await self._feed.follow(self._take)
        except RendezvousError as error:
            self._fail(error)

    async def __aenter__(self) -> Self:
        """Connects, and takes in how things stand. Cancellation: safe; nothing is left open.

        Raises:
            RendezvousConnectionError: The server could not be reached in time.
            RendezvousPermissionError: The token is missing, wrong, or not good for this.
        """
        require_asyncio("an observer")
        self._begin()
        self._background = Background(f"observing {self._what}", self._fail)
        self._start(self._background)
        try:
            while self._latest is None:
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
    def outage(self) -> str:
        """Says why the server cannot be reached at present; empty if it can."""
        return self._outage

    async def __anext__(self) -> EventT:
        """Waits for what happens next. Cancellation: safe; nothing is lost.

        Raises:
            RendezvousError: The server refuses.
            RuntimeError: The observer is used outside of its block.
        """
        if self._background is None:
            raise RuntimeError("an observer is used outside of its 'async with' block")
        while (event := self._next()) is None:
            await self._wait()
        return event

    async def _wait(self) -> None:
        """Waits until there is something new; raises if nothing new will come."""
        if self._failure is not None:
            raise self._failure.with_traceback(None)
        await self._woken.wait()
        self._woken = anyio.Event()

    def _known(self, what: str) -> LatestT:
        if self._latest is None:
            raise RuntimeError(f"an observer has {what} inside its 'async with' block")
        return self._latest

    def _fail(self, error: RendezvousError) -> None:
        self._failure = error
        self._woken.set()


class ServerObserver(_Observer[RunChanged | RunForgotten, dict[str, RunSummary], RunsItem]):
    """Looks on at all runs of a server that the token is good for.

    An asynchronous context manager; inside the block it iterates over what becomes of the runs, the latest of
    each. A server that ends is waited for; what has changed meanwhile is told then.

    Its fields, besides those of `_Observer`:
        _told: What has become of which run, and has not been handed over.
    """

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: all runs, over {self._what}>"

    def _begin(self) -> None:
        super()._begin()
        self._told: dict[str, RunChanged | RunForgotten] = {}

    @property
    def runs(self) -> MappingProxyType[str, RunSummary]:
        """The runs as they were told last, by their ids.

        Raises:
            RuntimeError: Outside of the block, before it was ever entered.
        """
        return MappingProxyType(self._known("runs"))

    def _next(self) -> RunChanged | RunForgotten | None:
        return self._told.pop(next(iter(self._told))) if self._told else None

    def _take(self, item: RunsItem | Outage) -> None:
        if isinstance(item, Outage):
            self._outage = item.reason
            return
        self._outage, before = "", self._latest or {}
        if isinstance(item, RunSummary):
            runs = before | {item.run_id: item}
        elif isinstance(item, str):
            runs = {name: run for name, run in before.items() if name != item}
        else:
            runs = {run.run_id: run for run in item}
        if self._latest is not None:
            for name, run in runs.items():
                if before.get(name) != run:
                    self._tell(RunChanged(name, run))
            for name in before.keys() - runs.keys():
                self._tell(RunForgotten(name))
        self._latest = runs
        self._woken.set()

    def _tell(self, event: RunChanged | RunForgotten) -> None:
        """Has an event handed over, in place of an earlier one of its run."""
        self._told.pop(event.run_id, None)
        self._told[event.run_id] = event


class RunObserver(_Observer[LawEvent | Missed, RunStatus, RunStatus | Happened]):
    """Looks on at one run, without a rank or a vote in it.

    An asynchronous context manager; inside the block it iterates over what happens to the run, one
    `arendezvous.law.events.LawEvent` after the other. An event is handed over once `status` has what came
    of it. A server that ends is waited for; what was missed meanwhile, or because nobody took the events, is
    told by a `Missed`. The iteration ends with an error alone.

    Its fields, besides those of `_Observer`:
        _ready: Events that may be handed over.
        _pending: Events that wait for a status that has what came of them.
        _asked: How many of these came before the status that was asked for last; -1: none is under way.
        _dropped: How many events were dropped from the front of `_ready`.
        _stale: Set when a status is to be asked for.
    """

    def __init__(self, run_id: str, connect: Connect[RunStatus | Happened]) -> None:
        super().__init__(f"run {run_id!r}", connect)
        self.run_id = run_id

    def _begin(self) -> None:
        super()._begin()
        self._ready: deque[LawEvent | Missed] = deque()
        self._pending: deque[LawEvent | Missed] = deque()
        self._asked = -1
        self._dropped = 0
        self._stale = anyio.Event()

    @property
    def status(self) -> RunStatus:
        """The latest status, as `explain()` has it; of a run that nobody has joined, one without settings.

        Raises:
            RuntimeError: Outside of the block, before it was ever entered.
        """
        return self._known("a status")

    @property
    def members(self) -> tuple[NodeStatus, ...]:
        """The members of the complete round that are here, by rank; empty while a round gathers."""
        return tuple(self.status.of_phase(Phase.MEMBER))

    def _next(self) -> LawEvent | Missed | None:
        if self._dropped:
            count, self._dropped = self._dropped, 0
            return Missed(count)
        return self._ready.popleft() if self._ready else None

    def _start(self, background: Background) -> None:
        super()._start(background)
        background.start(self._ask)

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
        is_first, self._latest = self._latest is None, status
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

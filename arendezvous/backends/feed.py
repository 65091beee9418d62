"""Keeps what backends have heard: the latest view of each node, what it has said, and news of a run."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Final, Generic, TypeAlias, TypeVar

import msgspec

from arendezvous.law.operations import Arrive, Close, Join, Leave, Operation, Progress, Resume, Update
from arendezvous.law.state import MAX_NOTICES, NodeView, Phase
from arendezvous.net.background import settle
from arendezvous.wire.native.messages import RunSummary

N = TypeVar("N")
Saying: TypeAlias = Update | Progress | Arrive
RunsItem: TypeAlias = RunSummary | str | Sequence[RunSummary]  # one that changed, is forgotten; or all

RUNS_INTERVAL: Final = 1.0  # seconds between two lists of the runs of a server that has to be asked
MAX_ARRIVALS: Final = 8  # that are said again of each node
_MOST: Final[dict[type[Saying], int]] = {Update: 1, Progress: 1, Arrive: MAX_ARRIVALS}


class ViewFeed:
    """Holds the latest view of a node and numbers the views by itself.

    The revisions that it gives out rise with every push, though a source that was restarted begins anew.
    """

    __slots__ = ("_failure", "_waiters", "latest")

    def __init__(self) -> None:
        self.latest: NodeView | None = None
        self._failure: Exception | None = None
        self._waiters: set[asyncio.Future[NodeView]] = set()

    def push(self, view: NodeView) -> NodeView:
        """Makes `view` the latest, with a revision of its own, and wakes those who wait.

        What a member has been told of its round stays told, though the source may have forgotten it.
        """
        if self.latest is not None and self.latest.notices and view.digest == self.latest.digest:
            told = set(view.notices)
            kept = [notice for notice in self.latest.notices if notice not in told]
            if kept:
                msgspec.structs.force_setattr(view, "notices", (*kept, *view.notices)[-MAX_NOTICES:])
        revision = 1 if self.latest is None else self.latest.revision + 1
        msgspec.structs.force_setattr(view, "revision", revision)
        self.latest = view
        self._failure = None
        if self._waiters:
            self._wake(view)
        return view

    def fail(self, error: Exception) -> None:
        """Ends all waits, now and until the next push, with `error`."""
        self._failure = error
        self._wake(error)

    def _wake(self, outcome: NodeView | Exception) -> None:
        waiters, self._waiters = self._waiters, set()
        for waiter in waiters:
            settle(waiter, outcome)

    def recover(self) -> None:
        """Has later calls wait again after a failure."""
        self._failure = None

    async def changed(self, since: int) -> NodeView:
        """Waits for a view with a revision higher than `since`. Cancellation: safe."""
        if self.latest is not None and self.latest.revision > since:
            return self.latest
        if self._failure is not None:
            raise self._failure
        waiter: asyncio.Future[NodeView] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            return await waiter
        finally:
            self._waiters.discard(waiter)


class News(AsyncIterator[N], Generic[N]):
    """The news that nobody has taken yet. The iteration ends with an error alone.

    Its fields:
        _news: They.
        _woken: Set when there are more of them, or an error.
        _failure: Why no more come; None as long as they do.
    """

    def __init__(self) -> None:
        self._news: deque[N] = deque()
        self._woken = asyncio.Event()
        self._failure: Exception | None = None

    async def __anext__(self) -> N:
        """Waits for news. Cancellation: safe; nothing is lost."""
        while not self._news:
            if self._failure is not None:
                raise self._failure.with_traceback(None)
            self._woken.clear()
            await self._woken.wait()
        return self._news.popleft()

    def add(self, news: N) -> None:
        self._news.append(news)
        self._woken.set()

    def fail(self, error: Exception) -> None:
        """Ends the iteration with `error`, once the news that there are have been taken."""
        self._failure = error
        self._woken.set()


class Presentations:
    """Keeps how nodes of a backend joined and what they said, for a coordinator that may have forgotten it.

    Attributes:
        joins: Of each node that is to be in the run, how it joined last.

    Its other fields:
        _leaving: The same of nodes that are leaving: a member is one until that is answered.
        _sayings: Of each node and each kind what it has said last. Of the barriers that it has passed these
            are several: another member may have missed the answer.
    """

    def __init__(self) -> None:
        self.joins: dict[str, Join] = {}
        self._leaving: dict[str, Join] = {}
        self._sayings: dict[tuple[str, type[Saying]], deque[Saying]] = {}

    def note(self, operation: Operation) -> None:
        """Keeps how a node joins, or what it says; one that leaves is to be forgotten, see `left`."""
        if isinstance(operation, Join):
            self.joins[operation.desc.name] = operation
        elif isinstance(operation, Leave):
            for kind in _MOST:
                self._sayings.pop((operation.node, kind), None)
            if operation.node in self.joins:
                self._leaving[operation.node] = self.joins.pop(operation.node)
        elif isinstance(operation, Saying):
            kind = type(operation)
            self._sayings.setdefault((operation.node, kind), deque(maxlen=_MOST[kind])).append(operation)

    def left(self, node: str) -> None:
        """Forgets a node whose leave is over, whatever has become of it."""
        self._leaving.pop(node, None)

    def presented(self, node: str, view: NodeView | None) -> Join | Resume | None:
        """Makes the operation that presents a node, still known or not; None: it is not in the run.

        By the `view` that it was told last a member presents the rank that it holds, as one that is leaving
        does, so that its leave is heard as a member's. Who waits joins again, and says which round it knows,
        so that a coordinator that forgot the run hears that there is one.
        """
        join = self.joins.get(node)
        known = join or self._leaving.get(node)
        if view is None or known is None or view.phase is Phase.GONE:
            return None
        if view.phase is not Phase.MEMBER:
            return None if join is None else join.knowing(view.known)
        held = (view.incarnation, view.round, view.rank, view.world_size, view.digest, view.share)
        return Resume(known.desc, known.settings, *held)

    def said(self, node: str, generation: tuple[int, int]) -> Iterator[Saying]:
        """Yields what is to be said again for a node, as a member of the round `generation`."""
        for said in (said for kind in _MOST for said in self._sayings.get((node, kind), ())):
            if not isinstance(said, Arrive) or (said.incarnation, said.round) == generation:
                yield said

    def all(self, feeds: Mapping[str, ViewFeed]) -> Iterator[Operation]:
        """Yields all that presents the nodes: of each how it is `presented`, and what it has said."""
        for node in self.joins | self._leaving:
            view = feeds[node].latest
            presented = self.presented(node, view)
            if view is None or presented is None:
                continue
            yield presented
            if view.phase is Phase.MEMBER and view.closed is not None:
                yield Close.again(view.closed, view.incarnation)
            yield from self.said(node, view.generation)

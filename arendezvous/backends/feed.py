"""Keeps what backends have heard: the latest view of each node, what it has said, and news of a run."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Final, Generic, TypeAlias, TypeVar

import msgspec

from arendezvous.law.operations import Arrive, Close, Join, Leave, Operation, Progress, Resume, Update
from arendezvous.law.state import MAX_NOTICES, NodeView, Phase
from arendezvous.net.background import settle

N = TypeVar("N")
Saying: TypeAlias = Update | Progress | Arrive

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


class Sayings:
    """Keeps what nodes of a backend have said, for a coordinator that may have forgotten it.

    Its field `_latest` has of each node and each kind what it has said last. Of the barriers that it has
    passed these are several: another member may have missed the answer.
    """

    def __init__(self) -> None:
        self._latest: dict[tuple[str, type[Saying]], deque[Saying]] = {}

    def note(self, operation: Operation) -> None:
        """Keeps what a node has said; forgets it all if the node leaves."""
        if isinstance(operation, Leave):
            for kind in _MOST:
                self._latest.pop((operation.node, kind), None)
        elif isinstance(operation, Saying):
            kind = type(operation)
            self._latest.setdefault((operation.node, kind), deque(maxlen=_MOST[kind])).append(operation)

    def of(self, node: str, generation: tuple[int, int]) -> Iterator[Saying]:
        """Yields what is to be said again for a node, as a member of the round `generation`."""
        for said in (said for kind in _MOST for said in self._latest.get((node, kind), ())):
            if not isinstance(said, Arrive) or (said.incarnation, said.round) == generation:
                yield said


def presentation(view: NodeView | None, join: Join | None, leaving: Join | None) -> Join | Resume | None:
    """Makes the operation that presents a node, whether it is still known or not; None: it is not in the run.

    Args:
        view: What the node was told last; a member presents the rank that it holds; who waits joins again,
            and says which round it knows, so that a coordinator that forgot the run hears that there is one.
        join: How it joined; None if it is not to be in the run.
        leaving: How it joined if it is leaving: a member is presented, so that its leave is heard as one.
    """
    known = join or leaving
    if view is None or known is None or view.phase is Phase.GONE:
        return None
    if view.phase is not Phase.MEMBER:
        return None if join is None else join.knowing(view.known)
    held = (view.incarnation, view.round, view.rank, view.world_size, view.digest, view.share)
    return Resume(known.desc, known.settings, *held)


def presentations(
    joins: dict[str, Join], feeds: Mapping[str, ViewFeed], leaving: dict[str, Join], sayings: Sayings
) -> Iterator[Operation]:
    """Yields all that presents the nodes of a backend: of each its `presentation`, and what it has said."""
    for node in joins | leaving:
        view = feeds[node].latest
        presented = presentation(view, joins.get(node), leaving.get(node))
        if view is None or presented is None:
            continue
        yield presented
        if view.phase is Phase.MEMBER and view.closed is not None:
            yield Close.again(view.closed, view.incarnation)
        yield from sayings.of(node, view.generation)

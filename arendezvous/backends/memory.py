"""``memory://``: a rendezvous of tasks in one event loop; no socket, and the loop's own clock."""

from __future__ import annotations

import asyncio
import copy
import secrets
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, TypeVar

from arendezvous.backends.base import BackendBase
from arendezvous.backends.feed import News, RunsItem, ViewFeed
from arendezvous.backends.port import subject
from arendezvous.coordinator.coordinator import Coordinator
from arendezvous.coordinator.rosters import roster_of
from arendezvous.coordinator.run import Attachment
from arendezvous.errors import RendezvousError, RendezvousStateError
from arendezvous.law.barriers import Met
from arendezvous.law.events import LawEvent, NodeUpdated
from arendezvous.law.operations import DECIDED, Arrive, Disconnect, Drain, Operation, Record, Tick, Withdraw
from arendezvous.law.rosters import Member, MemberGone
from arendezvous.law.state import NodeView
from arendezvous.law.status import RunStatus
from arendezvous.net.background import settle
from arendezvous.stores.memory import MemoryStore
from arendezvous.stores.port import Store
from arendezvous.wire.native.messages import Happened, RunSummary

MAX_NEWS: Final = 4096  # that nobody has taken
V = TypeVar("V")


class MemorySpace:
    """Keeps a coordinator and a store for the backends of one name; it ends with the last of its users."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.coordinator = Coordinator(loop)
        self.store = MemoryStore()
        self.users = 0


_spaces: Final[dict[tuple[asyncio.AbstractEventLoop, str], MemorySpace]] = {}
"""The spaces that somebody has entered, and has not left yet."""


class LocalWatch(News[RunStatus | Happened]):
    """The news of one run: first its status, then what happens; and a status whenever `ask_status` asked.

    Its field `_missed` is how many events there was no room for.
    """

    def __init__(self, space: MemorySpace, run_id: str) -> None:
        super().__init__()
        self._space = space
        self._run_id = run_id
        self._missed = 0
        self.add(space.coordinator.status(run_id))

    async def ask_status(self) -> None:
        self.add(self._space.coordinator.status(self._run_id))

    def observe(self, run_id: str, now: float, event: LawEvent) -> None:
        if run_id != self._run_id:
            return
        if len(self._news) >= MAX_NEWS:
            self._missed += 1
            return
        self.add(Happened(0, now, (event,), self._missed))
        self._missed = 0


@asynccontextmanager
async def watch_local(run_id: str, space: str) -> AsyncIterator[LocalWatch]:
    """Watches a run of a space while the block runs; the run need not exist yet."""
    async with LocalBackend(run_id, space) as backend:
        watch = LocalWatch(backend.space, run_id)
        stop = backend.space.coordinator.observe(watch.observe)
        try:
            yield watch
        finally:
            stop()


@asynccontextmanager
async def watch_local_runs(space: str) -> AsyncIterator[AsyncIterator[RunsItem]]:
    """Watches all runs: all of them first, then one that has changed, or the id of one that is forgotten."""
    from arendezvous.server.tcp.answers import run_summary  # for whoever looks on alone

    async with LocalBackend("", space) as backend:
        coordinator, changed, woken = backend.space.coordinator, OrderedDict[str, None](), asyncio.Event()

        def note(run_id: str, *_: object) -> None:
            changed[run_id] = None
            woken.set()

        async def news() -> AsyncIterator[RunsItem]:
            changed.clear()
            yield await backend.runs()
            async for run_id, _ in _latest(changed, woken):
                run = coordinator.runs.get(run_id)
                yield run_id if run is None else run_summary(run, coordinator.clock())

        stops = (coordinator.observe(note), coordinator.retention.observe(note))
        try:
            yield news()
        finally:
            for stop in stops:
                stop()


async def _latest(told: OrderedDict[str, V], woken: asyncio.Event) -> AsyncIterator[tuple[str, V]]:
    """Yields what is told, of each key the latest, and waits for more."""
    while True:
        while told:
            yield told.popitem(last=False)
        woken.clear()
        await woken.wait()


class LocalBackend(BackendBase):
    """A run in this process.

    Backends in one event loop with the same `space` meet; a space lives as long as one of them is open.

    Args:
        run_id: The run.
        space: The part of ``memory://space`` behind the slashes.
    """

    name = "memory"

    def __init__(self, run_id: str, space: str = "") -> None:
        super().__init__()
        self._run_id = run_id
        self._space_name = space
        self._space: MemorySpace  # once it has been entered
        self._secret = secrets.token_bytes(16)
        self._attachments: dict[str, Attachment] = {}
        self._meetings: set[asyncio.Future[Met]] = set()
        self.server_id = "memory"

    @property
    def endpoint(self) -> str:
        return f"memory://{self._space_name}"

    @property
    def store(self) -> Store | None:
        return self.space.store

    async def _open(self) -> None:
        """Enters the space, and makes it if nobody is there."""
        loop = asyncio.get_running_loop()
        where = (loop, self._space_name)
        self._space = _spaces[where] = _spaces.get(where) or MemorySpace(loop)
        self._space.users += 1

    async def _close(self) -> None:
        """Leaves the space; its nodes that are still in the run have the grace to come back."""
        space = self._space
        for attachment in self._attachments.values():
            space.coordinator.detach(attachment)
        self._attachments.clear()
        space.users -= 1
        if space.users == 0:
            space.coordinator.close()
            del _spaces[asyncio.get_running_loop(), self._space_name]

    def _end_waits(self, error: RendezvousError) -> None:
        super()._end_waits(error)
        for waiter in self._meetings:
            settle(waiter, error)

    async def propose(self, operation: Operation) -> NodeView:
        """See `RendezvousBackend.propose`; never waits."""
        coordinator = self.space.coordinator
        if isinstance(operation, Tick | Disconnect | Record):
            raise RendezvousStateError(f"{type(operation).__name__} is for the coordinator alone to decide")
        if isinstance(operation, (*DECIDED, Drain)):
            named = self._feeds.get(subject(operation))
            steered = coordinator.steer(self._run_id, operation)
            return steered if named is None else named.push(steered)
        if isinstance(operation, Arrive | Withdraw):
            raise RendezvousStateError("a barrier is for meet() to come to")
        attachment = self._attachment(operation.node)
        view = coordinator.propose(attachment, operation)
        feed = self._feeds[operation.node]
        if view is not None or feed.latest is None:
            return feed.push(view or coordinator.view_of(attachment))
        return feed.latest

    async def meet(self, operation: Arrive | Withdraw) -> Met:
        meetings, attachment = self.space.coordinator.meetings, self._attachment(operation.node)
        if isinstance(operation, Withdraw):
            return meetings.withdraw(attachment, operation)
        waiter: asyncio.Future[Met] = asyncio.get_running_loop().create_future()
        self._meetings.add(waiter)

        def answer(outcome: Met | RendezvousError) -> None:
            own = copy.copy(outcome) if isinstance(outcome, RendezvousError) else outcome  # each has its own
            settle(waiter, own)

        try:
            return meetings.arrive(attachment, operation, answer) or await waiter
        finally:
            self._meetings.discard(waiter)
            meetings.stop_waiting(attachment, operation, answer)

    @asynccontextmanager
    async def states(self) -> AsyncIterator[AsyncIterator[tuple[str, bytes]]]:
        coordinator, news = self.space.coordinator, asyncio.Event()
        nodes = coordinator.status(self._run_id).nodes
        latest = OrderedDict((node.desc.name, node.state) for node in nodes if node.state)

        def observe(run_id: str, _: float, event: LawEvent) -> None:
            if run_id == self._run_id and isinstance(event, NodeUpdated):
                latest[event.node] = event.state
                news.set()

        stop = coordinator.observe(observe, NodeUpdated)
        try:
            yield _latest(latest, news)
        finally:
            stop()

    def _attachment(self, node: str) -> Attachment:
        attachment = self._attachments.get(node)
        if attachment is None:
            feed = self._feeds.setdefault(node, ViewFeed())
            attachment = self.space.coordinator.attach(self._run_id, node, self._secret, feed.push)
            self._attachments[node] = attachment
        return attachment

    async def status(self) -> RunStatus:
        return self.space.coordinator.status(self._run_id)

    async def roster(self, incarnation: int, round_: int) -> tuple[Member, ...]:
        roster = roster_of(self.space.coordinator, self._run_id, (incarnation, round_))
        return roster.members(0, len(roster.descs))

    async def gone(self, incarnation: int, round_: int) -> tuple[MemberGone, ...]:
        coordinator = self.space.coordinator
        roster = roster_of(coordinator, self._run_id, (incarnation, round_))
        return roster.gone_members(coordinator.clock())

    async def runs(self) -> tuple[RunSummary, ...]:
        from arendezvous.server.tcp.answers import run_summary  # for whoever looks on alone

        coordinator = self.space.coordinator
        return tuple(run_summary(run, coordinator.clock()) for run in coordinator.runs.values())

    @property
    def space(self) -> MemorySpace:
        """The space, for whoever looks on at it."""
        self._check_open()
        return self._space

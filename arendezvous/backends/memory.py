"""``memory://``: a rendezvous of tasks in one event loop; no socket, and the loop's own clock."""

from __future__ import annotations

import asyncio
import secrets
from types import TracebackType
from typing import Final, Self

from arendezvous.backends.feed import ViewFeed
from arendezvous.backends.port import RendezvousBackend, subject
from arendezvous.coordinator.coordinator import Coordinator
from arendezvous.coordinator.rosters import roster_of
from arendezvous.coordinator.run import Attachment
from arendezvous.errors import RendezvousError, RendezvousStateError
from arendezvous.law.operations import Close, Disconnect, Drain, Operation, Record, Reopen, Tick
from arendezvous.law.rosters import Member, MemberGone
from arendezvous.law.state import NodeView
from arendezvous.law.status import RunStatus
from arendezvous.net.forks import Origin
from arendezvous.stores.memory import MemoryStore
from arendezvous.stores.port import Store


class MemorySpace:
    """Keeps a coordinator and a store for the backends of one name; it ends with the last of them.

    Attributes:
        coordinator: Where the runs are.
        store: The store of all runs.
        users: How many backends have entered it.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.coordinator = Coordinator(loop)
        self.store = MemoryStore()
        self.users = 0


_spaces: Final[dict[tuple[asyncio.AbstractEventLoop, str], MemorySpace]] = {}
"""The spaces that somebody has entered, and has not left yet."""


class LocalBackend(RendezvousBackend):
    """A run in this process.

    Backends in one event loop with the same `space` meet; a space lives as long as one of them is open.

    Args:
        run_id: The run.
        space: The part of ``memory://space`` behind the slashes.
    """

    def __init__(self, run_id: str, space: str = "") -> None:
        self._run_id = run_id
        self._space_name = space
        self._space: MemorySpace | None = None
        self._origin = Origin("this rendezvous")
        self._failure: RendezvousError | None = None
        self._secret = secrets.token_bytes(16)
        self._attachments: dict[str, Attachment] = {}
        self._feeds: dict[str, ViewFeed] = {}

    @property
    def name(self) -> str:
        """``memory``."""
        return "memory"

    @property
    def endpoint(self) -> str:
        """``memory://`` and the name of the space."""
        return f"memory://{self._space_name}"

    @property
    def store(self) -> Store | None:
        """The store of the space."""
        return self._open_space.store

    async def __aenter__(self) -> Self:
        """Enters the space, and makes it if nobody is there."""
        loop = asyncio.get_running_loop()
        space = _spaces.get((loop, self._space_name))
        if space is None:
            space = _spaces[loop, self._space_name] = MemorySpace(loop)
        space.users += 1
        self._space, self._failure, self._origin = space, None, Origin("this rendezvous")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leaves the space; its nodes that are still in the run have the grace to come back."""
        space, self._space = self._space, None
        if space is None:
            return
        for attachment in self._attachments.values():
            space.coordinator.detach(attachment)
        self._attachments.clear()
        self._end_waits(RendezvousStateError("the backend was closed meanwhile"))
        space.users -= 1
        if space.users == 0:
            space.coordinator.close()
            del _spaces[asyncio.get_running_loop(), self._space_name]

    def fail(self, error: RendezvousError) -> None:
        """See `RendezvousBackend.fail`."""
        self._failure = error
        self._end_waits(error)

    def _end_waits(self, error: RendezvousError) -> None:
        for feed in self._feeds.values():
            feed.fail(error)

    async def propose(self, operation: Operation) -> NodeView:
        """See `RendezvousBackend.propose`; never waits."""
        coordinator = self._open_space.coordinator
        if isinstance(operation, Tick | Disconnect | Record):
            raise RendezvousStateError(f"{type(operation).__name__} is for the coordinator alone to decide")
        if isinstance(operation, Close | Reopen | Drain):
            named = self._feeds.get(subject(operation))
            steered = coordinator.steer(self._run_id, operation)
            return steered if named is None else named.push(steered)
        node = operation.node
        attachment = self._attachments.get(node)
        if attachment is None:
            feed = self._feeds.setdefault(node, ViewFeed())
            attachment = coordinator.attach(self._run_id, node, self._secret, feed.push)
            self._attachments[node] = attachment
        view = coordinator.propose(attachment, operation)
        feed = self._feeds[node]
        if view is not None or feed.latest is None:
            return feed.push(view or coordinator.view_of(attachment))
        return feed.latest

    async def changed(self, node: str, since: int) -> NodeView:
        """See `RendezvousBackend.changed`."""
        self._open_space  # noqa: B018 - raises outside of the block
        return await self._feeds.setdefault(node, ViewFeed()).changed(since)

    async def status(self) -> RunStatus:
        """See `RendezvousBackend.status`."""
        return self._open_space.coordinator.status(self._run_id)

    async def roster(self, incarnation: int, round_: int) -> tuple[Member, ...]:
        """See `RendezvousBackend.roster`."""
        roster = roster_of(self._open_space.coordinator, self._run_id, (incarnation, round_))
        return roster.members(0, len(roster.descs))

    async def gone(self, incarnation: int, round_: int) -> tuple[MemberGone, ...]:
        """See `RendezvousBackend.gone`."""
        coordinator = self._open_space.coordinator
        roster = roster_of(coordinator, self._run_id, (incarnation, round_))
        return roster.gone_members(coordinator.clock())

    @property
    def _open_space(self) -> MemorySpace:
        if self._space is None:
            raise RuntimeError("the memory backend is used outside of its 'async with' block")
        self._origin.check()
        if self._failure is not None:
            raise self._failure.with_traceback(None)
        return self._space

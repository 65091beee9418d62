"""A blocking rendezvous handler over the asynchronous one; see `arendezvous.sync`."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Iterator
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self

import anyio

from arendezvous import opening, registry
from arendezvous.law.state import Cause, NodeDesc
from arendezvous.law.status import RunStatus
from arendezvous.rendezvous.bootstrap import RendezvousStoreInfo
from arendezvous.rendezvous.changes import Change, Outlook
from arendezvous.rendezvous.driver import exit_cause
from arendezvous.rendezvous.handler import AsyncRendezvousHandler, HistoryEntry
from arendezvous.rendezvous.handler import RendezvousInfo as AsyncRendezvousInfo
from arendezvous.rendezvous.parameters import RendezvousParameters
from arendezvous.rendezvous.settings import RendezvousSettings
from arendezvous.sync.loop_thread import at_exit, run, start
from arendezvous.sync.store import Store


class RendezvousInfo:
    """What a member knows of its round; see `arendezvous.RendezvousInfo`.

    Attributes:
        run_id: The run.
        incarnation: How often the run was opened.
        round: The number of the round.
        rank: This node's rank, from 0.
        world_size: How many nodes the round has.
        digest: A fingerprint of the member list; the same at all members.
        rank0_addresses: Where rank 0 may be reached, the best first.
        local_address: Where this node may be reached.
    """

    def __init__(self, info: AsyncRendezvousInfo) -> None:
        self._info = info
        self.run_id = info.run_id
        self.incarnation = info.incarnation
        self.round = info.round
        self.rank = info.rank
        self.world_size = info.world_size
        self.digest = info.digest
        self.rank0_addresses = info.rank0_addresses
        self.local_address = info.local_address

    def __repr__(self) -> str:
        return repr(self._info)

    @functools.cached_property
    def store(self) -> Store:
        """The blocking store of the round.

        Raises:
            RuntimeError: The backend has none.
        """
        return Store(self._info.store)

    def members(self) -> tuple[NodeDesc, ...]:
        """Asks for the members that remain of this round; see `arendezvous.RendezvousInfo.members`."""
        return run(self._info.members)

    def bootstrap_store_info(self) -> RendezvousStoreInfo:
        """Tells where the workers of this round find a store; every rank must call it."""
        return run(self._info.bootstrap_store_info)


class RendezvousHandler:
    """One node's part in a run: the standard methods, blocking.

    It connects when it is first used, or as a context manager on entering. It leaves the run on `close`,
    which leaving the block does, and at the latest when the process ends.

    Args:
        handler: An asynchronous handler that has not been entered yet.
    """

    def __init__(self, handler: AsyncRendezvousHandler) -> None:
        self._handler = handler
        self._holder: Future[None] | None = None
        self._leave: anyio.Event | None = None
        self._error: BaseException | None = None
        self._pid = os.getpid()

    def __enter__(self) -> Self:
        """Connects.

        Raises:
            RendezvousConnectionError: The backend could not be reached.
        """
        self._opened()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leaves the run, and tells the others if it was because of an error."""
        self._error = error
        self.close()

    @property
    def settings(self) -> RendezvousSettings:
        """The settings of this handler."""
        return self._handler.settings

    @property
    def use_agent_store(self) -> bool:
        """Whether workers may use the store that the agents use."""
        return self._handler.use_agent_store

    @property
    def history(self) -> tuple[HistoryEntry, ...]:
        """The latest things that happened to this node, the oldest first."""
        return self._handler.history

    @property
    def endpoint(self) -> str:
        """Where the run is kept, as a URL without secrets."""
        return self._handler.endpoint

    @property
    def tcp_store_address(self) -> tuple[str, int] | None:
        """Host and port where torch's own ``TCPStore`` client sees the store; None where it cannot."""
        return self._handler.tcp_store_address

    def get_backend(self) -> str:
        """Returns the name of the backend."""
        return self._handler.get_backend()

    def get_run_id(self) -> str:
        """Returns the id of the run."""
        return self._handler.get_run_id()

    def next_rendezvous(self) -> RendezvousInfo:
        """Joins the next round and waits until it is complete; raises what the asynchronous one raises.

        An interrupt withdraws the node from the run before it goes on.
        """
        return RendezvousInfo(run(self._opened().next_rendezvous))

    def is_closed(self) -> bool:
        """Tells whether the run is closed."""
        return run(self._opened().is_closed)

    def set_closed(self, reason: str = "") -> None:
        """Closes the run for everybody."""
        run(self._opened().set_closed, reason)

    def num_nodes_waiting(self) -> int:
        """Tells how many nodes wait for the next round, as far as members are told."""
        return run(self._opened().num_nodes_waiting)

    def outlook(self) -> Outlook:
        """Tells, in one look, whether this node has a reason to meet again."""
        return run(self._opened().outlook)

    def changes(self) -> Iterator[Change]:
        """Iterates over what happens to the current round; blocks until something does."""
        changes = self._opened().changes()
        while True:
            try:
                yield run(changes.__anext__)
            except StopAsyncIteration:
                return

    def leave(self, reason: str = "", *, cause: Cause = Cause.LEFT) -> None:
        """Leaves the run now; the other members are told `reason` and `cause`."""
        run(functools.partial(self._opened().leave, reason, cause=cause))

    async def leave_in_loop(self, reason: str) -> None:
        """Leaves the run, if it is in it; to be awaited in the loop that all handlers share."""
        if self._holder is not None and not self._holder.done() and self._pid == os.getpid():
            await self._handler.leave(reason)

    def drain(self, deadline: float, reason: str = "", *, wait: bool = False) -> None:
        """Announces that this member will leave within `deadline` seconds; `wait`: returns once it may go."""
        run(functools.partial(self._opened().drain, deadline, reason, wait=wait))

    def explain(self) -> RunStatus:
        """Tells who is in, who is missing, who was dropped and why."""
        return run(self._opened().explain)

    def shutdown(self) -> bool:
        """Leaves the run without closing it, and disconnects; returns whether the run was told."""
        if self._holder is None:
            return True
        left = run(self._handler.shutdown)
        self.close()
        return left

    def close(self) -> None:
        """Leaves the run and disconnects, in bounded time; may be called again, and from any thread."""
        at_exit(self, None)
        if self._pid != os.getpid():
            return
        holder, self._holder = self._holder, None
        if holder is not None and not holder.done():
            run(self._let_go)
            holder.result(self.settings.timeout.close + 1)

    def _opened(self) -> AsyncRendezvousHandler:
        if self._pid != os.getpid():
            raise RuntimeError("this rendezvous belongs to the process that forked; open one of its own here")
        if self._holder is None or self._holder.done():
            opened: Future[None] = Future()
            self._error = None
            self._holder = start(self._hold, opened)
            try:
                opened.result()
            except BaseException:
                self._holder.cancel()
                self._holder = None
                raise
            at_exit(self, self.close)
        return self._handler

    async def _hold(self, opened: Future[None]) -> None:
        """Keeps the handler's block open, in one task, until `close`."""
        self._leave = anyio.Event()
        try:
            async with self._handler:
                opened.set_result(None)
                await self._leave.wait()
                if self._error is not None:
                    cause, reason = exit_cause(self._error)
                    await self._handler.leave(reason, cause=cause)
        except BaseException as error:
            if not opened.done():
                opened.set_exception(error)
                return
            raise

    async def _let_go(self) -> None:
        if self._leave is not None:
            self._leave.set()


@functools.wraps(opening.open_rendezvous)
def open_rendezvous(*args: Any, **settings: Any) -> RendezvousHandler:
    """Opens a rendezvous for one node of a run; takes what `arendezvous.open_rendezvous` takes."""
    return RendezvousHandler(opening.open_rendezvous(*args, **settings))


open_rendezvous.__signature__ = inspect.signature(  # type: ignore[attr-defined]  # a function may have one
    opening.open_rendezvous
).replace(return_annotation=RendezvousHandler)


def get_rendezvous_handler(params: RendezvousParameters) -> RendezvousHandler:
    """Makes a handler, not connected yet, for the backend that `params` names.

    Raises:
        RendezvousSettingsError: The backend is unknown, or a parameter is not allowed.
    """
    handler = registry.get_rendezvous_handler(params)
    if not isinstance(handler, AsyncRendezvousHandler):
        raise TypeError(
            f"{type(handler).__name__}, made for {params.backend!r}, is no AsyncRendezvousHandler"
        )
    return RendezvousHandler(handler)

"""The latest view of one node, and those who wait for a newer one."""

from __future__ import annotations

import asyncio

import msgspec

from arendezvous.law.state import MAX_NOTICES, NodeView


class ViewFeed:
    """Holds the latest view of a node and numbers the views by itself.

    The revisions that it gives out rise with every push, whatever the source's own numbers do, so that a
    source that was restarted is no source of confusion.
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
            waiters, self._waiters = self._waiters, set()
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(view)
        return view

    def fail(self, error: Exception) -> None:
        """Ends all waits, now and until the next push, with `error`."""
        self._failure = error
        waiters, self._waiters = self._waiters, set()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_exception(error)

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

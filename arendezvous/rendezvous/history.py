"""The record of one node: its history, its log, the events for whoever listens, and its traces.

The names of its events begin with that of this file, as in torch.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from arendezvous.errors import RendezvousError, RendezvousGracefulExitError
from arendezvous.events import NodeState, construct_and_record_rdzv_event, get_logging_handler
from arendezvous.law.state import NodeDesc, NodeView
from arendezvous.rendezvous.changes import Change
from arendezvous.rendezvous.handler import HistoryEntry
from arendezvous.rendezvous.tracing import NodeTracing
from arendezvous.stores.port import Store

logger = logging.getLogger(__name__)

HISTORY: Final = 256


class NodeHistory:
    """The record of one node.

    Args:
        run_id: The run.
        desc: The node.
        endpoint: Where the run is kept, as a URL.

    Raises:
        RendezvousSettingsError: ``ARENDEZVOUS_EVENTS`` has a bad value.
    """

    def __init__(self, run_id: str, desc: NodeDesc, endpoint: str) -> None:
        get_logging_handler()  # finds a bad destination now, not in the middle of a join
        self._run_id = run_id
        self._desc = desc
        self._endpoint = endpoint
        self._entries: deque[HistoryEntry] = deque(maxlen=HISTORY)
        self._tracing = NodeTracing(
            {"arendezvous.run_id": run_id, "arendezvous.node": desc.name, "arendezvous.endpoint": endpoint}
        )

    @property
    def entries(self) -> tuple[HistoryEntry, ...]:
        """The latest entries, the oldest first."""
        return tuple(self._entries)

    def note(
        self,
        what: str,
        change: Change | None = None,
        *,
        name: str = "",
        state: NodeState = NodeState.RUNNING,
        rank: int | None = None,
    ) -> None:
        """Notes that `what` happened; with FAILED the exception that is being handled is recorded with it.

        Args:
            what: What, in words.
            change: The change of the round that it was, if it was one.
            name: The event's name; empty: the kind of `change`, or else the first word of `what`.
            state: Where the node is on its way.
            rank: Its rank, if it has got one by this.

        Raises:
            RendezvousSettingsError: ``ARENDEZVOUS_EVENTS`` has a bad value.
        """
        desc = self._desc
        self._entries.append(HistoryEntry(time.time(), what, change))
        if state is not NodeState.FAILED:  # of failures the caller tells, or the error that it raises
            logger.info("%s: %s", desc.name, what)
        if change is not None:
            self._tracing.changed(change)
        construct_and_record_rdzv_event(
            self._run_id,
            f"{desc.name}: {what}",
            state,
            name=name or (what.split(maxsplit=1)[0] if change is None else type(change).__name__),
            hostname=desc.addr,
            pid=desc.pid,
            master_endpoint=self._endpoint,
            local_id=desc.local_id,
            rank=rank,
        )

    def joining(self) -> None:
        """Notes that the node joins."""
        self.note(f"joining run {self._run_id!r}")
        self._tracing.joining()

    async def joined(self, view: NodeView, store: Callable[[], Store | None]) -> None:
        """Notes the round that the node is a member of, as its `view` tells; asks its `store` only to trace.

        Cancellation: safe; nothing has been noted.
        """
        await self._tracing.joined(view, store)
        self.note(f"round {view.round}: rank {view.rank} of {view.world_size}", name="joined", rank=view.rank)

    def not_joined(self, error: BaseException) -> str:
        """Notes that a join ended with `error`, which is being handled; returns why, in words."""
        if not isinstance(error, Exception):
            why, state = "the join was cancelled", NodeState.RUNNING
        elif isinstance(error, RendezvousGracefulExitError):
            why, state = error.message, NodeState.SUCCEEDED
        else:
            why = error.message if isinstance(error, RendezvousError) else repr(error)
            state = NodeState.FAILED
        self.note(f"not joined: {why}", name="join", state=state)
        self._tracing.not_joined(error, failed=state is NodeState.FAILED)
        return why

    def end_round(self) -> None:
        """Takes in that the node is in no round any more."""
        self._tracing.end_round()

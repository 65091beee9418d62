"""The record of one node: its history, its log, the events for whoever listens, and its traces.

The names of its events begin with that of this file, as in torch.

Traces are OpenTelemetry's: a span for each join, and one for each round. Nothing is imported for them: who
traces has imported the API before a node joins. The members of a round link to the join of one of them, the
*first* one: each that records a sampled span puts its context into the store of the round unless one is
there, which is one request, and takes what it finds.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import anyio

from arendezvous.errors import RendezvousError, RendezvousGracefulExitError
from arendezvous.events import NodeState, construct_and_record_rdzv_event, get_logging_handler
from arendezvous.law.state import NodeDesc, NodeView
from arendezvous.rendezvous.changes import Change
from arendezvous.rendezvous.handler import HistoryEntry
from arendezvous.stores.port import Store

if TYPE_CHECKING:
    from opentelemetry.trace import Link, Span, SpanContext

logger = logging.getLogger(__name__)

HISTORY: Final = 256
KEY: Final = "arendezvous/trace"  # in the store of the round: where the first member's join stands
LINK_TIMEOUT: Final = 2.0  # seconds that finding the first member's join may hold up a join
_TRACEPARENT: Final = re.compile(rb"00-([0-9a-f]{32})-([0-9a-f]{16})-01")


class NodeHistory:
    """The record of one node.

    Its fields:
        _attributes: What all spans of the node have.
        _join: The span of the join that is under way; None: there is none, or it is not recorded.
        _round: The span of the round that the node is in; likewise.
    """

    def __init__(self, run_id: str, desc: NodeDesc, endpoint: str) -> None:
        get_logging_handler()  # finds a bad destination now, not in the middle of a join
        self._run_id = run_id
        self._desc = desc
        self._endpoint = endpoint
        self._entries: deque[HistoryEntry] = deque(maxlen=HISTORY)
        told = {"run_id": run_id, "node": desc.name, "endpoint": endpoint}
        self._attributes = {f"arendezvous.{name}": value for name, value in told.items()}
        self._join: Span | None = None
        self._round: Span | None = None

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

        The event's name is `name`, or else the kind of `change`, or else the first word of `what`.
        """
        desc = self._desc
        self._entries.append(HistoryEntry(time.time(), what, change))
        if state is not NodeState.FAILED:  # of failures the caller tells, or the error that it raises
            logger.info("%s: %s", desc.name, what)
        if change is not None and self._round is not None:
            self._round.add_event(type(change).__name__, {"arendezvous.change": str(change)})
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
        self._join = self._start("rendezvous.join")

    async def joined(self, view: NodeView, store: Callable[[], Store | None]) -> None:
        """Notes the round that the node is a member of; asks its store only to trace. Cancellation: safe."""
        await self._trace_round(view, store)
        self.note(f"round {view.round}: rank {view.rank} of {view.world_size}", name="joined", rank=view.rank)

    def not_joined(self, error: BaseException) -> str:
        """Notes that a join ended with `error`, which is being handled; returns why, in words."""
        why, state = "the join was cancelled", NodeState.RUNNING
        if isinstance(error, Exception):
            why = error.message if isinstance(error, RendezvousError) else repr(error)
            is_wanted = isinstance(error, RendezvousGracefulExitError)
            state = NodeState.SUCCEEDED if is_wanted else NodeState.FAILED
        self.note(f"not joined: {why}", name="join", state=state)
        if (span := self._join) is not None:
            self._join = None
            span.set_attribute("error.type", type(error).__qualname__)
            if state is NodeState.FAILED:
                span.record_exception(error)
                span.set_status(_api().Status(_api().StatusCode.ERROR, str(error)))
            span.end()
        return why

    def end_round(self) -> None:
        """Takes in that the node is in no round any more."""
        if (span := self._round) is not None:
            self._round = None
            span.end()

    async def _trace_round(self, view: NodeView, store: Callable[[], Store | None]) -> None:
        if (span := self._join) is None:
            return
        own = span.get_span_context()
        shared = store() if own.trace_flags.sampled else None
        first = own if shared is None else await _first(own, shared)
        self._join = None
        known = {name: getattr(view, name) for name in ("incarnation", "round", "rank", "world_size")}
        if view.share is not None and view.share.role:
            known["role"] = view.share.role
        known = {f"arendezvous.{name}": value for name, value in known.items()}
        span.set_attributes(known)
        span.end()
        links = [_api().Link(own, {"arendezvous.link": "join"})]
        if first != own:
            links.append(_api().Link(first, {"arendezvous.link": "first member"}))
        self._round = self._start("rendezvous.round", known, links)

    def _start(self, name: str, known: Mapping[str, Any] = {}, links: Sequence[Link] = ()) -> Span | None:
        if (api := _api()) is None:
            return None
        from arendezvous import __version__  # which reads the metadata of the package

        tracer = api.get_tracer("arendezvous", __version__)
        span: Span = tracer.start_span(name, attributes={**self._attributes, **known}, links=links)
        return span if span.is_recording() else None


def _api() -> Any:
    """Returns OpenTelemetry's API if the program has imported it; else None."""
    return sys.modules.get("opentelemetry.trace")


async def _first(own: SpanContext, store: Store) -> SpanContext:
    """Finds the context of the first member's join, which is the own one if no other is there."""
    offered = f"00-{own.trace_id:032x}-{own.span_id:016x}-01"
    found: bytes | None = None
    with anyio.move_on_after(LINK_TIMEOUT):
        try:
            found = await store.compare_set(KEY, "", offered)
        except RendezvousError as error:  # a trace is not worth a join
            logger.debug("the members of this round are not linked in traces: %s", error)
    read = None if found is None else _TRACEPARENT.fullmatch(found)
    if read is None or found == offered.encode():
        return own
    ids, flags = (int(part, 16) for part in read.groups()), _api().TraceFlags
    context: SpanContext = _api().SpanContext(*ids, is_remote=True, trace_flags=flags(flags.SAMPLED))
    return context

"""Traces a node's way for OpenTelemetry: a span for each join, one for each round, and links between members.

Nothing is imported for it: a program that traces has imported OpenTelemetry's API before a node joins, and
in any other nothing of this is done. The members of a round link to the join of one of them, the *first* one:
each that records a sampled span puts its context into the store of the round unless one is there, which is
one request, and takes what it finds.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import anyio

from arendezvous.errors import RendezvousError

if TYPE_CHECKING:
    from opentelemetry.trace import Link, Span, SpanContext

    from arendezvous.law.state import NodeView
    from arendezvous.rendezvous.changes import Change
    from arendezvous.stores.port import Store

logger = logging.getLogger(__name__)

API: Final = "opentelemetry.trace"
KEY: Final = "arendezvous/trace"  # in the store of the round: where the first member's join stands
LINK_TIMEOUT: Final = 2.0  # seconds that finding the first member's join may hold up a join
_TRACEPARENT: Final = re.compile(rb"00-([0-9a-f]{32})-([0-9a-f]{16})-01")


class NodeTracing:
    """Traces one node.

    Args:
        attributes: What all spans of the node have.

    Its fields:
        _join: The span of the join that is under way; None: there is none, or it is not recorded.
        _round: The span of the round that the node is in; likewise.
    """

    def __init__(self, attributes: Mapping[str, str]) -> None:
        self._attributes = attributes
        self._join: Span | None = None
        self._round: Span | None = None

    def joining(self) -> None:
        """Begins the span of a join."""
        self._join = self._start("rendezvous.join")

    def not_joined(self, error: BaseException, *, failed: bool) -> None:
        """Ends the span of a join that `error` has ended, by which it has `failed`, or was not to go on."""
        span, self._join = self._join, None
        if span is None:
            return
        span.set_attribute("error.type", type(error).__qualname__)
        if failed:
            span.record_exception(error)
            span.set_status(_api().Status(_api().StatusCode.ERROR, str(error)))
        span.end()

    async def joined(self, view: NodeView, store: Callable[[], Store | None]) -> None:
        """Ends the span of a join, and begins that of the round.

        Args:
            view: The member's view of the round.
            store: Gives the store of the round; None: there is none, and so no link to another member.

        Cancellation: safe; the join is still under way.
        """
        span = self._join
        if span is None:
            return
        own = span.get_span_context()
        shared = store() if own.trace_flags.sampled else None
        first = own if shared is None else await _first(own, shared)
        self._join = None
        known = _round_attributes(view)
        span.set_attributes(known)
        span.end()
        links = [_api().Link(own, {"arendezvous.link": "join"})]
        if first != own:
            links.append(_api().Link(first, {"arendezvous.link": "first member"}))
        self._round = self._start("rendezvous.round", known, links)

    def changed(self, change: Change) -> None:
        """Notes what has happened to the round."""
        if self._round is not None:
            self._round.add_event(type(change).__name__, {"arendezvous.change": str(change)})

    def end_round(self) -> None:
        """Ends the span of the round."""
        span, self._round = self._round, None
        if span is not None:
            span.end()

    def _start(
        self, name: str, attributes: Mapping[str, Any] | None = None, links: list[Link] | None = None
    ) -> Span | None:
        api = _api()
        if api is None:
            return None
        from arendezvous import __version__  # which reads the metadata of the package

        tracer = api.get_tracer("arendezvous", __version__)
        span: Span = tracer.start_span(
            name, attributes={**self._attributes, **(attributes or {})}, links=links
        )
        return span if span.is_recording() else None


def _api() -> Any:
    """Returns OpenTelemetry's API if the program has imported it; else None."""
    return sys.modules.get(API)


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
    api = _api()
    trace_id, span_id = (int(part, 16) for part in read.groups())
    context: SpanContext = api.SpanContext(
        trace_id, span_id, is_remote=True, trace_flags=api.TraceFlags(api.TraceFlags.SAMPLED)
    )
    return context


def _round_attributes(view: NodeView) -> dict[str, str | int]:
    found: dict[str, str | int] = {
        "arendezvous.incarnation": view.incarnation,
        "arendezvous.round": view.round,
        "arendezvous.rank": view.rank,
        "arendezvous.world_size": view.world_size,
    }
    if view.share is not None and view.share.role:
        found["arendezvous.role"] = view.share.role
    return found

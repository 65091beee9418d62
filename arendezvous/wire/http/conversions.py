"""Between the bodies of the rendezvous over HTTP and the objects that they stand for."""

from __future__ import annotations

from functools import lru_cache

import msgspec

from arendezvous.law.operations import Join, LawEvent, Resume
from arendezvous.law.state import Closure, Departure, NodeDesc, NodeView, Notice, RunSettings
from arendezvous.law.status import RunStatus, sentences
from arendezvous.law.words import words_of
from arendezvous.wire.http.bodies import (
    ClosedBody,
    EventBody,
    GenerationBody,
    GoneBody,
    HeldBody,
    NodeBody,
    NodeRequest,
    NoticeBody,
    RunBody,
    SettingsBody,
    SettingsRequest,
    ViewBody,
)


def run_body(status: RunStatus, last_event: str) -> RunBody:
    """Says what `status` says."""
    body = msgspec.convert(status, RunBody, from_attributes=True)
    return msgspec.structs.replace(body, explain=tuple(sentences(status)), last_event=last_event)


def status_of(body: RunBody) -> RunStatus:
    """Takes the status back out of a body."""
    return msgspec.convert(body, RunStatus, from_attributes=True)


def view_body(view: NodeView) -> ViewBody:
    """Says what `view` says."""
    closed, gone = view.closed, view.gone
    return ViewBody(
        node=view.node,
        revision=view.revision,
        incarnation=view.incarnation,
        round=view.round,
        phase=view.phase,
        rank=view.rank,
        world_size=view.world_size,
        digest=view.digest,
        rank0=view.rank0,
        waiting=view.waiting,
        notices=tuple(
            NoticeBody(
                number=notice.number,
                node=notice.node,
                cause=notice.cause,
                reason=notice.reason,
                seconds=notice.seconds,
            )
            for notice in view.notices
        ),
        closed=None if closed is None else ClosedBody(
            by=closed.by, reason=closed.reason, age=view.now - closed.at
        ),
        gone=None if gone is None else GoneBody(
            cause=gone.cause, reason=gone.reason, round=gone.round, age=view.now - gone.at
        ),
    )  # fmt: skip


def view_of(body: ViewBody) -> NodeView:
    """Takes the view back out of a body; on its clock it was taken at 0."""
    closed, gone = body.closed, body.gone
    return NodeView(
        node=body.node,
        revision=body.revision,
        incarnation=body.incarnation,
        round=body.round,
        phase=body.phase,
        rank=body.rank,
        world_size=body.world_size,
        digest=body.digest,
        rank0=body.rank0,
        waiting=body.waiting,
        notices=tuple(
            Notice(one.number, one.node, one.cause, one.reason, one.seconds) for one in body.notices
        ),
        closed=None if closed is None else Closure(closed.by, closed.reason, -closed.age),
        gone=None if gone is None else Departure(gone.cause, gone.reason, gone.round, -gone.age),
    )


def desc_body(desc: NodeDesc) -> NodeBody:
    """Says what `desc` says."""
    return msgspec.convert(desc, NodeBody, from_attributes=True)


def desc_request(desc: NodeDesc) -> NodeRequest:
    """Says what `desc` says, to a server."""
    return NodeRequest(
        name=desc.name,
        addr=desc.addr,
        pid=desc.pid,
        local_id=desc.local_id,
        addresses=desc.addresses,
        label=desc.label,
        rank=desc.rank,
    )


def desc_of(body: NodeBody) -> NodeDesc:
    """Takes the description back out of a body.

    Raises:
        RendezvousSettingsError: A value is not allowed.
    """
    return NodeDesc(body.name, body.addr, body.pid, body.local_id, body.addresses, body.label, body.rank)


@lru_cache(maxsize=64)
def settings_request(settings: RunSettings) -> SettingsRequest:
    """Says what `settings` says, to a server."""
    return msgspec.convert(settings, SettingsRequest, from_attributes=True)


def generations_request(operation: Join | Resume) -> tuple[GenerationBody | None, HeldBody | None]:
    """Says after which round a node joins, and what it holds; each None if it is none."""
    if isinstance(operation, Join):
        incarnation, round_ = operation.after
        none = operation.after == (0, -1)
        return None if none else GenerationBody(incarnation=incarnation, round=round_), None
    return None, HeldBody(
        incarnation=operation.incarnation,
        round=operation.round,
        rank=operation.rank,
        world_size=operation.world_size,
        digest=operation.digest,
    )


@lru_cache(maxsize=64)
def settings_of(body: SettingsBody) -> RunSettings:
    """Takes the settings back out of a body.

    Raises:
        RendezvousSettingsError: A value is not allowed.
    """
    return RunSettings(
        body.min_nodes,
        body.max_nodes,
        body.last_call,
        body.keep_alive_interval,
        body.keep_alive_max_attempt,
        body.disconnect_grace,
        body.rank_policy,
    )


def event_body(run_id: str, number: int, at: float, now: float, event: LawEvent) -> EventBody:
    """Says what `event` says."""
    data = {name: getattr(event, name) for name in event.__struct_fields__}
    return EventBody(
        run_id=run_id,
        number=number,
        type=type(event).__name__,
        at=at,
        age=now - at,
        text=words_of(event),
        data=data,
    )

"""``/v1/runs``: the runs of the server, one run and what happens to it, and steering it from outside."""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec
from aiohttp import web

from arendezvous.coordinator.records import steered
from arendezvous.keyspace.grants import Grant
from arendezvous.law.operations import Close, Reopen
from arendezvous.server.http.access import grant_of
from arendezvous.server.http.context import CONTEXT, HttpContext
from arendezvous.server.http.event_tail import HUB, EventHub, EventTail, Gap
from arendezvous.server.http.requests import Query, read_json, run_id_of, run_of, understood
from arendezvous.server.http.responses import NO_STORE, Problem, json_answer
from arendezvous.server.http.routes import (
    EVENT_STREAM,
    NO_RUN,
    REFUSED,
    RUN_ID,
    Answer,
    Needs,
    Resource,
    Route,
    header,
    json,
    query,
)
from arendezvous.server.http.stream import EventResponse
from arendezvous.server.tcp.session import run_summary
from arendezvous.wire.http.bodies import (
    CLOSE,
    REOPEN,
    RUN,
    RUNS,
    SUMMARY,
    VIEW,
    EventBody,
    ForgottenBody,
    ResetBody,
    RunBody,
    RunsBody,
)

LISTED: Final = 100
MAX_LISTED: Final = 1000
UPDATE_INTERVAL: Final = 0.1  # seconds between two updates of the list of runs, however much happens


async def list_runs(request: web.Request) -> web.StreamResponse:
    """Lists the runs of the server by their ids."""
    query = Query(request, "limit", "after")
    limit, after = query.integer("limit", 0, MAX_LISTED, LISTED), query.text("after")
    return json_answer(RUNS.encode(_page(request.app[CONTEXT], grant_of(request), limit, after)))


async def show_run(request: web.Request) -> web.StreamResponse:
    """Tells all of a run: its nodes, their states, and the same in words.

    HEAD tells whether there is one, without looking at its nodes.
    """
    context = request.app[CONTEXT]
    run = run_of(request)
    if request.method == "HEAD":
        return web.Response(headers=NO_STORE)
    last_event = _event_id(context, run.happened)
    return json_answer(RUN.encode(RunBody.of(context.coordinator.status(run.run_id), last_event)))


async def follow_run(request: web.Request) -> web.StreamResponse:
    """Streams what happened to a run, then what happens.

    The run need not exist yet.
    """
    context, run_id = request.app[CONTEXT], run_id_of(request)
    after = Query(request, "after").text("after")
    known = _known(context, request.headers.get("Last-Event-ID") or after)
    with EventResponse(request) as stream:
        tail = request.app[HUB].follow(run_id, stream.news, known)
        try:
            while True:
                await stream.more()
                await _send_tail(context, stream, tail)
        except ConnectionError:
            pass  # the client is gone
        finally:
            request.app[HUB].forget(tail)
    return stream.response


async def follow_all(request: web.Request) -> web.StreamResponse:
    """Streams the list of runs, then each run that changes or is forgotten."""
    context, grant = request.app[CONTEXT], grant_of(request)
    Query(request)
    with EventResponse(request) as stream:
        tail = request.app[HUB].follow_all(stream.news, grant.run_id)
        try:
            await stream.send("runs", RUNS.encode(_page(context, grant, MAX_LISTED, "")))
            while True:
                await stream.more()
                for run_id in tail.take():
                    await _send_run(context, stream, run_id)
                await asyncio.sleep(UPDATE_INTERVAL)
        except ConnectionError:
            pass  # the client is gone
        finally:
            request.app[HUB].forget(tail)
    return stream.response


async def close_run(request: web.Request) -> web.StreamResponse:
    """Closes a run: no further round will form.

    One that nobody has joined yet, too.
    """
    body, run_id = await read_json(request), run_id_of(request)
    with understood():
        operation = CLOSE.decode(body)
    return await _steer(request, run_id, operation)


async def reopen_run(request: web.Request) -> web.StreamResponse:
    """Opens a closed run anew, without its nodes."""
    body = await read_json(request)
    with understood():
        operation = REOPEN.decode(body)
    return await _steer(request, run_of(request).run_id, operation)


async def _steer(request: web.Request, run_id: str, operation: Close | Reopen) -> web.StreamResponse:
    return json_answer(VIEW.encode(await steered(request.app[CONTEXT].coordinator, run_id, operation)))


def _page(context: HttpContext, grant: Grant, limit: int, after: str) -> RunsBody:
    """At most `limit` runs, by their ids, from the first after `after`."""
    runs = context.coordinator.runs
    names = sorted(name for name in runs if name > after and grant.may_read(name))
    more = names[limit - 1] if 0 < limit < len(names) else None
    return RunsBody(
        runs=tuple(run_summary(runs[name]) for name in names[:limit]), next=more, only=grant.run_id
    )


async def _send_run(context: HttpContext, stream: EventResponse, run_id: str) -> None:
    run = context.coordinator.runs.get(run_id)
    if run is None:
        await stream.send("forgotten", msgspec.json.encode(ForgottenBody(run_id=run_id)))
    else:
        await stream.send("run", SUMMARY.encode(run_summary(run)))


async def _send_tail(context: HttpContext, stream: EventResponse, tail: EventTail) -> None:
    while tail.entries:
        entry = tail.entries.popleft()
        if isinstance(entry, Gap):
            await stream.send("reset", msgspec.json.encode(ResetBody(missed=entry.missed)))
        else:
            number, at, event = entry
            body = EventBody.of(tail.run_id, number, at, context.coordinator.clock(), event)
            await stream.send("happened", msgspec.json.encode(body), _event_id(context, number))


def _event_id(context: HttpContext, number: int) -> str:
    """What names an event, over all starts of the server."""
    return f"{context.server_id}.{number}"


def _known(context: HttpContext, event_id: str) -> int | None:
    """The number of the event that a reader has seen last; None: none.

    An id of an earlier start of the server stands for -1: the reader has missed something.

    Raises:
        Problem: 400, it is no id of an event.
    """
    if not event_id:
        return None
    server, _, number = event_id.rpartition(".")
    if not (number.isascii() and number.isdigit() and len(number) < 20):
        detail = f"{event_id[:80]!r} is no id of an event; take one from a stream, or a run's last_event"
        raise Problem(400, detail, "bad-event-id")
    return int(number) if server == context.server_id else -1


def _set_up(app: web.Application) -> None:
    app[HUB] = EventHub(app[CONTEXT].coordinator)


_RUN: Final = "/v1/runs/{run_id}"
_LIMIT: Final = query(
    "limit", "At most so many.", type="integer", minimum=0, maximum=MAX_LISTED, default=LISTED
)
_LAST_EVENT: Final = header("Last-Event-ID", "Goes on after this event of an earlier stream.")

RESOURCE: Final = Resource((
    Route(
        "GET", "/v1/runs", "listRuns", list_runs, "runs",
        {200: Answer("Some runs.", (json(RUNS.twin),))},
        parameters=(_LIMIT, query("after", "Only runs whose ids come after this one.")),
        needs=Needs.ANY_SCOPE,
    ),
    Route(
        "GET", "/v1/events", "followRuns", follow_all, "runs",
        {200: Answer(
            "Events `runs` (a RunsBody), then `run` (a RunSummaryBody) and `forgotten` (a ForgottenBody).",
            (EVENT_STREAM,),
        )},
        needs=Needs.ANY_SCOPE, head=False,
    ),
    Route(
        "GET", _RUN, "showRun", show_run, "runs",
        {200: Answer("The run.", (json(RUN.twin),))}, NO_RUN, (RUN_ID,),
    ),
    Route(
        "GET", _RUN + "/events", "followRun", follow_run, "runs",
        {200: Answer(
            "Events `happened` (an EventBody) and, for a gap, `reset` (a ResetBody).", (EVENT_STREAM,)
        )},
        parameters=(RUN_ID, query("after", "As the header Last-Event-ID."), _LAST_EVENT),
        head=False,
    ),
    Route(
        "POST", _RUN + "/close", "closeRun", close_run, "runs",
        {200: Answer("The run is closed.", (json(VIEW.twin),))}, REFUSED, (RUN_ID,), (json(CLOSE.twin),),
    ),
    Route(
        "POST", _RUN + "/reopen", "reopenRun", reopen_run, "runs",
        {200: Answer("The run is open.", (json(VIEW.twin),))},
        NO_RUN | REFUSED, (RUN_ID,), (json(REOPEN.twin),),
    ),
), _set_up)  # fmt: skip

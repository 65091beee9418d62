"""``/v1/runs``: the runs of the server, one run and what happens to it, and what operators decide of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import Any, Final

from aiohttp import web

from arendezvous.coordinator.records import steered
from arendezvous.coordinator.rosters import remaining_members
from arendezvous.keyspace.grants import Grant, Scope
from arendezvous.server.context import ServerContext
from arendezvous.server.http import routes
from arendezvous.server.http.access import grant_of
from arendezvous.server.http.bodies import read_json, understood
from arendezvous.server.http.event_tail import HUB, ChangedRuns, EventHub, Known
from arendezvous.server.http.requests import Query, run_id_of, run_in_turn, run_of, version_of
from arendezvous.server.http.responses import NO_STORE, Problem, json_answer
from arendezvous.server.http.routes import CONTEXT, RUN_ID, Answer, Resource, Route, header, json, query
from arendezvous.server.http.stream import EventResponse
from arendezvous.server.metrics import package_version
from arendezvous.server.tcp.answers import Answers, run_summary
from arendezvous.wire.http import bodies
from arendezvous.wire.http.named import OperationCodec
from arendezvous.wire.native.messages import VERSION, RunSummary
from arendezvous.wire.native.versions import status_for_1

LISTED: Final = 100
MAX_LISTED: Final = 1000
STEP: Final = 64  # runs that are looked at before others get their turn
LARGE: Final = 256  # nodes of a run that is told of in a few milliseconds, with all of its words
_RUNS_A_UNIT: Final = 32  # runs whose names cost about as much as the simplest request to put in order


async def list_runs(request: web.Request) -> web.StreamResponse:
    """Lists the runs of the server by their ids."""
    query = Query(request, "limit", "after")
    limit, after = query.integer("limit", 0, MAX_LISTED, LISTED), query.text("after")
    page = await _page(request.app[CONTEXT], grant_of(request), limit, after)
    return json_answer(bodies.RUNS.encode(page))


async def show_run(request: web.Request) -> web.StreamResponse:
    """Tells all of a run: its nodes, their states, and the same in words."""
    run = run_of(request)
    if request.method == "HEAD":
        return web.Response(headers=NO_STORE)
    run = await run_in_turn(request)
    return json_answer(request.app[routes.ANSWERS].status(run.run_id, version_of(request)))


async def follow_run(request: web.Request) -> web.StreamResponse:
    """Streams what happened to a run, then what happens."""
    context, run_id = request.app[CONTEXT], run_id_of(request)
    after = Query(request, "after").text("after")
    known = _known(context, request.headers.get("Last-Event-ID") or after)
    with EventResponse(request) as stream, request.app[HUB].follow(run_id, stream.news, known) as follower:
        while True:
            await stream.more()
            await context.shared.turns.wait()
            while frames := follower.take():
                await stream.write(frames)
                await context.shared.turns.wait()
    return stream.response


async def follow_all(request: web.Request) -> web.StreamResponse:
    """Streams the list of runs, then each run that changes or is forgotten."""
    context, grant = request.app[CONTEXT], grant_of(request)
    Query(request)
    with EventResponse(request) as stream, request.app[HUB].follow_all(stream.news) as follower:
        await stream.send("runs", bodies.RUNS.encode(await _page(context, grant, MAX_LISTED, "")))
        while True:
            await stream.more()
            if follower.has_missed():
                await stream.send("runs", bodies.RUNS.encode(await _page(context, grant, MAX_LISTED, "")))
            while batch := follower.take():
                await _send_batch(context, grant, stream, batch)
    return stream.response


async def _page(context: ServerContext, grant: Grant, limit: int, after: str) -> bodies.RunsBody:
    """At most `limit` runs, by their ids, from the first after `after`."""
    runs, turns = context.coordinator.runs, context.shared.turns
    if len(runs) > STEP:
        await turns.wait(len(runs) // _RUNS_A_UNIT)
    names = sorted(name for name in runs if name > after and grant.may_read(name))
    more = names[limit - 1] if 0 < limit < len(names) else None
    shown: list[RunSummary] = []
    for start in range(0, min(limit, len(names)), STEP):
        if start:
            await turns.wait(STEP // 2)
        some = names[start : min(start + STEP, limit)]
        now = context.coordinator.clock()
        shown += [run_summary(runs[name], now) for name in some if name in runs]
    return bodies.RunsBody(
        runs=tuple(shown),
        next=more,
        only=grant.run_id,
        read_only=grant.scope is Scope.READ,
        version=package_version(),
    )


async def _send_batch(
    context: ServerContext, grant: Grant, stream: EventResponse, batch: ChangedRuns
) -> None:
    names = list(filter(grant.may_read, batch.names))
    for start in range(0, len(names), STEP):
        await context.shared.turns.wait()
        await stream.write(b"".join(map(batch.frame, names[start : start + STEP])))


def _status(context: ServerContext, run_id: str, version: int) -> bytes:
    last_event = f"{context.server_id}.{context.coordinator.runs[run_id].happened}"
    status = context.coordinator.status(run_id)
    return bodies.RUN.encode(
        bodies.RunBody.of(status if version >= VERSION else status_for_1(status), last_event)
    )


def _members(context: ServerContext, run_id: str, generation: tuple[int, int]) -> bytes:
    members = tuple(remaining_members(context.coordinator, run_id, generation))
    return bodies.MEMBERS.encode(
        bodies.MembersBody(incarnation=generation[0], round=generation[1], members=members)
    )


def _known(context: ServerContext, event_id: str) -> Known | None:
    """Reads what a reader has seen last; None: nothing; a 400 if that is no id of an event."""
    if not event_id:
        return None
    server, _, number = event_id.rpartition(".")
    if not (number.isascii() and number.isdigit() and len(number) < 20):
        detail = f"{event_id[:80]!r} is no id of an event; take one from a stream, or a run's last_event"
        raise Problem(400, detail, "bad-event-id")
    return Known(int(number), server != context.server_id)


async def _shared(app: web.Application) -> AsyncIterator[None]:
    context = app[CONTEXT]
    app[HUB] = EventHub(context.coordinator, context.server_id)
    app[routes.ANSWERS] = Answers(
        context.coordinator, partial(_status, context), partial(_members, context), LARGE
    )
    yield
    app[HUB].close()


_RUN: Final = "/v1/runs/{run_id}"
_LIMIT: Final = query(
    "limit", "At most so many.", type="integer", minimum=0, maximum=MAX_LISTED, default=LISTED
)
_LAST_EVENT: Final = header("Last-Event-ID", "Goes on after this event of an earlier stream.")


def _deciding(step: str, name: str, codec: OperationCodec[Any], does: str, after: str = "The run.") -> Route:
    """Makes the route by which operations of a kind are decided of a run; to be closed it need not exist."""
    problems = routes.REFUSED if codec is bodies.CLOSE else routes.NO_RUN | routes.REFUSED

    async def handler(request: web.Request) -> web.StreamResponse:
        body, run_id, context = await read_json(request), run_id_of(request), request.app[CONTEXT]
        with understood():
            operation = codec.decode(body)
        if codec is not bodies.CLOSE:
            run_of(request)
        await steered(context.coordinator, run_id, operation)
        return json_answer(_status(context, run_id, version_of(request)))

    handler.__doc__ = does
    return Route(
        "POST", f"{_RUN}/{step}", name, handler, "runs",
        {200: Answer(after, (json(bodies.RUN.twin),))}, problems, (RUN_ID,), (json(codec.twin),),
    )  # fmt: skip


RESOURCE: Final = Resource((
    _deciding(
        "resize", "resizeRun", bodies.RESIZE,
        "Changes how many nodes a round has, whatever the nodes agreed on; 0 and 0 go back to that.",
    ),
    _deciding(
        "hold", "holdRun", bodies.HOLD,
        "Has no round complete until the run is released, or for some seconds.",
    ),
    _deciding("release", "releaseRun", bodies.RELEASE, "Ends a hold: a round that is due completes."),
    _deciding(
        "quarantine", "quarantine", bodies.QUARANTINE,
        "Keeps a node, or all nodes with one label, out of the run.",
    ),
    _deciding("pardon", "pardon", bodies.PARDON, "Lets a node, or the nodes with one label, in again."),
    Route(
        "GET", "/v1/runs", "listRuns", list_runs, "runs",
        {200: Answer("Some runs.", (json(bodies.RUNS.twin),))},
        parameters=(_LIMIT, query("after", "Only runs whose ids come after this one.")),
        needs=routes.Needs.ANY_SCOPE,
    ),
    Route(
        "GET", "/v1/events", "followRuns", follow_all, "runs",
        {200: Answer(
            "Events `runs` (a RunsBody), then `run` (a RunSummaryBody) and `forgotten` (a ForgottenBody).",
            (routes.EVENT_STREAM,),
        )},
        needs=routes.Needs.ANY_SCOPE, head=False,
    ),
    Route(
        "GET", _RUN, "showRun", show_run, "runs",
        {200: Answer("The run.", (json(bodies.RUN.twin),))}, routes.NO_RUN, (RUN_ID,),
    ),
    Route(
        "GET", _RUN + "/events", "followRun", follow_run, "runs",
        {200: Answer(
            "Events `happened` (an EventBody), `state` (a StateBody: what a node says), and `reset` (a"
            " ResetBody) for a gap.", (routes.EVENT_STREAM,)
        )},
        parameters=(RUN_ID, query("after", "As the header Last-Event-ID."), _LAST_EVENT),
        head=False,
    ),
    _deciding(
        "close", "closeRun", bodies.CLOSE,
        "Closes a run: no further round will form.", "The run, which is closed.",
    ),
    _deciding(
        "reopen", "reopenRun", bodies.REOPEN,
        "Opens a closed run anew, without its nodes.", "The run, which is open.",
    ),
), _shared)  # fmt: skip

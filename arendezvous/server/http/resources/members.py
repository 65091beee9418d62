"""``/v1/runs/{run_id}/members``: joining a run, and what a node that has joined says and hears."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final
from urllib.parse import quote

import anyio
import msgspec
from aiohttp import web

from arendezvous.coordinator.images import NOTHING
from arendezvous.coordinator.records import settled, steered
from arendezvous.errors import RendezvousSettingsError
from arendezvous.law import image
from arendezvous.law.operations import KeepAlive
from arendezvous.law.state import MAX_ROUND, Cause, NodeView, Phase, RunSettings
from arendezvous.server.http import routes
from arendezvous.server.http.bodies import read_json, understood
from arendezvous.server.http.requests import Query, bad_query, run_id_of, run_in_turn, run_of, version_of
from arendezvous.server.http.responses import NO_STORE, Problem, json_answer
from arendezvous.server.http.routes import CONTEXT, RUN_ID, Answer, Resource, Route, header, json, path, query
from arendezvous.server.http.sessions import SESSIONS, Session, Sessions, is_same
from arendezvous.server.http.stream import EventResponse, wants_stream
from arendezvous.wire.http import bodies
from arendezvous.wire.http.bodies import FORMER_HEADER, SESSION_HEADER, VIEW
from arendezvous.wire.http.named import OperationCodec
from arendezvous.wire.http.names import IDEMPOTENCY_HEADER
from arendezvous.wire.native.messages import VERSION
from arendezvous.wire.native.versions import view_for_1

LONGEST_WAIT: Final = 55.0  # seconds: proxies cut a request off that is silent for 60
MAX_KEY: Final = 256
MIN_KEY: Final = 16  # characters: it must not be guessed
MAX_REVISION: Final = 2**62
MAX_DIGITS: Final = 19
CAUSES: Final = (Cause.LEFT, Cause.FINISHED, Cause.FAILED, Cause.CANCELLED)  # that a node may say itself


async def join(request: web.Request) -> web.StreamResponse:
    """Brings a node into the run, and begins its session.

    The answer is the session, or a stream that begins with it. A request that shows the session, or the
    ``Idempotency-Key`` of the request that began it, goes on with it.
    """
    body = await read_json(request)
    run_id, key = run_id_of(request), _key_of(request)
    with understood():
        operation = bodies.JOIN.decode(body)
    sessions, desc, settings = request.app[SESSIONS], operation.desc, operation.settings
    session = sessions.find(run_id, desc.name, request.headers.get(SESSION_HEADER, ""), key)
    if session is not None and _goes_on(request, session, key):
        session.propose(operation)
    else:
        session = sessions.begin(run_id, desc, key, operation, request.headers.get(FORMER_HEADER, ""))
    if wants_stream(request):
        return await _stream(request, session, settings)
    base = request.rel_url.raw_path.rstrip("/")
    where = {"Location": f"{base}/{quote(desc.name, safe='')}"}
    return json_answer(_joined(request, session, settings), 201, where)


async def list_members(request: web.Request) -> web.StreamResponse:
    """Lists the members of the complete round."""
    run = run_of(request)
    query = Query(request, "incarnation", "round")
    asked = generation_of(query, (run.state.incarnation, run.state.round))
    run = await run_in_turn(request)
    return json_answer(request.app[routes.ANSWERS].members(run.run_id, asked))


def generation_of(query: Query, default: tuple[int, int]) -> tuple[int, int]:
    """The incarnation and the round that are asked for."""
    incarnation = query.integer("incarnation", 0, MAX_ROUND, default[0])
    return incarnation, query.integer("round", 0, MAX_ROUND, default[1])


async def show_member(request: web.Request) -> web.StreamResponse:
    """Tells what a node sees of the run."""
    run, node = run_of(request), request.match_info["node"]
    view = request.app[CONTEXT].coordinator.view(run.run_id, node)
    if view is None or (view.phase is Phase.GONE and view.gone is None):
        raise _no_such_member(request, run.run_id, node)
    return json_answer(_encoded(request, view))


async def join_again(request: web.Request) -> web.StreamResponse:
    """Has the node join the next round."""
    body = await read_json(request)
    session = own_session(request)
    with understood():
        operation = bodies.REJOIN.decode(body, session.desc)
        if operation.node != session.desc.name:
            expected = f"{session.desc.name!r}, as in the path"
            raise RendezvousSettingsError.of("node.name", operation.node, expected)
    return json_answer(_encoded(request, session.propose(operation)))


async def leave(request: web.Request) -> web.StreamResponse:
    """Has the node leave the run."""
    query = Query(request, *bodies.LEAVE.names)
    session = own_session(request)
    operation = query.operation(bodies.LEAVE, session.desc.name)
    if operation.cause not in CAUSES:
        expected = f"one of {', '.join(cause.value for cause in CAUSES)}"
        raise bad_query("cause", f"is {operation.cause.value!r}", expected)
    view = session.propose(operation)
    await settled(request.app[CONTEXT].coordinator)
    return json_answer(_encoded(request, view))


async def recall(request: web.Request) -> web.StreamResponse:
    """Tells a server that was started anew what was agreed of the run."""
    body = await read_json(request)
    session = own_session(request)
    with understood():
        part = image.decode(bodies.IMAGE.decode(body).image)
    session.recall(part)
    return json_answer(VIEW.encode(session.view))


async def drain(request: web.Request) -> web.StreamResponse:
    """Asks a node to leave before its time is over."""
    body = await read_json(request)
    run, node = run_of(request), request.match_info["node"]
    if node not in run.state.nodes:
        raise _no_such_member(request, run.run_id, node)
    with understood():
        operation = bodies.DRAIN.decode(body, node)
    return json_answer(
        _encoded(request, await steered(request.app[CONTEXT].coordinator, run.run_id, operation))
    )


async def follow_view(request: web.Request) -> web.StreamResponse:
    """Waits for the node's next view, or streams its views.

    The view is the next one after that of ``?since=``; a 304 if there is none within ``?wait=`` seconds.
    """
    query = Query(request, "since", "wait")
    session = own_session(request)
    session.propose(KeepAlive(session.desc.name))  # a stream that is opened again ends the grace
    if wants_stream(request):
        return await _stream(request, session)
    since, wait = query.integer("since", -1, MAX_REVISION, -1), min(query.seconds("wait"), LONGEST_WAIT)
    news = asyncio.Event()
    session.news.add(news)
    try:
        with anyio.move_on_after(wait):
            while session.view.revision == since:
                await news.wait()
                news.clear()
    finally:
        session.news.discard(news)
    if session.view.revision == since:
        return web.Response(status=304, headers=NO_STORE)
    return json_answer(_encoded(request, session.view))


async def _stream(
    request: web.Request, session: Session, settings: RunSettings | None = None
) -> web.StreamResponse:
    """Streams a node's views, the latest of them whenever the client reads, until the node is gone.

    With `settings` it is the answer to a join, which waits a moment, to have the rank if that comes soon.
    """
    stream = EventResponse(request, 200 if settings is None else 201)
    told = _last_event_id(request)
    session.stream_begins(stream.news)
    try:
        with stream:
            if settings is not None:
                await request.app[SESSIONS].settled(session, stream.news)
                told = session.view.revision
                await stream.send("joined", _joined(request, session, settings), str(told))
                await _send_image(request, session, stream)
            await _send_views(request, session, stream, told)
    finally:
        session.stream_ends(stream.news)
    return stream.response


async def _send_views(request: web.Request, session: Session, stream: EventResponse, told: int) -> None:
    """Sends the views after that of the revision `told`; returns when the node is gone."""
    while True:
        if session.view.revision != told:
            await request.app[SESSIONS].settled(session, stream.news)
        view = session.view
        if view.revision != told:
            told = view.revision
            await stream.send("view", _encoded(request, view), str(told))
            await _send_image(request, session, stream)
        if view.phase is Phase.GONE:
            return
        await stream.more()


def _encoded(request: web.Request, view: NodeView) -> bytes:
    return VIEW.encode(_understood(request, view))


def _understood(request: web.Request, view: NodeView) -> NodeView:
    """Says what a view says in words that the client knows."""
    return view if version_of(request) >= VERSION else view_for_1(view)


async def _send_image(request: web.Request, session: Session, stream: EventResponse) -> None:
    """Entrusts what is agreed of the run to a node that keeps it, if it is the one to keep that."""
    data, adds = session.take_image() if bodies.KEEPS_HEADER in request.headers else NOTHING
    if data:
        await stream.send("image", bodies.IMAGE.encode(bodies.ImageBody(data, adds)))


def _last_event_id(request: web.Request) -> int:
    text = request.headers.get("Last-Event-ID", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < MAX_DIGITS else -1


def _joined(request: web.Request, session: Session, settings: RunSettings) -> bytes:
    joined = bodies.JoinedBody(
        node=session.desc.name,
        session=session.secret,
        server=request.app[CONTEXT].server_id,
        expiry=settings.expiry,
        view=_understood(request, session.view),
    )
    return bodies.JOINED.encode(joined)


def _goes_on(request: web.Request, session: Session, key: str) -> bool:
    """Whether a join goes on with a session that there is; False if that is over, or another process's."""
    shown = request.headers.get(SESSION_HEADER)
    repeats = bool(key) and is_same(key, session.key)
    if session.is_over:
        if repeats:
            raise _over(request, session)
        return False
    if repeats or (shown is not None and is_same(shown, session.secret)):
        return True
    if shown is not None:
        raise _another_session(request, session.desc.name)
    return False


def own_session(request: web.Request) -> Session:
    """The session of the node that the path names, if the request shows its secret.

    Whoever never got the answer to its join has no secret, but shows the ``Idempotency-Key`` of the join.
    A 403 if it shows none or another, 404 if there is no such run or node, 410 if the session is over.
    """
    node = request.match_info["node"]
    run_id = run_id_of(request)
    shown, key = request.headers.get(SESSION_HEADER, ""), request.headers.get(IDEMPOTENCY_HEADER, "")
    session = request.app[SESSIONS].find(run_id, node, shown, key)
    if session is None:
        if node in run_of(request).state.nodes:  # it did not come in over HTTP
            raise _another_session(request, node)
        raise _no_such_member(request, run_id, node)
    if not is_same(shown, session.secret) and not (session.key and is_same(key, session.key)):
        raise _another_session(request, node)
    if session.is_over:
        raise _over(request, session)
    return session


def _another_session(request: web.Request, node: str) -> Problem:
    what = "is not that of" if SESSION_HEADER in request.headers else "is missing, and only that speaks for"
    detail = f"the secret in the header {SESSION_HEADER} {what} node {node!r}; the answer to its join has it"
    return Problem(403, detail, "not-your-session", NO_STORE)


def _no_such_member(request: web.Request, run_id: str, node: str) -> Problem:
    detail = f"there is no node {node!r} in run {run_id!r}; it may never have joined, or be forgotten"
    return Problem(404, detail, "no-such-member", NO_STORE)


def _over(request: web.Request, session: Session) -> Problem:
    gone = session.view.gone
    why = "" if gone is None else f" ({gone.cause.value}{f': {gone.reason}' if gone.reason else ''})"
    detail = f"node {session.desc.name!r} is in run {session.run_id!r} no more{why}; join again to come back"
    return Problem(
        410, detail, "session-over", NO_STORE, {"view": msgspec.Raw(_encoded(request, session.view))}
    )


def _key_of(request: web.Request) -> str:
    key = request.headers.get(IDEMPOTENCY_HEADER, "")
    if key and not MIN_KEY <= len(key) <= MAX_KEY:
        expected = f"expected are {MIN_KEY} to {MAX_KEY}, and random ones"
        detail = f"the header {IDEMPOTENCY_HEADER} has {len(key)} characters; {expected}"
        raise Problem(400, detail, "bad-key")
    return key


async def _shared(app: web.Application) -> AsyncIterator[None]:
    app[SESSIONS] = Sessions(app[CONTEXT].coordinator)
    yield
    app[SESSIONS].close()


_MEMBERS: Final = "/v1/runs/{run_id}/members"
_MEMBER: Final = _MEMBERS + "/{node}"
ROUND: Final = (
    query("incarnation", "Of that round.", type="integer", minimum=0, maximum=MAX_ROUND),
    query("round", "That round and no later one.", type="integer", minimum=0, maximum=MAX_ROUND),
)
_NODE: Final = path("node", "The node.")
_SESSION: Final = header(SESSION_HEADER, "The secret of the node's session, from the answer to its join.")
OF_MEMBER: Final = (RUN_ID, _NODE, _SESSION)
_JOIN_KEY: Final = header(IDEMPOTENCY_HEADER, "Random; a join that repeats it goes on with the same session.")
_KEEPS: Final = header(bodies.KEEPS_HEADER, "Whether it keeps what the event `image` of its stream tells.")
_VIEW: Final = {200: Answer("Where the node stands now.", (json(VIEW.twin),))}
_NO_NODE: Final = {404: "There is no such run or node."}
_OWN: Final = _NO_NODE | {
    409: "The state of the run does not allow it.",
    410: "The session is over; `view` says why.",
}

OF_ROUND: Final = _OWN | {
    409: "The round is over, or a member of it is gone; `data.departures` says who, and why."
}


def _saying(
    method: str, last: str, name: str, codec: OperationCodec[Any], does: str, problems: dict[int, str]
) -> Route:
    """Makes the route by which a node says something of itself; the answer is what it was told last."""

    async def handler(request: web.Request) -> web.StreamResponse:
        body = await read_json(request)
        session = own_session(request)
        with understood():
            view = session.propose(codec.decode(body, session.desc.name))
        return json_answer(_encoded(request, view))

    handler.__doc__ = does
    return Route(
        method, f"{_MEMBER}/{last}", name, handler, "members",
        _VIEW, problems, OF_MEMBER, (json(codec.twin),),
    )  # fmt: skip


RESOURCE: Final = Resource((
    Route(
        "POST", _MEMBERS, "join", join, "members",
        {201: Answer(
            "The node has joined; for whoever accepts events, a stream of `joined` and `view`.",
            (json(bodies.JOINED.twin), routes.EVENT_STREAM), {"Location": "The node."},
        )},
        routes.REFUSED | {410: "This join, by its key, is a late copy of one that is over."},
        (
            RUN_ID, _SESSION, _JOIN_KEY,
            header(FORMER_HEADER, "The secret of its session at a server that was started anew since."),
            _KEEPS,
        ),
        (json(bodies.JOIN.twin),),
    ),
    Route(
        "GET", _MEMBERS, "listMembers", list_members, "members",
        {200: Answer("The members.", (json(bodies.MEMBERS.twin),))},
        routes.NO_RUN | {409: "That round is not the current one."}, (RUN_ID, *ROUND),
    ),
    Route("GET", _MEMBER, "showMember", show_member, "members", _VIEW, _NO_NODE, (RUN_ID, _NODE)),
    Route(
        "PUT", _MEMBER, "joinAgain", join_again, "members",
        _VIEW, _OWN, OF_MEMBER, (json(bodies.REJOIN.twin),),
    ),
    Route(
        "DELETE", _MEMBER, "leave", leave, "members", _VIEW, _OWN,
        (
            *OF_MEMBER, query("reason", "Why, in words.", type="string", maxLength=256),
            query("cause", "Why, for programs.", enum=[cause.value for cause in CAUSES]),
        ),
    ),
    Route(
        "GET", _MEMBER + "/view", "followView", follow_view, "members",
        {
            200: Answer(
                "The view; for whoever accepts events, a stream.", (json(VIEW.twin), routes.EVENT_STREAM)
            ),
            304: Answer("There is no other view yet."),
        },
        _OWN,
        (
            *OF_MEMBER, routes.WAIT,
            header("Last-Event-ID", "Goes on after this event of an earlier stream."),
            _KEEPS,
            query("since", "The revision that is known; -1: none.", type="integer", minimum=-1),
        ),
        head=False,
    ),
    _saying("POST", "keep-alive", "keepAlive", bodies.KEEP_ALIVE, "Says that the node is alive.", _OWN),
    _saying("PUT", "state", "update", bodies.UPDATE, "Says what the node's state is now.", OF_ROUND),
    _saying(
        "POST", "progress", "progress", bodies.PROGRESS, "Says how far the node's work has come.", OF_ROUND
    ),
    Route(
        "POST", _MEMBER + "/recall", "recall", recall, "members",
        _VIEW, _OWN | routes.REFUSED, OF_MEMBER, (json(bodies.IMAGE.twin),),
    ),
    Route(
        "POST", _MEMBER + "/drain", "drain", drain, "members",
        _VIEW, _NO_NODE | routes.REFUSED, (RUN_ID, _NODE), (json(bodies.DRAIN.twin),),
    ),
), _shared)  # fmt: skip

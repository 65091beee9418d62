"""``/v1/runs/{run_id}/members``: joining a run, and what a node that has joined says and hears."""

from __future__ import annotations

import asyncio
from typing import Final
from urllib.parse import quote

import anyio
from aiohttp import web

from arendezvous.errors import RendezvousSettingsError
from arendezvous.law.operations import Drain, Join, KeepAlive, Leave, Resume
from arendezvous.law.state import MAX_ROUND, Cause, NodeDesc, Phase
from arendezvous.server.http.asking import Query, bad_query
from arendezvous.server.http.context import CONTEXT
from arendezvous.server.http.exchange import (
    NO_STORE,
    answer,
    bad_body,
    read_json,
    run_id_of,
    run_of,
)
from arendezvous.server.http.problem import Problem
from arendezvous.server.http.sessions import SESSIONS, Session, Sessions, is_same
from arendezvous.server.http.stream import EventStream, wants_stream
from arendezvous.wire.http.bodies import (
    SESSION_HEADER,
    DrainRequest,
    GenerationBody,
    HeldBody,
    JoinedBody,
    JoinRequest,
    MembersBody,
    Nothing,
    RejoinRequest,
    SettingsBody,
)
from arendezvous.wire.http.conversions import desc_body, desc_of, settings_of, view_body
from arendezvous.wire.http.names import IDEMPOTENCY_HEADER

LONGEST_WAIT: Final = 55.0  # seconds: proxies cut a request off that is silent for 60
MAX_KEY: Final = 256
MIN_KEY: Final = 16  # characters: it must not be guessed
MAX_REVISION: Final = 2**62
MAX_DIGITS: Final = 19
_CAUSES: Final = {cause.value: cause for cause in (Cause.LEFT, Cause.FINISHED, Cause.FAILED, Cause.CANCELLED)}


def add_members(app: web.Application) -> None:
    """Adds the resources of a run's nodes."""
    app[SESSIONS] = Sessions(app[CONTEXT].coordinator)
    members = "/v1/runs/{run_id}/members"
    app.router.add_post(members, join)
    app.router.add_get(members, list_members)
    app.router.add_get(members + "/{node}", show_member)
    app.router.add_put(members + "/{node}", join_again)
    app.router.add_delete(members + "/{node}", leave)
    app.router.add_get(members + "/{node}/view", follow_view, allow_head=False)
    app.router.add_post(members + "/{node}/keep-alive", keep_alive)
    app.router.add_post(members + "/{node}/drain", drain)
    app.on_cleanup.append(_end)


async def _end(app: web.Application) -> None:
    app[SESSIONS].close()


async def join(request: web.Request) -> web.StreamResponse:
    """Brings a node into the run; answers with its session, or with a stream that begins with it.

    A request that shows the session, or the ``Idempotency-Key`` of the request that began it, goes on with
    it.
    """
    body = await read_json(request, JoinRequest)
    run_id, key = run_id_of(request), _key_of(request)
    try:
        desc = desc_of(body.node)
        operation = _operation(desc, body.settings, body.after, body.held)
    except RendezvousSettingsError as error:
        raise bad_body(error) from error
    sessions = request.app[SESSIONS]
    session = sessions.find(run_id, desc.name, request.headers.get(SESSION_HEADER, ""), key)
    if session is not None and _goes_on(request, session, key):
        session.propose(operation)
    else:
        session = sessions.begin(run_id, desc, key, operation)
    if wants_stream(request):
        return await _stream(request, session, body.settings)
    base = request.rel_url.raw_path.rstrip("/")
    where = {"Location": f"{base}/{quote(desc.name, safe='')}"}
    return answer(request, _joined(request, session, body.settings), 201, where)


async def list_members(request: web.Request) -> web.StreamResponse:
    """Answers with the remaining members of the complete round, in rank order.

    ``?incarnation=`` and ``?round=`` ask for that round and no later one.
    """
    run = run_of(request)
    query = Query(request, "incarnation", "round")
    incarnation = query.integer("incarnation", 0, MAX_ROUND, run.state.incarnation)
    round_ = query.integer("round", 0, MAX_ROUND, run.state.round)
    members = request.app[CONTEXT].coordinator.members(run.run_id, (incarnation, round_))
    body = MembersBody(incarnation=incarnation, round=round_, members=tuple(map(desc_body, members)))
    return answer(request, body)


async def show_member(request: web.Request) -> web.StreamResponse:
    """Answers with what a node sees of the run; anybody may ask who may look at the run."""
    run, node = run_of(request), request.match_info["node"]
    view = request.app[CONTEXT].coordinator.view(run.run_id, node)
    if view is None or (view.phase is Phase.GONE and view.gone is None):
        raise _no_such_member(request, run.run_id, node)
    return answer(request, view_body(view))


async def join_again(request: web.Request) -> web.StreamResponse:
    """Has a node of an open session join the next round, or show the rank that it holds."""
    body = await read_json(request, RejoinRequest)
    session = _own_session(request)
    try:
        desc = session.desc if body.node is None else desc_of(body.node)
        if desc.name != session.desc.name:
            raise RendezvousSettingsError.of("node.name", desc.name, f"{session.desc.name!r}, as in the path")
        operation = _operation(desc, body.settings, body.after, body.held)
    except RendezvousSettingsError as error:
        raise bad_body(error) from error
    return answer(request, view_body(session.propose(operation)))


async def keep_alive(request: web.Request) -> web.StreamResponse:
    """Takes a heartbeat, and answers with what the node was told last."""
    await read_json(request, Nothing)
    session = _own_session(request)
    return answer(request, view_body(session.propose(KeepAlive(session.desc.name))))


async def leave(request: web.Request) -> web.StreamResponse:
    """Has a node leave the run, with a ``?reason=`` in words and a ``?cause=``."""
    query = Query(request, "reason", "cause")
    session = _own_session(request)
    cause = query.text("cause") or Cause.LEFT.value
    if cause not in _CAUSES:
        raise bad_query("cause", f"is {cause[:40]!r}", f"one of {', '.join(_CAUSES)}")
    try:
        operation = Leave(session.desc.name, query.text("reason"), _CAUSES[cause])
    except RendezvousSettingsError as error:
        raise bad_query("reason", "is too long, or not printable", error.expected) from error
    return answer(request, view_body(session.propose(operation)))


async def drain(request: web.Request) -> web.StreamResponse:
    """Announces that a member must leave; anybody may ask who may change the run."""
    body = await read_json(request, DrainRequest)
    run, node = run_of(request), request.match_info["node"]
    if node not in run.state.nodes:
        raise _no_such_member(request, run.run_id, node)
    try:
        operation = Drain(node, body.seconds, body.reason)
    except RendezvousSettingsError as error:
        raise bad_body(error) from error
    return answer(request, view_body(request.app[CONTEXT].coordinator.steer(run.run_id, operation)))


async def follow_view(request: web.Request) -> web.StreamResponse:
    """Answers with the node's view; if it is that of ``?since=``, with the next, within ``?wait=`` seconds.

    If there is none in that time the answer is 304. For whoever accepts events it is a stream of views.
    """
    query = Query(request, "since", "wait")
    session = _own_session(request)
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
    return answer(request, view_body(session.view))


async def _stream(
    request: web.Request, session: Session, settings: SettingsBody | None = None
) -> web.StreamResponse:
    """Streams a node's views, the latest of them whenever the client reads, until the node is gone.

    With `settings` it is the answer to a join, which waits for a moment, so that it has the rank if the round
    completes soon.
    """
    stream = EventStream(request, 200 if settings is None else 201)
    told = _last_event_id(request)
    session.stream_begins(stream.news)
    try:
        async with stream:
            if settings is not None:
                await request.app[SESSIONS].settled(session, stream.news)
                told = session.view.revision
                await stream.send("joined", _joined(request, session, settings), str(told))
            await _send_views(request, session, stream, told)
    except ConnectionError:
        pass  # the client is gone
    finally:
        session.stream_ends(stream.news)
    return stream.response


async def _send_views(request: web.Request, session: Session, stream: EventStream, told: int) -> None:
    """Sends the views after that of the revision `told`; returns when the node is gone."""
    while True:
        if session.view.revision != told:
            await request.app[SESSIONS].settled(session, stream.news)
        view = session.view
        if view.revision != told:
            told = view.revision
            await stream.send("view", view_body(view), str(told))
        if view.phase is Phase.GONE:
            return
        await stream.more()


def _last_event_id(request: web.Request) -> int:
    text = request.headers.get("Last-Event-ID", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < MAX_DIGITS else -1


def _joined(request: web.Request, session: Session, settings: SettingsBody) -> JoinedBody:
    return JoinedBody(
        node=session.desc.name,
        session=session.secret,
        server=request.app[CONTEXT].server_id,
        expiry=settings.keep_alive_interval * settings.keep_alive_max_attempt,
        view=view_body(session.view),
    )


def _operation(
    desc: NodeDesc, settings: SettingsBody, after: GenerationBody | None, held: HeldBody | None
) -> Join | Resume:
    run_settings = settings_of(settings)
    if held is not None:
        return Resume(
            desc, run_settings, held.incarnation, held.round, held.rank, held.world_size, held.digest
        )
    return Join(desc, run_settings, (0, -1) if after is None else (after.incarnation, after.round))


def _goes_on(request: web.Request, session: Session, key: str) -> bool:
    """Whether a join goes on with a session that there is; False if that is over, or another process's.

    Raises:
        Problem: 403, the secret that is shown is another one; 410, the join is a late copy of one that is
            over.
    """
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


def _own_session(request: web.Request) -> Session:
    """The session of the node that the path names, if the request shows its secret.

    Whoever never got the answer to its join has no secret, but shows the ``Idempotency-Key`` of the join.

    Raises:
        Problem: 403, it shows none or another; 404, there is no such run or node; 410, the session is over.
    """
    node = request.match_info["node"]
    run_id = run_id_of(request)
    shown, key = request.headers.get(SESSION_HEADER, ""), request.headers.get(IDEMPOTENCY_HEADER, "")
    session = request.app[SESSIONS].find(run_id, node, shown, key)
    if session is None:
        if node in run_of(request).state.nodes:  # it came in by another door
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
    return Problem(410, detail, "session-over", NO_STORE, {"view": view_body(session.view)})


def _key_of(request: web.Request) -> str:
    key = request.headers.get(IDEMPOTENCY_HEADER, "")
    if key and not MIN_KEY <= len(key) <= MAX_KEY:
        expected = f"expected are {MIN_KEY} to {MAX_KEY}, and random ones"
        detail = f"the header {IDEMPOTENCY_HEADER} has {len(key)} characters; {expected}"
        raise Problem(400, detail, "bad-key")
    return key

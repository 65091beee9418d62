"""Lets the members of a round speak to each other while they work, and tells who they are: the roster.

``/v1/runs/{run_id}/members/{node}``: a member comes to barriers, and waits there until all have come.
``/v1/runs/{run_id}/roster``: the members, and who has gone since.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

import anyio
import msgspec
from aiohttp import web

from arendezvous.coordinator.meeting import Outcome
from arendezvous.coordinator.rosters import PAGE, RosterPages, roster_of
from arendezvous.errors import RendezvousError
from arendezvous.law.barriers import Met, standing
from arendezvous.law.operations import Arrive
from arendezvous.law.rosters import Member, RoundRoster
from arendezvous.law.state import MAX_WORLD
from arendezvous.server.http import routes
from arendezvous.server.http.bodies import read_json, understood
from arendezvous.server.http.requests import Query, bad_query, run_of
from arendezvous.server.http.resources.members import (
    LONGEST_WAIT,
    OF_MEMBER,
    OF_ROUND,
    ROUND,
    generation_of,
    own_session,
)
from arendezvous.server.http.responses import json_answer
from arendezvous.server.http.routes import CONTEXT, RUN_ID, Answer, Resource, Route, json, path, query
from arendezvous.server.http.sessions import Session
from arendezvous.wire.http import bodies

PAGES: Final = web.AppKey("roster_pages", RosterPages)

_encode: Final = msgspec.json.Encoder().encode


async def show_roster(request: web.Request) -> web.StreamResponse:
    """Lists the members of a round as it was completed, in rank order, some at a time."""
    query = Query(request, "incarnation", "round", "first")
    roster = _roster_of(request, query)
    size = len(roster.descs)
    first = query.integer("first", 0, MAX_WORLD, 0)
    if first % PAGE or not 0 <= first < size:
        raise bad_query("first", f"is {first}", "0, or what `next` of the page before says")
    after = first + PAGE
    gone = [one for one in roster.gone_members(_now(request)) if first <= one.rank < after]
    body = {
        "incarnation": roster.generation[0],
        "round": roster.generation[1],
        "world_size": size,
        "first": first,
        "members": msgspec.Raw(request.app[PAGES].page(roster, first)),
        "next": after if after < size else None,
        "gone": [msgspec.Raw(bodies.GONE.encode(one)) for one in gone],
    }
    return json_answer(_encode(body))


async def show_gone(request: web.Request) -> web.StreamResponse:
    """Lists who of the members of a round has gone since it was completed, by rank."""
    roster = _roster_of(request, Query(request, "incarnation", "round"))
    incarnation, round_ = roster.generation
    gone = roster.gone_members(_now(request))
    return json_answer(
        bodies.GONE_MEMBERS.encode(bodies.GoneBody(incarnation=incarnation, round=round_, gone=gone))
    )


def _roster_of(request: web.Request, query: Query) -> RoundRoster:
    """The roster that is asked for, by default the one that there is."""
    run = run_of(request)
    known = run.state.roster
    present = (run.state.incarnation, run.state.round) if known is None else known.generation
    asked = generation_of(query, present)
    return roster_of(request.app[CONTEXT].coordinator, run.run_id, asked)


def _now(request: web.Request) -> float:
    return request.app[CONTEXT].coordinator.clock()


def _encoded(entries: tuple[Member, ...]) -> bytes:
    return b"[" + b",".join(map(bodies.ENTRY.encode, entries)) + b"]"


async def _shared(app: web.Application) -> AsyncIterator[None]:
    app[PAGES] = RosterPages(_encoded)
    yield


_ROSTER: Final = "/v1/runs/{run_id}/roster"
_FIRST: Final = query(
    "first", "What `next` of the page before says.", type="integer", minimum=0, maximum=MAX_WORLD
)
_NOT_KEPT: Final = {409: "That round is not the latest that was complete."}


async def arrive(request: web.Request) -> web.StreamResponse:
    """Has the member come to a barrier.

    The answer says that it has passed, once all have come; or after ``?wait=`` seconds that it has not, and
    who is missing. The member has come then all the same: it asks again, or withdraws.
    """
    wait = min(Query(request, "wait").seconds("wait"), LONGEST_WAIT)
    body = await read_json(request)
    session = own_session(request)
    with understood():
        operation = bodies.ARRIVE.decode(body, session.desc.name, name=request.match_info["barrier"])
    return json_answer(bodies.MET.encode(await _arrived(request, session, operation, wait)))


async def _arrived(request: web.Request, session: Session, operation: Arrive, wait: float) -> Met:
    """Waits until the barrier is over, for `wait` seconds at most; tells how it stands then."""
    attachment, coordinator = session.attachment, request.app[CONTEXT].coordinator
    over: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    def answer(outcome: Outcome) -> None:
        if not over.done():
            over.set_result(outcome)

    met = coordinator.meetings.arrive(attachment, operation, answer)
    if met is not None:
        return met
    try:
        with anyio.move_on_after(wait):
            outcome = await over
            if isinstance(outcome, RendezvousError):
                raise outcome
            return outcome
    finally:
        coordinator.meetings.stop_waiting(attachment, operation, answer)
    return standing(attachment.run.state, operation)


async def withdraw(request: web.Request) -> web.StreamResponse:
    """Has the member wait at a barrier no more."""
    query = Query(request, *bodies.WITHDRAW.names)
    session = own_session(request)
    operation = query.operation(bodies.WITHDRAW, session.desc.name, name=request.match_info["barrier"])
    met = request.app[CONTEXT].coordinator.meetings.withdraw(session.attachment, operation)
    return json_answer(bodies.MET.encode(met))


_BARRIER: Final = "/v1/runs/{run_id}/members/{node}/barriers/{barrier}"
_OF_BARRIER: Final = (*OF_MEMBER, path("barrier", "Names the barrier."))
_NUMBERS: Final = (("incarnation", 1), ("round", 0), ("turn", 0))

RESOURCE: Final = Resource((
    Route(
        "PUT", _BARRIER, "arrive", arrive, "members",
        {200: Answer("How the barrier stands.", (json(bodies.MET.twin),))}, OF_ROUND,
        (*_OF_BARRIER, routes.WAIT), (json(bodies.ARRIVE.twin),),
    ),
    Route(
        "DELETE", _BARRIER, "withdraw", withdraw, "members",
        {200: Answer("How the barrier stands.", (json(bodies.MET.twin),))}, OF_ROUND,
        (
            *_OF_BARRIER,
            *(query(name, f"The {name}, as it came.", type="integer", minimum=least)
              for name, least in _NUMBERS),
        ),
    ),
    Route(
        "GET", _ROSTER, "showRoster", show_roster, "members",
        {200: Answer("Some of the members.", (json(bodies.ROSTER.twin),))},
        routes.NO_RUN | _NOT_KEPT, (RUN_ID, *ROUND, _FIRST),
    ),
    Route(
        "GET", _ROSTER + "/gone", "showGone", show_gone, "members",
        {200: Answer("Who has gone.", (json(bodies.GONE_MEMBERS.twin),))},
        routes.NO_RUN | _NOT_KEPT, (RUN_ID, *ROUND),
    ),
), _shared)  # fmt: skip

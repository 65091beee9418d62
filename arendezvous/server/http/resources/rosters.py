"""``/v1/runs/{run_id}/roster``: who the members of a round were, and who of them has gone since."""

from __future__ import annotations

from typing import Final

import msgspec
from aiohttp import web

from arendezvous.coordinator.rosters import PAGE, RosterPages, roster_of
from arendezvous.law.rosters import Member, RoundRoster
from arendezvous.law.state import MAX_ROUND, MAX_WORLD
from arendezvous.server.http.context import CONTEXT
from arendezvous.server.http.requests import Query, bad_query, run_of
from arendezvous.server.http.responses import json_answer
from arendezvous.server.http.routes import NO_RUN, RUN_ID, Answer, Resource, Route, json, query
from arendezvous.wire.http.bodies import ENTRY, GONE, GONE_MEMBERS, ROSTER, GoneBody

PAGES: Final = web.AppKey("roster_pages", RosterPages)

_encode: Final = msgspec.json.Encoder().encode


async def show_roster(request: web.Request) -> web.StreamResponse:
    """Lists the members of a round as it was completed, in rank order, some at a time.

    With a mark on those who have gone since. The roster stays until the next round completes;
    ``?incarnation=`` and ``?round=`` ask for that round and no later one.
    """
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
        "gone": [msgspec.Raw(GONE.encode(one)) for one in gone],
    }
    return json_answer(_encode(body))


async def show_gone(request: web.Request) -> web.StreamResponse:
    """Lists who of the members of a round has gone since it was completed, by rank."""
    roster = _roster_of(request, Query(request, "incarnation", "round"))
    incarnation, round_ = roster.generation
    gone = roster.gone_members(_now(request))
    return json_answer(GONE_MEMBERS.encode(GoneBody(incarnation=incarnation, round=round_, gone=gone)))


def _roster_of(request: web.Request, query: Query) -> RoundRoster:
    """The roster that is asked for, by default the one that there is.

    Raises:
        RendezvousStateError: It is not kept, or not any more.
    """
    run = run_of(request)
    known = run.state.roster
    incarnation, round_ = (run.state.incarnation, run.state.round) if known is None else known.generation
    asked = (
        query.integer("incarnation", 0, MAX_ROUND, incarnation),
        query.integer("round", 0, MAX_ROUND, round_),
    )
    return roster_of(request.app[CONTEXT].coordinator, run.run_id, asked)


def _now(request: web.Request) -> float:
    return request.app[CONTEXT].coordinator.clock()


def _encoded(entries: tuple[Member, ...]) -> bytes:
    return b"[" + b",".join(map(ENTRY.encode, entries)) + b"]"


def _set_up(app: web.Application) -> None:
    app[PAGES] = RosterPages(_encoded)


_ROSTER: Final = "/v1/runs/{run_id}/roster"
_ROUND: Final = (
    query("incarnation", "Of that round.", type="integer", minimum=0, maximum=MAX_ROUND),
    query("round", "That round and no later one.", type="integer", minimum=0, maximum=MAX_ROUND),
)
_FIRST: Final = query(
    "first", "What `next` of the page before says.", type="integer", minimum=0, maximum=MAX_WORLD
)
_NOT_KEPT: Final = {409: "That round is not the latest that was complete."}

RESOURCE: Final = Resource((
    Route(
        "GET", _ROSTER, "showRoster", show_roster, "members",
        {200: Answer("Some of the members.", (json(ROSTER.twin),))},
        NO_RUN | _NOT_KEPT, (RUN_ID, *_ROUND, _FIRST),
    ),
    Route(
        "GET", _ROSTER + "/gone", "showGone", show_gone, "members",
        {200: Answer("Who has gone.", (json(GONE_MEMBERS.twin),))},
        NO_RUN | _NOT_KEPT, (RUN_ID, *_ROUND),
    ),
), _set_up)  # fmt: skip

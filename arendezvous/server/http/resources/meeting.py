"""``/v1/runs/{run_id}/members/{node}``: what a member of a round says to the others while it works.

It comes to barriers, and waits there until all have come; it says what its state is, and how far it has come.
"""

from __future__ import annotations

import asyncio
from typing import Final

import anyio
import msgspec
from aiohttp import web

from arendezvous.coordinator.meeting import Outcome
from arendezvous.errors import RendezvousError, RendezvousSettingsError
from arendezvous.law.barriers import Met, standing
from arendezvous.law.operations import Arrive
from arendezvous.server.http.bodies import read_json, understood
from arendezvous.server.http.context import CONTEXT
from arendezvous.server.http.requests import Query
from arendezvous.server.http.resources.members import LONGEST_WAIT, own_session
from arendezvous.server.http.responses import Problem, json_answer
from arendezvous.server.http.routes import RUN_ID, WAIT, Answer, Resource, Route, header, json, path, query
from arendezvous.server.http.sessions import Session
from arendezvous.wire.http.bodies import ARRIVE, MET, PROGRESS, SESSION_HEADER, UPDATE, VIEW, WITHDRAW


async def arrive(request: web.Request) -> web.StreamResponse:
    """Has the member come to a barrier.

    The answer says that it has passed, once all have come; or after ``?wait=`` seconds that it has not, and
    who is missing. The member has come then all the same: it asks again, or withdraws.
    """
    wait = min(Query(request, "wait").seconds("wait"), LONGEST_WAIT)
    body = await read_json(request)
    session = own_session(request)
    with understood():
        operation = ARRIVE.decode(body, session.desc.name, name=request.match_info["barrier"])
    return json_answer(MET.encode(await _arrived(request, session, operation, wait)))


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
    """Has the member wait at a barrier no more.

    The answer says who is missing; or that the barrier has passed meanwhile.
    """
    texts = Query(request, *WITHDRAW.names).texts()
    session = own_session(request)
    try:
        operation = WITHDRAW.of_texts(texts, session.desc.name, name=request.match_info["barrier"])
    except (msgspec.ValidationError, RendezvousSettingsError) as error:
        raise Problem(400, f"the query is not to be understood: {error}", "bad-query") from error
    met = request.app[CONTEXT].coordinator.meetings.withdraw(session.attachment, operation)
    return json_answer(MET.encode(met))


async def update(request: web.Request) -> web.StreamResponse:
    """Says what the node's state is now.

    It is shown to those who look on, until the node says something else or is gone.
    """
    body = await read_json(request)
    session = own_session(request)
    with understood():
        operation = UPDATE.decode(body, session.desc.name)
        return json_answer(VIEW.encode(session.propose(operation)))


async def progress(request: web.Request) -> web.StreamResponse:
    """Says how far the node's work has come.

    It is a sign of life, too; a step that is not higher than the one before is nothing more.
    """
    body = await read_json(request)
    session = own_session(request)
    with understood():
        operation = PROGRESS.decode(body, session.desc.name)
    return json_answer(VIEW.encode(session.propose(operation)))


_MEMBER: Final = "/v1/runs/{run_id}/members/{node}"
_BARRIER: Final = _MEMBER + "/barriers/{barrier}"
_OF_MEMBER: Final = (
    RUN_ID,
    path("node", "The node."),
    header(SESSION_HEADER, "The secret of the node's session, from the answer to its join."),
)
_OF_BARRIER: Final = (*_OF_MEMBER, path("barrier", "Names the barrier."))
_OWN: Final = {
    404: "There is no such run or node.",
    409: "The round is over, or a member of it is gone; `data.departures` says who, and why.",
    410: "The session is over; `view` says why.",
}
_NUMBERS: Final = (("incarnation", 1), ("round", 0), ("turn", 0))

RESOURCE: Final = Resource((
    Route(
        "PUT", _BARRIER, "arrive", arrive, "members",
        {200: Answer("How the barrier stands.", (json(MET.twin),))}, _OWN,
        (*_OF_BARRIER, WAIT), (json(ARRIVE.twin),),
    ),
    Route(
        "DELETE", _BARRIER, "withdraw", withdraw, "members",
        {200: Answer("How the barrier stands.", (json(MET.twin),))}, _OWN,
        (
            *_OF_BARRIER,
            *(query(name, f"The {name}, as it came.", type="integer", minimum=least)
              for name, least in _NUMBERS),
        ),
    ),
    Route(
        "PUT", _MEMBER + "/state", "update", update, "members",
        {200: Answer("Where the node stands now.", (json(VIEW.twin),))}, _OWN, _OF_MEMBER,
        (json(UPDATE.twin),),
    ),
    Route(
        "POST", _MEMBER + "/progress", "progress", progress, "members",
        {200: Answer("Where the node stands now.", (json(VIEW.twin),))}, _OWN, _OF_MEMBER,
        (json(PROGRESS.twin),),
    ),
))  # fmt: skip

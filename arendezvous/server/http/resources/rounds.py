"""``/v1/runs/{run_id}/rounds``: the latest rounds of a run, how long each gathered, and what ended it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from aiohttp import web

from arendezvous.server.http.requests import Query, run_in_turn
from arendezvous.server.http.responses import json_answer
from arendezvous.server.http.round_log import RoundLog
from arendezvous.server.http.routes import CONTEXT, NO_RUN, RUN_ID, Answer, Resource, Route, json
from arendezvous.wire.http.bodies import ROUNDS, RoundsBody

_LOG: Final = web.AppKey("round_log", RoundLog)


async def list_rounds(request: web.Request) -> web.StreamResponse:
    """Lists the latest rounds of a run since the server was started, the oldest first.

    With the one that nodes come to as the last.
    """
    Query(request)
    run = await run_in_turn(request)
    rounds = request.app[_LOG].of(run.run_id)
    return json_answer(ROUNDS.encode(RoundsBody(rounds=tuple(rounds))))


async def _shared(app: web.Application) -> AsyncIterator[None]:
    app[_LOG] = RoundLog(app[CONTEXT].coordinator)
    yield
    app[_LOG].close()


RESOURCE: Final = Resource((
    Route(
        "GET", "/v1/runs/{run_id}/rounds", "listRounds", list_rounds, "runs",
        {200: Answer("The rounds.", (json(ROUNDS.twin),))}, NO_RUN, (RUN_ID,),
    ),
), _shared)  # fmt: skip

"""``/v1/runs/{run_id}/hold`` and others: what operators decide of a run, besides closing and reopening it."""

from __future__ import annotations

from typing import Any, Final

from aiohttp import web

from arendezvous.server.http.bodies import read_json, understood
from arendezvous.server.http.requests import run_of
from arendezvous.server.http.resources.runs import decide
from arendezvous.server.http.routes import NO_RUN, REFUSED, RUN_ID, Answer, Handler, Resource, Route, json
from arendezvous.wire.http.bodies import HOLD, PARDON, QUARANTINE, RELEASE, RESIZE, RUN
from arendezvous.wire.http.named import OperationCodec


async def resize_run(request: web.Request) -> web.StreamResponse:
    """Changes how many nodes a round has, whatever the nodes agreed on; 0 and 0 go back to that.

    The answer is the run.
    """
    return await _decide(request, RESIZE)


async def hold_run(request: web.Request) -> web.StreamResponse:
    """Has no round complete until the run is released, or for some seconds.

    The answer is the run.
    """
    return await _decide(request, HOLD)


async def release_run(request: web.Request) -> web.StreamResponse:
    """Ends a hold: a round that is due completes.

    The answer is the run.
    """
    return await _decide(request, RELEASE)


async def quarantine(request: web.Request) -> web.StreamResponse:
    """Keeps a node, or all nodes with one label, out of the run.

    The answer is the run.
    """
    return await _decide(request, QUARANTINE)


async def pardon(request: web.Request) -> web.StreamResponse:
    """Lets a node, or the nodes with one label, in again.

    The answer is the run.
    """
    return await _decide(request, PARDON)


async def _decide(request: web.Request, codec: OperationCodec[Any]) -> web.StreamResponse:
    body = await read_json(request)
    with understood():
        operation = codec.decode(body)
    return await decide(request, run_of(request).run_id, operation)


def _route(step: str, name: str, handler: Handler, codec: OperationCodec[Any]) -> Route:
    return Route(
        "POST", f"/v1/runs/{{run_id}}/{step}", name, handler, "runs",
        {200: Answer("The run.", (json(RUN.twin),))}, NO_RUN | REFUSED, (RUN_ID,), (json(codec.twin),),
    )  # fmt: skip


RESOURCE: Final = Resource((
    _route("resize", "resizeRun", resize_run, RESIZE),
    _route("hold", "holdRun", hold_run, HOLD),
    _route("release", "releaseRun", release_run, RELEASE),
    _route("quarantine", "quarantine", quarantine, QUARANTINE),
    _route("pardon", "pardon", pardon, PARDON),
))  # fmt: skip

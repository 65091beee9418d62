"""``/healthz`` and ``/readyz``: for those who start, stop and balance servers."""

from __future__ import annotations

from typing import Final

import msgspec
from aiohttp import web

from arendezvous.server.http.resources.metrics import METRICS
from arendezvous.server.http.responses import JSON, NO_STORE, json_answer
from arendezvous.server.http.routes import CONTEXT, TEXT, Answer, Needs, Resource, Route, json


class ServerHealth(msgspec.Struct, frozen=True):
    """The process lives and its event loop turns: without both nobody would answer.

    Attributes:
        status: ``ok``.
        loop_lag_seconds: How late the loop was when it was last looked at.
    """

    status: str
    loop_lag_seconds: float


class ServerReadiness(msgspec.Struct, frozen=True, omit_defaults=True):
    """Whether nodes may be sent here.

    Attributes:
        status: ``ready``, or why not.
        listeners: The listeners by name, and whether each accepts connections.
        role: In a fleet, what this server does there; empty where there is none.
        leader: In a fleet, the URL of the server that leads; empty if none does.
    """

    status: str
    listeners: dict[str, bool]
    role: str = ""
    leader: str = ""


async def _healthz(request: web.Request) -> web.Response:
    """Answers if the process lives and its event loop turns."""
    return _answer(request, 200, ServerHealth("ok", request.app[METRICS].lag))


async def _readyz(request: web.Request) -> web.Response:
    """Tells whether nodes may be sent here."""
    admission = request.app[CONTEXT].admission
    listeners = {name: is_open() for name, is_open in admission.listeners.items()}
    if admission.is_closed:
        return _answer(request, 503, ServerReadiness("shutting down", listeners))
    shut = [name for name, is_open in listeners.items() if not is_open]
    if shut or not listeners:
        return _answer(
            request, 503, ServerReadiness(f"not listening: {', '.join(shut) or 'anywhere'}", listeners)
        )
    fleet = request.app[CONTEXT].leadership
    if fleet is None:
        return _answer(request, 200, ServerReadiness("ready", listeners))
    if fleet.leader is None:
        return _answer(request, 503, ServerReadiness(fleet.words, listeners, "candidate"))
    role = "leader" if fleet.is_own else "follower"
    return _answer(request, 200, ServerReadiness(f"ready: {fleet.words}", listeners, role, fleet.leader.tcp))


def _answer(request: web.Request, status: int, body: ServerHealth | ServerReadiness) -> web.Response:
    if JSON in request.headers.get("Accept", ""):
        return json_answer(msgspec.json.encode(body), status)
    return web.Response(status=status, text=f"{body.status}\n", headers=NO_STORE)


RESOURCE: Final = Resource((
    Route(
        "GET", "/healthz", "health", _healthz, "server",
        {200: Answer("It does.", (TEXT, json(ServerHealth)))}, needs=Needs.NOTHING,
    ),
    Route(
        "GET", "/readyz", "readiness", _readyz, "server",
        {
            200: Answer("They may.", (TEXT, json(ServerReadiness))),
            503: Answer(
                "A listener is closed, the server ends, or nobody leads its fleet.",
                (TEXT, json(ServerReadiness)),
            ),
        },
        needs=Needs.NOTHING,
    ),
))  # fmt: skip

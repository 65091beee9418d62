"""`/healthz` and `/readyz`: for those who start, stop and balance servers."""

from __future__ import annotations

import msgspec
from aiohttp import web

from arendezvous.server.http.context import CONTEXT
from arendezvous.server.http.resources.metrics import METRICS


class ServerHealth(msgspec.Struct, frozen=True):
    """The process lives and its event loop turns: without both nobody would answer.

    Attributes:
        status: ``ok``.
        loop_lag_seconds: How late the loop was when it was last looked at.
    """

    status: str
    loop_lag_seconds: float


class ServerReadiness(msgspec.Struct, frozen=True):
    """Whether nodes may be sent here.

    Attributes:
        status: ``ready``, or why not.
        doors: The doors by name, and whether each accepts connections.
    """

    status: str
    doors: dict[str, bool]


def add_health(app: web.Application) -> None:
    """Adds both; `add_metrics` comes first."""
    app.router.add_get("/healthz", _healthz)
    app.router.add_get("/readyz", _readyz)


async def _healthz(request: web.Request) -> web.Response:
    return _answer(request, 200, ServerHealth("ok", request.app[METRICS].lag))


async def _readyz(request: web.Request) -> web.Response:
    admission = request.app[CONTEXT].admission
    doors = {name: is_open() for name, is_open in admission.doors.items()}
    if admission.is_closed:
        return _answer(request, 503, ServerReadiness("shutting down", doors))
    shut = [name for name, is_open in doors.items() if not is_open]
    if shut or not doors:
        return _answer(
            request, 503, ServerReadiness(f"not listening: {', '.join(shut) or 'any door'}", doors)
        )
    return _answer(request, 200, ServerReadiness("ready", doors))


def _answer(request: web.Request, status: int, body: ServerHealth | ServerReadiness) -> web.Response:
    headers = {"Cache-Control": "no-store"}
    if "application/json" in request.headers.get("Accept", ""):
        encoded = msgspec.json.encode(body)
        return web.Response(status=status, body=encoded, content_type="application/json", headers=headers)
    return web.Response(status=status, text=f"{body.status}\n", headers=headers)

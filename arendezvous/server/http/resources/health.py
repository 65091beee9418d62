"""``/metrics``, ``/healthz`` and ``/readyz``: for Prometheus, and those who start and balance servers."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from typing import Final

import msgspec
from aiohttp import web
from prometheus_client import openmetrics
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from arendezvous.server.http.responses import JSON, NO_STORE, json_answer
from arendezvous.server.http.routes import CONTEXT, TEXT, Answer, Content, Needs, Resource, Route, json
from arendezvous.server.metrics import RunCounts, ServerMetrics

STEP: Final = 128  # runs that are counted before others get their turn
UNITS: Final = 512  # of work that it takes to write the figures down
OPEN_METRICS: Final = "application/openmetrics-text"

METRICS: Final = web.AppKey("metrics", ServerMetrics)
_LOCK: Final = web.AppKey("metrics_lock", asyncio.Lock)  # of the one that writes the figures down
_TEXTS: Final = web.AppKey[dict[str, tuple[float, bytes]]]("metrics_texts")
"""The figures by content type, as they were written down last, with when they were begun to be looked at.

Whoever asked before that shares them.
"""


async def _metrics(request: web.Request) -> web.Response:
    """Shows the figures of the server, for Prometheus."""
    is_open = OPEN_METRICS in request.headers.get("Accept", "")
    kind = f"{OPEN_METRICS}; version=1.0.0" if is_open else CONTENT_TYPE_PLAIN_0_0_4.partition("; charset")[0]
    texts, asked = request.app[_TEXTS], asyncio.get_running_loop().time()
    async with request.app[_LOCK]:
        began, text = texts.get(kind, (-math.inf, b""))
        if began < asked:
            began = asyncio.get_running_loop().time()
            text = await _written(request.app, is_open=is_open)
            texts[kind] = began, text
    return web.Response(body=text, headers=NO_STORE | {"Content-Type": f"{kind}; charset=utf-8"})


async def _written(app: web.Application, *, is_open: bool) -> bytes:
    """Writes the figures down, by turns with what the server does for others."""
    metrics, turns = app[METRICS], app[CONTEXT].shared.turns
    counts, runs = RunCounts(), list(app[CONTEXT].coordinator.runs.values())
    for start in range(0, len(runs), STEP):
        counts.add(runs[start : start + STEP])
        await turns.wait()
    await turns.wait(UNITS)
    metrics.counts = counts
    try:
        write = openmetrics.exposition.generate_latest if is_open else generate_latest
        text: bytes = write(metrics.registry)
    finally:
        metrics.counts = None
    return text


async def _shared(app: web.Application) -> AsyncIterator[None]:
    context = app[CONTEXT]
    app[_LOCK], app[_TEXTS] = asyncio.Lock(), {}
    app[METRICS] = metrics = ServerMetrics(
        context.coordinator, context.keys.keyspace, context.admission, context.leadership
    )
    metrics.start()
    yield
    metrics.stop()


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
        "GET", "/metrics", "metrics", _metrics, "server",
        {200: Answer("The figures.", (TEXT, Content(OPEN_METRICS, (str,))))},
    ),
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
), _shared)  # fmt: skip

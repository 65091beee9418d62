"""``/metrics``: the figures of the server, as text for Prometheus."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from aiohttp import web
from prometheus_client import openmetrics
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from arendezvous.server.http.context import CONTEXT
from arendezvous.server.http.routes import TEXT, Answer, Content, Resource, Route
from arendezvous.server.metrics import RunCounts, ServerMetrics

STEP: Final = 128  # runs that are counted before others get their turn
UNITS: Final = 512  # of work that it takes to write the figures down
OPEN_METRICS: Final = "application/openmetrics-text"

METRICS: Final = web.AppKey("metrics", ServerMetrics)


async def _counting(app: web.Application) -> AsyncIterator[None]:
    app[METRICS].start()
    yield
    app[METRICS].stop()


async def _metrics(request: web.Request) -> web.Response:
    """Shows the figures of the server, for Prometheus."""
    metrics, context = request.app[METRICS], request.app[CONTEXT]
    counts, runs = RunCounts(), list(context.coordinator.runs.values())
    for start in range(0, len(runs), STEP):
        counts.add(runs[start : start + STEP])
        await context.shared.turns.wait()
    await context.shared.turns.wait(UNITS)
    metrics.counts = counts
    try:
        if OPEN_METRICS in request.headers.get("Accept", ""):
            text = openmetrics.exposition.generate_latest(metrics.registry)  # type: ignore[no-untyped-call]  # theirs
            content_type = f"{OPEN_METRICS}; version=1.0.0"
        else:
            text = generate_latest(metrics.registry)
            content_type = CONTENT_TYPE_PLAIN_0_0_4.partition("; charset")[0]
    finally:
        metrics.counts = None
    return web.Response(body=text, headers={"Content-Type": f"{content_type}; charset=utf-8"})


def _set_up(app: web.Application) -> None:
    context = app[CONTEXT]
    app[METRICS] = ServerMetrics(
        context.coordinator, context.keys.keyspace, context.admission, context.leadership
    )
    app.cleanup_ctx.append(_counting)


RESOURCE: Final = Resource((
    Route(
        "GET", "/metrics", "metrics", _metrics, "server",
        {200: Answer("The figures.", (TEXT, Content(OPEN_METRICS, (str,))))},
    ),
), _set_up)  # fmt: skip

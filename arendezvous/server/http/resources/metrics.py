"""``/metrics``: the figures of the server, as text for Prometheus."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from typing import Final

from aiohttp import web
from prometheus_client import openmetrics
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from arendezvous.server.http.responses import NO_STORE
from arendezvous.server.http.routes import CONTEXT, TEXT, Answer, Content, Resource, Route
from arendezvous.server.metrics import RunCounts, ServerMetrics

STEP: Final = 128  # runs that are counted before others get their turn
UNITS: Final = 512  # of work that it takes to write the figures down
OPEN_METRICS: Final = "application/openmetrics-text"

METRICS: Final = web.AppKey("metrics", ServerMetrics)


class Texts:
    """The figures as they were written down last: whoever asked before they were looked at shares them.

    Fields:
        lock: Held by the one that writes them down.
        latest: By the content type, when they were begun to be looked at, and the text.
    """

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.latest: dict[str, tuple[float, bytes]] = {}


_TEXTS: Final = web.AppKey("metrics_texts", Texts)


async def _metrics(request: web.Request) -> web.Response:
    """Shows the figures of the server, for Prometheus."""
    is_open = OPEN_METRICS in request.headers.get("Accept", "")
    kind = f"{OPEN_METRICS}; version=1.0.0" if is_open else CONTENT_TYPE_PLAIN_0_0_4.partition("; charset")[0]
    texts, asked = request.app[_TEXTS], asyncio.get_running_loop().time()
    async with texts.lock:
        began, text = texts.latest.get(kind, (-math.inf, b""))
        if began < asked:
            began = asyncio.get_running_loop().time()
            text = await _written(request.app, is_open=is_open)
            texts.latest[kind] = began, text
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
    app[_TEXTS] = Texts()
    app[METRICS] = metrics = ServerMetrics(
        context.coordinator, context.keys.keyspace, context.admission, context.leadership
    )
    metrics.start()
    yield
    metrics.stop()


RESOURCE: Final = Resource((
    Route(
        "GET", "/metrics", "metrics", _metrics, "server",
        {200: Answer("The figures.", (TEXT, Content(OPEN_METRICS, (str,))))},
    ),
), _shared)  # fmt: skip

"""The aiohttp application: the routes of all parts behind the same checks."""

from __future__ import annotations

from aiohttp import web

from arendezvous.server.http.context import CONTEXT, SOFTWARE, HttpContext
from arendezvous.server.http.gate import gate
from arendezvous.server.http.guard import VISITORS
from arendezvous.server.http.resources.health import add_health
from arendezvous.server.http.resources.members import add_members
from arendezvous.server.http.resources.metrics import add_metrics
from arendezvous.server.http.resources.openapi import add_openapi
from arendezvous.server.http.resources.page import add_page
from arendezvous.server.http.resources.runs import add_runs
from arendezvous.server.http.store_routes import add_store
from arendezvous.wire.http.names import SERVER_HEADER


def make_app(context: HttpContext) -> web.Application:
    """Makes the application over the server's own objects."""
    app = web.Application(middlewares=[gate], client_max_size=context.limits.max_body)
    app[CONTEXT] = context
    app[VISITORS] = {}
    app.on_response_prepare.append(_sign)
    add_store(app)
    add_metrics(app)
    add_health(app)
    add_members(app)  # before the runs: of what is below a path, routes are tried in this order
    add_runs(app)
    add_openapi(app)
    add_page(app)
    return app


async def _sign(request: web.Request, response: web.StreamResponse) -> None:
    """Has every answer say which start of which server it is from."""
    response.headers["Server"] = SOFTWARE
    response.headers[SERVER_HEADER] = request.app[CONTEXT].server_id

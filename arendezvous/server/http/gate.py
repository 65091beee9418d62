"""The gate that every request passes: one for all checks, as each of several would be a wait of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web

from arendezvous.server.http.bodies import give_back
from arendezvous.server.http.connection import begin
from arendezvous.server.http.guard import let_in, show_out
from arendezvous.server.http.own_name import check_name
from arendezvous.server.http.problem import answer_to

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def gate(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Checks who asks, has the request handled, and turns errors into answers."""
    begin(request)
    try:
        check_name(request)
        let_in(request)
        return await handler(request)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is answered
        return answer_to(request, error)
    finally:
        show_out(request)
        give_back(request)

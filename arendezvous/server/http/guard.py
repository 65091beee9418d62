"""Who may come in at the HTTP door, and what for: bearer tokens, in the ``Authorization`` header alone."""

from __future__ import annotations

import logging
from typing import Final
from urllib.parse import urlsplit

from aiohttp import web

from arendezvous.keyspace.grants import Grant
from arendezvous.server.access.authority import MISSING, WRONG
from arendezvous.server.http.context import CONTEXT
from arendezvous.server.http.problem import Problem

logger = logging.getLogger(__name__)

GRANT: Final = web.RequestKey("grant", Grant)  # request[GRANT] is what the one who asks may do
VISITORS: Final[web.AppKey[dict[int, web.Request]]] = web.AppKey("visitors", dict)
OPEN_PATHS: Final = frozenset({"/", "/healthz", "/readyz", "/openapi.json", "/favicon.ico"})
OPEN_PREFIXES: Final = ("/page/", "/assets/", "/static/")  # what the page consists of: the same for everybody
LISTS: Final = frozenset({"/v1/runs", "/v1/events"})  # they show nobody what their token is not good for
_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})


def let_in(request: web.Request) -> None:
    """Lets those in who show a good token, and lets them do what it is good for.

    Every handler finds what that is in ``request[GRANT]``. Checked here already, for every handler: a token
    of one run is good for the resources of that run, below ``/v1/runs/{run_id}``, and a read-only token
    changes nothing there. What the handlers check themselves: the keys below ``/v1/kv``, and that a list of
    runs, and what is told of them, shows no others.

    Raises:
        Problem: 401 if the token is missing or wrong, 429 if it was that too often of late, 403 if it is not
            good for this, or if the page of another site asks.
    """
    app = request.app
    context = app[CONTEXT]
    _refuse_other_sites(request)
    if is_open(request):
        return
    token = bearer_token(request)
    grant = context.authority.grant(token)
    if grant is None:
        why = WRONG if token else MISSING
        if context.throttle.failed(request.remote or "a peer", why):
            headers = {"Retry-After": "1", "Connection": "close"}  # so limits on connections hold here, too
            raise Problem(429, f"too many attempts: {why}", "too-many-attempts", headers)
        error = ', error="invalid_token"' if token else ""
        raise Problem(401, why, "unauthorized", {"WWW-Authenticate": f'Bearer realm="arendezvous"{error}'})
    request[GRANT] = grant
    _check_scope(request, grant)
    app[VISITORS][id(request)] = request


def show_out(request: web.Request) -> None:
    """The request has been answered, or never was let in."""
    request.app[VISITORS].pop(id(request), None)


def dismiss(app: web.Application) -> None:
    """Drops those who are being answered, but whose tokens have been withdrawn: some answers never end."""
    for request in list(app[VISITORS].values()):
        if not app[CONTEXT].authority.still_grants(request[GRANT]) and request.transport is not None:
            logger.warning("%s: dropped: its token has been withdrawn", request.remote)
            request.transport.abort()


def grant_of(request: web.Request) -> Grant:
    """What the one who asks may do; only behind the gate."""
    return request[GRANT]


def require_read(request: web.Request, run_id: str | None) -> None:
    """Checks that the one who asks may look at a run; None: at what is no run's.

    Raises:
        Problem: 403, they may not.
    """
    grant = grant_of(request)
    if not grant.may_read(run_id):
        raise forbidden(grant, _what(run_id))


def require_write(request: web.Request, run_id: str | None) -> None:
    """Checks that the one who asks may change a run; None: what is no run's.

    Raises:
        Problem: 403, they may not.
    """
    grant = grant_of(request)
    if not grant.may_write(run_id):
        raise forbidden(grant, f"changing {_what(run_id)}")


def forbidden(grant: Grant, what: str) -> Problem:
    """The answer to somebody whose token is good, but not for `what`."""
    detail = f"the token {grant}, and this is {what}; use one that is good for it"
    return Problem(403, detail, "forbidden", {"WWW-Authenticate": 'Bearer error="insufficient_scope"'})


def is_open(request: web.Request) -> bool:
    """Whether everybody may ask this: the page itself, which shows nothing by itself, and the probes."""
    if request.method not in _SAFE:
        return False
    return request.path in OPEN_PATHS or request.path.startswith(OPEN_PREFIXES)


def bearer_token(request: web.Request) -> str | None:
    """The token in the ``Authorization`` header; None if there is none."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None


def _check_scope(request: web.Request, grant: Grant) -> None:
    if grant.is_everything or request.path.startswith(("/v1/kv", "/v1/queues")):
        return
    run_id = request.match_info.get("run_id")
    if run_id is None and request.path.rstrip("/") in LISTS and request.method in _SAFE:
        return
    if request.method in _SAFE:
        require_read(request, run_id)
    else:
        require_write(request, run_id)


def _refuse_other_sites(request: web.Request) -> None:
    """Refuses what a page of another site has a browser change here, where no token is asked for."""
    origin = request.headers.get("Origin")
    if origin is None or request.method in _SAFE or "Authorization" in request.headers:
        return
    if urlsplit(origin).netloc != request.host:
        raise Problem(403, f"a page of {origin[:200]} may change nothing here", "cross-origin")


def _what(run_id: str | None) -> str:
    return "something that is no run's" if run_id is None else f"run {run_id!r}"

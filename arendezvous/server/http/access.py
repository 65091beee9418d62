"""Decides who may ask the HTTP listener, and for what: bearer tokens; and no page of another site."""

from __future__ import annotations

import functools
import ipaddress
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from aiohttp import web

from arendezvous.keyspace.grants import Grant
from arendezvous.server.access.admission import source_of
from arendezvous.server.access.authority import MISSING, WRONG, digest
from arendezvous.server.http.responses import Problem
from arendezvous.server.http.routes import CONTEXT, Needs, needs_of


class Requester(NamedTuple):
    """Identifies who makes requests, for what is counted by client."""

    token: bytes  # the digest of the token that is shown; empty where none is asked for
    source: str  # the address that they come from; of IPv6 the network


_GRANT: Final = web.RequestKey("grant", Grant)
_CLIENT: Final = web.RequestKey("client", Requester)
_NOBODY: Final = Requester(b"", "")
_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})


def authorize(request: web.Request) -> Grant | None:
    """Has those go on who show a good token, with what it is good for.

    That is checked here as far as the route says, see `Needs`; `grant_of` tells every handler what it is.
    Returns None where a route needs nothing. A 401 if the token is missing or wrong, 429 if it was that too
    often of late, 403 if it is not good for this, or the page of another site or a foreign name asks.
    """
    context = request.app[CONTEXT]
    authority, throttle = context.access.authority, context.shared.throttle
    needs = needs_of(request)
    _refuse_other_names(request, needs)
    _refuse_other_sites(request)
    if needs is Needs.NOTHING:
        return None
    token = bearer_token(request)
    grant = authority.grant(token)
    if grant is None:
        why = WRONG if token else MISSING
        if throttle.failed(request.remote or "a peer", why):
            headers = {"Retry-After": "1", "Connection": "close"}  # so limits on connections hold here, too
            raise Problem(429, f"too many attempts: {why}", "too-many-attempts", headers)
        error = ', error="invalid_token"' if token else ""
        raise Problem(401, why, "unauthorized", {"WWW-Authenticate": f'Bearer realm="arendezvous"{error}'})
    request[_GRANT] = grant
    held = digest(token) if token and authority.asks else b""
    request[_CLIENT] = Requester(held, source_of(request.remote or ""))
    if needs is Needs.SCOPE and not grant.is_everything:
        _check_scope(request, grant)
    return grant


def grant_of(request: web.Request) -> Grant:
    """Finds out what the one who asks may do; not where a route needs nothing."""
    return request[_GRANT]


def requester_of(request: web.Request) -> Requester:
    """Tells who asks; nobody in particular where a route needs nothing, or the request was refused."""
    client: Requester = request.get(_CLIENT, _NOBODY)
    return client


def forbidden(grant: Grant, what: str) -> Problem:
    """The answer to somebody whose token is good, but not for `what`."""
    detail = f"the token {grant}, and this is {what}; use one that is good for it"
    return Problem(403, detail, "forbidden", {"WWW-Authenticate": 'Bearer error="insufficient_scope"'})


def bearer_token(request: web.Request) -> str | None:
    """The token in the ``Authorization`` header; None if there is none."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None


def _check_scope(request: web.Request, grant: Grant) -> None:
    run_id = request.match_info.get("run_id")
    what = "something that is no run's" if run_id is None else f"run {run_id!r}"
    if request.method in _SAFE:
        if not grant.may_read(run_id):
            raise forbidden(grant, what)
    elif not grant.may_write(run_id):
        raise forbidden(grant, f"changing {what}")


def _refuse_other_sites(request: web.Request) -> None:
    """Refuses what a page of another site has a browser change here, even if it knows a token."""
    origin = request.headers.get("Origin")
    if origin is None or request.method in _SAFE:
        return
    try:
        netloc = urlsplit(origin).netloc
    except ValueError:
        netloc = ""
    if not netloc or netloc != request.host:
        raise Problem(403, f"a page of {origin[:200]} may change nothing here", "cross-origin")


def _refuse_other_names(request: web.Request, needs: Needs) -> None:
    """Refuses requests for another machine's name where being on this machine is all that is asked for.

    A browser takes a page for the server's own if it comes from the same name, whose owner may let that lead
    here (DNS rebinding).
    """
    host = request.headers.get("Host", "")  # browsers always send it
    if _is_own(host):
        return
    ours, asks = request.get_extra_info("sockname"), request.app[CONTEXT].access.authority.asks
    is_local = isinstance(ours, tuple) and ipaddress.ip_address(ours[0].partition("%")[0]).is_loopback
    if is_local and not (request.secure or asks or needs is Needs.NOTHING):
        detail = (
            f"the Host {host[:200]!r} is not this machine's; ask for localhost or an address, have the proxy"
            " in between do so, or give the server tokens"
        )
        raise Problem(403, detail, "foreign-host")


@functools.lru_cache(maxsize=256)
def _is_own(host: str) -> bool:
    """Whether it is an address, or a name that nobody far away can have lead here."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        if "." not in name.strip("[]").rstrip(".") or name.endswith(".localhost"):
            return True
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True

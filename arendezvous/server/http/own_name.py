"""Against DNS rebinding: a page of another site that has its own name point to this machine."""

from __future__ import annotations

import functools
import ipaddress
from urllib.parse import urlsplit

from aiohttp import web

from arendezvous.server.http.context import CONTEXT
from arendezvous.server.http.guard import is_open
from arendezvous.server.http.problem import Problem


def check_name(request: web.Request) -> None:
    """Refuses requests for another machine's name where being on this machine is all that is asked for.

    A server without tokens and TLS on loopback trusts whoever is on the machine, browsers included. A browser
    takes a page for the server's own if it comes from the same name; its owner may let that name lead here.

    Raises:
        Problem: 403, the ``Host`` is a name with a domain.
    """
    host = request.headers.get("Host", "")  # browsers always send it
    if _is_own(host):
        return
    trusting = not request.secure and not request.app[CONTEXT].authority.asks and not is_open(request)
    if trusting and _came_over_loopback(request):
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


def _came_over_loopback(request: web.Request) -> bool:
    ours = None if request.transport is None else request.transport.get_extra_info("sockname")
    return isinstance(ours, tuple) and ipaddress.ip_address(ours[0].partition("%")[0]).is_loopback

"""Checks ``http://`` and ``https://``: the server, and the proxies on the way to it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime
from typing import Final
from urllib.parse import urlsplit

import msgspec

from arendezvous.doctor.checks import (
    CHECK_TIMEOUT,
    Finding,
    Level,
    PortReach,
    check_connections,
    check_loopback,
    check_tls,
    examine,
)
from arendezvous.doctor.tcp import Kind, probe
from arendezvous.errors import RendezvousSettingsError, token_advice
from arendezvous.net.credentials import Credentials
from arendezvous.net.endpoint import Endpoint, join_host_port
from arendezvous.net.http_client import HttpClient, UnansweredError, checked_url
from arendezvous.net.proxies import proxy_of
from arendezvous.wire.http.answers import HttpAnswer
from arendezvous.wire.http.names import LISTENER_HEADER

CLOCK_OFF: Final = 60.0  # seconds; the time in an answer is of whole ones, and may be a little old
_BUSY: Final = frozenset({502, 503, 504})
_FULL: Final = 503
_PROXY_LOGIN: Final = 407
_REDIRECTS: Final = range(300, 400)
_UNAUTHORIZED: Final = 401
_DENIED: Final = (_UNAUTHORIZED, 403)
_RUNS: Final = "/v1/runs?limit=0"
_TCP_LISTENER: Final = ("an arendezvous server, but its port for tcp://", "give its HTTP port, or tcp://")
_OTHER_LISTENERS: Final = {
    Kind.OURS: _TCP_LISTENER,
    Kind.REFUSED: _TCP_LISTENER,
    Kind.TLS: ("somebody who expects TLS", "begin the URL with https://"),
}
MAX_ANSWER: Final = 64 * 1024
_SHOWN: Final = 200  # characters of what strangers say


async def examine_http(endpoint: Endpoint, credentials: Credentials) -> list[Finding]:
    """Makes all checks of an ``http://`` or ``https://`` endpoint, the ways of its proxies included.

    Raises `RendezvousSettingsError` if the TLS settings cannot be used, or not with this URL.
    """
    url = checked_url(str(endpoint), credentials)
    credentials = msgspec.structs.replace(credentials, tls=endpoint.scheme == "https")
    host, port = endpoint.host, endpoint.port
    checks: list[Finding] = []
    try:
        proxy = proxy_of(url)
    except RendezvousSettingsError as error:
        return [Finding("proxy", Level.FAILED, error.message)]
    if proxy:
        parts = urlsplit(proxy)
        host, port = parts.hostname or "", parts.port or 80
        found = f"requests go through {join_host_port(host, port)}, as the environment says"
        advice = f"put {endpoint.host} into NO_PROXY to ask the server itself"
        checks.append(Finding("proxy", Level.OK, f"{found} (HTTP_PROXY, HTTPS_PROXY)", advice))

    async def more(there: PortReach) -> list[Finding]:
        found = [_check_port(there, is_proxy=bool(proxy))]
        if there.reached:
            address = there.reached[0]
            found += await _check_what_answers(url, address, endpoint, credentials, is_proxy=bool(proxy))
        hosting = "nodes never host a server for HTTP: it has to be started by itself"
        useless = None if proxy else check_loopback(there)
        return [*found, useless or Finding("host", Level.OK, hosting)]

    return checks + await examine(host, port, more)


async def _check_what_answers(
    url: str, address: str, endpoint: Endpoint, credentials: Credentials, *, is_proxy: bool
) -> list[Finding]:
    checks: list[Finding] = []
    if credentials.uses_tls and not is_proxy:
        checks.append(await check_tls(endpoint.host, address, endpoint.port, credentials))
        if checks[0].level is Level.FAILED:
            return checks
    answer = None
    try:
        async with _client(url, credentials) as client:
            answer = await client.look(_RUNS, limit=CHECK_TIMEOUT, most=MAX_ANSWER)
    except UnansweredError as error:
        advice = "check that the port is its HTTP port, and what is on the way there"
        server = _failed(f"there is no answer: {_shown(str(error))}", advice)
    else:
        server = judge(answer)
    if not is_proxy and (answer is None or answer.headers.get(LISTENER_HEADER)):
        server = await _who_else(address, endpoint.port, credentials) or server
    checks.append(server)
    if answer is not None and server.level is Level.OK:
        checks += [await check_stream(url, credentials), check_clock(answer.headers.get("Date", ""))]
    return checks


@asynccontextmanager
async def _client(url: str, credentials: Credentials) -> AsyncIterator[HttpClient]:
    client = HttpClient(url, credentials)
    try:
        yield client
    finally:
        await client.close()


def judge(answer: HttpAnswer) -> Finding:
    """Says who answered when asked for the runs of a server."""
    status, software = answer.status, _shown(answer.headers.get("Server", ""))
    by = f" by {software}" if software else ""
    if answer.server:
        if status < 300:
            found = f"an arendezvous server, started as {_shown(answer.server)}"
            return Finding("server", Level.OK, found)
        advice = token_advice("--token-file") if status == _UNAUTHORIZED else ""
        detail = _shown(str(answer.problem.get("detail", ""))) or status
        return _failed(f"an arendezvous server that refuses us ({detail})", advice)
    if status in _BUSY:
        full = ", or the server is full" if status == _FULL else ""
        found = f"the status {status}{by}: a proxy that does not get through to the server{full}"
        return _failed(found, "check that the server runs, and where the proxy looks for it")
    if status == _PROXY_LOGIN:
        return _failed("the proxy asks who we are", "put http://USER:PASSWORD@HOST into HTTP(S)_PROXY")
    if status in _DENIED:
        found = f"the status {status}{by}, which is no arendezvous server"
        return _failed(found, "whatever is on the way has to let requests through with their Authorization")
    if status in _REDIRECTS:
        location = _shown(answer.headers.get("Location", "somewhere"))
        found = f"an HTTP server{by} that sends us on to {location}"
        return _failed(found, "give that URL, if it is the server's")
    found = f"an HTTP server that is no arendezvous server (status {status}{by})"
    return _failed(found, "give the URL of an arendezvous server, or another port")


async def check_stream(url: str, credentials: Credentials) -> Finding:
    """Checks whether events come at once, or something on the way collects them."""
    try:
        async with _client(url, credentials) as client, asyncio.timeout(CHECK_TIMEOUT):
            source = await client.stream("GET", "/v1/events", limit=CHECK_TIMEOUT)
            if not isinstance(source, HttpAnswer):
                try:
                    await anext(source)
                finally:
                    source.close()
                return Finding("stream", Level.OK, "events come as they happen")
        kind = _shown(source.headers.get("Content-Type", ""))
        said = f"the answer has the status {source.status} and the type {kind}"
    except UnansweredError as error:
        said = _shown(str(error))
    except TimeoutError:
        said = f"nothing has come within {CHECK_TIMEOUT:g} s"
    advice = "have proxies pass answers on unbuffered (nginx: proxy_buffering off), without a time limit"
    return Finding("stream", Level.FAILED, f"a stream of events does not get through: {said}", advice)


def check_clock(date: str) -> Finding:
    """Checks whether this machine's clock agrees with the server's, by the date of an answer."""
    try:
        offset = time.time() - parsedate_to_datetime(date).timestamp()
    except (ValueError, TypeError, OverflowError):  # it does not say what time it has
        offset = 0.0
    found = "the server keeps the only clock; no others are compared"
    if abs(offset) <= CLOCK_OFF:
        return Finding("clock", Level.OK, found)
    where = "ahead of" if offset > 0 else "behind"
    found = f"this machine's clock is {abs(offset):.0f} s {where} the server's; no rendezvous depends on that"
    return Finding("clock", Level.WARNING, found, "set them: certificates and logs go by the time")


async def _who_else(address: str, port: int, credentials: Credentials) -> Finding | None:
    """Tells who answers, if not in HTTP; None if nobody knows."""
    try:
        answer = await probe(address, port, credentials)
    except OSError:
        return None
    if answer.kind in _OTHER_LISTENERS:
        return _failed(*_OTHER_LISTENERS[answer.kind])
    if answer.kind in (Kind.HTTP, Kind.SILENT):
        return None
    return _failed(str(answer), "give the URL of an arendezvous server, or another port")


def _check_port(there: PortReach, *, is_proxy: bool) -> Finding:
    start = f"start 'arendezvous serve --http-port {there.port}' there"
    advice = "check the proxy's address" if is_proxy else f"{start}, and check the port and firewalls between"
    return check_connections(there) or Finding("port", Level.FAILED, there.failures, advice)


def _failed(found: str, advice: str = "") -> Finding:
    return Finding("server", Level.FAILED, found, advice)


def _shown(text: str) -> str:
    """Returns what strangers say, without what a terminal would take for commands."""
    return "".join(character if character.isprintable() else "?" for character in text[:_SHOWN])

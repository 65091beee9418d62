"""Checks ``http://`` and ``https://``: the server, and the proxies on the way to it."""

from __future__ import annotations

import asyncio
import time
from email.utils import parsedate_to_datetime
from typing import Final
from urllib.parse import urlsplit

import msgspec

from arendezvous.doctor.checks import (
    CHECK_TIMEOUT,
    Finding,
    Level,
    check_connections,
    check_loopback,
    check_name,
    check_open_files,
    check_own_address,
    check_own_name,
    check_tls,
    failures,
    reach,
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

    Args:
        endpoint: The endpoint.
        credentials: The token that a node would show, and the TLS settings that it would use.

    Raises:
        RendezvousSettingsError: A file of the TLS settings cannot be read, or holds something else; or they
            ask for TLS, and the URL is not of TLS.
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
        checks.append(_check_proxy(endpoint.host, join_host_port(host, port)))
    name, addresses = await check_name(host, port)
    checks.append(name)
    if addresses:
        reached, refused = await reach(addresses, port)
        checks.append(_check_port(port, reached, refused, is_proxy=bool(proxy)))
        if reached:
            checks += await _check_what_answers(url, reached[0], endpoint, credentials, is_proxy=bool(proxy))
        checks.append(_check_host(addresses, is_proxy=bool(proxy)))
        checks.append(check_own_address((reached or addresses)[0], port))
    checks.append(await check_own_name())
    checks.append(check_open_files())
    return checks


async def _check_what_answers(
    url: str, address: str, endpoint: Endpoint, credentials: Credentials, *, is_proxy: bool
) -> list[Finding]:
    checks: list[Finding] = []
    if credentials.uses_tls and not is_proxy:
        tls = await check_tls(endpoint.host, address, endpoint.port, credentials)
        checks.append(tls)
        if tls.level is Level.FAILED:
            return checks
    reply = await ask(url, _RUNS, credentials)
    server = judge(reply)
    if (not reply.status or reply.elsewhere) and not is_proxy:
        server = await _who_else(address, endpoint.port, credentials) or server
    checks.append(server)
    if server.level is Level.OK:
        checks.append(await check_stream(url, credentials))
        checks.append(check_clock(reply.clock_offset))
    return checks


def judge(reply: HttpProbeResult) -> Finding:
    """Says who answered, or did not, when asked for the runs of a server."""
    status, by = reply.status, f" by {reply.software}" if reply.software else ""
    if not status:
        advice = "check that the port is its HTTP port, and what is on the way there"
        return _failed(f"there is no answer: {reply.trouble}", advice)
    if reply.is_ours:
        if status < 300:
            return Finding("server", Level.OK, f"an arendezvous server, started as {reply.server}")
        advice = token_advice("--token-file") if status == _UNAUTHORIZED else ""
        return _failed(f"an arendezvous server that refuses us ({reply.detail or status})", advice)
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
        return _failed(
            f"an HTTP server{by} that sends us on to {reply.location}", "give that URL, if it is the server's"
        )
    found = f"an HTTP server that is no arendezvous server (status {status}{by})"
    return _failed(found, "give the URL of an arendezvous server, or another port")


async def check_stream(url: str, credentials: Credentials) -> Finding:
    """Checks whether events come at once, or something on the way collects them."""
    said = await first_event(url, "/v1/events", credentials)
    if not said:
        return Finding("stream", Level.OK, "events come as they happen")
    advice = "have proxies pass answers on unbuffered (nginx: proxy_buffering off), without a time limit"
    return Finding("stream", Level.FAILED, f"a stream of events does not get through: {said}", advice)


def check_clock(offset: float | None) -> Finding:
    """Checks whether this machine's clock agrees with the server's.

    Args:
        offset: How many seconds it is ahead; None: the server did not say what time it has.
    """
    found = "the server keeps the only clock; no others are compared"
    if offset is None or abs(offset) <= CLOCK_OFF:
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
    detail = f" ({answer.detail})" if answer.detail else ""
    advice = "give the URL of an arendezvous server, or another port"
    return _failed(f"{answer.kind.value}{detail}", advice)


def _check_proxy(host: str, proxy: str) -> Finding:
    found = f"requests go through {proxy}, as the environment says (HTTP_PROXY, HTTPS_PROXY)"
    return Finding("proxy", Level.OK, found, f"put {host} into NO_PROXY to ask the server itself")


def _check_port(port: int, reached: list[str], refused: dict[str, str], *, is_proxy: bool) -> Finding:
    answered = check_connections(reached, refused, port)
    if answered is not None:
        return answered
    start = f"start 'arendezvous serve --http-port {port}' there, and check the port and firewalls between"
    advice = "check the proxy's address" if is_proxy else start
    return Finding("port", Level.FAILED, failures(refused, port), advice)


def _check_host(addresses: list[str], *, is_proxy: bool) -> Finding:
    useless = None if is_proxy else check_loopback(addresses)
    if useless is not None:
        return useless
    return Finding("host", Level.OK, "nodes never host a server for HTTP: it has to be started by itself")


def _failed(found: str, advice: str = "") -> Finding:
    return Finding("server", Level.FAILED, found, advice)


class HttpProbeResult(msgspec.Struct, frozen=True, kw_only=True):
    """Holds what was answered, by whomever.

    Attributes:
        status: The status; 0: there was no answer of HTTP.
        trouble: Why there was none.
        server: Which start of an arendezvous server answered; empty: none.
        software: What the one who answered calls itself.
        detail: What a problem says of itself.
        location: Where a redirect leads to.
        elsewhere: Where the request belongs, as it came to another listener of a server; empty: it did not.
        clock_offset: How many seconds this machine's clock is ahead of the one of the answer; None: unknown.
    """

    status: int = 0
    trouble: str = ""
    server: str = ""
    software: str = ""
    detail: str = ""
    location: str = ""
    elsewhere: str = ""
    clock_offset: float | None = None

    @property
    def is_ours(self) -> bool:
        """Whether an arendezvous server answered."""
        return bool(self.server)


async def ask(url: str, path: str, credentials: Credentials) -> HttpProbeResult:
    """Asks for a resource, and tells what came of it. Cancellation: safe.

    Args:
        url: The server's base URL.
        path: The path and the query.
        credentials: The token to show, and the TLS settings.

    Raises:
        RendezvousSettingsError: A file of the TLS settings cannot be read, or holds something else.
    """
    client = HttpClient(url, credentials)
    try:
        return _reply(await client.look(path, limit=CHECK_TIMEOUT, most=MAX_ANSWER))
    except UnansweredError as error:
        return HttpProbeResult(trouble=_shown(str(error)))
    finally:
        await client.close()


async def first_event(url: str, path: str, credentials: Credentials) -> str:
    """Waits for the first event of a stream; returns what went wrong, which is empty if it came.

    Args:
        url: See `ask`.
        path: The path of the stream.
        credentials: See `ask`.

    Raises:
        RendezvousSettingsError: See `ask`.
    """
    client = HttpClient(url, credentials)
    try:
        async with asyncio.timeout(CHECK_TIMEOUT):
            source = await client.stream("GET", path, limit=CHECK_TIMEOUT)
            if isinstance(source, HttpAnswer):
                kind = source.headers.get("Content-Type", "")
                return f"the answer has the status {source.status} and the type {_shown(kind)}"
            try:
                await anext(source)
            finally:
                source.close()
            return ""
    except UnansweredError as error:
        return _shown(str(error))
    except TimeoutError:
        return f"nothing has come within {CHECK_TIMEOUT:g} s"
    finally:
        await client.close()


def _reply(answer: HttpAnswer) -> HttpProbeResult:
    headers = answer.headers
    return HttpProbeResult(
        status=answer.status,
        server=_shown(answer.server),
        software=_shown(headers.get("Server", "")),
        detail=_shown(str(answer.problem.get("detail", ""))),
        location=_shown(headers.get("Location", "somewhere")),
        elsewhere=_shown(headers.get(LISTENER_HEADER, "")),
        clock_offset=_clock_offset(headers.get("Date", "")),
    )


def _clock_offset(date: str) -> float | None:
    try:
        return time.time() - parsedate_to_datetime(date).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None


def _shown(text: str) -> str:
    """Returns what strangers say, without what a terminal would take for commands."""
    return "".join(character if character.isprintable() else "?" for character in text[:_SHOWN])

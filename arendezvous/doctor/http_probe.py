"""Asking over HTTP as the doctor does: whoever may answer, and whatever they may say."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime
from typing import Final

import aiohttp
import msgspec

from arendezvous.doctor.checks import CHECK_TIMEOUT
from arendezvous.net.credentials import Credentials
from arendezvous.net.tls import explain
from arendezvous.wire.http.names import SERVER_HEADER
from arendezvous.wire.http.sse import EventParser
from arendezvous.wire.native.messages import FrameError

MAX_ANSWER: Final = 64 * 1024
MAX_EVENT: Final = 16 * 1024 * 1024
_SHOWN: Final = 200  # characters of what strangers say


class HttpProbeResult(msgspec.Struct, frozen=True, kw_only=True):
    """Holds what was answered, by whomever.

    Attributes:
        status: The status; 0: there was no answer of HTTP.
        trouble: Why there was none.
        server: Which start of an arendezvous server answered; empty: none.
        software: What the one who answered calls itself.
        detail: What a problem says of itself.
        location: Where a redirect leads to.
        clock_offset: How many seconds this machine's clock is ahead of the one of the answer; None: unknown.
    """

    status: int = 0
    trouble: str = ""
    server: str = ""
    software: str = ""
    detail: str = ""
    location: str = ""
    clock_offset: float | None = None

    @property
    def is_ours(self) -> bool:
        """Whether an arendezvous server answered."""
        return bool(self.server)


async def ask(url: str, credentials: Credentials, proxy: str | None) -> HttpProbeResult:
    """Asks for a resource, and tells what came of it. Cancellation: safe.

    Args:
        url: The URL.
        credentials: The token to show, and the TLS settings.
        proxy: The URL of the proxy; None: there is none.

    Raises:
        RendezvousSettingsError: A file of the TLS settings cannot be read, or holds something else.
    """
    try:
        async with _answered(url, credentials, proxy) as answer:
            return _reply(answer, await _start_of_body(answer))
    except (aiohttp.ClientError, OSError, ValueError) as error:
        return HttpProbeResult(trouble=_why(error, credentials))


async def first_event(url: str, credentials: Credentials, proxy: str | None) -> str:
    """Waits for the first event of a stream; returns what went wrong, which is empty if it came.

    Args:
        url: The URL of the stream.
        credentials: See `ask`.
        proxy: See `ask`.

    Raises:
        RendezvousSettingsError: See `ask`.
    """
    accept = {"Accept": "text/event-stream"}
    parser = EventParser(MAX_EVENT)
    try:
        async with _answered(url, credentials, proxy, accept) as answer:
            if answer.status != 200 or answer.content_type != accept["Accept"]:
                return f"the answer has the status {answer.status} and the type {answer.content_type}"
            while chunk := await answer.content.readany():
                if parser.feed(chunk):
                    return ""
            return "it ended before the first event"
    except (aiohttp.ClientError, OSError, FrameError) as error:
        return _why(error, credentials)


@asynccontextmanager
async def _answered(
    url: str, credentials: Credentials, proxy: str | None, headers: dict[str, str] | None = None
) -> AsyncIterator[aiohttp.ClientResponse]:
    async with (
        aiohttp.ClientSession(
            headers={**credentials.headers(), "Accept-Encoding": "identity"},
            timeout=aiohttp.ClientTimeout(total=CHECK_TIMEOUT),
            cookie_jar=aiohttp.DummyCookieJar(),
        ) as session,
        session.get(
            url,
            headers=headers,
            ssl=credentials.ssl_context() or True,
            server_hostname=credentials.server_name or None,
            proxy=proxy,
            allow_redirects=False,
        ) as answer,
    ):
        yield answer


def _reply(answer: aiohttp.ClientResponse, body: bytes) -> HttpProbeResult:
    return HttpProbeResult(
        status=answer.status,
        server=_shown(answer.headers.get(SERVER_HEADER, "")),
        software=_shown(answer.headers.get("Server", "")),
        detail=_detail_of(body),
        location=_shown(answer.headers.get("Location", "somewhere")),
        clock_offset=_clock_offset(answer.headers.get("Date", "")),
    )


async def _start_of_body(answer: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    while len(body) < MAX_ANSWER and (chunk := await answer.content.readany()):
        body += chunk
    return bytes(body)


def _detail_of(body: bytes) -> str:
    """Returns what a problem says of itself; empty if it is none."""
    try:
        return str(msgspec.json.decode(body, type=dict[str, object]).get("detail", ""))
    except (msgspec.DecodeError, RecursionError):
        return ""


def _clock_offset(date: str) -> float | None:
    try:
        return time.time() - parsedate_to_datetime(date).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None


def _why(error: Exception, credentials: Credentials) -> str:
    cause = getattr(error, "os_error", None) or error
    if isinstance(error, TimeoutError):
        return f"nothing has come within {CHECK_TIMEOUT:g} s"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "the connection was closed instead"
    if isinstance(error, aiohttp.ClientResponseError) and error.status == 400:
        return "what comes is not HTTP"
    return _shown(explain(cause, credentials.names) or str(error) or type(error).__name__)


def _shown(text: str) -> str:
    """Returns what strangers say, without what a terminal would take for commands."""
    return "".join(character if character.isprintable() else "?" for character in text[:_SHOWN])

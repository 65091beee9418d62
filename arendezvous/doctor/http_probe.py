"""Asking over HTTP as the doctor does: whoever may answer, and whatever they may say."""

from __future__ import annotations

import asyncio
import time
from email.utils import parsedate_to_datetime
from typing import Final

import msgspec

from arendezvous.doctor.checks import CHECK_TIMEOUT
from arendezvous.net.credentials import Credentials
from arendezvous.net.http_client import HttpClient, UnansweredError
from arendezvous.wire.http.answers import HttpAnswer
from arendezvous.wire.http.names import LISTENER_HEADER

MAX_ANSWER: Final = 64 * 1024
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
